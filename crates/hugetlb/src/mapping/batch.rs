//! What waits for a TLB flush: the translations to forget, and what may be given up after it.

use alloc::vec::Vec;

use super::Area;
use crate::addr::{SLOT_SIZE, VirtAddr};
use crate::file::File;
use crate::machine::{Flush, Machine};
use crate::pool::Page;
use crate::sharing::Table;
use crate::sync::Arc;

/// Entries were taken away, TLBs not yet flushed.
///
/// Pages and tables that a TLB may still reach are kept here until [`Batch::finish`]: invariant 2 of the design, that a page
/// returns to the pool only after every TLB that may hold it was flushed, is this type.
pub(crate) struct Batch<'f, M: Machine> {
    file: &'f File<M>,
    flushes: Vec<Flush<M::Space>>,
    unmapped: Vec<Arc<Page<M>>>,
    detached: Vec<Arc<Table<M>>>,
    closed: Vec<Arc<Table<M>>>,
    kept: Vec<Arc<Page<M>>>,
}

impl<'f, M: Machine> Batch<'f, M> {
    pub(crate) fn new(file: &'f File<M>) -> Batch<'f, M> {
        Batch {
            file,
            flushes: Vec::new(),
            unmapped: Vec::new(),
            detached: Vec::new(),
            closed: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// An entry for `page` was cleared or replaced; it is counted out after the flush.
    pub(super) fn unmap(&mut self, page: Arc<Page<M>>) {
        self.unmapped.push(page);
    }

    /// A private copy was given up; it returns to the pool after the flush.
    pub(super) fn keep(&mut self, page: Arc<Page<M>>) {
        self.kept.push(page);
    }

    /// A table was detached from; it is counted out after the flush.
    pub(crate) fn release_later(&mut self, table: Arc<Table<M>>) {
        self.detached.push(table);
    }

    /// A table was closed for a change in place; it opens after the flush.
    pub(crate) fn open_later(&mut self, table: Arc<Table<M>>) {
        self.closed.push(table);
    }

    /// A PUD entry that led to a table was cleared.
    pub(crate) fn flush_tables(&mut self, area: &Area<M>, slot: VirtAddr) {
        self.push(Flush { space: area.space().clone(), range: slot..slot + SLOT_SIZE, tables: true });
    }

    /// The leaf at `address` was cleared, replaced or lost rights.
    pub(super) fn flush_leaf(&mut self, area: &Area<M>, address: VirtAddr) {
        let range = address..address + self.file.page_size().bytes();
        self.push(Flush { space: area.space().clone(), range, tables: false });
    }

    fn push(&mut self, flush: Flush<M::Space>) {
        use crate::machine::Space;
        if let Some(last) = self.flushes.last_mut()
            && last.space.id() == flush.space.id()
            && last.range.end == flush.range.start
        {
            last.range.end = flush.range.end;
            last.tables |= flush.tables;
            return;
        }
        self.flushes.push(flush);
    }

    /// Flushes, then gives up what waited for it.
    pub(crate) fn finish(self) {
        if !self.flushes.is_empty() {
            self.file.hugetlb().machine().flush(&self.flushes);
        }
        for page in &self.unmapped {
            page.remove_entry();
        }
        for table in &self.detached {
            table.release(self.file);
        }
        for table in &self.closed {
            table.open();
        }
        // `kept` and `unmapped` are dropped here, behind the flush.
    }
}
