//! Restartable sequences: rseq(2), with the first version's area.
//!
//! User space learns the number of its CPU from memory that the kernel updates, and may mark a critical section that is to start over when
//! the thread was preempted, moved or interrupted by a signal inside it. The kernel looks on the way to user mode, after
//! any of these.

use core::sync::atomic::Ordering;

use super::Thread;
use super::user::Due;
use crate::arch::cpu;
use crate::arch::trap::TrapFrame;
use crate::errno::{Errno, Result};
use crate::memory::node;
use crate::mm::uaccess::{read_user, write_user};
use crate::signal::{self, SIGSEGV, SigInfo};

/// `struct rseq` up to the fields of the first version.
const LENGTH: u32 = 32;
const FLAG_UNREGISTER: u32 = 1;
/// Offsets in the area.
const CPU_ID_START: usize = 0;
const CPU_ID: usize = 4;
const CRITICAL_SECTION: usize = 8;
const NODE_ID: usize = 20;
const MM_CID: usize = 24;
/// `cpu_id` of an area that is not registered.
const UNINITIALIZED: u32 = u32::MAX;

/// `struct rseq_cs`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CriticalSection {
    version: u32,
    flags: u32,
    start: u64,
    length: u64,
    abort: u64,
}

/// rseq(2).
pub fn register(thread: &Thread, area: usize, length: u32, flags: u32, signature: u32) -> Result<usize> {
    let registered = thread.rseq.load(Ordering::SeqCst);
    let own_length = thread.rseq_length.load(Ordering::SeqCst);
    let own_signature = thread.rseq_signature.load(Ordering::SeqCst);
    if flags & FLAG_UNREGISTER != 0 {
        if flags != FLAG_UNREGISTER || registered == 0 || registered != area || own_length != length {
            return Err(Errno::EINVAL);
        }
        if own_signature != signature {
            return Err(Errno::EPERM);
        }
        write_user(area + CPU_ID_START, &0u32)?;
        write_user(area + CPU_ID, &UNINITIALIZED)?;
        thread.rseq.store(0, Ordering::SeqCst);
        return Ok(0);
    }
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    if registered != 0 {
        if registered != area || own_length != length {
            return Err(Errno::EINVAL);
        }
        return Err(if own_signature == signature { Errno::EBUSY } else { Errno::EPERM });
    }
    if length < LENGTH || !area.is_multiple_of(32) {
        return Err(Errno::EINVAL);
    }
    crate::mm::uaccess::check_range(area, length as usize)?;
    thread.rseq_length.store(length, Ordering::SeqCst);
    thread.rseq_signature.store(signature, Ordering::SeqCst);
    thread.rseq.store(area, Ordering::SeqCst);
    thread.due.set(Due::RSEQ);
    Ok(0)
}

/// A forked child has its parent's area in its copy of the memory.
pub(super) fn inherit(parent: &Thread, child: &Thread) {
    child.rseq_length.store(parent.rseq_length.load(Ordering::SeqCst), Ordering::SeqCst);
    child.rseq_signature.store(parent.rseq_signature.load(Ordering::SeqCst), Ordering::SeqCst);
    child.rseq.store(parent.rseq.load(Ordering::SeqCst), Ordering::SeqCst);
    child.due.set(Due::RSEQ);
}

/// execve(2): the area is gone.
pub(super) fn forget(thread: &Thread) {
    thread.rseq.store(0, Ordering::SeqCst);
}

/// The thread was switched away from and runs again: the area must be looked at.
#[inline]
pub(crate) fn preempted(thread: &Thread) {
    // Relaxed: the thread's own CPU sets and reads it.
    if thread.rseq.load(Ordering::Relaxed) != 0 {
        thread.due.set(Due::RSEQ);
    }
}

/// Writes the CPU's number, and restarts a critical section that was left. With interrupts on; a switch meanwhile comes here again.
pub(super) fn update(thread: &Thread, frame: &mut TrapFrame) {
    if !thread.due.take(Due::RSEQ) || thread.rseq.load(Ordering::SeqCst) == 0 {
        return;
    }
    let area = thread.rseq.load(Ordering::SeqCst);
    let cpu = cpu::id();
    let result = abort_if_inside(thread, frame).and_then(|()| {
        write_user(area + CPU_ID_START, &cpu)?;
        write_user(area + CPU_ID, &cpu)?;
        write_user(area + NODE_ID, &(node::of_cpu(cpu) as u32))?;
        write_user(area + MM_CID, &cpu)
    });
    if result.is_err() {
        // As Linux: a broken area is the end of the program.
        thread.rseq.store(0, Ordering::SeqCst);
        signal::force_signal(SigInfo::kernel(SIGSEGV));
    }
}

/// A handler is about to be entered: a critical section does not go on after it.
pub(crate) fn abort_for_signal(frame: &mut TrapFrame) {
    let thread = super::current();
    if thread.rseq.load(Ordering::SeqCst) != 0 && abort_if_inside(&thread, frame).is_err() {
        thread.rseq.store(0, Ordering::SeqCst);
        signal::force_signal(SigInfo::kernel(SIGSEGV));
    }
}

fn abort_if_inside(thread: &Thread, frame: &mut TrapFrame) -> Result<()> {
    let area = thread.rseq.load(Ordering::SeqCst);
    let descriptor: u64 = read_user(area + CRITICAL_SECTION)?;
    if descriptor == 0 {
        return Ok(());
    }
    let section: CriticalSection = read_user(descriptor as usize)?;
    if section.version != 0 || section.flags & !7 != 0 {
        return Err(Errno::EINVAL);
    }
    let end = section.start.checked_add(section.length).ok_or(Errno::EINVAL)?;
    if end >= crate::memory::USER_END || section.abort >= crate::memory::USER_END || section.abort < 4 {
        return Err(Errno::EINVAL);
    }
    if (section.start..end).contains(&section.abort) {
        return Err(Errno::EINVAL);
    }
    // The four bytes before the abort handler say that it is meant to be one.
    let signature: u32 = read_user(section.abort as usize - 4)?;
    if signature != thread.rseq_signature.load(Ordering::SeqCst) {
        return Err(Errno::EINVAL);
    }
    // In or out, the pointer is cleared: it is set anew for each section.
    write_user(area + CRITICAL_SECTION, &0u64)?;
    if (section.start..end).contains(&frame.rip) {
        frame.rip = section.abort;
    }
    Ok(())
}
