//! The priority of a thread's I/O, which is kept and inherited: there is no disk that it would order.

use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::sched::threads_of;
use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::process::{self, Thread};

pub const TABLE: &[(Sysno, Handler)] = &[(Sysno::ioprio_get, ioprio_get), (Sysno::ioprio_set, ioprio_set)];

/// The bits of a value: class, hint, level.
const CLASS_SHIFT: u32 = 13;
const LEVEL_MASK: u32 = 7;

const NONE: u32 = 0;
const REAL_TIME: u32 = 1;
const BEST_EFFORT: u32 = 2;
const IDLE: u32 = 3;

/// Who is meant: as getpriority(2) has it, counted from 1.
fn which(argument: u32) -> Result<u32> {
    match argument {
        1 => Ok(abi::PRIO_PROCESS),
        2 => Ok(abi::PRIO_PGRP),
        3 => Ok(abi::PRIO_USER),
        _ => Err(Errno::EINVAL),
    }
}

/// What a thread without a priority of its own has by its nice value.
fn effective(thread: &Thread) -> u32 {
    // Relaxed: a value of its own.
    let value = thread.io_priority.load(Ordering::Relaxed);
    if value >> CLASS_SHIFT != NONE {
        return value;
    }
    let parameters = thread.sched.parameters();
    let class = if parameters.policy.is_realtime() { REAL_TIME } else { BEST_EFFORT };
    (class << CLASS_SHIFT) | ((parameters.nice + 20) as u32 / 5)
}

fn ioprio_get(args: &mut Args) -> Result<usize> {
    let which = which(args.uint(0))?;
    let threads = threads_of(which, args.int(1))?;
    let value = if which == abi::PRIO_PROCESS {
        // Relaxed: as above.
        threads.first().map(|thread| thread.io_priority.load(Ordering::Relaxed))
    } else {
        // The lower number is the higher priority.
        threads.iter().map(|thread| effective(thread)).min()
    };
    value.map(|value| value as usize).ok_or(Errno::ESRCH)
}

fn ioprio_set(args: &mut Args) -> Result<usize> {
    let value = args.uint(2);
    let current = process::current();
    let caller = current.credentials();
    match value >> CLASS_SHIFT {
        REAL_TIME if !caller.capable(abi::CAP_SYS_NICE) && !caller.capable(abi::CAP_SYS_ADMIN) => {
            return Err(Errno::EPERM);
        }
        REAL_TIME | BEST_EFFORT | IDLE => {}
        NONE if value & LEVEL_MASK == 0 => {}
        _ => return Err(Errno::EINVAL),
    }
    let threads = threads_of(which(args.uint(0))?, args.int(1))?;
    if threads.is_empty() {
        return Err(Errno::ESRCH);
    }
    for thread in threads {
        crate::sched::cond_resched();
        let uid = thread.credentials().uid;
        if uid != caller.euid && uid != caller.uid && !caller.capable(abi::CAP_SYS_NICE) {
            return Err(Errno::EPERM);
        }
        // Relaxed: as above.
        thread.io_priority.store(value, Ordering::Relaxed);
    }
    Ok(0)
}
