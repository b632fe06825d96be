//! Telling of what happens to files: who watches an inode, and where the kernel says what has happened to it.
//!
//! An inode has its watches, each of one [`Inotify`], and the notes of open directories. While nobody watches anything in the system, an event costs one load.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use intrusive_collections::LinkedListAtomicLink;
use linux_raw_sys::general as abi;

use super::async_io;
use super::dentry::Dentry;
use super::file::File;
use super::inode::Inode;
use super::inotify::Inotify;
use super::owner::FileOwner;
use crate::errno::{Errno, Result};
use crate::memory::reserve;
use crate::process;
use crate::process::accounts::{Counted, Share};
use crate::sched;
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

/// Interest of an open directory in its entries, which signals tell: fcntl(2), F_NOTIFY.
pub struct Note {
    file: Weak<File>,
    fd: i32,
    /// `DN_*`; 0 once it is over.
    mask: AtomicU32,
    /// Counts for the user's limit while it lives.
    _share: Share,
    /// For [`async_io`], which tells many.
    pub(super) is_listed: AtomicBool,
    /// Who is to be told, while it is listed: the directory may be closed by then.
    told: SpinLock<FileOwner>,
    pub(super) link: LinkedListAtomicLink,
}

/// Notes of one user at the most. Whoever does something in the directory tells them all; Linux has no such limit.
const MOST_NOTES: u64 = 1024;

/// Who hears of an inode.
#[derive(Clone)]
enum Listener {
    Watch(Arc<Watch>),
    Note(Arc<Note>),
}

/// The listeners of one inode, by the addresses of their instances or notes.
pub struct Watched {
    any: AtomicBool,
    watches: SpinLock<BTreeMap<usize, Listener>>,
}

impl Default for Watched {
    fn default() -> Self {
        Self { any: AtomicBool::new(false), watches: SpinLock::growing(BTreeMap::new()) }
    }
}

fn key(group: &Weak<Inotify>) -> usize {
    group.as_ptr().addr()
}

fn key_of_note(note: &Arc<Note>) -> usize {
    Arc::as_ptr(note).addr()
}

/// What of the events is told to notes, as `DN_*`.
fn noted(events: u32) -> u32 {
    const PAIRS: [(u32, u32); 7] = [
        (abi::IN_ACCESS, abi::DN_ACCESS),
        (abi::IN_MODIFY, abi::DN_MODIFY),
        (abi::IN_CREATE, abi::DN_CREATE),
        (abi::IN_MOVED_TO, abi::DN_CREATE),
        (abi::IN_DELETE, abi::DN_DELETE),
        (abi::IN_MOVED_FROM, abi::DN_DELETE | abi::DN_RENAME),
        (abi::IN_ATTRIB, abi::DN_ATTRIB),
    ];
    PAIRS.iter().filter(|(event, _)| events & event != 0).fold(0, |mask, (_, bit)| mask | bit)
}

impl Note {
    fn hear(&self, events: u32, watched: &Watched, this: &Arc<Note>) {
        let mask = self.mask.load(Ordering::SeqCst);
        if mask & noted(events) == 0 {
            return;
        }
        if mask & abi::DN_MULTISHOT == 0 && self.mask.swap(0, Ordering::SeqCst) != 0 {
            watched.remove_note(this);
        }
        let Some(file) = self.file.upgrade() else { return };
        if mask & abi::DN_MULTISHOT == 0 {
            drop(file.replace_note(None));
        }
        let owner = file.owner();
        if owner.is_group() {
            // As many signals as the group has members: not in the call of who happens to do something.
            let old = core::mem::replace(&mut *self.told.lock(), owner);
            drop(old);
            async_io::tell_later(this);
        } else {
            self.tell(&owner);
        }
    }

    /// Sends the signal. What has happened it does not say.
    fn tell(&self, owner: &FileOwner) {
        const POLL_MSG: i32 = abi::POLL_MSG as i32;
        let band = abi::POLLIN | abi::POLLRDNORM | abi::POLLMSG;
        owner.tell(self.fd, POLL_MSG, band.into());
    }

    /// For the thread that tells: from here on it may be listed again.
    pub(super) fn tell_listed(&self) {
        self.is_listed.store(false, Ordering::SeqCst);
        let owner = core::mem::take(&mut *self.told.lock());
        self.tell(&owner);
    }
}

/// F_NOTIFY: adds events to what the open directory notes; none at all ends it.
pub fn note(file: &Arc<File>, fd: i32, mask: u32) -> Result<()> {
    let watched = &file.inode().watched;
    if mask & !abi::DN_MULTISHOT == 0 {
        if let Some(old) = file.replace_note(None) {
            watched.remove_note(&old);
        }
        return Ok(());
    }
    if !file.inode().is_dir() {
        return Err(Errno::ENOTDIR);
    }
    file.set_owner(FileOwner::current());
    if let Some(note) = file.note() {
        note.mask.fetch_or(mask, Ordering::SeqCst);
        return Ok(());
    }
    reserve::ask_lasting(size_of::<Note>())?;
    let uid = process::current().credentials().uid;
    let share = Share::take_within(uid, Counted::Notes, MOST_NOTES).ok_or(Errno::ENOSPC)?;
    let note = Arc::new(Note {
        file: Arc::downgrade(file),
        fd,
        mask: AtomicU32::new(mask),
        _share: share,
        is_listed: AtomicBool::new(false),
        told: SpinLock::new(FileOwner::default()),
        link: LinkedListAtomicLink::new(),
    });
    watched.add_listener(key_of_note(&note), Listener::Note(note.clone()));
    if let Some(old) = file.replace_note(Some(note)) {
        watched.remove_note(&old);
    }
    Ok(())
}

impl Watched {
    /// Adds a watch; its instance has no other one for this inode.
    pub(super) fn add(&self, watch: &Arc<Watch>) {
        self.add_listener(key(&watch.group), Listener::Watch(watch.clone()));
    }

    fn add_listener(&self, key: usize, listener: Listener) {
        let mut watches = self.watches.lock();
        watches.insert(key, listener);
        WATCHES.fetch_add(1, Ordering::SeqCst);
        self.any.store(true, Ordering::SeqCst);
    }

    pub(super) fn remove_note(&self, note: &Arc<Note>) {
        self.remove_listener(key_of_note(note));
    }

    /// Takes a watch out. False when it was out already.
    pub(super) fn remove(&self, watch: &Watch) -> bool {
        self.remove_listener(key(&watch.group))
    }

    fn remove_listener(&self, key: usize) -> bool {
        let mut watches = self.watches.lock();
        let removed = watches.remove(&key);
        if removed.is_some() {
            WATCHES.fetch_sub(1, Ordering::SeqCst);
        }
        self.any.store(!watches.is_empty(), Ordering::SeqCst);
        drop(watches);
        removed.is_some()
    }

    /// Takes the first listener out.
    fn take_first(&self) -> Option<Listener> {
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
            let Some((key, listener)) = next else { break };
            after = Some(key);
            sched::cond_resched();
            let watch = match listener {
                Listener::Watch(watch) => watch,
                // Of the directory itself nothing is noted.
                Listener::Note(_) if name.is_empty() => continue,
                Listener::Note(note) => {
                    note.hear(events, self, &note);
                    continue;
                }
            };
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
    while let Some(listener) = inode.watched.take_first() {
        let Listener::Watch(watch) = listener else { continue };
        watch.mask.store(0, Ordering::SeqCst);
        if let Some(group) = watch.group.upgrade() {
            group.end(&watch);
        }
    }
}
