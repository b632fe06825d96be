//! Pipes, with and without a name.
//!
//! A pipe is a ring of page-sized buffers that are allocated when something is written and freed when it is read. As in Linux its capacity is a
//! number of buffers: a write goes on in the last one only if what does not fill whole pages fits there, so that a write of up to
//! `PIPE_BUF` bytes is never torn apart.
//!
//! The ring's lock sleeps and is held over user copies, of some buffers at a time: who waits for it may be killed. What poll(2) and waiting
//! threads look at is beside it, in atomics.

pub mod splice;

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use core::any::Any;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use linux_raw_sys::general as abi;
use linux_raw_sys::ioctl;

use super::anonymous::Kind;
use super::file::{File, FileOps};
use super::inode::Inode;
use super::iobuf::{Sink, Source};
use super::poll::Events;
use crate::errno::{Errno, Result};
use crate::memory::PAGE_SIZE;
use crate::memory::fallible;
use crate::memory::frame::{Frame, Use};
use crate::mm::uaccess::write_user;
use crate::process;
use crate::process::Credentials;
use crate::process::accounts::{Counted, Share};
use crate::sched;
use crate::signal;
use crate::sync::{Mutex, MutexGuard, SpinLock, WaitQueue};

/// Buffers of a new pipe: 64 KiB.
const DEFAULT_BUFFERS: usize = 16;
/// Buffers that are filled or emptied in one hold of the ring's lock: what fits into a new pipe stays together.
const AT_ONCE: usize = DEFAULT_BUFFERS;
/// Buffers of a new pipe of a user who has as many as one may have.
const FEW_BUFFERS: usize = 2;
/// `fs.pipe-user-pages-soft`: a user with buffers for more pages than these gets small pipes, and none grows. 0 is no limit.
pub static SOFT_PAGES: AtomicUsize = AtomicUsize::new(16_384);
/// `fs.pipe-user-pages-hard`: one with more than these gets no pipes at all. 0 is no limit.
pub static HARD_PAGES: AtomicUsize = AtomicUsize::new(0);
/// The largest capacity that an unprivileged process may ask for, in bytes: `/proc/sys/fs/pipe-max-size`.
static MAX_SIZE: AtomicUsize = AtomicUsize::new(1 << 20);

/// `fs.pipe-max-size`, bytes.
pub fn max_size() -> usize {
    MAX_SIZE.load(Ordering::SeqCst)
}

/// Sets `fs.pipe-max-size`, rounded up as a capacity is.
pub fn set_max_size(bytes: usize) -> Result<()> {
    MAX_SIZE.store(round_size(bytes)?, Ordering::SeqCst);
    Ok(())
}

/// A capacity that a pipe can have: a power of two of pages.
fn round_size(bytes: usize) -> Result<usize> {
    if bytes > 1 << 31 {
        return Err(Errno::EINVAL);
    }
    Ok(bytes.max(PAGE_SIZE).next_power_of_two())
}

fn is_beyond(limit: &AtomicUsize, pages: usize) -> bool {
    // Relaxed: a setting of its own.
    let limit = limit.load(Ordering::Relaxed);
    limit != 0 && pages > limit
}

/// Who may have more pipes than others.
fn is_privileged(credentials: &Credentials) -> bool {
    credentials.capable(abi::CAP_SYS_RESOURCE) || credentials.capable(abi::CAP_SYS_ADMIN)
}

struct Buffer {
    frame: Frame,
    start: usize,
    end: usize,
    /// Written in packet mode: a read gets this one only, and loses what it does not take.
    packet: bool,
}

#[derive(Default)]
struct Ring {
    buffers: VecDeque<Buffer>,
}

/// A pipe.
pub struct Pipe {
    ring: Mutex<Ring>,
    /// Buffers in use, and how many there may be.
    used: AtomicUsize,
    limit: AtomicUsize,
    /// Bytes in the buffers.
    bytes: AtomicUsize,
    readers: AtomicU32,
    writers: AtomicU32,
    /// Opens for reading and for writing so far: who waits for the other side of a named pipe looks at them.
    reader_opens: AtomicU32,
    writer_opens: AtomicU32,
    /// What the pipe counts for its maker, with as many pages as there may be buffers.
    share: Share,
    /// Woken when there is something to read, and when the last writer goes.
    readable: WaitQueue,
    /// Woken when there is room, and when the last reader goes.
    writable: WaitQueue,
}

/// Has waited for data or for room. One of those who wait is woken for what comes; what he leaves is for the next.
struct Woken<'a>(&'a Pipe);

impl Drop for Woken<'_> {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            self.0.readable.wake_one();
        }
        if !self.0.is_full() {
            self.0.writable.wake_one();
        }
    }
}

/// One open end: what an open file of a pipe refers to.
pub struct End {
    pipe: Arc<Pipe>,
    reads: bool,
    writes: bool,
    /// For a reader that did not wait for a writer: the number of opens for writing then. No hangup before the first.
    before_writers: Option<u32>,
}

impl Pipe {
    /// A pipe of the current thread's user. `ENFILE` when that has too many.
    fn new() -> Result<Arc<Self>> {
        let credentials = process::current().credentials();
        // All that the pipe may have counts before anybody looks: of two that come at once one may be refused, and none is let through.
        let (share, _) = Share::take(credentials.uid, Counted::PipePages);
        let mut buffers = DEFAULT_BUFFERS;
        let mut all = share.add(Counted::PipePages, buffers - 1);
        if is_beyond(&SOFT_PAGES, all) && !is_privileged(&credentials) {
            share.take_back(Counted::PipePages, buffers - FEW_BUFFERS);
            all -= buffers - FEW_BUFFERS;
            buffers = FEW_BUFFERS;
        }
        if is_beyond(&HARD_PAGES, all) && !is_privileged(&credentials) {
            share.take_back(Counted::PipePages, buffers - 1);
            return Err(Errno::ENFILE);
        }
        Ok(Arc::new(Self {
            ring: Mutex::new(Ring::default()),
            used: AtomicUsize::new(0),
            limit: AtomicUsize::new(buffers),
            share,
            bytes: AtomicUsize::new(0),
            readers: AtomicU32::new(0),
            writers: AtomicU32::new(0),
            reader_opens: AtomicU32::new(0),
            writer_opens: AtomicU32::new(0),
            readable: WaitQueue::new(),
            writable: WaitQueue::new(),
        }))
    }

    fn is_empty(&self) -> bool {
        self.used.load(Ordering::SeqCst) == 0
    }

    fn is_full(&self) -> bool {
        self.used.load(Ordering::SeqCst) >= self.limit.load(Ordering::SeqCst)
    }

    fn has_readers(&self) -> bool {
        self.readers.load(Ordering::SeqCst) > 0
    }

    fn has_writers(&self) -> bool {
        self.writers.load(Ordering::SeqCst) > 0
    }

    fn read(&self, nonblocking: bool, sink: &mut Sink) -> Result<usize> {
        let mut done = 0;
        let mut woken = None;
        loop {
            let taken = self.take(sink, &mut done);
            let goes_on = taken == Ok(true) && !process::is_killed();
            // Whether it was full before does not tell: a writer may have filled it, and begun to wait, in between.
            if done > 0 && !self.is_full() {
                self.writable.wake_one();
            }
            taken?;
            if goes_on {
                continue;
            }
            if done > 0 || sink.remaining() == 0 || !self.has_writers() && self.is_empty() {
                return Ok(done);
            }
            if nonblocking {
                return Err(Errno::EAGAIN);
            }
            woken.get_or_insert(Woken(self));
            self.readable.wait_event(None, || (!self.is_empty() || !self.has_writers()).then_some(()))?;
        }
    }

    /// Takes some of what there is, as much as fits. True when the read goes on.
    fn take(&self, sink: &mut Sink, done: &mut usize) -> Result<bool> {
        let mut ring = self.ring()?;
        for _ in 0..AT_ONCE {
            if sink.remaining() == 0 {
                return Ok(false);
            }
            let Some(buffer) = ring.buffers.front_mut() else { return Ok(false) };
            let len = buffer.end - buffer.start;
            // SAFETY: the buffer's frame is ours, and the range is inside it.
            let moved = unsafe { sink.write_raw(buffer.frame.as_ptr().add(buffer.start), len) };
            let moved = match moved {
                Ok(moved) => moved,
                Err(_) if *done > 0 => return Ok(false),
                Err(error) => return Err(error),
            };
            *done += moved;
            let packet = buffer.packet;
            let gone = if packet { len } else { moved };
            buffer.start += gone;
            self.bytes.fetch_sub(gone, Ordering::SeqCst);
            if buffer.start == buffer.end {
                let empty = ring.buffers.pop_front();
                drop(empty);
                self.used.store(ring.buffers.len(), Ordering::SeqCst);
            }
            if packet || moved < len {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn write(&self, nonblocking: bool, packets: bool, source: &mut Source) -> Result<usize> {
        let mut done = 0;
        if source.remaining() == 0 {
            return Ok(0);
        }
        let mut first = true;
        let mut woken = None;
        loop {
            if !self.has_readers() {
                signal::send_thread(&process::current().to_arc(), signal::SIGPIPE);
                return if done > 0 { Ok(done) } else { Err(Errno::EPIPE) };
            }
            let before = done;
            let put = self.put(packets, first, source, &mut done);
            first = false;
            if done > before {
                self.readable.wake_one();
            }
            let is_full = match put {
                Err(_) if done > 0 => return Ok(done),
                other => other?,
            };
            if source.remaining() == 0 || done > before && process::is_killed() {
                return Ok(done);
            }
            if !is_full {
                continue;
            }
            if nonblocking {
                return if done > 0 { Ok(done) } else { Err(Errno::EAGAIN) };
            }
            woken.get_or_insert(Woken(self));
            let waited =
                self.writable.wait_event(None, || (!self.is_full() || !self.has_readers()).then_some(()));
            match waited {
                Err(_) if done > 0 => return Ok(done),
                other => other?,
            }
        }
    }

    /// Puts in some of what there is room for. True when the ring is full.
    fn put(&self, packets: bool, first: bool, source: &mut Source, done: &mut usize) -> Result<bool> {
        let mut ring = self.ring()?;
        let limit = self.limit.load(Ordering::SeqCst);
        // What does not fill whole pages goes into the last buffer, if all of it fits.
        let rest = source.remaining() % PAGE_SIZE;
        if first
            && rest > 0
            && !packets
            && let Some(last) = ring.buffers.back_mut()
            && !last.packet
            && last.end + rest <= PAGE_SIZE
        {
            // SAFETY: the range is inside the buffer's frame, which is ours.
            let moved = unsafe { source.read_raw(last.frame.as_ptr().add(last.end), rest) }?;
            last.end += moved;
            *done += moved;
            self.bytes.fetch_add(moved, Ordering::SeqCst);
            if moved < rest {
                return Err(Errno::EFAULT);
            }
        }
        for _ in 0..AT_ONCE {
            if source.remaining() == 0 || ring.buffers.len() >= limit {
                break;
            }
            let frame = Frame::alloc(Use::Other).ok_or(Errno::ENOMEM)?;
            fallible::reserve_queue(&mut ring.buffers, 1)?;
            let want = source.remaining().min(PAGE_SIZE);
            // SAFETY: a whole frame, not yet known to anybody else.
            let moved = unsafe { source.read_raw(frame.as_ptr(), want) }?;
            *done += moved;
            ring.buffers.push_back(Buffer { frame, start: 0, end: moved, packet: packets });
            self.bytes.fetch_add(moved, Ordering::SeqCst);
            self.used.store(ring.buffers.len(), Ordering::SeqCst);
            if moved < want {
                return Err(Errno::EFAULT);
            }
        }
        Ok(ring.buffers.len() >= limit)
    }

    /// The ring. `EINTR` for a thread that is killed while it waits for who has it, and who may wait for memory of his program's.
    fn ring(&self) -> Result<MutexGuard<'_, Ring>> {
        self.ring.lock_killable().ok_or(Errno::EINTR)
    }

    fn set_size(&self, bytes: usize) -> Result<usize> {
        let size = round_size(bytes)?;
        let credentials = process::current().credentials();
        let ring = self.ring()?;
        let (now, wanted) = (self.limit.load(Ordering::SeqCst), size / PAGE_SIZE);
        if wanted > now && size > max_size() && !credentials.capable(abi::CAP_SYS_RESOURCE) {
            return Err(Errno::EPERM);
        }
        if wanted < ring.buffers.len() {
            return Err(Errno::EBUSY);
        }
        if wanted > now {
            let all = self.share.add(Counted::PipePages, wanted - now);
            if (is_beyond(&SOFT_PAGES, all) || is_beyond(&HARD_PAGES, all)) && !is_privileged(&credentials) {
                self.share.take_back(Counted::PipePages, wanted - now);
                return Err(Errno::EPERM);
            }
        } else {
            self.share.take_back(Counted::PipePages, now - wanted);
        }
        self.limit.store(wanted, Ordering::SeqCst);
        drop(ring);
        self.writable.wake_all();
        Ok(size)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // Who may have as large a pipe as he likes may have left it full.
        let buffers = &mut self.ring.get_mut().buffers;
        while buffers.len() > AT_ONCE {
            buffers.truncate(buffers.len() - AT_ONCE);
            sched::cond_resched();
        }
        // The share itself is the first of them.
        self.share.take_back(Counted::PipePages, *self.limit.get_mut() - 1);
    }
}

impl End {
    fn open(pipe: &Arc<Pipe>, reads: bool, writes: bool) -> Self {
        if reads {
            pipe.readers.fetch_add(1, Ordering::SeqCst);
            pipe.reader_opens.fetch_add(1, Ordering::SeqCst);
            pipe.writable.wake_all();
        }
        if writes {
            pipe.writers.fetch_add(1, Ordering::SeqCst);
            pipe.writer_opens.fetch_add(1, Ordering::SeqCst);
            pipe.readable.wake_all();
        }
        Self { pipe: pipe.clone(), reads, writes, before_writers: None }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.reads && self.pipe.readers.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.pipe.writable.wake_all();
        }
        if self.writes && self.pipe.writers.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.pipe.readable.wake_all();
        }
    }
}

impl FileOps for End {
    fn signals_readiness(&self) -> bool {
        true
    }

    fn read_at(&self, file: &File, _: u64, sink: &mut Sink) -> Result<usize> {
        self.pipe.read(file.nonblocking(), sink)
    }

    fn write_at(&self, file: &File, _: &mut u64, source: &mut Source) -> Result<usize> {
        self.pipe.write(file.nonblocking(), file.flags() & abi::O_DIRECT != 0, source)
    }

    fn poll(&self, _: &File) -> Events {
        let mut events = Events::empty();
        if self.reads {
            if !self.pipe.is_empty() {
                events |= Events::READABLE;
            }
            let came = self.before_writers != Some(self.pipe.writer_opens.load(Ordering::SeqCst));
            if !self.pipe.has_writers() && came {
                events |= Events::HUP;
            }
        }
        if self.writes {
            if !self.pipe.is_full() {
                events |= Events::WRITABLE;
            }
            if !self.pipe.has_readers() {
                events |= Events::ERR;
            }
        }
        events
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        if self.reads {
            visit(&self.pipe.readable);
        }
        if self.writes {
            visit(&self.pipe.writable);
        }
    }

    fn pollable(&self) -> bool {
        true
    }

    fn kernel_bytes(&self) -> u64 {
        (self.pipe.used.load(Ordering::SeqCst) * PAGE_SIZE) as u64
    }

    fn ioctl(&self, _: &File, command: u32, argument: usize) -> Result<usize> {
        match command {
            ioctl::FIONREAD => {
                write_user(argument, &(self.pipe.bytes.load(Ordering::SeqCst) as i32))?;
                Ok(0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn fcntl(&self, _: &File, command: u32, argument: usize) -> Result<usize> {
        match command {
            abi::F_GETPIPE_SZ => Ok(self.pipe.limit.load(Ordering::SeqCst) * PAGE_SIZE),
            abi::F_SETPIPE_SZ => self.pipe.set_size(argument as u32 as usize),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// pipe2(2): the reading and the writing end. `flags`: `O_NONBLOCK`, `O_DIRECT`.
pub fn create(flags: u32) -> Result<(Arc<File>, Arc<File>)> {
    let pipe = Pipe::new()?;
    let reader = Arc::new(End::open(&pipe, true, false));
    let writer = Arc::new(End::open(&pipe, false, true));
    let read = File::anonymous(Kind::Pipe, "", reader, abi::O_RDONLY | flags & abi::O_NONBLOCK);
    // Opening it once more, by `/proc/self/fd/N`, gets the same pipe.
    let named = Named { pipe: SpinLock::new(Arc::downgrade(&pipe)), waits: false };
    *read.inode().attachment.lock() = Some(Arc::new(named));
    let write = read.sibling(writer, abi::O_WRONLY | flags & (abi::O_NONBLOCK | abi::O_DIRECT));
    Ok((read, write))
}

/// What a named pipe's inode keeps: the pipe, as long as somebody has it open.
struct Named {
    pipe: SpinLock<Weak<Pipe>>,
    /// Who opens one side waits for the other. Not so of a pipe without a name, whose sides were open from the start.
    waits: bool,
}

/// The pipe, and whether who opens it waits for the other side.
fn named_pipe(inode: &Inode) -> Result<(Arc<Pipe>, bool)> {
    let named = {
        let fresh: Arc<dyn Any + Send + Sync> =
            Arc::new(Named { pipe: SpinLock::new(Weak::new()), waits: true });
        let mut attachment = inode.attachment.lock();
        attachment.get_or_insert(fresh).clone()
    };
    let named = named.downcast::<Named>().map_err(|_| Errno::EIO)?;
    if let Some(pipe) = named.pipe.lock().upgrade() {
        return Ok((pipe, named.waits));
    }
    let fresh = Pipe::new().map_err(|_| Errno::ENOMEM)?;
    let mut slot = named.pipe.lock();
    // Race: another open may have made one meanwhile.
    let pipe = match slot.upgrade() {
        Some(pipe) => pipe,
        None => {
            *slot = Arc::downgrade(&fresh);
            fresh
        }
    };
    Ok((pipe, named.waits))
}

/// Opens a named pipe: waits until the other side is open, too, unless `O_NONBLOCK` says otherwise. fifo(7). A pipe without a name is opened
/// at once, by `/proc/self/fd/N`: of bash's process substitution the writer may have left by then.
pub fn open_named(inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
    let (pipe, waits) = named_pipe(inode)?;
    let nonblocking = flags & abi::O_NONBLOCK != 0;
    match flags & abi::O_ACCMODE {
        abi::O_RDONLY => {
            // Looked at before this reader shows: a writer that waits for it may write and be gone the moment after.
            let before = pipe.writer_opens.load(Ordering::SeqCst);
            let written_to = pipe.has_writers();
            let mut end = End::open(&pipe, true, false);
            if waits && !written_to {
                if nonblocking {
                    end.before_writers = Some(before);
                } else {
                    let _woken = Woken(&pipe);
                    pipe.readable.wait_event(None, || {
                        (pipe.writer_opens.load(Ordering::SeqCst) != before || pipe.has_writers())
                            .then_some(())
                    })?;
                }
            }
            Ok(Arc::new(end))
        }
        abi::O_WRONLY => {
            if waits && nonblocking && !pipe.has_readers() {
                return Err(Errno::ENXIO);
            }
            let before = pipe.reader_opens.load(Ordering::SeqCst);
            let end = End::open(&pipe, false, true);
            if waits && !pipe.has_readers() {
                let _woken = Woken(&pipe);
                pipe.writable.wait_event(None, || {
                    (pipe.reader_opens.load(Ordering::SeqCst) != before || pipe.has_readers()).then_some(())
                })?;
            }
            Ok(Arc::new(end))
        }
        abi::O_RDWR => Ok(Arc::new(End::open(&pipe, true, true))),
        _ => Err(Errno::EINVAL),
    }
}
