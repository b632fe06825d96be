//! Physical memory at boot, before the frame allocator: what the loader says is there and in use.

use super::buddy;
use super::{PAGE_SIZE, PhysAddr};
use crate::sync::IrqLock;

/// A range of physical addresses, the end exclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

const MAX_RANGES: usize = 256;

/// The ranges that nobody uses, in ascending order.
struct Free {
    ranges: [Range; MAX_RANGES],
    count: usize,
    /// How many of them the frame allocator has got.
    given: usize,
}

static FREE: IrqLock<Free> =
    IrqLock::new(Free { ranges: [Range { start: 0, end: 0 }; MAX_RANGES], count: 0, given: 0 });

/// The boot page tables show this much of physical memory.
const REACHABLE: u64 = 4 << 30;

impl Free {
    fn insert(&mut self, range: Range) {
        if range.start >= range.end || self.count == MAX_RANGES {
            return;
        }
        let at = self.ranges[..self.count].partition_point(|other| other.start < range.start);
        self.ranges.copy_within(at..self.count, at + 1);
        self.ranges[at] = range;
        self.count += 1;
    }

    fn remove(&mut self, at: usize) -> Range {
        let range = self.ranges[at];
        self.ranges.copy_within(at + 1..self.count, at);
        self.count -= 1;
        range
    }
}

/// Adds RAM; what is not whole pages is left out.
pub fn add(range: Range) {
    let page = PAGE_SIZE as u64;
    FREE.lock().insert(Range { start: range.start.next_multiple_of(page), end: range.end & !(page - 1) });
}

/// Takes a range out, whole pages of it.
pub fn reserve(range: Range) {
    let page = PAGE_SIZE as u64;
    let (start, end) = (range.start & !(page - 1), range.end.next_multiple_of(page));
    let mut free = FREE.lock();
    let mut at = 0;
    while at < free.count {
        let other = free.ranges[at];
        if other.end <= start || end <= other.start {
            at += 1;
            continue;
        }
        free.remove(at);
        let below = Range { start: other.start, end: start.max(other.start) };
        let above = Range { start: end.min(other.end), end: other.end };
        free.insert(below);
        free.insert(above);
        at += (below.start < below.end) as usize + (above.start < above.end) as usize;
    }
}

/// Takes `bytes` of zeroed memory at a multiple of `align` for good, from the lowest place.
///
/// There is none only on a machine too small to boot at all.
pub fn allocate(bytes: u64, align: u64) -> PhysAddr {
    let bytes = bytes.next_multiple_of(PAGE_SIZE as u64);
    let found = {
        let free = FREE.lock();
        free.ranges[..free.count].iter().find_map(|range| {
            let start = range.start.next_multiple_of(align);
            (start + bytes <= range.end.min(REACHABLE)).then_some(start)
        })
    };
    let start = found.expect("too little memory to boot");
    reserve(Range { start, end: start + bytes });
    let address = PhysAddr(start);
    // SAFETY: unused RAM, which the boot page tables map.
    unsafe { address.as_ptr::<u8>().write_bytes(0, bytes as usize) };
    address
}

/// Gives all that is left to the frame allocator; nothing here may be called after that.
pub(super) fn hand_over() {
    let mut free = FREE.lock();
    for range in &free.ranges[..free.count] {
        buddy::add(PhysAddr(range.start), PhysAddr(range.end));
    }
    free.given = core::mem::take(&mut free.count);
}

/// Calls `see` with the first frame and the end of each range that [`hand_over`] gave away.
pub(super) fn for_each_given(mut see: impl FnMut(u64, u64)) {
    let free = FREE.lock();
    for range in &free.ranges[..free.given] {
        see(PhysAddr(range.start).page_number(), PhysAddr(range.end).page_number());
    }
}

/// Gives memory that was reserved at boot to the frame allocator, whole pages of it.
///
/// # Safety
/// It is RAM, nobody uses it any more, and it was never given before.
pub unsafe fn release(range: Range) {
    let page = PAGE_SIZE as u64;
    let (start, end) = (range.start.next_multiple_of(page), range.end & !(page - 1));
    if start < end {
        buddy::add(PhysAddr(start), PhysAddr(end));
    }
}
