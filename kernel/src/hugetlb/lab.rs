//! What only kernels that are broken on purpose have: the protocol `unfenced`, and a way to break a count.
//!
//! Of tables under that protocol: one that was retired becomes a table of huge pages again, at once, and nothing else.
//!
//! That protocol is there for its race to be seen. A fault that writes into a table too late then shows in some process's huge
//! pages. In a frame that had become a table of base pages or memory of the kernel, it would end the machine instead, as often as not.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ::hugetlb::{EntryValue, Level, ProtocolKind, Space, VirtAddr};
use syscalls::Errno;

use super::machine::SpaceTables;
use super::system;
use crate::errno::Result;
use crate::memory::frame::Frame;
use crate::mm::table_entries;
use crate::process;
use crate::sync::SpinLock;

static RETIRED: SpinLock<Vec<Frame>> = SpinLock::growing(Vec::new());

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

/// An entry of a PUD table that is not where it should be.
struct Taken {
    space: SpaceTables,
    address: VirtAddr,
    entry: EntryValue,
}

static TAKEN: SpinLock<Option<Taken>> = SpinLock::new(None);

/// `/sys/kernel/mm/hugepages/sharing/break`: an address in hexadecimal takes the writer's PUD entry for it away, of which nobody is
/// told, and 0 puts it back. So that a test can see that the checker notices.
pub(super) fn break_entry(text: &str) -> Result<()> {
    let address = u64::from_str_radix(text.trim(), 16).map(VirtAddr).map_err(|_| Errno::EINVAL)?;
    let mut taken = TAKEN.lock();
    if address == VirtAddr(0) {
        let Taken { space, address, entry } = taken.take().ok_or(Errno::EINVAL)?;
        space.find_entry(address, Level::Pud).ok_or(Errno::EFAULT)?.store(entry, Ordering::SeqCst);
        return Ok(());
    }
    if taken.is_some() {
        return Err(Errno::EBUSY);
    }
    let mm = process::current().process.mm().ok_or(Errno::ESRCH)?;
    let space = SpaceTables(mm.page_tables().clone());
    let entry = space.find_entry(address, Level::Pud).ok_or(Errno::EFAULT)?;
    let entry = entry.swap(EntryValue::default(), Ordering::SeqCst);
    *taken = Some(Taken { space, address, entry });
    Ok(())
}
