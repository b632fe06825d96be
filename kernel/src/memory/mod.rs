//! Physical memory, the kernel heap, and the kernel's own mappings.

pub mod addr;
pub mod broken;
mod buddy;
pub mod contiguous;
pub mod early;
pub mod fallible;
pub mod frame;
// Where the kernel is only checked, for the host, std has the allocator.
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod heap;
pub mod inject;
pub mod node;
pub mod paging;
pub mod reserve;
pub mod stack;
mod usage;

pub use addr::{DIRECT_MAP, PAGE_SHIFT, PAGE_SIZE, PhysAddr, USER_END, VirtAddr};
pub use usage::{Pressure, Stats, Use, minimum, pressure, stats};

use early::Range;

/// Takes over physical memory: `ram` is what the loader calls usable, `used` what of it is in use.
pub(crate) fn init(ram: &[Range], used: &[Range]) {
    /// Low memory stays untouched: firmware's tables, and the page on which other CPUs start.
    const LOW: Range = Range { start: 0, end: 1 << 20 };
    for range in ram {
        early::add(*range);
    }
    early::reserve(LOW);
    early::reserve(paging::image());
    for range in used {
        early::reserve(*range);
    }
    let end = ram.iter().map(|range| range.end).max().unwrap_or(0);
    // The direct map also shows low memory's holes: firmware keeps its first table there.
    let mut direct = [LOW; MAX_RAM + 1];
    for (slot, range) in direct[1..].iter_mut().zip(ram) {
        *slot = Range { start: range.start.max(LOW.end), end: range.end.max(LOW.end) };
    }
    let count = end / PAGE_SIZE as u64;
    let info = early::allocate(buddy::info_size(count), PAGE_SIZE as u64);
    // SAFETY: the memory was allocated for this; the boot page tables show it.
    unsafe { buddy::init(info.as_ptr(), count as usize) };
    paging::init(&direct[..ram.len().min(MAX_RAM) + 1]);
    early::hand_over();
    usage::set_watermarks(1);
}

/// The number of CPUs is known: each wants its part of what is kept free.
pub(crate) fn all_cpus_known() {
    usage::set_watermarks(crate::arch::cpu::count() as usize);
}

/// Most ranges of RAM that the kernel takes from a loader's map.
pub const MAX_RAM: usize = 63;
