//! Frames: page tables and huge pages, and the words that are in them.

use alloc::collections::BTreeMap;

use hugetlb::{PageSize, PhysAddr, TableEntries};
use ostd::mm::{Frame, FrameAllocOptions, HasPaddr, PAGE_SIZE, Segment};
use ostd::sync::SpinLock;

use crate::{arch, cpus};

/// Tables in use, of the library and of the host.
pub static TABLES: SpinLock<BTreeMap<u64, Frame<()>>> = SpinLock::new(BTreeMap::new());
static HUGE: SpinLock<BTreeMap<u64, Segment<()>>> = SpinLock::new(BTreeMap::new());

/// Where the kernel sees a frame.
pub fn linear(frame: PhysAddr) -> *mut u8 {
    (arch::LINEAR + frame.0 as usize) as *mut u8
}

pub fn allocate_table() -> Option<PhysAddr> {
    cpus::reclaim();
    let frame = FrameAllocOptions::new().zeroed(true).alloc_frame().ok()?;
    let address = frame.paddr() as u64;
    TABLES.lock().insert(address, frame);
    Some(PhysAddr(address))
}

fn take_table(table: PhysAddr) -> Frame<()> {
    TABLES.lock().remove(&table.0).expect("a table that was allocated here")
}

/// Frees a table that nobody can have seen, or that no CPU can reach any more.
pub fn free_table(table: PhysAddr) {
    take_table(table);
}

pub fn retire_table(table: PhysAddr) {
    cpus::free_after_grace_period(take_table(table));
}

/// The entries of a table. It is one of ours that was not freed, or an OSTD space's root.
pub fn entries<'t>(table: PhysAddr) -> &'t TableEntries {
    // SAFETY: The linear map shows the whole table, which the caller keeps alive; entries are atomics, so the hardware may
    // read them at any time.
    unsafe { &*linear(table).cast::<TableEntries>() }
}

/// A huge frame, aligned to its size: OSTD aligns to base pages only.
pub fn allocate_huge(size: PageSize) -> Option<PhysAddr> {
    let bytes = size.bytes() as usize;
    let allocate = |pages: usize| FrameAllocOptions::new().zeroed(false).alloc_segment(pages).ok();
    let mut segment = allocate(bytes / PAGE_SIZE)?;
    if !segment.paddr().is_multiple_of(bytes) {
        let double = allocate(2 * bytes / PAGE_SIZE)?;
        let start = double.paddr().next_multiple_of(bytes) - double.paddr();
        segment = double.slice(&(start..start + bytes));
    }
    let address = segment.paddr() as u64;
    HUGE.lock().insert(address, segment);
    Some(PhysAddr(address))
}

pub fn free_huge(frame: PhysAddr) {
    HUGE.lock().remove(&frame.0).expect("a huge frame that was allocated here");
}

/// Fills part of a huge frame with zeroes.
pub fn zero(start: PhysAddr, bytes: u64) {
    // SAFETY: The range lies in one huge frame of the pool, which belongs to the caller.
    unsafe { linear(start).write_bytes(0, bytes as usize) };
}

pub fn copy(size: PageSize, from: PhysAddr, to: PhysAddr) {
    // SAFETY: Two huge frames of the pool, and two that differ.
    unsafe { linear(from).copy_to_nonoverlapping(linear(to), size.bytes() as usize) };
}
