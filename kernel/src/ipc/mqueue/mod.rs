//! POSIX message queues: mq_overview(7).
//!
//! A queue is a file of the file system `mqueue`, of which there is one instance ([`filesystem`]). The calls open files in it by name; the
//! same file system can be mounted, and then its files are listed, read and unlinked like others.

mod filesystem;
mod limits;

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt::Write as _;

use linux_raw_sys::general as abi;

use crate::errno::{Errno, Result};
use crate::fs::file::{File, FileOps};
use crate::fs::iobuf::Sink;
use crate::fs::{Events, caller};
use crate::memory::fallible::Text;
use crate::memory::reserve;
use crate::namespaces::View;
use crate::process::{self, Process};
use crate::signal::{self, SigInfo};
use crate::sync::{SpinLock, WaitQueue};
use crate::time::Deadline;

pub use filesystem::{Instance, register};
use limits::Charge;
pub use limits::{Attributes, register as register_settings};

/// Priorities are below: `MQ_PRIO_MAX`.
pub const PRIORITIES: u32 = 32768;

/// Who is told when a message comes into the empty queue.
#[derive(Clone)]
pub struct Notification {
    process: Weak<Process>,
    /// For what the text of the queue says.
    pid: u32,
    /// 0 for nobody: SIGEV_NONE.
    signal: u32,
    kind: u32,
    value: u64,
}

impl Notification {
    /// The current process shall be told by a signal, or not at all.
    pub fn new(signal: u32, kind: u32, value: u64) -> Self {
        let process = &process::current().process;
        Self { process: Arc::downgrade(process), pid: process.pid, signal, kind, value }
    }

    fn is_of_caller(&self) -> bool {
        self.pid == process::current().process.pid
    }
}

#[derive(Default)]
struct State {
    attributes: Attributes,
    /// By priority, the highest first, then by age.
    messages: BTreeMap<(Reverse<u32>, u64), Vec<u8>>,
    next: u64,
    bytes: usize,
    /// Calls that wait for a message: while there is one nobody is notified.
    receivers: usize,
    notification: Option<Notification>,
    charge: Option<Charge>,
}

/// A queue.
pub struct Queue {
    state: SpinLock<State>,
    /// A message has come, or a notification was asked for.
    filled: WaitQueue,
    /// A message has gone.
    emptied: WaitQueue,
}

/// A queue that mq_open(2) is to make.
struct Making {
    tid: u32,
    attributes: Attributes,
    charge: Charge,
}

/// mq_open(2): the name has no slash. Gives the open file.
pub fn open(name: &[u8], flags: u32, mode: u32, attributes: Option<Attributes>) -> Result<Arc<File>> {
    let wanted = flags & (abi::O_ACCMODE | abi::O_NONBLOCK | abi::O_CLOEXEC);
    if wanted & abi::O_ACCMODE == abi::O_ACCMODE {
        return Err(Errno::EINVAL);
    }
    if flags & abi::O_CREAT == 0 {
        return filesystem::open(name, wanted);
    }
    let exclusive = flags & abi::O_EXCL != 0;
    loop {
        // An exclusive open of what is there fails without opening it: that may wait for the end of a lease.
        if exclusive {
            if filesystem::exists(name)? {
                return Err(Errno::EEXIST);
            }
        } else {
            match filesystem::open(name, wanted) {
                Err(Errno::ENOENT) => {}
                other => return other,
            }
        }
        let attributes = match attributes {
            Some(attributes) => attributes.check()?,
            None => Attributes::standard(),
        };
        let making = Making { tid: process::current().tid(), attributes, charge: Charge::take(&attributes)? };
        let mode = mode & 0o7777 & !caller::context().umask();
        match filesystem::make(name, wanted, mode, making) {
            // Another thread was faster.
            Err(Errno::EEXIST) if !exclusive && !process::current().kill_pending() => {}
            other => return other,
        }
    }
}

/// mq_unlink(2).
pub fn unlink(name: &[u8]) -> Result<()> {
    filesystem::unlink(name)
}

/// The queue that an open file is; `EBADF` for another one.
pub fn queue_of(file: &File) -> Result<&Queue> {
    file.ops_as::<Queue>().ok_or(Errno::EBADF)
}

impl Queue {
    /// A queue as mq_open(2) wants it, or one that open(2) or mknod(2) makes: with the standard attributes, and counted when it is opened.
    fn new(making: Option<Making>) -> Self {
        let (attributes, charge) = match making {
            Some(making) => (making.attributes, Some(making.charge)),
            None => (Attributes::standard(), None),
        };
        let state = State { attributes, charge, ..State::default() };
        Self { state: SpinLock::growing(state), filled: WaitQueue::new(), emptied: WaitQueue::new() }
    }

    /// Counts the queue for who opens it, if it counts for nobody yet. `EMFILE`.
    fn count(&self) -> Result<()> {
        let attributes = {
            let state = self.state.lock();
            if state.charge.is_some() {
                return Ok(());
            }
            state.attributes
        };
        let charge = Charge::take(&attributes)?;
        // Another thread may have been faster: one of both goes, without the lock.
        let other = self.state.lock().charge.replace(charge);
        drop(other);
        Ok(())
    }

    /// What it is made for, and how many messages it has.
    pub fn attributes(&self) -> (Attributes, usize) {
        let state = self.state.lock();
        (state.attributes, state.messages.len())
    }

    /// mq_timedsend(2).
    pub fn send(&self, file: &File, body: Vec<u8>, priority: u32, deadline: Option<Deadline>) -> Result<()> {
        // A message stays when its sender is gone.
        reserve::ask_lasting(body.len())?;
        let mut body = Some(body);
        let mut attempt = || {
            let mut state = self.state.lock();
            if state.messages.len() as u64 >= state.attributes.messages {
                return None;
            }
            let body = body.take()?;
            state.bytes += body.len();
            let key = (Reverse(priority), state.next);
            state.next += 1;
            let first = state.messages.is_empty() && state.receivers == 0;
            state.messages.insert(key, body);
            Some(if first { state.notification.take() } else { None })
        };
        let notification = match attempt() {
            Some(notification) => notification,
            None if file.nonblocking() => return Err(Errno::EAGAIN),
            None => self.emptied.wait_event_to(deadline, attempt)?,
        };
        self.filled.wake_one();
        if let Some(notification) = notification {
            notification.tell();
        }
        Ok(())
    }

    /// mq_timedreceive(2): the message that is first, and its priority.
    pub fn receive(&self, file: &File, deadline: Option<Deadline>) -> Result<(Vec<u8>, u32)> {
        let attempt = || {
            let mut state = self.state.lock();
            let ((Reverse(priority), _), body) = state.messages.pop_first()?;
            state.bytes -= body.len();
            Some((body, priority))
        };
        let message = match attempt() {
            Some(message) => message,
            None if file.nonblocking() => return Err(Errno::EAGAIN),
            None => {
                self.state.lock().receivers += 1;
                let message = self.filled.wait_event_to(deadline, attempt);
                self.state.lock().receivers -= 1;
                message?
            }
        };
        self.emptied.wake_one();
        Ok(message)
    }

    /// mq_notify(2): `EBUSY` when somebody else is to be told.
    pub fn notify(&self, notification: Option<Notification>) -> Result<()> {
        // The last reference to a process must not go under the lock.
        let mut process = None;
        let mut state = self.state.lock();
        let old = state.notification.take().filter(|old| {
            process = old.process.upgrade();
            process.as_ref().is_some_and(|process| process.has_memory())
        });
        match (old, notification) {
            (Some(old), new) if !old.is_of_caller() || new.is_some() => {
                let busy = new.is_some();
                state.notification = Some(old);
                if busy { Err(Errno::EBUSY) } else { Ok(()) }
            }
            (_, new) => {
                state.notification = new;
                Ok(())
            }
        }
    }
}

impl Notification {
    fn tell(self) {
        if self.signal == 0 {
            return;
        }
        if let Some(process) = self.process.upgrade() {
            let sender = process::current();
            let info = SigInfo::message_queue(
                self.signal,
                sender.process.number(),
                sender.credentials().uid,
                self.value,
            );
            signal::send_process(&process, info);
        }
    }
}

impl FileOps for Queue {
    fn seekable(&self) -> bool {
        true
    }

    fn read_at(&self, _: &File, offset: u64, sink: &mut Sink) -> Result<usize> {
        let (bytes, (kind, signal, pid)) = {
            let state = self.state.lock();
            let asked = state.notification.as_ref();
            (state.bytes, asked.map_or((0, 0, 0), |asked| (asked.kind, asked.signal, asked.pid)))
        };
        // Without the lock: the process may end with the reference that looks for its number.
        let pid = View::current().number(pid);
        let mut text = Text::new();
        // Writing to a string does not fail.
        let _ = writeln!(text, "QSIZE:{bytes:<10} NOTIFY:{kind:<5} SIGNO:{signal:<5} NOTIFY_PID:{pid:<6}");
        let text = text.finish()?;
        let rest = usize::try_from(offset).ok().and_then(|at| text.get(at..)).unwrap_or_default();
        if rest.is_empty() { Ok(0) } else { sink.write(rest) }
    }

    fn poll(&self, _: &File) -> Events {
        let state = self.state.lock();
        let mut events = Events::empty();
        if !state.messages.is_empty() {
            events |= Events::IN;
        }
        if (state.messages.len() as u64) < state.attributes.messages {
            events |= Events::OUT;
        }
        events
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.filled);
        visit(&self.emptied);
    }

    fn pollable(&self) -> bool {
        true
    }

    fn release(&self, _: &File) {
        let Some(thread) = process::try_current() else { return };
        let mut state = self.state.lock();
        if state.notification.as_ref().is_some_and(|asked| asked.pid == thread.process.pid) {
            state.notification = None;
        }
    }
}
