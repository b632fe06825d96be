//! The mount calls by descriptors: fsopen(2) and those that go with it.

use alloc::string::String;
use alloc::sync::Arc;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::caller::{descriptor_limit, files, start};
use crate::fs::mount_namespace::MountNamespace;
use crate::fs::path::{Path, resolve};
use crate::fs::{File, mount, mount_context, open, registry};
use crate::memory::PAGE_SIZE;
use crate::mm::uaccess::{read_cstr, read_path, read_user};

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::fsopen, fsopen),
    (Sysno::fsconfig, fsconfig),
    (Sysno::fsmount, fsmount),
    (Sysno::fspick, fspick),
    (Sysno::move_mount, move_mount),
    (Sysno::open_tree, open_tree),
    (Sysno::mount_setattr, mount_setattr),
];

/// In the flags of fsopen(2), fsmount(2) and fspick(2) alike.
const CLOEXEC: u32 = 1;
/// Bytes of a key, with its end.
const KEY: usize = 256;

fn may_mount() -> Result<()> {
    MountNamespace::check_may_mount()
}

fn install(file: Arc<File>, close: bool) -> Result<usize> {
    files().install(file, 0, descriptor_limit(), close).map(|fd| fd as usize)
}

fn text(address: usize, most: usize) -> Result<String> {
    String::from_utf8(read_cstr(address, most - 1, Errno::EINVAL)?).map_err(|_| Errno::EINVAL)
}

/// A place by descriptor and path, as the new calls name it; `empty` says that the path may be.
fn place(dirfd: usize, path: usize, empty: bool, follow: bool) -> Result<Path> {
    let path = read_path(path)?;
    let start = start(dirfd as i32, &path)?;
    match (path.is_empty(), empty) {
        (true, false) => Err(Errno::ENOENT),
        (true, true) => Ok(start.base.clone()),
        (false, _) => resolve(&start, &path, follow),
    }
}

fn fsopen(args: &mut Args) -> Result<usize> {
    let flags = args.uint(1);
    may_mount()?;
    if flags & !CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let kind = text(args.a[0], PAGE_SIZE)?;
    install(mount_context::create(registry::find_for_caller(&kind)?), flags & CLOEXEC != 0)
}

fn fsconfig(args: &mut Args) -> Result<usize> {
    const SET_FLAG: u32 = 0;
    const SET_STRING: u32 = 1;
    const SET_BINARY: u32 = 2;
    const SET_PATH: u32 = 3;
    const SET_PATH_EMPTY: u32 = 4;
    const SET_FD: u32 = 5;
    const CMD_CREATE: u32 = 6;
    const CMD_RECONFIGURE: u32 = 7;
    const CMD_CREATE_EXCL: u32 = 8;
    const AT_FDCWD: i32 = -100;
    let [fd, _, key, value, ..] = args.a;
    let (command, extra) = (args.uint(1), args.int(4));
    if (fd as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    let (has_key, has_value) = (key != 0, value != 0);
    let right = match command {
        SET_FLAG => has_key && !has_value && extra == 0,
        SET_STRING => has_key && has_value && extra == 0,
        SET_BINARY => has_key && has_value && (1..=1 << 20).contains(&extra),
        SET_PATH | SET_PATH_EMPTY => has_key && has_value && (extra == AT_FDCWD || extra >= 0),
        SET_FD => has_key && !has_value && extra >= 0,
        CMD_CREATE | CMD_RECONFIGURE | CMD_CREATE_EXCL => !has_key && !has_value && extra == 0,
        _ => return Err(Errno::EOPNOTSUPP),
    };
    if !right {
        return Err(Errno::EINVAL);
    }
    let file = files().get(fd as i32)?;
    let context = mount_context::context_of(&file)?;
    match command {
        SET_FLAG => context.set(&text(key, KEY)?, None)?,
        SET_STRING => context.set(&text(key, KEY)?, Some(&text(value, KEY)?))?,
        CMD_CREATE | CMD_CREATE_EXCL => {
            may_mount()?;
            context.make()?;
        }
        CMD_RECONFIGURE => {
            may_mount()?;
            context.reconfigure()?;
        }
        // No file system here has such parameters.
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// `MOUNT_ATTR_*` as `MS_*`; `EINVAL` for unknown ones.
fn attributes(bits: u64) -> Result<u32> {
    let known = mount::ATTRIBUTES.iter().fold(abi::MOUNT_ATTR__ATIME, |known, (bit, _)| known | bit);
    let bits = u32::try_from(bits).map_err(|_| Errno::EINVAL)?;
    if bits & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let simple = mount::ATTRIBUTES.iter().filter(|(bit, _)| bits & bit != 0);
    let set = simple.fold(0, |flags, (_, flag)| flags | flag);
    match bits & abi::MOUNT_ATTR__ATIME {
        abi::MOUNT_ATTR_RELATIME => Ok(set | abi::MS_RELATIME),
        abi::MOUNT_ATTR_NOATIME => Ok(set | abi::MS_NOATIME),
        abi::MOUNT_ATTR_STRICTATIME => Ok(set),
        _ => Err(Errno::EINVAL),
    }
}

/// A descriptor for a place.
fn install_place(path: &Path, close: bool) -> Result<usize> {
    let start = start(abi::AT_FDCWD, b"")?;
    install(open::open_place(&start, path, abi::O_PATH)?, close)
}

fn fsmount(args: &mut Args) -> Result<usize> {
    let (fd, flags, bits) = (args.int(0), args.uint(1), args.a[2] as u32);
    may_mount()?;
    if flags & !CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let mount_flags = attributes(bits.into())?;
    let file = files().get(fd)?;
    let path = mount_context::context_of(&file)?.take(mount_flags)?;
    install_place(&path, flags & CLOEXEC != 0)
}

fn fspick(args: &mut Args) -> Result<usize> {
    const SYMLINK_NOFOLLOW: u32 = 2;
    const NO_AUTOMOUNT: u32 = 4;
    const EMPTY_PATH: u32 = 8;
    let [dirfd, path, ..] = args.a;
    let flags = args.uint(2);
    may_mount()?;
    if flags & !(CLOEXEC | SYMLINK_NOFOLLOW | NO_AUTOMOUNT | EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let at = place(dirfd, path, flags & EMPTY_PATH != 0, flags & SYMLINK_NOFOLLOW == 0)?;
    install(mount_context::pick(at)?, flags & CLOEXEC != 0)
}

fn move_mount(args: &mut Args) -> Result<usize> {
    const FROM_SYMLINKS: u32 = 0x1;
    const FROM_EMPTY: u32 = 0x4;
    const TO_SYMLINKS: u32 = 0x10;
    const TO_EMPTY: u32 = 0x40;
    const SET_GROUP: u32 = 0x100;
    const BENEATH: u32 = 0x200;
    const KNOWN: u32 = 0x377;
    let [from_fd, from_path, to_fd, to_path, ..] = args.a;
    let flags = args.uint(4);
    may_mount()?;
    // Nothing is put beneath.
    if flags & !KNOWN != 0 || flags & BENEATH != 0 {
        return Err(Errno::EINVAL);
    }
    let has = |flag: u32| flags & flag != 0;
    let from = place(from_fd, from_path, has(FROM_EMPTY), has(FROM_SYMLINKS))?;
    let to = place(to_fd, to_path, has(TO_EMPTY), has(TO_SYMLINKS))?;
    if has(SET_GROUP) {
        mount::propagation::join(&from, &to)?;
    } else {
        mount::place_or_move(&from, to)?;
    }
    Ok(0)
}

fn open_tree(args: &mut Args) -> Result<usize> {
    const CLONE: u32 = 1;
    let known = CLONE
        | abi::O_CLOEXEC
        | abi::AT_EMPTY_PATH
        | abi::AT_NO_AUTOMOUNT
        | abi::AT_RECURSIVE
        | abi::AT_SYMLINK_NOFOLLOW;
    let [dirfd, path, ..] = args.a;
    let flags = args.uint(2);
    if flags & !known != 0 || flags & (CLONE | abi::AT_RECURSIVE) == abi::AT_RECURSIVE {
        return Err(Errno::EINVAL);
    }
    if flags & CLONE != 0 {
        may_mount()?;
    }
    let has = |flag: u32| flags & flag != 0;
    let mut at = place(dirfd, path, has(abi::AT_EMPTY_PATH), !has(abi::AT_SYMLINK_NOFOLLOW))?;
    if has(CLONE) {
        at = mount::detached_view(&at)?;
    }
    install_place(&at, has(abi::O_CLOEXEC))
}

fn mount_setattr(args: &mut Args) -> Result<usize> {
    const FIRST_VERSION: usize = 32;
    let [dirfd, path, _, attr, size, _] = args.a;
    let flags = args.uint(2);
    let known = abi::AT_EMPTY_PATH | abi::AT_RECURSIVE | abi::AT_SYMLINK_NOFOLLOW | abi::AT_NO_AUTOMOUNT;
    if flags & !known != 0 || size < FIRST_VERSION {
        return Err(Errno::EINVAL);
    }
    if size > PAGE_SIZE {
        return Err(Errno::E2BIG);
    }
    may_mount()?;
    let [set, clear, propagation, namespace]: [u64; 4] = read_user(attr)?;
    for at in FIRST_VERSION..size {
        if read_user::<u8>(attr + at)? != 0 {
            return Err(Errno::E2BIG);
        }
    }
    if [set, clear, propagation, namespace] == [0; 4] {
        return Ok(0);
    }
    let times = u64::from(abi::MOUNT_ATTR__ATIME);
    // A kind of atime is set only in place of the old one.
    if (set | clear) & times != 0 && clear & times != times {
        return Err(Errno::EINVAL);
    }
    if namespace != 0 {
        return Err(Errno::EINVAL);
    }
    let kind = match propagation {
        0 => None,
        _ => {
            let flags = u32::try_from(propagation).map_err(|_| Errno::EINVAL)?;
            if flags & (abi::MS_REC | abi::MS_SILENT) != 0 {
                return Err(Errno::EINVAL);
            }
            Some(mount::propagation::Kind::of_flags(flags)?)
        }
    };
    let simple = |bits: u64| attributes(bits & !times).map(|flags| flags & !abi::MS_RELATIME);
    let (mut add, mut remove) = (simple(set)?, simple(clear)?);
    if clear & times != 0 {
        remove |= abi::MS_RELATIME | abi::MS_NOATIME;
        add |= attributes(set & times)?;
    }
    let follow = flags & abi::AT_SYMLINK_NOFOLLOW == 0;
    let at = place(dirfd, path, flags & abi::AT_EMPTY_PATH != 0, follow)?;
    mount::change_flags(&at, add, remove, kind, flags & abi::AT_RECURSIVE != 0).map(|()| 0)
}
