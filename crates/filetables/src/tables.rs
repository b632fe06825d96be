//! What a file is made of: its pieces behind the locks of their stripes, and the tables above.

use alloc::boxed::Box;
use core::fmt;

use once_cell::race::OnceBox;

use crate::addr::Level;
use crate::counts::{Counts, Totals};
use crate::error::OutOfMemory;
use crate::frame::Frame;
use crate::lock::Spin;
use crate::machine::Machine;
use crate::memory::{Tree, vec_with_room};
use crate::piece::Piece;
use crate::stripe::{Need, STRIPES, Spare, Stripe, Stripes};
use crate::sync::{Arc, AtomicU64, Ordering, Tally, fence};
use crate::uppers::Uppers;

/// The pages of a file by index, and the page tables that show them.
///
/// See the [crate's page](crate) for what it guarantees. A value without pages and mappings has no memory but its own.
pub struct FileTables<M: Machine, P: Frame> {
    pub(crate) machine: Arc<M>,
    pub(crate) leaf: Level,
    /// The first index that does not lie in front of the file's end.
    pub(crate) end: AtomicU64,
    pub(crate) pages: Tally,
    pub(crate) stripes: OnceBox<Stripes<M, P>>,
    pub(crate) uppers: Uppers<M>,
    counts: Counts,
    pub(crate) totals: Arc<Totals>,
}

impl<M: Machine, P: Frame> fmt::Debug for FileTables<M, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileTables")
            .field("leaf", &self.leaf)
            .field("end", &self.end)
            .field("pages", &self.pages)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl<M: Machine, P: Frame + Clone> FileTables<M, P> {
    /// Content without pages, which ends at index 0. The leaves of its tables are of `leaf`: the size of the pages.
    /// `totals` are counted along: those of all files of an owner.
    pub fn new(machine: Arc<M>, leaf: Level, totals: Arc<Totals>) -> FileTables<M, P> {
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

    pub(crate) fn count_table(&self, level: Level, comes: bool) {
        // Relaxed, here and below: numbers to show. To subtract one is to add the largest.
        let change = if comes { 1 } else { u64::MAX };
        self.counts.tables.fetch_add(change, Ordering::Relaxed);
        self.totals.add_tables(level, change);
    }

    /// An attachment to a table of `level` that reaches so many tables comes or goes.
    pub(crate) fn count_attachment(&self, level: Level, comes: bool, reaches: u64) {
        let change = if comes { 1 } else { u64::MAX };
        self.counts.attachments.fetch_add(change, Ordering::Relaxed);
        self.totals.add_attachments(level, change);
        self.count_reached(reaches.wrapping_mul(change));
    }

    pub(crate) fn count_reached(&self, change: u64) {
        for counts in [&self.counts, self.totals.all()] {
            counts.reached.fetch_add(change, Ordering::Relaxed);
        }
    }
}

impl<M: Machine, P: Frame> FileTables<M, P> {
    /// The stripes; made on need.
    pub(crate) fn stripes(&self) -> Result<&Stripes<M, P>, OutOfMemory> {
        if let Some(stripes) = self.stripes.get() {
            return Ok(stripes);
        }
        let made = self.stripes.get_or_try_init(|| {
            let mut stripes = vec_with_room(STRIPES)?;
            let empty = || Spin::<M, _>::new(Stripe { pieces: Tree::new(), spaces: Tree::new() });
            stripes.resize_with(STRIPES, empty);
            let stripes: Result<Box<Stripes<M, P>>, _> = stripes.into_boxed_slice().try_into();
            stripes.map_err(|_| OutOfMemory)
        });
        // See `FileTables::set_end`.
        fence(Ordering::SeqCst);
        made
    }

    /// Shows `work` the piece of a number, under its lock; `None` when there is none.
    pub(crate) fn with_piece<R>(&self, number: u64, work: impl FnOnce(&Piece<P>) -> R) -> Option<R> {
        let stripe = self.stripes.get()?[number as usize % STRIPES].lock();
        stripe.pieces.get(&number).map(work)
    }

    /// As [`FileTables::with_piece`], to change the piece. It goes if it is empty afterwards.
    pub(crate) fn change_piece<R>(&self, number: u64, work: impl FnOnce(&mut Piece<P>) -> R) -> Option<R> {
        let mut stripe = self.stripes.get()?[number as usize % STRIPES].lock();
        let piece = stripe.pieces.get_mut(&number)?;
        let result = work(piece);
        let idle = piece.idle_places();
        let gone = if piece.is_empty() { stripe.pieces.remove_entry(&number) } else { None };
        // The lock first, then the memory.
        drop(stripe);
        drop((gone, idle));
        Some(result)
    }

    /// As [`FileTables::change_piece`], for a piece with what it is to have; made on need.
    pub(crate) fn change_piece_with<R>(
        &self,
        number: u64,
        need: Need,
        work: impl FnOnce(&mut Piece<P>) -> R,
    ) -> Result<R, OutOfMemory> {
        let lock = &self.stripes()?[number as usize % STRIPES];
        let mut spare = Spare::new();
        loop {
            let mut stripe = lock.lock();
            let missing = match spare.provide(&mut stripe, number, need) {
                Ok(piece) => {
                    let result = work(piece);
                    let idle = piece.idle_places();
                    let gone = if piece.is_empty() { stripe.pieces.remove_entry(&number) } else { None };
                    // The lock first, then the memory.
                    drop(stripe);
                    drop((gone, idle));
                    return Ok(result);
                }
                Err(missing) => missing,
            };
            drop(stripe);
            if let Err(error) = spare.allocate(number, &missing) {
                // It may have been made for this, and is empty.
                self.change_piece(number, |_| ());
                return Err(error);
            }
        }
    }
}
