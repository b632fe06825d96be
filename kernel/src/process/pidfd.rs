//! Descriptors that refer to a process, or to one thread of it: pidfd_open(2).

use alloc::sync::Arc;
use core::fmt::Write;

use linux_raw_sys::general as abi;

use super::{IdKind, Process, Thread, limits};
use crate::errno::{Errno, Result};
use crate::fs::anonymous::Kind;
use crate::fs::poll::Events;
use crate::fs::{File, FileOps};
use crate::memory::fallible::Text;
use crate::namespaces::{self, View};
use crate::sync::WaitQueue;

/// PIDFD_THREAD: the descriptor is for one thread.
pub const THREAD: u32 = abi::O_EXCL;

/// `_IO(0xff, n)`: the namespaces of the process, by the names of `/proc/PID/ns`.
const IOCTL: u32 = 0xff00;
const NAMESPACES: [&str; 10] =
    ["cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"];

struct PidFd {
    process: Arc<Process>,
    /// The thread, if it is for one.
    thread: Option<Arc<Thread>>,
}

impl PidFd {
    /// The process has ended, or the thread.
    fn has_ended(&self) -> bool {
        match &self.thread {
            Some(thread) => !self.process.has_thread(thread),
            None => self.process.has_ended(),
        }
    }

    /// Nothing is left of it, not even for who waits.
    fn is_gone(&self) -> bool {
        match &self.thread {
            Some(thread) if !thread.is_leader() => !self.process.has_thread(thread),
            _ => self.process.leader().is_none(),
        }
    }
}

impl FileOps for PidFd {
    fn poll(&self, _: &File) -> Events {
        // Readable at the end, whether somebody has waited or not.
        let gone = self.is_gone();
        let mut events = Events::empty();
        events.set(Events::READABLE, gone || self.has_ended());
        events.set(Events::HUP, gone);
        events
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.process.ended);
        if self.thread.is_some() {
            visit(&self.process.thread_ended);
        }
    }

    fn pollable(&self) -> bool {
        true
    }

    /// Opens a namespace of the process.
    fn ioctl(&self, _: &File, command: u32, argument: usize) -> Result<usize> {
        if argument != 0 {
            return Err(Errno::EINVAL);
        }
        let thread = match &self.thread {
            Some(thread) => Some(thread.clone()),
            None => self.process.leader(),
        };
        let thread = thread.filter(|_| !self.is_gone()).ok_or(Errno::ESRCH)?;
        let index = command.wrapping_sub(IOCTL + 1) as usize;
        let name = NAMESPACES.get(index).ok_or(Errno::ENOTTY)?;
        // One that has ended has none but its users'.
        if thread.try_fs().is_none() {
            return Err(Errno::ESRCH);
        }
        crate::syscall::mm::check_may_access(&self.process).map_err(|_| Errno::EACCES)?;
        namespaces::file::open(namespaces::file::of_thread(&thread, name).ok_or(Errno::ENOENT)?)
    }

    /// Of what has ended nobody else knows.
    fn kernel_bytes(&self) -> u64 {
        let process = if self.process.leader().is_none() { size_of::<Process>() } else { 0 };
        let thread = self.thread.as_ref().filter(|thread| !self.process.has_thread(thread));
        (process + thread.map_or(0, |_| size_of::<Thread>())) as u64
    }

    fn describe(&self, _: &File, out: &mut Text) {
        let view = View::current();
        let (number, numbers) = match &self.thread {
            Some(thread) => (view.thread(thread), thread.numbers().cloned()),
            None => (view.process(&self.process), self.process.numbers.clone()),
        };
        // Writing to a string does not fail.
        if self.is_gone() {
            let _ = out.write_str("Pid:\t-1\nNSpid:\t-1\n");
            return;
        }
        let _ = write!(out, "Pid:\t{number}\nNSpid:\t{number}");
        let deeper = numbers.iter().flat_map(|numbers| numbers.seen_from(&view));
        // The first of them is the one that is told already, unless it is the first namespace's.
        for number in deeper.skip(usize::from(!view.is_initial())).filter(|_| number != 0) {
            let _ = write!(out, "\t{number}");
        }
        let _ = out.write_str("\n");
    }
}

/// A new descriptor of the current process for the thread's process, or with [`THREAD`] for the thread; it is closed on execve(2).
pub fn open(thread: &Arc<Thread>, flags: u32) -> Result<i32> {
    install(&make(thread, flags))
}

/// A file that refers to the thread's process, or with [`THREAD`] to the thread. One that is not in the tree yet seems to be gone.
pub fn make(thread: &Arc<Thread>, flags: u32) -> Arc<File> {
    let of_thread = flags & THREAD != 0;
    let ops = Arc::new(PidFd { process: thread.process.clone(), thread: of_thread.then(|| thread.clone()) });
    File::anonymous(Kind::Anonymous, "[pidfd]", ops, abi::O_RDWR | flags & abi::O_NONBLOCK)
}

/// A descriptor of the current process for such a file.
pub fn install(file: &Arc<File>) -> Result<i32> {
    let current = super::current();
    let limit = current.process.limit(limits::NOFILE) as usize;
    current.files().install(file.clone(), 0, limit, true)
}

/// Whom waitid(2) means by a descriptor.
pub fn id_of(file: &File) -> Option<IdKind<'_>> {
    let pidfd = file.ops_as::<PidFd>()?;
    Some(match &pidfd.thread {
        Some(thread) if !thread.is_leader() => IdKind::Thread(thread),
        _ => IdKind::Process(&pidfd.process),
    })
}

/// The process that a descriptor refers to.
pub fn process_of(file: &File) -> Option<Arc<Process>> {
    file.ops_as::<PidFd>().map(|pidfd| pidfd.process.clone())
}

/// The thread that a descriptor is for, if it is for one; `ESRCH` when that has ended.
pub fn thread_of(file: &File) -> Result<Option<Arc<Thread>>> {
    let Some(pidfd) = file.ops_as::<PidFd>() else { return Ok(None) };
    match &pidfd.thread {
        Some(_) if pidfd.has_ended() && pidfd.is_gone() => Err(Errno::ESRCH),
        thread => Ok(thread.clone()),
    }
}
