//! The seam: what the host kernel implements.
//!
//! # Who owns which table
//!
//! The host owns the tables of an address space down to where an entry is *managed*
//! ([`filetables::Format::is_managed`]): a PUD entry, or one of the level above. A managed entry leads to a table of the
//! *library*. The host never changes what is in it and never frees it. In a table of the host the library asks the [`Space`]
//! for single entries and writes leaves into those that lie inside its mappings. When a [`crate::Mapping`] is unmapped all
//! its entries are empty again.
//!
//! The host may free one of its own PMD tables only while no live `Mapping` overlaps the table's 1 GiB slot: file
//! operations of *other* processes (truncate, punch) walk the tables of a mapping without this address space's lock.
//! It does well to free it then, because the library shares tables only where the entry is empty. The same holds for its
//! PUD tables and slots of 512 GiB.
//!
//! # Who gets a slot
//!
//! A mapping attaches to a shared table in an empty entry: in the PUD entry of a slot of 1 GiB, also if it has only a part of
//! the slot, and in the entry above of a slot of 512 GiB that it fills. Nobody announces what else may come into the slot.
//! Who needs a table of the host there (the host for base pages, or another mapping that faults) and finds a managed
//! entry asks for the slot at that moment: the host calls [`Mapping::leave_slot`](crate::Mapping::leave_slot) of the
//! mappings in the slot. The one that is attached puts an empty table of the host in the place of the shared one, and its
//! own pages come back by faults. From then on that slot has the host's table. Where it was one of 512 GiB, the table is empty: a
//! mapping may attach to the 1 GiB below it before the host has put anything there, and the host asks once more.
//!
//! The library changes an entry from empty to managed without a lock of the host. So the host installs its tables by
//! [`Entry::fill`] or a compare-and-exchange of its own, and looks at what it finds instead.
//!
//! # What the host's locks must do
//!
//! The host holds its address-space lock (a sleeping reader/writer lock) for *reading* over
//! [`Mapping::fault`](crate::Mapping::fault) and the queries, and for *writing* over creating and unmapping a mapping,
//! `protect`, `move_to`, `split`, `fork` (both spaces). For `leave_slot` reading is enough. The file operations
//! (truncate, fallocate, read) take no address-space lock and must not be called with one held.
//!
//! The lock guards the address space's [`SpaceToken`](crate::SpaceToken): what makes or ends a mapping asks for it.

use core::ops::Range;

pub use filetables::{Entry, Space, TableEntries};

use crate::addr::{PageSize, PhysAddr, VirtAddr};
use crate::error::OutOfMemory;
use crate::payer::Payer;

/// The machine that the library runs on: what [`filetables::Machine`] has, and huge frames and sleeping locks. Implemented
/// once by the host kernel.
///
/// A kernel's machine usually is a zero-sized type; a simulator's is a handle to its state.
pub trait Machine: filetables::Machine {
    /// A mutex whose waiters sleep: fault mutexes, reservation maps, pool resizing.
    type RawMutex: lock_api::RawMutex + Send + Sync + 'static;
    /// A reader/writer lock whose waiters sleep and whose writers do not starve: mapping locks, size locks, mapping lists.
    type RawRwLock: lock_api::RawRwLock + Send + Sync + 'static;

    /// Who pays for pages and promises; `()` in a host that limits nobody.
    type Payer: Payer;

    /// Who pays for what the calling thread takes from now on: see [`Payer`].
    fn payer(&self) -> Self::Payer;

    /// As `give_way`, in a loop that can fail, before a step that takes a little memory (4 KiB at most) from the global
    /// allocator. On an error the operation fails as for want of a page table, and leaves everything as it was: memory is
    /// short, or the caller is about to be killed.
    fn take_step(&self) -> Result<(), OutOfMemory>;

    /// A physically contiguous, naturally aligned huge frame with any content; `None` when there is none. May sleep.
    fn allocate_huge(&self, size: PageSize) -> Option<PhysAddr>;

    /// Takes a frame from [`Machine::allocate_huge`] back; nothing maps it and no TLB holds it. In a host that calls
    /// [`Pool::demote`](crate::Pool::demote) it may be a part of one: `size` is that of the part.
    fn free_huge(&self, size: PageSize, frame: PhysAddr);

    /// As [`Machine::free_huge`], of a frame with broken memory ([`Mapping::break_page`](crate::Mapping::break_page)): what the host noted
    /// as broken is never handed out again. A host that does not say otherwise loses all of the frame.
    fn free_broken(&self, size: PageSize, frame: PhysAddr) {
        let _ = (size, frame);
    }

    /// Fills `bytes` from `start`, which lie inside one huge frame, with zeroes. Long: never called under a spin lock,
    /// and the host keeps interrupts on.
    fn zero(&self, start: PhysAddr, bytes: u64);

    /// Copies a whole huge frame. Long, as [`Machine::zero`].
    fn copy_huge(&self, size: PageSize, from: PhysAddr, to: PhysAddr);

    /// Makes every CPU forget the translations of all `batch` members, paging-structure caches included, and returns
    /// when all of them have. Waits for other CPUs: never called with a spin lock held (sleeping locks may be held).
    ///
    /// The host may flush more than asked for. CPUs on which a space does not run, and that flush when they switch to
    /// it, need no interrupt.
    ///
    /// The library does not ask for a flush when an entry gains permissions or becomes present. On x86 the access that
    /// faults on the stale translation drops it. Where the hardware does not (AArch64, RISC-V) the host flushes the address on
    /// the CPU that faulted, after [`Mapping::fault`](crate::Mapping::fault) and before the access is made again.
    fn flush(&self, batch: &[Flush<Self::Space>]);
}

/// Translations to forget.
#[derive(Clone, Debug)]
pub struct Flush<S> {
    /// The address space.
    pub space: S,
    /// The addresses, aligned to huge pages.
    pub range: Range<VirtAddr>,
    /// Whether PUD entries that led to tables changed too, not only leaves.
    pub tables: bool,
}
