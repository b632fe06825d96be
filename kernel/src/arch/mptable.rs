//! The MultiProcessor table: what firmware without ACPI says of CPUs and interrupts (Intel's MultiProcessor
//! Specification 1.4).

use super::acpi::{Firmware, IoApicInfo, IsaRoute};
use crate::memory::paging::map_firmware;
use crate::memory::{PAGE_SIZE, PhysAddr};

/// Where firmware may leave the pointer to the table: the first KiB of its data area, whose segment is told at 0x40e,
/// the last KiB of the base memory, and the BIOS's own memory.
fn places() -> [(u64, usize); 3] {
    let data_area = u64::from(u16::from_le_bytes([low_byte(0x40e), low_byte(0x40f)])) << 4;
    [(data_area, 1 << 10), ((640 << 10) - (1 << 10), 1 << 10), (0xf_0000, 64 << 10)]
}

fn low_byte(address: u64) -> u8 {
    bytes(address, 1)[0]
}

/// Memory that firmware filled. The physical address 0 is as good as any.
fn bytes(address: u64, length: usize) -> &'static [u8] {
    let start = map_firmware(PhysAddr(address), length as u64);
    // SAFETY: mapped just now or in the direct map, for good; nobody writes there.
    unsafe { core::slice::from_raw_parts(start.as_ptr::<u8>(), length) }
}

fn adds_up_to_zero(table: &[u8]) -> bool {
    table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

fn word(table: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(table.get(at..at + 2)?.try_into().ok()?))
}

fn long(table: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(table.get(at..at + 4)?.try_into().ok()?))
}

/// The configuration table's address, by the pointer `_MP_` (4.1).
fn find() -> Option<u64> {
    places().into_iter().filter(|(start, _)| *start != 0).find_map(|(start, length)| {
        let pointer = bytes(start, length)
            .chunks_exact(16)
            .find(|pointer| pointer.starts_with(b"_MP_") && adds_up_to_zero(pointer))?;
        long(pointer, 4).filter(|address| *address != 0).map(u64::from)
    })
}

/// Adds what the table says to `firmware`; false when there is none.
pub(super) fn read(firmware: &mut Firmware) -> bool {
    const HEADER: usize = 44;
    let Some(address) = find() else { return false };
    let header = bytes(address, HEADER);
    let Some(length) = word(header, 4).map(usize::from) else { return false };
    if !header.starts_with(b"PCMP") || !(HEADER..=PAGE_SIZE * 16).contains(&length) {
        return false;
    }
    let table = bytes(address, length);
    adds_up_to_zero(table) && read_entries(&table[HEADER..], firmware).is_some()
}

/// The entries (4.3): what is no entry ends them.
fn read_entries(mut rest: &[u8], firmware: &mut Firmware) -> Option<()> {
    const PROCESSOR: u8 = 0;
    const BUS: u8 = 1;
    const IO_APIC: u8 = 2;
    const INTERRUPT: u8 = 3;
    const LOCAL_INTERRUPT: u8 = 4;
    const ENABLED: u8 = 1;
    let mut isa_bus = None;
    // The table numbers the inputs of each I/O APIC, not of all: of several only the first is of use, and it has the
    // lines of ISA.
    let mut io_apic = None;
    while let Some(kind) = rest.first() {
        let (entry, after) = rest.split_at_checked(if *kind == PROCESSOR { 20 } else { 8 })?;
        rest = after;
        match *kind {
            PROCESSOR if entry[3] & ENABLED != 0 => firmware.cpus.push(entry[1].into()),
            BUS if entry[2..].starts_with(b"ISA") => isa_bus = Some(entry[1]),
            IO_APIC if entry[3] & ENABLED != 0 && io_apic.is_none() => {
                io_apic = Some(entry[1]);
                firmware.io_apics.push(IoApicInfo { address: PhysAddr(long(entry, 4)?.into()), first: 0 });
            }
            // An ordinary interrupt (0) of the ISA bus; 0xff is every I/O APIC.
            INTERRUPT if entry[1] == 0 && Some(entry[4]) == isa_bus => {
                if Some(entry[6]) == io_apic || entry[6] == 0xff {
                    let wiring = word(entry, 2)?;
                    firmware.isa_routes.push(IsaRoute {
                        isa: entry[5],
                        global: entry[7].into(),
                        active_low: wiring & 3 == 3,
                        level: wiring >> 2 & 3 == 3,
                    });
                }
            }
            PROCESSOR | BUS | IO_APIC | INTERRUPT | LOCAL_INTERRUPT => {}
            _ => break,
        }
    }
    Some(())
}
