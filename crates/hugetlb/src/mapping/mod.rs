//! One mapping of a file in an address space: fault, unmap, protect, move, split, fork.
//!
//! # Locks
//!
//! Outermost first, as the library takes them:
//!
//! 1. the host's address-space lock (the host's, around the calls here; never held over truncate, fallocate, read);
//! 2. the file's size lock (truncate, fallocate, mmap);
//! 3. the file's fence (protocol `file-lock` only);
//! 4. the fault mutex of a page index ([`crate::file::IndexLock`]);
//! 5. the mapping lock of an [`Area`] (one at a time);
//! 6. the file's attach mutex, then its reservation map;
//! 7. the file's list of mappings;
//! 8. spin locks, never two of one kind: private copies, adopted tables of an area, table state, cache, quota, pool.
//!
//! A fault takes the fault mutex *before* the mapping lock: a hole punch holds the mutex while it unmaps the page from all
//! mappings, and would wait for a fault that waits for it otherwise.
//!
//! # What a mapping may lose while it faults
//!
//! * Its place: no, that takes the host's address-space lock for writing.
//! * Its table: that is what the protocols differ in, see [`crate::sharing`].
//! * The page: no, that takes the fault mutex.
//! * The end of the file may move in front of the index. The fault looks at the size once more in the critical section
//!   that adds the page to the cache; a page that was mapped just before is met by the truncation's own walk.

mod broken;
mod change;
mod check;
mod entries;
mod fault;
mod fork;
mod private;
mod query;
mod round;
#[cfg(test)]
mod tests;
mod userfault;

use core::fmt;

use filetables::{Protection, Space};

pub use query::Resident;
pub use round::CheckRound;
pub use userfault::Presence;

use crate::addr::{PageIndex, PageSize, VirtAddr};
use crate::area::{self, Area, Placement, Private};
use crate::error::OutOfMemory;
use crate::file::File;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::payer::{self, Expense};
use crate::range_list::Place;
use crate::reserve;
use crate::sharing::{Batch, Purpose};
use crate::stats::Fallback;
use crate::sync::Arc;
use crate::token::SpaceToken;

/// A mapping of a file of huge pages: the library's part of one VMA.
///
/// It ends with [`Mapping::unmap`]. One that is dropped otherwise is unmapped all the same, but nothing proves that the host holds
/// its address-space lock: a build with debug assertions panics.
#[must_use = "a mapping is to be kept by its VMA, and to be unmapped"]
pub struct Mapping<M: Machine> {
    file: Arc<File<M>>,
    area: Arc<Area<M>>,
    /// As in the area, for readers who do not hold the mapping lock: only `&mut self` changes it.
    placement: Placement,
    is_unmapped: bool,
}

impl<M: Machine> fmt::Debug for Mapping<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("file", &self.file.id())
            .field("placement", &self.placement)
            .field("shared", &self.is_shared())
            .finish_non_exhaustive()
    }
}

/// What a mapping is made of: memory for all that makes it known to the file, which then does not fail.
pub(crate) struct NewMapping<M: Machine> {
    area: Arc<Area<M>>,
    place: Option<Place<Arc<Area<M>>>>,
    placement: Placement,
}

impl<M: Machine> NewMapping<M> {
    pub(crate) fn prepare(
        file: &File<M>,
        space: M::Space,
        placement: Placement,
        shared: bool,
    ) -> Result<NewMapping<M>, OutOfMemory> {
        // The promise comes later.
        let private = Private::new(None, false);
        let id = file.hugetlb().next_id();
        let state = file.protocol().area_state();
        let area = Area::new(id, space, shared, file.page_size(), placement, private, state);
        // It has nothing yet.
        area.set_unmapped_by(file.last_unmapping().number);
        Ok(NewMapping { place: place_at_once(file, &area)?, area, placement })
    }

    /// Makes it known to the file, and attaches a shared one to what there is. What was promised to a private one is its own.
    /// `payer` paid for that.
    pub(crate) fn attach(self, file: Arc<File<M>>, payer: Option<M::Payer>) -> Mapping<M> {
        let NewMapping { area, place, placement } = self;
        if !area.is_shared() {
            area.private().lock().promise = payer;
            file.hugetlb().counters().fall_back(Fallback::Private, 1);
        }
        let mapping = Mapping { file, area, placement, is_unmapped: false };
        mapping.attach_new(place);
        mapping
    }
}

/// Memory for an area's place on the file's list, if such mappings are on it from the beginning.
fn place_at_once<M: Machine>(
    file: &File<M>,
    area: &Arc<Area<M>>,
) -> Result<Option<Place<Arc<Area<M>>>>, OutOfMemory> {
    // Private copies are found by the list.
    let at_once = !area.is_shared() || file.protocol().lists_all();
    at_once.then(|| area.place(file.hugetlb().machine())).transpose()
}

impl<M: Machine> Mapping<M> {
    /// An area of the same kind in an address space, of which the file does not know yet, with the last unmapping that need not
    /// visit it.
    fn new_area(
        &self,
        space: M::Space,
        placement: Placement,
        private: Private<M>,
        unmapped_by: u64,
    ) -> Arc<Area<M>> {
        let area = Area::new(
            self.file.hugetlb().next_id(),
            space,
            self.is_shared(),
            self.page_size(),
            placement,
            private,
            self.file.protocol().area_state(),
        );
        area.set_unmapped_by(unmapped_by);
        area
    }

    /// Makes a new mapping known to the file.
    fn attach_new(&self, place: Option<Place<Arc<Area<M>>>>) {
        self.attach();
        if let Some(place) = place {
            self.area.enlist(&self.file, place);
        }
    }

    /// Attaches a shared mapping to what there is. Faults come later: the host holds its address-space lock for writing.
    fn attach(&self) {
        self.attach_part(&self.placement);
    }

    /// As [`Mapping::attach`], for a part of the mapping that covers as much of its slots as the mapping does.
    fn attach_part(&self, part: &Placement) {
        if self.is_shared() {
            self.file.protocol().attach(&self.file, &self.area, part);
        }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Arc<File<M>> {
        &self.file
    }

    /// Whether it is `MAP_SHARED`.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.area.is_shared()
    }

    /// The size of its pages.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.file.page_size()
    }

    /// The first address.
    #[must_use]
    pub fn start(&self) -> VirtAddr {
        self.placement.start
    }

    /// The length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.placement.pages << self.page_size().shift()
    }

    /// The byte offset in the file of the first address.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.placement.first.0 << self.page_size().shift()
    }

    /// What it permits.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.placement.protection
    }

    /// The page index of an address, if the mapping covers it.
    fn index(&self, address: VirtAddr) -> Option<PageIndex> {
        let within = address.0.checked_sub(self.placement.start.0)? >> self.page_size().shift();
        (within < self.placement.pages).then(|| self.placement.first + within)
    }
}

impl<M: Machine> Mapping<M> {
    /// Ends the mapping: entries are cleared and TLBs flushed before the pages go, and promises that a private mapping did not use
    /// return to the pool. `token` is that of its address space.
    pub fn unmap(mut self, token: &mut SpaceToken<M::Space>) {
        debug_assert_eq!(token.space().id(), self.area.space().id(), "the token of another address space");
        self.end();
    }

    fn end(&mut self) {
        self.is_unmapped = true;
        let _fence = self.file.protocol().change_fence(&self.file);
        if Mutant::LeaveBeforeFlush.is_on() {
            self.area.leave(&self.file);
        }
        {
            // Held over the flush: a truncation that finds nothing here any more must not free pages that our TLBs still hold.
            let mut placement = self.area.lock();
            let mut batch = Batch::new(&self.file);
            self.area.clear(&self.file, &placement, placement.indices(), Purpose::Leave, &mut batch);
            batch.finish();
            // A walk that found the area before it left the list finds it empty: what comes to its addresses is another's.
            if !Mutant::DeadMappingKeepsPages.is_on() {
                placement.pages = 0;
            }
        }
        self.area.leave(&self.file);
        self.area.delist(&self.file);
        let (payer, unused, has_copies) = {
            let mut private = self.area.private().lock();
            let used = private.used();
            let payer = private.promise.take();
            let unused = payer.as_ref().map_or(0, |_| self.placement.pages - used);
            (payer, unused, !private.is_empty())
        };
        if let Some(payer) = payer {
            payer::discharge(&payer, Expense::Promise, self.page_size(), self.placement.pages);
        }
        if !Mutant::PromiseOfMappingLost.is_on() {
            reserve::unreserve(self.file.pool(), self.file.subpool(), unused);
        }
        let machine = self.file.hugetlb().machine();
        // Nobody adds any to a mapping at its end.
        if has_copies {
            area::forget(machine, self.area.private());
        }
        if self.area.has_marks() {
            area::marks::forget(machine, self.area.marks());
        }
    }
}

impl<M: Machine> Drop for Mapping<M> {
    fn drop(&mut self) {
        if self.is_unmapped {
            return;
        }
        self.end();
        // A test that fails drops what it has.
        #[cfg(any(test, roundtable_model))]
        if std::thread::panicking() {
            return;
        }
        debug_assert!(false, "a mapping was dropped, not unmapped");
    }
}
