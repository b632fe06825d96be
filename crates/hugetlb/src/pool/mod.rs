//! The pool of huge pages of one size: counts, reservations, taking and returning.
//!
//! The pool follows Linux's `hstate`. Its pages are *free* or *in use*; `reserved` of the free ones are promised to
//! mappings; `surplus` says by how many the pool exceeds its persistent size, because demand above it was met from the
//! machine (overcommit) or because the persistent size was lowered under pages in use.
//!
//! # Invariants
//!
//! At rest: `free <= total`, `reserved <= free`, `surplus <= total`, and `total - surplus` is the persistent size.

mod broken;
mod check;
mod demote;
mod free;
mod page;
mod resize;
mod subpool;
mod surplus;

use core::fmt;

use free::{Chunk, FreeList};
pub(crate) use page::Page;
pub(crate) use subpool::Subpool;

use crate::addr::{PageSize, PhysAddr};
use crate::error::OutOfMemory;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::sync::{Arc, Mutex, Spin, SpinGuard};

/// Pages that go back to the machine after one hold of the pool lock.
const FREED_AT_A_TIME: usize = if cfg!(roundtable_model) { 2 } else { 64 };

/// The counters of a pool, in huge pages, as `/proc/meminfo` and `/sys/kernel/mm/hugepages` name them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolStatistics {
    /// `HugePages_Total`, `nr_hugepages` in sysfs: pages of the pool, surplus ones included.
    pub total: u64,
    /// `HugePages_Free`: pages that nobody uses, promised ones included.
    pub free: u64,
    /// `HugePages_Rsvd`: free pages that are promised to mappings.
    pub reserved: u64,
    /// `HugePages_Surp`: pages above the persistent size.
    pub surplus: u64,
    /// `nr_overcommit_hugepages`: how many surplus pages demand may add.
    pub overcommit: u64,
    /// `vm.nr_hugepages` as last set: the persistent size.
    pub persistent: u64,
}

/// What the pool lock guards.
///
/// `free` always has room for `total` frames, so that returning a page never allocates.
struct State {
    free: FreeList,
    total: u64,
    surplus: u64,
    /// Signed: a page that is given up between its reservation's use and return brings it below 0 for a moment.
    reserved: i64,
    overcommit: u64,
    persistent: u64,
}

impl State {
    fn unreserved(&self) -> i64 {
        self.free.len() as i64 - self.reserved
    }

    /// Whether the list has room for so many more frames of the pool.
    fn has_room(&self, more: u64) -> bool {
        self.total.saturating_add(more) <= self.free.room()
    }

    /// Takes a free frame out of the pool.
    fn remove_free(&mut self) -> Option<PhysAddr> {
        let frame = self.free.pop()?;
        self.total -= 1;
        Some(frame)
    }
}

/// The pool of one page size.
pub struct Pool<M: Machine> {
    machine: Arc<M>,
    size: PageSize,
    state: Spin<M, State>,
    /// Serialises changes of the persistent size: two writers would each undo the other's work.
    resize: Mutex<M, ()>,
}

impl<M: Machine> fmt::Debug for Pool<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("size", &self.size)
            .field("statistics", &self.statistics())
            .finish_non_exhaustive()
    }
}

impl<M: Machine> Pool<M> {
    pub(crate) fn new(machine: Arc<M>, size: PageSize) -> Pool<M> {
        let state = State {
            free: FreeList::default(),
            total: 0,
            surplus: 0,
            reserved: 0,
            overcommit: 0,
            persistent: 0,
        };
        Pool { machine, size, state: Spin::<M, _>::new(state), resize: Mutex::<M, _>::new(()) }
    }

    /// The size of the pool's pages.
    pub fn page_size(&self) -> PageSize {
        self.size
    }

    /// The counters, all taken at one moment.
    pub fn statistics(&self) -> PoolStatistics {
        let state = self.state.lock();
        PoolStatistics {
            total: state.total,
            free: state.free.len(),
            reserved: state.reserved.max(0) as u64,
            surplus: state.surplus,
            overcommit: state.overcommit,
            persistent: state.persistent,
        }
    }

    pub(crate) fn machine(&self) -> &M {
        &self.machine
    }

    /// Takes a page out of the pool, or from the machine within the overcommit limit. With `reserved` it uses up one
    /// reservation; without, reserved pages are out of reach.
    ///
    /// The page's content is whatever was there before.
    pub(crate) fn take(&self, reserved: bool) -> Option<PhysAddr> {
        {
            let mut state = self.state.lock();
            if (reserved || state.unreserved() > 0 || Mutant::PromisedPageTaken.is_on())
                && let Some(frame) = state.free.pop()
            {
                state.reserved -= i64::from(reserved && !Mutant::PromiseNotUsedUp.is_on());
                return Some(frame);
            }
        }
        let frame = self.grow_surplus()?;
        if reserved {
            self.state.lock().reserved -= 1;
        }
        Some(frame)
    }

    /// The pool's state, with room for so many more frames.
    fn lock_with_room(&self, more: u64) -> Result<SpinGuard<'_, M, State>, OutOfMemory> {
        loop {
            let state = self.state.lock();
            if state.has_room(more) {
                return Ok(state);
            }
            drop(state);
            self.machine.take_step()?;
            let chunk = Chunk::new()?;
            self.state.lock().free.add_room(chunk);
        }
    }

    /// Frees surplus pages that are free and that nobody is promised, so many at most.
    fn shed(&self, most: u64) {
        let mut left = most;
        while left > 0 {
            let mut freed = [const { None }; FREED_AT_A_TIME];
            {
                let mut state = self.state.lock();
                for place in freed.iter_mut().take(left.min(FREED_AT_A_TIME as u64) as usize) {
                    if state.surplus == 0 || state.unreserved() <= 0 {
                        break;
                    }
                    *place = state.remove_free();
                    state.surplus -= u64::from(place.is_some());
                }
            }
            self.give_to_machine(&freed);
            left = if freed.last().is_some_and(Option::is_some) { left - FREED_AT_A_TIME as u64 } else { 0 };
        }
    }

    /// Frames that are counted out go back to the machine, and room that the list does not need any more.
    fn give_to_machine(&self, frames: &[Option<PhysAddr>]) {
        if frames.iter().all(Option::is_none) {
            return;
        }
        for frame in frames.iter().flatten() {
            self.machine.free_huge(self.size, *frame);
        }
        self.give_up_room();
        self.machine.give_way();
    }

    /// Gives up room that the list does not need any more.
    fn give_up_room(&self) {
        loop {
            let mut state = self.state.lock();
            // A chunk more than needed stays, so that a pool that breathes does not allocate.
            let needed = state.total + 2 * FREED_AT_A_TIME as u64;
            let chunk = state.free.take_room(needed);
            drop(state);
            if chunk.is_none() {
                break;
            }
        }
    }

    /// Takes a page back; with `restore` it is promised again.
    pub(crate) fn give(&self, frame: PhysAddr, restore: bool) {
        let mut state = self.state.lock();
        state.reserved += i64::from(restore && !Mutant::PromiseNotRenewed.is_on());
        // A surplus page goes back to the machine first, unless a promise needs it.
        if state.surplus > 0 && state.unreserved() >= 0 {
            state.surplus -= 1;
            state.total -= 1;
            drop(state);
            self.machine.free_huge(self.size, frame);
        } else {
            state.free.push(frame);
        }
    }
}
