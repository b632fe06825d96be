//! What the host does by hand on x86-64.

mod ipi;
mod programs;

use core::sync::atomic::{AtomicU64, Ordering};

use hugetlb::{Level, PhysAddr, VirtAddr};
use ostd::cpu::{CpuId, CpuSet, PinCurrentCpu};
use ostd::mm::PAGE_SIZE;
use ostd::mm::tlb::TlbFlushOp;
use ostd::task::disable_preempt;
use ostd::util::id_set::Id;

use crate::cpus::CPUS;

pub use ipi::join;
pub use programs::{page_fault, print, set_arguments, set_result, synchronize_code, system_call};

/// Where OSTD maps all memory; it does not give the address out.
pub const LINEAR: usize = 0xffff_8000_0000_0000;
/// The level of a root's entries.
pub const ROOT: Level = Level::Pgd;

/// The shootdowns that were asked for.
static ASKED: AtomicU64 = AtomicU64::new(0);
/// The last one that each CPU has answered.
static ANSWERED: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];

/// Once, before any CPU joins.
pub fn init() {
    ipi::init(answer);
}

/// The root that this CPU walks from.
pub fn loaded_root() -> PhysAddr {
    let root: u64;
    // SAFETY: Reads a register.
    unsafe { core::arch::asm!("mov {}, cr3", out(reg) root, options(nomem, nostack)) };
    PhysAddr(root & !(PAGE_SIZE as u64 - 1))
}

/// Other tables were loaded: that alone makes this CPU forget.
pub fn forget_all() {}

/// A fault was resolved: x86 remembers no entry that was not there.
pub fn forget(_: VirtAddr) {}

/// Makes CPUs forget all translations, and waits for them.
///
/// An interrupt carries no argument and returns nothing. So each CPU answers by number.
pub fn shoot_down(targets: &CpuSet) {
    let number = ASKED.fetch_add(1, Ordering::SeqCst) + 1;
    let here = disable_preempt();
    for cpu in targets.iter().filter(|cpu| *cpu != here.current_cpu()) {
        ipi::send(cpu);
    }
    if targets.contains(here.current_cpu()) {
        answer();
    }
    for cpu in targets.iter() {
        // Interrupts are on here, so that two who wait for each other both get their answers.
        while ANSWERED[cpu.as_usize()].load(Ordering::Acquire) < number {
            core::hint::spin_loop();
        }
    }
}

/// Runs in an interrupt of each CPU that is asked.
fn answer() {
    // Before the flush: what is asked for later is answered later.
    let number = ASKED.load(Ordering::SeqCst);
    TlbFlushOp::for_all().perform_on_current();
    ANSWERED[CpuId::current_racy().as_usize()].fetch_max(number, Ordering::Release);
}
