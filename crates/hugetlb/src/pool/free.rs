//! The free pages of a pool, by memory node, in chunks of a page of memory each.
//!
//! Room is made ahead, outside of the pool lock, so under the lock nothing is allocated and nothing is copied: a page comes and
//! goes in a few steps, however many there are.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::addr::PhysAddr;
use crate::error::OutOfMemory;
use crate::node::MAX_NODES;

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

/// Free frames of one node; what came last goes first.
#[derive(Default)]
struct OfNode {
    /// Chunks with frames; all but the first are full.
    used: Link,
    len: u64,
}

/// Free frames.
pub(super) struct FreeList {
    nodes: [OfNode; MAX_NODES],
    /// Empty chunks.
    spare: Link,
    len: u64,
    /// Frames that all chunks together can have.
    capacity: u64,
    /// What of that the nodes but the first may leave unused.
    unusable: u64,
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
    /// An empty one. Each node has a chunk that is not full at the most.
    pub(super) fn new(nodes: usize) -> FreeList {
        let unusable = (nodes.clamp(1, MAX_NODES) as u64 - 1) * CHUNK as u64;
        FreeList { nodes: Default::default(), spare: None, len: 0, capacity: 0, unusable }
    }

    /// How many frames of a node there are.
    pub(super) fn len_of(&self, node: usize) -> u64 {
        self.nodes[node % MAX_NODES].len
    }

    /// How many frames there are.
    #[inline]
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How many frames there can be.
    #[inline]
    pub(super) fn room(&self) -> u64 {
        self.capacity.saturating_sub(self.unusable)
    }

    /// Takes an empty chunk.
    pub(super) fn add_room(&mut self, chunk: Box<Chunk>) {
        push(&mut self.spare, chunk);
        self.capacity += CHUNK as u64;
    }

    /// Gives a chunk up that is not needed for so many frames; to be dropped outside of the lock.
    pub(super) fn take_room(&mut self, needed: u64) -> Option<Box<Chunk>> {
        if self.room().checked_sub(CHUNK as u64)? < needed {
            return None;
        }
        let chunk = pop(&mut self.spare)?;
        self.capacity -= CHUNK as u64;
        Some(chunk)
    }

    /// Adds a frame of a node, for which there is room.
    #[inline]
    pub(super) fn push(&mut self, node: usize, frame: PhysAddr) {
        debug_assert!(self.len < self.room(), "no room for a free page");
        let list = &mut self.nodes[node % MAX_NODES];
        if list.used.as_ref().is_none_or(|chunk| chunk.frames.len() == CHUNK)
            && let Some(chunk) = pop(&mut self.spare)
        {
            push(&mut list.used, chunk);
        }
        if let Some(chunk) = &mut list.used {
            chunk.frames.push(frame);
            list.len += 1;
            self.len += 1;
        }
    }

    /// Takes a frame of a node out.
    #[inline]
    pub(super) fn pop(&mut self, node: usize) -> Option<PhysAddr> {
        let list = &mut self.nodes[node % MAX_NODES];
        let chunk = list.used.as_mut()?;
        let frame = chunk.frames.pop()?;
        list.len -= 1;
        self.len -= 1;
        if chunk.frames.is_empty()
            && let Some(empty) = pop(&mut list.used)
        {
            push(&mut self.spare, empty);
        }
        Some(frame)
    }

    /// The frames of chunk `number`.
    pub(super) fn chunk(&self, number: usize) -> Option<&[PhysAddr]> {
        let of_node =
            |list: &'_ OfNode| core::iter::successors(list.used.as_ref(), |chunk| chunk.next.as_ref());
        let mut chunks = self.nodes.iter().flat_map(of_node);
        chunks.nth(number).map(|chunk| &*chunk.frames)
    }
}

impl Drop for FreeList {
    fn drop(&mut self) {
        // One by one: each chunk that dropped the next would need a stack as long as the list.
        for list in &mut self.nodes {
            while pop(&mut list.used).is_some() {}
        }
        while pop(&mut self.spare).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_in_reverse_order_and_room_is_given_up_when_it_is_not_needed() {
        let mut list = FreeList::new(1);
        assert!(list.take_room(0).is_none());
        for number in 0..5000u64 {
            if list.room() == number {
                list.add_room(Chunk::new().unwrap());
            }
            list.push(0, PhysAddr(number));
        }
        assert_eq!((list.len(), list.room()), (5000, 5120));
        let listed: usize = (0..).map_while(|number| list.chunk(number)).map(<[_]>::len).sum();
        assert_eq!(listed, 5000);
        assert!(list.take_room(5000).is_none());
        for number in (3000..5000).rev() {
            assert_eq!(list.pop(0), Some(PhysAddr(number)));
        }
        // The pool is to have 4000 pages.
        assert_eq!(core::iter::from_fn(|| list.take_room(4000)).count(), 2);
        assert_eq!((list.len(), list.room()), (3000, 4096));
        for number in (0..3000).rev() {
            assert_eq!(list.pop(0), Some(PhysAddr(number)));
        }
        assert_eq!(list.pop(0), None);
        list.push(0, PhysAddr(7));
        assert_eq!(list.pop(0), Some(PhysAddr(7)));
    }

    #[test]
    fn nodes_have_frames_of_their_own_and_room_together() {
        let mut list = FreeList::new(3);
        for number in 0..4000u64 {
            while list.room() == number {
                list.add_room(Chunk::new().unwrap());
            }
            // As uneven as can be, and full where the room ends.
            list.push(if number < 2 { number as usize } else { 2 }, PhysAddr(number));
        }
        assert_eq!([0, 1, 2, 5].map(|node| list.len_of(node)), [1, 1, 3998, 0]);
        let listed: usize = (0..).map_while(|number| list.chunk(number)).map(<[_]>::len).sum();
        assert_eq!((listed, list.len()), (4000, 4000));
        assert_eq!((list.pop(1), list.pop(1), list.pop(2)), (Some(PhysAddr(1)), None, Some(PhysAddr(3999))));
        assert!(list.take_room(3998).is_none());
        while list.pop(2).is_some() {}
        assert!(list.take_room(1).is_some());
    }
}
