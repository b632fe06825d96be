//! inotify(7): an instance, its watches, and the events that wait in it.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, LinkedList};
use alloc::sync::{Arc, Weak};
use core::fmt::Write as _;
use core::ops::Bound;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use linux_raw_sys::general as abi;
use linux_raw_sys::ioctl;

use super::anonymous::Kind;
use super::file::{File, FileOps};
use super::inode::Inode;
use super::iobuf::Sink;
use super::notify::Watch;
use super::poll::Events;
use crate::errno::{Errno, Result};
use crate::memory::fallible::Text;
use crate::memory::reserve;
use crate::mm::uaccess::write_user;
use crate::process;
use crate::process::accounts::{Counted, Share};
use crate::sched;
use crate::sync::{Mutex, SpinLock, WaitQueue};

/// `fs.inotify.*`: instances and watches of a user, events that may wait in an instance.
pub static MAX_INSTANCES: AtomicUsize = AtomicUsize::new(128);
pub static MAX_WATCHES: AtomicUsize = AtomicUsize::new(0);
pub static MAX_EVENTS: AtomicUsize = AtomicUsize::new(16384);

/// `fs.inotify.max_user_watches`: by default, a hundredth of memory in watches and the inodes that they hold.
pub fn max_watches() -> usize {
    /// About what Linux reckons for a watch with its inode.
    const COST: usize = 1280;
    // Relaxed, as all of these: settings of their own.
    match MAX_WATCHES.load(Ordering::Relaxed) {
        0 => (crate::memory::stats().total as usize / 100 / COST).clamp(8192, 1 << 20),
        set => set,
    }
}

/// `struct inotify_event` without its name.
const HEAD: usize = 16;

/// An event that waits.
#[derive(PartialEq, Eq)]
struct Event {
    descriptor: i32,
    mask: u32,
    cookie: u32,
    name: Box<[u8]>,
}

impl Event {
    /// The name's length as the reader sees it: with zero bytes up to a multiple of the head's length.
    fn name_len(&self) -> usize {
        if self.name.is_empty() { 0 } else { (self.name.len() + 1).next_multiple_of(HEAD) }
    }

    fn len(&self) -> usize {
        HEAD + self.name_len()
    }
}

#[derive(Default)]
struct Queue {
    events: LinkedList<Event>,
    /// Bytes of all of them, as they are read.
    bytes: usize,
    /// The last one says that events were lost.
    overflowed: bool,
}

#[derive(Default)]
struct Watches {
    by_descriptor: BTreeMap<i32, Arc<Watch>>,
    /// The descriptors by the addresses of the inodes, which the watches hold.
    by_inode: BTreeMap<usize, i32>,
    last: i32,
}

/// An instance.
pub struct Inotify {
    this: Weak<Inotify>,
    queue: SpinLock<Queue>,
    watches: SpinLock<Watches>,
    /// One addition at a time.
    adding: Mutex<()>,
    readable: WaitQueue,
    /// The user who pays for the watches.
    uid: u32,
    _share: Share,
}

/// inotify_init1(2): `flags` have been checked.
pub fn create(flags: u32) -> Result<Arc<File>> {
    let uid = process::current().credentials().uid;
    let most = MAX_INSTANCES.load(Ordering::Relaxed) as u64;
    let share = Share::take_within(uid, Counted::NotifyInstances, most).ok_or(Errno::EMFILE)?;
    let ops = Arc::new_cyclic(|this: &Weak<Inotify>| Inotify {
        this: this.clone(),
        queue: SpinLock::growing(Queue::default()),
        watches: SpinLock::growing(Watches::default()),
        adding: Mutex::new(()),
        readable: WaitQueue::new(),
        uid,
        _share: share,
    });
    Ok(File::anonymous(Kind::Anonymous, "inotify", ops, abi::O_RDONLY | flags & abi::O_NONBLOCK))
}

fn address(inode: &Arc<Inode>) -> usize {
    Arc::as_ptr(inode).addr()
}

impl Inotify {
    /// inotify_add_watch(2): the descriptor. `mask` has been checked.
    pub fn add(&self, inode: &Arc<Inode>, mask: u32) -> Result<i32> {
        let kept = mask & (abi::IN_ALL_EVENTS | abi::IN_ONESHOT | abi::IN_EXCL_UNLINK);
        let _adding = self.adding.lock();
        {
            let watches = self.watches.lock();
            let found = watches.by_inode.get(&address(inode)).and_then(|key| watches.by_descriptor.get(key));
            if let Some(watch) = found {
                if mask & abi::IN_MASK_CREATE != 0 {
                    return Err(Errno::EEXIST);
                }
                let old = if mask & abi::IN_MASK_ADD != 0 { watch.mask.load(Ordering::SeqCst) } else { 0 };
                watch.mask.store(old | kept, Ordering::SeqCst);
                return Ok(watch.descriptor);
            }
        }
        let share = Share::take_within(self.uid, Counted::NotifyWatches, max_watches() as u64);
        let share = share.ok_or(Errno::ENOSPC)?;
        reserve::ask_lasting(size_of::<Watch>())?;
        let mut watches = self.watches.lock();
        let descriptor = watches.free_descriptor()?;
        let watch = Arc::new(Watch {
            group: self.this.clone(),
            descriptor,
            mask: AtomicU32::new(kept),
            inode: inode.clone(),
            _share: share,
        });
        watches.by_inode.insert(address(inode), descriptor);
        watches.by_descriptor.insert(descriptor, watch.clone());
        drop(watches);
        inode.watched.add(&watch);
        // Its number could be guessed, and the watch be ended, before the inode knew of it: then nobody else takes it out there.
        let is_over = !self.watches.lock().by_descriptor.contains_key(&descriptor);
        if is_over {
            inode.watched.remove(&watch);
        }
        Ok(descriptor)
    }

    /// inotify_rm_watch(2).
    pub fn remove(&self, descriptor: i32) -> Result<()> {
        let watch = self.watches.lock().by_descriptor.get(&descriptor).cloned().ok_or(Errno::EINVAL)?;
        watch.mask.store(0, Ordering::SeqCst);
        self.end(&watch);
        Ok(())
    }

    /// A watch is over: the reader is told, once.
    pub(super) fn end(&self, watch: &Watch) {
        watch.inode.watched.remove(watch);
        let removed = self.watches.lock().take(watch);
        if removed.is_some() {
            self.queue(watch.descriptor, abi::IN_IGNORED, 0, b"");
        }
        // The inode may go with it, without a lock.
        drop(removed);
    }

    /// Adds an event, unless the last one is the same. Without room for it the reader hears that events were lost.
    pub(super) fn queue(&self, descriptor: i32, mask: u32, cookie: u32, name: &[u8]) {
        let event = Event { descriptor, mask, cookie, name: name.into() };
        let has_memory = reserve::ask(size_of::<Event>() + name.len()).is_ok();
        let mut queue = self.queue.lock();
        if queue.events.back() == Some(&event) {
            return;
        }
        if queue.events.len() >= MAX_EVENTS.load(Ordering::Relaxed) || !has_memory {
            if !queue.overflowed {
                queue.overflowed = true;
                let lost =
                    Event { descriptor: -1, mask: abi::IN_Q_OVERFLOW, cookie: 0, name: Box::default() };
                queue.push(lost);
            }
        } else {
            queue.push(event);
        }
        drop(queue);
        self.readable.wake_all();
    }

    fn is_empty(&self) -> bool {
        self.queue.lock().events.is_empty()
    }
}

impl Queue {
    fn push(&mut self, event: Event) {
        self.bytes += event.len();
        self.events.push_back(event);
    }

    /// The first event, if it fits into `room` bytes; `EINVAL` when it does not.
    fn pop(&mut self, room: usize) -> Result<Option<Event>> {
        let Some(first) = self.events.front() else { return Ok(None) };
        if first.len() > room {
            return Err(Errno::EINVAL);
        }
        let event = self.events.pop_front();
        if let Some(event) = &event {
            self.bytes -= event.len();
            self.overflowed &= event.mask & abi::IN_Q_OVERFLOW == 0;
        }
        Ok(event)
    }
}

impl Watches {
    /// The next number in turn that is free.
    fn free_descriptor(&mut self) -> Result<i32> {
        for _ in 0..2 {
            while self.last < i32::MAX {
                self.last += 1;
                if !self.by_descriptor.contains_key(&self.last) {
                    return Ok(self.last);
                }
            }
            self.last = 0;
        }
        Err(Errno::ENOSPC)
    }

    fn take(&mut self, watch: &Watch) -> Option<Arc<Watch>> {
        let same = |found: &Arc<Watch>| core::ptr::eq(Arc::as_ptr(found), watch);
        if !self.by_descriptor.get(&watch.descriptor).is_some_and(same) {
            return None;
        }
        self.by_inode.remove(&address(&watch.inode));
        self.by_descriptor.remove(&watch.descriptor)
    }
}

impl FileOps for Inotify {
    fn signals_readiness(&self) -> bool {
        true
    }

    fn read_at(&self, file: &File, _: u64, sink: &mut Sink) -> Result<usize> {
        let mut done = 0;
        loop {
            let popped = self.queue.lock().pop(sink.remaining());
            match popped {
                Ok(Some(event)) => {
                    let mut head = [0; HEAD];
                    head[..4].copy_from_slice(&event.descriptor.to_ne_bytes());
                    head[4..8].copy_from_slice(&event.mask.to_ne_bytes());
                    head[8..12].copy_from_slice(&event.cookie.to_ne_bytes());
                    head[12..].copy_from_slice(&(event.name_len() as u32).to_ne_bytes());
                    sink.write_all(&head)?;
                    sink.write_all(&event.name)?;
                    sink.write_zeroes(event.name_len() - event.name.len())?;
                    done += event.len();
                    sched::cond_resched();
                }
                Ok(None) | Err(_) if done > 0 => return Ok(done),
                Err(error) => return Err(error),
                Ok(None) if file.nonblocking() => return Err(Errno::EAGAIN),
                Ok(None) => self.readable.wait_event(None, || (!self.is_empty()).then_some(()))?,
            }
        }
    }

    fn spliceable(&self) -> bool {
        false
    }

    fn poll(&self, _: &File) -> Events {
        if self.is_empty() { Events::empty() } else { Events::READABLE }
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.readable);
    }

    fn pollable(&self) -> bool {
        true
    }

    fn ioctl(&self, _: &File, command: u32, argument: usize) -> Result<usize> {
        match command {
            ioctl::FIONREAD => write_user(argument, &(self.queue.lock().bytes as i32)).map(|()| 0),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn kernel_bytes(&self) -> u64 {
        /// A watch and its places in three maps.
        const WATCH: usize = size_of::<Watch>() + 192;
        /// An event's places, in the queue and in the heap.
        const EVENT: usize = size_of::<Event>() + 64;
        let waiting = {
            let queue = self.queue.lock();
            // What the reader is to get has the names.
            queue.events.len() * EVENT + queue.bytes
        };
        (waiting + self.watches.lock().by_descriptor.len() * WATCH) as u64
    }

    fn release(&self, _: &File) {
        loop {
            let first = self.watches.lock().by_descriptor.pop_first();
            let Some((_, watch)) = first else { break };
            watch.inode.watched.remove(&watch);
            // The inode may go with it, without a lock.
            drop(watch);
            sched::cond_resched();
        }
    }

    fn describe(&self, _: &File, out: &mut Text) {
        let mut after = 0;
        loop {
            let behind = (Bound::Excluded(after), Bound::Unbounded);
            let next = self.watches.lock().by_descriptor.range(behind).next().map(|(_, watch)| watch.clone());
            let Some(watch) = next else { break };
            after = watch.descriptor;
            // Writing to a string does not fail.
            let _ = writeln!(
                out,
                "inotify wd:{after:x} ino:{:x} sdev:{:x} mask:{:x} ignored_mask:0 ",
                watch.inode.ino,
                watch.inode.superblock.dev.encode(),
                watch.mask.load(Ordering::SeqCst)
            );
        }
    }
}
