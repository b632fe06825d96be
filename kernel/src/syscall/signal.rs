//! System calls: signals.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::proc;
use crate::mm::uaccess::{read_user, write_user};
use crate::namespaces::View;
use crate::namespaces::user::OVERFLOW_ID;
use crate::process::{self, Target, Thread};
use crate::sched::{self, Sleep};
use crate::signal::{self, Action, AltStack, SIGKILL, SIGSTOP, SigInfo, SigSet, UserSigInfo, codes};
use crate::sync::WaitError;
use crate::time::clock::Timespec;
use crate::time::process_timers::{Setting, Which};
use crate::time::{self, SECOND};

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::rt_sigaction, rt_sigaction),
    (Sysno::rt_sigprocmask, rt_sigprocmask),
    (Sysno::rt_sigpending, rt_sigpending),
    (Sysno::rt_sigreturn, rt_sigreturn),
    (Sysno::rt_sigsuspend, rt_sigsuspend),
    (Sysno::rt_sigtimedwait, rt_sigtimedwait),
    (Sysno::rt_sigqueueinfo, rt_sigqueueinfo),
    (Sysno::rt_tgsigqueueinfo, rt_tgsigqueueinfo),
    (Sysno::sigaltstack, sigaltstack),
    (Sysno::kill, kill),
    (Sysno::tkill, tkill),
    (Sysno::tgkill, tgkill),
    (Sysno::pidfd_send_signal, pidfd_send_signal),
    (Sysno::pause, pause),
    (Sysno::alarm, alarm),
    (Sysno::restart_syscall, restart_syscall),
];

const SET_SIZE: usize = size_of::<SigSet>();

fn check_size(size: usize) -> Result<()> {
    if size == SET_SIZE { Ok(()) } else { Err(Errno::EINVAL) }
}

fn rt_sigaction(args: &mut Args) -> Result<usize> {
    check_size(args.a[3])?;
    let signal = signal::from_user(args.a[0])?.ok_or(Errno::EINVAL)?;
    let new = if args.a[1] == 0 { None } else { Some(read_user::<Action>(args.a[1])?) };
    let thread = process::current();
    let actions = thread.process.actions.lock().clone();
    let old = match new {
        None => actions.get(signal),
        Some(_) if signal == SIGKILL || signal == SIGSTOP => return Err(Errno::EINVAL),
        Some(mut new) => {
            new.flags &= signal::flags::KNOWN;
            new.mask &= !SigSet::UNBLOCKABLE.0;
            let _change = actions.change();
            let old = actions.set(signal, new);
            if new.ignores(signal) {
                signal::discard(&thread.process, SigSet::of(&[signal]));
            } else if old.ignores(signal) {
                thread.process.timers.posix.resume(signal);
            }
            old
        }
    };
    if args.a[2] != 0 {
        write_user(args.a[2], &old)?;
    }
    Ok(0)
}

fn rt_sigprocmask(args: &mut Args) -> Result<usize> {
    check_size(args.a[3])?;
    let thread = process::current();
    let old = thread.signals.mask();
    if args.a[1] != 0 {
        let set: SigSet = SigSet(read_user(args.a[1])?);
        let new = match args.uint(0) {
            abi::SIG_BLOCK => old.union(set),
            abi::SIG_UNBLOCK => old.without(set),
            abi::SIG_SETMASK => set,
            _ => return Err(Errno::EINVAL),
        };
        thread.set_signal_mask(new);
    }
    if args.a[2] != 0 {
        write_user(args.a[2], &old.0)?;
    }
    Ok(0)
}

fn rt_sigpending(args: &mut Args) -> Result<usize> {
    if args.a[1] > SET_SIZE {
        return Err(Errno::EINVAL);
    }
    let thread = process::current();
    let pending = thread.own_pending().union(thread.process.signals.shared_pending());
    let blocked = pending.intersection(thread.signals.mask());
    crate::mm::uaccess::copy_to_user(args.a[0], &blocked.0.to_le_bytes()[..args.a[1]])?;
    Ok(0)
}

fn rt_sigreturn(args: &mut Args) -> Result<usize> {
    if signal::sigreturn(args.frame).is_err() {
        args.frame.forget_syscall();
        signal::force_signal(SigInfo::kernel(signal::SIGSEGV));
    }
    Ok(0)
}

/// Sleeps until a signal that is not blocked comes. The dispatch then delivers it.
fn sleep_for_signal() -> Result<usize> {
    sched::sleep_until(Sleep::Interruptible, || false);
    Err(Errno::ERESTARTNOHAND)
}

fn rt_sigsuspend(args: &mut Args) -> Result<usize> {
    check_size(args.a[1])?;
    let mask = SigSet(read_user(args.a[0])?);
    process::current().set_temporary_mask(mask);
    sleep_for_signal()
}

fn pause(_: &mut Args) -> Result<usize> {
    sleep_for_signal()
}

fn rt_sigtimedwait(args: &mut Args) -> Result<usize> {
    check_size(args.a[3])?;
    let wanted = SigSet(read_user(args.a[0])?).without(SigSet::UNBLOCKABLE);
    let deadline = match args.a[2] {
        0 => None,
        at => Some(time::now().saturating_add(read_user::<Timespec>(at)?.to_ns()?)),
    };
    let thread = process::current();
    // Senders take these for unblocked, so that one of them ends the sleep.
    let taken = thread.wait_for_signals(wanted, deadline);
    let info = taken?;
    if args.a[1] != 0 {
        write_user(args.a[1], &UserSigInfo::from(info))?;
    }
    Ok(info.signal as usize)
}

impl Thread {
    /// Takes one of `wanted`, blocked signals; `EAGAIN` at the deadline, `EINTR` when another signal comes.
    fn wait_for_signals(&self, wanted: SigSet, deadline: Option<u64>) -> Result<SigInfo> {
        if let Some(info) = signal::take_waited(self, wanted) {
            return Ok(info);
        }
        self.signals.set_waited(wanted);
        let mut taken = None;
        let slept = sched::sleep(Sleep::Interruptible, deadline, || {
            taken = signal::take_waited(self, wanted);
            taken.is_some()
        });
        self.signals.set_waited(SigSet::EMPTY);
        let taken = taken.or_else(|| signal::take_waited(self, wanted));
        match (taken, slept) {
            (Some(info), _) => Ok(info),
            (None, Err(WaitError::TimedOut)) => Err(Errno::EAGAIN),
            (None, _) => Err(Errno::EINTR),
        }
    }
}

/// A signal with information of the sender's own making: it must not claim to come from the kernel or from kill(2).
fn read_info(args: &Args, at: usize, signal: Option<u32>, to_self: bool) -> Result<SigInfo> {
    let mut info = read_user::<UserSigInfo>(args.a[at])?.to_kept()?;
    if (info.code >= 0 || info.code == codes::SI_TKILL) && !to_self {
        return Err(Errno::EPERM);
    }
    info.signal = signal.unwrap_or(0) as i32;
    let own = process::current();
    if own.has_user_namespace() && info.has_uid() {
        let uid = own.credentials().kernel_uid(info.uid());
        info.set_uid(uid.unwrap_or(OVERFLOW_ID));
    }
    Ok(info)
}

fn rt_sigqueueinfo(args: &mut Args) -> Result<usize> {
    let signal = signal::from_user(args.a[1])?;
    let pid = args.int(0);
    let info = read_info(args, 2, signal, pid == process::current().process.number() as i32)?;
    if pid <= 0 {
        return Err(Errno::ESRCH);
    }
    // The number of any thread names its process.
    let of_thread = || process::find_thread(pid as u32).map(|thread| thread.process.clone());
    let target = process::find(pid as u32).or_else(of_thread).ok_or(Errno::ESRCH)?;
    process::check_may_signal(&target, signal)?;
    if signal.is_some() {
        signal::queue_process(&target, info)?;
    }
    Ok(0)
}

fn rt_tgsigqueueinfo(args: &mut Args) -> Result<usize> {
    let signal = signal::from_user(args.a[2])?;
    let tgid = args.int(0);
    let info = read_info(args, 3, signal, tgid == process::current().process.number() as i32)?;
    let target = find_thread(Some(tgid), args.int(1))?;
    process::check_may_signal(&target.process, signal)?;
    if signal.is_some() {
        signal::queue_thread(&target, info)?;
    }
    Ok(0)
}

fn sigaltstack(args: &mut Args) -> Result<usize> {
    let thread = process::current();
    let sp = args.frame.rsp;
    let old = thread.signals.alt_stack.lock().as_seen(sp);
    if args.a[0] != 0 {
        let new: AltStack = read_user(args.a[0])?;
        thread.set_alt_stack(new, sp)?;
    }
    if args.a[1] != 0 {
        write_user(args.a[1], &old)?;
    }
    Ok(0)
}

fn kill(args: &mut Args) -> Result<usize> {
    let signal = signal::from_user(args.a[1])?;
    let target = match args.int(0) {
        0 => {
            // A group from outside of the namespace has no number there, and is the caller's all the same.
            return process::kill_own_group(signal).map(|()| 0);
        }
        -1 => Target::All,
        i32::MIN => return Err(Errno::ESRCH),
        pid if pid < 0 => Target::Group(pid.unsigned_abs()),
        pid => Target::Process(pid as u32),
    };
    process::kill(target, signal).map(|()| 0)
}

fn find_thread(tgid: Option<i32>, tid: i32) -> Result<Arc<Thread>> {
    if tid <= 0 || tgid.is_some_and(|tgid| tgid <= 0) {
        return Err(Errno::EINVAL);
    }
    let thread =
        process::find_thread(tid as u32).filter(|thread| !thread.sched.is_dead()).ok_or(Errno::ESRCH)?;
    if tgid.is_some_and(|tgid| View::current().process(&thread.process) != tgid as u32) {
        return Err(Errno::ESRCH);
    }
    Ok(thread)
}

fn send_to_thread(tgid: Option<i32>, tid: i32, number: usize) -> Result<usize> {
    let signal = signal::from_user(number)?;
    let thread = find_thread(tgid, tid)?;
    process::check_may_signal(&thread.process, signal)?;
    if let Some(signal) = signal {
        let current = process::current();
        let uid = current.credentials().uid;
        signal::queue_thread(&thread, SigInfo::user(signal, codes::SI_TKILL, current.process.number(), uid))?;
    }
    Ok(0)
}

fn tkill(args: &mut Args) -> Result<usize> {
    send_to_thread(None, args.int(0), args.a[1])
}

fn tgkill(args: &mut Args) -> Result<usize> {
    send_to_thread(Some(args.int(0)), args.int(1), args.a[2])
}

fn pidfd_send_signal(args: &mut Args) -> Result<usize> {
    /// The thread, its process, its process group: one of them, or what the descriptor is for.
    const THREAD: u32 = 1;
    const THREAD_GROUP: u32 = 2;
    const PROCESS_GROUP: u32 = 4;
    let scope = args.uint(3);
    if !matches!(scope, 0 | THREAD | THREAD_GROUP | PROCESS_GROUP) {
        return Err(Errno::EINVAL);
    }
    let current = process::current();
    let file = current.files().get(args.int(0))?;
    // A process's directory in /proc does as well: what killall(1) has.
    let target = match process::pidfd::process_of(&file) {
        Some(process) => process,
        None => proc::process_of_directory(&file).ok_or(Errno::EBADF)??,
    };
    let own_thread = process::pidfd::thread_of(&file)?;
    // Who has a descriptor of a process outside of its PID namespace has no number for it, and sends it nothing.
    if !View::current().sees(&target) {
        return Err(Errno::EINVAL);
    }
    let signal = signal::from_user(args.a[1])?;
    let info = if args.a[2] != 0 {
        let info = read_info(args, 2, signal, Arc::ptr_eq(&target, &current.process))?;
        if Some(info.signal as u32) != signal.or(Some(0)) {
            return Err(Errno::EINVAL);
        }
        info
    } else {
        SigInfo::user(
            signal.unwrap_or(0),
            codes::SI_USER,
            current.process.number(),
            current.credentials().uid,
        )
    };
    // One that is being made has no threads yet.
    if target.has_ended() || target.leader().is_none() {
        return Err(Errno::ESRCH);
    }
    if scope == PROCESS_GROUP {
        // The group that the process leads, if it leads one.
        let number = own_thread.map_or(target.pid, |thread| thread.tid());
        return process::kill_group(number, signal).map(|()| 0);
    }
    process::check_may_signal(&target, signal)?;
    if signal.is_none() {
        return Ok(0);
    }
    let thread = match scope {
        0 => own_thread,
        THREAD => own_thread.or_else(|| target.leader()),
        _ => None,
    };
    match thread {
        Some(thread) => signal::queue_thread(&thread, info)?,
        None => signal::queue_process(&target, info)?,
    }
    Ok(0)
}

fn alarm(args: &mut Args) -> Result<usize> {
    let timers = &process::current().process.timers;
    let old = timers.set(Which::Real, Setting { value: u64::from(args.uint(0)) * SECOND, interval: 0 });
    // Rounded, but a timer that is set never reads as none.
    let seconds = (old.value + SECOND / 2) / SECOND;
    Ok(if old.value > 0 { seconds.max(1) } else { 0 } as usize)
}

fn restart_syscall(args: &mut Args) -> Result<usize> {
    let restart = process::current().restart.lock().take();
    match restart {
        Some(restart) => restart(args),
        None => Err(Errno::EINTR),
    }
}

impl crate::signal::ThreadSignals {
    fn set_waited(&self, wanted: SigSet) {
        self.waited.store(wanted.0, Ordering::SeqCst);
    }
}
