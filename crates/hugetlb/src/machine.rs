//! The seam: what the host kernel implements.
//!
//! # Who owns which table
//!
//! The host owns the upper levels (PGD to PUD) of each address space, and every PMD table whose PUD entry does not
//! have [`crate::format::MANAGED`] set. A PUD entry with that bit leads to a table of the *library*: the host never
//! walks into it to change it, and never frees it. In a table of the host the library asks the [`Space`] for single
//! entries and writes leaves into those that lie inside its mappings; when a [`crate::Mapping`] is dropped all its
//! entries are clear again, and all its managed PUD entries are 0.
//!
//! The host may free one of its own PMD tables only while no live `Mapping` overlaps the table's 1 GiB slot: file
//! operations of *other* processes (truncate, punch) walk the tables of a mapping without this address space's lock.
//! It does well to free it then, because the library shares tables only in slots whose PUD entry is empty.
//!
//! # Who gets a slot
//!
//! A mapping attaches to a shared table in an empty PUD entry, also in a slot that it covers in part. Nobody announces
//! what else may come into the slot. Who needs a table of the host there (the host for base pages, or another
//! mapping that faults) and finds a managed entry asks for the slot at that moment: the host calls
//! [`Mapping::leave_slot`](crate::Mapping::leave_slot) of the mappings in the slot. The one that is attached puts an empty table
//! of the host in the place of the shared one, and its own pages come back by faults. From then on the slot has the host's
//! table, so one round over the mappings is enough.
//!
//! The library changes a PUD entry from empty to managed without a lock of the host. So the host installs its PMD tables by
//! compare-and-swap from an empty entry, and looks at what it finds instead.
//!
//! # What the host's locks must do
//!
//! The host holds its address-space lock (a sleeping reader/writer lock) for *reading* over
//! [`Mapping::fault`](crate::Mapping::fault) and the queries, and for *writing* over creating and dropping a mapping,
//! `protect`, `move_to`, `split`, `fork` (both spaces). For `leave_slot` reading is enough. The file operations (truncate, fallocate, read) take no
//! address-space lock and must not be called with one held.

use core::ops::Range;

use crate::addr::{PageSize, PhysAddr, TABLE_ENTRIES, VirtAddr};
use crate::error::{NoEntry, OutOfMemory};
use crate::sync::AtomicU64;

/// The 512 entries of a page table.
pub type TableEntries = [AtomicU64; TABLE_ENTRIES];

/// The machine that the library runs on: frames, locks, TLBs. Implemented once by the host kernel.
///
/// A kernel's machine usually is a zero-sized type; a simulator's is a handle to its state.
pub trait Machine: Send + Sync + Sized + 'static {
    /// For short leaf sections (table lock, pool lock). A holder never sleeps, never waits for other CPUs and never
    /// calls back into this trait except for [`Machine::table`]; the lock need not keep interrupts off.
    type RawSpinLock: lock_api::RawMutex + Send + Sync + 'static;
    /// A mutex whose waiters sleep: fault mutexes, reservation maps, pool resizing.
    type RawMutex: lock_api::RawMutex + Send + Sync + 'static;
    /// A reader/writer lock whose waiters sleep and whose writers do not starve: mapping locks, size locks, mapping lists.
    type RawRwLock: lock_api::RawRwLock + Send + Sync + 'static;
    /// The page-table side of an address space.
    type Space: Space;

    /// A frame for a page table (4 KiB, aligned), all zero; `None` when memory is short. May sleep.
    fn allocate_table(&self) -> Option<PhysAddr>;

    /// Takes a table from [`Machine::allocate_table`] back. No entry leads to it any more and the TLBs were flushed, but
    /// a lockless walker (a host that walks page tables with interrupts off or inside an epoch) may still be in it: the
    /// frame is reused only after a grace period. Does not wait for that period.
    fn retire_table(&self, table: PhysAddr);

    /// The entries of a table from [`Machine::allocate_table`] that was not retired.
    fn table(&self, table: PhysAddr) -> &TableEntries;

    /// A physically contiguous, naturally aligned huge frame with any content; `None` when there is none. May sleep.
    fn allocate_huge(&self, size: PageSize) -> Option<PhysAddr>;

    /// Takes a frame from [`Machine::allocate_huge`] back; nothing maps it and no TLB holds it.
    fn free_huge(&self, size: PageSize, frame: PhysAddr);

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
    /// The library does not ask for a flush when an entry gains permissions: the access that faults on the stale
    /// translation drops it, as x86 hardware does.
    fn flush(&self, batch: &[Flush<Self::Space>]);

    /// Makes every CPU that may hold translations of a space of which `concerned` says yes (by [`Space::id`]) forget all of
    /// that space, and returns when all have. For tables that many spaces use: the cost is to depend on the CPUs, not
    /// on the spaces.
    ///
    /// As [`Machine::flush`], it waits for other CPUs and is never called with a spin lock held; `concerned` takes one. A CPU that
    /// switches to a space and flushes then needs no interrupt, if it had read no entry of the space before this call.
    fn flush_spaces(&self, concerned: &dyn Fn(u64) -> bool);
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

/// The page tables of one address space: a cheap handle.
///
/// It is kept by every [`crate::Mapping`] in the space, and must keep the upper tables alive. Let it be a handle to the
/// page tables alone, not to the object that owns the mappings, or the two keep each other alive.
///
/// All references stay valid as long as the handle, by the ownership rule in the [module documentation](self). The
/// implementation needs no lock of the address space: entries are looked up by other processes' file operations, too.
/// It must cope with concurrent calls for the same tables (install upper tables by compare-and-swap or under a lock of
/// its own).
pub trait Space: Clone + Send + Sync + 'static {
    /// Tells spaces apart, also after one is gone and another was made: for batches and statistics.
    fn id(&self) -> u64;

    /// The PUD entry for an address, if the upper tables exist.
    fn find_pud_entry(&self, address: VirtAddr) -> Option<&AtomicU64>;

    /// The PUD entry for an address; makes the upper tables on need.
    fn pud_entry(&self, address: VirtAddr) -> Result<&AtomicU64, OutOfMemory>;

    /// The PUD entries for an address and the slots after it, as many as lie in one table; makes the upper tables on need. To
    /// attach a large mapping with few walks.
    fn pud_entries(&self, address: VirtAddr) -> Result<&[AtomicU64], OutOfMemory> {
        self.pud_entry(address).map(core::slice::from_ref)
    }

    /// The entry for an address in the *host's* PMD table; `None` when the PUD entry is empty or managed.
    fn find_pmd_entry(&self, address: VirtAddr) -> Option<&AtomicU64>;

    /// The entry for an address in the *host's* PMD table; makes that table where the PUD entry is empty.
    fn pmd_entry(&self, address: VirtAddr) -> Result<&AtomicU64, NoEntry>;

    /// Makes an empty PMD table of the host and puts it, in one store, in the place of the library's table to which the
    /// managed PUD entry for an address leads. Nobody else changes the entry meanwhile. May sleep.
    fn replace_managed(&self, address: VirtAddr) -> Result<(), OutOfMemory>;
}
