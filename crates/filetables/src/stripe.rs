//! Stripes: the locks of a file's pieces.
//!
//! A piece belongs to the stripe of its number. Neighbouring pieces have different locks, and pieces that are empty cost
//! nothing. What a piece needs before it is changed (the piece itself, places for pages, room for the note of a table) is
//! allocated while no lock is held: [`FileTables::change_piece_with`](crate::FileTables) looks, lets the lock go, allocates, and looks again.
//! Under the lock a piece is linked into a tree or taken out of it, in O(log pieces) steps.

use alloc::vec::Vec;

use crate::addr::TABLE_ENTRIES;
use crate::error::OutOfMemory;
use crate::frame::Frame;
use crate::lock::Spin;
use crate::memory::{Leaf, Tree, vec_with_room};
use crate::piece::{Over, Piece};

/// Stripes of a file, made with its first page or first mapping.
pub(crate) const STRIPES: usize = if cfg!(roundtable_model) { 2 } else { 64 };

/// What one lock guards: every 64th piece of the file, and every 64th address space that is attached.
pub(crate) struct Stripe<P> {
    pub(crate) pieces: Tree<u64, Piece<P>>,
    /// Attached mappings by the id of their address space.
    pub(crate) spaces: Tree<u64, u64>,
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
pub(crate) struct Spare<P> {
    piece: Option<Leaf<u64, Piece<P>>>,
    places: Vec<Option<P>>,
    notes: Vec<Over>,
}

/// What was missing, to be allocated.
pub(crate) enum Missing {
    Piece,
    Places,
    Notes(usize),
}

impl<P: Frame> Spare<P> {
    pub(crate) fn new() -> Spare<P> {
        Spare { piece: None, places: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn allocate(&mut self, number: u64, missing: &Missing) -> Result<(), OutOfMemory> {
        match *missing {
            Missing::Piece => self.piece = Some(Leaf::try_new(number, Piece::new(number))?),
            Missing::Places => {
                self.places = vec_with_room(TABLE_ENTRIES)?;
                self.places.resize_with(TABLE_ENTRIES, || None);
            }
            Missing::Notes(room) => self.notes = vec_with_room(room)?,
        }
        Ok(())
    }

    /// Gives a piece what it needs, from what was allocated. Returns it, or what is missing still.
    pub(crate) fn provide<'s>(
        &mut self,
        stripe: &'s mut Stripe<P>,
        number: u64,
        need: Need,
    ) -> Result<&'s mut Piece<P>, Missing> {
        if stripe.pieces.get(&number).is_none() {
            let piece = self.piece.take().ok_or(Missing::Piece)?;
            self.piece = stripe.pieces.insert_entry(piece).err();
        }
        let piece = stripe.pieces.get_mut(&number).ok_or(Missing::Piece)?;
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
        Ok(piece)
    }
}
