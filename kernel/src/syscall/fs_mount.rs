//! System calls that mount and unmount.

use alloc::string::String;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::caller::{context, start};
use crate::fs::mount::{self, MOUNT_FLAGS, Mount};
use crate::fs::mount_namespace::{MountNamespace, check_own};
use crate::fs::path::{PATH_MAX, resolve};
use crate::fs::registry::{self, MountRequest};
use crate::memory::PAGE_SIZE;
use crate::mm::uaccess::{self, read_path};

pub const TABLE: &[(Sysno, Handler)] =
    &[(Sysno::mount, mount_call), (Sysno::umount2, umount2), (Sysno::sysfs, sysfs)];

/// A string argument that may be missing; at most a page, as Linux has it.
fn text(address: usize) -> Result<String> {
    if address == 0 {
        return Ok(String::new());
    }
    let bytes = uaccess::read_cstr(address, PAGE_SIZE - 1, Errno::EINVAL)?;
    String::from_utf8(bytes).map_err(|_| Errno::EINVAL)
}

fn mount_call(args: &mut Args) -> Result<usize> {
    let [source, target, kind, flags, data, _] = args.a;
    let mut flags = flags as u32;
    if flags & abi::MS_MGC_MSK == abi::MS_MGC_VAL {
        flags &= !abi::MS_MGC_MSK;
    }
    let kind = text(kind)?;
    let source_text = text(source)?;
    let options = text(data)?;
    let path = read_path(target)?;
    let at = resolve(&start(abi::AT_FDCWD, &path)?, &path, true)?;
    MountNamespace::check_may_mount()?;
    // What an ordinary mount gets unless it asks for something else.
    let mut mount_flags = flags & MOUNT_FLAGS;
    if flags & (abi::MS_NOATIME | abi::MS_STRICTATIME) == 0 {
        mount_flags |= abi::MS_RELATIME;
    } else {
        mount_flags &= !abi::MS_RELATIME;
    }
    const ANY_TIMES: u32 = mount::TIMES | abi::MS_STRICTATIME;
    if flags & abi::MS_REMOUNT != 0 && flags & ANY_TIMES == 0 {
        // How access times are kept stays unless it is said.
        mount_flags = mount_flags & !mount::TIMES | at.mount.flags() & mount::TIMES;
    }
    if flags & abi::MS_REMOUNT != 0 {
        check_own(&at)?;
        mount::remount(&at, mount_flags, flags & abi::MS_BIND != 0, &options)?;
    } else if flags & abi::MS_BIND != 0 {
        let start = start(abi::AT_FDCWD, source_text.as_bytes())?;
        let from = resolve(&start, source_text.as_bytes(), true)?;
        mount::bind(&from, at, flags & abi::MS_REC != 0)?;
    } else if flags & (abi::MS_SHARED | abi::MS_PRIVATE | abi::MS_SLAVE | abi::MS_UNBINDABLE) != 0 {
        let kind = mount::propagation::Kind::of_flags(flags)?;
        mount::propagation::set_kind(&at, kind, flags & abi::MS_REC != 0)?;
    } else if flags & abi::MS_MOVE != 0 {
        let start = start(abi::AT_FDCWD, source_text.as_bytes())?;
        let from = resolve(&start, source_text.as_bytes(), true)?;
        mount::relocate(&from, at)?;
    } else {
        let create = registry::find_for_caller(&kind)?;
        let source = if source == 0 { "none" } else { &source_text };
        let root = create(&MountRequest { source, options: &options })?;
        let read_only = if flags & abi::MS_RDONLY != 0 { root.inode.superblock.begin_read_only() } else { 0 };
        let new = Mount::new(root, source, mount_flags | read_only);
        mount::check_reveals_nothing(&new)?;
        mount::attach(&new, at)?;
    }
    Ok(0)
}

/// The types of file systems by number: of a name, the name of a number, how many there are.
fn sysfs(args: &mut Args) -> Result<usize> {
    let names = registry::names();
    match args.uint(0) {
        1 => {
            let name = uaccess::read_path(args.a[1])?;
            names.iter().position(|known| known.as_bytes() == name).ok_or(Errno::EINVAL)
        }
        2 => {
            let name = names.get(args.a[1]).ok_or(Errno::EINVAL)?;
            uaccess::copy_to_user(args.a[2], name.as_bytes())?;
            uaccess::copy_to_user(args.a[2] + name.len(), &[0])?;
            Ok(0)
        }
        3 => Ok(names.len()),
        _ => Err(Errno::EINVAL),
    }
}

fn umount2(args: &mut Args) -> Result<usize> {
    let [target, flags, ..] = args.a;
    let flags = flags as u32;
    let known = abi::MNT_FORCE | abi::MNT_DETACH | abi::UMOUNT_NOFOLLOW;
    // MNT_EXPIRE would need to know when a mount was last used.
    if flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let path = uaccess::read_cstr(target, PATH_MAX - 1, Errno::ENAMETOOLONG)?;
    let at = resolve(&start(abi::AT_FDCWD, &path)?, &path, flags & abi::UMOUNT_NOFOLLOW == 0)?;
    MountNamespace::check_may_mount()?;
    mount::end::unmount(at, flags & abi::MNT_DETACH != 0, &context().root())?;
    Ok(0)
}
