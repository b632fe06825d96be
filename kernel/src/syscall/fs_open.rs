//! System calls that open and close files.

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::caller::{context, descriptor_limit, files, start_restricted};
use crate::fs::open::{self, KNOWN_FLAGS};
use crate::fs::tmpfs;
use crate::mm::uaccess::{self, read_path};
use crate::namespaces::PidNamespace;

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::open, open),
    (Sysno::openat, openat),
    (Sysno::openat2, openat2),
    (Sysno::creat, creat),
    (Sysno::close, close),
    (Sysno::close_range, close_range),
    (Sysno::memfd_create, memfd_create),
    (Sysno::memfd_secret, memfd_secret),
];

fn open(args: &mut Args) -> Result<usize> {
    let [path, flags, mode, ..] = args.a;
    open_at(abi::AT_FDCWD, path, flags as u32, mode as u32, 0)
}

fn openat(args: &mut Args) -> Result<usize> {
    let [dirfd, path, flags, mode, ..] = args.a;
    open_at(dirfd as i32, path, flags as u32, mode as u32, 0)
}

fn creat(args: &mut Args) -> Result<usize> {
    let [path, mode, ..] = args.a;
    open_at(abi::AT_FDCWD, path, abi::O_CREAT | abi::O_WRONLY | abi::O_TRUNC, mode as u32, 0)
}

fn openat2(args: &mut Args) -> Result<usize> {
    let [dirfd, path, how, size, ..] = args.a;
    const KNOWN: usize = size_of::<abi::open_how>();
    if size < KNOWN {
        return Err(Errno::EINVAL);
    }
    if size > crate::memory::PAGE_SIZE {
        return Err(Errno::E2BIG);
    }
    // A later version of the structure is fine as long as it asks for nothing new.
    let mut extra = alloc::vec![0u8; size - KNOWN];
    uaccess::copy_from_user(&mut extra, how.wrapping_add(KNOWN))?;
    if extra.iter().any(|b| *b != 0) {
        return Err(Errno::E2BIG);
    }
    let how: abi::open_how = uaccess::read_user(how)?;
    const RESOLVE: u64 = (abi::RESOLVE_NO_XDEV
        | abi::RESOLVE_NO_MAGICLINKS
        | abi::RESOLVE_NO_SYMLINKS
        | abi::RESOLVE_BENEATH
        | abi::RESOLVE_IN_ROOT
        | abi::RESOLVE_CACHED) as u64;
    let both = u64::from(abi::RESOLVE_BENEATH | abi::RESOLVE_IN_ROOT);
    if how.flags & !u64::from(KNOWN_FLAGS) != 0 || how.resolve & !RESOLVE != 0 || how.resolve & both == both {
        return Err(Errno::EINVAL);
    }
    let creates = how.flags as u32 & (abi::O_CREAT | abi::O_TMPFILE & !abi::O_DIRECTORY) != 0;
    if how.mode & !0o7777 != 0 || how.mode != 0 && !creates {
        return Err(Errno::EINVAL);
    }
    let allowed_with_path = abi::O_PATH | abi::O_DIRECTORY | abi::O_NOFOLLOW | abi::O_CLOEXEC;
    if how.flags as u32 & abi::O_PATH != 0 && how.flags as u32 & !allowed_with_path != 0 {
        return Err(Errno::EINVAL);
    }
    open_at(dirfd as i32, path, how.flags as u32, how.mode as u32, how.resolve as u32)
}

fn open_at(dirfd: i32, path: usize, flags: u32, mode: u32, resolve: u32) -> Result<usize> {
    let flags = open::check_flags(flags)?;
    let path = read_path(path)?;
    let start = start_restricted(dirfd, &path, resolve)?;
    let mode = mode & 0o7777 & !context().umask();
    let table = files();
    // A table that is full is found out before a file is created.
    let limit = descriptor_limit();
    table.check_room(limit)?;
    let large = if flags & abi::O_PATH == 0 { abi::O_LARGEFILE } else { 0 };
    let file = crate::missing::of_open(&path, open::open(&start, &path, flags | large, mode))?;
    let fd = table.install(file, 0, limit, flags & abi::O_CLOEXEC != 0)?;
    Ok(fd as usize)
}

fn close(args: &mut Args) -> Result<usize> {
    files().close(args.a[0] as i32)?;
    Ok(0)
}

fn close_range(args: &mut Args) -> Result<usize> {
    const CLOSE_RANGE_UNSHARE: u32 = 1 << 1;
    const CLOSE_RANGE_CLOEXEC: u32 = 1 << 2;
    let (first, last, flags) = (args.a[0] as u32, args.a[1] as u32, args.a[2] as u32);
    if flags & !(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC) != 0 || first > last {
        return Err(Errno::EINVAL);
    }
    let mut table = files();
    if flags & CLOSE_RANGE_UNSHARE != 0 && table.is_shared() {
        table = alloc::sync::Arc::new(table.duplicate()?);
        crate::process::current().set_files(Some(table.clone()));
    }
    table.close_range(first as usize, last as usize, flags & CLOSE_RANGE_CLOEXEC != 0);
    Ok(0)
}

fn memfd_create(args: &mut Args) -> Result<usize> {
    const NAME_LIMIT: usize = 249;
    let (name, mut flags) = (args.a[0], args.a[1] as u32);
    let mut known =
        abi::MFD_CLOEXEC | abi::MFD_ALLOW_SEALING | abi::MFD_HUGETLB | abi::MFD_NOEXEC_SEAL | abi::MFD_EXEC;
    if flags & abi::MFD_HUGETLB != 0 {
        known |= abi::MFD_HUGE_MASK << abi::MFD_HUGE_SHIFT;
    }
    let both = abi::MFD_EXEC | abi::MFD_NOEXEC_SEAL;
    if flags & !known != 0 || flags & both == both {
        return Err(Errno::EINVAL);
    }
    let noexec = PidNamespace::of_current().memfd_noexec();
    if flags & both == 0 && noexec >= 1 {
        flags |= abi::MFD_NOEXEC_SEAL;
    }
    if flags & abi::MFD_NOEXEC_SEAL == 0 && noexec >= 2 {
        return Err(Errno::EACCES);
    }
    let name = uaccess::read_cstr(name, NAME_LIMIT, Errno::EINVAL)?;
    let file = if flags & abi::MFD_HUGETLB != 0 {
        crate::hugetlb::memfd(&name, flags)?
    } else {
        tmpfs::memfd(&name, flags)?
    };
    let fd = files().install(file, 0, descriptor_limit(), flags & abi::MFD_CLOEXEC != 0)?;
    Ok(fd as usize)
}

fn memfd_secret(args: &mut Args) -> Result<usize> {
    let flags = args.uint(0);
    if flags & !abi::O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let fd = files().install(tmpfs::secret()?, 0, descriptor_limit(), flags & abi::O_CLOEXEC != 0)?;
    Ok(fd as usize)
}
