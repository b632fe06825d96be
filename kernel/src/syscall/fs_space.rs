//! System calls about the size of files, and about syncing them.

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::caller::{files, start};
use crate::fs::inode::Inode;
use crate::fs::{FileType, access, attributes, caller, notify, path};
use crate::memory::PAGE_SIZE;
use crate::mm::uaccess::{read_path, read_user, write_user};

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::truncate, truncate),
    (Sysno::ftruncate, ftruncate),
    (Sysno::fallocate, fallocate),
    (Sysno::fsync, fsync),
    (Sysno::fdatasync, fsync),
    (Sysno::sync, sync),
    (Sysno::syncfs, syncfs),
    (Sysno::sync_file_range, sync_file_range),
    (Sysno::fadvise64, fadvise64),
    (Sysno::readahead, readahead),
    (Sysno::cachestat, cachestat),
];

/// `EFBIG` for a size that no file of that file system can have.
fn check_most_bytes(inode: &Inode, size: u64) -> Result<()> {
    if size > inode.superblock.ops.most_bytes() { Err(Errno::EFBIG) } else { Ok(()) }
}

fn truncate(args: &mut Args) -> Result<usize> {
    let [path, size, ..] = args.a;
    let size = u64::try_from(size as i64).map_err(|_| Errno::EINVAL)?;
    let text = read_path(path)?;
    let start = start(abi::AT_FDCWD, &text)?;
    let place = path::resolve(&start, &text, true)?;
    attributes::truncate(&place, &start.credentials, size)?;
    Ok(0)
}

fn ftruncate(args: &mut Args) -> Result<usize> {
    let [fd, size, ..] = args.a;
    let size = u64::try_from(size as i64).map_err(|_| Errno::EINVAL)?;
    let file = files().get(fd as i32)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    if file.inode().kind != FileType::Regular || !file.writable() {
        return Err(Errno::EINVAL);
    }
    check_most_bytes(file.inode(), size)?;
    attributes::check_size_limit(file.inode(), size)?;
    file.ops().truncate(&file, size)?;
    notify::happened(file.dentry(), abi::IN_MODIFY);
    Ok(0)
}

fn fallocate(args: &mut Args) -> Result<usize> {
    let [fd, mode, offset, len, ..] = args.a;
    let mode = mode as u32;
    let file = files().get(fd as i32)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    let offset = u64::try_from(offset as i64).map_err(|_| Errno::EINVAL)?;
    let len = u64::try_from(len as i64).ok().filter(|len| *len > 0).ok_or(Errno::EINVAL)?;
    const EXCLUSIVE: u32 = abi::FALLOC_FL_PUNCH_HOLE
        | abi::FALLOC_FL_COLLAPSE_RANGE
        | abi::FALLOC_FL_ZERO_RANGE
        | abi::FALLOC_FL_INSERT_RANGE
        | abi::FALLOC_FL_UNSHARE_RANGE;
    if mode & !(EXCLUSIVE | abi::FALLOC_FL_KEEP_SIZE) != 0 || (mode & EXCLUSIVE).count_ones() > 1 {
        return Err(Errno::EOPNOTSUPP);
    }
    const MOVES: u32 = abi::FALLOC_FL_COLLAPSE_RANGE | abi::FALLOC_FL_INSERT_RANGE;
    if mode & MOVES != 0 && mode & abi::FALLOC_FL_KEEP_SIZE != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if mode & abi::FALLOC_FL_PUNCH_HOLE != 0 && mode & abi::FALLOC_FL_KEEP_SIZE == 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if !file.writable() {
        return Err(Errno::EBADF);
    }
    match file.inode().kind {
        FileType::Regular => {}
        FileType::Fifo => return Err(Errno::ESPIPE),
        FileType::Directory => return Err(Errno::EISDIR),
        _ => return Err(Errno::ENODEV),
    }
    let end = offset.checked_add(len).filter(|end| *end <= i64::MAX as u64).ok_or(Errno::EFBIG)?;
    check_most_bytes(file.inode(), end)?;
    file.ops().fallocate(&file, mode, offset, len)?;
    notify::happened(file.dentry(), abi::IN_MODIFY);
    Ok(0)
}

fn fsync(args: &mut Args) -> Result<usize> {
    let file = files().get(args.a[0] as i32)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    file.ops().sync(&file)?;
    Ok(0)
}

/// All file systems are in memory, or the host has what was written: nothing waits to be written anywhere.
fn sync(_args: &mut Args) -> Result<usize> {
    Ok(0)
}

fn syncfs(args: &mut Args) -> Result<usize> {
    let file = files().get(args.a[0] as i32)?;
    if file.is_path() { Err(Errno::EBADF) } else { Ok(0) }
}

fn sync_file_range(args: &mut Args) -> Result<usize> {
    const FLAGS: u32 = 7;
    let [fd, offset, len, flags, ..] = args.a;
    let file = files().get(fd as i32)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    let (offset, len) = (offset as i64, len as i64);
    if flags as u32 & !FLAGS != 0 || offset < 0 || len < 0 || offset.checked_add(len).is_none() {
        return Err(Errno::EINVAL);
    }
    match file.inode().kind {
        FileType::Regular | FileType::Directory | FileType::BlockDevice | FileType::Symlink => Ok(0),
        _ => Err(Errno::ESPIPE),
    }
}

fn fadvise64(args: &mut Args) -> Result<usize> {
    /// `POSIX_FADV_NORMAL` to `POSIX_FADV_NOREUSE`.
    const ADVICE: usize = 5;
    let [fd, _, len, advice, ..] = args.a;
    let file = files().get(fd as i32)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    if file.inode().kind == FileType::Fifo {
        return Err(Errno::ESPIPE);
    }
    if (len as i64) < 0 || advice > ADVICE {
        return Err(Errno::EINVAL);
    }
    Ok(0)
}

fn readahead(args: &mut Args) -> Result<usize> {
    let file = files().get(args.a[0] as i32)?;
    if !file.readable() {
        return Err(Errno::EBADF);
    }
    if file.inode().kind != FileType::Regular {
        return Err(Errno::EINVAL);
    }
    Ok(0)
}

/// How much of a file is in memory: for those who may change it, so that nobody learns what others read.
fn cachestat(args: &mut Args) -> Result<usize> {
    let [fd, range, result, flags, ..] = args.a;
    let file = files().get(fd as i32)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    let [offset, length]: [u64; 2] = read_user(range)?;
    file.ops().cached_pages(0..0)?;
    let own = caller::credentials();
    if !file.writable() && !own.owns(file.inode()) && own.check(file.inode(), access::WRITE).is_err() {
        return Err(Errno::EPERM);
    }
    if flags as u32 != 0 {
        return Err(Errno::EINVAL);
    }
    let page = PAGE_SIZE as u64;
    let end = match length {
        0 => u64::MAX,
        _ => (offset.wrapping_add(length - 1) / page) + 1,
    };
    let cached = file.ops().cached_pages(offset / page..end)?;
    // Nothing waits to be written, and nothing is taken out of memory: neither dirty, nor under way, nor evicted.
    write_user(result, &[cached, 0, 0, 0, 0])?;
    Ok(0)
}
