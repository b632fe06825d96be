//! Power-off, restart and halt.

use core::arch::asm;

use super::acpi::{self, Register};
use super::{clock, interrupts, port};
use crate::memory::{self, PhysAddr};

const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u32 = 10;
const SCI_ENABLE: u16 = 1;

/// Switches the machine off; restarts it where that does not work, as virtual machines without ACPI end then.
pub fn off() -> ! {
    interrupts::disable();
    if let Some(firmware) = acpi::firmware() {
        let power = &firmware.power;
        if let (Some(control), Some((type_a, _))) = (power.sleep_control, power.s5) {
            // Hardware-reduced ACPI: sleep type in bits 2 to 4, enable in bit 5.
            write_u8(control, type_a << 2 | 1 << 5);
        }
        if let (Some(control), Some((type_a, type_b))) = (power.pm1a_control, power.s5) {
            enable_acpi(control, power.enable);
            write_u16(control, (type_a as u16) << SLEEP_TYPE_SHIFT | SLEEP_ENABLE);
            if let Some(control) = power.pm1b_control {
                write_u16(control, (type_b as u16) << SLEEP_TYPE_SHIFT | SLEEP_ENABLE);
            }
        }
        clock::delay_us(100_000);
    }
    restart()
}

/// Firmware must have handed the PM1 registers over before they work.
fn enable_acpi(control: Register, enable: Option<(u16, u8)>) {
    if read_u16(control) & SCI_ENABLE == 0
        && let Some((command, value)) = enable
    {
        // SAFETY: the port and value that firmware names for this.
        unsafe { port::write_u8(command, value) };
        for _ in 0..1000 {
            if read_u16(control) & SCI_ENABLE != 0 {
                return;
            }
            clock::delay_us(100);
        }
    }
}

/// Restarts the machine.
pub fn restart() -> ! {
    interrupts::disable();
    if let Some((register, value)) = acpi::firmware().and_then(|firmware| firmware.power.reset) {
        write_u8(register, value);
        clock::delay_us(10_000);
    }
    // SAFETY: the ways to reset a PC: the keyboard controller's line, the chip set's register.
    unsafe {
        port::write_u8(0x64, 0xfe);
        clock::delay_us(10_000);
        port::write_u8(0xcf9, 0x02);
        port::write_u8(0xcf9, 0x06);
        clock::delay_us(10_000);
    }
    // What always works: a fault that cannot be handled.
    #[repr(C, packed(2))]
    struct TablePointer {
        limit: u16,
        base: u64,
    }
    let nothing = TablePointer { limit: 0, base: 0 };
    // SAFETY: the CPU shuts down, which resets the machine.
    unsafe { asm!("lidt [{}]", "int3", in(reg) &nothing) };
    halt()
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        interrupts::disable();
        // SAFETY: waits for an interrupt that cannot come; an NMI only makes it wait again.
        unsafe { asm!("hlt", options(nomem, nostack)) };
    }
}

fn write_u8(register: Register, value: u8) {
    // SAFETY: a register that firmware describes for this purpose.
    unsafe {
        if register.port {
            port::write_u8(register.address as u16, value);
        } else {
            memory::paging::map_device(PhysAddr(register.address), 1).as_ptr::<u8>().write_volatile(value);
        }
    }
}

fn write_u16(register: Register, value: u16) {
    // SAFETY: as `write_u8`.
    unsafe {
        if register.port {
            port::write_u16(register.address as u16, value);
        } else {
            memory::paging::map_device(PhysAddr(register.address), 2).as_ptr::<u16>().write_volatile(value);
        }
    }
}

fn read_u16(register: Register) -> u16 {
    // SAFETY: a register that firmware describes; reading has no side effects.
    unsafe {
        if register.port {
            port::read_u16(register.address as u16)
        } else {
            memory::paging::map_device(PhysAddr(register.address), 2).as_ptr::<u16>().read_volatile()
        }
    }
}
