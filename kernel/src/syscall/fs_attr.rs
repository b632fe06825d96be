//! System calls about what is known of a file: stat, access, chmod, utimes.

use alloc::sync::Arc;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::access::{EXECUTE, WRITE};
use crate::fs::attributes::{self, SetTime};
use crate::fs::caller::{self, credentials, files, start, start_as};
use crate::fs::mount::Mount;
use crate::fs::path::{Path, resolve};
use crate::fs::{FileType, Timestamp};
use crate::mm::uaccess::{self, read_path};

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::stat, stat),
    (Sysno::lstat, lstat),
    (Sysno::fstat, fstat),
    (Sysno::newfstatat, newfstatat),
    (Sysno::statx, statx),
    (Sysno::statfs, statfs),
    (Sysno::fstatfs, fstatfs),
    (Sysno::access, access),
    (Sysno::faccessat, faccessat),
    (Sysno::faccessat2, faccessat2),
    (Sysno::chmod, chmod),
    (Sysno::fchmod, fchmod),
    (Sysno::fchmodat, fchmodat),
    (Sysno::fchmodat2, fchmodat2),
    (Sysno::chown, chown),
    (Sysno::lchown, lchown),
    (Sysno::fchown, fchown),
    (Sysno::fchownat, fchownat),
    (Sysno::utime, utime),
    (Sysno::utimes, utimes),
    (Sysno::futimesat, futimesat),
    (Sysno::utimensat, utimensat),
];

const CWD: usize = abi::AT_FDCWD as isize as usize;

/// The place that `dirfd` and `path` name; with `AT_EMPTY_PATH` the descriptor's own.
fn place(dirfd: usize, path: usize, flags: u32) -> Result<Path> {
    // A null pointer for an empty path is allowed since Linux 6.11.
    let text = if path == 0 && flags & abi::AT_EMPTY_PATH != 0 { alloc::vec![] } else { read_path(path)? };
    let start = start(dirfd as i32, &text)?;
    if text.is_empty() && flags & abi::AT_EMPTY_PATH != 0 {
        return Ok(start.base);
    }
    resolve(&start, &text, flags & abi::AT_SYMLINK_NOFOLLOW == 0)
}

fn put_stat(place: &Path, address: usize) -> Result<usize> {
    uaccess::write_user(address, &place.inode().stat().to_abi())?;
    Ok(0)
}

fn stat(args: &mut Args) -> Result<usize> {
    let [path, out, ..] = args.a;
    put_stat(&place(CWD, path, 0)?, out)
}

fn lstat(args: &mut Args) -> Result<usize> {
    let [path, out, ..] = args.a;
    put_stat(&place(CWD, path, abi::AT_SYMLINK_NOFOLLOW)?, out)
}

fn fstat(args: &mut Args) -> Result<usize> {
    let [fd, out, ..] = args.a;
    put_stat(files().get(fd as i32)?.path(), out)
}

fn newfstatat(args: &mut Args) -> Result<usize> {
    let [dirfd, path, out, flags, ..] = args.a;
    let flags = flags as u32;
    if flags & !(abi::AT_SYMLINK_NOFOLLOW | abi::AT_EMPTY_PATH | abi::AT_NO_AUTOMOUNT) != 0 {
        return Err(Errno::EINVAL);
    }
    put_stat(&place(dirfd, path, flags)?, out)
}

fn statx(args: &mut Args) -> Result<usize> {
    let [dirfd, path, flags, mask, out, _] = args.a;
    let (flags, mask) = (flags as u32, mask as u32);
    let known =
        abi::AT_SYMLINK_NOFOLLOW | abi::AT_EMPTY_PATH | abi::AT_NO_AUTOMOUNT | abi::AT_STATX_SYNC_TYPE;
    if flags & !known != 0
        || mask & abi::STATX__RESERVED != 0
        || flags & abi::AT_STATX_SYNC_TYPE == abi::AT_STATX_SYNC_TYPE
    {
        return Err(Errno::EINVAL);
    }
    let place = place(dirfd, path, flags)?;
    let is_root = Arc::ptr_eq(&place.dentry, &place.mount.root);
    let mut stat = place.inode().stat().to_statx(Some((place.mount.id, is_root)));
    if mask & abi::STATX_MNT_ID_UNIQUE != 0 {
        stat.stx_mask ^= abi::STATX_MNT_ID | abi::STATX_MNT_ID_UNIQUE;
        stat.stx_mnt_id = place.mount.unique_id();
    }
    uaccess::write_user(out, &stat)?;
    Ok(0)
}

/// The flags of a mount as statfs(2) reports them; that they are valid is one of them.
fn statfs_flags(mount: &Mount) -> u64 {
    const PAIRS: [(u32, u64); 8] = [
        (abi::MS_RDONLY, 0x1),
        (abi::MS_NOSUID, 0x2),
        (abi::MS_NODEV, 0x4),
        (abi::MS_NOEXEC, 0x8),
        (abi::MS_NOATIME, 0x400),
        (abi::MS_NODIRATIME, 0x800),
        (abi::MS_RELATIME, 0x1000),
        (abi::MS_NOSYMFOLLOW, 0x2000),
    ];
    let flags = mount.flags();
    PAIRS.iter().filter(|(flag, _)| flags & flag != 0).fold(0x20, |all, (_, out)| all | out)
}

fn put_statfs(place: &Path, address: usize) -> Result<usize> {
    let superblock = &place.mount.superblock;
    let out = superblock.ops.statfs().to_abi(superblock.dev, statfs_flags(&place.mount));
    uaccess::write_user(address, &out)?;
    Ok(0)
}

fn statfs(args: &mut Args) -> Result<usize> {
    let [path, out, ..] = args.a;
    put_statfs(&place(CWD, path, 0)?, out)
}

fn fstatfs(args: &mut Args) -> Result<usize> {
    let [fd, out, ..] = args.a;
    put_statfs(files().get(fd as i32)?.path(), out)
}

fn access(args: &mut Args) -> Result<usize> {
    let [path, mode, ..] = args.a;
    check_access(CWD, path, mode, 0)
}

fn faccessat(args: &mut Args) -> Result<usize> {
    let [dirfd, path, mode, ..] = args.a;
    check_access(dirfd, path, mode, 0)
}

fn faccessat2(args: &mut Args) -> Result<usize> {
    let [dirfd, path, mode, flags, ..] = args.a;
    check_access(dirfd, path, mode, flags as u32)
}

fn check_access(dirfd: usize, path: usize, mode: usize, flags: u32) -> Result<usize> {
    if mode & !7 != 0 || flags & !(abi::AT_EACCESS | abi::AT_SYMLINK_NOFOLLOW | abi::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let who = if flags & abi::AT_EACCESS != 0 { credentials() } else { caller::real_credentials() };
    let text = read_path(path)?;
    let start = start_as(dirfd as i32, &text, who)?;
    let place = if text.is_empty() && flags & abi::AT_EMPTY_PATH != 0 {
        start.base.clone()
    } else {
        resolve(&start, &text, flags & abi::AT_SYMLINK_NOFOLLOW == 0)?
    };
    let want = mode as u32;
    let inode = place.inode();
    if want & EXECUTE != 0 && inode.kind == FileType::Regular && place.mount.has(abi::MS_NOEXEC) {
        return Err(Errno::EACCES);
    }
    start.credentials.check(inode, want)?;
    let special = !matches!(inode.kind, FileType::Regular | FileType::Directory | FileType::Symlink);
    if want & WRITE != 0 && !special {
        place.mount.check_writable()?;
    }
    Ok(0)
}

fn chmod(args: &mut Args) -> Result<usize> {
    let [path, mode, ..] = args.a;
    change_mode(&place(CWD, path, 0)?, mode)
}

fn fchmod(args: &mut Args) -> Result<usize> {
    let [fd, mode, ..] = args.a;
    let file = files().get(fd as i32)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    change_mode(file.path(), mode)
}

fn fchmodat(args: &mut Args) -> Result<usize> {
    let [dirfd, path, mode, ..] = args.a;
    change_mode(&place(dirfd, path, 0)?, mode)
}

fn fchmodat2(args: &mut Args) -> Result<usize> {
    let [dirfd, path, mode, flags, ..] = args.a;
    let flags = flags as u32;
    if flags & !(abi::AT_SYMLINK_NOFOLLOW | abi::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    change_mode(&place(dirfd, path, flags)?, mode)
}

fn change_mode(place: &Path, mode: usize) -> Result<usize> {
    attributes::chmod(place, &credentials(), mode as u32)?;
    Ok(0)
}

fn chown(args: &mut Args) -> Result<usize> {
    let [path, uid, gid, ..] = args.a;
    change_owner(&place(CWD, path, 0)?, uid, gid)
}

fn lchown(args: &mut Args) -> Result<usize> {
    let [path, uid, gid, ..] = args.a;
    change_owner(&place(CWD, path, abi::AT_SYMLINK_NOFOLLOW)?, uid, gid)
}

fn fchown(args: &mut Args) -> Result<usize> {
    let [fd, uid, gid, ..] = args.a;
    let file = files().get(fd as i32)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    change_owner(file.path(), uid, gid)
}

fn fchownat(args: &mut Args) -> Result<usize> {
    let [dirfd, path, uid, gid, flags, _] = args.a;
    let flags = flags as u32;
    if flags & !(abi::AT_SYMLINK_NOFOLLOW | abi::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    change_owner(&place(dirfd, path, flags)?, uid, gid)
}

fn change_owner(place: &Path, uid: usize, gid: usize) -> Result<usize> {
    let given = |raw: usize| (raw as u32 != u32::MAX).then_some(raw as u32);
    let uid = given(uid).map(caller::kernel_uid).transpose()?;
    let gid = given(gid).map(caller::kernel_gid).transpose()?;
    attributes::chown(place, &credentials(), uid, gid)?;
    Ok(0)
}

fn set_times(place: &Path, atime: SetTime, mtime: SetTime) -> Result<usize> {
    attributes::set_times(place, &credentials(), atime, mtime)?;
    Ok(0)
}

fn utime(args: &mut Args) -> Result<usize> {
    let [path, times, ..] = args.a;
    let place = place(CWD, path, 0)?;
    if times == 0 {
        return set_times(&place, SetTime::Now, SetTime::Now);
    }
    let [atime, mtime]: [i64; 2] = uaccess::read_user(times)?;
    let at = |seconds| SetTime::At(Timestamp { seconds, nanoseconds: 0 });
    set_times(&place, at(atime), at(mtime))
}

fn utimes(args: &mut Args) -> Result<usize> {
    let [path, times, ..] = args.a;
    set_timevals(CWD, path, times)
}

fn futimesat(args: &mut Args) -> Result<usize> {
    let [dirfd, path, times, ..] = args.a;
    set_timevals(dirfd, path, times)
}

fn set_timevals(dirfd: usize, path: usize, times: usize) -> Result<usize> {
    let (mut atime, mut mtime) = (SetTime::Now, SetTime::Now);
    if times != 0 {
        let values: [[i64; 2]; 2] = uaccess::read_user(times)?;
        let at = |[seconds, micros]: [i64; 2]| {
            let micros = u32::try_from(micros).ok().filter(|m| *m < 1_000_000).ok_or(Errno::EINVAL)?;
            Ok::<_, Errno>(SetTime::At(Timestamp { seconds, nanoseconds: micros * 1000 }))
        };
        (atime, mtime) = (at(values[0])?, at(values[1])?);
    }
    let place = if path == 0 { file_place(dirfd)? } else { place(dirfd, path, 0)? };
    set_times(&place, atime, mtime)
}

fn file_place(fd: usize) -> Result<Path> {
    let file = files().get(fd as i32)?;
    if file.is_path() { Err(Errno::EBADF) } else { Ok(file.path().clone()) }
}

fn utimensat(args: &mut Args) -> Result<usize> {
    const UTIME_NOW: i64 = (1 << 30) - 1;
    const UTIME_OMIT: i64 = (1 << 30) - 2;
    let [dirfd, path, times, flags, ..] = args.a;
    let flags = flags as u32;
    if flags & !(abi::AT_SYMLINK_NOFOLLOW | abi::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let (mut atime, mut mtime) = (SetTime::Now, SetTime::Now);
    if times != 0 {
        let values: [[i64; 2]; 2] = uaccess::read_user(times)?;
        let at = |[seconds, nanos]: [i64; 2]| match nanos {
            UTIME_NOW => Ok(SetTime::Now),
            UTIME_OMIT => Ok(SetTime::Omit),
            0..=999_999_999 => Ok(SetTime::At(Timestamp { seconds, nanoseconds: nanos as u32 })),
            _ => Err(Errno::EINVAL),
        };
        (atime, mtime) = (at(values[0])?, at(values[1])?);
        if atime == SetTime::Omit && mtime == SetTime::Omit {
            return Ok(0);
        }
    }
    // Without a path it is the open file itself: futimens(3).
    let place = if path == 0 && dirfd as i32 != abi::AT_FDCWD {
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        file_place(dirfd)?
    } else {
        place(dirfd, path, flags)?
    };
    set_times(&place, atime, mtime)
}
