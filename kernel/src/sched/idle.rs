//! The idle thread of each CPU, and freeing what dead threads leave.

use core::sync::atomic::{AtomicPtr, Ordering};

use alloc::sync::Arc;

use super::{queue, switch};
use crate::arch::cpu::{self, CpuId, MAX_CPUS};
use crate::arch::interrupts;
use crate::arch::percpu::{self, PerCpu};
use crate::process::{self, Thread};
use crate::sync::grace;
use crate::sync::lockdep::stretch;

static THREADS: PerCpu<AtomicPtr<Thread>> =
    PerCpu::new([const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS]);

/// Makes what runs on this CPU its idle thread. Each CPU calls this once, before it takes interrupts.
pub fn init_cpu() {
    let thread = process::new_idle_thread(cpu::id());
    thread.sched.set_on_cpu(true);
    // The idle thread lives as long as its CPU.
    let pointer = Arc::into_raw(thread).cast_mut();
    THREADS.store(pointer, Ordering::SeqCst);
    percpu::set_current(pointer.cast_const().cast());
}

pub(super) fn of(cpu: CpuId) -> *const Thread {
    THREADS.of(cpu).load(Ordering::SeqCst)
}

/// Runs whatever there is to run on this CPU, and waits for interrupts when there is nothing.
pub fn enter_idle() -> ! {
    let idle = of(cpu::id());
    // SAFETY: idle threads are never freed.
    queue::note_running(unsafe { &*idle }, true);
    grace::end_idle();
    loop {
        // One at a time: whoever is due by then goes first, and the others are there for whoever needs the memory.
        let freed = switch::any_dead() && {
            interrupts::enable();
            switch::take_dead().is_some_and(|thread| {
                thread.free_stack();
                thread.left_stack();
                true
            })
        };
        interrupts::disable();
        switch::preempt();
        if freed {
            continue;
        }
        // Nothing to run a moment ago. Whoever queues something now sends an interrupt, which the CPU takes behind `sti; hlt`: see
        // `beacon`. Another CPU's queue is only looked at when it says so.
        queue::note_idle();
        if !queue::may_halt() {
            continue;
        }
        if !grace::begin_idle() {
            interrupts::enable_and_take();
            continue;
        }
        interrupts::enable_and_wait();
        stretch::begin();
        grace::end_idle();
    }
}

/// Frees the stacks of threads that have ended, however many there are. Interrupts are on, no spin lock is held.
pub fn reap() {
    reap_some(usize::MAX);
}

/// As [`reap`], of no more than so many. True if there were any.
pub fn reap_some(most: usize) -> bool {
    let mut any = false;
    for _ in 0..most {
        let Some(thread) = switch::take_dead() else { break };
        thread.free_stack();
        thread.left_stack();
        drop(thread);
        any = true;
        super::cond_resched();
    }
    any
}
