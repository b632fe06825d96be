//! What the loader passes, copied before its memory is used for anything else.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{entry, fw_cfg, multiboot, pvh};
use crate::memory::early::{self, Range};
use crate::memory::{self, PhysAddr, paging};
use crate::sync::Once;

/// Where the firmware's ACPI tables are.
#[derive(Clone, Copy, Debug)]
pub enum Rsdp {
    /// Their root pointer is here.
    At(PhysAddr),
    /// The loader has read the root pointer: its revision, and the physical address of the list of tables.
    Read { revision: u8, tables: usize },
}

/// The facts, without pointers into the loader's memory.
#[derive(Debug)]
pub struct StartInfo {
    /// The loader's protocol, for the log.
    pub protocol: &'static str,
    ram: [Range; memory::MAX_RAM],
    ram_count: usize,
    pub rsdp: Option<Rsdp>,
    /// The initial RAM disk; empty when there is none.
    pub(super) initrd: Range,
}

impl StartInfo {
    pub(super) fn new(protocol: &'static str) -> StartInfo {
        let ram = [Range::default(); memory::MAX_RAM];
        StartInfo { protocol, ram, ram_count: 0, rsdp: None, initrd: Range::default() }
    }

    /// Adds usable RAM; what is more than the table holds stays unused.
    pub(super) fn add_ram(&mut self, range: Range) {
        // UEFI's maps have a line for each use that memory once had.
        if let Some(last) = self.ram[..self.ram_count].last_mut()
            && last.end == range.start
        {
            last.end = range.end;
        } else if let Some(slot) = self.ram.get_mut(self.ram_count) {
            *slot = range;
            self.ram_count += 1;
        }
    }

    /// Usable RAM.
    pub fn ram(&self) -> &[Range] {
        &self.ram[..self.ram_count]
    }
}

static INFO: Once<StartInfo> = Once::new();
// Where the initial RAM disk is; both 0 when there is none, or no more.
static INITRD_START: AtomicU64 = AtomicU64::new(0);
static INITRD_END: AtomicU64 = AtomicU64::new(0);

/// Reads what the loader left at a physical address, by the protocol that `entry` names.
///
/// # Safety
/// Both are what the loader passed, and the boot page tables are in use.
pub unsafe fn init(address: u32, protocol: u32) -> &'static StartInfo {
    // SAFETY: the caller's promise.
    let mut info = unsafe {
        match protocol {
            entry::MULTIBOOT => multiboot::read(address),
            _ => pvh::read(address),
        }
    };
    if info.initrd == Range::default() {
        // SAFETY: nothing but the image is in use yet.
        info.initrd = unsafe { fw_cfg::fetch_initrd(&info, paging::image()) }.unwrap_or_default();
    }
    INITRD_START.store(info.initrd.start, Ordering::SeqCst);
    INITRD_END.store(info.initrd.end, Ordering::SeqCst);
    INFO.call_once(|| info)
}

/// Usable RAM; nothing before [`init`].
pub fn ram() -> &'static [Range] {
    INFO.get().map_or(&[], StartInfo::ram)
}

/// The initial RAM disk's physical addresses.
pub fn initrd_range() -> Range {
    Range { start: INITRD_START.load(Ordering::SeqCst), end: INITRD_END.load(Ordering::SeqCst) }
}

/// The initial RAM disk, until [`release_initrd`].
pub fn initrd() -> Option<&'static [u8]> {
    let Range { start, end } = initrd_range();
    if start >= end {
        return None;
    }
    // Loaders may put it where their map of memory shows none that is free: that is mapped for it.
    let address = paging::map_firmware(PhysAddr(start), end - start);
    // SAFETY: memory that nobody writes: of the frame allocator's it was reserved, the rest nobody has.
    Some(unsafe { core::slice::from_raw_parts(address.as_ptr::<u8>(), (end - start) as usize) })
}

/// Gives the initial RAM disk's memory to the frame allocator, as far as it is usable RAM.
///
/// # Safety
/// Nobody uses the slice from [`initrd`] any more.
pub unsafe fn release_initrd() {
    let range = initrd_range();
    INITRD_START.store(0, Ordering::SeqCst);
    INITRD_END.store(0, Ordering::SeqCst);
    for ram in INFO.get().into_iter().flat_map(|info| info.ram()) {
        let part = Range { start: range.start.max(ram.start), end: range.end.min(ram.end) };
        // SAFETY: it was reserved at boot, and is released once, since the range is empty now.
        unsafe { early::release(part) };
    }
}
