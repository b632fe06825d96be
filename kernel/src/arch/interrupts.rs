//! The interrupt flag of this CPU, and who handles which interrupt vector.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::cpu::MAX_CPUS;
use super::percpu::PerCpu;

const INTERRUPT_FLAG: u64 = 1 << 9;

/// Vectors below are exceptions.
pub const FIRST_EXTERNAL: u8 = 32;
/// First vector for device interrupts.
pub const FIRST_DEVICE: u8 = 0x30;
pub const TIMER: u8 = 0xec;
pub const CALL: u8 = 0xfb;
pub const RESCHEDULE: u8 = 0xfd;
pub const APIC_ERROR: u8 = 0xfe;
pub const SPURIOUS: u8 = 0xff;

/// Lets this CPU take interrupts.
pub fn enable() {
    // SAFETY: handlers are installed before anybody enables interrupts. Not `nomem`: memory accesses must
    // not move across.
    unsafe { asm!("sti", options(nostack)) };
}

/// Keeps this CPU from taking interrupts.
pub fn disable() {
    // SAFETY: only delays interrupts.
    unsafe { asm!("cli", options(nostack)) };
}

/// Whether this CPU takes interrupts now.
pub fn are_enabled() -> bool {
    flags() & INTERRUPT_FLAG != 0
}

/// Waits for the next interrupt; called with interrupts off, returns with interrupts on.
///
/// `sti` takes effect after the next instruction, so an interrupt that came since `disable` still wakes the CPU.
pub fn enable_and_wait() {
    // SAFETY: as `enable`.
    unsafe { asm!("sti", "hlt", options(nostack)) };
}

/// Takes the interrupts that wait, and returns with interrupts on.
///
/// `sti` takes effect after the next instruction, so that `sti` and a `cli` behind it let none in. The instruction between them is not
/// `pause`: QEMU hands the delay on from it to the next one.
pub fn enable_and_take() {
    // SAFETY: as `enable`.
    unsafe { asm!("sti", "nop", options(nostack)) };
}

fn flags() -> u64 {
    let flags: u64;
    // SAFETY: reads the flags through the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(nomem, preserves_flags)) };
    flags
}

/// Runs `f` with interrupts off, then puts the flag back.
pub fn without<R>(f: impl FnOnce() -> R) -> R {
    let enabled = are_enabled();
    disable();
    let result = f();
    if enabled {
        enable();
    }
    result
}

/// Handlers of device vectors, as `fn()` addresses; 0 is none.
static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];

/// Makes `handler` run, with interrupts off and after the end-of-interrupt, whenever `vector` arrives.
pub fn set_handler(vector: u8, handler: fn()) {
    HANDLERS[vector as usize].store(handler as usize, Ordering::SeqCst);
}

/// Runs the handler of a device vector; false when there is none.
pub(super) fn run_handler(vector: u8) -> bool {
    let handler = HANDLERS[vector as usize].load(Ordering::SeqCst);
    if handler == 0 {
        return false;
    }
    // SAFETY: only `set_handler` stores non-zero values, and those are `fn()`.
    let handler: fn() = unsafe { core::mem::transmute(handler) };
    handler();
    true
}

/// How often each kind of interrupt came to each CPU.
pub struct Counts {
    /// The local timer.
    pub timer: AtomicU64,
    /// Calls from other CPUs, flushes included.
    pub calls: AtomicU64,
    /// Wakes from other CPUs.
    pub reschedules: AtomicU64,
    /// Devices: the serial port is the only one.
    pub devices: AtomicU64,
}

/// The counts since boot.
pub static COUNTS: PerCpu<Counts> = PerCpu::new(
    [const {
        Counts {
            timer: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            reschedules: AtomicU64::new(0),
            devices: AtomicU64::new(0),
        }
    }; MAX_CPUS],
);

/// Counts an interrupt of this CPU.
pub(super) fn count(vector: u8) {
    let counter = match vector {
        TIMER => &COUNTS.timer,
        CALL => &COUNTS.calls,
        RESCHEDULE => &COUNTS.reschedules,
        _ => &COUNTS.devices,
    };
    // Relaxed: a statistic.
    counter.fetch_add(1, Ordering::Relaxed);
}
