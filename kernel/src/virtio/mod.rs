//! Virtio devices on PCI: virtio 1.2, by the crate `virtio-drivers`.
//!
//! Here is what the crate asks of a kernel (memory that devices reach, PCI's configuration space), and the interrupt. Devices share the
//! old interrupt lines, which firmware has routed: there is no interpreter of ACPI's tables that could route others. A handler asks each
//! device whether it is the one, which also takes the line back.

mod hal;
mod pci;

use core::ptr::NonNull;

use ::log::{info, warn};
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{Command, DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, VIRTIO_PCI_CAP_ISR_CFG, virtio_device_type};

pub use self::hal::{Buffers, Memory};
use self::pci::Ports;
use crate::arch::ioapic;
use crate::sync::IrqLock;

/// A device that was found, and the way to hear of its interrupts.
pub struct Found {
    /// For a driver of `virtio-drivers`.
    pub transport: PciTransport,
    interrupt: Option<Interrupt>,
}

struct Interrupt {
    line: u8,
    /// The register that says whether the device has interrupted; reading it ends the interrupt.
    status: NonNull<u8>,
}

// SAFETY: a register, which any CPU may read.
unsafe impl Send for Interrupt {}

/// A device whose interrupts are taken.
struct Heard {
    status: NonNull<u8>,
    handler: fn(),
}

// SAFETY: a register, which any CPU may read.
unsafe impl Send for Heard {}

/// More devices than this are not heard: as many as a bus has.
const MOST_HEARD: usize = 32;
static HEARD: IrqLock<[Option<Heard>; MOST_HEARD]> = IrqLock::new([const { None }; MOST_HEARD]);

/// The first device of a type on the first bus, where QEMU puts what nothing else is said of.
pub fn find(wanted: DeviceType) -> Option<Found> {
    find_all(wanted).next()
}

/// All devices of a type there.
pub fn find_all(wanted: DeviceType) -> impl Iterator<Item = Found> {
    let is_wanted = move |info: &_| virtio_device_type(info) == Some(wanted);
    let functions = PciRoot::new(Ports).enumerate_bus(0).filter(move |(_, info)| is_wanted(info));
    functions.filter_map(move |(function, _)| open(function, wanted))
}

fn open(function: DeviceFunction, wanted: DeviceType) -> Option<Found> {
    let mut root = PciRoot::new(Ports);
    let (_, command) = root.get_status_command(function);
    let enabled = command | Command::MEMORY_SPACE | Command::BUS_MASTER;
    root.set_command(function, enabled - Command::INTERRUPT_DISABLE);
    let transport = PciTransport::new::<Memory, _>(&mut root, function)
        .inspect_err(|error| warn!("virtio device {function}: {error}"))
        .ok()?;
    let interrupt = interrupt_of(&mut root, function);
    info!("virtio: {wanted:?} at {function}, {}", Line(interrupt.as_ref()));
    Some(Found { transport, interrupt })
}

/// An interrupt's line, for people.
struct Line<'a>(Option<&'a Interrupt>);

impl core::fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            Some(interrupt) => write!(f, "interrupt {}", interrupt.line),
            None => f.write_str("no interrupt"),
        }
    }
}

fn interrupt_of(root: &mut PciRoot<Ports>, function: DeviceFunction) -> Option<Interrupt> {
    /// Vendors' own capabilities; virtio's have a type behind the length.
    const VENDORS: u8 = 9;
    /// A line that is not connected.
    const LINES: u8 = 16;
    let line = pci::interrupt_line(function).filter(|line| (1..LINES).contains(line))?;
    let is_status = |header: u16| (header >> 8) as u8 == VIRTIO_PCI_CAP_ISR_CFG;
    let place = root.capabilities(function).find(|c| c.id == VENDORS && is_status(c.private_header))?;
    let (bar, offset) = pci::place(function, place.offset);
    let (address, size) = root.bar_info(function, bar).ok()??.memory_address_size()?;
    if address == 0 || u64::from(offset) >= size {
        return None;
    }
    // SAFETY: a register of the device, in a range that firmware gave to it.
    let status = unsafe { hal::map(address + u64::from(offset), 1) };
    Some(Interrupt { line, status })
}

impl Found {
    /// Lets `handler` run, with interrupts off, whenever the device interrupts. False when no interrupt of it arrives: it is to be polled.
    pub fn hear(&self, handler: fn()) -> bool {
        let Some(interrupt) = &self.interrupt else { return false };
        {
            let mut heard = HEARD.lock();
            let Some(place) = heard.iter_mut().find(|place| place.is_none()) else { return false };
            *place = Some(Heard { status: interrupt.status, handler });
        }
        ioapic::enable_isa(interrupt.line, interrupted)
    }
}

/// One of the devices has interrupted.
fn interrupted() {
    for heard in HEARD.lock().iter().flatten() {
        // SAFETY: the register is mapped for good.
        if unsafe { heard.status.read_volatile() } != 0 {
            (heard.handler)();
        }
    }
}
