//! Which mounts can be seen from where, and what a new one would show.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;

use super::{LOCKED_TIMES, Mount, TIMES, lock_changes, subtree};
use crate::errno::{Errno, Result};
use crate::fs::mount_namespace::MountNamespace;
use crate::fs::path::Path;
use crate::fs::pseudo;
use crate::memory::fallible::{self, TryVec};
use crate::sched::{self, sort_by_key};

/// Calls `work` with each mount that may be seen from `root`, in the order in which they were made, until it says false. The tree does not
/// change while `work` runs. Between two mounts it may: of those that come meanwhile none is shown, and of those that go some.
///
/// A user may have a hundred thousand mounts, each on the last one, and the way up from all of them takes a square of that: everybody else
/// who mounts or unmounts waits for one way up at most.
pub fn each_visible(root: &Path, mut work: impl FnMut(&Arc<Mount>) -> bool) -> Result<()> {
    for mount in visible(root)? {
        let _change = lock_changes()?;
        let Some(mount) = mount.upgrade() else { continue };
        let goes_on = !mount.is_in_tree() || work(&mount);
        // Before the lock is released: unmount counts references.
        drop(mount);
        if !goes_on {
            break;
        }
    }
    Ok(())
}

/// Those mounts, by references that unmount does not count.
fn visible(root: &Path) -> Result<Vec<Weak<Mount>>> {
    let _change = lock_changes()?;
    let mut list = subtree(&root.mount)?;
    sort_by_key(&mut list, |mount| mount.id);
    let mut visible = fallible::with_capacity(list.len())?;
    for mount in list {
        visible.push(Arc::downgrade(&mount));
        sched::cond_resched();
    }
    Ok(visible)
}

/// `EPERM` when a new mount of a file system that is in each namespace would show what mounts on the ones that are there hide, or let
/// change what may only be read there. As in Linux, one that shows everything must be there, with no more restrictions than the new one has.
pub fn check_reveals_nothing(new: &Mount) -> Result<()> {
    let namespace = MountNamespace::current();
    if namespace.head.user.parent.is_none() || !matches!(new.superblock.kind, "proc" | "sysfs") {
        return Ok(());
    }
    let _change = lock_changes()?;
    let Some(root) = namespace.root() else { return Ok(()) };
    let all = subtree(root)?;
    // Mounts on which another stays, over anything but a directory that is there to be mounted on.
    let mut hiding = Vec::new();
    for mount in &all {
        // Ordering: set before anybody could see the mount.
        if mount.locked.load(Ordering::Relaxed)
            && let Some(place) = mount.place()
            && !pseudo::is_for_mounts(&place.dentry.inode)
        {
            hiding.try_push(place.mount.id)?;
        }
        sched::cond_resched();
    }
    sort_by_key(&mut hiding, |id| *id);
    for mount in &all {
        sched::cond_resched();
        if mount.superblock.kind != new.superblock.kind || mount.root.parent().is_some() {
            continue;
        }
        // Ordering: flag words of their own.
        let locked = mount.locked_flags.load(Ordering::Relaxed) | mount.superblock.flags();
        let restrictions = locked & (abi::MS_RDONLY | LOCKED_TIMES);
        let changed = mount.flags.load(Ordering::Relaxed) ^ new.flags.load(Ordering::Relaxed);
        if locked & LOCKED_TIMES != 0 && changed & TIMES != 0 {
            continue;
        }
        if restrictions & !LOCKED_TIMES & !new.flags.load(Ordering::Relaxed) != 0
            || hiding.binary_search(&mount.id).is_ok()
        {
            continue;
        }
        new.locked_flags.fetch_or(restrictions, Ordering::Relaxed);
        return Ok(());
    }
    Err(Errno::EPERM)
}
