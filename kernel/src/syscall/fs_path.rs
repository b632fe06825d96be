//! System calls that change or look at the tree of names.

use alloc::vec::Vec;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::access::EXECUTE;
use crate::fs::caller::{self, context, credentials, files, start};
use crate::fs::mount_namespace::MountNamespace;
use crate::fs::open::Target;
use crate::fs::path::{Path, resolve};
use crate::fs::{DeviceId, FileType, NewNode, attributes, directory, modify, mount, open};
use crate::memory::fallible;
use crate::mm::uaccess::{self, read_path};

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::mkdir, mkdir),
    (Sysno::mkdirat, mkdirat),
    (Sysno::rmdir, rmdir),
    (Sysno::unlink, unlink),
    (Sysno::unlinkat, unlinkat),
    (Sysno::rename, rename),
    (Sysno::renameat, renameat),
    (Sysno::renameat2, renameat2),
    (Sysno::link, link),
    (Sysno::linkat, linkat),
    (Sysno::symlink, symlink),
    (Sysno::symlinkat, symlinkat),
    (Sysno::readlink, readlink),
    (Sysno::readlinkat, readlinkat),
    (Sysno::mknod, mknod),
    (Sysno::mknodat, mknodat),
    (Sysno::getdents, getdents),
    (Sysno::getdents64, getdents64),
    (Sysno::getcwd, getcwd),
    (Sysno::chdir, chdir),
    (Sysno::fchdir, fchdir),
    (Sysno::chroot, chroot),
    (Sysno::pivot_root, pivot_root),
    (Sysno::umask, umask),
];

const CWD: usize = abi::AT_FDCWD as isize as usize;

fn make(dirfd: usize, path: usize, node: NewNode, mode: u32) -> Result<usize> {
    let path = read_path(path)?;
    let start = start(dirfd as i32, &path)?;
    open::create(&start, &path, node, mode)?;
    Ok(0)
}

fn masked(mode: usize, allowed: u32) -> u32 {
    mode as u32 & allowed & !context().umask()
}

fn mkdir(args: &mut Args) -> Result<usize> {
    let [path, mode, ..] = args.a;
    make(CWD, path, NewNode::Directory, masked(mode, 0o1777))
}

fn mkdirat(args: &mut Args) -> Result<usize> {
    let [dirfd, path, mode, ..] = args.a;
    make(dirfd, path, NewNode::Directory, masked(mode, 0o1777))
}

fn mknod(args: &mut Args) -> Result<usize> {
    let [path, mode, device, ..] = args.a;
    make_node(CWD, path, mode, device)
}

fn mknodat(args: &mut Args) -> Result<usize> {
    let [dirfd, path, mode, device, ..] = args.a;
    make_node(dirfd, path, mode, device)
}

fn make_node(dirfd: usize, path: usize, mode: usize, device: usize) -> Result<usize> {
    let device = DeviceId::decode(device as u32 as u64);
    let node = match FileType::from_mode(mode as u32) {
        Some(FileType::Regular | FileType::Anonymous) => NewNode::Regular,
        Some(FileType::CharDevice) => NewNode::CharDevice(device),
        Some(FileType::BlockDevice) => NewNode::BlockDevice(device),
        Some(FileType::Fifo) => NewNode::Fifo,
        Some(FileType::Socket) => NewNode::Socket,
        Some(FileType::Directory) => return Err(Errno::EPERM),
        _ => return Err(Errno::EINVAL),
    };
    make(dirfd, path, node, masked(mode, 0o7777))
}

fn symlink(args: &mut Args) -> Result<usize> {
    let [target, path, ..] = args.a;
    make_link(target, CWD, path)
}

fn symlinkat(args: &mut Args) -> Result<usize> {
    let [target, dirfd, path, ..] = args.a;
    make_link(target, dirfd, path)
}

fn make_link(target: usize, dirfd: usize, path: usize) -> Result<usize> {
    let target = read_path(target)?;
    if target.is_empty() {
        return Err(Errno::ENOENT);
    }
    make(dirfd, path, NewNode::Symlink(&target), 0o777)
}

fn rmdir(args: &mut Args) -> Result<usize> {
    remove(CWD, args.a[0], true)
}

fn unlink(args: &mut Args) -> Result<usize> {
    remove(CWD, args.a[0], false)
}

fn unlinkat(args: &mut Args) -> Result<usize> {
    let [dirfd, path, flags, ..] = args.a;
    if flags as u32 & !abi::AT_REMOVEDIR != 0 {
        return Err(Errno::EINVAL);
    }
    remove(dirfd, path, flags as u32 & abi::AT_REMOVEDIR != 0)
}

fn remove(dirfd: usize, path: usize, directory: bool) -> Result<usize> {
    let path = read_path(path)?;
    let start = start(dirfd as i32, &path)?;
    if directory {
        modify::rmdir(&start, &path)?
    } else {
        modify::unlink(&start, &path)?
    }
    Ok(0)
}

fn rename(args: &mut Args) -> Result<usize> {
    let [old, new, ..] = args.a;
    move_entry(CWD, old, CWD, new, 0)
}

fn renameat(args: &mut Args) -> Result<usize> {
    let [old_dir, old, new_dir, new, ..] = args.a;
    move_entry(old_dir, old, new_dir, new, 0)
}

fn renameat2(args: &mut Args) -> Result<usize> {
    let [old_dir, old, new_dir, new, flags, _] = args.a;
    move_entry(old_dir, old, new_dir, new, flags as u32)
}

fn move_entry(old_dir: usize, old: usize, new_dir: usize, new: usize, flags: u32) -> Result<usize> {
    modify::check_rename_flags(flags)?;
    let (old, new) = (read_path(old)?, read_path(new)?);
    let old = Target::find(&start(old_dir as i32, &old)?, &old)?;
    let new = Target::find(&start(new_dir as i32, &new)?, &new)?;
    modify::rename(old, new, flags)?;
    Ok(0)
}

fn link(args: &mut Args) -> Result<usize> {
    let [old, new, ..] = args.a;
    add_link(CWD, old, CWD, new, 0)
}

fn linkat(args: &mut Args) -> Result<usize> {
    let [old_dir, old, new_dir, new, flags, _] = args.a;
    add_link(old_dir, old, new_dir, new, flags as u32)
}

fn add_link(old_dir: usize, old: usize, new_dir: usize, new: usize, flags: u32) -> Result<usize> {
    if flags & !(abi::AT_SYMLINK_FOLLOW | abi::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let (old, new) = (read_path(old)?, read_path(new)?);
    // A descriptor may have come from someone who could see what the caller cannot.
    let by_descriptor = flags & abi::AT_EMPTY_PATH != 0 && old_dir != CWD && old.first() != Some(&b'/');
    if by_descriptor && !files().get(old_dir as i32)?.is_opened_by_caller() {
        return Err(Errno::ENOENT);
    }
    let old_start = start(old_dir as i32, &old)?;
    let place = if old.is_empty() && flags & abi::AT_EMPTY_PATH != 0 {
        old_start.base.clone()
    } else {
        resolve(&old_start, &old, flags & abi::AT_SYMLINK_FOLLOW != 0)?
    };
    let new_start = start(new_dir as i32, &new)?;
    modify::link(&new_start, &place, &new)?;
    Ok(0)
}

fn readlink(args: &mut Args) -> Result<usize> {
    let [path, buffer, len, ..] = args.a;
    read_link(CWD, path, buffer, len)
}

fn readlinkat(args: &mut Args) -> Result<usize> {
    let [dirfd, path, buffer, len, ..] = args.a;
    read_link(dirfd, path, buffer, len)
}

fn read_link(dirfd: usize, path: usize, buffer: usize, len: usize) -> Result<usize> {
    let len = usize::try_from(len as i32).ok().filter(|len| *len > 0).ok_or(Errno::EINVAL)?;
    let path = read_path(path)?;
    let start = start(dirfd as i32, &path)?;
    // An empty path is for a link that was opened with O_PATH | O_NOFOLLOW.
    let place = if path.is_empty() { start.base.clone() } else { resolve(&start, &path, false)? };
    if place.inode().kind != FileType::Symlink {
        return Err(if path.is_empty() { Errno::ENOENT } else { Errno::EINVAL });
    }
    let target = place.inode().ops.readlink(place.inode())?;
    let count = target.len().min(len);
    uaccess::copy_to_user(buffer, &target[..count])?;
    attributes::touch_accessed(&place);
    Ok(count)
}

/// Directory entries are gathered in the kernel up to this size before they are handed out.
const GATHER: usize = 32 * 1024;

fn getdents64(args: &mut Args) -> Result<usize> {
    /// `d_ino`, `d_off`, `d_reclen`, `d_type`.
    const HEAD: usize = 19;
    list(args, |entry, room| {
        let len = (HEAD + entry.name.len() + 1).next_multiple_of(8);
        if len > room {
            return None;
        }
        let mut record = alloc::vec![0u8; len];
        record[..8].copy_from_slice(&entry.ino.to_ne_bytes());
        record[8..16].copy_from_slice(&entry.next_offset.to_ne_bytes());
        record[16..18].copy_from_slice(&(len as u16).to_ne_bytes());
        record[18] = entry.kind as u8;
        record[HEAD..HEAD + entry.name.len()].copy_from_slice(entry.name);
        Some(record)
    })
}

fn getdents(args: &mut Args) -> Result<usize> {
    /// `d_ino`, `d_off`, `d_reclen`; the type is the record's last byte.
    const HEAD: usize = 18;
    list(args, |entry, room| {
        let len = (HEAD + entry.name.len() + 2).next_multiple_of(8);
        if len > room {
            return None;
        }
        let mut record = alloc::vec![0u8; len];
        record[..8].copy_from_slice(&entry.ino.to_ne_bytes());
        record[8..16].copy_from_slice(&entry.next_offset.to_ne_bytes());
        record[16..18].copy_from_slice(&(len as u16).to_ne_bytes());
        record[HEAD..HEAD + entry.name.len()].copy_from_slice(entry.name);
        record[len - 1] = entry.kind as u8;
        Some(record)
    })
}

fn list(args: &mut Args, encode: impl Fn(&crate::fs::Dirent, usize) -> Option<Vec<u8>>) -> Result<usize> {
    let [fd, buffer, len, ..] = args.a;
    let file = files().get(fd as i32)?;
    if !file.readable() {
        return Err(Errno::EBADF);
    }
    let room = (len as u32 as usize).min(GATHER);
    let mut out: Vec<u8> = fallible::with_capacity(room)?;
    let mut too_small = false;
    let before = file.position();
    directory::read(&file, &mut |entry| match encode(&entry, room - out.len()) {
        Some(record) => {
            out.extend_from_slice(&record);
            true
        }
        None => {
            too_small = out.is_empty();
            false
        }
    })?;
    if too_small {
        return Err(Errno::EINVAL);
    }
    if let Err(error) = uaccess::copy_to_user(buffer, &out) {
        // Nothing was handed out: the next call begins where this one did.
        file.with_position(|position| *position = before);
        return Err(error);
    }
    attributes::file_accessed(&file);
    Ok(out.len())
}

fn getcwd(args: &mut Args) -> Result<usize> {
    let [buffer, len, ..] = args.a;
    let context = context();
    let cwd = context.cwd();
    if cwd.dentry.is_removed() {
        return Err(Errno::ENOENT);
    }
    const UNREACHABLE: &[u8] = b"(unreachable)";
    let (mut text, reachable) = cwd.to_text(&context.root())?;
    let before = if reachable { 0 } else { UNREACHABLE.len() };
    if before + text.len() + 1 > crate::fs::path::PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    text.splice(..0, UNREACHABLE[..before].iter().copied());
    text.push(0);
    if text.len() > len {
        return Err(Errno::ERANGE);
    }
    uaccess::copy_to_user(buffer, &text)?;
    Ok(text.len())
}

/// A directory that the caller may pass through.
fn enterable(place: Path) -> Result<Path> {
    if !place.inode().is_dir() {
        return Err(Errno::ENOTDIR);
    }
    credentials().check(place.inode(), EXECUTE)?;
    Ok(place)
}

fn chdir(args: &mut Args) -> Result<usize> {
    let path = read_path(args.a[0])?;
    let place = resolve(&start(abi::AT_FDCWD, &path)?, &path, true)?;
    context().set_cwd(enterable(place)?);
    Ok(0)
}

fn fchdir(args: &mut Args) -> Result<usize> {
    let file = files().get(args.a[0] as i32)?;
    context().set_cwd(enterable(file.path().clone())?);
    Ok(0)
}

fn chroot(args: &mut Args) -> Result<usize> {
    let path = read_path(args.a[0])?;
    let place = enterable(resolve(&start(abi::AT_FDCWD, &path)?, &path, true)?)?;
    if !crate::process::current().credentials().capable_here(abi::CAP_SYS_CHROOT) {
        return Err(Errno::EPERM);
    }
    context().set_root(place);
    Ok(0)
}

fn pivot_root(args: &mut Args) -> Result<usize> {
    let [new_root, put_old, ..] = args.a;
    MountNamespace::check_may_mount()?;
    let directory = |address: usize| {
        let path = read_path(address)?;
        enterable(resolve(&start(abi::AT_FDCWD, &path)?, &path, true)?)
    };
    let (new_root, put_old) = (directory(new_root)?, directory(put_old)?);
    let old_root = context().root();
    mount::pivot(&old_root, &new_root, put_old)?;
    caller::move_all(&old_root, &new_root);
    Ok(0)
}

fn umask(args: &mut Args) -> Result<usize> {
    Ok(context().set_umask(args.a[0] as u32) as usize)
}
