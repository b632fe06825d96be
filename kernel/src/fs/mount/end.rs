//! Mounts that go: unmounting, names that go with what is mounted on them, and namespaces that end.
//!
//! A locked mount covers what its namespace is not to see. Whoever is in the mount below when both are taken out of the tree could look
//! under it: so it stays where it is, kept by that mount, and goes with it. Nothing here takes memory.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use intrusive_collections::{KeyAdapter, RBTree, RBTreeAtomicLink, intrusive_adapter};
use linux_raw_sys::general as abi;

use super::{CHANGE, Mount, Place, TABLE, Table, check_own, companions, lock_changes, propagation, remount};
use crate::errno::{Errno, Result};
use crate::fs::dentry::Dentry;
use crate::fs::path::Path;
use crate::process;
use crate::sched;
use crate::sync::SpinLock;

intrusive_adapter!(pub(super) ByPoint = Arc<Mount>: Mount { by_point => RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for ByPoint {
    type Key = usize;

    fn get_key(&self, mount: &'a Mount) -> usize {
        // Ordering: set before the mount came among the kept ones, with their lock.
        mount.covered.load(Ordering::Relaxed)
    }
}

/// The mounts that one keeps, by what they cover: a walk finds the one that it needs among a hundred thousand.
pub(super) type Kept = RBTree<ByPoint>;

/// umount2(2) of the mount whose root `path` is; `root` is the caller's.
pub fn unmount(path: Path, lazy: bool, root: &Path) -> Result<()> {
    // As in Linux: one's own root stays, and becomes read-only.
    if !lazy && path.same(root) && Arc::ptr_eq(&path.dentry, &path.mount.root) {
        let flags = path.mount.flags() | abi::MS_RDONLY;
        return remount(&path, flags, false, "");
    }
    // Let go of behind the lock for changes: with the last mount a file system is taken apart, and others mount meanwhile.
    let mount = path.mount.clone();
    let _change = lock_changes()?;
    check_own(&path)?;
    if !Arc::ptr_eq(&path.dentry, &path.mount.root) {
        return Err(Errno::EINVAL);
    }
    drop(path);
    // Ordering: set before anybody could see the mount.
    if mount.place().is_none() || mount.locked.load(Ordering::Relaxed) {
        // The root of all stays, and so does what is no longer in the tree.
        return Err(Errno::EINVAL);
    }
    if lazy {
        detach(&mount, true);
        return Ok(());
    }
    let (companions, point) = companions::find(&mount)?;
    companions::check_unused(&companions, point)?;
    // Under the table's lock no walk can enter the mount; these references are known: ours, the table's.
    let mut table = TABLE.lock();
    if table.on(&mount).next().is_some() || Arc::strong_count(&mount) > 2 {
        return Err(Errno::EBUSY);
    }
    let place = table.take(&mount);
    drop(table);
    propagation::leave(&mount);
    companions::take(&companions, point, &mount, true);
    drop(place);
    Ok(())
}

/// Takes what is mounted on a name that is gone out of its trees: mounts of other namespaces, which do not keep a name from its owner.
pub fn unmount_removed(point: &Dentry) {
    // What comes after the name went is refused where it is attached.
    while point.mounts.load(Ordering::SeqCst) > 0 {
        let mount;
        let _change = CHANGE.lock();
        mount = TABLE.lock().any_on(point);
        let Some(mount) = &mount else { return };
        detach_tree(mount);
    }
}

/// Takes `root` and all that is on it out of the tree, one mount at a time, the topmost first. What shows elsewhere stays there.
pub(in crate::fs) fn detach_tree(root: &Arc<Mount>) {
    detach(root, false);
}

/// Does that; with `everywhere` also in the places where the same shows. There stays what there is no memory to find.
fn detach(root: &Arc<Mount>, everywhere: bool) {
    let mut at = root.clone();
    loop {
        // A user may have a hundred thousand, each on the one before.
        sched::cond_resched();
        let table = TABLE.lock();
        let above = table.on(&at).next().cloned();
        if let Some(above) = above {
            drop(table);
            at = above;
            continue;
        }
        drop(table);
        let companions = if everywhere { companions::find(&at).unwrap_or_default() } else { (Vec::new(), 0) };
        let mut table = TABLE.lock();
        // What came meanwhile goes before it.
        if table.on(&at).next().is_some() {
            continue;
        }
        let is_root = Arc::ptr_eq(&at, root);
        // Ordering: set before anybody could see the mount.
        let keep = !is_root && at.locked.load(Ordering::Relaxed);
        let place = if keep { table.take_kept(&at) } else { table.take(&at) };
        drop(table);
        propagation::leave(&at);
        companions::take(&companions.0, companions.1, root, is_root);
        at = match place {
            _ if is_root => return,
            Some(Place::On { parent, .. }) => parent,
            // Race: a namespace ends while a name goes on which something of its is mounted; the other was faster.
            _ => root.clone(),
        };
    }
}

impl Table {
    /// As `take`, of a locked mount, which its parent keeps. No walk finds neither of the two.
    fn take_kept(&mut self, mount: &Arc<Mount>) -> Option<Place> {
        let Some(Place::On { parent, point }) = mount.place.lock().clone() else { return None };
        // Never 0 meanwhile: a walk would not look.
        point.mounts.fetch_add(1, Ordering::SeqCst);
        let place = self.take(mount);
        // Ordering: the lock below.
        mount.covered.store(Arc::as_ptr(&point) as usize, Ordering::Relaxed);
        *mount.place.lock() = Some(Place::Kept { parent: Arc::downgrade(&parent), point });
        parent.kept.lock().insert(mount.clone());
        // `place` has another reference to the parent.
        place
    }
}

impl Mount {
    /// The kept mount that covers `point`.
    pub(super) fn kept_on(&self, point: &Arc<Dentry>) -> Option<Arc<Mount>> {
        self.kept.lock().find(&(Arc::as_ptr(point) as usize)).clone_pointer()
    }
}

/// Moves them all to a list.
fn move_all(mut kept: Kept, list: &mut Option<Arc<Mount>>) {
    while let Some(mount) = kept.front_mut().remove() {
        let next = list.take();
        *mount.next.lock() = next;
        *list = Some(mount);
        sched::cond_resched();
    }
}

/// Lets go of the mounts that one kept which is gone, and of those that they keep: in a loop, however many each is on.
pub(super) fn let_go(kept: Kept) {
    let mut list = None;
    move_all(kept, &mut list);
    while let Some(mount) = list {
        sched::cond_resched();
        list = mount.next.lock().take();
        let place = mount.place.lock().take();
        if let Some(Place::Kept { point, .. }) = &place {
            point.mounts.fetch_sub(1, Ordering::SeqCst);
        }
        drop(place);
        let inner = {
            // Who is in a mount on this one finds it under this lock only.
            let _table = TABLE.lock();
            if Arc::strong_count(&mount) == 1 { mount.kept.lock().take() } else { Kept::default() }
        };
        move_all(inner, &mut list);
    }
}

/// Trees that a thread has to take apart. A namespace may be kept by a file that is mounted in the tree of another, and that one by a
/// third one's: each that ends on the way comes into the list of the thread, not onto its stack.
#[derive(Default)]
pub struct Endings(SpinLock<List>);

#[derive(Default)]
struct List {
    first: Option<Arc<Mount>>,
    /// Somebody further up the stack takes them.
    is_taken: bool,
}

/// Takes the tree of a namespace apart that nobody uses any more.
pub fn end_namespace(root: &Arc<Mount>) {
    let Some(thread) = process::try_current() else { return detach_tree(root) };
    {
        let mut list = thread.endings.0.lock();
        *root.next.lock() = list.first.replace(root.clone());
        if core::mem::replace(&mut list.is_taken, true) {
            return;
        }
    }
    loop {
        let root = {
            let mut list = thread.endings.0.lock();
            let Some(root) = list.first.take() else {
                list.is_taken = false;
                return;
            };
            list.first = root.next.lock().take();
            root
        };
        detach_tree(&root);
    }
}
