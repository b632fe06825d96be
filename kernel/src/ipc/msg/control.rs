//! What msgctl(2) does to a queue.

use alloc::string::String;
use core::fmt::Write as _;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;

use super::{Queue, SETTINGS, State};
use crate::errno::{Errno, Result};
use crate::ipc::permissions::{IpcPerm, Permissions, READ};
use crate::memory::fallible::Text;
use crate::namespaces::View;
use crate::namespaces::ipc::here;
use crate::process::{self, Pid};
use crate::sched;

/// All that IPC_STAT tells.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    pub id: i32,
    pub permissions: Permissions,
    pub sent_at: i64,
    pub received_at: i64,
    pub changed_at: i64,
    pub bytes: usize,
    pub messages: usize,
    pub limit: usize,
    pub last_sender: Pid,
    pub last_receiver: Pid,
}

impl Queue {
    fn status_of(&self, state: &State) -> Status {
        Status {
            id: self.id,
            permissions: state.permissions,
            sent_at: state.sent_at,
            received_at: state.received_at,
            changed_at: state.changed_at,
            bytes: state.messages.bytes(),
            messages: state.messages.len(),
            limit: state.limit,
            last_sender: state.last_sender,
            last_receiver: state.last_receiver,
        }
    }

    /// IPC_STAT and MSG_STAT.
    pub fn status(&self) -> Result<Status> {
        let state = self.state.lock();
        state.check(READ)?;
        Ok(self.status_of(&state))
    }

    /// MSG_STAT_ANY: whatever the permissions are.
    pub fn status_for_all(&self) -> Status {
        self.status_of(&self.state.lock())
    }

    /// IPC_SET: who waits looks at all again, for the permissions and the room may have changed.
    pub fn set(&self, new: &IpcPerm, limit: usize) -> Result<()> {
        let mut state = self.state.lock();
        state.permissions.check_owner()?;
        if state.removed {
            return Err(Errno::EIDRM);
        }
        // Relaxed: a setting of its own.
        let most = SETTINGS.bytes_in_queue.load(Ordering::Relaxed);
        if limit > most && !process::current().credentials().capable(abi::CAP_SYS_RESOURCE) {
            return Err(Errno::EPERM);
        }
        state.permissions.set(new)?;
        state.limit = limit;
        state.changed_at = crate::ipc::now();
        state.end_waits(Errno::EAGAIN);
        Ok(())
    }

    /// IPC_RMID: who waits in it gets `EIDRM`.
    pub fn remove(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.permissions.check_owner()?;
        if state.removed {
            return Err(Errno::EIDRM);
        }
        state.removed = true;
        state.end_waits(Errno::EIDRM);
        drop(state);
        if let Some(home) = self.home.get() {
            home.queues.remove(self);
        }
        Ok(())
    }
}

impl State {
    fn end_waits(&mut self, error: Errno) {
        for receiver in self.receivers.take_all() {
            receiver.complete(Err(error));
            sched::cond_resched();
        }
        for sender in self.senders.take_all() {
            sender.complete(Err(error));
            sched::cond_resched();
        }
    }
}

/// `/proc/sysvipc/msg`, in the columns of Linux.
pub fn list() -> Result<String> {
    let mut text = Text::from(
        "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      \
         stime      rtime      ctime\n",
    );
    let (view, who) = (View::current(), process::current().credentials());
    for queue in here().queues.each() {
        let status = queue.status_for_all();
        let permissions = status.permissions;
        let _ = writeln!(
            text,
            "{:10} {:10}  {:4o}  {:10} {:10} {:5} {:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10}",
            permissions.key,
            status.id,
            permissions.mode,
            status.bytes,
            status.messages,
            view.number(status.last_sender),
            view.number(status.last_receiver),
            who.shown_uid(permissions.uid),
            who.shown_gid(permissions.gid),
            who.shown_uid(permissions.creator_uid),
            who.shown_gid(permissions.creator_gid),
            status.sent_at,
            status.received_at,
            status.changed_at,
        );
    }
    text.into_string()
}
