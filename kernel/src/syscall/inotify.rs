//! inotify: instances and their watches.

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::access;
use crate::fs::caller::{descriptor_limit, files, start};
use crate::fs::inotify::{self, Inotify};
use crate::fs::path;
use crate::mm::uaccess::read_path;

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::inotify_init, inotify_init),
    (Sysno::inotify_init1, inotify_init1),
    (Sysno::inotify_add_watch, inotify_add_watch),
    (Sysno::inotify_rm_watch, inotify_rm_watch),
];

/// What a mask may have in it.
const ALL: u32 = abi::IN_ALL_EVENTS
    | abi::IN_UNMOUNT
    | abi::IN_Q_OVERFLOW
    | abi::IN_IGNORED
    | abi::IN_ONLYDIR
    | abi::IN_DONT_FOLLOW
    | abi::IN_EXCL_UNLINK
    | abi::IN_MASK_ADD
    | abi::IN_MASK_CREATE
    | abi::IN_ISDIR
    | abi::IN_ONESHOT;

fn open(flags: u32) -> Result<usize> {
    if flags & !(abi::O_CLOEXEC | abi::O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = inotify::create(flags)?;
    Ok(files().install(file, 0, descriptor_limit(), flags & abi::O_CLOEXEC != 0)? as usize)
}

fn inotify_init(_: &mut Args) -> Result<usize> {
    open(0)
}

fn inotify_init1(args: &mut Args) -> Result<usize> {
    open(args.uint(0))
}

fn inotify_add_watch(args: &mut Args) -> Result<usize> {
    let mask = args.uint(2);
    if mask & ALL == 0 {
        return Err(Errno::EINVAL);
    }
    let file = files().get(args.int(0))?;
    let both = abi::IN_MASK_ADD | abi::IN_MASK_CREATE;
    if mask & both == both {
        return Err(Errno::EINVAL);
    }
    let inotify = file.ops_as::<Inotify>().ok_or(Errno::EINVAL)?;
    let name = read_path(args.a[1])?;
    let start = start(abi::AT_FDCWD, &name)?;
    let place = path::resolve(&start, &name, mask & abi::IN_DONT_FOLLOW == 0)?;
    if mask & abi::IN_ONLYDIR != 0 && !place.inode().is_dir() {
        return Err(Errno::ENOTDIR);
    }
    start.credentials.check(place.inode(), access::READ)?;
    inotify.add(place.inode(), mask).map(|descriptor| descriptor as usize)
}

fn inotify_rm_watch(args: &mut Args) -> Result<usize> {
    let file = files().get(args.int(0))?;
    file.ops_as::<Inotify>().ok_or(Errno::EINVAL)?.remove(args.int(1)).map(|()| 0)
}
