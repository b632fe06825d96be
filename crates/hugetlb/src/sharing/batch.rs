//! What waits for a TLB flush: the translations to forget, and what may be given up after it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::any::Any;
use core::ops::Range;

use filetables::{Level, Space, Window};

use crate::addr::VirtAddr;
use crate::area::{Area, Share};
use crate::file::File;
use crate::machine::{Flush, Machine};
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::sync::Arc;

/// Entries were taken away, TLBs not yet flushed.
///
/// Pages and tables that a TLB may still reach are kept here until [`Batch::finish`]: invariant 2 of the design, that a page
/// returns to the pool only after every TLB that may hold it was flushed, is this type.
pub(crate) struct Batch<'f, M: Machine> {
    file: &'f File<M>,
    flushes: Vec<Flush<M::Space>>,
    unmapped: Vec<Arc<Page<M>>>,
    detached: Vec<Window>,
    /// What the protocol gives up.
    later: Option<Box<dyn Later<M>>>,
    kept: Vec<Share<M>>,
    /// So much waits that it is time for [`Batch::flush`]. Noted where a list grows: looking at each entry costs more.
    is_due: bool,
}

/// What a protocol gives up, or goes on with, behind a flush.
pub(crate) trait Later<M: Machine>: Any {
    /// Whether so much waits that a flush is due; it waits in lists of [`MOST_TABLES`] then.
    fn is_due(&self) -> bool;

    /// The TLBs were flushed of all that was noted so far.
    fn flushed(&mut self, file: &File<M>);

    /// The changes that were announced are made, and flushed.
    fn changed(&mut self);
}

/// Ranges of addresses, pages, and tables after which a flush is due; none of the lists is larger than a page of memory.
const MOST_FLUSHES: usize = if cfg!(roundtable_model) { 2 } else { 64 };
const MOST_WAITING: usize = if cfg!(roundtable_model) { 2 } else { 256 };
pub(super) const MOST_TABLES: usize = if cfg!(roundtable_model) { 2 } else { 64 };

impl<'f, M: Machine> Batch<'f, M> {
    pub(crate) fn new(file: &'f File<M>) -> Batch<'f, M> {
        Batch {
            file,
            flushes: Vec::new(),
            unmapped: Vec::new(),
            detached: Vec::new(),
            later: None,
            kept: Vec::new(),
            is_due: false,
        }
    }

    /// The file whose entries change.
    pub(crate) fn file(&self) -> &'f File<M> {
        self.file
    }

    /// An entry for `page` was cleared or replaced; it is counted out after the flush.
    pub(crate) fn unmap(&mut self, page: Arc<Page<M>>) {
        self.unmapped.push(page);
        self.is_due |= self.unmapped.len() >= MOST_WAITING;
    }

    /// A private copy was given up; it returns to the pool after the flush.
    pub(crate) fn keep(&mut self, share: Option<Share<M>>) {
        if !Mutant::ShareDroppedBeforeFlush.is_on() {
            self.kept.extend(share);
            self.is_due |= self.kept.len() >= MOST_WAITING;
        }
    }

    /// Lets the protocol note what it gives up later.
    pub(crate) fn later<L: Later<M> + Default>(&mut self, note: impl FnOnce(&mut L)) {
        let later = self.later.get_or_insert_with(|| Box::<L>::default());
        let later = (&mut **later as &mut dyn Any).downcast_mut();
        debug_assert!(later.is_some(), "a batch is of one protocol");
        if let Some(later) = later {
            note(later);
        }
    }

    /// A table of the file was detached from; it is counted out after the flush.
    pub(crate) fn detach_later(&mut self, window: Window) {
        self.detached.push(window);
    }

    /// The entry of `level` that led to a table from the address `slot` on was cleared, or lost rights.
    pub(crate) fn flush_tables(&mut self, area: &Area<M>, slot: VirtAddr, level: Level) {
        self.push(area, slot..slot + level.span(), !Mutant::TablesNotFlushed.is_on());
    }

    /// The leaf at `address` was cleared, replaced or lost rights. Flushes when enough waits for it.
    pub(crate) fn flush_leaf(&mut self, area: &Area<M>, address: VirtAddr) {
        self.push(area, address..address + self.file.page_size().bytes(), false);
        if self.is_due {
            self.flush();
        }
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
        self.is_due |= self.flushes.len() >= MOST_FLUSHES;
    }

    /// Ends the changes of a slot. A batch grows within one slot only, whose entries are bounded, so that giving memory back
    /// takes no more memory than this. The mapping locks of what was changed are still held.
    pub(crate) fn end_slot(&mut self) {
        let is_due = self.later.as_ref().is_some_and(|later| later.is_due());
        if self.is_due || is_due || self.detached.len() >= MOST_TABLES {
            self.flush();
            self.open();
        }
    }

    /// Flushes, then gives up what waited for it, but for tables that were closed: their entries may be changing still. The
    /// mapping locks of what was changed are held.
    pub(crate) fn flush(&mut self) {
        let machine = self.file.hugetlb().machine();
        self.is_due = false;
        if Mutant::PagesBeforeFlush.is_on() {
            self.unmapped.drain(..).for_each(|page| page.remove_entry());
        }
        if let Some(later) = self.later.as_mut().filter(|_| Mutant::ReleaseBeforeFlush.is_on()) {
            later.flushed(self.file);
        }
        if Mutant::DetachBeforeFlush.is_on() {
            self.detach(&self.detached);
            self.detached.clear();
        }
        if !self.flushes.is_empty() && !Mutant::FlushForgotten.is_on() {
            machine.flush(&self.flushes);
        }
        self.unmapped.iter().for_each(|page| page.remove_entry());
        if let Some(later) = &mut self.later {
            later.flushed(self.file);
        }
        self.detach(&self.detached);
        // Behind the flush: pages return to the pool.
        self.flushes.clear();
        self.unmapped.clear();
        self.detached.clear();
        self.kept.clear();
    }

    fn open(&mut self) {
        if let Some(later) = &mut self.later {
            later.changed();
        }
    }

    /// Flushes, then gives up all that waited for it. The mapping locks of what was changed are still held.
    pub(crate) fn finish(mut self) {
        self.flush();
        self.open();
    }

    fn detach(&self, windows: &[Window]) {
        let most = if Mutant::FirstWindowsDetached.is_on() { 1 } else { windows.len() };
        for window in &windows[..most.min(windows.len())] {
            let was_last = self.file.content().detach(window);
            self.file.hugetlb().counters().unshares.add(u64::from(!was_last));
            self.file.hugetlb().machine().give_way();
        }
    }
}
