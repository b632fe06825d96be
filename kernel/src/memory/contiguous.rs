//! Physically contiguous memory: huge pages, and what hardware wants in one piece.

use super::buddy::{self, MAX_ORDER};
use super::usage::Use;
use super::{PAGE_SHIFT, PAGE_SIZE, PhysAddr, broken};

/// Memory for a huge page: `bytes` (any multiple of a page up to 1 GiB) at a multiple of `align`; `None` when no
/// free block is large enough or user memory is used up. The content is arbitrary.
///
/// It comes from `nodes` alone, the first one first; without them from as near as there is one.
pub fn alloc(bytes: usize, align: usize, nodes: Option<&[u8]>) -> Option<PhysAddr> {
    let address = alloc_from(bytes, align, Use::Huge, nodes)?;
    buddy::mark_huge(address.page_number(), (bytes / PAGE_SIZE) as u64, true);
    Some(address)
}

/// Frees what [`alloc`] gave; also a page-aligned part of it.
///
/// # Safety
/// Nobody uses the memory any more, on any CPU.
pub unsafe fn free(address: PhysAddr, bytes: usize) {
    buddy::mark_huge(address.page_number(), (bytes / PAGE_SIZE) as u64, false);
    // SAFETY: the caller's promise.
    unsafe { free_for(address, bytes, Use::Huge) };
}

/// As [`free`], but for the frames in it that are broken.
///
/// # Safety
/// As [`free`].
pub unsafe fn free_broken(address: PhysAddr, bytes: usize) {
    /// Frames that are looked at before other threads get their turn.
    const LOOKS: u64 = 512;
    let frames = address.page_number()..address.page_number() + (bytes / PAGE_SIZE) as u64;
    buddy::mark_huge(frames.start, frames.end - frames.start, false);
    let mut start = frames.start;
    while start < frames.end {
        let end = frames.end.min(start + LOOKS);
        let mut whole = start;
        for broken in (start..=end).filter(|frame| *frame == end || broken::is_broken(*frame)) {
            if broken > whole {
                give_back(whole, (broken - whole) as usize, Use::Huge);
            }
            whole = broken + 1;
        }
        start = end;
        if start < frames.end {
            crate::sched::cond_resched();
        }
    }
}

/// [`alloc`] for another use.
pub fn alloc_for(bytes: usize, align: usize, for_use: Use) -> Option<PhysAddr> {
    alloc_from(bytes, align, for_use, None)
}

fn alloc_from(bytes: usize, align: usize, for_use: Use, nodes: Option<&[u8]>) -> Option<PhysAddr> {
    let frames = bytes.div_ceil(PAGE_SIZE).max(1);
    let order =
        frames.next_power_of_two().max(align.div_ceil(PAGE_SIZE)).next_power_of_two().ilog2() as usize;
    if order > MAX_ORDER {
        return None;
    }
    let start = buddy::allocate_from(order, for_use, nodes)?;
    // What the size does not need goes back at once.
    give_back(start + frames as u64, (1 << order) - frames, for_use);
    Some(PhysAddr(start << PAGE_SHIFT))
}

/// Frees what [`alloc_for`] gave.
///
/// # Safety
/// As [`free`].
pub unsafe fn free_for(address: PhysAddr, bytes: usize, used_for: Use) {
    give_back(address.page_number(), bytes.div_ceil(PAGE_SIZE).max(1), used_for);
}

/// Frees any run of frames as the largest aligned blocks that it consists of.
fn give_back(mut frame: u64, mut count: usize, used_for: Use) {
    while count > 0 {
        let order = (frame.trailing_zeros() as usize).min(count.ilog2() as usize).min(MAX_ORDER);
        buddy::free(frame, order, used_for);
        frame += 1 << order;
        count -= 1 << order;
    }
}
