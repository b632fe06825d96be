//! The interrupt descriptor table: all CPUs share one.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::size_of;

use super::{entry, gdt};

#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    offset_low: u16,
    selector: u16,
    ist: u8,
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

/// An interrupt gate: present, and interrupts are off on entry.
const INTERRUPT_GATE: u8 = 0x8e;
const RING3: u8 = 3 << 5;

impl Gate {
    const fn empty() -> Self {
        Self { offset_low: 0, selector: 0, ist: 0, kind: 0, offset_middle: 0, offset_high: 0, reserved: 0 }
    }

    fn new(handler: u64, ist: u8, ring3: bool) -> Self {
        Self {
            offset_low: handler as u16,
            selector: gdt::KERNEL_CODE,
            ist,
            kind: INTERRUPT_GATE | if ring3 { RING3 } else { 0 },
            offset_middle: (handler >> 16) as u16,
            offset_high: (handler >> 32) as u32,
            reserved: 0,
        }
    }
}

#[repr(align(4096))]
struct Table(UnsafeCell<[Gate; 256]>);

// SAFETY: written once by the boot CPU before the others start.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([Gate::empty(); 256]));

#[repr(C, packed(2))]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Fills the table; the boot CPU does this once.
pub(super) fn init() {
    // SAFETY: one CPU runs, and has not loaded the table.
    let table = unsafe { &mut *TABLE.0.get() };
    for (vector, gate) in table.iter_mut().enumerate() {
        let ist = match vector {
            1 => gdt::IST_DEBUG,
            2 => gdt::IST_NMI,
            8 => gdt::IST_DOUBLE_FAULT,
            18 => gdt::IST_MACHINE_CHECK,
            _ => 0,
        };
        // User mode may raise the breakpoint and overflow traps itself.
        let ring3 = matches!(vector, 3 | 4);
        *gate = Gate::new(entry::stub(vector as u8), ist, ring3);
    }
}

/// Makes the calling CPU use the table.
pub(super) fn load() {
    let pointer = TablePointer { limit: size_of::<[Gate; 256]>() as u16 - 1, base: TABLE.0.get() as u64 };
    // SAFETY: the table is static and complete.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack, readonly, preserves_flags)) };
}
