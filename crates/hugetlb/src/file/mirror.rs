//! The tables that belong to a file: the face of its page cache that hardware can read.
//!
//! # The mirror
//!
//! A table has a [`Window`]: which pages of the file it shows, and in which entries. Inside it, the table says what the
//! cache says. Both are behind one spin lock, the cache's: who adds a page, takes one out, or moves the end of the file
//! writes the entries in the same critical section, and a new table is filled in the one that puts it on the list. So there
//! is no moment at which a table could miss a page, or keep one that is gone.
//!
//! Only an unmapping (see [`crate::sharing`]) clears entries ahead of the cache, so that one flush does for many pages; a
//! fault puts the entry back as long as the page is there.
//!
//! # Attachments
//!
//! A table lives while PUD entries lead to it. Their count is the mirror's own and changes under the same lock, so that
//! the last to go and the first to come cannot cross. It is no reference count of the frame: that mix-up was
//! CVE-2024-57883. A mapping is counted in before its PUD entry is written and counted out after its TLBs were flushed.
//!
//! # Whom to flush
//!
//! The mirror knows the address spaces that are attached to any of its tables. A shootdown asks each *CPU* whether it
//! runs one of them: what it costs depends on the CPUs, not on the sharers.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::RangeMut;
use core::iter::Peekable;

use crate::addr::{PageIndex, PhysAddr, TABLE_ENTRIES};
use crate::format::{self, Protection};
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::sync::Ordering;

/// Which pages a table shows, and from which entry on. Mappings that differ in neither share the table: at any address of
/// the same phase (virtual page number minus page index, modulo 512), and of any length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Window {
    /// The first page.
    pub(crate) first: PageIndex,
    /// How many pages: 1 to 512.
    pub(crate) pages: u64,
    /// The entry of the first page.
    pub(crate) entry: usize,
}

impl Window {
    fn entry_of(&self, index: PageIndex) -> Option<usize> {
        let within = index.0.checked_sub(self.first.0).filter(|within| *within < self.pages)?;
        Some(self.entry + within as usize)
    }
}

struct FileTable {
    frame: PhysAddr,
    attachments: u64,
}

/// The tables of a file, and the address spaces that are attached to them.
#[derive(Default)]
pub(super) struct Mirror {
    tables: BTreeMap<Window, FileTable>,
    /// Attached mappings by the id of their address space.
    spaces: BTreeMap<u64, u64>,
}

impl Mirror {
    /// The tables that show a page, with its entry: one, unless the file is mapped at several windows or phases.
    fn showing(&self, index: PageIndex) -> impl Iterator<Item = (PhysAddr, usize)> {
        let from =
            Window { first: PageIndex(index.0.saturating_sub(TABLE_ENTRIES as u64 - 1)), pages: 0, entry: 0 };
        let to = Window { first: index, pages: u64::MAX, entry: usize::MAX };
        self.tables
            .range(from..=to)
            .filter_map(move |(window, table)| window.entry_of(index).map(|entry| (table.frame, entry)))
    }

    /// Writes the entries of a page where they are missing.
    pub(super) fn show<M: Machine>(&self, machine: &M, index: PageIndex, page: &Page<M>) {
        for (frame, entry) in self.showing(index) {
            show_in(machine, frame, entry, page);
        }
    }

    /// Clears the entries of a page; returns how many there were. They are to be flushed, then counted out.
    pub(super) fn hide<M: Machine>(&self, machine: &M, index: PageIndex) -> u64 {
        let mut hidden = 0;
        for (frame, entry) in self.showing(index) {
            // AcqRel: the page's last user must come before its next, and the flush after the store.
            let old = machine.table(frame)[entry].swap(0, Ordering::AcqRel);
            hidden += u64::from(format::is_leaf(old));
        }
        hidden
    }

    /// The table of a window, attached once more; `spare` becomes it when there is none, filled with `pages`.
    pub(super) fn attach<'p, M: Machine>(
        &mut self,
        machine: &M,
        window: Window,
        spare: &mut Option<PhysAddr>,
        pages: impl Iterator<Item = (PageIndex, &'p Page<M>)>,
    ) -> Option<PhysAddr> {
        if let Some(table) = self.tables.get_mut(&window) {
            table.attachments += u64::from(!Mutant::AttachmentNotCounted.is_on());
            return Some(table.frame);
        }
        let frame = spare.take()?;
        for (index, page) in pages {
            if let Some(entry) = window.entry_of(index)
                && !Mutant::TableNotFilled.is_on()
            {
                show_in(machine, frame, entry, page);
            }
        }
        self.tables.insert(window, FileTable { frame, attachments: 1 });
        Some(frame)
    }

    /// The tables from a window on, in the order of windows: for large mappings, whose slots come in that order, too.
    pub(super) fn from(&mut self, window: Window) -> Run<'_> {
        Run { tables: self.tables.range_mut(window..).peekable() }
    }

    /// Takes a table off the list that nobody is attached to any more; its entries are still in.
    pub(super) fn remove(&mut self, window: Window) -> Option<PhysAddr> {
        self.tables.remove(&window).map(|table| table.frame)
    }

    /// All tables with their windows.
    pub(super) fn tables(&self) -> impl Iterator<Item = (&Window, PhysAddr)> {
        self.tables.iter().map(|(window, table)| (window, table.frame))
    }

    /// The table of a window, and the count of its attachments.
    pub(super) fn table(&self, window: Window) -> Option<(PhysAddr, u64)> {
        self.tables.get(&window).map(|table| (table.frame, table.attachments))
    }

    /// A mapping of the address space is attached for the first time.
    pub(super) fn join(&mut self, space: u64) {
        *self.spaces.entry(space).or_insert(0) += 1;
    }

    /// A mapping that joined is gone, and its TLBs were flushed.
    pub(super) fn leave(&mut self, space: u64) {
        if let Some(mappings) = self.spaces.get_mut(&space) {
            *mappings -= 1;
            if *mappings == 0 {
                self.spaces.remove(&space);
            }
        }
    }

    /// Whether the address space may hold translations of any of the tables.
    pub(super) fn has_joined(&self, space: u64) -> bool {
        self.spaces.contains_key(&space)
    }
}

/// Tables in the order of their windows, to attach to and detach from: each step is one to the next table, not a search.
pub(crate) struct Run<'m> {
    tables: Peekable<RangeMut<'m, Window, FileTable>>,
}

impl Run<'_> {
    /// The table of a window, which comes behind those asked for before.
    fn find(&mut self, window: Window) -> Option<&mut FileTable> {
        while self.tables.next_if(|(other, _)| **other < window).is_some() {}
        self.tables.next_if(|(other, _)| **other == window).map(|(_, table)| table)
    }

    /// Attaches to the table of a window, if there is one.
    pub(crate) fn attach(&mut self, window: Window) -> Option<PhysAddr> {
        let table = self.find(window)?;
        table.attachments += u64::from(!Mutant::AttachmentNotCounted.is_on());
        Some(table.frame)
    }

    /// Counts an attachment out whose PUD entry is clear and whose TLBs were flushed; returns whether it was the last.
    pub(super) fn detach(&mut self, window: Window) -> bool {
        self.find(window).is_some_and(|table| {
            table.attachments -= 1;
            table.attachments == 0
        })
    }
}

/// Writes the leaf of a page, unless it is there. It permits everything: what a mapping permits stands in its PUD entry.
fn show_in<M: Machine>(machine: &M, frame: PhysAddr, entry: usize, page: &Page<M>) {
    let entry = &machine.table(frame)[entry];
    // Relaxed: the cache lock orders all writers.
    if format::is_leaf(entry.load(Ordering::Relaxed)) {
        return;
    }
    page.add_entry();
    // Release: the page's zeroes come before its entry, on every CPU.
    let order = if Mutant::ShownWithoutRelease.is_on() { Ordering::Relaxed } else { Ordering::Release };
    entry.store(format::leaf(page.frame(), Protection::all()), order);
}
