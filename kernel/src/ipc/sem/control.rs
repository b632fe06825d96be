//! What semctl(2) does to a set.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use super::{MAX_VALUE, Semaphore, Set, State};
use crate::errno::{Errno, Result};
use crate::ipc::permissions::{IpcPerm, Permissions, READ, WRITE};
use crate::memory::fallible::{self, Text};
use crate::namespaces::ipc::here;
use crate::process::{self, Pid};
use crate::{sched, sync};

/// All that IPC_STAT tells.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    pub id: i32,
    pub permissions: Permissions,
    pub operated_at: i64,
    pub changed_at: i64,
    pub size: usize,
}

impl Set {
    /// The lock; `EIDRM` when the set was removed, `EACCES` when the caller may not do `want` with it.
    fn lock_for(&self, want: u32) -> Result<lock_api::MutexGuard<'_, sync::RawMutex, State>> {
        let state = self.state.lock();
        state.permissions.check(want)?;
        if state.removed { Err(Errno::EIDRM) } else { Ok(state) }
    }

    /// How many semaphores it has.
    pub fn size(&self) -> usize {
        self.size
    }

    fn status_of(&self, state: &State) -> Status {
        Status {
            id: self.id,
            permissions: state.permissions,
            operated_at: state.operated_at,
            changed_at: state.changed_at,
            size: self.size,
        }
    }

    /// IPC_STAT and SEM_STAT.
    pub fn status(&self) -> Result<Status> {
        Ok(self.status_of(&*self.lock_for(READ)?))
    }

    /// SEM_STAT_ANY: whatever the permissions are.
    pub fn status_for_all(&self) -> Status {
        self.status_of(&self.state.lock())
    }

    /// GETALL.
    pub fn values(&self) -> Result<Vec<u16>> {
        let mut values = fallible::with_capacity(self.size)?;
        let state = self.lock_for(READ)?;
        values.extend(state.semaphores.iter().map(|semaphore| semaphore.value));
        Ok(values)
    }

    /// `EACCES` unless the caller may change values.
    pub fn check_change(&self) -> Result<()> {
        self.lock_for(WRITE).map(drop)
    }

    /// SETALL.
    pub fn set_values(&self, values: &[u16]) -> Result<()> {
        if values.iter().any(|value| i32::from(*value) > MAX_VALUE) {
            return Err(Errno::ERANGE);
        }
        let pid = crate::ipc::current_pid();
        let mut state = self.lock_for(WRITE)?;
        for (semaphore, value) in state.semaphores.iter_mut().zip(values) {
            *semaphore = Semaphore { value: *value, pid };
        }
        state.clear_adjustments(0, self.size);
        state.changed_at = crate::ipc::now();
        state.settle((0..self.size).map(|index| index as u16));
        Ok(())
    }

    /// SETVAL.
    pub fn set_value(&self, number: i32, value: i32) -> Result<()> {
        let index = self.index(number)?;
        let mut state = self.lock_for(WRITE)?;
        state.semaphores[index] = Semaphore { value: value as u16, pid: crate::ipc::current_pid() };
        state.clear_adjustments(index, 1);
        state.changed_at = crate::ipc::now();
        state.settle([index as u16]);
        Ok(())
    }

    fn index(&self, number: i32) -> Result<usize> {
        usize::try_from(number).ok().filter(|index| *index < self.size).ok_or(Errno::EINVAL)
    }

    /// GETVAL and GETPID.
    pub fn value(&self, number: i32) -> Result<(u16, Pid)> {
        let state = self.lock_for(READ)?;
        let semaphore = state.semaphores[self.index(number)?];
        Ok((semaphore.value, semaphore.pid))
    }

    /// GETNCNT and GETZCNT.
    pub fn waiting(&self, number: i32) -> Result<(usize, usize)> {
        let state = self.lock_for(READ)?;
        Ok(state.waiting.counts(self.index(number)? as u16))
    }

    /// IPC_SET.
    pub fn set_permissions(&self, new: &IpcPerm) -> Result<()> {
        let mut state = self.state.lock();
        state.permissions.check_owner()?;
        if state.removed {
            return Err(Errno::EIDRM);
        }
        state.permissions.set(new)?;
        state.changed_at = crate::ipc::now();
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
        state.forget_undos(self.id);
        for sleeper in state.waiting.take_all() {
            sleeper.complete(Err(Errno::EIDRM));
            sched::cond_resched();
        }
        drop(state);
        if let Some(home) = self.home.get() {
            home.sets.remove(self);
        }
        Ok(())
    }
}

/// `/proc/sysvipc/sem`, in the columns of Linux.
pub fn list() -> Result<String> {
    let mut text =
        Text::from("       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n");
    let who = process::current().credentials();
    for set in here().sets.each() {
        let status = set.status_for_all();
        let permissions = status.permissions;
        let _ = writeln!(
            text,
            "{:10} {:10}  {:4o} {:10} {:5} {:5} {:5} {:5} {:10} {:10}",
            permissions.key,
            status.id,
            permissions.mode,
            status.size,
            who.shown_uid(permissions.uid),
            who.shown_gid(permissions.gid),
            who.shown_uid(permissions.creator_uid),
            who.shown_gid(permissions.creator_gid),
            status.operated_at,
            status.changed_at,
        );
    }
    text.into_string()
}
