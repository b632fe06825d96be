//! What the host does by hand on riscv64, with Sv48 or (feature `sv39`) Sv39.

mod programs;

use core::arch::asm;

use hugetlb::{Level, PhysAddr, VirtAddr};
use ostd::cpu::{CpuSet, PinCurrentCpu};
use ostd::task::disable_preempt;
use sbi_rt::HartMask;

pub use programs::{page_fault, print, set_arguments, set_result, synchronize_code, system_call};

/// Where OSTD maps all memory; it does not give the address out.
#[cfg(not(feature = "sv39"))]
pub const LINEAR: usize = 0xffff_8000_0000_0000;
#[cfg(feature = "sv39")]
pub const LINEAR: usize = 0xffff_ffc0_0000_0000;

/// The level of a root's entries.
#[cfg(not(feature = "sv39"))]
pub const ROOT: Level = Level::Pgd;
#[cfg(feature = "sv39")]
pub const ROOT: Level = Level::Pud;

/// The page number in `satp`, above which are the address-space identifier (0 for all) and the mode.
const ROOT_NUMBER: u64 = (1 << 44) - 1;

/// Once, before any CPU joins: there is nothing to set up.
pub fn init() {}

/// On each CPU: there is nothing to tell.
pub fn join() {}

/// The root that this CPU walks from.
pub fn loaded_root() -> PhysAddr {
    let satp: u64;
    // SAFETY: Reads a register.
    unsafe { asm!("csrr {}, satp", out(reg) satp, options(nomem, nostack)) };
    PhysAddr((satp & ROOT_NUMBER) << Level::Pte.shift())
}

/// Other tables were loaded. `satp` alone changes nothing that this hart remembers, and all spaces have one identifier.
pub fn forget_all() {
    // SAFETY: Forgetting translations changes the speed of what follows, nothing else.
    unsafe { asm!("sfence.vma", options(nostack)) };
}

/// A fault was resolved. A hart may remember that an entry was not valid, and would fault for it again and again.
pub fn forget(address: VirtAddr) {
    // SAFETY: As above.
    unsafe { asm!("sfence.vma {}, zero", in(reg) address.0, options(nostack)) };
}

/// All harts, those included that do not run: the firmware leaves these out.
fn all_harts() -> HartMask {
    HartMask::from_mask_base(0, usize::MAX)
}

/// Makes harts forget all translations, and waits for them: the firmware does both, without an interrupt that the kernel sees. So a
/// hart that holds interrupts off holds nobody up. OSTD's interprocessor calls would not do: what comes between the last look at
/// their queue and the end of the interrupt is lost.
///
/// Which hart is which CPU OSTD does not tell, so all are asked when one is concerned that is not this one.
pub fn shoot_down(targets: &CpuSet) {
    // What is removed is removed before the fences: the firmware is another program, and promises to order nothing of ours.
    // SAFETY: A fence.
    unsafe { asm!("fence rw, rw", options(nostack)) };
    let here = disable_preempt();
    if targets.iter().all(|cpu| cpu == here.current_cpu()) {
        forget_all();
    } else {
        assert_eq!(
            sbi_rt::remote_sfence_vma(all_harts(), 0, usize::MAX).error,
            0,
            "the firmware knows no remote fences"
        );
    }
}
