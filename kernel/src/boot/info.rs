//! What the loader passes (PVH start info), copied before its memory is used for anything else.

use core::alloc::Layout;
use core::sync::atomic::{AtomicU64, Ordering};
use pvh::start_info::reader::{MemMap, StartInfoReader};

use super::cmdline;
use crate::memory::early::{self, Range};
use crate::memory::{self, PhysAddr};
use crate::sync::Once;

/// Loader memory through the boot tables' direct map.
struct DirectMap;

impl MemMap for DirectMap {
    fn ptr(&self, address: usize, layout: Layout) -> *const u8 {
        let pointer = PhysAddr(address as u64).as_ptr::<u8>();
        if pointer.addr().is_multiple_of(layout.align()) { pointer } else { core::ptr::null() }
    }
}

/// The facts, without pointers into the loader's memory.
#[derive(Debug)]
pub struct StartInfo {
    ram: [Range; memory::MAX_RAM],
    ram_count: usize,
    pub rsdp: Option<PhysAddr>,
}

impl StartInfo {
    /// Usable RAM.
    pub fn ram(&self) -> &[Range] {
        &self.ram[..self.ram_count]
    }
}

static INFO: Once<StartInfo> = Once::new();
// Where the initial RAM disk is; both 0 when there is none, or no more.
static INITRD_START: AtomicU64 = AtomicU64::new(0);
static INITRD_END: AtomicU64 = AtomicU64::new(0);

/// Reads the start info at a physical address.
///
/// # Safety
/// The address is the one that the loader passed, and the boot page tables are in use.
pub unsafe fn init(address: u32) -> &'static StartInfo {
    const RAM: u32 = 1;
    // SAFETY: the caller's promise.
    let reader = unsafe { StartInfoReader::from_paddr(address, DirectMap) }.expect("a PVH start info");
    if let Some(line) = reader.cmdline() {
        cmdline::set(line.to_bytes());
    }
    let raw = reader.raw();
    let mut info = StartInfo { ram: [Range::default(); memory::MAX_RAM], ram_count: 0, rsdp: None };
    if raw.rsdp_paddr != 0 {
        info.rsdp = Some(PhysAddr(raw.rsdp_paddr));
    }
    for entry in reader.memmap().iter().filter(|entry| entry.ty == RAM).take(memory::MAX_RAM) {
        info.ram[info.ram_count] = Range { start: entry.addr, end: entry.addr.saturating_add(entry.size) };
        info.ram_count += 1;
    }
    // The first module is the initial RAM disk.
    if let Some(module) = reader.modlist().next() {
        let module = module.raw();
        INITRD_START.store(module.paddr, Ordering::SeqCst);
        INITRD_END.store(module.paddr + module.size, Ordering::SeqCst);
    }
    INFO.call_once(|| info)
}

/// The initial RAM disk's physical addresses.
pub fn initrd_range() -> Range {
    Range { start: INITRD_START.load(Ordering::SeqCst), end: INITRD_END.load(Ordering::SeqCst) }
}

/// The initial RAM disk, until [`release_initrd`].
pub fn initrd() -> Option<&'static [u8]> {
    let Range { start, end } = initrd_range();
    // SAFETY: reserved RAM that nobody writes, in the direct map.
    (start < end).then(|| unsafe {
        core::slice::from_raw_parts(PhysAddr(start).as_ptr::<u8>(), (end - start) as usize)
    })
}

/// Gives the initial RAM disk's memory to the frame allocator.
///
/// # Safety
/// Nobody uses the slice from [`initrd`] any more.
pub unsafe fn release_initrd() {
    let range = initrd_range();
    INITRD_START.store(0, Ordering::SeqCst);
    INITRD_END.store(0, Ordering::SeqCst);
    // SAFETY: it was reserved at boot, and is released once, since the range is empty now.
    unsafe { early::release(range) };
}
