//! What a loader of the PVH protocol tells: QEMU, Firecracker, Cloud Hypervisor.

use core::alloc::Layout;
use pvh::start_info::reader::{MemMap, StartInfoReader};

use super::cmdline;
use super::info::{Rsdp, StartInfo};
use crate::memory::PhysAddr;
use crate::memory::early::Range;

/// Loader memory through the boot tables' direct map.
struct DirectMap;

impl MemMap for DirectMap {
    fn ptr(&self, address: usize, layout: Layout) -> *const u8 {
        let pointer = PhysAddr(address as u64).as_ptr::<u8>();
        if pointer.addr().is_multiple_of(layout.align()) { pointer } else { core::ptr::null() }
    }
}

/// Reads the start info at a physical address.
///
/// # Safety
/// The address is the one that the loader passed, and the boot page tables are in use.
pub(super) unsafe fn read(address: u32) -> StartInfo {
    const RAM: u32 = 1;
    // SAFETY: the caller's promise.
    let reader = unsafe { StartInfoReader::from_paddr(address, DirectMap) }.expect("a PVH start info");
    if let Some(line) = reader.cmdline() {
        cmdline::set(line.to_bytes());
    }
    let raw = reader.raw();
    let mut info = StartInfo::new("PVH");
    if raw.rsdp_paddr != 0 {
        info.rsdp = Some(Rsdp::At(PhysAddr(raw.rsdp_paddr)));
    }
    for entry in reader.memmap().iter().filter(|entry| entry.ty == RAM) {
        info.add_ram(Range { start: entry.addr, end: entry.addr.saturating_add(entry.size) });
    }
    // The first module is the initial RAM disk.
    if let Some(module) = reader.modlist().next() {
        let module = module.raw();
        info.initrd = Range { start: module.paddr, end: module.paddr.saturating_add(module.size) };
    }
    info
}
