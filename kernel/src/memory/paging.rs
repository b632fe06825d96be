//! The kernel's own page tables: direct map, image, and the kernel area.
//!
//! The upper half of every address space is the same: 256 top-level entries, copied when an address space is made.
//! So the entries that will ever be used are all present from boot on: those of the direct map, the kernel area
//! and the image; below them tables come and go without any address space noticing.

use core::sync::atomic::{AtomicU64, Ordering};

use super::addr::{KERNEL_AREA, KERNEL_AREA_SIZE, KERNEL_BASE};
use super::early::{self, Range};
use super::frame::{Frame, Use};
use super::{PAGE_SIZE, PhysAddr, VirtAddr};
use crate::arch::{features, tlb};
use crate::sync::IrqLock;

/// Bits of a page-table entry.
pub mod flags {
    pub const PRESENT: u64 = 1;
    pub const WRITABLE: u64 = 1 << 1;
    pub const WRITE_THROUGH: u64 = 1 << 3;
    pub const NO_CACHE: u64 = 1 << 4;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    /// In a level 2 or 3 entry: maps 2 MiB or 1 GiB.
    pub const HUGE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// The bits that hold the address.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}
use flags::*;

pub const ENTRIES: usize = 512;
const KERNEL_DATA: u64 = PRESENT | WRITABLE | ACCESSED | DIRTY | GLOBAL;
const TABLE: u64 = PRESENT | WRITABLE | ACCESSED;
const GIB: u64 = 1 << 30;
const TWO_MIB: u64 = 2 << 20;

/// Part of the kernel area for device registers; stacks have the rest.
pub const DEVICE_AREA: u64 = KERNEL_AREA;
pub const DEVICE_AREA_SIZE: u64 = 1 << 30;
pub const STACK_AREA: u64 = DEVICE_AREA + DEVICE_AREA_SIZE;
pub const STACK_AREA_SIZE: u64 = KERNEL_AREA_SIZE - DEVICE_AREA_SIZE;

type Table = [AtomicU64; ENTRIES];

/// Physical address of the kernel's top-level table.
static KERNEL_TABLE: AtomicU64 = AtomicU64::new(0);
/// End of the RAM that the direct map covers, and the ranges that it leaves out below that.
static DIRECT_RANGES: IrqLock<([Range; 64], usize)> = IrqLock::new(([Range { start: 0, end: 0 }; 64], 0));

/// `NO_EXECUTE` where the CPU has it; else the bit is reserved and stays clear.
pub fn no_execute() -> u64 {
    if features::has_nx() { NO_EXECUTE } else { 0 }
}

fn table(address: PhysAddr) -> &'static Table {
    // SAFETY: page tables are in the direct map, and all accesses to them are atomic.
    unsafe { &*address.as_ptr() }
}

/// The table's index for an address, level 1 (4 KiB) to 4.
fn index(address: u64, level: u32) -> usize {
    (address >> (3 + 9 * level)) as usize % ENTRIES
}

/// The next table below an entry; `make` provides one where there is none.
fn descend(entry: &AtomicU64, make: &mut dyn FnMut() -> Option<PhysAddr>) -> Option<&'static Table> {
    let value = entry.load(Ordering::SeqCst);
    if value & PRESENT != 0 {
        return Some(table(PhysAddr(value & ADDRESS)));
    }
    let address = make()?;
    entry.store(address.as_u64() | TABLE, Ordering::SeqCst);
    Some(table(address))
}

/// The entry of `level` for a kernel address.
fn entry(
    root: &'static Table,
    address: u64,
    level: u32,
    make: &mut dyn FnMut() -> Option<PhysAddr>,
) -> Option<&'static AtomicU64> {
    let mut table = root;
    for above in (level + 1..=4).rev() {
        table = descend(&table[index(address, above)], make)?;
    }
    Some(&table[index(address, level)])
}

unsafe extern "C" {
    static text_start: [u8; 0];
    static text_end: [u8; 0];
    static rodata_start: [u8; 0];
    static rodata_end: [u8; 0];
    static data_start: [u8; 0];
    static kernel_end: [u8; 0];
}

/// The kernel image's physical addresses.
pub fn image() -> Range {
    let start = &raw const text_start as u64 - KERNEL_BASE;
    Range { start, end: &raw const kernel_end as u64 - KERNEL_BASE }
}

/// Builds the final tables and loads them: `memory` is what the direct map shall show.
pub(super) fn init(memory: &[Range]) {
    let mut make = || Some(early::allocate(PAGE_SIZE as u64, PAGE_SIZE as u64));
    let root_address = early::allocate(PAGE_SIZE as u64, PAGE_SIZE as u64);
    let root = table(root_address);

    let nx = no_execute();
    for range in memory {
        map_direct(root, *range, KERNEL_DATA | nx, &mut make);
    }
    // The image, page by page: code is never writable, what is writable never runs.
    let (text, rodata, data) =
        (&raw const text_start as u64, &raw const rodata_start as u64, &raw const data_start as u64);
    let sections = [
        (text, &raw const text_end as u64, KERNEL_DATA & !WRITABLE & !DIRTY),
        (rodata, &raw const rodata_end as u64, KERNEL_DATA & !WRITABLE & !DIRTY | nx),
        (data, &raw const kernel_end as u64, KERNEL_DATA | nx),
    ];
    for (start, end, flags) in sections {
        for page in (start..end).step_by(PAGE_SIZE) {
            let entry = entry(root, page, 1, &mut make).expect("early memory");
            entry.store((page - KERNEL_BASE) | flags, Ordering::SeqCst);
        }
    }
    for at in (KERNEL_AREA..KERNEL_AREA + KERNEL_AREA_SIZE).step_by(512 << 30) {
        descend(&root[index(at, 4)], &mut make);
    }
    KERNEL_TABLE.store(root_address.as_u64(), Ordering::SeqCst);
    // SAFETY: the tables map all that the boot tables map and the kernel uses: its image, its stack in the image,
    // and RAM.
    unsafe { features::write_cr3(root_address.as_u64()) };
    // The boot tables' global entries, if any, are gone too.
    tlb::flush_global();

    let mut direct = DIRECT_RANGES.lock();
    for range in memory.iter().take(direct.0.len()) {
        let count = direct.1;
        direct.0[count] = *range;
        direct.1 += 1;
    }
}

/// Maps a range at its place in the direct map, with the largest pages that fit.
fn map_direct(root: &'static Table, range: Range, flags: u64, make: &mut dyn FnMut() -> Option<PhysAddr>) {
    let page = PAGE_SIZE as u64;
    let (mut at, end) = (range.start & !(page - 1), range.end.next_multiple_of(page));
    while at < end {
        let fits = |size: u64| at.is_multiple_of(size) && end - at >= size;
        let (level, size, huge) = if fits(GIB) && features::has_gib_pages() {
            (3, GIB, HUGE)
        } else if fits(TWO_MIB) {
            (2, TWO_MIB, HUGE)
        } else {
            (1, page, 0)
        };
        let address = PhysAddr(at).to_virt().as_u64();
        let entry = entry(root, address, level, make).expect("early memory");
        entry.store(at | flags | huge, Ordering::SeqCst);
        at += size;
    }
}

/// Physical address of the kernel's own top-level table, which idle CPUs and kernel threads run on.
pub fn kernel_table() -> PhysAddr {
    // Relaxed: set once, before the other CPUs start.
    PhysAddr(KERNEL_TABLE.load(Ordering::Relaxed))
}

/// Loads the kernel's own table on this CPU.
pub fn load_kernel_table() {
    // SAFETY: the kernel's table is static.
    unsafe { features::write_cr3(kernel_table().as_u64()) };
}

/// Fills the kernel's half of a new address space's top-level table.
pub fn copy_kernel_half(top: &[AtomicU64; ENTRIES]) {
    let kernel = table(kernel_table());
    for slot in ENTRIES / 2..ENTRIES {
        // Relaxed: the new table is not loaded yet, the kernel's never changes at this level.
        top[slot].store(kernel[slot].load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Held while tables of the kernel area change, with the next free page of the device area.
static AREA: IrqLock<u64> = IrqLock::new(DEVICE_AREA);

fn make_table() -> Option<PhysAddr> {
    Frame::alloc_zeroed(Use::PageTable).map(Frame::into_raw)
}

/// Maps device registers, not cached, for good; any address and size.
pub fn map_device(address: PhysAddr, bytes: u64) -> VirtAddr {
    map_area(address, bytes, KERNEL_DATA | no_execute() | NO_CACHE | WRITE_THROUGH)
}

/// Makes a page that [`map_device`] mapped show another frame; the caller flushes.
pub fn remap_device(address: VirtAddr, frame: PhysAddr) {
    let _area = AREA.lock();
    let entry = entry(table(kernel_table()), address.as_u64(), 1, &mut || None).expect("a mapped page");
    let flags = entry.load(Ordering::SeqCst) & !ADDRESS;
    entry.store(frame.as_u64() | flags, Ordering::SeqCst);
}

/// Shows memory that firmware filled: in the direct map where it is, else mapped for good.
pub fn map_firmware(address: PhysAddr, bytes: u64) -> VirtAddr {
    let (start, end) = (address.as_u64(), address.as_u64() + bytes);
    let direct = {
        let ranges = DIRECT_RANGES.lock();
        ranges.0[..ranges.1].iter().any(|range| range.start <= start && end <= range.end)
    };
    if direct { address.to_virt() } else { map_area(address, bytes, KERNEL_DATA | no_execute()) }
}

fn map_area(address: PhysAddr, bytes: u64, flags: u64) -> VirtAddr {
    let page = PAGE_SIZE as u64;
    let first = address.align_down(page);
    let pages = (address.as_u64() + bytes).next_multiple_of(page) - first.as_u64();
    let mut next = AREA.lock();
    let start = *next;
    assert!(start + pages <= DEVICE_AREA + DEVICE_AREA_SIZE, "device area is full");
    *next += pages;
    let root = table(kernel_table());
    for offset in (0..pages).step_by(PAGE_SIZE) {
        let entry = entry(root, start + offset, 1, &mut make_table).expect("memory for device mappings");
        entry.store((first.as_u64() + offset) | flags, Ordering::SeqCst);
    }
    VirtAddr(start + address.page_offset() as u64)
}

/// The level 1 table under `address` in the stack area, made where it is absent; `None` without memory.
pub(super) fn stack_table(address: u64) -> Option<&'static Table> {
    let _area = AREA.lock();
    let above = entry(table(kernel_table()), address, 2, &mut make_table)?;
    descend(above, &mut make_table)
}

/// Takes the level 1 table under `address` out; it may be freed after every CPU has flushed.
pub(super) fn detach_stack_table(address: u64) -> Option<Frame> {
    let _area = AREA.lock();
    let above = entry(table(kernel_table()), address, 2, &mut || None)?;
    let value = above.swap(0, Ordering::SeqCst);
    // SAFETY: the entry held the reference that `make_table` turned into an address.
    (value & PRESENT != 0).then(|| unsafe { Frame::from_raw(PhysAddr(value & ADDRESS)) })
}

/// The entry for a stack page.
pub(super) fn stack_entry(frame: PhysAddr) -> u64 {
    frame.as_u64() | KERNEL_DATA | no_execute()
}

/// A top-level table that also shows low memory at its physical address: to switch paging on from there.
pub struct IdentityTable {
    /// Top-level table, and the one below it whose first entry is 1 GiB or a table of 2 MiB pages.
    frames: [Frame; 3],
}

impl IdentityTable {
    /// Shows the first 2 MiB, and the kernel's half.
    pub fn new() -> Option<Self> {
        let new = || Frame::alloc_zeroed(Use::PageTable);
        let frames = [new()?, new()?, new()?];
        let [top, middle, low] = &frames;
        copy_kernel_half(table(top.phys()));
        table(top.phys())[0].store(middle.phys().as_u64() | TABLE, Ordering::SeqCst);
        table(middle.phys())[0].store(low.phys().as_u64() | TABLE, Ordering::SeqCst);
        table(low.phys())[0].store(PRESENT | WRITABLE | HUGE, Ordering::SeqCst);
        Some(Self { frames })
    }

    pub fn address(&self) -> PhysAddr {
        self.frames[0].phys()
    }
}
