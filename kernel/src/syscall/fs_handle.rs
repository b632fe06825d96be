//! System calls about file handles.

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::caller::{context, credentials, descriptor_limit, files, start};
use crate::fs::handle::{self, MOST_BYTES};
use crate::fs::open;
use crate::fs::path::{Path, resolve};
use crate::mm::uaccess::{copy_from_user, copy_to_user, read_path, read_user, write_user};

pub const TABLE: &[(Sysno, Handler)] =
    &[(Sysno::name_to_handle_at, name_to_handle_at), (Sysno::open_by_handle_at, open_by_handle_at)];

/// `struct file_handle`, without the handle itself.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    bytes: u32,
    kind: i32,
}

fn name_to_handle_at(args: &mut Args) -> Result<usize> {
    let [dirfd, path, handle, mount, flags, _] = args.a;
    let flags = flags as u32;
    let known =
        abi::AT_SYMLINK_FOLLOW | abi::AT_EMPTY_PATH | abi::AT_HANDLE_FID | abi::AT_HANDLE_MNT_ID_UNIQUE;
    if flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let text = read_path(path)?;
    let from = start(dirfd as i32, &text)?;
    let place = if text.is_empty() && flags & abi::AT_EMPTY_PATH != 0 {
        from.base
    } else {
        resolve(&from, &text, flags & abi::AT_SYMLINK_FOLLOW != 0)?
    };
    let found = handle::of(&place, flags & abi::AT_HANDLE_FID != 0)?;
    let room = read_user::<Header>(handle)?.bytes as usize;
    if room > MOST_BYTES {
        return Err(Errno::EINVAL);
    }
    match flags & abi::AT_HANDLE_MNT_ID_UNIQUE {
        0 => write_user(mount, &(place.mount.id as i32))?,
        _ => write_user(mount, &place.mount.unique_id())?,
    }
    let fits = room >= handle::BYTES;
    // The kind of a handle that there is no room for is none.
    let kind = if fits { found.kind } else { 0xff };
    write_user(handle, &Header { bytes: handle::BYTES as u32, kind })?;
    if !fits {
        return Err(Errno::EOVERFLOW);
    }
    copy_to_user(handle.wrapping_add(size_of::<Header>()), &found.bytes)?;
    Ok(0)
}

fn open_by_handle_at(args: &mut Args) -> Result<usize> {
    let [mount, handle, flags, ..] = args.a;
    let header: Header = read_user(handle)?;
    let len = header.bytes as usize;
    if len == 0 || len > MOST_BYTES {
        return Err(Errno::EINVAL);
    }
    let near: Path = match mount as i32 {
        abi::AT_FDCWD => context().cwd(),
        fd => {
            let file = files().get(fd)?;
            if file.is_path() {
                return Err(Errno::EBADF);
            }
            file.path().clone()
        }
    };
    if !credentials().capable(abi::CAP_DAC_READ_SEARCH) {
        return Err(Errno::EPERM);
    }
    let mut bytes = [0; MOST_BYTES];
    copy_from_user(&mut bytes[..len], handle.wrapping_add(size_of::<Header>()))?;
    let place = handle::find(&near, &bytes[..len])?;
    let flags = open::check_flags(flags as u32)?;
    let (table, limit) = (files(), descriptor_limit());
    table.check_room(limit)?;
    let large = if flags & abi::O_PATH == 0 { abi::O_LARGEFILE } else { 0 };
    let file = open::open_place(&start(abi::AT_FDCWD, b"")?, &place, flags | large)?;
    let fd = table.install(file, 0, limit, flags & abi::O_CLOEXEC != 0)?;
    Ok(fd as usize)
}
