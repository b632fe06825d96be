//! The free pages of a pool, in chunks of a page of memory each.
//!
//! Room is made ahead, outside of the pool lock, so under the lock nothing is allocated and nothing is copied: a page comes and
//! goes in a few steps, however many there are.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::addr::PhysAddr;
use crate::error::OutOfMemory;

/// Frames of a chunk.
pub(super) const CHUNK: usize = if cfg!(roundtable_model) { 2 } else { 512 };

/// Room for frames.
pub(super) struct Chunk {
    frames: Vec<PhysAddr>,
    next: Link,
}

type Link = Option<Box<Chunk>>;

impl Chunk {
    /// An empty one.
    pub(super) fn new() -> Result<Box<Chunk>, OutOfMemory> {
        let mut frames = Vec::new();
        frames.try_reserve_exact(CHUNK).map_err(|_| OutOfMemory)?;
        Ok(Box::new(Chunk { frames, next: None }))
    }
}

/// Free frames; what came last goes first.
#[derive(Default)]
pub(super) struct FreeList {
    /// Chunks with frames; all but the first are full.
    used: Link,
    /// Empty chunks.
    spare: Link,
    len: u64,
    room: u64,
}

#[cold]
fn push(list: &mut Link, mut chunk: Box<Chunk>) {
    chunk.next = list.take();
    *list = Some(chunk);
}

#[cold]
fn pop(list: &mut Link) -> Link {
    let mut chunk = list.take()?;
    *list = chunk.next.take();
    Some(chunk)
}

impl FreeList {
    /// How many frames there are.
    #[inline]
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How many frames there can be.
    #[inline]
    pub(super) fn room(&self) -> u64 {
        self.room
    }

    /// Takes an empty chunk.
    pub(super) fn add_room(&mut self, chunk: Box<Chunk>) {
        push(&mut self.spare, chunk);
        self.room += CHUNK as u64;
    }

    /// Gives a chunk up that is not needed for so many frames; to be dropped outside of the lock.
    pub(super) fn take_room(&mut self, needed: u64) -> Option<Box<Chunk>> {
        if self.room.checked_sub(CHUNK as u64)? < needed {
            return None;
        }
        let chunk = pop(&mut self.spare)?;
        self.room -= CHUNK as u64;
        Some(chunk)
    }

    /// Adds a frame, for which there is room.
    #[inline]
    pub(super) fn push(&mut self, frame: PhysAddr) {
        debug_assert!(self.len < self.room, "no room for a free page");
        if self.used.as_ref().is_none_or(|chunk| chunk.frames.len() == CHUNK)
            && let Some(chunk) = pop(&mut self.spare)
        {
            push(&mut self.used, chunk);
        }
        if let Some(chunk) = &mut self.used {
            chunk.frames.push(frame);
            self.len += 1;
        }
    }

    /// Takes a frame out.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<PhysAddr> {
        let chunk = self.used.as_mut()?;
        let frame = chunk.frames.pop()?;
        self.len -= 1;
        if chunk.frames.is_empty()
            && let Some(empty) = pop(&mut self.used)
        {
            push(&mut self.spare, empty);
        }
        Some(frame)
    }

    /// The frames of chunk `number`.
    pub(super) fn chunk(&self, number: usize) -> Option<&[PhysAddr]> {
        let mut chunks = core::iter::successors(self.used.as_ref(), |chunk| chunk.next.as_ref());
        chunks.nth(number).map(|chunk| &*chunk.frames)
    }
}

impl Drop for FreeList {
    fn drop(&mut self) {
        // One by one: each chunk that dropped the next would need a stack as long as the list.
        while pop(&mut self.used).is_some() || pop(&mut self.spare).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_in_reverse_order_and_room_is_given_up_when_it_is_not_needed() {
        let mut list = FreeList::default();
        assert!(list.take_room(0).is_none());
        for number in 0..5000u64 {
            if list.room() == number {
                list.add_room(Chunk::new().unwrap());
            }
            list.push(PhysAddr(number));
        }
        assert_eq!((list.len(), list.room()), (5000, 5120));
        let listed: usize = (0..).map_while(|number| list.chunk(number)).map(<[_]>::len).sum();
        assert_eq!(listed, 5000);
        assert!(list.take_room(5000).is_none());
        for number in (3000..5000).rev() {
            assert_eq!(list.pop(), Some(PhysAddr(number)));
        }
        // The pool is to have 4000 pages.
        assert_eq!(core::iter::from_fn(|| list.take_room(4000)).count(), 2);
        assert_eq!((list.len(), list.room()), (3000, 4096));
        for number in (0..3000).rev() {
            assert_eq!(list.pop(), Some(PhysAddr(number)));
        }
        assert_eq!(list.pop(), None);
        list.push(PhysAddr(7));
        assert_eq!(list.pop(), Some(PhysAddr(7)));
    }
}
