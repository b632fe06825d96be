//! Mounts that go with one that is unmounted: those that show the same elsewhere.
//!
//! In other user namespaces what was on a mount is locked. Locked mounts go with a tree as a whole, or the place would show what they cover.
//! All is done under the lock of changes.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::propagation::leave;
use super::spread::receivers;
use super::{Mount, Place, TABLE, end, subtree};
use crate::errno::{Errno, Result};
use crate::fs::path::{MOUNT_MOVES, Path};
use crate::memory::fallible;
use crate::sched;

/// The mounts that go with one that is unmounted: by the numbers of those that they are on, and the address of what all of them cover.
pub(super) fn find(mount: &Arc<Mount>) -> Result<(Vec<u64>, usize)> {
    let Some(place) = mount.place() else { return Ok((Vec::new(), 0)) };
    let found = receivers(&place.mount, &place.dentry)?;
    let ids = fallible::collect(found.mounts.iter().map(|(mount, _)| mount.id))?;
    Ok((ids, Arc::as_ptr(&place.dentry) as usize))
}

/// `EBUSY` when one of those is in use.
pub(super) fn check_unused(on: &[u64], point: usize) -> Result<()> {
    for id in on {
        let table = TABLE.lock();
        let Some(mount) = table.covering.get(&(*id, point)) else { continue };
        let topper = table.topper(mount);
        if topper.is_none() && table.on(mount).next().is_some() {
            continue;
        }
        // The table's reference, and that of what covers all of it.
        if Arc::strong_count(mount) > 1 + usize::from(topper.is_some()) {
            return Err(Errno::EBUSY);
        }
        drop(table);
        sched::cond_resched();
    }
    Ok(())
}

/// Takes out what is in those places, unless more is mounted on it than what covers all of it. They show what is unmounted with `top`, or that
/// one itself (`is_top`): in other user namespaces what was on it is locked. It goes if all of it does, or it would show what it covers.
pub(super) fn take(on: &[u64], point: usize, top: &Mount, is_top: bool) {
    for id in on {
        let moving = MOUNT_MOVES.begin();
        let mut table = TABLE.lock();
        let Some(mount) = table.covering.get(&(*id, point)).cloned() else { continue };
        let topper = table.topper(&mount);
        let covers_more = topper.is_none() && table.on(&mount).next().is_some();
        // Ordering: set before anybody could see the mount.
        if covers_more || !is_top && mount.locked.load(Ordering::Relaxed) {
            drop(table);
            drop(moving);
            mount.goes_with.store(top.id, Ordering::Relaxed);
            if is_top && all_on_it_goes(&mount, top) {
                end::detach_tree(&mount);
            }
            sched::cond_resched();
            continue;
        }
        let old = topper.as_ref().and_then(|topper| table.unhang(topper));
        let place = table.take(&mount);
        if let (Some(topper), Some(Place::On { parent, point })) = (&topper, &place) {
            table.hang(topper, &Path { mount: parent.clone(), dentry: point.clone() });
        }
        drop(table);
        drop(moving);
        drop((old, place, topper));
        leave(&mount);
        sched::cond_resched();
    }
}

/// Does all that is on the mount go with `top`? Not if there is no memory to find out.
fn all_on_it_goes(mount: &Arc<Mount>, top: &Mount) -> bool {
    // Ordering: set and read under the lock of changes.
    let goes = |mount: &Arc<Mount>| mount.goes_with.load(Ordering::Relaxed) == top.id;
    if !TABLE.lock().on(mount).next().is_some_and(goes) {
        return false;
    }
    subtree(mount).is_ok_and(|all| all.iter().skip(1).all(goes))
}
