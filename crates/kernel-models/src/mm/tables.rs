//! The words of a page table.

use crate::memory::{PhysAddr, frame};
use crate::sync::primitive::AtomicU64;

/// Leaves of a table.
pub const ENTRIES: usize = 1;

/// There was no frame.
#[derive(Debug)]
pub struct NoMemory;

/// The entries of the table at `address`.
///
/// # Safety
/// None here: that the frame is in use is looked at.
pub unsafe fn entries<'a>(address: PhysAddr) -> &'a [AtomicU64; ENTRIES] {
    frame::words(address).first_chunk().expect("as many words")
}
