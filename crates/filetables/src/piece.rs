//! A piece of a file: up to 512 pages, and the tables of leaves that show any of them.

use alloc::vec::Vec;
use core::ops::Range;

use crate::addr::{PhysAddr, TABLE_ENTRIES};
use crate::format::{EntryValue, Format};
use crate::frame::Frame;
use crate::machine::{Entry, Machine};
use crate::mutant::Mutant;
use crate::sync::Ordering;
use crate::window::Window;

/// The pages of a piece: as many as a table has entries.
pub(crate) const PIECE_PAGES: u64 = TABLE_ENTRIES as u64;
/// Most windows that lie over one piece, so that a page comes and goes in a bounded number of steps.
pub(crate) const MOST_WINDOWS: usize = if cfg!(roundtable_model) { 4 } else { 16 };

const WORD: u64 = u64::BITS as u64;
const WORDS: usize = PIECE_PAGES.div_ceil(WORD) as usize;

/// A table of leaves that shows pages of a piece. A table that lies over two pieces is noted in both.
#[derive(Clone, Copy)]
pub(crate) struct Over {
    pub(crate) window: Window,
    pub(crate) frame: PhysAddr,
    /// How many entries, of processes and of tables above, lead to the table. Counted in the piece of the window's first
    /// page only. It is no reference count of the frame: that mix-up was CVE-2024-57883.
    pub(crate) attachments: u64,
}

/// A piece of a file. Its lock is that of the stripe that it is in.
pub(crate) struct Piece<P> {
    first: u64,
    /// Empty, or one place for each page.
    pages: Vec<Option<P>>,
    /// Which places have a page.
    present: [u64; WORDS],
    over: Vec<Over>,
}

impl<P: Frame> Piece<P> {
    pub(crate) fn new(number: u64) -> Piece<P> {
        Piece { first: number * PIECE_PAGES, pages: Vec::new(), present: [0; WORDS], over: Vec::new() }
    }

    fn within(&self, index: u64) -> usize {
        debug_assert!(index / PIECE_PAGES == self.first / PIECE_PAGES, "an index of another piece");
        (index % PIECE_PAGES) as usize
    }

    /// Whether it has neither pages nor tables.
    pub(crate) fn is_empty(&self) -> bool {
        self.over.is_empty() && !self.has_pages()
    }

    pub(crate) fn has_pages(&self) -> bool {
        self.present.iter().any(|word| *word != 0)
    }

    pub(crate) fn has_places(&self) -> bool {
        !self.pages.is_empty()
    }

    /// Gives the piece places for its pages.
    pub(crate) fn set_places(&mut self, places: Vec<Option<P>>) {
        debug_assert!(places.len() == TABLE_ENTRIES && self.pages.is_empty());
        self.pages = places;
    }

    /// Takes the places out when no page is left: tables may keep the piece for long.
    pub(crate) fn idle_places(&mut self) -> Vec<Option<P>> {
        if self.has_places() && !self.has_pages() { core::mem::take(&mut self.pages) } else { Vec::new() }
    }

    pub(crate) fn get(&self, index: u64) -> Option<&P> {
        self.pages.get(self.within(index))?.as_ref()
    }

    /// As [`Piece::get`], to change what goes with the page.
    pub(crate) fn get_mut(&mut self, index: u64) -> Option<&mut P> {
        let within = self.within(index);
        self.pages.get_mut(within)?.as_mut()
    }

    /// Puts a page where none is; there are places.
    pub(crate) fn put(&mut self, index: u64, page: P) {
        let within = self.within(index);
        self.pages[within] = Some(page);
        self.present[within / WORD as usize] |= 1 << (within as u64 % WORD);
    }

    pub(crate) fn take(&mut self, index: u64) -> Option<P> {
        let within = self.within(index);
        self.present[within / WORD as usize] &= !(1 << (within as u64 % WORD));
        self.pages.get_mut(within)?.take()
    }

    /// The index behind the last page. The last piece has one page less: an index behind it would not be one.
    fn end(&self) -> u64 {
        self.first.saturating_add(PIECE_PAGES)
    }

    /// Where the next word begins, if that is before `end` and in the piece.
    fn next_word(&self, at: u64, end: u64) -> Option<u64> {
        let next = (at - at % PIECE_PAGES % WORD).checked_add(WORD)?;
        (next < end.min(self.end())).then_some(next)
    }

    /// The pages of the range that are there, at most those of one word of the piece.
    fn word(&self, from: u64, end: u64) -> u64 {
        let within = self.within(from) as u64;
        let bits = self.present[(within / WORD) as usize] & (u64::MAX << (within % WORD));
        let last = (end - from).min(WORD) + within % WORD;
        if last >= WORD { bits } else { bits & ((1 << last) - 1) }
    }

    /// The first page at or behind `from`, up to `end` or the end of the piece.
    pub(crate) fn next(&self, from: u64, end: u64) -> Option<u64> {
        let mut at = Some(from).filter(|from| *from < end.min(self.end()));
        while let Some(from) = at {
            let bits = self.word(from, end);
            if bits != 0 {
                return Some(from - from % PIECE_PAGES % WORD + u64::from(bits.trailing_zeros()));
            }
            at = self.next_word(from, end);
        }
        None
    }

    /// How many pages from an index on follow each other, before `end` and in one word of the piece.
    pub(crate) fn run(&self, index: u64, end: u64) -> u64 {
        let bits = self.word(index, end) >> (self.within(index) as u64 % WORD);
        u64::from(bits.trailing_ones())
    }

    /// How many pages of the range are there.
    pub(crate) fn count(&self, indices: Range<u64>) -> u64 {
        let (first, end) = (indices.start.max(self.first), indices.end.min(self.end()));
        let (mut at, mut count) = (Some(first).filter(|first| *first < end), 0);
        while let Some(from) = at {
            count += u64::from(self.word(from, end).count_ones());
            at = self.next_word(from, end);
        }
        count
    }

    /// The tables that show pages of the piece.
    pub(crate) fn over(&self) -> &[Over] {
        &self.over
    }

    pub(crate) fn find(&self, window: &Window) -> Option<&Over> {
        self.over.iter().find(|over| over.window == *window)
    }

    /// As [`Piece::find`], to count attachments.
    pub(crate) fn find_mut(&mut self, window: &Window) -> Option<&mut Over> {
        self.over.iter_mut().find(|over| over.window == *window)
    }

    /// For how many tables memory is needed before the next is noted; `None` when there is room.
    pub(crate) fn wants(&self) -> Option<usize> {
        let full = self.over.len() == self.over.capacity();
        let room = |len: usize| (2 * len).clamp(2, MOST_WINDOWS.max(len + 1));
        full.then(|| room(self.over.len()))
    }

    /// Whether as many windows as may lie over the piece do, and `window` is none of them.
    ///
    /// Two makers of one table may both have noted theirs, until one of them sees that it is the second. So notes of one window
    /// count once.
    pub(crate) fn is_crowded_for(&self, window: &Window) -> bool {
        if self.over.len() < MOST_WINDOWS {
            return false;
        }
        let is_first = |(at, over): &(usize, &Over)| {
            over.window != *window && self.over[..*at].iter().all(|other| other.window != over.window)
        };
        self.over.iter().enumerate().filter(is_first).count() >= MOST_WINDOWS
    }

    /// Moves the notes of tables to larger memory; returns the old.
    pub(crate) fn move_to(&mut self, mut memory: Vec<Over>) -> Vec<Over> {
        if memory.capacity() > self.over.capacity() {
            memory.append(&mut self.over);
            core::mem::swap(&mut memory, &mut self.over);
        }
        memory
    }

    pub(crate) fn note(&mut self, over: Over) {
        debug_assert!(self.over.len() < self.over.capacity(), "a note under a lock would allocate");
        self.over.push(over);
    }

    /// Takes the note of a table out, and the table's entries for the piece's pages: no TLB holds any of them.
    ///
    /// Both under the lock: a page that leaves the piece later has no entry anywhere.
    pub(crate) fn forget<M: Machine>(&mut self, machine: &M, over: &Over) {
        let entries = machine.table(over.frame);
        let end = over.window.indices().end.min(self.end());
        let mut next = self.next(over.window.first.max(self.first), end);
        while let Some(index) = next {
            if let Some(entry) = over.window.entry_of(index) {
                // Relaxed: the lock orders all writers, and nobody walks here.
                entries[entry].store(EntryValue::default(), Ordering::Relaxed);
            }
            next = self.next(index + 1, end);
        }
        self.over.retain(|other| other.frame != over.frame);
    }

    /// Writes the entries of a page where they are missing, in all tables that show it.
    pub(crate) fn show<M: Machine>(&self, machine: &M, index: u64) {
        let Some(page) = self.get(index).filter(|page| page.is_shown()) else { return };
        for over in &self.over {
            if let Some(entry) = over.window.entry_of(index) {
                show_in(machine, over, entry, page.frame());
            }
        }
    }

    /// Writes the entries of one table for the pages of one word of the piece, from an index on and before `end`. Returns
    /// where to go on, if that is in the piece.
    pub(crate) fn fill<M: Machine>(&self, machine: &M, over: &Over, from: u64, end: u64) -> Option<u64> {
        let base = from - from % PIECE_PAGES % WORD;
        let mut bits = if Mutant::TableNotFilled.is_on() { 0 } else { self.word(from, end) };
        while bits != 0 {
            let index = base + u64::from(bits.trailing_zeros());
            bits &= bits - 1;
            let page = self.get(index).filter(|page| page.is_shown());
            if let (Some(page), Some(entry)) = (page, over.window.entry_of(index)) {
                show_in(machine, over, entry, page.frame());
            }
        }
        self.next_word(from, end)
    }

    /// Clears the entries of a page in all tables; returns whether there were any. Who asks flushes afterwards.
    pub(crate) fn hide<M: Machine>(&self, machine: &M, index: u64) -> bool {
        let mut shown = false;
        for over in &self.over {
            if let Some(entry) = over.window.entry_of(index) {
                // AcqRel: the page's last user comes before its next one, and the flush after the store.
                let old = machine.table(over.frame)[entry].swap(EntryValue::default(), Ordering::AcqRel);
                shown |= M::Format::is_present(old);
            }
        }
        shown
    }
}

/// Writes the leaf of a page, unless it is there.
fn show_in<M: Machine>(machine: &M, over: &Over, entry: usize, frame: PhysAddr) {
    let entry: &Entry = &machine.table(over.frame)[entry];
    // Relaxed: the lock of the piece orders all writers.
    if M::Format::is_present(entry.load(Ordering::Relaxed)) {
        return;
    }
    // Release: what the page has in it comes before its entry, on every CPU.
    let order = if Mutant::ShownWithoutRelease.is_on() { Ordering::Relaxed } else { Ordering::Release };
    entry.store(M::Format::leaf(over.window.level, frame, over.window.rights), order);
}
