//! Tables under the protocol `unfenced`: one that was retired becomes a table of huge pages again, at once, and nothing else.
//!
//! That protocol is there for its race to be seen. A fault that writes into a table too late then shows in some process's huge
//! pages. In a frame that had become a table of base pages or memory of the kernel, it would end the machine instead, as often as not.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ::hugetlb::ProtocolKind;

use super::system;
use crate::memory::frame::Frame;
use crate::mm::table_entries;
use crate::sync::SpinLock;

static RETIRED: SpinLock<Vec<Frame>> = SpinLock::new(Vec::new());

/// Keeps a retired table for [`take`]; gives it back under the other protocols.
pub(super) fn keep(table: Frame) -> Option<Frame> {
    if system().protocol_kind() != ProtocolKind::Unfenced {
        return Some(table);
    }
    RETIRED.lock().push(table);
    None
}

/// The table that was retired last, empty.
pub(super) fn take() -> Option<Frame> {
    let table = RETIRED.lock().pop()?;
    // SAFETY: nobody but us has the frame, apart from faults that should not: their stores are atomic, too.
    let entries = unsafe { table_entries(table.phys()) };
    // Relaxed: whoever makes the table reachable does it with a release.
    entries.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
    Some(table)
}
