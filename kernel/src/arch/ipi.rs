//! Calls from one CPU to others by interrupt.
//!
//! Each CPU has one request slot, for the call that it makes, and one inbox, the set of CPUs whose request waits
//! for it. A caller fills its slot, puts itself into the inbox of each target, interrupts those whose inbox was
//! empty, and waits with interrupts on until the last target has run the request: so it answers the calls of
//! others while it waits, and any number of CPUs may call each other at once. Nothing is allocated.

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, Ordering};

use super::cpu::{self, AtomicCpuSet, CpuId, CpuSet, MAX_CPUS};
use super::percpu::PerCpu;
use super::{apic, interrupts, percpu};

type Function<'a> = dyn Fn() + Sync + 'a;

struct Request {
    /// What the targets run; valid while `pending` is not 0.
    function: UnsafeCell<Option<*const Function<'static>>>,
    /// Targets that have not run it yet.
    pending: AtomicU32,
}

// SAFETY: its own CPU writes `function` while `pending` is 0; targets read it while it is not.
unsafe impl Sync for Request {}

static REQUESTS: PerCpu<Request> = PerCpu::new(
    [const { Request { function: UnsafeCell::new(None), pending: AtomicU32::new(0) } }; MAX_CPUS],
);
static INBOXES: PerCpu<AtomicCpuSet> = PerCpu::new([const { AtomicCpuSet::new() }; MAX_CPUS]);

/// Runs `f` on each of `cpus`, and returns when all have finished it.
///
/// On other CPUs it runs with interrupts off: it must be short, and must neither wait nor call. Interrupts must be
/// on here when there are others, for two callers may be each other's targets. Not from interrupt handlers.
pub fn call(cpus: &CpuSet, f: &(dyn Fn() + Sync)) {
    let this = cpu::id();
    let mut others = cpus.intersection(&cpu::online());
    if others.contains(this) {
        f();
        others.remove(this);
    }
    if others.is_empty() {
        return;
    }
    assert!(interrupts::are_enabled(), "call to other CPUs with interrupts off");
    // The slot is this CPU's: the thread must not move, nor another one call here, until it is free again.
    percpu::preempt_disable();
    let request = REQUESTS.of(this);
    // SAFETY: the lifetime ends before this function returns, since it waits for all targets.
    let function = unsafe { core::mem::transmute::<*const Function<'_>, *const Function<'static>>(f) };
    // SAFETY: no target uses the slot: its last call has ended.
    unsafe { *request.function.get() = Some(function) };
    request.pending.store(others.len(), Ordering::SeqCst);
    for target in others.iter() {
        // An inbox that was not empty has an interrupt on its way, which will find this request too.
        if INBOXES.of(target).insert_was_empty(this) {
            apic::send(target, interrupts::CALL);
        }
    }
    while request.pending.load(Ordering::SeqCst) != 0 {
        spin_loop();
    }
    percpu::preempt_enable();
}

/// Runs what other CPUs ask of this one. Interrupts are off.
pub(super) fn handle_calls() {
    for caller in INBOXES.take().iter() {
        let request = REQUESTS.of(caller);
        // SAFETY: the caller put itself into the inbox after it had filled its slot, and keeps it until
        // `pending` falls to 0.
        unsafe {
            if let Some(function) = *request.function.get() {
                (*function)();
            }
        }
        request.pending.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Makes `cpu` pass through its scheduler soon.
pub fn reschedule(cpu: CpuId) {
    crate::sync::perturb::point();
    apic::send(cpu, interrupts::RESCHEDULE);
}
