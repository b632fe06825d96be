//! System calls: scheduling.

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::arch::cpu::{self, CpuSet};
use crate::errno::{Errno, Result};
use crate::memory::{fallible, node};
use crate::mm::uaccess::{copy_from_user, copy_to_user, read_user, write_user};
use crate::namespaces::View;
use crate::process::{self, CAP_SYS_NICE, Thread, limits};
use crate::sched::{self, Parameters, Policy};
use crate::time::clock::Timespec;

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::sched_yield, sched_yield),
    (Sysno::sched_setaffinity, sched_setaffinity),
    (Sysno::sched_getaffinity, sched_getaffinity),
    (Sysno::sched_setscheduler, sched_setscheduler),
    (Sysno::sched_getscheduler, sched_getscheduler),
    (Sysno::sched_setparam, sched_setparam),
    (Sysno::sched_getparam, sched_getparam),
    (Sysno::sched_setattr, sched_setattr),
    (Sysno::sched_getattr, sched_getattr),
    (Sysno::sched_get_priority_max, sched_get_priority_max),
    (Sysno::sched_get_priority_min, sched_get_priority_min),
    (Sysno::sched_rr_get_interval, sched_rr_get_interval),
    (Sysno::getpriority, getpriority),
    (Sysno::setpriority, setpriority),
    (Sysno::getcpu, getcpu),
];

fn find(tid: i32) -> Result<Arc<Thread>> {
    match tid {
        0 => Ok(process::current().to_arc()),
        tid if tid < 0 => Err(Errno::EINVAL),
        tid => process::find_thread(tid as u32).ok_or(Errno::ESRCH),
    }
}

/// The same for the calls to which a negative number is one that no thread has.
fn find_any(tid: i32) -> Result<Arc<Thread>> {
    if tid < 0 { Err(Errno::ESRCH) } else { find(tid) }
}

/// Whether the current thread may change how another one is scheduled.
fn check_owner(thread: &Thread) -> Result<()> {
    let (own, other) = (process::current().credentials(), thread.credentials());
    if own.euid == other.euid || own.euid == other.uid || own.capable_over(&other, CAP_SYS_NICE) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

fn sched_yield(_: &mut Args) -> Result<usize> {
    sched::yield_now();
    Ok(0)
}

fn sched_setaffinity(args: &mut Args) -> Result<usize> {
    let mut words = [0u64; size_of::<CpuSet>() / 8];
    let mut bytes = [0u8; size_of::<CpuSet>()];
    let length = args.a[1].min(bytes.len());
    copy_from_user(&mut bytes[..length], args.a[2])?;
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
    }
    let thread = find_any(args.int(0))?;
    check_owner(&thread)?;
    let set = CpuSet::from_words(words).intersection(&cpu::online());
    if set.is_empty() {
        return Err(Errno::EINVAL);
    }
    sched::set_affinity(&thread, set);
    Ok(0)
}

fn sched_getaffinity(args: &mut Args) -> Result<usize> {
    // As Linux: room for all CPUs that there could be, in whole words; so much is written.
    let needed = (cpu::count() as usize).div_ceil(64) * 8;
    if args.a[1] < needed || !args.a[1].is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let thread = find_any(args.int(0))?;
    let set = thread.sched.affinity().intersection(&cpu::online());
    let bytes: Vec<u8> = set.words().iter().flat_map(|word| word.to_le_bytes()).collect();
    let length = args.a[1].min(bytes.len());
    copy_to_user(args.a[2], &bytes[..length])?;
    Ok(length)
}

/// Checks and sets policy and priority, and with them the nice value if it is given.
fn set_policy(
    thread: &Arc<Thread>,
    policy: i32,
    priority: i32,
    nice: Option<i32>,
    reset: bool,
) -> Result<()> {
    let policy = Policy::from_number(policy)?;
    let range = if policy.is_realtime() { 1..=99 } else { 0..=0 };
    if !range.contains(&priority) {
        return Err(Errno::EINVAL);
    }
    check_owner(thread)?;
    let old = thread.sched.parameters();
    let privileged = process::current().credentials().capable(CAP_SYS_NICE);
    if !privileged {
        let most = thread.process.limit(limits::RTPRIO);
        let raises = policy != old.policy || priority as u32 > old.priority;
        if policy.is_realtime() && raises && priority as u64 > most {
            return Err(Errno::EPERM);
        }
        if old.reset_on_fork && !reset {
            return Err(Errno::EPERM);
        }
        // The idle policy is below all nice values.
        let leaves_idle = old.policy == Policy::Idle && policy != Policy::Idle;
        if leaves_idle && (20 - old.nice) as u64 > thread.process.limit(limits::NICE) {
            return Err(Errno::EPERM);
        }
    }
    let nice = match nice {
        Some(nice) => checked_nice(thread, nice).map_err(|_| Errno::EPERM)?,
        None => old.nice,
    };
    let new = Parameters { policy, nice, priority: priority as u32, reset_on_fork: reset };
    sched::set_parameters(thread, new);
    Ok(())
}

/// The nice value, cut to its range; `EACCES` where the user may not go so low.
fn checked_nice(thread: &Thread, nice: i32) -> Result<i32> {
    let nice = nice.clamp(-20, 19);
    let lowest = 20 - thread.process.limit(limits::NICE).min(40) as i32;
    let allowed = nice >= thread.sched.parameters().nice
        || nice >= lowest
        || process::current().credentials().capable(CAP_SYS_NICE);
    if allowed { Ok(nice) } else { Err(Errno::EACCES) }
}

const RESET_ON_FORK: i32 = 0x4000_0000;

fn sched_setscheduler(args: &mut Args) -> Result<usize> {
    let policy = args.int(1);
    if policy < 0 || args.a[2] == 0 {
        return Err(Errno::EINVAL);
    }
    let priority: i32 = read_user(args.a[2])?;
    let thread = find(args.int(0))?;
    set_policy(&thread, policy & !RESET_ON_FORK, priority, None, policy & RESET_ON_FORK != 0)?;
    Ok(0)
}

fn sched_getscheduler(args: &mut Args) -> Result<usize> {
    let parameters = find(args.int(0))?.sched.parameters();
    let reset = if parameters.reset_on_fork { RESET_ON_FORK } else { 0 };
    Ok((parameters.policy as i32 | reset) as usize)
}

fn sched_setparam(args: &mut Args) -> Result<usize> {
    if args.a[1] == 0 {
        return Err(Errno::EINVAL);
    }
    let priority: i32 = read_user(args.a[1])?;
    let thread = find(args.int(0))?;
    let old = thread.sched.parameters();
    set_policy(&thread, old.policy as i32, priority, None, old.reset_on_fork)?;
    Ok(0)
}

fn sched_getparam(args: &mut Args) -> Result<usize> {
    if args.a[1] == 0 {
        return Err(Errno::EINVAL);
    }
    let priority = find(args.int(0))?.sched.parameters().priority as i32;
    write_user(args.a[1], &priority)?;
    Ok(0)
}

/// `struct sched_attr`, first version.
#[repr(C)]
#[derive(Clone, Copy)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

fn sched_setattr(args: &mut Args) -> Result<usize> {
    const FLAG_RESET: u64 = 1;
    if args.uint(2) != 0 {
        return Err(Errno::EINVAL);
    }
    let size: u32 = read_user(args.a[1])?;
    if size != 0 && (size as usize) < size_of::<SchedAttr>() {
        write_user(args.a[1], &(size_of::<SchedAttr>() as u32))?;
        return Err(Errno::E2BIG);
    }
    let attr: SchedAttr = read_user(args.a[1])?;
    if attr.flags & !FLAG_RESET != 0 || attr.policy > i32::MAX as u32 || attr.priority > 99 {
        return Err(Errno::EINVAL);
    }
    let thread = find(args.int(0))?;
    let nice = matches!(attr.policy, 0 | 3).then_some(attr.nice);
    set_policy(&thread, attr.policy as i32, attr.priority as i32, nice, attr.flags & FLAG_RESET != 0)?;
    Ok(0)
}

fn sched_getattr(args: &mut Args) -> Result<usize> {
    if (args.uint(2) as usize) < size_of::<SchedAttr>() || args.uint(3) != 0 {
        return Err(Errno::EINVAL);
    }
    let parameters = find(args.int(0))?.sched.parameters();
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: parameters.policy as u32,
        flags: u64::from(parameters.reset_on_fork),
        nice: if parameters.policy.is_realtime() { 0 } else { parameters.nice },
        priority: parameters.priority,
        runtime: 0,
        deadline: 0,
        period: 0,
    };
    write_user(args.a[1], &attr)?;
    Ok(0)
}

fn sched_get_priority_max(args: &mut Args) -> Result<usize> {
    Ok(if Policy::from_number(args.int(0))?.is_realtime() { 99 } else { 0 })
}

fn sched_get_priority_min(args: &mut Args) -> Result<usize> {
    Ok(if Policy::from_number(args.int(0))?.is_realtime() { 1 } else { 0 })
}

fn sched_rr_get_interval(args: &mut Args) -> Result<usize> {
    let interval = match find(args.int(0))?.sched.parameters().policy {
        Policy::RoundRobin => sched::RR_INTERVAL,
        Policy::Fifo => 0,
        Policy::Other | Policy::Batch | Policy::Idle => sched::TICK,
    };
    write_user(args.a[1], &Timespec::from_ns(interval))?;
    Ok(0)
}

/// The threads that getpriority(2) and setpriority(2) mean.
pub(super) fn threads_of(which: u32, who: i32) -> Result<Vec<Arc<Thread>>> {
    let current = process::current();
    let all_of = |wanted: &dyn Fn(&process::Process) -> bool| -> Result<Vec<Arc<Thread>>> {
        let mut threads = Vec::new();
        for process in process::processes().filter(|process| wanted(process)) {
            let mut more = process::threads_of(&process)?;
            fallible::reserve(&mut threads, more.len())?;
            threads.append(&mut more);
        }
        Ok(threads)
    };
    Ok(match which {
        abi::PRIO_PROCESS if who == 0 => alloc::vec![current.to_arc()],
        abi::PRIO_PROCESS => process::find_thread(who as u32).into_iter().collect(),
        abi::PRIO_PGRP => {
            let asked = || View::current().global(who as u32).ok_or(Errno::ESRCH);
            let pgid = if who == 0 { current.process.pgid() } else { asked()? };
            all_of(&|process| process.pgid() == pgid)?
        }
        abi::PRIO_USER => {
            let own = current.credentials();
            let uid = if who == 0 { own.uid } else { own.kernel_uid(who as u32).ok_or(Errno::ESRCH)? };
            all_of(&|process| process.credentials().uid == uid)?
        }
        _ => return Err(Errno::EINVAL),
    })
}

fn getpriority(args: &mut Args) -> Result<usize> {
    let threads = threads_of(args.uint(0), args.int(1))?;
    // 1 to 40, so that no result looks like an error.
    threads.iter().map(|thread| (20 - thread.sched.parameters().nice) as usize).max().ok_or(Errno::ESRCH)
}

fn setpriority(args: &mut Args) -> Result<usize> {
    let threads = threads_of(args.uint(0), args.int(1))?;
    let mut result = Err(Errno::ESRCH);
    for thread in threads {
        sched::cond_resched();
        let set = check_owner(&thread).and_then(|()| checked_nice(&thread, args.int(2))).map(|nice| {
            let old = thread.sched.parameters();
            sched::set_parameters(&thread, Parameters { nice, ..old });
        });
        if result != Err(Errno::EACCES) && result != Err(Errno::EPERM) {
            result = set.map(|()| 0);
        }
    }
    result
}

fn getcpu(args: &mut Args) -> Result<usize> {
    if args.a[0] != 0 {
        write_user(args.a[0], &cpu::id())?;
    }
    if args.a[1] != 0 {
        write_user(args.a[1], &(node::here() as u32))?;
    }
    Ok(0)
}
