//! The debug registers: what a thread's tracer wants to hear of.

use core::arch::asm;

/// DR6: the trap flag caused it.
pub const SINGLE_STEP: u64 = 1 << 14;
/// DR6: which of the four registers were hit.
pub const HITS: u64 = 0xf;

/// DR7's bit that is always set.
const ALWAYS: u64 = 1 << 10;

/// What a thread is watched for; nothing while `control` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugRegisters {
    /// DR0 to DR3; user addresses.
    pub addresses: [u64; 4],
    /// DR7, without its reserved bits.
    pub control: u64,
}

impl DebugRegisters {
    /// Watching nothing.
    pub const fn new() -> Self {
        Self { addresses: [0; 4], control: 0 }
    }

    /// Makes this CPU watch.
    pub(super) fn load(&self) {
        let [first, second, third, fourth] = self.addresses;
        // SAFETY: they hold user addresses, and a hit inside the kernel is forgotten by its handler, which has a stack of its own.
        unsafe {
            asm!(
                "mov dr0, {}",
                "mov dr1, {}",
                "mov dr2, {}",
                "mov dr3, {}",
                "mov dr7, {}",
                in(reg) first,
                in(reg) second,
                in(reg) third,
                in(reg) fourth,
                in(reg) self.control | ALWAYS,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// Makes this CPU watch nothing.
pub(super) fn unload() {
    // SAFETY: no address counts any more.
    unsafe { asm!("mov dr7, {}", in(reg) ALWAYS, options(nostack, preserves_flags)) };
}

/// Why the last debug exception came, which is forgotten: DR6. Interrupts have been off since the exception.
pub(super) fn take_status() -> u64 {
    let (status, control): (u64, u64);
    // SAFETY: DR6 only reports, and DR7 is read.
    unsafe {
        asm!("mov {}, dr6", out(reg) status, options(nostack, nomem, preserves_flags));
        asm!("mov dr6, {}", in(reg) 0xffff_0ff0u64, options(nostack, nomem, preserves_flags));
        asm!("mov {}, dr7", out(reg) control, options(nostack, nomem, preserves_flags));
    }
    // The processor may report a register that is not in use, whose address is another thread's.
    let unused = (0..4).filter(|index| control >> (2 * index) & 3 == 0);
    unused.fold(status, |status, index| status & !(1 << index))
}
