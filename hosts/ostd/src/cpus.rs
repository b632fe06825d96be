//! What each CPU runs, and when it has forgotten what it knew: shootdowns and grace periods.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use ostd::cpu::{CpuId, CpuSet, PinCurrentCpu, all_cpus};
use ostd::mm::Frame;
use ostd::sync::SpinLock;
use ostd::task::{DisabledPreemptGuard, disable_preempt};
use ostd::util::id_set::Id;

use crate::arch;

/// More than the machine that we boot has.
pub const CPUS: usize = 16;

struct Cpu {
    /// The address space whose tables are loaded, 0 for none of ours.
    space: AtomicU64,
    /// The one whose tables are loaded next, while that happens.
    next: AtomicU64,
    /// How often it was at a point where no walk through page tables is under way.
    quiescent: AtomicU64,
    /// It stays at such a point.
    is_idle: AtomicBool,
}

static CPU: [Cpu; CPUS] = [const {
    Cpu {
        space: AtomicU64::new(0),
        next: AtomicU64::new(0),
        quiescent: AtomicU64::new(0),
        is_idle: AtomicBool::new(false),
    }
}; CPUS];

fn of(cpu: CpuId) -> &'static Cpu {
    &CPU[cpu.as_usize()]
}

/// Loads the tables of a space by `load`. Until then this CPU counts as one of both spaces.
pub fn switch(guard: &DisabledPreemptGuard, space: u64, load: impl FnOnce()) {
    let cpu = of(guard.current_cpu());
    // SeqCst, with the fence in `shoot_down`: either the shootdown sees this space here, or the tables that are read from
    // now on are those that the shootdown's caller has changed already.
    cpu.next.store(space, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    load();
    arch::forget_all();
    cpu.space.store(space, Ordering::SeqCst);
}

/// Makes all CPUs that run a space of which `concerned` says yes forget all translations, and waits for them.
pub fn shoot_down(concerned: &mut dyn FnMut(u64) -> bool) {
    fence(Ordering::SeqCst);
    let mut targets = CpuSet::new_empty();
    for cpu in all_cpus() {
        let spaces = [&of(cpu).space, &of(cpu).next].map(|space| space.load(Ordering::SeqCst));
        if spaces.into_iter().any(|space| space != 0 && concerned(space)) {
            targets.add(cpu);
        }
    }
    if !targets.is_empty() {
        arch::shoot_down(&targets);
    }
}

/// This CPU is at a point where no walk is under way: it switches tasks, enters user mode, or the library gives way.
pub fn pass_quiescent_point() {
    let guard = disable_preempt();
    // Release: what the walks before have read was read before.
    of(guard.current_cpu()).quiescent.fetch_add(1, Ordering::Release);
}

/// This CPU has nothing to do, or has again.
pub fn set_idle(is_idle: bool) {
    let guard = disable_preempt();
    of(guard.current_cpu()).is_idle.store(is_idle, Ordering::SeqCst);
}

/// A frame that walks may still be in, and what the CPUs had counted when it was retired.
struct Retired {
    frame: Frame<()>,
    counts: Vec<u64>,
}

static RETIRED: SpinLock<VecDeque<Retired>> = SpinLock::new(VecDeque::new());

fn counts() -> Vec<u64> {
    all_cpus().map(|cpu| of(cpu).quiescent.load(Ordering::SeqCst)).collect()
}

fn has_passed(counts: &[u64], here: CpuId) -> bool {
    all_cpus().zip(counts).all(|(cpu, count)| {
        let of = of(cpu);
        cpu == here || of.is_idle.load(Ordering::SeqCst) || of.quiescent.load(Ordering::Acquire) > *count
    })
}

/// Frees the frame after a grace period.
pub fn free_after_grace_period(frame: Frame<()>) {
    let counts = counts();
    RETIRED.lock().push_back(Retired { frame, counts });
}

/// Frees what has waited long enough. The caller walks through no table at this moment.
pub fn reclaim() {
    loop {
        let mut retired = RETIRED.lock();
        let here = CpuId::current_racy();
        let Some(first) = retired.pop_front_if(|first| has_passed(&first.counts, here)) else { return };
        drop(retired);
        drop(first.frame);
    }
}

/// Whether nothing waits.
pub fn is_settled() -> bool {
    RETIRED.lock().is_empty()
}
