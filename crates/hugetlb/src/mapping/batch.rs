//! What waits for a TLB flush: the translations to forget, and what may be given up after it.

use alloc::vec::Vec;
use core::ops::Range;

use super::{Area, Share};
use crate::addr::{SLOT_SIZE, VirtAddr};
use crate::file::{File, Window};
use crate::machine::{Flush, Machine, Space};
use crate::mutant::Mutant;
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
    /// All who are attached to tables of the file are to forget.
    sharers: bool,
    hidden: Vec<(Arc<Page<M>>, u64)>,
    released: Vec<Arc<Table<M>>>,
    detached: Vec<Window>,
    closed: Vec<Arc<Table<M>>>,
    kept: Vec<Share<M>>,
}

/// Tables that are detached from with one hold of the cache lock.
const DETACHED_AT_A_TIME: usize = 64;

impl<'f, M: Machine> Batch<'f, M> {
    pub(crate) fn new(file: &'f File<M>) -> Batch<'f, M> {
        Batch {
            file,
            flushes: Vec::new(),
            unmapped: Vec::new(),
            sharers: false,
            hidden: Vec::new(),
            released: Vec::new(),
            detached: Vec::new(),
            closed: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// The file whose entries change.
    pub(crate) fn file(&self) -> &'f File<M> {
        self.file
    }

    /// An entry for `page` was cleared or replaced; it is counted out after the flush.
    pub(super) fn unmap(&mut self, page: Arc<Page<M>>) {
        self.unmapped.push(page);
    }

    /// A private copy was given up; it returns to the pool after the flush.
    pub(super) fn keep(&mut self, share: Share<M>) {
        if !Mutant::ShareDroppedBeforeFlush.is_on() {
            self.kept.push(share);
        }
    }

    /// A page of the file was hidden: so many entries for it in the file's tables were cleared.
    pub(crate) fn hide(&mut self, page: &Arc<Page<M>>, entries: u64) {
        if entries != 0 {
            self.sharers = true;
            self.hidden.push((page.clone(), entries));
        }
    }

    /// An adopted table was detached from; it is counted out after the flush.
    pub(crate) fn release_later(&mut self, table: Arc<Table<M>>) {
        self.released.push(table);
    }

    /// A table of the file was detached from; it is counted out after the flush. A batch's windows ascend.
    pub(crate) fn detach_later(&mut self, window: Window) {
        self.detached.push(window);
    }

    /// A table was closed for a change in place; it opens after the flush.
    pub(crate) fn open_later(&mut self, table: Arc<Table<M>>) {
        self.closed.push(table);
    }

    /// A PUD entry that led to a table was cleared.
    pub(crate) fn flush_tables(&mut self, area: &Area<M>, slot: VirtAddr) {
        self.push(area, slot..slot + SLOT_SIZE, !Mutant::TablesNotFlushed.is_on());
    }

    /// The leaf at `address` was cleared, replaced or lost rights.
    pub(super) fn flush_leaf(&mut self, area: &Area<M>, address: VirtAddr) {
        self.push(area, address..address + self.file.page_size().bytes(), false);
    }

    fn push(&mut self, area: &Area<M>, range: Range<VirtAddr>, tables: bool) {
        if let Some(last) = self.flushes.last_mut()
            && last.space.id() == area.space().id()
            && last.range.end == range.start
        {
            last.range.end = range.end;
            last.tables |= tables;
            return;
        }
        self.flushes.push(Flush { space: area.space().clone(), range, tables });
    }

    /// Flushes, then gives up what waited for it. The mapping locks of what was changed are still held.
    pub(crate) fn finish(mut self) {
        let machine = self.file.hugetlb().machine();
        if Mutant::PagesBeforeFlush.is_on() {
            self.unmapped.drain(..).for_each(|page| page.remove_entry());
        }
        if Mutant::ReleaseBeforeFlush.is_on() {
            self.released.drain(..).for_each(|table| table.release(self.file));
        }
        if Mutant::DetachBeforeFlush.is_on() {
            self.detach(&self.detached);
            self.detached.clear();
        }
        if !self.flushes.is_empty() && !Mutant::FlushForgotten.is_on() {
            machine.flush(&self.flushes);
        }
        if self.sharers && !Mutant::SharersNotFlushed.is_on() {
            machine.flush_spaces(&|space| self.file.cache().lock().has_joined(space));
        }
        for page in &self.unmapped {
            page.remove_entry();
        }
        for (page, entries) in &self.hidden {
            (0..*entries).for_each(|_| page.remove_entry());
        }
        for table in &self.released {
            table.release(self.file);
        }
        for windows in self.detached.chunks(DETACHED_AT_A_TIME) {
            self.detach(windows);
        }
        for table in &self.closed {
            table.open();
        }
        // `kept` and `unmapped` are dropped here, behind the flush.
    }

    fn detach(&self, windows: &[Window]) {
        let mut unused = Vec::new();
        self.file.cache().lock().detach(windows, |table| unused.push(table));
        let counters = self.file.hugetlb().counters();
        counters.attachments.subtract(windows.len() as u64);
        counters.unshares.add((windows.len() - unused.len()) as u64);
        counters.tables.subtract(unused.len() as u64);
        for table in unused {
            self.file.hugetlb().machine().retire_table(table);
        }
    }
}
