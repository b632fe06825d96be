//! Telling of what happens to files: who watches an inode, and where the kernel says what has happened to it.
//!
//! An inode has its watches, each of one [`Inotify`]. While nobody watches anything in the system, an event costs one load.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use linux_raw_sys::general as abi;

use super::dentry::Dentry;
use super::inode::Inode;
use super::inotify::Inotify;
use crate::process::accounts::Share;
use crate::sync::SpinLock;

/// Inodes that are watched, counted once for each watch.
static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// Interest of one instance in one inode.
pub struct Watch {
    pub(super) group: Weak<Inotify>,
    pub(super) descriptor: i32,
    /// The events, and `IN_ONESHOT` and `IN_EXCL_UNLINK`. 0 once the watch is over.
    pub(super) mask: AtomicU32,
    pub(super) inode: Arc<Inode>,
    /// Counts for the user's limit while it lives.
    pub(super) _share: Share,
}

/// The watches of one inode, by the addresses of their instances.
#[derive(Default)]
pub struct Watched {
    any: AtomicBool,
    watches: SpinLock<BTreeMap<usize, Arc<Watch>>>,
}

fn key(group: &Weak<Inotify>) -> usize {
    group.as_ptr().addr()
}

impl Watched {
    /// Adds a watch; its instance has no other one for this inode.
    pub(super) fn add(&self, watch: &Arc<Watch>) {
        let mut watches = self.watches.lock();
        watches.insert(key(&watch.group), watch.clone());
        WATCHES.fetch_add(1, Ordering::SeqCst);
        self.any.store(true, Ordering::SeqCst);
    }

    /// Takes a watch out. False when it was out already.
    pub(super) fn remove(&self, watch: &Watch) -> bool {
        let mut watches = self.watches.lock();
        let removed = watches.remove(&key(&watch.group));
        if removed.is_some() {
            WATCHES.fetch_sub(1, Ordering::SeqCst);
        }
        self.any.store(!watches.is_empty(), Ordering::SeqCst);
        drop(watches);
        removed.is_some()
    }

    /// Takes the first watch out.
    fn take_first(&self) -> Option<Arc<Watch>> {
        let mut watches = self.watches.lock();
        let (_, first) = watches.pop_first()?;
        WATCHES.fetch_sub(1, Ordering::SeqCst);
        self.any.store(!watches.is_empty(), Ordering::SeqCst);
        Some(first)
    }

    fn is_empty(&self) -> bool {
        !self.any.load(Ordering::SeqCst)
    }

    /// Tells all who want to hear of one of `events`. `unlinked`: the name is gone, and only the file is still open.
    fn send(&self, events: u32, name: &[u8], cookie: u32, unlinked: bool) {
        if self.is_empty() {
            return;
        }
        let mut after = None;
        loop {
            let next = {
                let watches = self.watches.lock();
                let from = after.map_or(0, |after: usize| after + 1);
                watches.range(from..).next().map(|(key, watch)| (*key, watch.clone()))
            };
            let Some((key, watch)) = next else { break };
            after = Some(key);
            let mask = watch.mask.load(Ordering::SeqCst);
            if mask & events & abi::IN_ALL_EVENTS == 0 || unlinked && mask & abi::IN_EXCL_UNLINK != 0 {
                continue;
            }
            let Some(group) = watch.group.upgrade() else { continue };
            let told = events & (mask | abi::IN_ISDIR);
            if mask & abi::IN_ONESHOT == 0 {
                group.queue(watch.descriptor, told, cookie, name);
            } else if watch.mask.swap(0, Ordering::SeqCst) != 0 {
                group.queue(watch.descriptor, told, cookie, name);
                group.end(&watch);
            }
        }
    }
}

fn nobody_watches() -> bool {
    WATCHES.load(Ordering::SeqCst) == 0
}

fn with_kind(inode: &Inode, events: u32) -> u32 {
    if inode.is_dir() { events | abi::IN_ISDIR } else { events }
}

/// Something has happened to a file that is reached by this name: its directory and the file itself have watches.
pub fn happened(dentry: &Dentry, events: u32) {
    if nobody_watches() {
        return;
    }
    let events = with_kind(&dentry.inode, events);
    if let (Some(parent), name) = dentry.location() {
        parent.inode.watched.send(events, &name, 0, dentry.is_removed());
    }
    dentry.inode.watched.send(events, b"", 0, false);
}

/// Something has happened to a file, whatever its names are.
pub fn happened_to(inode: &Inode, events: u32) {
    if !nobody_watches() {
        inode.watched.send(with_kind(inode, events), b"", 0, false);
    }
}

/// An entry of a directory has come or gone.
pub fn entry(directory: &Inode, name: &[u8], inode: &Inode, events: u32) {
    if !nobody_watches() {
        directory.watched.send(with_kind(inode, events), name, 0, false);
    }
}

/// An entry has moved from one name to another.
pub fn moved(from: (&Inode, &[u8]), to: (&Inode, &[u8]), inode: &Inode) {
    static COOKIE: AtomicU32 = AtomicU32::new(1);
    if nobody_watches() {
        return;
    }
    // Relaxed: only the numbers have to differ.
    let cookie = COOKIE.fetch_add(1, Ordering::Relaxed);
    from.0.watched.send(with_kind(inode, abi::IN_MOVED_FROM), from.1, cookie, false);
    to.0.watched.send(with_kind(inode, abi::IN_MOVED_TO), to.1, cookie, false);
    inode.watched.send(with_kind(inode, abi::IN_MOVE_SELF), b"", 0, false);
}

/// A name of the inode is no longer used: if that was the last one, who watches hears that the file is gone.
pub fn name_released(inode: &Inode) {
    if inode.watched.is_empty() || inode.attributes().nlink != 0 {
        return;
    }
    inode.watched.send(abi::IN_DELETE_SELF, b"", 0, false);
    while let Some(watch) = inode.watched.take_first() {
        watch.mask.store(0, Ordering::SeqCst);
        if let Some(group) = watch.group.upgrade() {
            group.end(&watch);
        }
    }
}
