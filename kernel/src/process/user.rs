//! The way to user mode, and the address space that goes with a thread.

use core::sync::atomic::Ordering;

use alloc::sync::Arc;

use super::{Current, Thread, rseq};
use crate::arch::trap::TrapFrame;
use crate::arch::{cpu, interrupts, percpu};
use crate::mm::AddressSpace;
use crate::sync::grace;
use crate::sync::lockdep::stretch;
use crate::time::process_timers;
use crate::{sched, signal};

/// Everything that must happen before each return to user mode. Entered and left with interrupts off.
pub fn exit_to_user(frame: &mut TrapFrame) {
    debug_assert!(!interrupts::are_enabled());
    debug_assert_eq!(percpu::preempt_count(), 0, "a spin lock is held on the way to user mode");
    let thread = super::current();
    loop {
        if sched::resched_if_wanted() {
            continue;
        }
        // Relaxed: set by this thread's own ticks, on the CPU that it was on.
        if thread.timers_due.load(Ordering::Relaxed) {
            thread.timers_due.store(false, Ordering::Relaxed);
            interrupts::enable();
            process_timers::run_due(&thread);
            interrupts::disable();
            continue;
        }
        let signals = thread.signals.pending();
        if !signals && !wants_restart(frame) && !rseq::wanted(&thread) {
            break;
        }
        interrupts::enable();
        if signals || wants_restart(frame) {
            signal::deliver(frame);
        }
        // After signals: an abort moves the instruction pointer that they have saved.
        rseq::update(&thread, frame);
        interrupts::disable();
    }
    grace::quiescent();
    stretch::end();
}

/// A system call that a signal has ended; the signal itself may be gone by now, taken by another thread.
#[inline]
fn wants_restart(frame: &TrapFrame) -> bool {
    // ERESTARTSYS to ERESTART_RESTARTBLOCK.
    frame.is_syscall() && (-516..=-512).contains(&(frame.rax as i64))
}

/// Loads the next thread's address space, if it is another one. Called by the scheduler, with interrupts off.
pub fn switch_address_space(previous: &Thread, next: &Thread) {
    // SAFETY: this CPU runs `previous` and is about to run `next`; nobody else uses these cells.
    let (from, to) = unsafe { (&*previous.address_space.get(), &*next.address_space.get()) };
    let same = match (from, to) {
        (Some(from), Some(to)) => Arc::ptr_eq(from, to),
        (None, None) => true,
        _ => false,
    };
    rseq::preempted(next);
    if same {
        return;
    }
    let here = cpu::id();
    // In this order the table is loaded once.
    if let Some(to) = to {
        to.activate(here);
    }
    if let Some(from) = from {
        from.deactivate(here);
    }
}

/// Takes the current thread's address space away: from here on it runs on the kernel's own. Returns what the caller drops.
pub(super) fn drop_address_space(thread: &Thread) -> Option<Arc<AddressSpace>> {
    interrupts::without(|| {
        // SAFETY: the current thread's own cell, with interrupts off.
        let old = unsafe { (*thread.address_space.get()).take() };
        if let Some(old) = &old {
            old.deactivate(cpu::id());
        }
        old
    })
}

/// Puts another address space in place for the current thread and its process: execve(2). Returns what the caller drops.
pub(super) fn replace_address_space(
    thread: &Thread,
    new: &Arc<AddressSpace>,
) -> (Option<Arc<AddressSpace>>, Option<Arc<AddressSpace>>) {
    let of_process = thread.process.replace_mm(Some(new.clone()));
    let of_thread = interrupts::without(|| {
        let here = cpu::id();
        // SAFETY: the current thread's own cell, with interrupts off.
        let old = unsafe { (*thread.address_space.get()).replace(new.clone()) };
        if let Some(old) = &old {
            old.deactivate(here);
        }
        new.activate(here);
        old
    });
    (of_process, of_thread)
}

impl Current {
    /// The address space that the thread runs on; `None` for kernel threads, and once the thread has let go of it.
    pub fn space(&self) -> Option<&Arc<AddressSpace>> {
        // SAFETY: only the thread itself changes it, by calls that nothing makes while it looks at its space.
        unsafe { (*self.address_space.get()).as_ref() }
    }
}

impl Thread {
    /// A page fault of this thread was resolved.
    pub fn count_fault(&self, major: bool) {
        let counter = if major { &self.major_faults } else { &self.minor_faults };
        // Relaxed: statistics.
        counter.fetch_add(1, Ordering::Relaxed);
        super::account::note_fault(major);
    }
}
