//! Frames whose memory is broken, or said to be: nobody gets them again.
//!
//! Who has such a frame keeps it out of the allocator: a frame with references by one that is never given up, a part of a huge page by
//! [`super::contiguous::free_broken`].

use core::sync::atomic::{AtomicU64, Ordering};

use super::{PAGE_SIZE, PhysAddr, buddy};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Notes that the memory of a frame is broken.
pub fn note(address: PhysAddr) {
    if !buddy::info(address.page_number()).broken.swap(true, Ordering::SeqCst) {
        COUNT.fetch_add(1, Ordering::SeqCst);
    }
}

/// Whether the memory of the frame with this number is broken.
pub fn is_broken(frame: u64) -> bool {
    // Relaxed: once set it stays, and who must know has taken a lock since.
    buddy::info(frame).broken.load(Ordering::Relaxed)
}

/// Bytes that are broken: `HardwareCorrupted` of `/proc/meminfo`.
pub fn bytes() -> u64 {
    COUNT.load(Ordering::SeqCst) * PAGE_SIZE as u64
}

/// How many of the bytes from an address on lie before the first broken frame.
pub fn whole_bytes(start: PhysAddr, bytes: u64) -> u64 {
    let frames = start.page_number()..(start.0 + bytes).div_ceil(PAGE_SIZE as u64);
    let broken = frames.into_iter().find(|frame| is_broken(*frame));
    broken.map_or(bytes, |frame| (frame * PAGE_SIZE as u64).saturating_sub(start.0))
}
