//! The page cache of a file, its size, and the tables that show it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::index::IndexLock;
use super::mirror::{Mirror, Run, Window};
use crate::addr::{PageIndex, PhysAddr};
use crate::format;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::sync::{Arc, Ordering};

/// The pages of a file by index, where the file ends, and its tables.
pub(crate) struct Cache<M: Machine> {
    machine: Arc<M>,
    page_shift: u32,
    size: u64,
    pages: BTreeMap<PageIndex, Arc<Page<M>>>,
    mirror: Mirror,
}

/// The index is beyond the end of the file.
pub(crate) struct BeyondEnd;

impl<M: Machine> Cache<M> {
    pub(super) fn new(machine: Arc<M>, page_shift: u32) -> Cache<M> {
        Cache { machine, page_shift, size: 0, pages: BTreeMap::new(), mirror: Mirror::default() }
    }

    /// The file's size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Moves the end. Pages that `FALLOC_FL_KEEP_SIZE` put behind the old one come into sight; what is behind the new one is
    /// the caller's to take away.
    pub(super) fn set_size(&mut self, size: u64) {
        let old = self.end();
        self.size = size;
        if old < self.end() && !Mutant::GrownFileNotShown.is_on() {
            for (index, page) in self.pages.range(old..self.end()) {
                self.mirror.show(&*self.machine, *index, page);
            }
        }
    }

    /// The first index that does not lie wholly in front of the file's end.
    fn end(&self) -> PageIndex {
        PageIndex(self.size >> self.page_shift)
    }

    /// Whether the whole page lies in front of the file's end.
    pub(crate) fn covers(&self, index: PageIndex) -> bool {
        index < self.end()
    }

    pub(crate) fn get(&self, index: PageIndex) -> Option<&Arc<Page<M>>> {
        self.pages.get(&index)
    }

    /// Adds a page for a fault, and shows it. That the end is looked at in the same critical section is what makes a
    /// truncation final: once the size is set no page appears behind it.
    pub(crate) fn insert(&mut self, at: &IndexLock<'_, M>, page: Arc<Page<M>>) -> Result<(), BeyondEnd> {
        if !self.covers(at.index()) && !Mutant::EndNotLookedAtAgain.is_on() {
            return Err(BeyondEnd);
        }
        self.insert_anywhere(at, page);
        Ok(())
    }

    /// Adds a page, also beyond the end, where no table shows it: for `FALLOC_FL_KEEP_SIZE`, under the size lock.
    pub(super) fn insert_anywhere(&mut self, at: &IndexLock<'_, M>, page: Arc<Page<M>>) {
        if self.covers(at.index()) && !Mutant::FreshPageNotShown.is_on() {
            self.mirror.show(&*self.machine, at.index(), &page);
        }
        let old = self.pages.insert(at.index(), page);
        debug_assert!(old.is_none(), "two pages for one index");
    }

    /// Shows a page of the cache again that an unmapping hid. A page that a truncation has just put behind the end stays hidden: the
    /// access that asked for it faults once more.
    pub(crate) fn show(&self, at: &IndexLock<'_, M>, page: &Page<M>) {
        if self.covers(at.index()) {
            self.mirror.show(&*self.machine, at.index(), page);
        }
    }

    /// Hides the cached pages from an index on, at most `limit` of them. `hidden` gets each page that tables showed, with the
    /// number of entries. Returns where to go on.
    pub(crate) fn hide(
        &self,
        indices: core::ops::Range<PageIndex>,
        limit: usize,
        mut hidden: impl FnMut(&Arc<Page<M>>, u64),
    ) -> Option<PageIndex> {
        for (count, (index, page)) in self.pages.range(indices).enumerate() {
            if count == limit {
                return Some(*index);
            }
            if page.is_mapped() {
                hidden(page, self.mirror.hide(&*self.machine, *index));
            }
        }
        None
    }

    /// Takes a page out; with it the number of entries that showed it, which are cleared, to be flushed and counted out.
    ///
    /// Both in one critical section: a table that is made now must not be filled with a page that is about to go.
    pub(super) fn remove(&mut self, at: &IndexLock<'_, M>) -> Option<(Arc<Page<M>>, u64)> {
        let page = self.pages.remove(&at.index())?;
        if Mutant::RemovedButShown.is_on() {
            return Some((page, 0));
        }
        Some((page, self.mirror.hide(&*self.machine, at.index())))
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

    /// Pages that a mapping of the indices can see.
    pub(crate) fn visible(&self, indices: core::ops::Range<u64>) -> u64 {
        let end = PageIndex(indices.end).min(self.end());
        let first = PageIndex(indices.start);
        if first < end { self.pages.range(first..end).count() as u64 } else { 0 }
    }

    /// The table of a window, attached once more; `spare`, an empty table, becomes it when there is none. `None` when there is
    /// neither.
    pub(crate) fn attach(&mut self, window: Window, spare: &mut Option<PhysAddr>) -> Option<PhysAddr> {
        let end = (window.first + window.pages).min(self.end()).max(window.first);
        let pages = self.pages.range(window.first..end).map(|(index, page)| (*index, &**page));
        self.mirror.attach(&*self.machine, window, spare, pages)
    }

    /// See [`Mirror::from`].
    pub(crate) fn tables_from(&mut self, window: Window) -> Run<'_> {
        self.mirror.from(window)
    }

    /// Counts attachments out whose PUD entries are clear and whose TLBs were flushed; the windows ascend. `retire` gets the
    /// tables that nobody is attached to any more: they are empty and off the list.
    pub(crate) fn detach(&mut self, windows: &[Window], mut retire: impl FnMut(PhysAddr)) {
        debug_assert!(windows.is_sorted(), "a run of tables goes one way");
        let Some(first) = windows.first() else { return };
        let mut run = self.mirror.from(*first);
        let unused: Vec<Window> = windows.iter().copied().filter(|window| run.detach(*window)).collect();
        for window in unused {
            if let Some(frame) = self.mirror.remove(window) {
                self.empty(window, frame);
                retire(frame);
            }
        }
    }

    /// Takes the entries out of a table that nobody is attached to.
    fn empty(&self, window: Window, frame: PhysAddr) {
        let entries = self.machine.table(frame);
        for (index, page) in self.pages.range(window.first..window.first + window.pages) {
            // Relaxed: no TLB holds any of them.
            let entry = &entries[window.entry + (index.0 - window.first.0) as usize];
            if format::is_leaf(entry.swap(0, Ordering::Relaxed)) && !Mutant::EmptiedNotCounted.is_on() {
                page.remove_entry();
            }
        }
    }

    /// The file's tables.
    pub(super) fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// The table of a window and the count of its attachments, for checks.
    pub(crate) fn table_at(&self, first: PageIndex, pages: u64, entry: usize) -> Option<(PhysAddr, u64)> {
        self.mirror.table(Window { first, pages, entry })
    }

    /// See [`Mirror::join`].
    pub(crate) fn join(&mut self, space: u64) {
        self.mirror.join(space);
    }

    /// See [`Mirror::leave`].
    pub(crate) fn leave(&mut self, space: u64) {
        self.mirror.leave(space);
    }

    /// See [`Mirror::has_joined`].
    pub(crate) fn has_joined(&self, space: u64) -> bool {
        self.mirror.has_joined(space)
    }
}
