//! Changing the tree: unlink, rmdir, link, rename.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;

use super::access::{self, Credentials};
use super::dentry::Dentry;
use super::mount;
use super::notify;
use super::open::{Target, check_not_mounted};
use super::path::{Path, Start};
use crate::errno::{Errno, Result};

/// May `victim` be taken out of `dir`?
fn check_delete(credentials: &Credentials, dir: &Path, victim: &Dentry) -> Result<()> {
    credentials.check(dir.inode(), access::WRITE | access::EXECUTE)?;
    credentials.check_sticky(dir.inode(), &victim.inode)
}

/// unlink(2).
pub fn unlink(start: &Start, path: &[u8]) -> Result<()> {
    let Target { credentials, dir, last } = Target::find(start, path)?;
    let (name, slash) = last.name(Errno::EISDIR)?;
    dir.mount.check_writable()?;
    let victim = {
        let _changes = dir.inode().lock.lock_killable().ok_or(Errno::EINTR)?;
        let victim = dir.inode().ops.lookup(&dir.dentry, &name)?;
        if slash {
            return Err(if victim.inode.is_dir() { Errno::EISDIR } else { Errno::ENOTDIR });
        }
        check_delete(&credentials, &dir, &victim)?;
        if victim.inode.is_dir() {
            return Err(Errno::EISDIR);
        }
        check_not_mounted(&victim)?;
        dir.inode().ops.unlink(&dir.dentry, &victim)?;
        victim
    };
    let inode = victim.inode.clone();
    mount::end::unmount_removed(&victim);
    notify::happened_to(&inode, abi::IN_ATTRIB);
    // The file may go with this, and its pages: outside of the directory's lock.
    drop(victim);
    notify::entry(dir.inode(), &name, &inode, abi::IN_DELETE);
    Ok(())
}

/// rmdir(2).
pub fn rmdir(start: &Start, path: &[u8]) -> Result<()> {
    // What the last component says decides the error.
    let trimmed = path.iter().rposition(|c| *c != b'/').map_or(&path[..0], |end| &path[..=end]);
    let last = trimmed.rsplit(|c| *c == b'/').next().unwrap_or_default();
    let otherwise = match last {
        b"." => Errno::EINVAL,
        b".." => Errno::ENOTEMPTY,
        _ => Errno::EBUSY,
    };
    let Target { credentials, dir, last } = Target::find(start, path)?;
    let (name, _) = last.name(otherwise)?;
    dir.mount.check_writable()?;
    let victim = {
        let _changes = dir.inode().lock.lock_killable().ok_or(Errno::EINTR)?;
        let victim = dir.inode().ops.lookup(&dir.dentry, &name)?;
        check_delete(&credentials, &dir, &victim)?;
        if !victim.inode.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        check_not_mounted(&victim)?;
        // Waits for those who are creating something in it.
        let inside = victim.inode.lock.lock_killable().ok_or(Errno::EINTR)?;
        dir.inode().ops.rmdir(&dir.dentry, &victim)?;
        drop(inside);
        victim
    };
    let inode = victim.inode.clone();
    mount::end::unmount_removed(&victim);
    drop(victim);
    notify::entry(dir.inode(), &name, &inode, abi::IN_DELETE);
    Ok(())
}

/// link(2) of the file at `old`.
pub fn link(start: &Start, old: &Path, path: &[u8]) -> Result<()> {
    let Target { credentials, dir, last } = Target::find(start, path)?;
    let (name, slash) = last.name(Errno::EEXIST)?;
    if !Arc::ptr_eq(&old.mount, &dir.mount) {
        return Err(Errno::EXDEV);
    }
    let inode = old.inode();
    let _changes = dir.inode().lock.lock_killable().ok_or(Errno::EINTR)?;
    match dir.inode().ops.lookup(&dir.dentry, &name) {
        Err(Errno::ENOENT) if slash => return Err(Errno::ENOENT),
        Err(Errno::ENOENT) => {}
        Ok(_) => return Err(Errno::EEXIST),
        Err(error) => return Err(error),
    }
    dir.mount.check_writable()?;
    credentials.check(dir.inode(), access::WRITE | access::EXECUTE)?;
    if inode.is_dir() {
        return Err(Errno::EPERM);
    }
    if dir.dentry.is_removed() {
        return Err(Errno::ENOENT);
    }
    dir.inode().ops.link(&dir.dentry, &name, inode)?;
    inode.forbid_link();
    notify::happened_to(inode, abi::IN_ATTRIB);
    notify::entry(dir.inode(), &name, inode, abi::IN_CREATE);
    Ok(())
}

/// The flags of renameat2(2) that are known and go together.
pub fn check_rename_flags(flags: u32) -> Result<()> {
    const KNOWN: u32 = abi::RENAME_NOREPLACE | abi::RENAME_EXCHANGE;
    if flags & !KNOWN != 0 || flags == KNOWN { Err(Errno::EINVAL) } else { Ok(()) }
}

/// renameat2(2); `flags` have been checked.
pub fn rename(old: Target, new: Target, flags: u32) -> Result<()> {
    // Outside of the directories' locks.
    let replaced = move_name(old, new, flags)?;
    if let Some(replaced) = replaced {
        mount::end::unmount_removed(&replaced);
    }
    Ok(())
}

/// Renames; gives the name that was replaced and is gone.
fn move_name(old: Target, new: Target, flags: u32) -> Result<Option<Arc<Dentry>>> {
    let exchange = flags & abi::RENAME_EXCHANGE != 0;
    let no_replace = flags & abi::RENAME_NOREPLACE != 0;
    let (from, to) = (&old.dir, &new.dir);
    if !Arc::ptr_eq(&from.mount, &to.mount) {
        return Err(Errno::EXDEV);
    }
    let (old_name, old_slash) = old.last.name(Errno::EBUSY)?;
    let (new_name, new_slash) = new.last.name(if no_replace { Errno::EEXIST } else { Errno::EBUSY })?;
    from.mount.check_writable()?;
    let same_dir = Arc::ptr_eq(&from.dentry, &to.dentry);
    // Within one directory nothing moves: its own lock is enough.
    let superblock = &from.mount.superblock;
    let _order = match same_dir {
        true => None,
        false => Some(superblock.renames.lock_killable().ok_or(Errno::EINTR)?),
    };
    // The ancestor first; of unrelated directories either may come first, because only one caller at a time holds two of a file system.
    let swapped = !same_dir && to.dentry.is_ancestor_of(&from.dentry);
    let (first, second) = if swapped { (to, from) } else { (from, to) };
    let _first = first.inode().lock.lock_killable().ok_or(Errno::EINTR)?;
    let _second = match same_dir {
        true => None,
        false => Some(second.inode().lock.lock_killable().ok_or(Errno::EINTR)?),
    };

    let entry = from.inode().ops.lookup(&from.dentry, &old_name)?;
    let target = match to.inode().ops.lookup(&to.dentry, &new_name) {
        Ok(target) => Some(target),
        Err(Errno::ENOENT) => None,
        Err(error) => return Err(error),
    };
    if no_replace && target.is_some() {
        return Err(Errno::EEXIST);
    }
    if exchange && target.is_none() {
        return Err(Errno::ENOENT);
    }
    if !entry.inode.is_dir() && (old_slash || !exchange && new_slash) {
        return Err(Errno::ENOTDIR);
    }
    if exchange && new_slash && target.as_ref().is_some_and(|t| !t.inode.is_dir()) {
        return Err(Errno::ENOTDIR);
    }
    // A directory cannot become part of itself, nor replace what it is in.
    if !same_dir && entry.is_ancestor_of(&to.dentry) {
        return Err(Errno::EINVAL);
    }
    if let Some(target) = &target
        && !same_dir
        && target.is_ancestor_of(&from.dentry)
    {
        return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
    }
    if let Some(target) = &target
        && Arc::ptr_eq(&entry.inode, &target.inode)
    {
        // Two names of one file: nothing to do, by POSIX.
        return Ok(None);
    }
    check_delete(&old.credentials, from, &entry)?;
    match &target {
        Some(target) => check_delete(&new.credentials, to, target)?,
        None => new.credentials.check(to.inode(), access::WRITE | access::EXECUTE)?,
    }
    if to.dentry.is_removed() {
        return Err(Errno::ENOENT);
    }
    if let Some(target) = target.as_ref().filter(|_| !exchange) {
        match (entry.inode.is_dir(), target.inode.is_dir()) {
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            _ => {}
        }
    }
    // A directory that moves gets a new `..`, which is a change of its content.
    if !same_dir && entry.inode.is_dir() {
        old.credentials.check(&entry.inode, access::WRITE)?;
    }
    if !same_dir
        && exchange
        && let Some(target) = target.as_ref().filter(|t| t.inode.is_dir())
    {
        new.credentials.check(&target.inode, access::WRITE)?;
    }
    check_not_mounted(&entry)?;
    if let Some(target) = &target {
        check_not_mounted(target)?;
    }
    let moves_directory =
        !same_dir && (entry.inode.is_dir() || exchange && target.as_ref().is_some_and(|t| t.inode.is_dir()));
    if moves_directory {
        // Ordering: before the move, which the directories' locks order.
        superblock.has_moved.store(true, Ordering::Relaxed);
    }
    from.inode().ops.rename(&from.dentry, &entry, &to.dentry, &new_name, target.as_ref(), exchange)?;
    notify::moved((from.inode(), &old_name), (to.inode(), &new_name), &entry.inode);
    match &target {
        Some(target) if exchange => {
            notify::moved((to.inode(), &new_name), (from.inode(), &old_name), &target.inode);
        }
        Some(target) if !target.inode.is_dir() => notify::happened_to(&target.inode, abi::IN_ATTRIB),
        _ => {}
    }
    Ok(target.filter(|_| !exchange))
}
