//! System calls: processes, their start, their end, who they are.

use core::sync::atomic::Ordering;

use alloc::sync::Arc;
use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::arch::context;
use crate::cgroup;
use crate::errno::{Errno, Result};
use crate::mm::uaccess::{copy_from_user, read_user, read_user_array, write_user};
use crate::namespaces::{self, View};
use crate::process::{self, CloneArgs, IdKind, WaitFlags, WaitStatus, Waited, exit, rseq};
use crate::signal::{SigInfo, UserSigInfo};

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::clone, clone),
    (Sysno::clone3, clone3),
    (Sysno::fork, fork),
    (Sysno::vfork, vfork),
    (Sysno::execve, execve),
    (Sysno::execveat, execveat),
    (Sysno::exit, exit_thread),
    (Sysno::exit_group, exit_group),
    (Sysno::wait4, wait4),
    (Sysno::waitid, waitid),
    (Sysno::getpid, getpid),
    (Sysno::gettid, gettid),
    (Sysno::getppid, getppid),
    (Sysno::setpgid, setpgid),
    (Sysno::getpgid, getpgid),
    (Sysno::getpgrp, getpgrp),
    (Sysno::setsid, setsid),
    (Sysno::getsid, getsid),
    (Sysno::vhangup, vhangup),
    (Sysno::set_tid_address, set_tid_address),
    (Sysno::arch_prctl, arch_prctl),
    (Sysno::rseq, rseq_register),
    (Sysno::unshare, unshare),
    (Sysno::setns, setns),
    (Sysno::pidfd_open, pidfd_open),
    (Sysno::personality, personality),
];

fn do_clone(args: CloneArgs, frame: &mut Args) -> Result<usize> {
    process::clone(args, frame.frame).map(|tid| tid as usize)
}

fn clone(args: &mut Args) -> Result<usize> {
    let flags = args.a[0] as u64 & 0xffff_ffff;
    // clone(2) returns the pidfd where clone3(2) has the parent's number: one excludes the other.
    if flags & u64::from(abi::CLONE_PIDFD) != 0 && flags & u64::from(abi::CLONE_PARENT_SETTID) != 0 {
        return Err(Errno::EINVAL);
    }
    let parts = CloneArgs {
        flags: flags & !0xff,
        exit_signal: (flags & 0xff) as u32,
        stack: args.a[1] as u64,
        parent_tid: args.a[2],
        pidfd: args.a[2],
        child_tid: args.a[3],
        tls: args.a[4] as u64,
        ..CloneArgs::default()
    };
    do_clone(parts, args)
}

/// `struct clone_args`, all versions.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Clone3 {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

fn clone3(args: &mut Args) -> Result<usize> {
    const FIRST_VERSION: usize = 64;
    let (address, size) = (args.a[0], args.a[1]);
    if size > crate::memory::PAGE_SIZE {
        return Err(Errno::E2BIG);
    }
    if size < FIRST_VERSION {
        return Err(Errno::EINVAL);
    }
    let mut bytes = [0u8; size_of::<Clone3>()];
    let known = size.min(bytes.len());
    copy_from_user(&mut bytes[..known], address)?;
    // Fields of a future version must not be used.
    for index in known..size {
        if read_user::<u8>(address + index)? != 0 {
            return Err(Errno::E2BIG);
        }
    }
    let words: [u64; size_of::<Clone3>() / 8] = core::array::from_fn(|index| {
        u64::from_ne_bytes(core::array::from_fn(|byte| bytes[index * 8 + byte]))
    });
    let [
        flags,
        pidfd,
        child_tid,
        parent_tid,
        exit_signal,
        stack,
        stack_size,
        tls,
        set_tid,
        set_tid_size,
        cgroup,
    ] = words;
    const DEEPEST: u64 = 32;
    const KNOWN: u64 = 0x3_ffff_ffff;
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let csignal = u64::from(abi::CSIGNAL);
    // A clone3 without a stack has the parent's; one with a stack says where it begins.
    let bad_stack = (stack == 0) != (stack_size == 0);
    let detached = u64::from(abi::CLONE_DETACHED);
    let both_numbers = u64::from(abi::CLONE_PIDFD | abi::CLONE_PARENT_SETTID);
    if flags & !KNOWN != 0
        // One would overwrite the other.
        || flags & both_numbers == both_numbers && pidfd == parent_tid
        || flags & (csignal | detached) & !u64::from(abi::CLONE_NEWTIME) != 0
        || flags & INTO_CGROUP != 0 && (cgroup > i32::MAX as u64 || size < size_of::<Clone3>())
        || set_tid_size > DEEPEST
        || (set_tid == 0) != (set_tid_size == 0)
        || bad_stack
        || exit_signal > 64
    {
        return Err(Errno::EINVAL);
    }
    let thread_or_parent = u64::from(abi::CLONE_THREAD | abi::CLONE_PARENT);
    if flags & thread_or_parent != 0 && exit_signal != 0 {
        return Err(Errno::EINVAL);
    }
    let top = stack.checked_add(stack_size).ok_or(Errno::EINVAL)?;
    let parts = CloneArgs {
        flags,
        exit_signal: exit_signal as u32,
        stack: top,
        parent_tid: parent_tid as usize,
        pidfd: pidfd as usize,
        child_tid: child_tid as usize,
        tls,
        set_tid: read_user_array(set_tid as usize, set_tid_size as usize)?,
        cgroup: if flags & INTO_CGROUP == 0 {
            cgroup::Into::Parent
        } else {
            let file = process::current().files().get(cgroup as i32)?;
            cgroup::check_clone(&cgroup::group_of(&file)?, flags & u64::from(abi::CLONE_THREAD) != 0)?
        },
    };
    do_clone(parts, args)
}

fn fork(args: &mut Args) -> Result<usize> {
    do_clone(CloneArgs { exit_signal: crate::signal::SIGCHLD, ..CloneArgs::default() }, args)
}

fn vfork(args: &mut Args) -> Result<usize> {
    let flags = u64::from(abi::CLONE_VFORK | abi::CLONE_VM);
    do_clone(CloneArgs { flags, exit_signal: crate::signal::SIGCHLD, ..CloneArgs::default() }, args)
}

fn execve(args: &mut Args) -> Result<usize> {
    process::execve(abi::AT_FDCWD, args.a[0], args.a[1], args.a[2], 0, args.frame)
}

fn execveat(args: &mut Args) -> Result<usize> {
    process::execve(args.int(0), args.a[1], args.a[2], args.a[3], args.uint(4), args.frame)
}

fn exit_thread(args: &mut Args) -> Result<usize> {
    exit::exit_thread(args.a[0] as u8)
}

fn exit_group(args: &mut Args) -> Result<usize> {
    exit::end_process(WaitStatus::Exited(args.a[0] as u8))
}

fn wait4(args: &mut Args) -> Result<usize> {
    let (pid, options) = (args.int(0), args.uint(2));
    let known =
        abi::WNOHANG | abi::WUNTRACED | abi::WCONTINUED | abi::__WNOTHREAD | abi::__WCLONE | abi::__WALL;
    if options & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let kind = match pid {
        -1 => IdKind::All,
        0 => IdKind::Group(process::current().process.pgid()),
        i32::MIN => return Err(Errno::ESRCH),
        pid if pid < 0 => IdKind::Group(child_number(pid.unsigned_abs())?),
        pid => IdKind::Pid(child_number(pid as u32)?),
    };
    let flags = WaitFlags {
        no_hang: options & abi::WNOHANG != 0,
        exited: true,
        stopped: options & abi::WUNTRACED != 0,
        continued: options & abi::WCONTINUED != 0,
        keep: false,
        clones_only: options & abi::__WCLONE != 0,
        clones_too: options & abi::__WALL != 0,
    };
    let Some(waited) = process::wait(kind, flags)? else { return Ok(0) };
    if args.a[1] != 0 {
        write_user(args.a[1], &waited.status.to_bits())?;
    }
    if args.a[3] != 0 {
        super::system::write_usage(args.a[3], &waited.usage)?;
    }
    Ok(waited.pid as usize)
}

/// The kernel's number for one that wait(2) is given; `ECHILD` when it is nobody's.
fn child_number(number: u32) -> Result<u32> {
    View::current().global(number).ok_or(Errno::ECHILD)
}

fn waitid(args: &mut Args) -> Result<usize> {
    let (id, options) = (args.int(1), args.uint(3));
    let states = abi::WEXITED | abi::WSTOPPED | abi::WCONTINUED;
    let known = states | abi::WNOHANG | abi::WNOWAIT | abi::__WNOTHREAD | abi::__WCLONE | abi::__WALL;
    if options & !known != 0 || options & states == 0 {
        return Err(Errno::EINVAL);
    }
    let mut no_hang = options & abi::WNOHANG != 0;
    let file;
    let kind = match args.uint(0) {
        abi::P_ALL => IdKind::All,
        abi::P_PID if id > 0 => IdKind::Pid(child_number(id as u32)?),
        abi::P_PGID if id == 0 => IdKind::Group(process::current().process.pgid()),
        abi::P_PGID if id > 0 => IdKind::Group(child_number(id as u32)?),
        abi::P_PIDFD if id >= 0 => {
            file = process::current().files().get(id)?;
            no_hang |= file.nonblocking();
            process::pidfd::id_of(&file).ok_or(Errno::EBADF)?
        }
        _ => return Err(Errno::EINVAL),
    };
    let flags = WaitFlags {
        no_hang,
        exited: options & abi::WEXITED != 0,
        stopped: options & abi::WSTOPPED != 0,
        continued: options & abi::WCONTINUED != 0,
        keep: options & abi::WNOWAIT != 0,
        clones_only: options & abi::__WCLONE != 0,
        clones_too: options & abi::__WALL != 0,
    };
    let waited = process::wait(kind, flags)?;
    if waited.is_none() && no_hang && options & abi::WNOHANG == 0 {
        // The pidfd is non-blocking, the call is not.
        return Err(Errno::EAGAIN);
    }
    if args.a[2] != 0 {
        let info = waited.as_ref().map_or(SigInfo::new_empty(), info_of);
        write_user(args.a[2], &UserSigInfo::from(info))?;
    }
    if let Some(waited) = &waited
        && args.a[4] != 0
    {
        super::system::write_usage(args.a[4], &waited.usage)?;
    }
    Ok(0)
}

/// What waitid(2) says of a child: the times are not filled in, as on Linux.
fn info_of(waited: &Waited) -> SigInfo {
    let (code, status) = waited.status.to_siginfo();
    let uid = process::current().credentials().shown_uid(waited.uid);
    SigInfo::child(code, waited.pid, uid, status, 0, 0)
}

fn getpid(_: &mut Args) -> Result<usize> {
    Ok(process::current().process.number() as usize)
}

fn gettid(_: &mut Args) -> Result<usize> {
    Ok(process::current().number() as usize)
}

fn getppid(_: &mut Args) -> Result<usize> {
    let thread = process::current();
    Ok(View::of(&thread.process).parent(&thread.process) as usize)
}

fn setpgid(args: &mut Args) -> Result<usize> {
    let (pid, pgid) = (args.int(0), args.int(1));
    if pgid < 0 {
        return Err(Errno::EINVAL);
    }
    let pid = u32::try_from(pid).map_err(|_| Errno::ESRCH)?;
    process::setpgid(pid, pgid as u32).map(|()| 0)
}

fn getpgid(args: &mut Args) -> Result<usize> {
    let pid = u32::try_from(args.int(0)).map_err(|_| Errno::ESRCH)?;
    process::getpgid(pid).map(|pgid| pgid as usize)
}

fn getpgrp(_: &mut Args) -> Result<usize> {
    let process = process::current().process.clone();
    Ok(View::of(&process).number(process.pgid()) as usize)
}

fn vhangup(_: &mut Args) -> Result<usize> {
    crate::tty::job::vhangup().map(|()| 0)
}

fn setsid(_: &mut Args) -> Result<usize> {
    process::setsid().map(|sid| sid as usize)
}

fn getsid(args: &mut Args) -> Result<usize> {
    let pid = u32::try_from(args.int(0)).map_err(|_| Errno::ESRCH)?;
    process::getsid(pid).map(|sid| sid as usize)
}

fn set_tid_address(args: &mut Args) -> Result<usize> {
    let thread = process::current();
    thread.clear_child_tid.store(args.a[0], Ordering::SeqCst);
    Ok(thread.number() as usize)
}

fn arch_prctl(args: &mut Args) -> Result<usize> {
    const SET_GS: u32 = 0x1001;
    const SET_FS: u32 = 0x1002;
    const GET_FS: u32 = 0x1003;
    const GET_GS: u32 = 0x1004;
    let value = args.a[1] as u64;
    match args.uint(0) {
        SET_GS | SET_FS if value >= crate::memory::USER_END => return Err(Errno::EPERM),
        SET_GS => context::set_gs_base(value),
        SET_FS => context::set_fs_base(value),
        GET_FS => write_user(args.a[1], &context::fs_base())?,
        GET_GS => write_user(args.a[1], &context::gs_base())?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn rseq_register(args: &mut Args) -> Result<usize> {
    rseq::register(&process::current(), args.a[0], args.uint(1), args.uint(2), args.uint(3))
}

fn unshare(args: &mut Args) -> Result<usize> {
    let flags = namespaces::implied(args.uint(0));
    let thread = process::current();
    let needs_one_thread = abi::CLONE_THREAD | abi::CLONE_SIGHAND | abi::CLONE_VM;
    let known = needs_one_thread | abi::CLONE_FS | abi::CLONE_FILES | abi::CLONE_SYSVSEM;
    if flags & !(known | namespaces::ALL_FLAGS) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & needs_one_thread != 0 && thread.process.thread_count() > 1 {
        return Err(Errno::EINVAL);
    }
    // Before anything has changed: it may fail. What nobody shares stays, with the record locks that belong to it.
    let files = match thread.files() {
        files if flags & abi::CLONE_FILES != 0 && files.is_shared() => Some(Arc::new(files.duplicate()?)),
        _ => None,
    };
    let old_context = thread.fs();
    if flags & abi::CLONE_FS != 0 {
        let copy = old_context.duplicate();
        thread.set_fs(Some(Arc::new(copy)));
    }
    if let Err(error) = namespaces::unshare(flags) {
        // All or nothing.
        thread.set_fs(Some(old_context));
        return Err(error);
    }
    if flags & abi::CLONE_SYSVSEM != 0 {
        thread.leave_undo_list();
    }
    if files.is_some() {
        thread.set_files(files);
    }
    Ok(0)
}

fn setns(args: &mut Args) -> Result<usize> {
    let (fd, kind) = (args.int(0), args.uint(1));
    let file = process::current().files().get(fd)?;
    if let Some(namespace) = namespaces::file::namespace_of(&file) {
        return namespaces::setns(namespace, kind).map(|()| 0);
    }
    let target = process::pidfd::process_of(&file).ok_or(Errno::EINVAL)?;
    super::mm::check_may_access(&target)?;
    namespaces::set_all_of(&target, kind).map(|()| 0)
}

fn pidfd_open(args: &mut Args) -> Result<usize> {
    let (pid, flags) = (args.int(0), args.uint(1));
    if pid <= 0 || flags & !(abi::O_NONBLOCK | process::pidfd::THREAD) != 0 {
        return Err(Errno::EINVAL);
    }
    let thread = process::find_thread(pid as u32).ok_or(Errno::ESRCH)?;
    if flags & process::pidfd::THREAD == 0 && !thread.is_leader() {
        return Err(Errno::ENOENT);
    }
    process::pidfd::open(&thread, flags).map(|fd| fd as usize)
}

fn personality(args: &mut Args) -> Result<usize> {
    const QUERY: u32 = u32::MAX;
    let process = &process::current().process;
    let old = process.personality.load(Ordering::SeqCst);
    if args.uint(0) != QUERY {
        process.personality.store(args.uint(0), Ordering::SeqCst);
    }
    Ok(old as usize)
}
