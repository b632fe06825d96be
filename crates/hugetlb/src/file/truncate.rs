//! Truncation, and taking pages out of the cache.
//!
//! Both truncation and hole punch work in two passes. The first clears the range from all mappings with few flushes. The
//! second takes each page out of the cache under its fault mutex; a page that a fault mapped again between the passes
//! (its entry count says so) is unmapped once more, and cannot come back while the mutex is held.

use core::ops::Range;

use super::File;
use crate::addr::PageIndex;
use crate::error::Result;
use crate::machine::Machine;
use crate::mapping::Batch;
use crate::mutant::Mutant;
use crate::reserve;

impl<M: Machine> File<M> {
    /// Sets the size in bytes (ftruncate). What lies behind it leaves the file and all mappings, private copies too; an
    /// access there is SIGBUS from now on.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Invalid`] when `size` is not a multiple of the page size.
    pub fn truncate(&self, size: u64) -> Result<()> {
        self.check_size(size)?;
        let _size = self.size_lock.lock();
        if !Mutant::SizeSetLast.is_on() {
            self.cache.lock().set_size(size);
        }
        let end = size >> self.page_size().shift();
        self.unmap(end..u64::MAX);
        let freed = self.remove_pages(end..u64::MAX, false);
        let promised = self.regions.lock().remove(end..u64::MAX);
        reserve::unreserve(&self.pool, self.subpool(), promised.saturating_sub(freed));
        if Mutant::SizeSetLast.is_on() {
            self.cache.lock().set_size(size);
        }
        Ok(())
    }

    /// Takes the pages of `range` out of the cache; returns how many there were. A hole punch takes their promises along
    /// one by one; a truncation deletes all promises of its range afterwards.
    pub(super) fn remove_pages(&self, range: Range<u64>, punch: bool) -> u64 {
        let (mut next, end) = (PageIndex(range.start), PageIndex(range.end));
        let mut freed = 0;
        loop {
            let Some(index) = self.cache.lock().next(next, end) else { return freed };
            next = index + 1;
            freed += u64::from(self.remove_page(index, punch));
        }
    }

    /// Clears the entries of all mappings for the page indices, with few flushes; a fault may bring one back.
    pub(super) fn unmap(&self, indices: Range<u64>) {
        let protocol = self.hugetlb.protocol();
        let _fence = protocol.change_fence(self);
        protocol.unmap(self, indices);
    }

    /// Takes a page out of the cache and gives it up; returns whether there was one.
    fn remove_page(&self, index: PageIndex, punch: bool) -> bool {
        let protocol = self.hugetlb.protocol();
        let mut at = self.lock_index(index);
        let is_mapped = || self.cache.lock().get(index).is_some_and(|page| page.is_mapped());
        let mut _fence = None;
        if is_mapped() {
            // The fence comes before the index: let go, and look again.
            if Mutant::FenceBehindIndex.is_on() {
                _fence = protocol.change_fence(self);
            }
            drop(at);
            _fence = protocol.change_fence(self);
            at = self.lock_index(index);
            if is_mapped() && !Mutant::MappedAgainNotMet.is_on() {
                protocol.unmap_for_good(self, index);
            }
        }
        // Another punch cannot have taken it (size lock), but look rather than assume.
        let Some((page, entries)) = self.cache.lock().remove(&at) else { return false };
        if punch && !Mutant::PromiseOutlivesPunch.is_on() {
            self.regions.lock().remove(index.0..index.0 + 1);
        }
        // The index is locked until the TLBs are flushed: no fresh page appears to one process while another still sees
        // the old one.
        let mut batch = Batch::new(self);
        batch.hide(&page, entries);
        if Mutant::IndexUnlockedEarly.is_on() {
            drop(at);
        }
        batch.finish();
        debug_assert!(!page.is_mapped(), "an entry outlived its page");
        true
    }
}
