//! The seam: what the host implements.
//!
//! # Who owns which table
//!
//! The host owns the tables of each address space down to where an entry is *managed* ([`Format::is_managed`]). A managed
//! entry leads to a table of a file: the host never changes what is in it and never frees it. The library writes managed
//! entries, and nothing else, into the host's tables, only where an entry is empty, and takes them out again.
//!
//! # Two who want one entry
//!
//! The host installs a table of its own by a compare-and-exchange from an empty entry ([`Entry::fill`]), as the library does.
//! Who loses finds the other's entry and looks again.

use crate::addr::{Level, PhysAddr, TABLE_ENTRIES, VirtAddr};
use crate::error::OutOfMemory;
use crate::format::{EntryValue, Format};
use crate::sync::{AtomicU64, Ordering};

/// An entry of a page table, which the hardware may read at any time.
///
/// It has the layout of the hardware's entry, 8 bytes, so a host may look at the memory of a table as [`TableEntries`].
#[derive(Debug)]
#[repr(transparent)]
pub struct Entry(AtomicU64);

impl Entry {
    /// An empty entry.
    #[cfg(not(roundtable_model))]
    #[must_use]
    pub const fn empty() -> Entry {
        Entry(AtomicU64::new(0))
    }

    /// An empty entry.
    #[cfg(roundtable_model)]
    #[must_use]
    pub fn empty() -> Entry {
        Entry(AtomicU64::new(0))
    }

    /// The value. With [`Ordering::Acquire`], what it leads to is seen as it was when the entry was written.
    #[inline]
    pub fn load(&self, order: Ordering) -> EntryValue {
        EntryValue(self.0.load(order))
    }

    /// Sets the value. With [`Ordering::Release`], who follows it sees what came before.
    #[inline]
    pub fn store(&self, value: EntryValue, order: Ordering) {
        self.0.store(value.0, order);
    }

    /// Sets the value and returns the old one.
    #[inline]
    pub fn swap(&self, value: EntryValue, order: Ordering) -> EntryValue {
        EntryValue(self.0.swap(value.0, order))
    }

    /// Sets the value if the entry is empty; else fails with what is there.
    ///
    /// # Errors
    ///
    /// The value that the entry has, which it keeps.
    #[inline]
    pub fn fill(&self, value: EntryValue) -> Result<(), EntryValue> {
        // Release: who follows the entry sees what it leads to. Acquire: so do we, when another was first.
        match self.0.compare_exchange(0, value.0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(other) => Err(EntryValue(other)),
        }
    }

    /// The last value stored, without being a step of a model.
    #[cfg(roundtable_model)]
    pub fn peek(&self) -> EntryValue {
        EntryValue(self.0.peek())
    }
}

/// The entries of a page table.
pub type TableEntries = [Entry; TABLE_ENTRIES];

/// The machine: frames for page tables, a lock, shootdowns. Implemented once by the host.
pub trait Machine: Send + Sync + Sized + 'static {
    /// The format of page-table entries.
    type Format: Format;
    /// For short sections. A holder never sleeps, never waits for other CPUs, never allocates, and calls nothing of this
    /// trait but [`Machine::table`] and the methods of [`Space`] that make no tables. The lock need not keep interrupts
    /// off. It should be fair: programs of strangers wait for it.
    type RawSpinLock: lock_api::RawMutex + Send + Sync + 'static;
    /// The page-table side of an address space.
    type Space: Space;

    /// A frame for a page table (4 KiB, aligned), all zero; `None` when memory is short. May sleep.
    ///
    /// The frame is memory of a file. The host counts it there.
    fn allocate_table(&self) -> Option<PhysAddr>;

    /// Takes a table from [`Machine::allocate_table`] back; all its entries are empty. No entry leads to it and the TLBs were
    /// flushed, but a lockless walker may still be in it: the frame is reused only after a grace period. Does not wait
    /// for that.
    fn retire_table(&self, table: PhysAddr);

    /// The entries of a table from [`Machine::allocate_table`] that was not retired.
    fn table(&self, table: PhysAddr) -> &TableEntries;

    /// Makes every CPU that may hold translations of a space of which `concerned` says yes (by [`Space::id`]) forget all of
    /// that space, and returns when all have. The cost is to depend on the CPUs, not on the spaces.
    ///
    /// Waits for other CPUs, so no spin lock is held; `concerned` takes one. A CPU that switches to a space and flushes then
    /// needs no interrupt, if it had read no entry of the space before this call.
    fn flush_spaces(&self, concerned: &dyn Fn(u64) -> bool);

    /// Lets others run. Called in every loop whose length a user decides, without spin locks.
    fn give_way(&self) {}
}

/// The page tables of one address space: a cheap handle that keeps the upper tables alive.
///
/// The references stay valid as long as the handle. The implementation needs no lock of the address space, and copes with
/// concurrent calls.
pub trait Space: Clone + Send + Sync + 'static {
    /// Tells spaces apart, also after one is gone and another was made.
    fn id(&self) -> u64;

    /// The entry of `level` for an address in a table of the host, if the host has the tables above it.
    fn find_entry(&self, address: VirtAddr, level: Level) -> Option<&Entry>;

    /// The entry of `level` for an address in a table of the host; makes the tables above it on need. `None` where an entry
    /// above is managed, a leaf, or [`Format::BROKEN`], and above the root: with three levels (Sv39) no address has an entry of
    /// [`Level::Pgd`]. May sleep.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when there is no frame for a table.
    fn entry(&self, address: VirtAddr, level: Level) -> Result<Option<&Entry>, OutOfMemory>;

    /// Makes an empty table of the host and puts it, in one store, in the entry of `level` for an address. The entry leads
    /// to a table of the library, or is [`Format::BROKEN`]. Nobody else changes it meanwhile. May sleep.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when there is no frame for the table; the entry has not changed.
    fn replace_managed(&self, address: VirtAddr, level: Level) -> Result<(), OutOfMemory>;
}
