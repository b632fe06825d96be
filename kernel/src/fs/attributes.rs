//! Changing mode, owner, times and size of files.

use linux_raw_sys::general as abi;

use super::access::{self, Credentials};
use super::caller::{self, now};
use super::file::File;
use super::inode::{Attributes, Inode, SetAttributes};
use super::lease;
use super::notify;
use super::path::Path;
use super::stat::{FileType, Timestamp};
use crate::errno::{Errno, Result};

/// After so many seconds a read sets the time of last read even on a `relatime` mount.
const RELATIME_SECONDS: i64 = 24 * 60 * 60;

/// The file at `path` was read: sets its time of last read, as the mount's options want it.
pub fn touch_accessed(path: &Path) {
    let inode = path.inode();
    let flags = path.mount.flags();
    if flags & (abi::MS_NOATIME | abi::MS_RDONLY) != 0 || inode.is_dir() && flags & abi::MS_NODIRATIME != 0 {
        return;
    }
    let now = now();
    inode.update(|a| {
        // `relatime`: once after each change, and once a day.
        let stale = a.atime <= a.mtime
            || a.atime <= a.ctime
            || now.seconds.saturating_sub(a.atime.seconds) >= RELATIME_SECONDS;
        if flags & abi::MS_RELATIME == 0 || stale {
            a.atime = now;
        }
    });
}

/// As `touch_accessed`, unless the file was opened not to (`O_NOATIME`).
pub fn file_accessed(file: &File) {
    if file.flags() & abi::O_NOATIME == 0 {
        touch_accessed(file.path());
    }
}

/// The content is about to change: a program that runs with its owner's rights loses them.
pub fn remove_privileges(inode: &Inode) {
    let permissions = inode.attributes().permissions;
    if permissions & (abi::S_ISUID | abi::S_ISGID) == 0 || inode.kind != FileType::Regular {
        return;
    }
    if caller::credentials().capable_over(&inode.attributes(), abi::CAP_FSETID) {
        return;
    }
    let in_group = caller::credentials().in_group(inode.attributes().gid);
    inode.update(|a| {
        a.permissions &= !dangerous_bits(a.permissions);
        if !in_group {
            a.permissions &= !abi::S_ISGID;
        }
    });
}

/// The set-ID bits that mean something: set-group-ID only together with execution by the group.
fn dangerous_bits(permissions: u32) -> u32 {
    let group = if permissions & abi::S_IXGRP != 0 { abi::S_ISGID } else { 0 };
    permissions & (abi::S_ISUID | group)
}

/// chmod(2).
pub fn chmod(path: &Path, credentials: &Credentials, permissions: u32) -> Result<()> {
    path.mount.check_writable()?;
    let inode = path.inode();
    if inode.kind == FileType::Symlink {
        return Err(Errno::EOPNOTSUPP);
    }
    let old = inode.attributes();
    let permissions = permitted_mode(credentials, &old, permissions)?;
    let change = SetAttributes { permissions: Some(permissions), ..SetAttributes::default() };
    inode.ops.set_attributes(inode, &change)?;
    let now = now();
    inode.update(|a| -> Result<()> {
        // Race: chown(2) may have given the file away since, and what its old owner wanted is not for the new one's file.
        a.permissions = permitted_mode(credentials, a, permissions)?;
        a.ctime = now;
        Ok(())
    })?;
    notify::happened(&path.dentry, abi::IN_ATTRIB);
    Ok(())
}

/// The mode that a file with the attributes `a` gets; `EPERM` for who may not change it.
fn permitted_mode(credentials: &Credentials, a: &Attributes, permissions: u32) -> Result<u32> {
    if !credentials.owns_as(a) {
        return Err(Errno::EPERM);
    }
    let in_group = credentials.in_group(a.gid) || credentials.capable_over(a, abi::CAP_FSETID);
    Ok(permissions & if in_group { 0o7777 } else { 0o7777 & !abi::S_ISGID })
}

/// chown(2); `None` leaves one as it is.
pub fn chown(path: &Path, credentials: &Credentials, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    path.mount.check_writable()?;
    let inode = path.inode();
    let permissions = mode_after_chown(inode.is_dir(), credentials, &inode.attributes(), uid, gid)?;
    let change = SetAttributes { permissions: Some(permissions), uid, gid, ..SetAttributes::default() };
    inode.ops.set_attributes(inode, &change)?;
    let now = now();
    inode.update(|a| -> Result<()> {
        // Race: as in chmod(2), which may have come in between, too.
        a.permissions = mode_after_chown(inode.is_dir(), credentials, a, uid, gid)?;
        a.uid = uid.unwrap_or(a.uid);
        a.gid = gid.unwrap_or(a.gid);
        a.ctime = now;
        Ok(())
    })?;
    notify::happened(&path.dentry, abi::IN_ATTRIB);
    Ok(())
}

/// The mode that a file with the attributes `old` has after it was given to others; `EPERM` for who may not do that.
fn mode_after_chown(
    is_dir: bool,
    credentials: &Credentials,
    old: &Attributes,
    uid: Option<u32>,
    gid: Option<u32>,
) -> Result<u32> {
    if !credentials.capable_over(old, abi::CAP_CHOWN) {
        let owner = credentials.uid == old.uid;
        if uid.is_some_and(|uid| !owner || uid != old.uid) {
            return Err(Errno::EPERM);
        }
        if gid.is_some_and(|gid| !owner || gid != old.gid && !credentials.in_group(gid)) {
            return Err(Errno::EPERM);
        }
    }
    let mut permissions = old.permissions;
    if !is_dir {
        permissions &= !dangerous_bits(permissions);
        if !credentials.in_group(old.gid) && !credentials.capable_over(old, abi::CAP_FSETID) {
            permissions &= !abi::S_ISGID;
        }
    }
    // Taking the bits away is a change of mode, which only the owner may make.
    if permissions != old.permissions && !credentials.owns_as(old) {
        return Err(Errno::EPERM);
    }
    Ok(permissions)
}

/// What a timestamp is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The present time (`UTIME_NOW`).
    Now,
    /// Stay (`UTIME_OMIT`).
    Omit,
    /// This.
    At(Timestamp),
}

/// utimensat(2). Setting both to now takes only permission to write.
pub fn set_times(path: &Path, credentials: &Credentials, atime: SetTime, mtime: SetTime) -> Result<()> {
    if atime == SetTime::Omit && mtime == SetTime::Omit {
        return Ok(());
    }
    path.mount.check_writable()?;
    let inode = path.inode();
    if !credentials.owns(inode) {
        if atime != SetTime::Now || mtime != SetTime::Now {
            return Err(Errno::EPERM);
        }
        credentials.check(inode, access::WRITE)?;
    }
    let now = now();
    let value = |time| match time {
        SetTime::Now => Some(now),
        SetTime::Omit => None,
        SetTime::At(at) => Some(at),
    };
    let (atime, mtime) = (value(atime), value(mtime));
    inode.ops.set_attributes(inode, &SetAttributes { atime, mtime, ..SetAttributes::default() })?;
    inode.update(|a| {
        a.atime = atime.unwrap_or(a.atime);
        a.mtime = mtime.unwrap_or(a.mtime);
        a.ctime = now;
    });
    // As Linux: one time alone is as if the file had been read or written.
    let events = match (atime, mtime) {
        (Some(_), None) => abi::IN_ACCESS,
        (None, Some(_)) => abi::IN_MODIFY,
        _ => abi::IN_ATTRIB,
    };
    notify::happened(&path.dentry, events);
    Ok(())
}

/// truncate(2).
pub fn truncate(path: &Path, credentials: &Credentials, size: u64) -> Result<()> {
    let inode = path.inode();
    match inode.kind {
        FileType::Directory => return Err(Errno::EISDIR),
        FileType::Regular => {}
        _ => return Err(Errno::EINVAL),
    }
    // As long as the lease is waited for, too.
    let _writing = path.mount.begin_writing()?;
    credentials.check(inode, access::WRITE)?;
    inode.begin_writing()?;
    let result = lease::break_for(inode, true, false).and_then(|()| resize(inode, size));
    inode.end_writing();
    if result.is_ok() {
        notify::happened(&path.dentry, abi::IN_MODIFY);
    }
    result
}

fn resize(inode: &Inode, size: u64) -> Result<()> {
    check_size_limit(inode, size)?;
    let _writers = inode.lock.lock_killable().ok_or(Errno::EINTR)?;
    inode.ops.truncate(inode, size)?;
    remove_privileges(inode);
    inode.touch_modified();
    Ok(())
}

/// `EFBIG` and SIGXFSZ when the process may not make the file that large.
pub fn check_size_limit(inode: &Inode, size: u64) -> Result<()> {
    if size > inode.stat().size && size > 0 {
        caller::write_room(size - 1, u64::MAX)?;
    }
    Ok(())
}
