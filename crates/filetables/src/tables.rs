//! The content of a file, and what comes and goes in it.

use core::ops::Range;

use once_cell::race::OnceBox;

use crate::addr::{Level, PhysAddr};
use crate::error::{InsertError, OutOfMemory};
use crate::machine::Machine;
use crate::memory::Leaf;
use crate::mutant::Mutant;
use crate::piece::PIECE_PAGES;
use crate::stripe::{Need, STRIPES, Stripes};
use crate::sync::{Arc, AtomicU64, Ordering, Tally, fence};
use crate::upper::Uppers;

/// A page, or a handle that keeps one.
pub trait Frame: Send + Sync + 'static {
    /// Where the page is.
    fn frame(&self) -> PhysAddr;
}

impl<T: Frame> Frame for Arc<T> {
    fn frame(&self) -> PhysAddr {
        (**self).frame()
    }
}

/// Most pages that one call takes out of the content.
pub const REMOVED_AT_A_TIME: u64 = if cfg!(roundtable_model) { 2 } else { 32 };

/// Pieces that are looked at with one hold of a lock.
const PIECES_AT_A_TIME: usize = if cfg!(roundtable_model) { 2 } else { 64 };

/// The pages of a file by index, and the page tables that show them.
///
/// See the [crate's page](crate) for what it guarantees. A value without pages and mappings has no memory but its own.
pub struct FileTables<M: Machine, P: Frame> {
    pub(crate) machine: Arc<M>,
    pub(crate) leaf: Level,
    /// The first index that does not lie in front of the file's end.
    end: AtomicU64,
    pages: Tally,
    pub(crate) stripes: OnceBox<Stripes<M, P>>,
    pub(crate) uppers: Uppers<M>,
    counts: Counts,
    totals: Arc<Counts>,
}

/// How many tables there are, of all levels, and how many entries of processes lead to them.
#[derive(Default, Debug)]
pub struct Counts {
    tables: Tally,
    attachments: Tally,
    reached: Tally,
}

impl Counts {
    /// Tables, of 4 KiB each.
    pub fn tables(&self) -> u64 {
        // Relaxed: a number to show.
        self.tables.load(Ordering::Relaxed)
    }

    /// Entries of processes that lead to tables.
    pub fn attachments(&self) -> u64 {
        // Relaxed: a number to show.
        self.attachments.load(Ordering::Relaxed)
    }

    /// Tables that processes would have of their own in the place of these: each table once for each attachment that leads
    /// to it, directly or by a table above.
    pub fn reached(&self) -> u64 {
        // Relaxed: a number to show.
        self.reached.load(Ordering::Relaxed)
    }
}

/// What was taken out of the content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "what tables showed is to be flushed"]
pub struct Removed {
    /// Whether any table showed one of the pages. Then TLBs of all who are attached may hold it:
    /// [`FileTables::flush`] comes before the pages are reused.
    pub shown: bool,
    /// How many pages.
    pub pages: u64,
}

impl<M: Machine, P: Frame + Clone> FileTables<M, P> {
    /// Content without pages, which ends at index 0. The leaves of its tables are of `leaf`: the size of the pages.
    /// `totals` are counted along: those of all files of an owner.
    pub fn new(machine: Arc<M>, leaf: Level, totals: Arc<Counts>) -> FileTables<M, P> {
        FileTables {
            machine,
            leaf,
            end: AtomicU64::new(0),
            pages: Tally::new(0),
            stripes: OnceBox::new(),
            uppers: Uppers::new(),
            counts: Counts::default(),
            totals,
        }
    }

    /// The file's tables and attachments.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(crate) fn count_table(&self, comes: bool) {
        // Relaxed, here and below: numbers to show. To subtract one is to add the largest.
        let change = if comes { 1 } else { u64::MAX };
        for counts in [&self.counts, &*self.totals] {
            counts.tables.fetch_add(change, Ordering::Relaxed);
        }
    }

    /// An attachment that reaches so many tables comes or goes.
    pub(crate) fn count_attachment(&self, comes: bool, reaches: u64) {
        let change = if comes { 1 } else { u64::MAX };
        for counts in [&self.counts, &*self.totals] {
            counts.attachments.fetch_add(change, Ordering::Relaxed);
        }
        self.count_reached(reaches.wrapping_mul(change));
    }

    pub(crate) fn count_reached(&self, change: u64) {
        for counts in [&self.counts, &*self.totals] {
            counts.reached.fetch_add(change, Ordering::Relaxed);
        }
    }

    /// The level of the leaves.
    pub fn leaf(&self) -> Level {
        self.leaf
    }

    /// The machine.
    pub fn machine(&self) -> &Arc<M> {
        &self.machine
    }

    /// The index at which the file ends: pages from here on are in no table.
    pub fn end(&self) -> u64 {
        // Acquire: with `set_end`. What a lock is needed for is said there.
        self.end.load(Ordering::Acquire)
    }

    /// How many pages the content has.
    pub fn len(&self) -> u64 {
        // Relaxed: a number to show.
        self.pages.load(Ordering::Relaxed)
    }

    /// Whether the content has no pages.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves the end. When it moves up, pages that were behind it come into sight. When it moves down, the pages behind it
    /// are the caller's to [remove](FileTables::remove).
    ///
    /// The store comes before the caller takes any lock of a piece. An insertion looks at the end under that lock. So it
    /// comes before the removal, which finds the page, or it sees the new end: no page appears behind the end afterwards.
    pub fn set_end(&self, end: u64) {
        let old = self.end.swap(end, Ordering::AcqRel);
        // Without stripes there is no lock to order us and the first insertion: it makes them, and then looks at the end. A
        // fence on each side: we find the stripes, or it finds the end.
        fence(Ordering::SeqCst);
        let mut next = if Mutant::GrownFileNotShown.is_on() { None } else { self.next(old..end.max(old)) };
        while let Some(index) = next {
            self.show(index);
            next = self.next(index + 1..end);
            self.machine.give_way();
        }
    }

    /// The page at an index.
    pub fn get(&self, index: u64) -> Option<P> {
        self.with_piece(index / PIECE_PAGES, |piece| piece.get(index).cloned())?
    }

    /// Adds a page where none is, and shows it in all tables.
    ///
    /// # Errors
    ///
    /// See [`InsertError`].
    pub fn insert(&self, index: u64, page: P) -> Result<(), InsertError> {
        self.insert_if(index, page, |end| index < end || Mutant::EndNotLookedAtAgain.is_on())
    }

    /// Adds a page also behind the end, where no table shows it.
    ///
    /// # Errors
    ///
    /// As [`FileTables::insert`], but [`InsertError::BeyondEnd`] of the index `u64::MAX` only.
    pub fn insert_anywhere(&self, index: u64, page: P) -> Result<(), InsertError> {
        self.insert_if(index, page, |_| true)
    }

    fn insert_if(&self, index: u64, page: P, may: impl FnOnce(u64) -> bool) -> Result<(), InsertError> {
        // No end lies behind the last index, so no range reaches it.
        if index == u64::MAX {
            return Err(InsertError::BeyondEnd);
        }
        self.change_piece_with(index / PIECE_PAGES, Need::Places, |piece| {
            // Under the lock: see `set_end`.
            let end = self.end();
            if !may(end) {
                return Err(InsertError::BeyondEnd);
            }
            if piece.get(index).is_some() {
                return Err(InsertError::Occupied);
            }
            piece.put(index, page);
            // Relaxed: a number to show.
            self.pages.fetch_add(1, Ordering::Relaxed);
            if index < end && !Mutant::FreshPageNotShown.is_on() {
                piece.show(&*self.machine, index);
            }
            Ok(())
        })?
    }

    /// Writes the entries of a page where they are missing.
    pub fn show(&self, index: u64) {
        self.with_piece(index / PIECE_PAGES, |piece| {
            if index < self.end() {
                piece.show(&*self.machine, index);
            }
        });
    }

    /// The pages from an index on that follow each other without a hole, at most [`REMOVED_AT_A_TIME`] and before `end`.
    /// Empty when the index has no page.
    pub fn run(&self, index: u64, end: u64) -> Range<u64> {
        let end = end.min(index.saturating_add(REMOVED_AT_A_TIME));
        let length = self.with_piece(index / PIECE_PAGES, |piece| piece.run(index, end));
        index..index + length.unwrap_or(0)
    }

    /// Takes the pages of a range of at most [`REMOVED_AT_A_TIME`] out, and hides them. `taken` gets each; it is called
    /// under a spin lock, so it keeps the page and does nothing else.
    ///
    /// Both in one section: a table that is made now must not be filled with a page that is about to go.
    pub fn remove(&self, indices: Range<u64>, mut taken: impl FnMut(u64, P)) -> Removed {
        debug_assert!(indices.end - indices.start <= REMOVED_AT_A_TIME);
        let mut removed = Removed { shown: false, pages: 0 };
        self.each_piece(indices, |piece, indices| {
            let mut next = piece.next(indices.start, indices.end);
            while let Some(index) = next {
                if !Mutant::RemovedButShown.is_on() {
                    removed.shown |= piece.hide(&*self.machine, index);
                }
                if let Some(page) = piece.take(index) {
                    removed.pages += 1;
                    taken(index, page);
                }
                next = piece.next(index + 1, indices.end);
            }
        });
        // Relaxed: a number to show.
        self.pages.fetch_sub(removed.pages, Ordering::Relaxed);
        removed
    }

    /// Shows `work` the pieces of a short range, each under its lock, with the part of the range that lies in it.
    fn each_piece(&self, indices: Range<u64>, mut work: impl FnMut(&mut crate::piece::Piece<P>, Range<u64>)) {
        let mut at = indices.start;
        while at < indices.end {
            let number = at / PIECE_PAGES;
            let end = indices.end.min((number + 1).saturating_mul(PIECE_PAGES));
            self.change_piece(number, |piece| work(piece, at..end));
            at = end;
        }
    }

    /// The first index of the range that has a page. The steps depend on the pages there are, not on the range.
    pub fn next(&self, indices: Range<u64>) -> Option<u64> {
        let mut at = indices.start;
        while at < indices.end {
            let number = at / PIECE_PAGES;
            let found = self.with_piece(number, |piece| piece.next(at, indices.end));
            if let Some(found) = found.flatten() {
                return Some(found);
            }
            at = self.next_piece(number + 1)?.checked_mul(PIECE_PAGES)?;
        }
        None
    }

    /// A piece from `number` on that may have pages, with none that has in front of it.
    fn next_piece(&self, number: u64) -> Option<u64> {
        let stripes = self.stripes.get()?;
        let in_stripe = |stripe: &crate::sync::Padded<crate::sync::Spin<M, crate::stripe::Stripe<P>>>| {
            // Pieces without pages are passed over, but not without end: the last of them is looked at again.
            let (mut last, mut looks) = (None, 0);
            stripe.lock().pieces.find_from(&number, |number, piece| {
                (last, looks) = (Some(*number), looks + 1);
                (piece.has_pages() || looks == PIECES_AT_A_TIME).then_some(())
            });
            last
        };
        let next = stripes.iter().filter_map(in_stripe).min();
        self.machine.give_way();
        next
    }

    /// How many pages of the range lie in front of the end.
    pub fn visible(&self, indices: Range<u64>) -> u64 {
        let indices = indices.start..indices.end.min(self.end());
        if indices.is_empty() {
            return 0;
        }
        let (first, last) = (indices.start / PIECE_PAGES, (indices.end - 1) / PIECE_PAGES);
        if last - first < STRIPES as u64 {
            let count = |number| self.with_piece(number, |piece| piece.count(indices.clone()));
            return (first..=last).filter_map(count).sum();
        }
        let mut count = 0;
        for stripe in self.stripes.get().map_or(&[][..], |stripes| &stripes[..]) {
            let mut from = Some(first);
            while let Some(number) = from {
                let mut looks = 0;
                from = stripe.lock().pieces.find_from(&number, |number, piece| {
                    looks += 1;
                    if looks > PIECES_AT_A_TIME || *number > last {
                        return Some(*number);
                    }
                    count += piece.count(indices.clone());
                    None
                });
                from = from.filter(|number| *number <= last);
                self.machine.give_way();
            }
        }
        count
    }

    /// Makes all CPUs that run a space with attached tables of the file forget what they know of it.
    ///
    /// The entries were cleared before. A space that attaches later joins first, and finds them clear.
    pub fn flush(&self) {
        self.machine.flush_spaces(&|space| self.has_joined(space));
    }

    /// A mapping of the address space is about to attach to a table for the first time.
    ///
    /// The space is known before the hardware can walk into the table: a removal that comes later flushes it, one that came
    /// earlier left the entries clear.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when there is no memory to note it.
    pub fn join(&self, space: u64) -> Result<(), OutOfMemory> {
        let lock = &self.stripes()?[space as usize % STRIPES];
        if Mutant::SpaceNotJoined.is_on() {
            return Ok(());
        }
        let mut spare = None;
        loop {
            let mut stripe = lock.lock();
            if let Some(mappings) = stripe.spaces.get_mut(&space) {
                *mappings += 1;
                // The lock first, then the memory.
                drop(stripe);
                drop(spare);
                return Ok(());
            }
            if let Some(entry) = spare.take() {
                // It is not there: see above.
                let _ = stripe.spaces.insert_entry(entry);
                return Ok(());
            }
            drop(stripe);
            spare = Some(Leaf::try_new(space, 1)?);
        }
    }

    /// A mapping that joined is gone: none of its entries leads to a table, and the TLBs were flushed.
    pub fn leave(&self, space: u64) {
        let Some(stripes) = self.stripes.get() else { return };
        let mut stripe = stripes[space as usize % STRIPES].lock();
        let Some(mappings) = stripe.spaces.get_mut(&space) else { return };
        *mappings -= 1;
        let gone = if *mappings == 0 { stripe.spaces.remove_entry(&space) } else { None };
        // The lock first, then the memory.
        drop(stripe);
        drop(gone);
    }

    /// Whether CPUs that run the address space may hold translations of any of the tables.
    pub fn has_joined(&self, space: u64) -> bool {
        self.stripes
            .get()
            .is_some_and(|stripes| stripes[space as usize % STRIPES].lock().spaces.get(&space).is_some())
    }
}
