//! System calls about descriptors: dup, fcntl, flock, ioctl.

use alloc::sync::Arc;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::caller::{credentials, descriptor_limit, files};
use crate::fs::fdtable::FdTable;
use crate::fs::locks::{Owner, RecordLock};
use crate::fs::owner::FileOwner;
use crate::fs::{File, FileType, lease, notify};
use crate::mm::uaccess;
use crate::namespaces::View;

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::dup, dup),
    (Sysno::dup2, dup2),
    (Sysno::dup3, dup3),
    (Sysno::fcntl, fcntl),
    (Sysno::flock, flock),
    (Sysno::ioctl, ioctl),
];

fn dup(args: &mut Args) -> Result<usize> {
    let table = files();
    let file = table.get(args.a[0] as i32)?;
    table.install(file, 0, descriptor_limit(), false).map(|fd| fd as usize)
}

fn dup2(args: &mut Args) -> Result<usize> {
    let [old, new, ..] = args.a;
    if old as i32 == new as i32 {
        files().get(old as i32)?;
        return Ok(old as u32 as usize);
    }
    duplicate_to(old as i32, new as i32, false)
}

fn dup3(args: &mut Args) -> Result<usize> {
    let [old, new, flags, ..] = args.a;
    if flags as u32 & !abi::O_CLOEXEC != 0 || old as i32 == new as i32 {
        return Err(Errno::EINVAL);
    }
    duplicate_to(old as i32, new as i32, flags as u32 & abi::O_CLOEXEC != 0)
}

fn duplicate_to(old: i32, new: i32, close_on_exec: bool) -> Result<usize> {
    let table = files();
    let file = table.get(old)?;
    table.replace(new, file, descriptor_limit(), close_on_exec).map_err(|error| match error {
        // As in Linux: over `fs.nr_open`.
        Errno::EMFILE => Errno::EBADF,
        error => error,
    })?;
    Ok(new as usize)
}

/// Did the open(2) that the file is from make it?
const F_CREATED_QUERY: u32 = 1028;

fn fcntl(args: &mut Args) -> Result<usize> {
    let [fd, command, argument, ..] = args.a;
    let (fd, command) = (fd as i32, command as u32);
    let table = files();
    let file = table.get(fd)?;
    // What may be done with a mere reference to a place.
    let for_any = matches!(
        command,
        abi::F_DUPFD | abi::F_DUPFD_CLOEXEC | abi::F_GETFD | abi::F_SETFD | abi::F_GETFL | abi::F_DUPFD_QUERY
    );
    if file.is_path() && !for_any {
        return Err(Errno::EBADF);
    }
    match command {
        abi::F_DUPFD | abi::F_DUPFD_CLOEXEC => {
            let limit = descriptor_limit();
            let min = usize::try_from(argument as i32).ok().filter(|m| *m < limit).ok_or(Errno::EINVAL)?;
            let fd = table.install(file, min, limit, command == abi::F_DUPFD_CLOEXEC)?;
            Ok(fd as usize)
        }
        abi::F_GETFD => Ok(table.close_on_exec(fd)?.into()),
        abi::F_SETFD => {
            table.set_close_on_exec(fd, argument as u32 & abi::FD_CLOEXEC != 0)?;
            Ok(0)
        }
        abi::F_GETFL => Ok(file.flags() as usize),
        abi::F_SETFL => {
            let turned_on = argument as u32 & !file.flags();
            if turned_on & abi::O_NOATIME != 0 && !credentials().owns(file.inode()) {
                return Err(Errno::EPERM);
            }
            let mut flags = argument as u32;
            if !file.ops().signals_readiness() {
                flags = flags & !abi::FASYNC | file.flags() & abi::FASYNC;
            }
            file.set_flags(flags)?;
            file.set_asynchronous(fd, flags & abi::FASYNC != 0)?;
            Ok(0)
        }
        abi::F_DUPFD_QUERY => Ok(table.get(argument as i32).is_ok_and(|f| Arc::ptr_eq(&f, &file)).into()),
        F_CREATED_QUERY => Ok(file.is_new().into()),
        abi::F_GETLK | abi::F_SETLK | abi::F_SETLKW => {
            record_lock(&table, fd, &file, command, argument, false)
        }
        abi::F_OFD_GETLK | abi::F_OFD_SETLK | abi::F_OFD_SETLKW => {
            record_lock(&table, fd, &file, command, argument, true)
        }
        abi::F_GETOWN => {
            let (kind, id) = file.owner().shown();
            let id = if kind == abi::F_OWNER_PGRP { -id } else { id };
            Ok(id as isize as usize)
        }
        abi::F_SETOWN => {
            let id = argument as i32;
            let (kind, id) = if id < 0 {
                (abi::F_OWNER_PGRP, id.checked_neg().ok_or(Errno::EINVAL)?)
            } else {
                (abi::F_OWNER_PID, id)
            };
            file.set_owner(FileOwner::find(kind, id)?);
            Ok(0)
        }
        abi::F_GETOWN_EX => {
            let (kind, id) = file.owner().shown();
            let out = abi::f_owner_ex { type_: kind as i32, pid: id };
            uaccess::write_user(argument, &out)?;
            Ok(0)
        }
        abi::F_SETOWN_EX => {
            let new: abi::f_owner_ex = uaccess::read_user(argument)?;
            let kind = new.type_ as u32;
            if kind > abi::F_OWNER_PGRP {
                return Err(Errno::EINVAL);
            }
            file.set_owner(FileOwner::find(kind, new.pid)?);
            Ok(0)
        }
        abi::F_GETSIG => Ok(file.owner().signal as usize),
        abi::F_SETSIG => {
            let signal = argument as i32;
            if !(0..=64).contains(&signal) {
                return Err(Errno::EINVAL);
            }
            file.set_signal(signal);
            Ok(0)
        }
        abi::F_GETOWNER_UIDS => uaccess::write_user(argument, &file.owner().users()).map(|()| 0),
        abi::F_GETLEASE => Ok(lease::get(&file) as usize),
        abi::F_SETLEASE => lease::set(&file, fd, argument as u32).map(|()| 0),
        abi::F_NOTIFY => notify::note(&file, fd, argument as u32).map(|()| 0),
        // Before it is asked whether the file has seals.
        abi::F_ADD_SEALS if !file.writable() => Err(Errno::EPERM),
        _ => file.ops().fcntl(&file, command, argument),
    }
}

fn record_lock(
    table: &FdTable,
    fd: i32,
    file: &Arc<File>,
    command: u32,
    address: usize,
    by_file: bool,
) -> Result<usize> {
    let mut request: abi::flock = uaccess::read_user(address)?;
    if by_file && request.l_pid != 0 {
        return Err(Errno::EINVAL);
    }
    let base = match request.l_whence as u32 {
        abi::SEEK_SET => 0,
        abi::SEEK_CUR => file.position() as i64,
        abi::SEEK_END => file.inode().stat().size as i64,
        _ => return Err(Errno::EINVAL),
    };
    let at = base.checked_add(request.l_start).ok_or(Errno::EOVERFLOW)?;
    // A negative length is the part in front.
    let (start, end) = match request.l_len {
        0 => (at, None),
        len if len > 0 => (at, Some(at.checked_add(len - 1).ok_or(Errno::EOVERFLOW)?)),
        len => (at.checked_add(len).ok_or(Errno::EINVAL)?, Some(at - 1)),
    };
    let start = u64::try_from(start).map_err(|_| Errno::EINVAL)?;
    let end = end.map_or(u64::MAX, |end| end as u64);
    let owner = if by_file { Owner::OpenFile(file.id()) } else { Owner::Table(table.id()) };
    let kind = request.l_type as u32;
    let locks = &file.inode().locks;
    let get = matches!(command, abi::F_GETLK | abi::F_OFD_GETLK);
    if kind == abi::F_UNLCK && !get {
        locks.unlock_record(owner, start, end);
        return Ok(0);
    }
    let exclusive = match kind {
        abi::F_RDLCK => false,
        abi::F_WRLCK => true,
        // It asks for the open file's own locks.
        abi::F_UNLCK if by_file => false,
        _ => return Err(Errno::EINVAL),
    };
    let pid = if by_file { -1 } else { crate::process::current().process.pid as i32 };
    let wanted = RecordLock { owner, exclusive, start, end, pid };
    if get {
        let found = if kind == abi::F_UNLCK { locks.own(&wanted) } else { locks.conflict(&wanted) };
        match found {
            None => request.l_type = abi::F_UNLCK as i16,
            Some(lock) => {
                request.l_type = if lock.exclusive { abi::F_WRLCK } else { abi::F_RDLCK } as i16;
                request.l_whence = abi::SEEK_SET as i16;
                request.l_start = lock.start as i64;
                // A lock to the last byte that there can be is one to the end.
                request.l_len = match lock.end >= i64::MAX as u64 {
                    true => 0,
                    false => (lock.end - lock.start + 1) as i64,
                };
                request.l_pid =
                    if lock.pid > 0 { View::current().number(lock.pid as u32) as i32 } else { lock.pid };
            }
        }
        uaccess::write_user(address, &request)?;
        return Ok(0);
    }
    if exclusive && !file.writable() || !exclusive && !file.readable() {
        return Err(Errno::EBADF);
    }
    locks.lock_record(wanted, matches!(command, abi::F_SETLKW | abi::F_OFD_SETLKW))?;
    // A close of the descriptor gives up what was held then. One that came before the lock was taken did not find it, and nobody would
    // give it up any more.
    if !by_file && !table.get(fd).is_ok_and(|now| Arc::ptr_eq(&now, file)) {
        locks.unlock_record(owner, start, end);
        return Err(Errno::EBADF);
    }
    Ok(0)
}

fn flock(args: &mut Args) -> Result<usize> {
    let [fd, operation, ..] = args.a;
    let file = files().get(fd as i32)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    let wait = operation as u32 & abi::LOCK_NB == 0;
    let locks = &file.inode().locks;
    match operation as u32 & !abi::LOCK_NB {
        abi::LOCK_SH => locks.lock_whole(file.id(), false, wait)?,
        abi::LOCK_EX => locks.lock_whole(file.id(), true, wait)?,
        abi::LOCK_UN => locks.unlock_whole(file.id()),
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

const FIONCLEX: u32 = 0x5450;
const FIOCLEX: u32 = 0x5451;
const FIONBIO: u32 = 0x5421;
const FIOASYNC: u32 = 0x5452;
const FIONREAD: u32 = 0x541b;
const FIOQSIZE: u32 = 0x5460;
const FIGETBSZ: u32 = 2;

fn ioctl(args: &mut Args) -> Result<usize> {
    let command = args.a[1] as u32;
    crate::missing::of_ioctl(command, do_ioctl(args))
}

fn do_ioctl(args: &mut Args) -> Result<usize> {
    let [fd, command, argument, ..] = args.a;
    let (fd, command) = (fd as i32, command as u32);
    let table = files();
    let file = table.get(fd)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    let set_flag = |flag: u32| {
        let on = uaccess::read_user::<i32>(argument)? != 0;
        let flags = file.flags();
        file.set_flags(if on { flags | flag } else { flags & !flag })?;
        Ok(0)
    };
    let kind = file.inode().kind;
    match command {
        FIOCLEX | FIONCLEX => {
            table.set_close_on_exec(fd, command == FIOCLEX)?;
            Ok(0)
        }
        FIONBIO => set_flag(abi::O_NONBLOCK),
        FIOASYNC => {
            let on = uaccess::read_user::<i32>(argument)? != 0;
            if !file.ops().signals_readiness() && on != (file.flags() & abi::FASYNC != 0) {
                return Err(Errno::ENOTTY);
            }
            set_flag(abi::FASYNC)?;
            file.set_asynchronous(fd, on).map(|()| 0)
        }
        FIOQSIZE if matches!(kind, FileType::Regular | FileType::Directory | FileType::Symlink) => {
            uaccess::write_user(argument, &file.inode().stat().size)?;
            Ok(0)
        }
        FIONREAD if kind == FileType::Regular => {
            // Files of processes' memory have positions of all 64 bits.
            let left = file.inode().stat().size.wrapping_sub(file.position());
            uaccess::write_user(argument, &(left as i32))?;
            Ok(0)
        }
        FIGETBSZ if matches!(kind, FileType::Regular | FileType::Directory) => {
            uaccess::write_user(argument, &(file.inode().stat().block_size as i32))?;
            Ok(0)
        }
        _ => file.ops().ioctl(&file, command, argument),
    }
}
