//! The end: a message, where it happened, and what `panic=` asks for.

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::arch::trap::{self, TrapFrame};
use crate::arch::{apic, clock, cpu, interrupts, power, serial};
use crate::boot::cmdline;
use crate::memory;

const NOBODY: u32 = u32::MAX;

/// The CPU that panicked first.
static PANICKED: AtomicU32 = AtomicU32::new(NOBODY);

/// Writes straight to the serial port: nothing that allocates or waits for others.
struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                serial::write(b"\r\n");
            }
            serial::write(line.as_bytes());
        }
        Ok(())
    }
}

/// Makes this the CPU that panics and stops all others; a second one stops here.
fn take_over() {
    interrupts::disable();
    let this = cpu::id();
    if PANICKED.compare_exchange(NOBODY, this, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        // Another CPU panics, or this one did so while it panicked.
        if PANICKED.load(Ordering::SeqCst) == this {
            serial::write(b"\r\npanic inside of a panic\r\n");
            finish();
        }
        power::halt();
    }
    for other in cpu::online().iter().filter(|cpu| *cpu != this) {
        apic::send_nmi(other);
    }
    // They need only reach their next instruction; what they were printing ends here.
    clock::delay_us(1000);
    // SAFETY: the other CPUs have stopped.
    unsafe { serial::seize() };
}

/// An NMI: another CPU panics, else something we do not know.
pub(crate) fn nmi() {
    if PANICKED.load(Ordering::SeqCst) != NOBODY {
        power::halt();
    }
    log::warn!("NMI for an unknown reason");
}

#[cfg_attr(target_os = "none", panic_handler)]
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
fn panic(info: &PanicInfo) -> ! {
    take_over();
    let _ = writeln!(Console, "\n\nKernel panic - CPU {}: {}", cpu::id(), info.message());
    if let Some(location) = info.location() {
        let _ = writeln!(Console, "  at {location}");
    }
    let frame: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    backtrace(frame);
    finish()
}

/// An exception in kernel mode that nobody resolves.
pub(crate) fn exception(frame: &TrapFrame, vector: u8, address: u64) -> ! {
    take_over();
    let name = match vector {
        trap::DIVIDE_ERROR => "divide error",
        6 => "invalid instruction",
        trap::DOUBLE_FAULT => "double fault",
        12 => "stack fault",
        trap::GENERAL_PROTECTION => "general protection fault",
        trap::PAGE_FAULT => "page fault",
        trap::MACHINE_CHECK => "machine check",
        _ => "exception",
    };
    let _ = writeln!(Console, "\n\nKernel panic - CPU {}: {name} ({vector}) in kernel mode", cpu::id());
    if vector == trap::PAGE_FAULT || vector == trap::DOUBLE_FAULT {
        let _ = writeln!(Console, "  address {address:#018x}");
        if memory::stack::is_guard(address) {
            let _ = writeln!(Console, "  kernel stack overflow");
        }
    }
    let _ = writeln!(
        Console,
        "  rip {:#018x} cs {:#x} error {:#x} flags {:#x}\n  rsp {:#018x} rbp {:#018x}\n  \
         rax {:#018x} rbx {:#018x} rcx {:#018x}\n  rdx {:#018x} rsi {:#018x} rdi {:#018x}\n  \
         r8  {:#018x} r9  {:#018x} r10 {:#018x}\n  r11 {:#018x} r12 {:#018x} r13 {:#018x}\n  \
         r14 {:#018x} r15 {:#018x}",
        frame.rip,
        frame.cs,
        frame.error,
        frame.rflags,
        frame.rsp,
        frame.rbp,
        frame.rax,
        frame.rbx,
        frame.rcx,
        frame.rdx,
        frame.rsi,
        frame.rdi,
        frame.r8,
        frame.r9,
        frame.r10,
        frame.r11,
        frame.r12,
        frame.r13,
        frame.r14,
        frame.r15,
    );
    backtrace(frame.rbp);
    finish()
}

/// Prints return addresses, by the chain of frame pointers.
fn backtrace(mut frame: u64) {
    let _ = writeln!(Console, "  backtrace (addr2line -e kernel.elf):");
    for _ in 0..32 {
        // Frames are on stacks in the kernel area, in the image, or in the direct map, at multiples of 8; a stack
        // that overflowed has its frame above the guard.
        let plausible = frame >= memory::DIRECT_MAP
            && frame.is_multiple_of(8)
            && frame < u64::MAX - 16
            && !memory::stack::is_guard(frame);
        if !plausible {
            break;
        }
        // SAFETY: a kernel address that a frame pointer held. A wrong one ends in a panic inside of a panic,
        // which is handled.
        let [next, address] = unsafe { (frame as *const [u64; 2]).read_volatile() };
        if address == 0 {
            break;
        }
        let _ = writeln!(Console, "    {address:#018x}");
        if next <= frame {
            break;
        }
        frame = next;
    }
}

/// What `panic=` says: negative restarts at once, positive after so many seconds, 0 (and nothing) stays.
fn finish() -> ! {
    let seconds = cmdline::get("panic").and_then(|value| value.parse::<i64>().ok()).unwrap_or(0);
    if seconds == 0 {
        let _ = writeln!(Console, "  halted");
        power::halt();
    }
    for _ in 0..seconds.max(0) {
        clock::delay_us(1_000_000);
    }
    power::restart()
}
