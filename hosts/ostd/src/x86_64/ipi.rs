//! Interrupts to other CPUs.
//!
//! OSTD 0.18.0 sends its own to CPU 0, whomever they are for, on a machine without x2APIC: it takes the ID register, whose
//! upper 8 bits are the ID, for the ID. QEMU emulates no x2APIC. So we have a line of our own, and write the command register.

use core::sync::atomic::{AtomicU32, Ordering};

use hugetlb::PhysAddr;
use ostd::cpu::{CpuId, PinCurrentCpu};
use ostd::irq::{IrqLine, disable_local};
use ostd::task::disable_preempt;
use ostd::util::id_set::Id;
use spin::Once;

use crate::cpus::CPUS;
use crate::memory;

/// Where each CPU sees its local APIC.
const APIC: PhysAddr = PhysAddr(0xfee0_0000);
const ID: usize = 0x20;
const COMMAND: usize = 0x300;
const DESTINATION: usize = 0x310;
const PENDING: u32 = 1 << 12;
const ASSERT: u32 = 1 << 14;

static LINE: Once<IrqLine> = Once::new();
/// Bits 24 to 31 of each CPU's ID register.
static IDS: [AtomicU32; CPUS] = [const { AtomicU32::new(0) }; CPUS];

fn register(offset: usize) -> *mut u32 {
    memory::linear(APIC).wrapping_add(offset).cast()
}

/// Sets up the line, once: `handler` runs on each CPU that is interrupted.
pub fn init(handler: fn()) {
    LINE.call_once(|| {
        let mut line = IrqLine::alloc().expect("an interrupt line");
        line.on_active(move |_| handler());
        line
    });
}

/// Makes the CPU that this runs on known.
pub fn join() {
    let guard = disable_preempt();
    // SAFETY: OSTD's linear map covers the local APIC; reading the ID changes nothing.
    let id = unsafe { register(ID).read_volatile() };
    IDS[guard.current_cpu().as_usize()].store(id, Ordering::SeqCst);
}

/// Interrupts another CPU. Does not wait.
pub fn send(cpu: CpuId) {
    let line = LINE.get().expect("set up before the first shootdown");
    // Nobody else on this CPU writes the two registers in between.
    let _guard = disable_local();
    // SAFETY: As in `join`; the command is a fixed interrupt of a line that has a handler, to one CPU.
    unsafe {
        while register(COMMAND).read_volatile() & PENDING != 0 {}
        register(DESTINATION).write_volatile(IDS[cpu.as_usize()].load(Ordering::SeqCst));
        register(COMMAND).write_volatile(ASSERT | u32::from(line.num()));
    }
}
