//! The slots of a descriptor table, in pieces: a table that grows moves none of them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::file::File;
use crate::errno::Result;
use crate::memory::fallible;

/// A descriptor that is in use.
pub struct Slot {
    pub file: Arc<File>,
    pub close_on_exec: bool,
}

/// Slots of a piece: 512 bytes. Most processes have fewer descriptors, and each fork copies a piece as a whole.
pub const PIECE: usize = 32;

type Piece = Box<[Option<Slot>; PIECE]>;

/// The slots by descriptor.
#[derive(Default)]
pub struct Slots(Vec<Option<Piece>>);

impl Slots {
    /// None.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// No descriptor from here on is in use.
    pub fn len(&self) -> usize {
        self.0.len() * PIECE
    }

    /// Bytes that the pieces take.
    pub fn bytes(&self) -> usize {
        self.0.iter().flatten().count() * size_of::<[Option<Slot>; PIECE]>()
    }

    /// Gives the memory of the last piece back, and what is in it; false when there is none. A large table is freed in
    /// such steps.
    pub fn drop_last_piece(&mut self) -> bool {
        self.0.pop().is_some()
    }

    pub fn get(&self, fd: usize) -> Option<&Slot> {
        self.0.get(fd / PIECE)?.as_ref()?[fd % PIECE].as_ref()
    }

    pub fn get_mut(&mut self, fd: usize) -> Option<&mut Slot> {
        self.0.get_mut(fd / PIECE)?.as_mut()?[fd % PIECE].as_mut()
    }

    pub fn take(&mut self, fd: usize) -> Option<Slot> {
        self.0.get_mut(fd / PIECE)?.as_mut()?[fd % PIECE].take()
    }

    /// Puts the slot in, and gives what was there. Without memory for it the slot stays with the caller.
    pub fn put(&mut self, fd: usize, slot: &mut Option<Slot>) -> Result<Option<Slot>> {
        let piece = fd / PIECE;
        if piece >= self.0.len() {
            let more = piece + 1 - self.0.len();
            fallible::reserve(&mut self.0, more)?;
            self.0.resize_with(piece + 1, || None);
        }
        let piece = match &mut self.0[piece] {
            Some(piece) => piece,
            none => none.insert(fallible::boxed([const { None }; PIECE])?),
        };
        Ok(core::mem::replace(&mut piece[fd % PIECE], slot.take()))
    }

    /// Copies the slots of a piece into an empty table: the same open files.
    pub fn copy_piece(&self, index: usize, copy: &mut Slots) -> Result<()> {
        let Some(piece) = self.0.get(index).and_then(Option::as_ref) else { return Ok(()) };
        if piece.iter().all(Option::is_none) {
            return Ok(());
        }
        if index >= copy.0.len() {
            let more = index + 1 - copy.0.len();
            fallible::reserve(&mut copy.0, more)?;
            copy.0.resize_with(index + 1, || None);
        }
        let mut fresh: Piece = fallible::boxed([const { None }; PIECE])?;
        for (fresh, old) in fresh.iter_mut().zip(piece.iter()) {
            *fresh = old.as_ref().map(|s| Slot { file: s.file.clone(), close_on_exec: s.close_on_exec });
        }
        copy.0[index] = Some(fresh);
        Ok(())
    }

    /// The first descriptor in use from `from` up for which `test` says yes; looks at a piece at most. An error is
    /// where to go on.
    pub fn find(&self, from: usize, test: impl Fn(&Slot) -> bool) -> core::result::Result<usize, usize> {
        let end = (from / PIECE + 1) * PIECE;
        let Some(piece) = self.0.get(from / PIECE).and_then(Option::as_ref) else { return Err(end) };
        let found = piece[from % PIECE..].iter().position(|slot| slot.as_ref().is_some_and(&test));
        found.map(|index| from + index).ok_or(end)
    }
}
