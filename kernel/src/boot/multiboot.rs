//! What a loader of the Multiboot 2 protocol tells: GRUB, on PCs with a BIOS and with UEFI.

use multiboot2::{BootInformation, BootInformationHeader, MemoryAreaType};

use super::cmdline;
use super::info::{Rsdp, StartInfo};
use crate::memory::PhysAddr;
use crate::memory::early::Range;

/// Reads the boot information at a physical address.
///
/// # Safety
/// The address is the one that the loader passed, and the boot page tables are in use.
pub(super) unsafe fn read(address: u32) -> StartInfo {
    let pointer = PhysAddr(address.into()).as_ptr::<BootInformationHeader>();
    // SAFETY: the caller's promise; nobody writes there before the memory is taken over.
    let loaded = unsafe { BootInformation::load(pointer) }.expect("a Multiboot 2 boot information");
    if let Some(Ok(line)) = loaded.command_line_tag().map(|tag| tag.cmdline()) {
        cmdline::set(line.as_bytes());
    }
    let mut info = StartInfo::new("Multiboot 2");
    // Copies of the firmware's pointer; the newer one knows tables above 4 GiB.
    info.rsdp = match (loaded.rsdp_v2_tag(), loaded.rsdp_v1_tag()) {
        (Some(tag), _) => Some(Rsdp::Read { revision: tag.revision(), tables: tag.xsdt_address() }),
        (None, Some(tag)) => Some(Rsdp::Read { revision: tag.revision(), tables: tag.rsdt_address() }),
        (None, None) => None,
    };
    let areas = loaded.memory_map_tag().expect("a map of memory").memory_areas();
    for area in areas.iter().filter(|area| area.typ() == MemoryAreaType::Available) {
        info.add_ram(Range { start: area.start_address(), end: area.end_address() });
    }
    if let Some(module) = loaded.module_tags().next() {
        info.initrd = Range { start: module.start_address().into(), end: module.end_address().into() };
    }
    info
}
