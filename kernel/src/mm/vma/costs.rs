//! What the areas of an address space take.

use core::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use super::{PAGE, Vma};
use crate::mm::windows::ByFiles;

/// What the areas of an address space take, about, for those who must not take the areas lock.
#[derive(Default)]
pub struct Costs {
    /// Bytes of the kernel's own memory.
    pub(super) heap: AtomicUsize,
    /// Slots of huge pages.
    pub(super) windows: AtomicUsize,
    /// Bytes that came into regions by the process.
    in_regions: AtomicI64,
    /// Pages that tables of files showed when somebody looked last.
    shown: AtomicU64,
    /// Tables of files that showed them.
    showing: AtomicU64,
    /// Bytes in attached regions that nobody else answers for.
    unclaimed: AtomicU64,
}

impl Costs {
    /// Bytes of the kernel's own memory.
    pub fn heap(&self) -> u64 {
        // Relaxed, here and below: statistics.
        self.heap.load(Ordering::Relaxed) as u64
    }

    /// The area comes.
    pub(super) fn add(&self, vma: &Vma) {
        self.heap.fetch_add(vma.kernel_bytes(), Ordering::Relaxed);
        self.windows.fetch_add(vma.windows(), Ordering::Relaxed);
    }

    /// The area, as it was when it came, goes.
    pub(super) fn subtract(&self, vma: &Vma) {
        self.heap.fetch_sub(vma.kernel_bytes(), Ordering::Relaxed);
        self.windows.fetch_sub(vma.windows(), Ordering::Relaxed);
    }

    /// Bytes of pages, tables and areas that came into regions by the process, as far as they are still there, and into regions that it has
    /// attached by processes that are gone.
    pub fn in_regions(&self) -> u64 {
        // Of two changes of one account the second may come here first.
        let brought = self.in_regions.load(Ordering::Relaxed).max(0) as u64;
        brought + self.unclaimed.load(Ordering::Relaxed)
    }

    /// Counts them: so many more, or fewer.
    pub(in crate::mm) fn change_in_regions(&self, change: i64) {
        self.in_regions.fetch_add(change, Ordering::Relaxed);
    }

    /// Pages that tables of files showed when somebody looked last.
    pub(in crate::mm) fn shown(&self) -> u64 {
        self.shown.load(Ordering::Relaxed)
    }

    /// Somebody has looked.
    pub(in crate::mm) fn note_shown(&self, shown: &ByFiles) {
        self.shown.store(shown.pages, Ordering::Relaxed);
        self.showing.store(shown.tables, Ordering::Relaxed);
        self.unclaimed.store(shown.unclaimed, Ordering::Relaxed);
    }

    /// Bytes that files took for the tables that showed base pages when somebody looked last: the tables live by who maps the file, and so do the
    /// places of 512 pages that each of them goes with.
    pub fn file_tables(&self) -> u64 {
        self.showing.load(Ordering::Relaxed) * 2 * PAGE
    }

    /// Bytes that the tables of huge pages take when all are there: its own, and those of its files.
    pub fn huge_tables(&self) -> u64 {
        self.windows.load(Ordering::Relaxed) as u64 * PAGE
    }
}
