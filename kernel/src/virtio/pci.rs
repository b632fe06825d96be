//! PCI's configuration space by its two ports: mechanism 1, which every PC has.

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use crate::arch::port;
use crate::sync::IrqLock;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
/// Registers by which a device says where it interrupts.
const INTERRUPT: u8 = 0x3c;

/// An address and its datum are one access.
static ACCESS: IrqLock<()> = IrqLock::new(());

/// The ports.
pub struct Ports;

fn select(function: DeviceFunction, register: u8) {
    const ENABLE: u32 = 1 << 31;
    let (bus, device) = (u32::from(function.bus), u32::from(function.device));
    let place = bus << 16 | device << 11 | u32::from(function.function) << 8;
    // SAFETY: the port of the host bridge, under the lock of its users.
    unsafe { port::write_u32(ADDRESS, ENABLE | place | u32::from(register & !3)) };
}

impl ConfigurationAccess for Ports {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        let _access = ACCESS.lock();
        select(function, register);
        // SAFETY: as in `select`.
        unsafe { port::read_u32(DATA) }
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, data: u32) {
        let _access = ACCESS.lock();
        select(function, register);
        // SAFETY: as in `select`; what is written is a driver's business.
        unsafe { port::write_u32(DATA, data) };
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Ports
    }
}

/// The ISA interrupt that firmware has routed a function's pin to.
pub fn interrupt_line(function: DeviceFunction) -> Option<u8> {
    let word = Ports.read_word(function, INTERRUPT);
    let (line, pin) = (word as u8, (word >> 8) as u8);
    (pin != 0).then_some(line)
}

/// Where a structure of virtio lies: the number of a BAR, and the offset in it. `capability` tells of it.
pub fn place(function: DeviceFunction, capability: u8) -> (u8, u32) {
    let bar = Ports.read_word(function, capability + 4) as u8;
    (bar, Ports.read_word(function, capability + 8))
}
