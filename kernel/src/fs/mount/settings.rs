//! Settings of mounts that are there: mount_setattr(2), and mount(2) with `MS_REMOUNT`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use linux_raw_sys::general as abi;

use super::propagation::ENTRIES;
use super::{MOUNT_FLAGS, Mount, lock_changes, propagation, subtree};
use crate::errno::{Errno, Result};
use crate::fs::inode::Superblock;
use crate::fs::mount_namespace::is_own;
use crate::fs::path::Path;
use crate::memory::fallible;
use crate::memory::reserve::Promise;
use crate::sched;

/// `EINVAL` unless the path is the root of a mount of the current thread's namespace, or of one that has never been anywhere: who has a
/// descriptor for that may set it up.
fn check_may_set(path: &Path) -> Result<()> {
    let mount = &path.mount;
    // Relaxed: changed under the lock of changes, which the caller holds.
    let is_new = !mount.is_in_tree() && !mount.was_placed.load(Ordering::Relaxed);
    if !is_new && !is_own(mount) || !Arc::ptr_eq(&path.dentry, &mount.root) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// mount_setattr(2): changes flags of the mount that `path` is the root of, and of those below if `recursive`, and where what is mounted on
/// them shows. All or none.
pub fn change_flags(
    path: &Path,
    add: u32,
    remove: u32,
    kind: Option<propagation::Kind>,
    recursive: bool,
) -> Result<()> {
    let _change = lock_changes()?;
    check_may_set(path)?;
    let mounts = if recursive { subtree(&path.mount)? } else { alloc::vec![path.mount.clone()] };
    for mount in &mounts {
        sched::cond_resched();
        mount.check_locked(mount.flags.load(Ordering::Relaxed) & !remove | add)?;
    }
    let promise = Promise::lasting(if kind.is_some() { mounts.len() * ENTRIES } else { 0 })?;
    if add & abi::MS_RDONLY != 0 {
        make_read_only(&mounts)?;
    }
    for mount in &mounts {
        sched::cond_resched();
        // Ordering: a flag word of its own, changed under the lock.
        let old = mount.flags.load(Ordering::Relaxed);
        mount.set_flags(old & !remove | add);
    }
    if let Some(kind) = kind {
        propagation::set_all(&mounts, kind, &promise);
    }
    drop(mounts);
    Ok(())
}

/// Makes them read-only, or none: `EBUSY` when somebody writes.
fn make_read_only(mounts: &[Arc<Mount>]) -> Result<()> {
    let is_written = |mount: &Arc<Mount>| {
        sched::cond_resched();
        mount.writers.load(Ordering::SeqCst) > 0
    };
    // Before anybody is told that the mounts are read-only.
    if mounts.iter().any(is_written) {
        return Err(Errno::EBUSY);
    }
    let mut old: Vec<u32> = fallible::with_capacity(mounts.len())?;
    for mount in mounts {
        old.push(mount.flags.fetch_or(abi::MS_RDONLY, Ordering::SeqCst));
        // Race: either this sees who counts as a writer now, or that one sees the flag.
        fence(Ordering::SeqCst);
        if is_written(mount) {
            for (mount, flags) in mounts.iter().zip(old) {
                sched::cond_resched();
                // Ordering: a flag word of its own.
                mount.flags.store(flags, Ordering::Relaxed);
            }
            return Err(Errno::EBUSY);
        }
    }
    Ok(())
}

/// Changes the flags of the mount that `path` is the root of; unless `mount_only`, the file system's as well,
/// which gets `options`.
pub fn remount(path: &Path, flags: u32, mount_only: bool, options: &str) -> Result<()> {
    let _change = lock_changes()?;
    let mount = &path.mount;
    check_may_set(path)?;
    mount.check_locked(flags)?;
    if !mount_only {
        mount.superblock.check_may_change()?;
        remount_all(&mount.superblock, flags & abi::MS_RDONLY, options)?;
    } else if flags & abi::MS_RDONLY != 0 {
        make_read_only(core::slice::from_ref(mount))?;
    }
    // Ordering: a flag word of its own.
    mount.flags.store(flags & MOUNT_FLAGS, Ordering::Relaxed);
    Ok(())
}

/// Gives the file system other options, and makes it read-only or not.
fn remount_all(superblock: &Superblock, flags: u32, options: &str) -> Result<()> {
    let old = superblock.flags();
    let is_written = || superblock.writers.load(Ordering::SeqCst) > 0;
    if flags & !old != 0 {
        // Before anybody is told that it is read-only.
        if is_written() {
            return Err(Errno::EBUSY);
        }
        superblock.set_flags(flags);
        // Race: as above.
        fence(Ordering::SeqCst);
    }
    let result =
        if flags & !old != 0 && is_written() { Err(Errno::EBUSY) } else { superblock.ops.remount(options) };
    superblock.set_flags(if result.is_ok() { flags } else { old });
    result
}
