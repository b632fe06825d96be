//! Stripes: the locks of a file's pieces.
//!
//! A piece belongs to the stripe of its number. Neighbouring pieces have different locks, and pieces that are empty cost
//! nothing. What a piece needs before it is changed (places for pages, room for the note of a table) is allocated while no
//! lock is held: [`FileTables::piece_with`] looks, lets the lock go, allocates, and looks again.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};

use crate::addr::TABLE_ENTRIES;
use crate::error::OutOfMemory;
use crate::machine::Machine;
use crate::memory::{Boxed, Shelf, vec_with_room};
use crate::piece::{Over, Piece};
use crate::sync::{Ordering, Spin, SpinGuard, fence};
use crate::tables::{FileTables, Frame};

/// Stripes of a file, made with its first page or first mapping.
pub(crate) const STRIPES: usize = if cfg!(roundtable_model) { 2 } else { 64 };

/// What one lock guards: every 64th piece of the file, and every 64th address space that is attached.
pub(crate) struct Stripe<P> {
    pub(crate) pieces: Shelf<u64, Boxed<Piece<P>>>,
    /// Attached mappings by the id of their address space.
    pub(crate) spaces: Shelf<u64, u64>,
}

pub(crate) type Stripes<M, P> = [Spin<M, Stripe<P>>; STRIPES];

/// What a piece is to have before work on it begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Places for its pages.
    Places,
    /// Room for the note of one more table.
    Note,
}

/// Memory that was allocated for a piece, or is left over from one. Freed when no lock is held.
struct Spare<P> {
    shelf: Vec<(u64, Boxed<Piece<P>>)>,
    piece: Option<Boxed<Piece<P>>>,
    places: Vec<Option<P>>,
    notes: Vec<Over>,
}

/// What was missing, to be allocated.
enum Missing {
    Shelf(usize),
    Piece,
    Places,
    Notes(usize),
}

impl<P: Frame> Spare<P> {
    fn new() -> Spare<P> {
        Spare { shelf: Vec::new(), piece: None, places: Vec::new(), notes: Vec::new() }
    }

    fn allocate(&mut self, number: u64, missing: &Missing) -> Result<(), OutOfMemory> {
        match *missing {
            Missing::Shelf(room) => self.shelf = vec_with_room(room)?,
            Missing::Piece => self.piece = Some(Boxed::new(Piece::new(number))?),
            Missing::Places => {
                self.places = vec_with_room(TABLE_ENTRIES)?;
                self.places.resize_with(TABLE_ENTRIES, || None);
            }
            Missing::Notes(room) => self.notes = vec_with_room(room)?,
        }
        Ok(())
    }

    /// Gives a piece what it needs, from what was allocated. Returns its place, or what is missing still.
    fn provide(&mut self, stripe: &mut Stripe<P>, number: u64, need: Need) -> Result<usize, Missing> {
        if stripe.pieces.find(number).is_none() {
            if let Some(room) = stripe.pieces.wants() {
                if self.shelf.capacity() < room {
                    return Err(Missing::Shelf(room));
                }
                self.shelf = stripe.pieces.move_to(core::mem::take(&mut self.shelf));
            }
            let piece = self.piece.take().ok_or(Missing::Piece)?;
            stripe.pieces.insert(number, piece);
        }
        let place = stripe.pieces.find(number).ok_or(Missing::Piece)?;
        let piece = stripe.pieces.at_mut(place);
        match need {
            Need::Places if piece.has_places() => {}
            Need::Places if self.places.is_empty() => return Err(Missing::Places),
            Need::Places => piece.set_places(core::mem::take(&mut self.places)),
            Need::Note => {
                if let Some(room) = piece.wants() {
                    if self.notes.capacity() < room {
                        return Err(Missing::Notes(room));
                    }
                    self.notes = piece.move_to(core::mem::take(&mut self.notes));
                }
            }
        }
        Ok(place)
    }
}

/// A piece, with the lock of its stripe held.
pub(crate) struct PieceGuard<'f, M: Machine, P: Frame> {
    // Dropped first: the memory below is freed without the lock.
    stripe: SpinGuard<'f, M, Stripe<P>>,
    number: u64,
    /// Where the piece is in the stripe. Only the guard could take it out.
    place: usize,
    _spare: Spare<P>,
}

impl<M: Machine, P: Frame> Deref for PieceGuard<'_, M, P> {
    type Target = Piece<P>;

    fn deref(&self) -> &Piece<P> {
        self.stripe.pieces.at(self.place)
    }
}

impl<M: Machine, P: Frame> DerefMut for PieceGuard<'_, M, P> {
    fn deref_mut(&mut self) -> &mut Piece<P> {
        self.stripe.pieces.at_mut(self.place)
    }
}

impl<M: Machine, P: Frame> PieceGuard<'_, M, P> {
    /// Lets the piece go, and its memory if it is empty.
    pub(crate) fn settle(mut self) {
        let gone = if self.is_empty() { self.stripe.pieces.remove(self.number) } else { None };
        let emptied = self.stripe.pieces.is_empty() && gone.is_some();
        let shelf =
            if emptied { core::mem::replace(&mut self.stripe.pieces, Shelf::new()) } else { Shelf::new() };
        // The lock first, then the memory.
        drop(self);
        drop((gone, shelf));
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
            let empty = || Spin::<M, _>::new(Stripe { pieces: Shelf::new(), spaces: Shelf::new() });
            stripes.resize_with(STRIPES, empty);
            let stripes: Result<Box<Stripes<M, P>>, _> = stripes.into_boxed_slice().try_into();
            stripes.map_err(|_| OutOfMemory)
        });
        // See `FileTables::set_end`.
        fence(Ordering::SeqCst);
        made
    }

    /// The piece of a number, if there is one.
    pub(crate) fn piece(&self, number: u64) -> Option<PieceGuard<'_, M, P>> {
        let stripe = self.stripes.get()?[number as usize % STRIPES].lock();
        let place = stripe.pieces.find(number)?;
        Some(PieceGuard { stripe, number, place, _spare: Spare::new() })
    }

    /// The piece of a number, with what it is to have; made on need.
    pub(crate) fn piece_with(&self, number: u64, need: Need) -> Result<PieceGuard<'_, M, P>, OutOfMemory> {
        let lock = &self.stripes()?[number as usize % STRIPES];
        let mut spare = Spare::new();
        loop {
            let mut stripe = lock.lock();
            match spare.provide(&mut stripe, number, need) {
                Ok(place) => return Ok(PieceGuard { stripe, number, place, _spare: spare }),
                Err(missing) => {
                    let made_empty = stripe.pieces.get(number).is_some_and(|piece| piece.is_empty());
                    drop(stripe);
                    if let Err(error) = spare.allocate(number, &missing) {
                        if made_empty && let Some(piece) = self.piece(number) {
                            piece.settle();
                        }
                        return Err(error);
                    }
                }
            }
        }
    }
}
