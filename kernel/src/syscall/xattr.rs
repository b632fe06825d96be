//! System calls about extended attributes.

use alloc::vec::Vec;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::caller::{credentials, files, start};
use crate::fs::notify;
use crate::fs::path::{Path, resolve};
use crate::fs::xattr::{self, Mode, NAME_MAX, VALUE_MAX};
use crate::memory::fallible;
use crate::mm::uaccess::{copy_from_user, copy_to_user, read_cstr, read_path};

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::getxattr, |args| get(&followed(args)?, args)),
    (Sysno::lgetxattr, |args| get(&named(args)?, args)),
    (Sysno::fgetxattr, |args| get(&open(args)?, args)),
    (Sysno::setxattr, |args| set(&followed(args)?, args)),
    (Sysno::lsetxattr, |args| set(&named(args)?, args)),
    (Sysno::fsetxattr, |args| set(&open(args)?, args)),
    (Sysno::removexattr, |args| remove(&followed(args)?, args)),
    (Sysno::lremovexattr, |args| remove(&named(args)?, args)),
    (Sysno::fremovexattr, |args| remove(&open(args)?, args)),
    (Sysno::listxattr, |args| list(&followed(args)?, args)),
    (Sysno::llistxattr, |args| list(&named(args)?, args)),
    (Sysno::flistxattr, |args| list(&open(args)?, args)),
];

fn place(args: &Args, follow: bool) -> Result<Path> {
    let text = read_path(args.a[0])?;
    resolve(&start(abi::AT_FDCWD, &text)?, &text, follow)
}

fn followed(args: &Args) -> Result<Path> {
    place(args, true)
}

/// The link itself, where the path names one.
fn named(args: &Args) -> Result<Path> {
    place(args, false)
}

fn open(args: &Args) -> Result<Path> {
    let file = files().get(args.int(0))?;
    if file.is_path() { Err(Errno::EBADF) } else { Ok(file.path().clone()) }
}

fn name(address: usize) -> Result<Vec<u8>> {
    let name = read_cstr(address, NAME_MAX, Errno::ERANGE)?;
    if name.is_empty() { Err(Errno::ERANGE) } else { Ok(name) }
}

/// Gives `bytes` to a caller with room for `size`; one without room asks for the length.
fn give(bytes: &[u8], address: usize, size: usize) -> Result<usize> {
    if size != 0 {
        if bytes.len() > size {
            return Err(Errno::ERANGE);
        }
        copy_to_user(address, bytes)?;
    }
    Ok(bytes.len())
}

fn get(place: &Path, args: &Args) -> Result<usize> {
    let [_, wanted, address, size, ..] = args.a;
    let name = name(wanted)?;
    let copy = |value: &[u8]| -> Result<Vec<u8>> {
        let mut copy = fallible::with_capacity(value.len())?;
        copy.extend_from_slice(value);
        Ok(copy)
    };
    let value = xattr::get(place.inode(), &name, &credentials(), copy)??;
    give(&value, address, size)
}

fn set(place: &Path, args: &Args) -> Result<usize> {
    let [_, wanted, address, size, flags, _] = args.a;
    place.mount.check_writable()?;
    let mode = match flags as u32 {
        0 => Mode::Any,
        abi::XATTR_CREATE => Mode::Create,
        abi::XATTR_REPLACE => Mode::Replace,
        both if both == abi::XATTR_CREATE | abi::XATTR_REPLACE => Mode::Nothing,
        _ => return Err(Errno::EINVAL),
    };
    let name = name(wanted)?;
    if size > VALUE_MAX {
        return Err(Errno::E2BIG);
    }
    let mut value = fallible::filled(0, size)?;
    copy_from_user(&mut value, address)?;
    xattr::set(place.inode(), &name, value, mode, &credentials())?;
    notify::happened(&place.dentry, abi::IN_ATTRIB);
    Ok(0)
}

fn remove(place: &Path, args: &Args) -> Result<usize> {
    place.mount.check_writable()?;
    let name = name(args.a[1])?;
    xattr::remove(place.inode(), &name, &credentials())?;
    notify::happened(&place.dentry, abi::IN_ATTRIB);
    Ok(0)
}

fn list(place: &Path, args: &Args) -> Result<usize> {
    let [_, address, size, ..] = args.a;
    give(&xattr::list(place.inode(), &credentials())?, address, size)
}
