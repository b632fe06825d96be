//! The page cache of a file, and its size.

use alloc::collections::BTreeMap;

use crate::addr::PageIndex;
use crate::machine::Machine;
use crate::pool::Page;
use crate::sync::Arc;

/// The pages of a file by index, and where the file ends.
pub(crate) struct Cache<M: Machine> {
    size: u64,
    pages: BTreeMap<PageIndex, Arc<Page<M>>>,
}

/// The index is beyond the end of the file.
pub(crate) struct BeyondEnd;

impl<M: Machine> Cache<M> {
    pub(super) fn new() -> Cache<M> {
        Cache { size: 0, pages: BTreeMap::new() }
    }

    /// The file's size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn set_size(&mut self, size: u64) {
        self.size = size;
    }

    /// Whether the whole page lies in front of the file's end.
    pub(crate) fn covers(&self, index: PageIndex, shift: u32) -> bool {
        index.0 < self.size >> shift
    }

    pub(crate) fn get(&self, index: PageIndex) -> Option<&Arc<Page<M>>> {
        self.pages.get(&index)
    }

    /// Adds a page for a fault. That the end is looked at in the same critical section is what makes a truncation final:
    /// once the size is set no page appears behind it.
    pub(crate) fn insert(&mut self, index: PageIndex, page: Arc<Page<M>>) -> Result<(), BeyondEnd> {
        if !self.covers(index, page.size().shift()) {
            return Err(BeyondEnd);
        }
        self.insert_anywhere(index, page);
        Ok(())
    }

    /// Adds a page, also beyond the end: for `FALLOC_FL_KEEP_SIZE`, under the size lock.
    pub(super) fn insert_anywhere(&mut self, index: PageIndex, page: Arc<Page<M>>) {
        let old = self.pages.insert(index, page);
        debug_assert!(old.is_none(), "two pages for one index");
    }

    pub(super) fn remove(&mut self, index: PageIndex) -> Option<Arc<Page<M>>> {
        self.pages.remove(&index)
    }

    /// The first cached index in the range.
    pub(super) fn next(&self, from: PageIndex, end: PageIndex) -> Option<PageIndex> {
        if from >= end {
            return None;
        }
        self.pages.range(from..end).next().map(|(index, _)| *index)
    }

    /// Pages in the cache.
    pub(crate) fn len(&self) -> u64 {
        self.pages.len() as u64
    }
}
