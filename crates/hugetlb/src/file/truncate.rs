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
        self.cache.lock().set_size(size);
        let end = size >> self.page_size().shift();
        self.unmap_everywhere(end..u64::MAX);
        let freed = self.remove_pages(end..u64::MAX, false);
        let promised = self.regions.lock().remove(end..u64::MAX);
        reserve::unreserve(&self.pool, self.subpool(), promised.saturating_sub(freed));
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
            let _fault = self.hugetlb.fault_mutex(self.id, index).lock();
            // Another punch cannot have taken it (size lock), but look rather than assume.
            let Some(page) = self.cache.lock().get(index).cloned() else { continue };
            if page.is_mapped() {
                self.unmap_for_good(index);
                debug_assert!(!page.is_mapped(), "an entry outlived its page");
            }
            self.cache.lock().remove(index);
            if punch {
                self.regions.lock().remove(index.0..index.0 + 1);
            }
            freed += 1;
        }
    }
}
