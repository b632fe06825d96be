//! The private pages of a mapping: its copies, and the promises that it has used up.
//!
//! Both are in one tree by page index, behind a spin lock. An entry is allocated before the lock is taken and freed
//! after it, and what goes through many entries does so some at a time.

use core::ops::Range;

use summary_tree::{Entry, SummaryTree};

use super::Share;
use super::few::{AT_A_TIME, Few, few};
use crate::addr::PageIndex;
use crate::error::OutOfMemory;
use crate::machine::Machine;
use crate::pool::Page;
use crate::sync::{Arc, Spin};

/// What is known of a page index. There is an entry if either says something.
pub(crate) struct Known<M: Machine> {
    /// The mapping's own page; after a fork several mappings have a share of one page.
    copy: Option<Share<M>>,
    /// The promise of the index was used up.
    used: bool,
}

impl<M: Machine> Known<M> {
    fn is_nothing(&self) -> bool {
        self.copy.is_none() && !self.used
    }
}

/// An entry outside of the tree.
pub(crate) type Room<M> = Entry<PageIndex, Known<M>, ()>;

/// What only a `MAP_PRIVATE` mapping has.
pub(crate) struct Private<M: Machine> {
    known: SummaryTree<PageIndex, Known<M>, ()>,
    /// Indices whose promise was used up.
    used: u64,
    /// The promise is this mapping's: it was made at mmap, and no fork inherits it. Who pays for all its pages.
    pub(crate) promise: Option<M::Payer>,
    /// The owner took a page away for want of another; what is absent here stays so (`HPAGE_RESV_UNMAPPED`).
    pub(crate) robbed: bool,
}

impl<M: Machine> Private<M> {
    /// No copies.
    pub(crate) fn new(promise: Option<M::Payer>, robbed: bool) -> Private<M> {
        Private { known: SummaryTree::new(), used: 0, promise, robbed }
    }

    /// Whether the promise is this mapping's.
    pub(crate) fn is_owner(&self) -> bool {
        self.promise.is_some()
    }

    /// Whether there is no copy, and no promise was used up.
    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Indices whose promise was used up.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// The copy of an index.
    pub(crate) fn copy(&self, index: PageIndex) -> Option<&Share<M>> {
        self.known.get(&index)?.copy.as_ref()
    }

    /// Whether [`Private::set_copy`] or [`Private::use_promise`] would need an entry for the index.
    pub(crate) fn wants_room(&self, index: PageIndex) -> bool {
        self.known.get(&index).is_none()
    }

    /// Memory for what is to be known of an index.
    pub(crate) fn room(machine: &M, index: PageIndex) -> Result<Room<M>, OutOfMemory> {
        machine.take_step()?;
        Room::try_new(index, Known { copy: None, used: false }).map_err(|_| OutOfMemory)
    }

    /// What is known of an index, to change it; `room` is used if nothing is.
    fn at(&mut self, index: PageIndex, room: &mut Option<Room<M>>) -> Option<&mut Known<M>> {
        if self.known.get(&index).is_none()
            && let Some(room) = room.take()
        {
            // It is the entry of this index, and there is none.
            let _ = self.known.insert_entry(room);
        }
        self.known.get_mut(&index)
    }

    /// Uses the mapping's promise for an index up, if it has one.
    pub(crate) fn use_promise(&mut self, index: PageIndex, room: &mut Option<Room<M>>) -> bool {
        if !self.is_owner() {
            return false;
        }
        match self.at(index, room) {
            Some(known) if !known.used => {
                known.used = true;
                self.used += 1;
                true
            }
            _ => false,
        }
    }

    /// The promise was not used up after all. What comes back is freed outside of the lock.
    pub(crate) fn return_promise(&mut self, index: PageIndex) -> Option<Room<M>> {
        let known = self.known.get_mut(&index).filter(|known| known.used)?;
        known.used = false;
        self.used -= 1;
        if known.is_nothing() { self.known.remove_entry(&index) } else { None }
    }

    /// Sets the copy of an index; gives back the one that it had.
    pub(crate) fn set_copy(
        &mut self,
        index: PageIndex,
        share: Share<M>,
        room: &mut Option<Room<M>>,
    ) -> Option<Share<M>> {
        let known = self.at(index, room);
        debug_assert!(known.is_some(), "room for an entry was made before");
        known?.copy.replace(share)
    }

    /// Puts another page in the place of a copy, if it is the one that the mapping has. Gives the old share back.
    pub(crate) fn exchange(
        &mut self,
        index: PageIndex,
        old: &Arc<Page<M>>,
        new: &Arc<Page<M>>,
    ) -> Option<Share<M>> {
        let copy = self.known.get_mut(&index)?.copy.as_mut()?;
        Arc::ptr_eq(copy.page(), old).then(|| core::mem::replace(copy, Share::new(new.clone())))
    }

    /// Gives promises back to copies of the range that the mapping has alone. Returns where to go on, if it did not
    /// come to the end.
    pub(crate) fn restore_promises(&mut self, indices: &Range<PageIndex>) -> Option<PageIndex> {
        let Private { known, used, .. } = self;
        let mut looks = 0;
        let stopped = known.find_from_mut(&indices.start, |index, known| {
            if *index >= indices.end {
                return Some(None);
            }
            if looks == AT_A_TIME {
                return Some(Some(*index));
            }
            looks += 1;
            // A relative that goes away meanwhile came too late. The mapping lock keeps forks out.
            if known.used
                && let Some(share) = known.copy.as_ref().filter(|share| share.is_sole())
                // The promise went with a page that is broken.
                && !share.page().is_broken()
            {
                share.page().restore();
                known.used = false;
                *used -= 1;
            }
            None
        });
        stopped.flatten()
    }

    /// Puts shares for a child into `shares`, of the copies from an index on. Returns where to go on, if it did not
    /// come to the end.
    fn share_copies(&self, from: PageIndex, shares: &mut Few<(PageIndex, Share<M>)>) -> Option<PageIndex> {
        let mut places = shares.iter_mut();
        self.known.find_from(&from, |index, known| {
            let Some(copy) = &known.copy else { return None };
            let Some(place) = places.next() else { return Some(*index) };
            *place = Some((*index, copy.fork()));
            None
        })
    }

    /// Adds an entry of another mapping.
    fn take_over(&mut self, room: Room<M>, used: bool) {
        self.used += u64::from(used);
        let added = self.known.insert_entry(room);
        debug_assert!(added.is_ok(), "two mappings have no index in common");
    }
}

/// Takes the copies of some indices of the range out, into `taken`. Returns where to go on, if it did not come to the
/// end.
pub(crate) fn take_copies<M: Machine>(
    private: &Spin<M, Private<M>>,
    indices: Range<PageIndex>,
    taken: &mut Few<Share<M>>,
) -> Option<PageIndex> {
    // Freed after the lock.
    let mut emptied = few();
    let mut next = indices.start;
    let mut private = private.lock();
    for (taken, emptied) in taken.iter_mut().zip(&mut emptied) {
        let found = private.known.find_from(&next, |index, _| Some(*index));
        let index = found.filter(|index| *index < indices.end)?;
        let known = private.known.get_mut(&index)?;
        *taken = known.copy.take();
        if known.is_nothing() {
            *emptied = private.known.remove_entry(&index);
        }
        next = index + 1;
    }
    Some(next)
}

/// Takes all out that is known of some indices from `from` on, with whether their promises were used up. False when
/// there is no more.
fn take_some<M: Machine>(
    private: &Spin<M, Private<M>>,
    from: PageIndex,
    taken: &mut Few<(Room<M>, bool)>,
) -> bool {
    let mut private = private.lock();
    for place in taken {
        let next = private.known.find_from(&from, |index, known| Some((*index, known.used)));
        let Some((index, used)) = next else { return false };
        private.used -= u64::from(used);
        *place = private.known.remove_entry(&index).map(|room| (room, used));
    }
    true
}

/// Moves what is known of the indices from `from` on to a mapping that nobody else knows.
pub(crate) fn split_off<M: Machine>(
    machine: &M,
    private: &Spin<M, Private<M>>,
    from: PageIndex,
    upper: &Spin<M, Private<M>>,
) {
    loop {
        let mut some = few();
        let more = take_some(private, from, &mut some);
        let mut upper = upper.lock();
        some.into_iter().flatten().for_each(|(room, used)| upper.take_over(room, used));
        drop(upper);
        if !more {
            return;
        }
        machine.give_way();
    }
}

/// Forgets all: of a mapping that has no copies any more and goes away.
pub(crate) fn forget<M: Machine>(machine: &M, private: &Spin<M, Private<M>>) {
    while take_some(private, PageIndex(0), &mut few()) {
        machine.give_way();
    }
}

/// What a child has of the copies at first: a share of each, but of those that are `leaving`.
pub(crate) fn fork<M: Machine>(
    machine: &M,
    private: &Spin<M, Private<M>>,
    leaving: &Range<u64>,
) -> Result<Private<M>, OutOfMemory> {
    let mut child = Private::new(None, private.lock().robbed);
    let mut next = Some(PageIndex(0));
    while let Some(from) = next {
        let mut some = few();
        next = private.lock().share_copies(from, &mut some);
        if some[0].is_some() {
            machine.take_step()?;
        }
        for (index, share) in some.into_iter().flatten().filter(|(index, _)| !leaving.contains(&index.0)) {
            let known = Known { copy: Some(share), used: false };
            child.take_over(Room::try_new(index, known).map_err(|_| OutOfMemory)?, false);
        }
    }
    Ok(child)
}
