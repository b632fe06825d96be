//! A fault under way: the steps that the protocols are made of.

use filetables::{Entry, Format, InsertError, Protection};

use crate::addr::{PhysAddr, VirtAddr};
use crate::area::{Area, Placement};
use crate::error::FaultError;
use crate::file::{File, IndexLock};
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::sync::{Arc, Ordering, ReadGuard};

/// How [`Mapping::fill`](crate::Mapping::fill) writes a page: it gets the frame, which nobody else knows yet.
pub type Fill<'f> = &'f dyn Fn(PhysAddr);

/// The access that faulted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// A fault under way: its page index is locked.
pub(crate) struct Fault<'m, M: Machine> {
    pub(crate) file: &'m File<M>,
    pub(crate) area: &'m Arc<Area<M>>,
    /// Of the page.
    pub(crate) address: VirtAddr,
    pub(crate) access: Access,
    /// What a fresh page gets; zeroes if nothing.
    pub(crate) fill: Option<Fill<'m>>,
    pub(crate) index: IndexLock<'m, M>,
}

impl<'m, M: Machine> Fault<'m, M> {
    /// Locks the mapping for reading, if it permits the access. While the guard lives the mapping keeps its place, its
    /// rights and its tables; faults on other pages go on.
    #[inline]
    pub(crate) fn lock_mapping(&self) -> Result<ReadGuard<'m, M, Placement>, FaultError> {
        let placement = self.area.placement();
        let permitted = match self.access {
            // The host puts the page there, not the program.
            _ if self.fill.is_some() => true,
            Access::Read => !placement.protection.is_empty(),
            Access::Write => placement.protection.contains(Protection::WRITE),
            Access::Execute => placement.protection.contains(Protection::EXECUTE),
        };
        if !permitted && !Mutant::AccessNotChecked.is_on() {
            return Err(FaultError::Access);
        }
        // Under the lock, which who poisons holds for writing: where there is no entry then, there comes none.
        if self.area.has_marks() {
            self.refuse_poison()?;
        }
        Ok(placement)
    }

    /// An error where an access would meet poison. The host may put a page there.
    #[cold]
    fn refuse_poison(&self) -> Result<(), FaultError> {
        if self.fill.is_none() && self.area.poisons(self.index.index()) {
            return Err(FaultError::Poisoned(self.area.size().level().shift()));
        }
        Ok(())
    }

    /// An error for a page whose memory is broken.
    #[inline]
    pub(crate) fn refuse_broken(&self, page: &Page<M>) -> Result<(), FaultError> {
        if page.is_broken() { Err(FaultError::Poisoned(page.size().shift())) } else { Ok(()) }
    }

    /// As [`Fault::page`], and the mapping gets no entry.
    pub(crate) fn unshown_page(&self) -> Result<Arc<Page<M>>, FaultError> {
        let _placement = self.area.placement();
        self.page()
    }

    /// The file's page; a fresh one, all zero, where there was a hole. Long: it may clear a huge page.
    pub(crate) fn page(&self) -> Result<Arc<Page<M>>, FaultError> {
        let index = self.index.index().0;
        let content = self.file.content();
        // Looked at under the mapping lock: a truncation that comes later meets what this fault maps.
        if index >= content.end() {
            return Err(FaultError::Sigbus);
        }
        if let Some(page) = self.index.page(self.file) {
            self.refuse_broken(&page)?;
            return Ok(page);
        }
        // Refuses to where the file ends before the content does.
        let page = self.file.allocate_page(&self.index, false).map_err(|_| FaultError::Sigbus)?;
        self.file.hugetlb().counters().fault(self.index.index()).allocated.add(1);
        if !Mutant::PageNotZeroed.is_on() {
            self.initialise(&page, None);
        }
        // A truncation came in between, or memory is short.
        self.file.bring_page(&self.index, &page, false).map_err(|error| match error {
            InsertError::OutOfMemory => FaultError::OutOfMemory,
            InsertError::BeyondEnd | InsertError::Occupied => FaultError::Sigbus,
        })?;
        Ok(page)
    }

    /// What the entry of the page may permit: not the stores that are withheld.
    pub(crate) fn permitted(&self, protection: Protection) -> Protection {
        if self.area.withholds(self.index.index()) { protection - Protection::WRITE } else { protection }
    }

    /// Writes the content of a fresh page: what the host says, else that of `origin`, else zeroes.
    pub(crate) fn initialise(&self, page: &Page<M>, origin: Option<&Page<M>>) {
        match (self.fill, origin) {
            (Some(fill), _) => fill(page.frame()),
            (None, Some(origin)) => page.copy_from(origin),
            (None, None) => page.zero(),
        }
    }

    /// The entry for the address in tables of the host.
    pub(crate) fn host_entry(&self) -> Result<&'m Entry, FaultError> {
        let entry = self.area.host_entry(self.address)?;
        let value = entry.load(Ordering::Acquire);
        if M::Format::is_present(value) && !M::Format::is_leaf(self.file.page_size().level(), value) {
            // The host left a table of its own where a 1 GiB page goes. Writing over it would lose that table.
            debug_assert!(false, "a 1 GiB mapping over a PMD table of the host");
            return Err(FaultError::OutOfMemory);
        }
        Ok(entry)
    }
}

/// Writes the leaf for a page of the file, unless a sharer has.
pub(crate) fn publish<M: Machine>(entry: &Entry, page: &Page<M>, protection: Protection) {
    let level = page.size().level();
    // Acquire: with a sharer's release below.
    let old = entry.load(Ordering::Acquire);
    if M::Format::is_leaf(level, old) {
        debug_assert_eq!(M::Format::leaf_frame(level, old), page.frame(), "a table equals the content");
        return;
    }
    if !Mutant::EntryNotCounted.is_on() {
        page.add_entry();
    }
    // Release: the page's zeroes come before its entry, on every CPU.
    let order = if Mutant::LeafWithoutRelease.is_on() { Ordering::Relaxed } else { Ordering::Release };
    entry.store(M::Format::leaf(level, page.frame(), protection), order);
}
