//! Dentries: the names of the tree.
//!
//! A dentry is one name of one inode, and knows its parent. A directory has exactly one dentry as long as it
//! is in use, so that mounts and working directories, which refer to dentries, see each other. File systems
//! with a tree in memory keep their dentries themselves; for the others [`Dentry::child`] finds the one in
//! use or makes it.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::inode::Inode;
use crate::errno::Result;
use crate::sync::SpinLock;

/// The longest name of a directory entry, bytes.
pub const NAME_MAX: usize = 255;

struct Link {
    /// `None` for the root of a file system and for files outside of any tree.
    parent: Option<Arc<Dentry>>,
    name: Box<[u8]>,
}

/// A name in the tree, and the inode that it stands for.
pub struct Dentry {
    /// The file.
    pub inode: Arc<Inode>,
    link: SpinLock<Link>,
    /// Mounts on this dentry; the mount table says which.
    pub(super) mounts: AtomicU32,
    removed: AtomicBool,
    /// Entries in use of a directory whose file system does not keep them itself.
    children: SpinLock<BTreeMap<Box<[u8]>, Weak<Dentry>>>,
}

impl Dentry {
    /// The root of a file system.
    pub fn root(inode: Arc<Inode>) -> Arc<Self> {
        Self::build(None, b"/", inode)
    }

    /// A file that is in no directory; `name` is what `/proc/PID/fd` shows.
    pub fn detached(name: &[u8], inode: Arc<Inode>) -> Arc<Self> {
        Self::build(None, name, inode)
    }

    /// The entry `name` of `parent`; the file system sees to it that there is only one.
    pub fn new(parent: &Arc<Dentry>, name: &[u8], inode: Arc<Inode>) -> Arc<Self> {
        Self::build(Some(parent.clone()), name, inode)
    }

    fn build(parent: Option<Arc<Dentry>>, name: &[u8], inode: Arc<Inode>) -> Arc<Self> {
        Arc::new(Self {
            inode,
            link: SpinLock::growing(Link { parent, name: name.into() }),
            mounts: AtomicU32::new(0),
            removed: AtomicBool::new(false),
            children: SpinLock::growing(BTreeMap::new()),
        })
    }

    /// The entry `name` that is in use and of which `valid` approves, or else a new one for the inode from
    /// `make`.
    pub fn child(
        self: &Arc<Self>,
        name: &[u8],
        valid: impl Fn(&Inode) -> bool,
        make: impl FnOnce() -> Result<Arc<Inode>>,
    ) -> Result<Arc<Dentry>> {
        let cached = self.children.lock().get(name).and_then(Weak::upgrade);
        if let Some(dentry) = cached.filter(|d| valid(&d.inode)) {
            return Ok(dentry);
        }
        let fresh = Self::new(self, name, make()?);
        let mut children = self.children.lock();
        // Another thread may have been faster: the first wins, so that both see one directory.
        if let Some(other) = children.get(name).and_then(Weak::upgrade) {
            if valid(&other.inode) {
                drop(children);
                return Ok(other);
            }
            // Dropped after the lock is released: its own drop takes that lock.
            children.insert(name.into(), Arc::downgrade(&fresh));
            drop(children);
            other.mark_removed();
            return Ok(fresh);
        }
        children.insert(name.into(), Arc::downgrade(&fresh));
        Ok(fresh)
    }

    /// The directory that the entry is in; `None` for a root.
    pub fn parent(&self) -> Option<Arc<Dentry>> {
        self.link.lock().parent.clone()
    }

    /// The name; `/` for a root.
    pub fn name(&self) -> Box<[u8]> {
        self.link.lock().name.clone()
    }

    /// Parent and name as they are at one moment.
    pub fn location(&self) -> (Option<Arc<Dentry>>, Box<[u8]>) {
        let link = self.link.lock();
        (link.parent.clone(), link.name.clone())
    }

    /// Renames; the caller has both directories locked.
    pub fn relocate(&self, parent: &Arc<Dentry>, name: &[u8]) {
        let new = Link { parent: Some(parent.clone()), name: name.into() };
        // The old parent may be dropped by this: outside of the lock.
        let old = {
            let mut link = self.link.lock();
            let stays = link.parent.as_ref().is_some_and(|old| Arc::ptr_eq(old, parent));
            // A walk that is to stay below a directory goes up by these links. Only this moment counts: a server may take its time.
            let moving = (self.inode.is_dir() && !stays).then(|| super::path::RENAMES.begin());
            let old = core::mem::replace(&mut *link, new);
            drop(moving);
            old
        };
        drop(old);
    }

    /// As [`Dentry::relocate`], for an entry that [`Dentry::child`] finds.
    pub fn move_child(self: &Arc<Self>, parent: &Arc<Dentry>, name: &[u8]) {
        let (old, old_name) = self.location();
        if let Some(old) = old {
            let mut children = old.children.lock();
            if children.get(&*old_name).is_some_and(|known| known.as_ptr() == Arc::as_ptr(self)) {
                children.remove(&*old_name);
            }
        }
        self.relocate(parent, name);
        // Who had the name before does not take this away when it goes.
        parent.children.lock().insert(name.into(), Arc::downgrade(self));
    }

    /// The name was unlinked. The entry stays usable for those who have it open.
    pub fn mark_removed(&self) {
        self.removed.store(true, Ordering::Release);
    }

    /// True once the name was unlinked.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// True when `self` is `other` or above it in the same file system. May give way.
    pub fn is_ancestor_of(self: &Arc<Self>, other: &Arc<Dentry>) -> bool {
        let (mut at, mut steps) = (other.clone(), 0);
        while !Arc::ptr_eq(self, &at) {
            let Some(parent) = at.parent() else { return false };
            at = parent;
            super::path::give_way(&mut steps);
        }
        true
    }
}

impl Dentry {
    /// Lets go of the parent, and of the place among its children in use; returns the parent.
    fn take_parent(&mut self) -> Option<Arc<Dentry>> {
        let link = self.link.get_mut();
        let parent = link.parent.take()?;
        let mut children = parent.children.lock();
        // A new dentry may have the name by now: only a dead one is ours to remove.
        if children.get(&*link.name).is_some_and(|c| c.strong_count() == 0) {
            children.remove(&*link.name);
        }
        drop(children);
        Some(parent)
    }
}

impl Drop for Dentry {
    fn drop(&mut self) {
        super::notify::name_released(&self.inode);
        // A chain of removed directories may be long: walk up, do not recurse. Each is dropped without a
        // parent.
        let mut parent = self.take_parent();
        while let Some(mut last) = parent.and_then(Arc::into_inner) {
            parent = last.take_parent();
            drop(last);
            crate::sched::cond_resched();
        }
    }
}
