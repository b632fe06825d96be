//! The content of a file, and what comes and goes in it.

use core::ops::Range;

use crate::error::InsertError;
use crate::frame::Frame;
use crate::lock::Spin;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::piece::{PIECE_PAGES, Piece};
use crate::stripe::{Need, STRIPES, Stripe};
use crate::sync::{Ordering, fence};
use crate::tables::FileTables;

/// Most pages that one call takes out of the content.
pub const REMOVED_AT_A_TIME: u64 = if cfg!(roundtable_model) { 2 } else { 32 };

/// Pieces that are looked at with one hold of a lock.
const PIECES_AT_A_TIME: usize = if cfg!(roundtable_model) { 2 } else { 64 };

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

    /// Shows `look` the pages of a range that are there, in order. It is called under a spin lock, so the range is short: at most
    /// [`REMOVED_AT_A_TIME`].
    pub fn each(&self, indices: Range<u64>, mut look: impl FnMut(u64, &P)) {
        debug_assert!(indices.end - indices.start <= REMOVED_AT_A_TIME);
        let mut at = indices.start;
        while at < indices.end {
            let number = at / PIECE_PAGES;
            let end = indices.end.min((number + 1).saturating_mul(PIECE_PAGES));
            self.with_piece(number, |piece| {
                for index in at..end {
                    if let Some(page) = piece.get(index) {
                        look(index, page);
                    }
                }
            });
            at = end;
        }
    }

    /// Changes what the owner notes with a page, if there is one, and shows it if it [is to be shown](Frame::is_shown) from now on. The page
    /// itself stays: tables show it. `change` is called under a spin lock.
    pub fn amend(&self, index: u64, change: impl FnOnce(&mut P)) {
        self.change_piece(index / PIECE_PAGES, |piece| {
            let Some(page) = piece.get_mut(index) else { return };
            let (frame, was_shown) = (page.frame(), page.is_shown());
            change(page);
            debug_assert!(page.frame() == frame, "a page changes under its entries");
            if !was_shown && index < self.end() {
                piece.show(&*self.machine, index);
            }
        });
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

    /// Clears the entries of a page that [is not to be shown](Frame::is_shown) any more; it stays in the content. Returns whether any table
    /// showed it: then TLBs of all who are attached may hold it until the [flush](FileTables::flush).
    pub fn hide(&self, index: u64) -> bool {
        self.with_piece(index / PIECE_PAGES, |piece| piece.hide(&*self.machine, index)).unwrap_or(false)
    }

    /// Puts a page in the place of one that [is not shown](Frame::is_shown) and [hidden](FileTables::hide), and shows it; returns the
    /// old one. Without a page there nothing happens.
    pub fn replace(&self, index: u64, page: P) -> Option<P> {
        let mut old = None;
        self.change_piece(index / PIECE_PAGES, |piece| {
            let Some(place) = piece.get_mut(index) else { return };
            debug_assert!(!place.is_shown(), "a page is replaced under its entries");
            old = Some(core::mem::replace(place, page));
            if index < self.end() {
                piece.show(&*self.machine, index);
            }
        });
        old
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
    pub fn remove(&self, indices: Range<u64>, taken: impl FnMut(u64, P)) -> Removed {
        self.remove_where(indices, |_| true, taken)
    }

    /// As [`FileTables::remove`], of the pages of which `goes` says yes; it is called under the same lock.
    pub fn remove_where(
        &self,
        indices: Range<u64>,
        goes: impl Fn(&P) -> bool,
        mut taken: impl FnMut(u64, P),
    ) -> Removed {
        debug_assert!(indices.end - indices.start <= REMOVED_AT_A_TIME);
        let mut removed = Removed { shown: false, pages: 0 };
        self.each_piece(indices, |piece, indices| {
            let mut next = piece.next(indices.start, indices.end);
            while let Some(index) = next {
                let goes = piece.get(index).is_some_and(&goes);
                if goes && !Mutant::RemovedButShown.is_on() {
                    removed.shown |= piece.hide(&*self.machine, index);
                }
                if goes && let Some(page) = piece.take(index) {
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
    fn each_piece(&self, indices: Range<u64>, mut work: impl FnMut(&mut Piece<P>, Range<u64>)) {
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

    /// The first index of the range that has a page of which `counts` says yes; it is called under a spin lock.
    pub fn next_where(&self, indices: Range<u64>, counts: impl Fn(&P) -> bool) -> Option<u64> {
        let mut at = indices.start;
        while let Some(index) = self.next(at..indices.end) {
            // So many with one hold of the lock.
            at = indices.end.min((index - index % REMOVED_AT_A_TIME).saturating_add(REMOVED_AT_A_TIME));
            let is_wanted = |piece: &Piece<P>, index| piece.get(index).is_some_and(&counts);
            let found = self.with_piece(index / PIECE_PAGES, |piece| {
                let mut next = Some(index);
                core::iter::from_fn(|| {
                    let index = next?;
                    next = piece.next(index + 1, at);
                    Some(index)
                })
                .find(|index| is_wanted(piece, *index))
            });
            if let Some(found) = found.flatten() {
                return Some(found);
            }
            self.machine.give_way();
        }
        None
    }

    /// The first index from `from` on that has no page, or one of which `counts` says no; it is called under a spin lock.
    pub fn next_not(&self, from: u64, counts: impl Fn(&P) -> bool) -> u64 {
        let mut at = from;
        loop {
            // So many with one hold of the lock.
            let end = (at - at % REMOVED_AT_A_TIME).saturating_add(REMOVED_AT_A_TIME);
            let is_other = |piece: &Piece<P>, index| !piece.get(index).is_some_and(&counts);
            let found = self
                .with_piece(at / PIECE_PAGES, |piece| (at..end).find(|index| is_other(piece, *index)))
                .unwrap_or(Some(at));
            if let Some(found) = found {
                return found;
            }
            at = end;
            self.machine.give_way();
        }
    }

    /// A piece from `number` on that may have pages, with none that has in front of it.
    fn next_piece(&self, number: u64) -> Option<u64> {
        let stripes = self.stripes.get()?;
        let in_stripe = |stripe: &Spin<M, Stripe<P>>| {
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
}
