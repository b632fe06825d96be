//! The descriptor of a userfaultfd, and `/dev/userfaultfd`.

use alloc::sync::Arc;
use core::fmt::Write;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use linux_raw_sys::general as abi;

use super::events::Event;
use super::fill::{Filling, Progress};
use super::{Context, INITIALISED, MESSAGE, News};
use crate::errno::{Errno, Result};
use crate::fs::anonymous::Kind;
use crate::fs::device::register_character_device;
use crate::fs::file::{File, FileOps};
use crate::fs::iobuf::Sink;
use crate::fs::path::Path;
use crate::fs::{DeviceId, Events, caller, dev};
use crate::memory::fallible::Text;
use crate::mm::uaccess::{read_user, write_user};
use crate::mm::{PAGE, TASK_SIZE, VmFlags};
use crate::process;
use crate::sched;
use crate::sync::WaitQueue;

/// `vm.unprivileged_userfaultfd`: may everybody have the faults of system calls wait?
pub static UNPRIVILEGED: AtomicBool = AtomicBool::new(false);

const FEATURES: u64 = (abi::UFFD_FEATURE_PAGEFAULT_FLAG_WP
    | abi::UFFD_FEATURE_EVENT_FORK
    | abi::UFFD_FEATURE_EVENT_REMAP
    | abi::UFFD_FEATURE_EVENT_REMOVE
    | abi::UFFD_FEATURE_EVENT_UNMAP
    | abi::UFFD_FEATURE_MISSING_HUGETLBFS
    | abi::UFFD_FEATURE_MISSING_SHMEM
    | abi::UFFD_FEATURE_SIGBUS
    | abi::UFFD_FEATURE_THREAD_ID
    | abi::UFFD_FEATURE_MINOR_HUGETLBFS
    | abi::UFFD_FEATURE_MINOR_SHMEM
    | abi::UFFD_FEATURE_EXACT_ADDRESS
    | abi::UFFD_FEATURE_WP_HUGETLBFS_SHMEM
    | abi::UFFD_FEATURE_WP_UNPOPULATED
    | abi::UFFD_FEATURE_POISON
    | abi::UFFD_FEATURE_WP_ASYNC
    | abi::UFFD_FEATURE_MOVE) as u64;

/// The calls that every userfaultfd has: UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_API.
const CALLS: u64 = 1 << abi::_UFFDIO_REGISTER | 1 << abi::_UFFDIO_UNREGISTER | 1 << abi::_UFFDIO_API;

/// `_IOC(direction, 0xaa, number, size)`.
const fn ioctl(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | abi::UFFDIO << 8 | number
}
const READ_WRITE: u32 = 3;
const READ: u32 = 2;
const UFFDIO_API: u32 = ioctl(READ_WRITE, abi::_UFFDIO_API, 24);
const UFFDIO_REGISTER: u32 = ioctl(READ_WRITE, abi::_UFFDIO_REGISTER, 32);
const UFFDIO_UNREGISTER: u32 = ioctl(READ, abi::_UFFDIO_UNREGISTER, 16);
const UFFDIO_WAKE: u32 = ioctl(READ, abi::_UFFDIO_WAKE, 16);
const UFFDIO_COPY: u32 = ioctl(READ_WRITE, abi::_UFFDIO_COPY, 40);
const UFFDIO_ZEROPAGE: u32 = ioctl(READ_WRITE, abi::_UFFDIO_ZEROPAGE, 32);
const UFFDIO_MOVE: u32 = ioctl(READ_WRITE, abi::_UFFDIO_MOVE, 40);
const UFFDIO_WRITEPROTECT: u32 = ioctl(READ_WRITE, abi::_UFFDIO_WRITEPROTECT, 24);
const UFFDIO_CONTINUE: u32 = ioctl(READ_WRITE, abi::_UFFDIO_CONTINUE, 32);
const UFFDIO_POISON: u32 = ioctl(READ_WRITE, abi::_UFFDIO_POISON, 32);
const USERFAULTFD_IOC_NEW: u32 = ioctl(0, 0, 0);

/// In the modes of all calls that resolve faults.
const DONTWAKE: u64 = 1;
/// In the modes of UFFDIO_COPY and UFFDIO_CONTINUE.
const WITHHOLD: u64 = 2;
/// The lowest address that a range may begin at: `vm.mmap_min_addr`.
const LOWEST: u64 = 65536;

/// May the caller have a userfaultfd of these flags?
pub fn may_create(flags: u32) -> bool {
    // Relaxed: a setting of its own.
    flags & abi::UFFD_USER_MODE_ONLY != 0
        || UNPRIVILEGED.load(Ordering::Relaxed)
        || process::current().credentials().capable(abi::CAP_SYS_PTRACE)
}

/// A userfaultfd for the caller's memory: the number of its descriptor.
pub fn create(flags: u32) -> Result<usize> {
    if flags & !(abi::UFFD_USER_MODE_ONLY | abi::O_CLOEXEC | abi::O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let space = process::current().process.mm().ok_or(Errno::EINVAL)?;
    let context = Context::new(&space, flags);
    install(context, flags).map(|fd| fd as usize)
}

/// A descriptor of the caller's for a context.
fn install(context: Arc<Context>, flags: u32) -> Result<i32> {
    let file = File::anonymous(
        Kind::Anonymous,
        "[userfaultfd]",
        Arc::new(Descriptor(context)),
        abi::O_RDONLY | flags & abi::O_NONBLOCK,
    );
    caller::files().install(file, 0, caller::descriptor_limit(), flags & abi::O_CLOEXEC != 0)
}

struct Descriptor(Arc<Context>);

/// Of `read_user` and `write_user`: an argument is an array of 64-bit words.
fn words<const N: usize>(argument: usize) -> Result<[u64; N]> {
    read_user(argument)
}

/// A range as all calls check it.
fn range(start: u64, len: u64) -> Result<Range<u64>> {
    let aligned = start.is_multiple_of(PAGE) && len.is_multiple_of(PAGE);
    if !aligned || len == 0 || !(LOWEST..TASK_SIZE).contains(&start) || len > TASK_SIZE - start {
        return Err(Errno::EINVAL);
    }
    Ok(start..start + len)
}

impl Descriptor {
    fn api(&self, argument: usize) -> Result<usize> {
        let [version, features, _] = words::<3>(argument)?;
        let refused = |errno| {
            write_user(argument, &[0u64; 3])?;
            Err(errno)
        };
        if version != u64::from(abi::UFFD_API) {
            return refused(Errno::EINVAL);
        }
        let may_fork = || process::current().credentials().capable(abi::CAP_SYS_PTRACE);
        if features & u64::from(abi::UFFD_FEATURE_EVENT_FORK) != 0 && !may_fork() {
            return refused(Errno::EPERM);
        }
        if features & !FEATURES != 0 {
            return refused(Errno::EINVAL);
        }
        let asynchronous = features & u64::from(abi::UFFD_FEATURE_WP_ASYNC) != 0;
        let more = if asynchronous { u64::from(abi::UFFD_FEATURE_WP_UNPOPULATED) } else { 0 };
        write_user(argument, &[version, FEATURES, CALLS])?;
        let set = features | more | INITIALISED;
        match self.0.features.compare_exchange(0, set, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => Ok(0),
            Err(_) => refused(Errno::EINVAL),
        }
    }

    fn register(&self, argument: usize) -> Result<usize> {
        let [start, len, mode] = words::<3>(argument)?;
        let known = abi::UFFDIO_REGISTER_MODE_MISSING
            | abi::UFFDIO_REGISTER_MODE_WP
            | abi::UFFDIO_REGISTER_MODE_MINOR;
        if mode == 0 || mode & !u64::from(known) != 0 {
            return Err(Errno::EINVAL);
        }
        let range = range(start, len)?;
        let has = |bit: u32| mode & u64::from(bit) != 0;
        let mut flags = VmFlags::empty();
        flags.set(VmFlags::USERFAULT_MISSING, has(abi::UFFDIO_REGISTER_MODE_MISSING));
        flags.set(VmFlags::USERFAULT_WP, has(abi::UFFDIO_REGISTER_MODE_WP));
        flags.set(VmFlags::USERFAULT_MINOR, has(abi::UFFDIO_REGISTER_MODE_MINOR));
        let calls = self.0.register(range, flags)?;
        write_user(argument + 24, &calls)?;
        Ok(0)
    }

    /// Fills a range, writes how far it came to `result`, and wakes who waited for what is there now.
    fn fill(&self, range: Range<u64>, mode: u64, filling: Filling, result: usize) -> Result<usize> {
        let len = range.end - range.start;
        let start = range.start;
        let withhold = filling != Filling::Poison && mode & WITHHOLD != 0;
        self.finish(start, len, mode, self.0.fill(range, filling, withhold), result)
    }

    /// Writes how far a call came to `result`, and wakes who waited for what is there now.
    fn finish(
        &self,
        start: u64,
        len: u64,
        mode: u64,
        progress: Result<Progress>,
        result: usize,
    ) -> Result<usize> {
        let (done, stopped) = match progress {
            Ok(progress) => (progress.done, progress.stopped),
            Err(Errno::ESRCH) => return Err(Errno::ESRCH),
            Err(errno) => (0, Some(errno)),
        };
        let told = match (done, stopped) {
            (0, Some(errno)) => -i64::from(errno.into_raw()),
            (done, _) => done as i64,
        };
        write_user(result, &told)?;
        if done == 0
            && let Some(errno) = stopped
        {
            return Err(errno);
        }
        if mode & DONTWAKE == 0 {
            self.0.wake(start..start + done);
        }
        if done == len { Ok(0) } else { Err(Errno::EAGAIN) }
    }

    fn move_pages(&self, argument: usize) -> Result<usize> {
        const SKIP_HOLES: u64 = 2;
        let [to, from, len, mode] = words::<4>(argument)?;
        if mode & !(DONTWAKE | SKIP_HOLES) != 0 {
            return Err(Errno::EINVAL);
        }
        let (target, _) = (range(to, len)?, range(from, len)?);
        let progress = self.0.move_pages(target.start, from, len, mode & SKIP_HOLES != 0);
        self.finish(to, len, mode, progress, argument + 32)
    }

    fn copy(&self, argument: usize) -> Result<usize> {
        let [to, from, len, mode] = words::<4>(argument)?;
        let source_end = from.checked_add(len);
        let range = range(to, len)?;
        if from < LOWEST || source_end.is_none_or(|end| end > TASK_SIZE) || mode & !(DONTWAKE | WITHHOLD) != 0
        {
            return Err(Errno::EINVAL);
        }
        self.fill(range, mode, Filling::Copy(from), argument + 32)
    }

    /// The calls with a range, a mode, and a result behind it.
    fn fill_range(&self, argument: usize, filling: Filling, known: u64) -> Result<usize> {
        let [start, len, mode] = words::<3>(argument)?;
        let range = range(start, len)?;
        if mode & !known != 0 {
            return Err(Errno::EINVAL);
        }
        self.fill(range, mode, filling, argument + 24)
    }

    /// Gives the reader an event, with a descriptor for the context of a child. What cannot be given stays to be read.
    fn give(&self, number: u64, event: Arc<Event>, sink: &mut Sink) -> Result<()> {
        let mut message = event.message;
        let mut descriptor = None;
        let mut give = || {
            if let Some(child) = &event.child {
                let fd = *descriptor.insert(install(child.clone(), child.flags)?);
                message[8..12].copy_from_slice(&fd.to_ne_bytes());
            }
            sink.write_all(&message)
        };
        let given = give();
        match (given, descriptor) {
            (Ok(()), _) => event.was_read(),
            (Err(_), None) => self.0.waiters.lock().put_back(number, event),
            (Err(_), Some(fd)) => {
                // Closed, the context lets go of the child, and is of no use for another reader.
                let _ = caller::files().close(fd);
                event.was_read();
            }
        }
        given
    }

    fn write_protect(&self, argument: usize) -> Result<usize> {
        const WP: u64 = 1;
        const QUIET: u64 = 2;
        let [start, len, mode] = words::<3>(argument)?;
        let range = range(start, len)?;
        if mode & !(WP | QUIET) != 0 || mode == WP | QUIET {
            return Err(Errno::EINVAL);
        }
        self.0.write_protect(range.clone(), mode & WP != 0)?;
        if mode == 0 {
            self.0.wake(range);
        }
        Ok(0)
    }
}

impl FileOps for Descriptor {
    fn read_at(&self, file: &File, _: u64, sink: &mut Sink) -> Result<usize> {
        if !self.0.is_initialised() {
            return Err(Errno::EINVAL);
        }
        let mut done = 0;
        while sink.remaining() >= MESSAGE {
            let news = match self.0.take_news() {
                Some(news) => news,
                None if done > 0 => return Ok(done),
                None if file.nonblocking() => return Err(Errno::EAGAIN),
                None => self.0.arrived.wait_event(None, || self.0.take_news())?,
            };
            let given = match news {
                News::Fault(message) => sink.write_all(&message),
                News::Event(number, event) => self.give(number, event, sink),
            };
            match given {
                Err(_) if done > 0 => return Ok(done),
                other => other?,
            }
            done += MESSAGE;
            // A buffer may have room for thousands.
            sched::cond_resched();
        }
        if done == 0 { Err(Errno::EINVAL) } else { Ok(done) }
    }

    fn poll(&self, file: &File) -> Events {
        // As on Linux: a descriptor whose reads block must not be polled.
        match () {
            () if !self.0.is_initialised() || !file.nonblocking() => Events::ERR,
            () if self.0.has_message() => Events::IN,
            () => Events::empty(),
        }
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.0.arrived);
    }

    fn pollable(&self) -> bool {
        true
    }

    fn ioctl(&self, _: &File, command: u32, argument: usize) -> Result<usize> {
        if command != UFFDIO_API && !self.0.is_initialised() {
            return Err(Errno::EINVAL);
        }
        match command {
            UFFDIO_API => self.api(argument),
            UFFDIO_REGISTER => self.register(argument),
            UFFDIO_UNREGISTER => {
                let [start, len] = words::<2>(argument)?;
                self.0.unregister(range(start, len)?).map(|()| 0)
            }
            UFFDIO_WAKE => {
                let [start, len] = words::<2>(argument)?;
                self.0.wake(range(start, len)?);
                Ok(0)
            }
            UFFDIO_COPY => self.copy(argument),
            UFFDIO_ZEROPAGE => self.fill_range(argument, Filling::Zeroes, DONTWAKE),
            UFFDIO_MOVE => self.move_pages(argument),
            UFFDIO_WRITEPROTECT => self.write_protect(argument),
            UFFDIO_CONTINUE => self.fill_range(argument, Filling::Continue, DONTWAKE | WITHHOLD),
            UFFDIO_POISON => self.fill_range(argument, Filling::Poison, DONTWAKE),
            _ => Err(Errno::EINVAL),
        }
    }

    fn release(&self, _: &File) {
        self.0.release();
    }

    fn describe(&self, _: &File, out: &mut Text) {
        let (waiting, unread) = {
            let waiters = self.0.waiters.lock();
            (waiters.by_page.len() + waiters.events.len(), waiters.unread.len() + waiters.events.len())
        };
        let features = self.0.features.load(Ordering::SeqCst);
        // Writing to a string does not fail.
        let _ = writeln!(out, "pending:\t{unread}\ntotal:\t{waiting}");
        let _ = writeln!(out, "API:\t{:x}:{features:x}:{:x}", abi::UFFD_API, FEATURES);
    }
}

/// Numbers of `/dev/userfaultfd`: a miscellaneous device.
const DEVICE: (u32, u32) = (10, 126);

struct Device;

impl FileOps for Device {
    fn ioctl(&self, _: &File, command: u32, argument: usize) -> Result<usize> {
        // Who may open the device may have one.
        if command == USERFAULTFD_IOC_NEW { create(argument as u32) } else { Err(Errno::EINVAL) }
    }
}

fn open(_: DeviceId, _: &Path, _: u32) -> Result<Arc<dyn FileOps>> {
    Ok(Arc::new(Device))
}

/// Makes `/dev/userfaultfd`.
pub fn init() -> Result<()> {
    let id = DeviceId::new(DEVICE.0, DEVICE.1);
    register_character_device(id, 1, open);
    dev::create_node("userfaultfd", id, 0o600)
}
