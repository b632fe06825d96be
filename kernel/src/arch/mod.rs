//! The x86-64 hardware: CPUs, traps, interrupts, timers, registers.

pub mod acpi;
pub mod apic;
pub mod clock;
pub mod context;
pub mod cpu;
pub mod debug;
pub mod entry;
pub mod features;
pub mod fpu;
pub mod gdt;
pub mod idt;
pub mod interrupts;
pub mod ioapic;
pub mod ipi;
mod mptable;
pub mod percpu;
pub mod port;
pub mod power;
pub mod rtc;
pub mod serial;
pub mod smap;
pub mod smp;
pub mod srat;
pub mod timer;
pub mod tlb;
pub mod trap;
