//! The I/O APICs, which bring device interrupts to CPUs; the legacy controllers are masked.

use alloc::vec::Vec;

use super::{acpi, interrupts, percpu, port};
use crate::memory::{self, VirtAddr};
use crate::sync::IrqLock;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const VERSION: u32 = 1;
const REDIRECTION: u32 = 0x10;

const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const ACTIVE_LOW: u32 = 1 << 13;

struct IoApic {
    registers: VirtAddr,
    first: u32,
    count: u32,
}

impl IoApic {
    fn read(&self, register: u32) -> u32 {
        // SAFETY: mapped registers, and the caller holds the lock around the pair of accesses.
        unsafe {
            (self.registers + SELECT).as_ptr::<u32>().write_volatile(register);
            (self.registers + WINDOW).as_ptr::<u32>().read_volatile()
        }
    }

    fn write(&self, register: u32, value: u32) {
        // SAFETY: as `read`.
        unsafe {
            (self.registers + SELECT).as_ptr::<u32>().write_volatile(register);
            (self.registers + WINDOW).as_ptr::<u32>().write_volatile(value);
        }
    }
}

static IO_APICS: IrqLock<Vec<IoApic>> = IrqLock::new(Vec::new());

/// Masks everything: a device's interrupt comes only when a driver asks for it.
pub(super) fn init() {
    mask_legacy();
    let Some(firmware) = acpi::firmware() else { return };
    for info in &firmware.io_apics {
        let registers = memory::paging::map_device(info.address, memory::PAGE_SIZE as u64);
        let mut io_apic = IoApic { registers, first: info.first, count: 0 };
        io_apic.count = (io_apic.read(VERSION) >> 16 & 0xff) + 1;
        for index in 0..io_apic.count {
            io_apic.write(REDIRECTION + 2 * index, MASKED);
            io_apic.write(REDIRECTION + 2 * index + 1, 0);
        }
        IO_APICS.lock().push(io_apic);
    }
}

/// Moves the two 8259s' vectors away from the exceptions and masks all their lines.
fn mask_legacy() {
    const MASTER: u16 = 0x20;
    const SLAVE: u16 = 0xa0;
    // SAFETY: the standard initialisation; nobody else drives the 8259s.
    unsafe {
        for (controller, vector, wiring) in [(MASTER, 0x20, 4), (SLAVE, 0x28, 2)] {
            port::write_u8(controller, 0x11);
            port::write_u8(controller + 1, vector);
            port::write_u8(controller + 1, wiring);
            port::write_u8(controller + 1, 1);
            port::write_u8(controller + 1, 0xff);
        }
    }
}

/// Brings an ISA interrupt to the boot CPU, where `handler` runs with interrupts off.
///
/// False when no I/O APIC serves it.
pub fn enable_isa(isa: u8, handler: fn()) -> bool {
    let Some(firmware) = acpi::firmware() else { return false };
    let default = acpi::IsaRoute { isa, global: isa as u32, active_low: false, level: false };
    let route = firmware.isa_routes.iter().find(|route| route.isa == isa).unwrap_or(&default);
    let io_apics = IO_APICS.lock();
    let serving = |io_apic: &&IoApic| (io_apic.first..io_apic.first + io_apic.count).contains(&route.global);
    let Some(io_apic) = io_apics.iter().find(serving) else { return false };
    let vector = interrupts::FIRST_DEVICE + isa;
    interrupts::set_handler(vector, handler);
    let register = REDIRECTION + 2 * (route.global - io_apic.first);
    let mut entry = vector as u32;
    if route.active_low {
        entry |= ACTIVE_LOW;
    }
    if route.level {
        entry |= LEVEL;
    }
    io_apic.write(register + 1, percpu::apic_id(0) << 24);
    io_apic.write(register, entry);
    true
}
