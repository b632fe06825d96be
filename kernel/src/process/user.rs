//! The way to user mode, and the address space that goes with a thread.

use core::sync::atomic::{AtomicU32, Ordering};

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
#[inline]
pub fn exit_to_user(frame: &mut TrapFrame) {
    debug_assert!(!interrupts::are_enabled());
    debug_assert_eq!(percpu::preempt_count(), 0, "a spin lock is held on the way to user mode");
    let thread = super::current();
    if sched::is_resched_wanted()
        || thread.due.is_any()
        || thread.signals.pending()
        || may_want_restart(frame)
    {
        work_before_user(&thread, frame);
    }
    grace::quiescent();
    stretch::end();
}

/// Does what is to be done, and looks again: other things may have come up meanwhile.
#[cold]
fn work_before_user(thread: &Thread, frame: &mut TrapFrame) {
    loop {
        // However long this goes on: nobody reads here.
        grace::quiescent();
        if sched::resched_if_wanted() {
            continue;
        }
        if thread.due.take(Due::TIMERS) {
            interrupts::enable();
            process_timers::run_due(thread);
            interrupts::disable();
            continue;
        }
        // A call with a mask of its own was interrupted, by what may be gone by now.
        let masked = thread.due.take(Due::MASK);
        let signals = masked || thread.signals.pending();
        if !signals && !wants_restart(frame) && !thread.due.is_any() {
            return;
        }
        interrupts::enable();
        if signals || wants_restart(frame) {
            signal::deliver(frame);
        }
        // After signals: an abort moves the instruction pointer that they have saved.
        rseq::update(thread, frame);
        interrupts::disable();
    }
}

/// What a thread has to do on its way to user mode beside its signals.
#[derive(Default)]
pub struct Due(AtomicU32);

impl Due {
    /// A tick found timers of the thread or its process due.
    pub const TIMERS: u32 = 1;
    /// The restartable-sequence area must be looked at.
    pub const RSEQ: u32 = 2;
    /// The signal mask is that of a call which is over.
    pub const MASK: u32 = 4;

    /// Nothing.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    #[inline]
    fn is_any(&self) -> bool {
        // Relaxed, here and below: set by this thread, or by interrupts and switches of the CPU that it is on.
        self.0.load(Ordering::Relaxed) != 0
    }

    /// It is due from now on.
    #[inline]
    pub fn set(&self, what: u32) {
        self.0.fetch_or(what, Ordering::Relaxed);
    }

    /// It is not due any more; returns whether it was.
    pub fn take(&self, what: u32) -> bool {
        self.0.fetch_and(!what, Ordering::Relaxed) & what != 0
    }
}

/// May it be a system call that is to be made again? In two instructions; who does something about it looks closely.
#[inline]
fn may_want_restart(frame: &TrapFrame) -> bool {
    // ERESTARTSYS is 512, ERESTART_RESTARTBLOCK 516.
    (frame.rax as i64).wrapping_add(516) as u64 <= 4 && frame.is_syscall()
}

/// A system call that a signal has ended; the signal itself may be gone by now, taken by another thread.
#[inline]
fn wants_restart(frame: &TrapFrame) -> bool {
    frame.is_syscall() && is_restart_code(frame.rax as i64)
}

/// Would a call that returns this be made again?
#[inline]
pub fn is_restart_code(value: i64) -> bool {
    signal::is_restart(value as u64)
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

/// Puts another address space in place for the current thread and its process: execve(2) of a program into which others of its user may
/// look, or not. Returns what the caller drops.
pub(super) fn replace_address_space(
    thread: &Thread,
    new: &Arc<AddressSpace>,
    dumpable: bool,
) -> (Option<Arc<AddressSpace>>, Option<Arc<AddressSpace>>) {
    let of_process = thread.process.replace_program(thread, new.clone(), dumpable);
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
