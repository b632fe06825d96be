//! Mounts that come to another place, and second views: bind mounts, moves, pivot_root(2).

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::{
    Mount, attach_locked, attach_new, check_place, detach_one, end, enter, lock_changes, put, spread, subtree,
};
use crate::errno::{Errno, Result};
use crate::fs::mount_namespace::{self, check_own};
use crate::fs::path::{MOUNT_MOVES, Path};
use crate::memory::fallible;
use crate::sched;

/// Is `mount` on `top`, directly or not, or `top` itself?
fn is_below(mount: &Arc<Mount>, top: &Arc<Mount>) -> bool {
    let (mut at, mut steps) = (mount.clone(), 0);
    loop {
        if Arc::ptr_eq(&at, top) {
            return true;
        }
        let Some(place) = at.place() else { return false };
        at = place.mount;
        crate::fs::path::give_way(&mut steps);
    }
}

/// A second view of what is visible at `from`, put on `at`; with `recursive` the mounts below as well.
pub fn bind(from: &Path, at: Path, recursive: bool) -> Result<()> {
    let _change = lock_changes()?;
    let at = enter(at);
    check_own(&at)?;
    check_own_or_namespace(from)?;
    mount_namespace::check_keeps(from.inode(), at.mount.namespace())?;
    check_bindable(&from.mount)?;
    let top = from.mount.view(from.dentry.clone());
    // Before the new mount is there, or it would be copied into itself.
    let mut below = subtree(&from.mount)?;
    if !recursive {
        // What a locked mount covers is not shown beside it.
        if below.iter().skip(1).any(|mount| is_locked_below(mount, from)) {
            return Err(Errno::EINVAL);
        }
        below.clear();
    }
    attach_locked(&top, at.clone())?;
    // What comes to other places comes as a whole: the copies' places are known once all of them are there.
    let spread = bind_below(from, &top, &below)
        .and_then(|tree| spread::prepare(&at, &tree).map(|spread| (tree, spread)));
    match spread {
        Ok((tree, spread)) => {
            spread.commit(&tree);
            Ok(())
        }
        Err(error) => {
            end::detach_tree(&top);
            Err(error)
        }
    }
}

/// `EINVAL` for a mount that is to have no second view.
fn check_bindable(mount: &Mount) -> Result<()> {
    if mount.peers().is_unbindable() { Err(Errno::EINVAL) } else { Ok(()) }
}

/// Copies the mounts that are on `from` onto `top`; `below` are all on its mount, that one first. All that are there now, `top` first.
fn bind_below(from: &Path, top: &Arc<Mount>, below: &[Arc<Mount>]) -> Result<Vec<Arc<Mount>>> {
    let mut tree = alloc::vec![top.clone()];
    // By the number of what each is a copy of.
    let mut copies = BTreeMap::from([(from.mount.id, top.clone())]);
    for original in below.iter().skip(1) {
        sched::cond_resched();
        let Some(place) = original.place() else { continue };
        let Some(new_parent) = copies.get(&place.mount.id).cloned() else { continue };
        if Arc::ptr_eq(&place.mount, &from.mount) && !from.dentry.is_ancestor_of(&place.dentry) {
            continue;
        }
        // A file that stands for the namespace, as in the copy of a whole one: left out.
        if mount_namespace::check_keeps(&original.root.inode, new_parent.namespace()).is_err() {
            continue;
        }
        if original.peers().is_unbindable() {
            // Ordering: set before anybody could see the mount.
            if original.locked.load(Ordering::Relaxed) {
                // What it covers would show.
                return Err(Errno::EPERM);
            }
            continue;
        }
        fallible::reserve(&mut tree, 1)?;
        let new = original.another(original.root.clone());
        attach_locked(&new, Path { mount: new_parent, dentry: place.dentry })?;
        tree.push(new.clone());
        copies.insert(original.id, new);
    }
    Ok(tree)
}

/// Moves the mount whose root `from` is to `at`.
pub fn relocate(from: &Path, at: Path) -> Result<()> {
    let _change = lock_changes()?;
    let at = enter(at);
    let mount = &from.mount;
    check_own(&at)?;
    check_own(from)?;
    // Ordering: set before anybody could see the mount.
    let locked = mount.locked.load(Ordering::Relaxed);
    let Some(place) = mount.place() else { return Err(Errno::EINVAL) };
    // Where it is others show it, too, and would go on to.
    if !Arc::ptr_eq(&from.dentry, &mount.root) || locked || place.mount.peers().is_shared() {
        return Err(Errno::EINVAL);
    }
    drop(place);
    check_place(mount, &at)?;
    let tree = subtree(mount)?;
    if at.mount.peers().is_shared() && tree.iter().any(|mount| mount.peers().is_unbindable()) {
        return Err(Errno::EINVAL);
    }
    if is_below(&at.mount, mount) {
        return Err(Errno::ELOOP);
    }
    let spread = spread::prepare(&at, &tree)?;
    let moving = MOUNT_MOVES.begin();
    let old = detach_one(mount);
    put(mount, &at);
    drop(moving);
    drop(old);
    spread.commit(&tree);
    Ok(())
}

/// move_mount(2): puts a mount that is nowhere yet on `at`, or moves one that is somewhere.
pub fn place_or_move(from: &Path, at: Path) -> Result<()> {
    let mount = &from.mount;
    if !Arc::ptr_eq(&from.dentry, &mount.root) {
        return Err(Errno::EINVAL);
    }
    {
        let _change = lock_changes()?;
        if !mount.is_in_tree() {
            let at = enter(at);
            // Into itself, or onto what is nowhere: nobody would ever see it.
            if !at.mount.is_in_tree() || !mount_namespace::is_own(&at.mount) {
                return Err(Errno::EINVAL);
            }
            // What was unmounted, as nobody else could see what it covered: it has let go of its own mounts. Relaxed: as where it is set.
            if mount.was_placed.load(Ordering::Relaxed) {
                return Err(Errno::EINVAL);
            }
            // Where a bind mount is told that the namespace would keep itself, this is a loop.
            mount_namespace::check_keeps(&mount.root.inode, at.mount.namespace())
                .map_err(|_| Errno::ELOOP)?;
            return attach_new(mount, at);
        }
    }
    relocate(from, at)
}

/// open_tree(2) with OPEN_TREE_CLONE: a second view of what is visible at `from`, nowhere yet. Mounts below are not in it.
pub fn detached_view(from: &Path) -> Result<Path> {
    let _change = lock_changes()?;
    check_own_or_namespace(from)?;
    check_bindable(&from.mount)?;
    if subtree(&from.mount)?.iter().skip(1).any(|mount| is_locked_below(mount, from)) {
        return Err(Errno::EINVAL);
    }
    let mount = from.mount.view(from.dentry.clone());
    Ok(Path { dentry: from.dentry.clone(), mount })
}

/// As [`check_own`], of what another view is to be made of: a file that stands for a namespace is in no tree, and may be shown all the
/// same.
fn check_own_or_namespace(from: &Path) -> Result<()> {
    if crate::namespaces::file::is_one(from.inode()) { Ok(()) } else { check_own(from) }
}

/// Is `mount` one that stays where it is, and covers something that a view of `from` alone would show?
pub(super) fn is_locked_below(mount: &Mount, from: &Path) -> bool {
    // Ordering: set before anybody could see the mount.
    mount.locked.load(Ordering::Relaxed)
        && mount.place().is_some_and(|place| {
            Arc::ptr_eq(&place.mount, &from.mount) && from.dentry.is_ancestor_of(&place.dentry)
        })
}

/// pivot_root(2): `new_root` becomes the root of the tree, the present root moves to `put_old`.
pub fn pivot(old_root: &Path, new_root: &Path, put_old: Path) -> Result<()> {
    let _change = lock_changes()?;
    let (old, new) = (&old_root.mount, &new_root.mount);
    check_own(old_root)?;
    check_own(new_root)?;
    check_own(&put_old)?;
    // Ordering: set before anybody could see the mount.
    if new.locked.load(Ordering::Relaxed) {
        return Err(Errno::EINVAL);
    }
    if !Arc::ptr_eq(&new_root.dentry, &new.root) || !Arc::ptr_eq(&old_root.dentry, &old.root) {
        return Err(Errno::EINVAL);
    }
    if Arc::ptr_eq(old, new) || Arc::ptr_eq(old, &put_old.mount) {
        return Err(Errno::EBUSY);
    }
    // The new root has to be in sight: else the old one could be on it, and the new one would be put on itself.
    if !is_below(&put_old.mount, new) || !is_below(new, old) {
        return Err(Errno::EINVAL);
    }
    // As in Linux: the first root file system is not attached to anything and cannot be moved.
    let (Some(old_place), Some(new_place)) = (old.place(), new.place()) else { return Err(Errno::EINVAL) };
    // Other namespaces would be turned around with this one.
    if [&put_old, &old_place, &new_place].iter().any(|path| path.mount.peers().is_shared()) {
        return Err(Errno::EINVAL);
    }
    let put_old = enter(put_old);
    check_place(new, &old_place)?;
    check_place(old, &put_old)?;
    let _moving = MOUNT_MOVES.begin();
    drop(detach_one(new));
    drop(detach_one(old));
    put(new, &old_place);
    // What stays where it is covers the same place as before; the old root may be unmounted where it is now.
    // Ordering: changed with the tree, which has a lock of its own.
    new.locked.store(old.locked.swap(false, Ordering::Relaxed), Ordering::Relaxed);
    put(old, &put_old);
    Ok(())
}
