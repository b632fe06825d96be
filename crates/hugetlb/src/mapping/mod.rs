//! One mapping of a file in an address space: fault, unmap, protect, move, split, fork.
//!
//! # Locks
//!
//! Outermost first, as the library takes them:
//!
//! 1. the host's address-space lock (the host's, around the calls here; never held over truncate, fallocate, read);
//! 2. the file's size lock (truncate, fallocate, mmap);
//! 3. the fault mutex of a page index;
//! 4. the mapping lock of an [`Area`] (one at a time);
//! 5. the file's attach mutex, then its reservation map;
//! 6. the file's list of mappings;
//! 7. spin locks, never two of one kind: private copies, tables of an area, table state, cache, quota, pool.
//!
//! A fault takes the fault mutex *before* the mapping lock: a hole punch holds the mutex while it unmaps the page from all
//! mappings, and would wait for a fault that waits for it otherwise.
//!
//! # What a mapping may lose while it faults
//!
//! * Its place: no, that takes the host's address-space lock for writing.
//! * Its table: no, that takes the mapping lock for writing.
//! * The page: no, that takes the fault mutex.
//! * The end of the file may move in front of the index. The fault looks at the size once more in the critical section
//!   that adds the page to the cache; a page that was mapped just before is met by the truncation's own walk.

mod area;
mod batch;
mod change;
mod fault;
mod fork;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;

pub(crate) use area::Area;
use area::{Placement, Private};
pub(crate) use batch::Batch;
pub use fault::{Access, Resident};

use crate::addr::{PageIndex, PageSize, VirtAddr};
use crate::file::{File, MapOptions};
use crate::format::Protection;
use crate::machine::Machine;
use crate::reserve::{self, Regions};
use crate::stats::Fallback;
use crate::sync::Arc;

/// A mapping of a file of huge pages: the library's part of one VMA.
///
/// Dropping it unmaps it: entries are cleared and TLBs flushed before the pages go, promises that a private mapping did
/// not use return to the pool. The host holds its address-space lock for writing then.
pub struct Mapping<M: Machine> {
    file: Arc<File<M>>,
    area: Arc<Area<M>>,
    /// As in the area, for readers who do not hold the mapping lock: only `&mut self` changes it.
    placement: Placement,
}

impl<M: Machine> Mapping<M> {
    pub(crate) fn new(
        file: Arc<File<M>>,
        space: M::Space,
        start: VirtAddr,
        first: PageIndex,
        pages: u64,
        options: MapOptions,
    ) -> Mapping<M> {
        let placement = Placement { start, first, pages, protection: options.protection };
        let private = Private {
            copies: BTreeMap::new(),
            used: Regions::default(),
            owner: !options.shared && !options.no_reserve,
            robbed: false,
        };
        let mapping = Self::enlist(file, space, options.shared, placement, private);
        if !options.shared {
            mapping.file.hugetlb().counters().fall_back(Fallback::Private, 1);
        } else if mapping.page_size() == PageSize::Size2M && mapping.area.slot(&placement, start).is_none() {
            mapping.file.hugetlb().counters().fall_back(Fallback::NotCovered, 1);
        }
        mapping
    }

    /// Puts a new area on the file's list.
    fn enlist(
        file: Arc<File<M>>,
        space: M::Space,
        shared: bool,
        placement: Placement,
        private: Private<M>,
    ) -> Mapping<M> {
        let mut list = file.mappings().write();
        // The id is taken under the list's lock, so that walkers meet areas in the order of their ids.
        let area = Area::new(file.hugetlb().next_id(), space, shared, file.page_size(), placement, private);
        list.insert(area.id(), area.clone());
        drop(list);
        Mapping { file, area, placement }
    }

    /// The file.
    pub fn file(&self) -> &Arc<File<M>> {
        &self.file
    }

    /// Whether it is `MAP_SHARED`.
    pub fn is_shared(&self) -> bool {
        self.area.is_shared()
    }

    /// The size of its pages.
    pub fn page_size(&self) -> PageSize {
        self.file.page_size()
    }

    /// The first address.
    pub fn start(&self) -> VirtAddr {
        self.placement.start
    }

    /// The length in bytes.
    pub fn length(&self) -> u64 {
        self.placement.pages << self.page_size().shift()
    }

    /// The byte offset in the file of the first address.
    pub fn offset(&self) -> u64 {
        self.placement.first.0 << self.page_size().shift()
    }

    /// What it permits.
    pub fn protection(&self) -> Protection {
        self.placement.protection
    }

    /// The page index of an address, if the mapping covers it.
    fn index(&self, address: VirtAddr) -> Option<PageIndex> {
        let within = address.0.checked_sub(self.placement.start.0)? >> self.page_size().shift();
        (within < self.placement.pages).then(|| self.placement.first + within)
    }
}

impl<M: Machine> Drop for Mapping<M> {
    fn drop(&mut self) {
        {
            // Held over the flush: a truncation that finds nothing here any more must not free pages that our TLBs still hold.
            let placement = self.area.placement().write();
            let mut batch = Batch::new(&self.file);
            self.area.clear(&self.file, &placement, placement.indices(), false, &mut batch);
            batch.finish();
        }
        self.file.mappings().write().remove(&self.area.id());
        let unused = {
            let private = self.area.private().lock();
            if private.owner {
                self.placement.pages - private.used.count(self.placement.indices())
            } else {
                0
            }
        };
        reserve::unreserve(self.file.pool(), self.file.subpool(), unused);
    }
}
