//! Open file descriptions, and what stands behind one.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use core::any::Any;
use core::ops::{Deref, DerefMut, Range};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use linux_raw_sys::general as abi;

use super::async_io::AsyncWatch;
use super::dentry::Dentry;
use super::epoll;
use super::inode::Inode;
use super::iobuf::{Sink, Source};
use super::lease::Lease;
use super::notify;
use super::notify::Note;
use super::owner::{FileOwner, Signalling};
use super::path::Path;
use super::poll::Events;
use super::stat::FileType;
use crate::errno::{Errno, Result};
use crate::fs::seals::Seals;
use crate::memory::fallible::Text;
use crate::mm::backing::Backing;
use crate::process::{self, Credentials, Process};
use crate::sync::{Mutex, MutexGuard, SpinLock, WaitQueue};

/// What a seek is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The begin of the file.
    Start,
    /// The position.
    Current,
    /// The end of the file.
    End,
    /// The next data at or after the offset.
    Data,
    /// The next hole at or after the offset; the end of the file is one.
    Hole,
}

/// The offset that stands for the end of the file in `FileOps::write_at`.
pub const AT_END: u64 = u64::MAX;

/// What a file does. One object may serve many open files (a regular file's inode) or one (an epoll
/// instance). The defaults are right for a file that does not support the call.
///
/// Calls may block; none comes with a spin lock held. `Err(ERESTARTSYS)` says that a signal interrupted a
/// wait before anything was done; what has been done counts before any error.
#[allow(unused_variables)]
pub trait FileOps: Any + Send + Sync {
    /// Does it have a position? Without one, offsets are 0 and pread(2), lseek(2) fail with `ESPIPE`.
    fn seekable(&self) -> bool {
        false
    }

    /// Reads from `offset`; 0 at the end. Whether to block: [`File::nonblocking`].
    fn read_at(&self, file: &File, offset: u64, sink: &mut Sink) -> Result<usize> {
        Err(Errno::EINVAL)
    }

    /// Whether `write_at` knows an end to append to. To others `O_APPEND` and `RWF_APPEND` mean nothing.
    fn appends(&self) -> bool {
        let _ = self;
        false
    }

    /// Writes at `offset`. For a file that appends and is open with `O_APPEND`, and for the offset [`AT_END`], it
    /// first sets `offset` to the file's end, under the lock that makes the append atomic. The caller adds
    /// the count.
    fn write_at(&self, file: &File, offset: &mut u64, source: &mut Source) -> Result<usize> {
        Err(Errno::EINVAL)
    }

    /// Does O_ASYNC have a meaning? SIGIO tells of what comes in, and of room.
    fn signals_readiness(&self) -> bool {
        false
    }

    /// May sendfile(2) read from it?
    fn spliceable(&self) -> bool {
        true
    }

    /// The new position for lseek(2), given the present one; the default knows the size by the inode.
    fn seek(&self, file: &File, whence: Whence, offset: i64, position: u64) -> Result<u64> {
        let size = file.inode().stat().size;
        let base = match whence {
            Whence::Start => 0,
            Whence::Current => position,
            Whence::End => size,
            Whence::Data | Whence::Hole => {
                // As Linux: a negative offset is before the end, so the hole there begins at the end.
                if offset >= size as i64 {
                    return Err(Errno::ENXIO);
                }
                return match whence {
                    Whence::Data => u64::try_from(offset).map_err(|_| Errno::EINVAL),
                    _ => Ok(size),
                };
            }
        };
        let at = (base as i64).checked_add(offset).ok_or(Errno::EINVAL)?;
        u64::try_from(at).map_err(|_| Errno::EINVAL)
    }

    /// The readiness now. Called again after a queue of `wait_queues` woke its watchers.
    fn poll(&self, file: &File) -> Events {
        Events::ALWAYS
    }

    /// Shows `visit` each queue that is woken when the result of `poll` may have changed. They live as long
    /// as the file does.
    fn wait_queues(&self, file: &File, visit: &mut dyn FnMut(&WaitQueue)) {}

    /// The process whose queue `wait_queues` shows, if it shows that of its caller.
    fn home(&self) -> Option<Weak<Process>> {
        let _ = self;
        None
    }

    /// True when the result of `poll` can change: epoll refuses files without readiness (`EPERM`).
    fn pollable(&self) -> bool {
        let _ = self;
        false
    }

    /// ioctl(2); what every file has (FIOCLEX, FIONBIO) is done before.
    fn ioctl(&self, file: &File, command: u32, argument: usize) -> Result<usize> {
        Err(Errno::ENOTTY)
    }

    /// What backs a mapping of `len` bytes from `offset`.
    fn mmap(&self, file: &Arc<File>, offset: u64, len: u64) -> Result<Backing> {
        Err(Errno::ENODEV)
    }

    /// The seals, for files that can have some.
    fn seals(&self) -> Option<&Arc<Seals>> {
        let _ = self;
        None
    }

    /// ftruncate(2).
    fn truncate(&self, file: &File, size: u64) -> Result<()> {
        Err(Errno::EINVAL)
    }

    /// fallocate(2); range and descriptor are checked, the mode's combinations are not.
    fn fallocate(&self, file: &File, mode: u32, offset: u64, len: u64) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Pages of this range of page indices that are in memory for its content; `EOPNOTSUPP` where they are not counted so.
    fn cached_pages(&self, range: Range<u64>) -> Result<u64> {
        Ok(0)
    }

    /// fsync(2) and fdatasync(2).
    fn sync(&self, file: &File) -> Result<()> {
        Err(Errno::EINVAL)
    }

    /// The commands of fcntl(2) that belong to the type: `F_GETPIPE_SZ`, `F_ADD_SEALS`.
    fn fcntl(&self, file: &File, command: u32, argument: usize) -> Result<usize> {
        Err(Errno::EINVAL)
    }

    /// The status flags are about to change to `flags` by fcntl(F_SETFL) or FIONBIO.
    fn flags_changed(&self, file: &File, flags: u32) -> Result<()> {
        Ok(())
    }

    /// A descriptor of the open file is closed, and something else still refers to the file. What this gives is called when the descriptor's
    /// reference is gone. Called outside of all locks.
    fn descriptor_closed(&self, file: &File) -> Option<fn()> {
        None
    }

    /// The last reference to the open file is gone. Called outside of all locks.
    fn release(&self, file: &File) {}

    /// Bytes of the kernel's memory that it holds, about: queued data, interests. Takes no lock that sleeps.
    fn kernel_bytes(&self) -> u64 {
        0
    }

    /// Lines of its own in `/proc/PID/fdinfo/N`.
    fn describe(&self, file: &File, out: &mut Text) {}
}

/// An open file description: what descriptors refer to.
pub struct File {
    path: Path,
    ops: Arc<dyn FileOps>,
    /// Access mode and status flags, `O_*`.
    flags: AtomicU32,
    position: Mutex<u64>,
    /// The open(2) that it is from made the file, too.
    is_new: AtomicBool,
    /// What the position was when its lock was let go last, for those who only look: a file of `/proc` may tell of itself.
    last_position: AtomicU64,
    /// Who is signalled about it, and of what.
    signalling: SpinLock<Option<Box<Signalling>>>,
    /// The epoll instances' interests in it.
    watches: Mutex<BTreeMap<usize, Weak<epoll::Item>>>,
    /// Differs from every other open file's: the owner of flock(2) and OFD locks.
    id: u64,
    /// Who opened it; nobody but the kernel else.
    opener: Option<Arc<Credentials>>,
}

/// Adds a read to the account of the current process.
fn count_read(result: Result<usize>) -> Result<usize> {
    if let Some(thread) = crate::process::try_current() {
        let io = &thread.process.io;
        // Ordering: statistics.
        io.reads.fetch_add(1, Ordering::Relaxed);
        io.read_bytes.fetch_add(result.unwrap_or(0) as u64, Ordering::Relaxed);
    }
    result
}

/// Adds a write to the account of the current process.
fn count_write(result: Result<usize>) -> Result<usize> {
    if let Some(thread) = crate::process::try_current() {
        let io = &thread.process.io;
        // Ordering: statistics.
        io.writes.fetch_add(1, Ordering::Relaxed);
        io.written_bytes.fetch_add(result.unwrap_or(0) as u64, Ordering::Relaxed);
    }
    result
}

/// Open files in all.
static OPEN: AtomicU64 = AtomicU64::new(0);

/// How many open files there are: `fs.file-nr`.
pub fn open_count() -> u64 {
    // Ordering: a statistic.
    OPEN.load(Ordering::Relaxed)
}

/// The status flags that stay with an open file: what `F_GETFL` shows beside the access mode.
const STATUS_FLAGS: u32 = abi::O_APPEND
    | abi::O_NONBLOCK
    | abi::O_DSYNC
    | abi::O_SYNC
    | abi::FASYNC
    | abi::O_DIRECT
    | abi::O_LARGEFILE
    | abi::O_DIRECTORY
    | abi::O_NOFOLLOW
    | abi::O_NOATIME
    | abi::O_TMPFILE
    | abi::O_PATH;
/// Those that `F_SETFL` changes.
const SETTABLE_FLAGS: u32 = abi::O_APPEND | abi::O_NONBLOCK | abi::FASYNC | abi::O_DIRECT | abi::O_NOATIME;

impl File {
    /// The file at `path`, opened with `flags` (`O_*`), served by `ops`.
    pub fn new(path: Path, ops: Arc<dyn FileOps>, flags: u32) -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        // Ordering: a statistic.
        OPEN.fetch_add(1, Ordering::Relaxed);
        let file = Arc::new(Self {
            path,
            ops,
            flags: AtomicU32::new(flags & (abi::O_ACCMODE | STATUS_FLAGS)),
            position: Mutex::new(0),
            is_new: AtomicBool::new(false),
            last_position: AtomicU64::new(0),
            signalling: SpinLock::new(None),
            watches: Mutex::new(BTreeMap::new()),
            // Ordering: only the numbers have to differ.
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            opener: process::try_current().filter(|thread| !thread.is_kernel()).map(|t| t.credentials()),
        });
        if file.writable() {
            file.inode().add_writer();
        }
        if file.keeps_writable() {
            file.path.mount.add_writer();
        }
        file
    }

    /// The open(2) that it is from has made the file.
    pub fn set_new(&self) {
        // Relaxed, here and below: set before anybody else has it.
        self.is_new.store(true, Ordering::Relaxed);
    }

    /// Did the open(2) that it is from make the file?
    pub fn is_new(&self) -> bool {
        self.is_new.load(Ordering::Relaxed)
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name.
    pub fn dentry(&self) -> &Arc<Dentry> {
        &self.path.dentry
    }

    /// Its inode.
    pub fn inode(&self) -> &Arc<Inode> {
        &self.path.dentry.inode
    }

    /// What stands behind it.
    pub fn ops(&self) -> &Arc<dyn FileOps> {
        &self.ops
    }

    /// What stands behind it, when that is a `T`: how a system call finds out that a descriptor is an epoll
    /// instance, a socket ...
    pub fn ops_as<T: FileOps>(&self) -> Option<&T> {
        let any: &dyn Any = &*self.ops;
        any.downcast_ref()
    }

    /// As `ops_as`, to keep.
    pub fn ops_arc<T: FileOps>(&self) -> Option<Arc<T>> {
        let any: Arc<dyn Any + Send + Sync> = self.ops.clone();
        any.downcast().ok()
    }

    /// Whether the current thread is who opened it, unchanged since, or may search everything where that one is.
    pub fn is_opened_by_caller(&self) -> bool {
        let own = process::current().credentials();
        match &self.opener {
            Some(opener) => Arc::ptr_eq(opener, &own) || own.capable_over(opener, abi::CAP_DAC_READ_SEARCH),
            None => own.capable(abi::CAP_DAC_READ_SEARCH),
        }
    }

    /// Differs from every other open file's.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Access mode and status flags, as `F_GETFL` returns them.
    pub fn flags(&self) -> u32 {
        // Ordering: a flag word of its own; no other data hangs on it.
        self.flags.load(Ordering::Relaxed)
    }

    /// Changes the flags that `F_SETFL` changes; others stay.
    pub fn set_flags(&self, flags: u32) -> Result<()> {
        let new = self.flags() & !SETTABLE_FLAGS | flags & SETTABLE_FLAGS;
        self.ops.flags_changed(self, new)?;
        // Ordering: as above.
        self.flags.store(new, Ordering::Relaxed);
        Ok(())
    }

    /// Opened for reading?
    pub fn readable(&self) -> bool {
        let flags = self.flags();
        flags & abi::O_PATH == 0 && matches!(flags & abi::O_ACCMODE, abi::O_RDONLY | abi::O_RDWR)
    }

    /// Opened for writing?
    pub fn writable(&self) -> bool {
        let flags = self.flags();
        flags & abi::O_PATH == 0 && matches!(flags & abi::O_ACCMODE, abi::O_WRONLY | abi::O_RDWR)
    }

    /// Does it keep its mount from becoming read-only? What is written to a device, a FIFO or a socket is not in the file system.
    fn keeps_writable(&self) -> bool {
        self.writable() && self.inode().kind == FileType::Regular
    }

    /// Is it only a reference to a place in the tree (`O_PATH`)?
    pub fn is_path(&self) -> bool {
        self.flags() & abi::O_PATH != 0
    }

    /// `EAGAIN` in place of a wait?
    pub fn nonblocking(&self) -> bool {
        self.flags() & abi::O_NONBLOCK != 0
    }

    /// Every write at the end?
    pub fn appending(&self) -> bool {
        self.flags() & abi::O_APPEND != 0
    }

    /// Who gets SIGIO.
    pub fn owner(&self) -> FileOwner {
        self.signalling.lock().as_ref().map(|signalling| signalling.owner.clone()).unwrap_or_default()
    }

    /// Sets who gets SIGIO, or the signal that was chosen in its place.
    pub fn set_owner(&self, owner: FileOwner) {
        let old = self.with_signalling(|signalling| {
            let signal = signalling.owner.signal;
            core::mem::replace(&mut signalling.owner, FileOwner { signal, ..owner })
        });
        drop(old);
    }

    /// Sets the signal that is sent in place of SIGIO; 0 for SIGIO.
    pub fn set_signal(&self, signal: i32) {
        self.with_signalling(|signalling| signalling.owner.signal = signal);
    }

    /// What is to be told of it, made when it is first asked for.
    fn with_signalling<R>(&self, work: impl FnOnce(&mut Signalling) -> R) -> R {
        let mut fresh = Some(Box::<Signalling>::default());
        let mut place = self.signalling.lock();
        if place.is_none() {
            *place = fresh.take();
        }
        let result = place.as_mut().map(|signalling| work(signalling));
        drop(place);
        drop(fresh);
        result.expect("it was just put there")
    }

    /// O_ASYNC comes or goes, by this descriptor. Nothing happens to files without a meaning for it.
    pub fn set_asynchronous(self: &Arc<Self>, fd: i32, on: bool) -> Result<()> {
        let is_on = self.signalling.lock().as_ref().is_some_and(|signalling| signalling.watch.is_some());
        if is_on == on || !self.ops().signals_readiness() {
            return Ok(());
        }
        let new = if on { Some(AsyncWatch::start(self, fd)?) } else { None };
        let old = self.with_signalling(|signalling| core::mem::replace(&mut signalling.watch, new));
        if let Some(old) = old {
            old.stop(self);
        }
        Ok(())
    }

    /// Its lease.
    pub(super) fn lease(&self) -> Option<Arc<Lease>> {
        self.signalling.lock().as_ref()?.lease.clone()
    }

    /// Makes room for what hangs on signals, for those who set it under a lock.
    pub(super) fn prepare_signalling(&self) {
        self.with_signalling(|_| ());
    }

    /// Gives it a lease, after [`Self::prepare_signalling`]: it has none.
    pub(super) fn set_lease(&self, lease: Arc<Lease>) {
        if let Some(signalling) = self.signalling.lock().as_mut() {
            debug_assert!(signalling.lease.is_none());
            signalling.lease = Some(lease);
        }
    }

    /// Takes this lease, unless it has another by now.
    pub(super) fn take_lease(&self, lease: &Lease) -> Option<Arc<Lease>> {
        let mut signalling = self.signalling.lock();
        let place = &mut signalling.as_mut()?.lease;
        if place.as_ref().is_some_and(|own| core::ptr::eq(Arc::as_ptr(own), lease)) {
            place.take()
        } else {
            None
        }
    }

    /// What it notes of a directory.
    pub(super) fn note(&self) -> Option<Arc<Note>> {
        self.signalling.lock().as_ref()?.note.clone()
    }

    pub(super) fn replace_note(&self, note: Option<Arc<Note>>) -> Option<Arc<Note>> {
        self.with_signalling(|signalling| core::mem::replace(&mut signalling.note, note))
    }

    /// The position; 0 for a file without one. Does not wait for a read or write that is under way.
    pub fn position(&self) -> u64 {
        // Ordering: a number of its own.
        self.last_position.load(Ordering::Relaxed)
    }

    fn lock_position(&self) -> PositionGuard<'_> {
        PositionGuard { position: self.position.lock(), last: &self.last_position }
    }

    /// Calls `work` with the position, which nobody else changes meanwhile.
    pub fn with_position<R>(&self, work: impl FnOnce(&mut u64) -> R) -> R {
        work(&mut self.lock_position())
    }

    fn note_read(&self, result: Result<usize>) -> Result<usize> {
        if matches!(result, Ok(1..)) {
            notify::happened(self.dentry(), abi::IN_ACCESS);
        }
        count_read(result)
    }

    fn note_write(&self, result: Result<usize>) -> Result<usize> {
        if matches!(result, Ok(1..)) {
            notify::happened(self.dentry(), abi::IN_MODIFY);
        }
        count_write(result)
    }

    /// read(2): from the position, which moves on.
    pub fn read(&self, sink: &mut Sink) -> Result<usize> {
        if !self.readable() {
            return Err(Errno::EBADF);
        }
        if !self.ops.seekable() {
            return self.note_read(self.ops.read_at(self, 0, sink));
        }
        let mut position = self.lock_position();
        check_range(*position, sink.remaining())?;
        let count = self.note_read(self.ops.read_at(self, *position, sink))?;
        *position += count as u64;
        Ok(count)
    }

    /// write(2): at the position, which moves on.
    pub fn write(&self, source: &mut Source) -> Result<usize> {
        if !self.writable() {
            return Err(Errno::EBADF);
        }
        if !self.ops.seekable() {
            return self.note_write(self.ops.write_at(self, &mut 0, source));
        }
        let mut position = self.lock_position();
        let mut at = *position;
        check_range(at, source.remaining())?;
        let count = self.note_write(self.ops.write_at(self, &mut at, source))?;
        *position = at + count as u64;
        Ok(count)
    }

    /// pread(2): from `offset`; the position stays.
    pub fn read_at(&self, offset: u64, sink: &mut Sink) -> Result<usize> {
        if !self.ops.seekable() {
            return Err(Errno::ESPIPE);
        }
        if !self.readable() {
            return Err(Errno::EBADF);
        }
        check_range(offset, sink.remaining())?;
        self.note_read(self.ops.read_at(self, offset, sink))
    }

    /// pwrite(2): at `offset`, or at the end with `O_APPEND` and for [`AT_END`], which is for files that append; the position stays.
    pub fn write_at(&self, offset: u64, source: &mut Source) -> Result<usize> {
        if !self.ops.seekable() {
            return Err(Errno::ESPIPE);
        }
        if !self.writable() {
            return Err(Errno::EBADF);
        }
        let mut at = offset;
        if at != AT_END {
            check_range(at, source.remaining())?;
        }
        self.note_write(self.ops.write_at(self, &mut at, source))
    }

    /// Writes at the end, as with `O_APPEND`; the position moves there.
    pub fn append(&self, source: &mut Source) -> Result<usize> {
        if !self.writable() {
            return Err(Errno::EBADF);
        }
        if !self.ops.appends() {
            return self.write(source);
        }
        let mut position = self.lock_position();
        let mut at = AT_END;
        let count = self.note_write(self.ops.write_at(self, &mut at, source))?;
        *position = at + count as u64;
        Ok(count)
    }

    /// Reads into kernel memory until `buffer` is full or the file ends; the position stays.
    pub fn read_kernel(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let count = self.read_at(offset + done as u64, &mut Sink::kernel(&mut buffer[done..]))?;
            if count == 0 {
                break;
            }
            done += count;
        }
        Ok(done)
    }

    /// lseek(2).
    pub fn seek(&self, whence: Whence, offset: i64) -> Result<u64> {
        if self.is_path() {
            return Err(Errno::EBADF);
        }
        if !self.ops.seekable() {
            return Err(Errno::ESPIPE);
        }
        let mut position = self.lock_position();
        *position = self.ops.seek(self, whence, offset, *position)?;
        Ok(*position)
    }

    /// An epoll instance watches the file now, and is to be told when it is released.
    pub(super) fn remember_watch(&self, item: &Arc<epoll::Item>) {
        self.watches.lock().insert(Arc::as_ptr(item).addr(), Arc::downgrade(item));
    }

    /// Undoes `remember_watch`.
    pub(super) fn forget_watch(&self, item: &Arc<epoll::Item>) {
        self.watches.lock().remove(&Arc::as_ptr(item).addr());
    }

    /// The next watch by an epoll instance, in an order of no meaning, with its place in that.
    pub(super) fn watch_after(&self, after: Option<usize>) -> Option<(usize, Arc<epoll::Item>)> {
        let from = after.map_or(0, |after| after + 1);
        self.watches.lock().range(from..).find_map(|(place, item)| Some((*place, item.upgrade()?)))
    }

    /// The readiness now.
    pub fn poll(&self) -> Events {
        if self.is_path() { Events::NVAL } else { self.ops.poll(self) }
    }
}

/// The position, which nobody else changes meanwhile.
struct PositionGuard<'a> {
    position: MutexGuard<'a, u64>,
    last: &'a AtomicU64,
}

impl Deref for PositionGuard<'_> {
    type Target = u64;

    fn deref(&self) -> &u64 {
        &self.position
    }
}

impl DerefMut for PositionGuard<'_> {
    fn deref_mut(&mut self) -> &mut u64 {
        &mut self.position
    }
}

impl Drop for PositionGuard<'_> {
    fn drop(&mut self) {
        // Ordering: see `File::position`.
        self.last.store(*self.position, Ordering::Relaxed);
    }
}

/// `EINVAL` for a range that ends behind what an offset can say.
fn check_range(offset: u64, len: usize) -> Result<()> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // Ordering: a statistic.
        OPEN.fetch_sub(1, Ordering::Relaxed);
        self.inode().locks.file_released(self.id);
        if !self.is_path() {
            let events = if self.writable() { abi::IN_CLOSE_WRITE } else { abi::IN_CLOSE_NOWRITE };
            notify::happened(self.dentry(), events);
        }
        if let Some(signalling) = self.signalling.get_mut().take() {
            signalling.file_released(self);
        }
        let watches = core::mem::take(self.watches.get_mut());
        epoll::file_released(self, watches);
        let ops = self.ops.clone();
        ops.release(self);
        if self.writable() {
            self.inode().end_writing();
        }
        if self.keeps_writable() {
            self.path.mount.remove_writer();
        }
    }
}
