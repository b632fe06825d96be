//! The local APIC, in xAPIC mode: its registers are in memory.

use core::sync::atomic::{AtomicU64, Ordering};

use super::cpu::CpuId;
use super::{features, interrupts, percpu};
use crate::memory::{self, PhysAddr};

const ID: usize = 0x20;
const TASK_PRIORITY: usize = 0x80;
const END_OF_INTERRUPT: usize = 0xb0;
const SPURIOUS_VECTOR: usize = 0xf0;
const ERROR_STATUS: usize = 0x280;
const COMMAND_LOW: usize = 0x300;
const COMMAND_HIGH: usize = 0x310;
const LVT_TIMER: usize = 0x320;
const LVT_PERFORMANCE: usize = 0x340;
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const LVT_ERROR: usize = 0x370;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;

const ENABLE: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const DELIVERY_NMI: u32 = 4 << 8;
const DELIVERY_INIT: u32 = 5 << 8;
const DELIVERY_STARTUP: u32 = 6 << 8;
const DELIVERY_PENDING: u32 = 1 << 12;
const LEVEL_ASSERT: u32 = 1 << 14;
const LEVEL_TRIGGER: u32 = 1 << 15;
/// Divide the bus clock by one.
const DIVIDE_BY_ONE: u32 = 0b1011;
const BASE_MASK: u64 = 0xf_ffff_f000;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;

/// Virtual address of the registers; the same for all CPUs, each of which sees its own. 0 before `init`.
static REGISTERS: AtomicU64 = AtomicU64::new(0);

fn register(offset: usize) -> *mut u32 {
    // Relaxed: written once, by the boot CPU, before the others start.
    (REGISTERS.load(Ordering::Relaxed) as usize + offset) as *mut u32
}

fn read(offset: usize) -> u32 {
    // SAFETY: a mapped APIC register; those read here have no side effects.
    unsafe { register(offset).read_volatile() }
}

fn write(offset: usize, value: u32) {
    // SAFETY: a mapped APIC register; the values are the ones the manual wants.
    unsafe { register(offset).write_volatile(value) };
}

/// Maps the registers; the boot CPU does this once.
pub(super) fn map() {
    let base = PhysAddr(features::read_msr(features::MSR_APIC_BASE) & BASE_MASK);
    let address = memory::paging::map_device(base, memory::PAGE_SIZE as u64);
    REGISTERS.store(address.as_u64(), Ordering::SeqCst);
}

/// Sets up the calling CPU's APIC.
pub(super) fn init() {
    let base = features::read_msr(features::MSR_APIC_BASE);
    if base & BASE_X2APIC != 0 {
        // Firmware may have left x2APIC mode on; the way back to xAPIC leads through "off".
        // SAFETY: allowed transitions; no interrupt is expected yet.
        unsafe {
            features::write_msr(features::MSR_APIC_BASE, base & !(BASE_X2APIC | BASE_ENABLE));
            features::write_msr(features::MSR_APIC_BASE, base & !BASE_X2APIC | BASE_ENABLE);
        }
    } else if base & BASE_ENABLE == 0 {
        // SAFETY: turns the APIC on.
        unsafe { features::write_msr(features::MSR_APIC_BASE, base | BASE_ENABLE) };
    }
    write(TASK_PRIORITY, 0);
    write(LVT_TIMER, MASKED);
    write(LVT_PERFORMANCE, MASKED);
    write(LVT_LINT0, MASKED);
    write(LVT_LINT1, DELIVERY_NMI);
    write(LVT_ERROR, interrupts::APIC_ERROR as u32);
    write(SPURIOUS_VECTOR, ENABLE | interrupts::SPURIOUS as u32);
    write(ERROR_STATUS, 0);
    end_of_interrupt();
}

/// This CPU's identifier on the interrupt bus.
pub(super) fn id() -> u32 {
    read(ID) >> 24
}

pub(super) fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// Reads and clears the errors since the last call.
pub(super) fn take_error() -> u32 {
    write(ERROR_STATUS, 0);
    read(ERROR_STATUS)
}

/// Writes the two halves of the command register as one, and waits until it was sent.
fn command(apic_id: u32, low: u32) {
    interrupts::without(|| {
        write(COMMAND_HIGH, apic_id << 24);
        write(COMMAND_LOW, low);
        while read(COMMAND_LOW) & DELIVERY_PENDING != 0 {
            core::hint::spin_loop();
        }
    });
}

/// Interrupts `cpu` with `vector`.
pub(super) fn send(cpu: CpuId, vector: u8) {
    command(percpu::apic_id(cpu), vector as u32 | LEVEL_ASSERT);
}

/// Interrupts `cpu` even when it has interrupts off.
pub fn send_nmi(cpu: CpuId) {
    if REGISTERS.load(Ordering::SeqCst) != 0 {
        command(percpu::apic_id(cpu), DELIVERY_NMI | LEVEL_ASSERT);
    }
}

/// Puts a CPU into the state in which it waits for [`send_startup`].
pub(super) fn send_init(apic_id: u32) {
    command(apic_id, DELIVERY_INIT | LEVEL_TRIGGER | LEVEL_ASSERT);
    command(apic_id, DELIVERY_INIT | LEVEL_TRIGGER);
}

/// Starts a CPU in real mode at `page`, an address below 1 MiB.
pub(super) fn send_startup(apic_id: u32, page: PhysAddr) {
    command(apic_id, DELIVERY_STARTUP | LEVEL_ASSERT | page.page_number() as u32);
}

/// Counts the timer down from `ticks`, once, and interrupts at 0; 0 stops it.
pub(super) fn arm_timer(ticks: u32) {
    write(TIMER_DIVIDE, DIVIDE_BY_ONE);
    write(LVT_TIMER, interrupts::TIMER as u32);
    write(TIMER_INITIAL, ticks);
}

/// Starts the timer from its highest value without an interrupt, to measure its rate.
pub(super) fn start_measuring() {
    write(TIMER_DIVIDE, DIVIDE_BY_ONE);
    write(LVT_TIMER, MASKED | interrupts::TIMER as u32);
    write(TIMER_INITIAL, u32::MAX);
}

/// Ticks since [`start_measuring`].
pub(super) fn measured() -> u32 {
    u32::MAX - read(TIMER_CURRENT)
}
