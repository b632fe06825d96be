//! Memory of files in base pages by the tables of the files.
//!
//! A mapping of a file that has a [`Content`] uses the file's page tables wherever it covers a whole *window*: 2 MiB of addresses, at
//! a multiple of 2 MiB, of pages from a multiple of 512 on. The process's own entry leads to the table (it is *managed*), and has the
//! rights of the mapping. Where the mapping covers 1 GiB of addresses wholly, the entry one level up leads to a table of the file
//! that leads to those of its windows. All else goes by the process's own tables: the ends of a mapping, mappings at other
//! addresses, and each window of a private mapping that was stored to.
//!
//! # The guarantee
//!
//! *What a mapping shows through a table of the file is what the file has, at every moment.* A page that comes is shown to all who are attached,
//! one that goes is gone for all when the call that took it out returns. See [`filetables`](::hugetlb::filetables) for how tables follow
//! the content. Left to do here is to attach only where that is right, and to leave in time.
//!
//! # Who holds what
//!
//! | who | areas lock | page-table lock | locks of the content |
//! | --- | --- | --- | --- |
//! | a fault that attaches | read | to make tables above | a stripe, tables above |
//! | mmap, fork: attach what is there | write, of the new area's space | to make tables above | the same |
//! | munmap, mprotect, mremap, MADV_DONTNEED, a cut: leave, change rights | write | for the entry | after the flush: a stripe |
//! | exit: leave | none: nobody else knows the space | for the entry | the same |
//! | punch, truncation | none | none | a stripe, then none for the flush |
//!
//! # Why a fault cannot write into a table that is no longer its own
//!
//! A fault does not write into a table. It adds the page to the *file*, which writes the entries of the file's tables under the lock of the
//! page's piece, whether this mapping is attached or not. The only entry of the process that a fault writes is the managed one, by a
//! compare-and-exchange from an empty entry, with the areas lock held: the area that it stands for is there and stays as it is.
//! Nobody but the content writes into its tables, so there is nothing to race for, and no unsharing.
//!
//! The host's own leaves never get there either: who wants a table of its own for an address asks
//! [`Tables::find_or_make`](super::tables::Tables::find_or_make), which ends at a managed entry with
//! [`NoTable::SlotShared`](super::tables::NoTable::SlotShared). Then [`AddressSpace::take_slot`] leaves the window.
//!
//! # Private mappings
//!
//! The managed entry of a private mapping never permits stores, so the first store in a window faults. This fault puts an empty table of
//! the process's own in the place of the managed entry ([`AddressSpace::own_file_window`]), flushes, and goes on as if the file had no tables.
//! The exchange and the flush are one step under the page-table lock. Two races hang on that:
//!
//! *Another thread stores to the same page.* It cannot install its copy before the flush. So no CPU reads the file's page through an old
//! translation when another has stored to the copy.
//!
//! *Another thread reads in the window again and again.* The place is never empty, so its fault does not attach the window once more, and the
//! store gets on.
//!
//! An area that has copies is *touched*. Windows with copies have a table of the process's own, so nothing attaches there.
//!
//! # When a table is freed
//!
//! A table counts the entries that lead to it. Who takes a managed entry out (a compare-and-exchange to empty, so that of two only one
//! does) flushes this space's TLBs on all CPUs that run it, and only then counts the attachment out. The last one takes
//! the table out of the content and retires it; its frame is used again after a grace period, so that walkers without locks (`walk`)
//! never read a stranger's table.
//!
//! # Whom a punch flushes
//!
//! A space joins the content before its first entry leads to a table, and leaves it when the area ends, with its last entry flushed. A punch clears the
//! entries, then flushes the CPUs that run a space that has joined: a space that joins later finds them clear. Mappings are visited
//! one by one only if they have leaves of the file in tables of their own: they are put on the file's list
//! ([`Link::enlist`](super::backing::Link::enlist)) before the first such leaf.
//!
//! # Cuts
//!
//! An entry leads to a table only where one area covers all of the window. Whatever cuts an area in two goes through
//! [`Vma::split_off`], which leaves the window around the cut first. Nobody announces what will come: who needs the place asks
//! for it.

use alloc::string::String;
use core::ops::Range;
use core::sync::atomic::{Ordering, fence};

use ::hugetlb::VirtAddr;
use ::hugetlb::filetables::format::Native;
use ::hugetlb::filetables::{
    AttachTally, Attached, EntryValue, Extent, Format, Found, Level, Protection, Slot, Window,
};
use smallvec::SmallVec;

use super::backing::PageCache;
use super::entry::Entry;
use super::fault::{FaultError, failure};
use super::file_tables;
use super::page_store::{Content, WINDOW_PAGES};
use super::space::AddressSpace;
use super::tables::NoMemory;
use super::vma::{FileArea, Kind, VmFlags, Vma, VmaSet};
use crate::arch::tlb::{self, Flush};
use crate::hugetlb::SpaceTables;
use crate::memory::frame::Frame;
use crate::memory::{PAGE_SHIFT, PAGE_SIZE, PhysAddr, reserve};
use crate::sched;

/// Bytes of a window.
pub const WINDOW: u64 = WINDOW_PAGES * PAGE_SIZE as u64;
/// Windows that are left between two flushes.
const BATCH: usize = 32;

/// What an attached entry permits: the rights of its area, but no stores to what is private. Empty for PROT_NONE, which has no entry.
fn rights(flags: VmFlags) -> Protection {
    let mut rights = Protection::empty();
    // Any right includes that to load on this architecture.
    rights.set(Protection::READ, flags.intersects(VmFlags::ACCESS));
    rights.set(Protection::WRITE, flags.contains(VmFlags::SHARED | VmFlags::WRITE));
    rights.set(Protection::EXECUTE, flags.contains(VmFlags::EXEC));
    rights
}

/// The windows of an area that the file's tables can show.
pub(super) struct Windows<'a> {
    area: &'a FileArea,
    content: &'a Content,
    extent: Extent,
}

impl Windows<'_> {
    pub(super) fn range(&self) -> Range<u64> {
        self.extent.start.0..self.extent.end().0
    }
}

/// What an area shows through a table of its file.
pub(super) struct Shown {
    /// Pages that are there.
    pub pages: u64,
    /// Mappings that show each of them.
    pub sharers: u64,
}

/// What areas show through tables of files, and of regions.
#[derive(Clone, Copy, Default)]
pub(super) struct ByFiles {
    pub pages: u64,
    /// The tables that do, once for each entry that leads to them: as many as the process would have of its own.
    pub tables: u64,
    /// Bytes in attached regions that came by processes which are gone.
    pub unclaimed: u64,
}

/// How many mappings show the pages of an area's file through tables of the file. It keeps the last number, which is that of 512 pages.
pub(super) struct Viewers<'a> {
    content: Option<&'a Content>,
    last: Option<(u64, u64)>,
}

impl<'a> Viewers<'a> {
    pub(super) fn new(vma: &'a Vma) -> Self {
        let content = match &vma.kind {
            Kind::File(area) => area.link.cache().content(),
            _ => None,
        };
        Self { content, last: None }
    }

    /// Of the page at an index of the file.
    pub(super) fn of(&mut self, index: u64) -> u64 {
        let Some(content) = self.content else { return 0 };
        let window = index / WINDOW_PAGES;
        match self.last {
            Some((last, viewers)) if last == window => viewers,
            _ => {
                let viewers = content.viewers(index);
                self.last = Some((window, viewers));
                viewers
            }
        }
    }
}

impl Vma {
    /// Does it use tables of its file, or has it?
    pub(super) fn uses_windows(&self) -> bool {
        self.table_windows().is_some_and(|windows| windows.area.link.has_joined())
    }

    /// The windows that it covers wholly, if the file's tables can show them.
    pub(super) fn table_windows(&self) -> Option<Windows<'_>> {
        let Kind::File(area) = &self.kind else { return None };
        // Who is told of faults has entries of its own: a page that another process adds is not there before the fault is resolved.
        if self.userfault.is_some() {
            return None;
        }
        let content = area.link.cache().content()?;
        let congruent = (self.start >> PAGE_SHIFT) % WINDOW_PAGES == self.first % WINDOW_PAGES;
        let (start, end) = (self.start.next_multiple_of(WINDOW), self.end & !(WINDOW - 1));
        if !congruent || start >= end {
            return None;
        }
        let extent = Extent {
            start: VirtAddr(start),
            first: self.index_of(start),
            pages: (end - start) >> PAGE_SHIFT,
            leaf: Level::Pte,
            rights: Protection::all(),
        };
        Some(Windows { area, content, extent })
    }
}

impl Vma {
    /// Whether `table`, to which an entry of `level` for `address` leads, is the file's for what the area has there; all that it
    /// shows if `deeply`. `None` if the area has no such window.
    pub(super) fn check_window(
        &self,
        table: PhysAddr,
        level: u32,
        address: u64,
        deeply: bool,
    ) -> Option<Result<(), String>> {
        let windows = self.table_windows()?;
        let level = [Level::Pmd, Level::Pud, Level::Pgd].into_iter().find(|known| *known as u32 == level)?;
        let slot = windows.extent.slot(VirtAddr(address), level)?;
        let table = ::hugetlb::PhysAddr(table.0);
        Some(windows.content.check_slot(&slot.window, table, &mut |_| Ok(deeply)))
    }
}

impl AddressSpace {
    fn space_tables(&self) -> SpaceTables {
        SpaceTables(self.tables.clone())
    }

    /// Attaches the windows of a new area that have pages. The area is on its way into the set: the areas lock is held for writing. Without
    /// memory a fault does the rest, and reports.
    pub(super) fn attach_windows(&self, vma: &Vma) {
        // Where a private area has copies, faults tell what else it has.
        let is_plain = vma.flags.contains(VmFlags::SHARED) || !vma.is_touched();
        let Some(windows) = vma.table_windows().filter(|_| is_plain) else { return };
        let rights = rights(vma.flags);
        if rights.is_empty() || windows.content.is_empty() || windows.area.link.join(self.tables.id).is_err()
        {
            return;
        }
        let mut tally = AttachTally::default();
        let _library = reserve::library();
        let _ = windows.content.attach_all(&self.space_tables(), &windows.extent, rights, &mut tally);
        file_tables::count(&tally);
    }

    /// A fault in a window: `None` when the area's own tables are to have the page. The areas lock is held for reading.
    pub(super) fn window_fault(
        &self,
        vma: &Vma,
        cache: &dyn PageCache,
        address: u64,
        write: bool,
    ) -> Option<Result<(), FaultError>> {
        let windows = vma.table_windows().filter(|windows| windows.range().contains(&address))?;
        let (space, at) = (self.space_tables(), VirtAddr(address));
        if write && !vma.flags.contains(VmFlags::SHARED) {
            return self.own_file_window(vma, address).err().map(|NoMemory| Err(FaultError::OutOfMemory));
        }
        if let (Found::Host, _) = windows.content.look(&space, &windows.extent, at) {
            return None;
        }
        let index = vma.index_of(address);
        // From here on all tables of the file show it.
        if let Err(error) = cache.page(index, write) {
            return Some(Err(failure(error)));
        }
        let mut tally = AttachTally::default();
        let _library = reserve::library();
        let attached = windows.area.link.join(self.tables.id).and_then(|()| {
            let rights = rights(vma.flags);
            windows.content.attach_for_fault(&space, &windows.extent, at, rights, &mut tally)
        });
        file_tables::count(&tally);
        let Ok(attached) = attached else { return Some(Err(FaultError::OutOfMemory)) };
        match attached {
            // Empty: a hole punch has just taken the page away. The access faults once more.
            Attached::Before | Attached::Shared | Attached::Made | Attached::Empty => {
                // Who makes a table may not have come to the page yet.
                windows.content.show(index);
                Some(Ok(()))
            }
            Attached::Occupied | Attached::Neighbour | Attached::Crowded => None,
        }
    }

    /// Makes the window of `address` the space's own if a private area shows it through a table of its file: what it had of the file comes back
    /// by faults. The areas lock is held.
    pub(super) fn own_file_window(&self, vma: &Vma, address: u64) -> Result<(), NoMemory> {
        let Some(windows) = vma.table_windows().filter(|windows| windows.range().contains(&address)) else {
            return Ok(());
        };
        let space = self.space_tables();
        while let (Found::Attached(slot, _), _) =
            windows.content.look(&space, &windows.extent, VirtAddr(address))
        {
            let level = slot.level as u32;
            let pages = windows.content.shown(&slot.window);
            let mut tables = self.tables.lock();
            let entry = tables.find(slot.address.0, level).map(Entry::load);
            // Else another thread was faster.
            if entry.is_some_and(|entry| entry.leads_to_shared(level)) {
                tables.replace_shared(slot.address.0, level)?;
                tables.peak = tables.peak.max(tables.resident.total() + pages);
                // Under the lock, see the module.
                self.flush_all();
                drop(tables);
                file_tables::count_left(1);
                windows.content.detach(&slot.window);
            }
        }
        Ok(())
    }

    /// The page at `address` of an area that has a window there, made on need; `None` elsewhere, and where the page is not the file's or is not to
    /// be. Whoever reads and stores from outside needs no table for it.
    pub(super) fn window_page(
        &self,
        vma: &Vma,
        address: u64,
        write: bool,
    ) -> Result<Option<Frame>, FaultError> {
        let is_private = !vma.flags.contains(VmFlags::SHARED);
        match vma.table_windows().filter(|windows| windows.range().contains(&address)) {
            // A copy is to be made.
            Some(_) if is_private && write => Ok(None),
            // Race: another thread makes a copy and stores to it right after this look. The access came before that.
            Some(_) if is_private && self.tables.lock().leaf(address).is_mapped() => Ok(None),
            // What a userfaultfd has left there stays.
            Some(_) if self.tables.lock().leaf(address).is_marker() => Ok(None),
            Some(windows) => {
                let page = windows.area.link.cache().page(vma.index_of(address), write);
                page.map(Some).map_err(failure)
            }
            None => Ok(None),
        }
    }

    /// Calls `visit` for each entry in `range` that leads an area to a table of its file.
    fn each_attached(&self, vma: &Vma, range: Range<u64>, mut visit: impl FnMut(&Windows<'_>, Slot)) {
        let Some(windows) = vma.table_windows().filter(|windows| windows.area.link.has_joined()) else {
            return;
        };
        let space = self.space_tables();
        let within = windows.range();
        let (mut at, end) = (range.start.max(within.start), range.end.min(within.end));
        while at < end {
            let (found, behind) = windows.content.look(&space, &windows.extent, VirtAddr(at));
            if let Found::Attached(slot, _) = found {
                visit(&windows, slot);
            }
            let Some(behind) = behind else { return };
            at = behind.0;
            sched::cond_resched();
        }
    }

    /// Changes the managed entry of a slot by `change`. Returns the old and the new value, if it was there.
    fn change_entry(
        &self,
        slot: &Slot,
        change: impl Fn(EntryValue) -> EntryValue,
    ) -> Option<(EntryValue, EntryValue)> {
        let tables = self.tables.lock();
        let entry = tables.find(slot.address.0, slot.level as u32)?;
        loop {
            let old = EntryValue(entry.load(Ordering::SeqCst));
            if !Native::is_managed(slot.level, old) {
                return None;
            }
            let new = change(old);
            // SeqCst: before the flush looks who runs the space.
            if entry.compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                return Some((old, new));
            }
        }
    }

    /// Makes all CPUs that run this space forget all of it: an entry above leaves changed.
    pub(super) fn flush_all(&self) {
        // SeqCst: as in `gather`.
        fence(Ordering::SeqCst);
        let cpus = self.cpus();
        if !cpus.is_empty() {
            tlb::shootdown(&cpus, Flush::All);
        }
    }

    /// Leaves the tables of the file in `range`, which may be any part of the area: each window that has a byte of it is left wholly. What is
    /// not gone for good comes back by faults.
    pub(super) fn leave_windows(&self, vma: &Vma, range: Range<u64>) {
        let mut left: SmallVec<[Window; BATCH]> = SmallVec::new();
        let mut pages = 0;
        self.each_attached(vma, range, |windows, slot| {
            if !self.cpus().is_empty() {
                pages += windows.content.shown(&slot.window);
            }
            if self.change_entry(&slot, |_| EntryValue::default()).is_some() {
                left.push(slot.window);
            }
            if left.len() == BATCH {
                self.count_out(windows.content, &mut left);
            }
        });
        if let Some(windows) = vma.table_windows() {
            self.count_out(windows.content, &mut left);
        }
        if pages > 0 {
            let mut tables = self.tables.lock();
            tables.peak = tables.peak.max(tables.resident.total() + pages);
        }
    }

    /// The entries for these windows are cleared: flushes, then counts them out.
    fn count_out(&self, content: &Content, left: &mut SmallVec<[Window; BATCH]>) {
        if left.is_empty() {
            return;
        }
        self.flush_all();
        file_tables::count_left(left.len() as u64);
        for window in left.drain(..) {
            // The last one to leave gives a table back.
            content.detach(&window);
            crate::sched::cond_resched();
        }
    }

    /// Leaves the window across `at`, at which the area is about to be cut.
    pub(super) fn leave_cut_window(&self, vma: &Vma, at: u64) {
        let mut cut = false;
        self.each_attached(vma, at..at + 1, |_, slot| cut = slot.address.0 != at);
        if cut {
            self.leave_windows(vma, at..at + 1);
        }
    }

    /// Gives the attached windows of an area the rights that its flags say. The areas lock is held for writing.
    pub(super) fn protect_windows(&self, vma: &Vma) {
        let rights = rights(vma.flags);
        if rights.is_empty() {
            return self.leave_windows(vma, vma.range());
        }
        let mut lost = false;
        self.each_attached(vma, vma.range(), |_, slot| {
            let managed = |old| Native::managed(Native::table_frame(old), rights);
            if let Some((old, new)) = self.change_entry(&slot, managed) {
                lost |= !Entry(new.0).allows_all_of(Entry(old.0));
            }
        });
        if lost {
            self.flush_all();
        }
    }

    /// What is wrong with the tables of files that an area uses, if anything is. The areas lock is held.
    pub(super) fn check_windows(&self, vma: &Vma) -> Result<(), String> {
        let mut result = Ok(());
        self.each_attached(vma, vma.range(), |_, slot| {
            let entry = {
                let tables = self.tables.lock();
                let entry = tables.find(slot.address.0, slot.level as u32);
                entry.map_or(Entry(0), |entry| Entry(entry.load(Ordering::SeqCst)))
            };
            // It may have been left meanwhile.
            if result.is_ok() && entry.leads_to_shared(slot.level as u32) {
                let checked = vma.check_window(entry.address(), slot.level as u32, slot.address.0, true);
                result = checked.unwrap_or(Ok(()));
            }
        });
        result
    }

    /// What the area shows through tables of its file, window by window; page by page where some have entries in tables of processes' own.
    pub(super) fn each_shown(&self, vma: &Vma, mut visit: impl FnMut(Shown)) {
        self.each_attached(vma, vma.range(), |windows, slot| {
            let content = windows.content;
            let apart = windows.area.link.cache().mappings().has_listed();
            let mut next = slot.window.first;
            let end = slot.window.indices().end.min(content.end());
            while let Some(index) = content.next(next..end) {
                sched::cond_resched();
                next = end.min(index - index % WINDOW_PAGES + WINDOW_PAGES);
                // None when the table of a window could not be made below one above.
                let viewers = content.viewers(index);
                if viewers > 0 && !apart {
                    visit(Shown { pages: content.visible(index..next), sharers: viewers });
                } else if viewers > 0 {
                    for page in (index..next).filter_map(|index| content.get(index)) {
                        visit(Shown { pages: 1, sharers: viewers + page.own_entries() });
                    }
                }
            }
        });
    }

    /// Calls `visit` with the address of each page that the area shows through tables of its file.
    pub(super) fn each_page_shown(&self, vma: &Vma, mut visit: impl FnMut(PhysAddr)) {
        self.each_attached(vma, vma.range(), |windows, slot| {
            let content = windows.content;
            let mut next = slot.window.first;
            let end = slot.window.indices().end.min(content.end());
            while let Some(index) = content.next(next..end) {
                sched::cond_resched();
                next = end.min(index - index % WINDOW_PAGES + WINDOW_PAGES);
                if content.viewers(index) > 0 {
                    (index..next)
                        .filter_map(|index| content.get(index))
                        .for_each(|page| visit(page.address()));
                }
            }
        });
    }

    /// What all areas show through tables of files.
    pub(super) fn shown(&self, set: &VmaSet) -> ByFiles {
        self.shown_by(set.iter(), 0..u64::MAX)
    }

    /// What areas show through tables of files in `range`, and in the slots that it begins and ends in.
    pub(super) fn shown_in(&self, set: &VmaSet, range: Range<u64>) -> ByFiles {
        self.shown_by(set.overlapping(range.clone()), range)
    }

    fn shown_by<'a>(&self, areas: impl Iterator<Item = &'a Vma>, range: Range<u64>) -> ByFiles {
        let mut shown = ByFiles::default();
        for vma in areas {
            if let Kind::Region(region) = &vma.kind {
                shown.unclaimed += region.region().unclaimed();
            }
            self.each_attached(vma, range.clone(), |windows, slot| {
                shown.pages += windows.content.shown(&slot.window);
                shown.tables += windows.content.reached(&slot.window);
            });
        }
        shown
    }

    /// Whether the area shows `address` through a table of its file.
    pub(super) fn shows(&self, vma: &Vma, address: u64) -> bool {
        let mut shows = false;
        let window = address & !(WINDOW - 1);
        self.each_attached(vma, window..window + 1, |_, _| shows = true);
        shows
    }
}
