//! What a person who maps files would see.

mod oracle;

use std::vec;
use std::vec::Vec;

use crate::format::X86_64;
use crate::testing::{Page, TestMachine, TestSpace};
use crate::*;

type File = FileTables<TestMachine, Page>;

const GIB: u64 = 1 << 30;
const ALL: Protection = Protection::all();

fn file(machine: &sync::Arc<TestMachine>, leaf: Level, end: u64) -> File {
    let file = File::new(machine.clone(), leaf, sync::Arc::default());
    file.set_end(end);
    file
}

/// Tables and attachments.
fn counts(file: &File) -> (u64, u64) {
    (file.counts().tables(), file.counts().attachments())
}

fn page(leaf: Level, number: u64) -> Page {
    Page(PhysAddr((number + 1) << leaf.shift()))
}

/// A mapping as a host keeps it.
struct Mapping<'f> {
    file: &'f File,
    space: TestSpace,
    extent: Extent,
}

impl<'f> Mapping<'f> {
    fn new(machine: &TestMachine, file: &'f File, start: u64, first: u64, pages: u64) -> Mapping<'f> {
        Self::with_rights(machine, file, start, first, pages, ALL)
    }

    fn with_rights(
        machine: &TestMachine,
        file: &'f File,
        start: u64,
        first: u64,
        pages: u64,
        rights: Protection,
    ) -> Mapping<'f> {
        let leaf = file.leaf();
        let extent = Extent { start: VirtAddr(start), first, pages, leaf, rights: ALL };
        let mapping = Mapping { file, space: machine.space(), extent };
        file.join(mapping.space.id()).unwrap();
        let mut tally = AttachTally::default();
        file.attach_all(&mapping.space, &extent, rights, &mut tally).unwrap();
        mapping
    }

    fn address(&self, index: u64) -> VirtAddr {
        self.extent.start + ((index - self.extent.first) << self.file.leaf().shift())
    }

    fn sees(&self, index: u64) -> Option<PhysAddr> {
        self.space.walk(self.address(index), self.file.leaf()).map(|(frame, _)| frame)
    }

    /// How many tables of the file its entries lead to, one below another.
    fn reached(&self) -> u64 {
        let mut tables = 0;
        for (slot, entry) in self.file.attachments(&self.space, &self.extent) {
            let frame = X86_64::table_frame(entry.load(sync::Ordering::SeqCst));
            let before = tables;
            let mut count = |seen: Seen<'_, Page>| {
                tables += u64::from(matches!(seen, Seen::Table(..)));
                Ok(true)
            };
            self.file.check_slot(&slot.window, frame, &mut count).unwrap();
            assert_eq!(self.file.reached(&slot.window), tables - before);
        }
        tables
    }

    /// A fault on a page that was added.
    fn fault(&self, index: u64) -> Attached {
        let mut tally = AttachTally::default();
        let (space, address) = (&self.space, self.address(index));
        let attached = self.file.attach_for_fault(space, &self.extent, address, ALL, &mut tally);
        self.file.show(index);
        attached.unwrap()
    }
}

impl Drop for Mapping<'_> {
    fn drop(&mut self) {
        let mut left = Vec::new();
        for (slot, entry) in self.file.attachments(&self.space, &self.extent) {
            entry.store(EntryValue::default(), sync::Ordering::SeqCst);
            left.push(slot.window);
        }
        for window in &left {
            self.file.detach(window);
        }
        self.file.leave(self.space.id());
    }
}

#[test]
fn a_page_that_is_there_is_seen_by_who_maps_later() {
    for leaf in [Level::Pte, Level::Pmd] {
        let machine = TestMachine::new(32);
        let file = file(&machine, leaf, 100);
        file.insert(7, page(leaf, 7)).unwrap();
        let start = 5 * (leaf.span() << 9) + 3 * leaf.span();
        let mappings = [(); 3].map(|()| Mapping::new(&machine, &file, start, 0, 20));
        assert_eq!(counts(&file), (1, 3));
        for mapping in &mappings {
            assert_eq!(mapping.sees(7), Some(page(leaf, 7).0), "{leaf:?}");
            assert_eq!(mapping.sees(8), None);
        }
        file.insert(8, page(leaf, 8)).unwrap();
        assert!(mappings.iter().all(|mapping| mapping.sees(8) == Some(page(leaf, 8).0)));
        file.check().unwrap();
        drop(mappings);
        assert_eq!(counts(&file), (0, 0));
    }
}

#[test]
fn an_empty_window_has_no_table_and_costs_one_fault() {
    let machine = TestMachine::new(32);
    let file = file(&machine, Level::Pmd, 2048);
    let before = machine.free_tables();
    let early = Mapping::new(&machine, &file, 8 * GIB, 0, 2048);
    assert_eq!(counts(&file), (0, 0));
    assert_eq!(machine.free_tables(), before, "neither the file nor the host made a table");
    file.insert(600, page(Level::Pmd, 600)).unwrap();
    assert_eq!(early.fault(600), Attached::Made);
    file.insert(601, page(Level::Pmd, 601)).unwrap();
    assert!(early.sees(600).is_some() && early.sees(601).is_some());
    let late = Mapping::new(&machine, &file, 8 * GIB, 0, 2048);
    assert!(late.sees(600).is_some() && late.sees(601).is_some());
    assert_eq!(counts(&file), (1, 2));
}

#[test]
fn a_window_at_another_phase_lies_over_two_pieces() {
    let machine = TestMachine::new(32);
    let file = file(&machine, Level::Pmd, 2048);
    for index in [510, 511, 512, 513] {
        file.insert(index, page(Level::Pmd, index)).unwrap();
    }
    let mapping = Mapping::new(&machine, &file, 8 * GIB, 300, 512);
    assert_eq!(counts(&file), (1, 1));
    assert!((510..514).all(|index| mapping.sees(index) == Some(page(Level::Pmd, index).0)));
    let removed = file.remove(511..513, |_, _| {});
    assert_eq!(removed, Removed { shown: true, pages: 2 });
    file.flush();
    assert_eq!(machine.flushes.load(sync::Ordering::SeqCst), 1);
    assert_eq!([510, 511, 512, 513].map(|index| mapping.sees(index).is_some()), [true, false, false, true]);
    file.check().unwrap();
    drop(mapping);
    assert_eq!(counts(&file), (0, 0));
    assert_eq!(file.len(), 2);
}

#[test]
fn a_mapping_of_1_tib_has_two_entries_and_no_table_of_its_own() {
    let machine = TestMachine::new(32);
    let pages = 2 << 18;
    let file = file(&machine, Level::Pmd, pages);
    for index in [0, 700, 300_000] {
        file.insert(index, page(Level::Pmd, index)).unwrap();
    }
    let mappings = [512, 1024].map(|start| Mapping::new(&machine, &file, start * GIB, 0, pages));
    for mapping in &mappings {
        assert!([0, 700, 300_000].iter().all(|index| mapping.sees(*index).is_some()));
        assert_eq!(mapping.space.host_tables(), 0);
    }
    // Two PUD tables, and the three PMD tables of the windows with pages.
    assert_eq!(counts(&file), (5, 4));
    let of = |level| (file.totals.tables_of(level), file.totals.attachments_of(level));
    assert_eq!([Level::Pte, Level::Pmd, Level::Pud, Level::Pgd].map(of), [(0, 0), (3, 0), (2, 4), (0, 0)]);
    assert_eq!(file.counts().reached(), 2 * 5);
    file.insert(200_000, page(Level::Pmd, 200_000)).unwrap();
    // Nobody has asked for it: its table is missing below those of the mappings.
    let wide = mappings[0].extent.highest_slot(mappings[0].extent.start).unwrap().window;
    assert_eq!(mappings[0].sees(200_000), None);
    assert_eq!((file.shown(&wide), file.visible(wide.indices())), (2, 3));
    assert_eq!(mappings[0].fault(200_000), Attached::Before);
    assert_eq!(file.shown(&wide), 3);
    assert_eq!(mappings[1].sees(200_000), Some(page(Level::Pmd, 200_000).0), "all are told at once");
    assert_eq!(file.counts().reached(), 2 * 6);
    file.check().unwrap();
    let removed = file.remove(200_000..200_001, |_, _| {});
    assert!(removed.shown);
    assert_eq!(mappings[1].sees(200_000), None);
    drop(mappings);
    assert_eq!(counts(&file), (0, 0));
    assert_eq!(file.counts().reached(), 0);
    assert_eq!(machine.free_tables(), 32);
}

#[test]
fn gigantic_pages_share_what_they_fill() {
    let machine = TestMachine::new(32);
    let file = file(&machine, Level::Pud, 1000);
    file.insert(7, page(Level::Pud, 7)).unwrap();
    file.insert(600, page(Level::Pud, 600)).unwrap();
    let mappings = [(); 2].map(|()| Mapping::new(&machine, &file, 1024 * GIB, 0, 520));
    for mapping in &mappings {
        assert_eq!(mapping.sees(7), Some(page(Level::Pud, 7).0));
        assert_eq!(mapping.space.host_tables(), 0);
    }
    assert_eq!(counts(&file), (1, 2));
    file.check().unwrap();
}

/// Who shows a page is counted once, at whatever level he is attached.
#[test]
fn a_page_knows_its_viewers() {
    let machine = TestMachine::new(32);
    let file = file(&machine, Level::Pte, 1 << 18);
    file.insert(5, page(Level::Pte, 5)).unwrap();
    let wide = [(); 3].map(|()| Mapping::new(&machine, &file, 512 * GIB, 0, 1 << 18));
    let narrow = Mapping::new(&machine, &file, 512 * GIB, 0, 512);
    // It does not fill its GiB, so it attaches to tables of leaves.
    let beside = Mapping::new(&machine, &file, 1024 * GIB + (2 << 20), 0, 1 << 18);
    assert_eq!((file.viewers(5), file.viewers(600)), (5, 0));
    drop(beside);
    assert_eq!(file.viewers(5), 4);
    file.amend(5, |page| *page = Page(page.0));
    assert_eq!(narrow.sees(5), Some(page(Level::Pte, 5).0));
    drop(wide);
    assert_eq!(file.viewers(5), 1);
    drop(narrow);
    assert_eq!(file.viewers(5), 0);
}

/// A page that waits for its first fault is the content's, and in no table until its owner says so.
#[test]
fn a_page_is_shown_once_it_is_to_be() {
    let machine = TestMachine::new(32);
    let file = file(&machine, Level::Pte, 1 << 18);
    let hidden = |index| Page(PhysAddr(page(Level::Pte, index).0.0 | 1));
    file.insert(5, hidden(5)).unwrap();
    file.insert(6, page(Level::Pte, 6)).unwrap();
    let mapping = Mapping::new(&machine, &file, 512 * GIB, 0, 1 << 18);
    file.insert(7, hidden(7)).unwrap();
    file.insert(8, hidden(8)).unwrap();
    assert_eq!([5, 6, 7, 8].map(|index| mapping.sees(index).is_some()), [false, true, false, false]);
    assert_eq!(mapping.fault(7), Attached::Before);
    assert_eq!(mapping.sees(7), None);
    file.check().unwrap();
    [5, 7].into_iter().for_each(|index| file.amend(index, |there| *there = page(Level::Pte, index)));
    assert_eq!([5, 7].map(|index| mapping.sees(index)), [5, 7].map(|index| Some(page(Level::Pte, index).0)));
    file.check().unwrap();
    let mut taken = Vec::new();
    let removed = file.remove_where(0..32, |page| !page.is_shown(), |index, _| taken.push(index));
    assert_eq!((taken, removed), (vec![8], Removed { shown: false, pages: 1 }));
    assert_eq!(file.len(), 3);
    file.check().unwrap();
}

/// A page that is hidden stays the content's, and what takes its place is shown to all.
#[test]
fn a_page_is_hidden_and_replaced() {
    let machine = TestMachine::new(32);
    let file = file(&machine, Level::Pte, 1 << 18);
    [5, 6].into_iter().for_each(|index| file.insert(index, page(Level::Pte, index)).unwrap());
    let mapping = Mapping::new(&machine, &file, 512 * GIB, 0, 1 << 18);
    file.amend(5, |there| *there = Page(PhysAddr(there.0.0 | 1)));
    assert!(file.hide(5) && !file.hide(5) && !file.hide(7));
    assert_eq!(mapping.fault(5), Attached::Before);
    assert_eq!([5, 6].map(|index| mapping.sees(index)), [None, Some(page(Level::Pte, 6).0)]);
    file.check().unwrap();
    assert_eq!(file.replace(5, page(Level::Pte, 9)).map(|old| old.frame()), Some(page(Level::Pte, 5).0));
    assert!(file.replace(7, page(Level::Pte, 7)).is_none());
    assert_eq!((mapping.sees(5), file.len()), (Some(page(Level::Pte, 9).0), 2));
    file.check().unwrap();
}

/// A table may stay for long where no page is any more: what the pages were noted in does not.
#[test]
fn without_pages_a_piece_has_no_places() {
    let machine = TestMachine::new(32);
    let file = file(&machine, Level::Pte, 1 << 18);
    file.insert(5, page(Level::Pte, 5)).unwrap();
    let mapping = Mapping::new(&machine, &file, 512 * GIB, 0, 1 << 18);
    let has_places = || file.with_piece(0, |piece| piece.has_places());
    assert_eq!(has_places(), Some(true));
    assert!(file.remove(0..32, |_, _| ()).shown);
    assert_eq!(has_places(), Some(false));
    file.insert(9, page(Level::Pte, 9)).unwrap();
    assert_eq!((has_places(), mapping.sees(9)), (Some(true), Some(page(Level::Pte, 9).0)));
    file.check().unwrap();
}

/// Searches stop at pages by what is noted with them.
#[test]
fn pages_are_found_by_notes() {
    let machine = TestMachine::new(8);
    let file = file(&machine, Level::Pte, 1 << 18);
    (510..600).chain([5000]).for_each(|index| file.insert(index, page(Level::Pte, index)).unwrap());
    let below = |limit: u64| move |page_there: &Page| page_there.0 < page(Level::Pte, limit).0;
    let from = |limit: u64| move |page_there: &Page| page_there.0 >= page(Level::Pte, limit).0;
    assert_eq!(file.next_where(0..u64::MAX, from(0)), Some(510));
    assert_eq!(file.next_where(0..u64::MAX, from(590)), Some(590));
    assert_eq!(file.next_where(0..u64::MAX, from(600)), Some(5000));
    assert_eq!(file.next_where(0..5000, from(600)), None);
    assert_eq!((file.next_not(0, from(0)), file.next_not(510, from(0))), (0, 600));
    assert_eq!((file.next_not(511, below(580)), file.next_not(5000, from(0))), (580, 5001));
}

#[test]
fn base_pages_have_tables_of_three_levels() {
    let machine = TestMachine::new(64);
    let pages = (512 << 18) + (1 << 18) + 512 + 3;
    let file = file(&machine, Level::Pte, pages);
    let indices = [0, 511, 512, (512 << 18) + 5, (512 << 18) + (1 << 18) + 2, pages - 1];
    for index in indices {
        file.insert(index, page(Level::Pte, index)).unwrap();
    }
    let mapping = Mapping::new(&machine, &file, 512 * GIB, 0, pages);
    assert!(indices.iter().all(|index| mapping.sees(*index) == Some(page(Level::Pte, *index).0)));
    file.check().unwrap();
    assert_eq!(file.counts().reached(), mapping.reached());
    file.insert(1 << 20, page(Level::Pte, 1 << 20)).unwrap();
    assert_eq!(mapping.fault(1 << 20), Attached::Before);
    assert!(mapping.sees(1 << 20).is_some());
    file.check().unwrap();
    assert_eq!(file.counts().reached(), mapping.reached());
    // One that has a part of the same: its entries lead to tables that are below the other's.
    let part = Mapping::new(&machine, &file, 1024 * GIB, 0, 7 << 18);
    assert_eq!(file.counts().reached(), mapping.reached() + part.reached());
    // A new table of leaves is reached by both.
    let before = file.counts().reached();
    file.insert((1 << 20) + 1000, page(Level::Pte, 9)).unwrap();
    assert_eq!(part.fault((1 << 20) + 1000), Attached::Before);
    assert!(mapping.sees((1 << 20) + 1000).is_some());
    assert_eq!(file.counts().reached(), before + 2);
    assert_eq!(file.counts().reached(), mapping.reached() + part.reached());
    drop(mapping);
    assert_eq!(file.counts().reached(), part.reached());
    drop(part);
    assert_eq!((counts(&file), file.counts().reached()), ((0, 0), 0));
}

#[test]
fn windows_over_one_piece_are_bounded() {
    let machine = TestMachine::new(128);
    let file = file(&machine, Level::Pmd, 512);
    file.insert(100, page(Level::Pmd, 100)).unwrap();
    let mappings: Vec<_> =
        (0..20).map(|length| Mapping::new(&machine, &file, 8 * GIB, 90, 11 + length)).collect();
    assert_eq!(counts(&file), (16, 16));
    let crowded = mappings.last().unwrap();
    assert_eq!(crowded.sees(100), None);
    assert_eq!(crowded.fault(100), Attached::Crowded);
    file.check().unwrap();
}

#[test]
fn of_two_makers_of_a_last_possible_table_none_finds_the_windows_crowded() {
    let machine = TestMachine::new(128);
    let file = sync::Arc::new(file(&machine, Level::Pmd, 1024));
    for index in [511, 700] {
        file.insert(index, page(Level::Pmd, index)).unwrap();
    }
    // Over the second piece lie 15 windows.
    let others: Vec<_> =
        (0..15).map(|length| Mapping::new(&machine, &file, 8 * GIB, 690, 11 + length)).collect();
    assert_eq!(counts(&file), (15, 15));
    // Another process makes the 16th, over both pieces, while this one has allocated the same.
    let extent = Extent { start: VirtAddr(8 * GIB), first: 400, pages: 512, ..others[0].extent };
    let spaces = [(); 2].map(|()| machine.space());
    let (other, space) = (file.clone(), spaces[0].clone());
    machine.at_allocation(move || {
        let mut tally = AttachTally::default();
        other.attach_all(&space, &extent, ALL, &mut tally).unwrap();
        assert_eq!(tally, AttachTally { made: 1, ..AttachTally::default() });
    });
    let mut tally = AttachTally::default();
    file.attach_all(&spaces[1], &extent, ALL, &mut tally).unwrap();
    assert_eq!(tally, AttachTally { shared: 1, ..AttachTally::default() });
    assert_eq!(counts(&file), (16, 17));
    file.check().unwrap();
    for space in &spaces {
        let (slot, entry) = file.attachments(space, &extent).next().unwrap();
        entry.store(EntryValue::default(), sync::Ordering::SeqCst);
        file.detach(&slot.window);
    }
    assert_eq!(counts(&file), (15, 15));
}

#[test]
fn pages_behind_the_end_are_shown_when_the_file_grows() {
    let machine = TestMachine::new(16);
    let file = file(&machine, Level::Pmd, 10);
    file.insert(3, page(Level::Pmd, 3)).unwrap();
    assert_eq!(file.insert(10, page(Level::Pmd, 10)), Err(InsertError::BeyondEnd));
    assert_eq!(file.insert(3, page(Level::Pmd, 3)), Err(InsertError::Occupied));
    file.insert_anywhere(10, page(Level::Pmd, 10)).unwrap();
    let mapping = Mapping::new(&machine, &file, GIB, 0, 100);
    assert_eq!((mapping.sees(3).is_some(), mapping.sees(10)), (true, None));
    assert_eq!((file.visible(0..100), file.len()), (1, 2));
    file.set_end(50);
    assert_eq!(mapping.sees(10), Some(page(Level::Pmd, 10).0));
    assert_eq!(file.visible(0..100), 2);
}

#[test]
fn without_memory_for_a_table_nothing_has_changed() {
    let machine = TestMachine::new(1);
    let file = file(&machine, Level::Pmd, 512);
    file.insert(0, page(Level::Pmd, 0)).unwrap();
    let extent = Extent { start: VirtAddr(GIB), first: 0, pages: 512, leaf: Level::Pmd, rights: ALL };
    let space = machine.space();
    // The frame goes to the host's PUD table.
    let mut tally = AttachTally::default();
    assert_eq!(file.attach_all(&space, &extent, ALL, &mut tally), Err(OutOfMemory));
    assert_eq!((tally, counts(&file)), (AttachTally::default(), (0, 0)));
    file.check().unwrap();
}

#[test]
fn an_attachment_is_tallied_though_a_table_below_cannot_be_had() {
    // The frame goes to the file's PUD table, and none is left for the PMD table below.
    let machine = TestMachine::new(1);
    let file = file(&machine, Level::Pmd, 1 << 18);
    file.insert(0, page(Level::Pmd, 0)).unwrap();
    let extent =
        Extent { start: VirtAddr(512 * GIB), first: 0, pages: 1 << 18, leaf: Level::Pmd, rights: ALL };
    let space = machine.space();
    let mut tally = AttachTally::default();
    for made in [1, 0] {
        let attached = file.attach_for_fault(&space, &extent, extent.start, ALL, &mut tally);
        assert_eq!(attached, Err(OutOfMemory));
        assert_eq!(core::mem::take(&mut tally), AttachTally { made, ..AttachTally::default() });
        assert_eq!(counts(&file), (1, 1));
    }
    let (slot, entry) = file.attachments(&space, &extent).next().unwrap();
    entry.store(EntryValue::default(), sync::Ordering::SeqCst);
    file.detach(&slot.window);
    assert_eq!(counts(&file), (0, 0));
}

#[test]
fn rights_are_those_of_the_entry() {
    let machine = TestMachine::new(16);
    let file = file(&machine, Level::Pmd, 512);
    file.insert(0, page(Level::Pmd, 0)).unwrap();
    let writer = Mapping::new(&machine, &file, GIB, 0, 512);
    let reader = Mapping::with_rights(&machine, &file, GIB, 0, 512, Protection::READ);
    assert_eq!(counts(&file), (1, 2));
    assert_eq!(reader.space.walk(VirtAddr(GIB), Level::Pmd).unwrap().1, Protection::READ);
    assert_eq!(writer.space.walk(VirtAddr(GIB), Level::Pmd).unwrap().1, ALL);
}

#[test]
fn a_sparse_file_is_walked_by_its_pages() {
    let machine = TestMachine::new(4);
    let file = file(&machine, Level::Pmd, u64::MAX);
    let indices = [0, 511, 512, 1 << 20, (1 << 30) + 77, 1 << 41];
    indices.iter().for_each(|index| file.insert(*index, page(Level::Pmd, *index & 0xfff)).unwrap());
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(index) = file.next(at..u64::MAX) {
        found.push(index);
        at = index + 1;
    }
    assert_eq!(found, indices);
    assert_eq!(file.visible(0..u64::MAX), 6);
    assert_eq!(file.visible(500..520), 2);
}

/// Indices go up to 2^64, whatever the owner's files do.
#[test]
fn the_last_indices_are_as_all_others() {
    const LAST: u64 = u64::MAX - 1;
    let machine = TestMachine::new(16);
    let file = file(&machine, Level::Pmd, u64::MAX);
    let indices = [LAST - 600, LAST - 64, LAST - 63, LAST - 1, LAST];
    indices.iter().for_each(|index| file.insert(*index, page(Level::Pmd, *index & 0xfff)).unwrap());
    assert_eq!(file.insert_anywhere(u64::MAX, page(Level::Pmd, 0)), Err(InsertError::BeyondEnd));
    assert_eq!(file.next(LAST..u64::MAX), Some(LAST));
    assert_eq!(file.next(LAST - 600 + 1..u64::MAX), Some(LAST - 64));
    assert_eq!(file.run(LAST - 1, u64::MAX), LAST - 1..u64::MAX);
    assert_eq!((file.visible(0..u64::MAX), file.visible(LAST - 63..LAST)), (5, 2));
    // At a phase, so that the window lies over the last two pieces; and one that is longer than the file can be.
    for pages in [700, 1 << 40] {
        let mapping = Mapping::new(&machine, &file, 8 * GIB + (100 << 21), u64::MAX - 700, pages);
        for index in indices {
            assert_eq!(mapping.sees(index), Some(page(Level::Pmd, index & 0xfff).0), "{index:#x}");
        }
        file.check().unwrap();
    }
    let removed = file.remove(LAST - 1..u64::MAX, |_, _| {});
    assert_eq!(removed, Removed { shown: false, pages: 2 });
    file.set_end(LAST - 600);
    assert_eq!((file.visible(0..u64::MAX), file.len()), (0, 3));
    file.set_end(u64::MAX);
    assert_eq!(file.visible(0..u64::MAX), 3);
}

/// The end of the address space is none of the mapping's that would go beyond it.
#[test]
fn a_mapping_ends_with_the_address_space() {
    let machine = TestMachine::new(16);
    let file = file(&machine, Level::Pmd, 1 << 50);
    file.insert(1 << 44, page(Level::Pmd, 1)).unwrap();
    file.insert(3, page(Level::Pmd, 3)).unwrap();
    // 520 GiB below its end, and longer than all of it.
    let mapping = Mapping::new(&machine, &file, (520 * GIB).wrapping_neg(), 0, u64::MAX >> 2);
    assert_eq!((mapping.sees(3), counts(&file)), (Some(page(Level::Pmd, 3).0), (1, 1)));
    assert!(mapping.extent.end() > mapping.extent.start);
}

#[test]
fn of_two_mappings_in_a_slot_the_first_is_attached() {
    let machine = TestMachine::new(16);
    let file = file(&machine, Level::Pmd, 512);
    file.insert(0, page(Level::Pmd, 0)).unwrap();
    let first = Mapping::new(&machine, &file, GIB, 0, 4);
    let second = Extent { start: VirtAddr(GIB + (8 << 21)), pages: 2, ..first.extent };
    let mut tally = AttachTally::default();
    file.attach_all(&first.space, &second, ALL, &mut tally).unwrap();
    assert_eq!(tally, AttachTally { neighbours: 1, ..AttachTally::default() });
    assert_eq!(file.attachments(&first.space, &second).count(), 0);
    assert_eq!(file.attachments(&first.space, &first.extent).count(), 1);
}

/// Threads that attach, detach, add and take out, at two phases and at two levels; then all is as the content says.
#[test]
fn whatever_crosses_the_tables_equal_the_content_in_the_end() {
    let machine = TestMachine::new(4096);
    let pages = 512 * 512;
    let file = file(&machine, Level::Pmd, pages);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (machine, file) = (&machine, &file);
            scope.spawn(move || {
                let mut seed = thread + 1;
                let mut random = move |below: u64| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (seed >> 33) % below
                };
                for _ in 0..300 {
                    // Each thread has its own pages: the owner of a file serialises what happens to one.
                    let index = (random(3) * 512 + random(8) * 64) + thread;
                    match random(4) {
                        0 => {
                            let _ = file.insert(index, page(Level::Pmd, index));
                            file.show(index);
                        }
                        1 => {
                            let _ = file.remove(index..index + 1, |_, _| {});
                        }
                        2 => drop(Mapping::new(machine, file, 512 * GIB, 0, pages)),
                        _ => {
                            let mapping = Mapping::new(machine, file, 8 * GIB, 100, 700);
                            let _ = mapping.fault(200.max(index.min(799)));
                        }
                    }
                }
            });
        }
    });
    let whole = Mapping::new(&machine, &file, 512 * GIB, 0, pages);
    file.check().unwrap();
    for index in 0..2048 {
        assert_eq!(whole.sees(index), file.get(index).map(|page| page.0), "{index}");
    }
    drop(whole);
    assert_eq!(counts(&file), (0, 0));
    assert_eq!(machine.free_tables(), 4096);
}
