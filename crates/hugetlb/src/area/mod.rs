//! What a file knows of a mapping: where it is, its private copies, its tables, its lock.
//!
//! The area is on the file's list, so operations on the file reach it without the address space's lock. Its reader/writer
//! lock is a part of it and lives as long as the list's reference: an operation that found the area can take the lock,
//! however fast the mapping goes away. (Linux hangs the lock off a pointer that copies of a VMA duplicate.)

use core::ops::{Deref, DerefMut, Range};

mod copies;
mod few;
pub(crate) mod marks;
mod share;

use filetables::{Entry, Extent, Format, Protection, Space};

pub(crate) use copies::{Private, Room, forget, fork, split_off, take_copies};
pub(crate) use few::few;
use marks::Marks;
pub(crate) use share::Share;

use crate::addr::{PageIndex, PageSize, VirtAddr};
use crate::error::FaultError;
use crate::machine::Machine;
use crate::state::State;
use crate::sync::{Arc, AtomicBool, AtomicU64, Ordering, ReadGuard, RwLock, Spin, WriteGuard};

/// What the mapping lock guards.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placement {
    pub(crate) start: VirtAddr,
    pub(crate) first: PageIndex,
    pub(crate) pages: u64,
    pub(crate) protection: Protection,
}

impl Placement {
    pub(crate) fn indices(&self) -> Range<u64> {
        self.first.0..self.first.0 + self.pages
    }
}

/// The mapping lock, held for writing: no fault of the mapping is under way, and who has this may take entries away.
///
/// Only [`Area::lock`] makes one, so a function that takes it cannot be called without the lock.
pub(crate) struct Exclusive<'a, M: Machine>(WriteGuard<'a, M, Placement>);

impl<M: Machine> Deref for Exclusive<'_, M> {
    type Target = Placement;

    fn deref(&self) -> &Placement {
        &self.0
    }
}

impl<M: Machine> DerefMut for Exclusive<'_, M> {
    fn deref_mut(&mut self) -> &mut Placement {
        &mut self.0
    }
}

/// A mapping as its file sees it.
pub(crate) struct Area<M: Machine> {
    id: u64,
    pub(crate) space: M::Space,
    shared: bool,
    size: PageSize,
    /// The mapping lock: faults read, what moves or takes away entries writes.
    placement: RwLock<M, Placement>,
    /// Changed under the mapping lock (by faults: for reading, plus the fault mutex of the index).
    private: Spin<M, Private<M>>,
    /// Changed under the mapping lock for writing.
    marks: Spin<M, Marks>,
    state: State,
    /// The indices that it had when it was made; it never gets others.
    pub(crate) indices: Range<u64>,
    /// One more than the age on the file's list, 0 while it is not there. Set once, under the list's lock.
    pub(crate) listed: AtomicU64,
    /// Whether the file's tables know the address space from this mapping.
    pub(crate) joined: AtomicBool,
    /// The last unmapping of the file for which it need not be visited any more. Changed under the mapping lock for writing, by
    /// who has the size lock.
    unmapped_by: AtomicU64,
    /// Whether it keeps out of shared tables. Set under the mapping lock, and stays.
    unshared: AtomicBool,
    /// Whether stores to a page were ever withheld, or an address poisoned.
    has_marks: AtomicBool,
}

impl<M: Machine> Area<M> {
    pub(crate) fn new(
        id: u64,
        space: M::Space,
        shared: bool,
        size: PageSize,
        placement: Placement,
        private: Private<M>,
        state: State,
    ) -> Arc<Area<M>> {
        Arc::new(Area {
            id,
            space,
            shared,
            size,
            indices: placement.indices(),
            placement: RwLock::<M, _>::new(placement),
            private: Spin::<M, _>::new(private),
            marks: Spin::<M, _>::new(Marks::new()),
            state,
            listed: AtomicU64::new(0),
            joined: AtomicBool::new(false),
            unmapped_by: AtomicU64::new(0),
            unshared: AtomicBool::new(false),
            has_marks: AtomicBool::new(false),
        })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn space(&self) -> &M::Space {
        &self.space
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    /// The mapping lock for reading: the mapping stays where it is, and loses no entry.
    pub(crate) fn placement(&self) -> ReadGuard<'_, M, Placement> {
        self.placement.read()
    }

    /// The mapping lock for writing.
    pub(crate) fn lock(&self) -> Exclusive<'_, M> {
        Exclusive(self.placement.write())
    }

    pub(crate) fn private(&self) -> &Spin<M, Private<M>> {
        &self.private
    }

    /// What userfaultfd(2) has marked.
    pub(crate) fn marks(&self) -> &Spin<M, Marks> {
        &self.marks
    }

    /// What the protocol keeps.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The size of its pages.
    pub(crate) fn size(&self) -> PageSize {
        self.size
    }

    /// The address of a page index.
    pub(crate) fn address(&self, placement: &Placement, index: u64) -> VirtAddr {
        placement.start + ((index - placement.first.0) << self.size.shift())
    }

    /// The mapping, as the tables of a file see it.
    pub(crate) fn extent(&self, placement: &Placement) -> Extent {
        Extent {
            start: placement.start,
            first: placement.first.0,
            pages: placement.pages,
            leaf: self.size.level(),
            rights: M::Format::key_rights(placement.protection),
        }
    }

    /// The last unmapping of the file for which it need not be visited any more. The mapping lock is held.
    pub(crate) fn unmapped_by(&self) -> u64 {
        // Relaxed, here and below: see the field; a new area is known by the list's lock.
        self.unmapped_by.load(Ordering::Relaxed)
    }

    /// Whether an unmapping of the file, which is under way, need not visit it any more.
    pub(crate) fn is_unmapped_by(&self, number: u64) -> bool {
        self.unmapped_by() >= number
    }

    /// It need not be visited any more for an unmapping.
    pub(crate) fn set_unmapped_by(&self, number: u64) {
        self.unmapped_by.store(number, Ordering::Relaxed);
    }

    /// Whether the mapping keeps out of shared tables.
    pub(crate) fn is_unshared(&self) -> bool {
        // Relaxed: the mapping lock orders it.
        self.unshared.load(Ordering::Relaxed)
    }

    /// Makes it keep out of shared tables.
    pub(crate) fn set_unshared(&self) {
        self.unshared.store(true, Ordering::Release);
    }

    /// Whether stores to a page were ever withheld, or an address poisoned.
    pub(crate) fn has_marks(&self) -> bool {
        // Relaxed: as `is_unshared`.
        self.has_marks.load(Ordering::Relaxed)
    }

    pub(crate) fn set_has_marks(&self) {
        self.has_marks.store(true, Ordering::Release);
    }

    /// Whether the mapping is on the file's list.
    pub(crate) fn is_listed(&self) -> bool {
        // Relaxed: the list's lock orders it.
        self.listed.load(Ordering::Relaxed) != 0
    }

    /// Whether attached slots lead to tables of the file.
    pub(crate) fn has_joined(&self) -> bool {
        // Acquire: as `join`.
        self.joined.load(Ordering::Acquire)
    }

    /// Whether stores to a page are withheld. The mapping lock, or the fault mutex of the index, is held.
    pub(crate) fn withholds(&self, index: PageIndex) -> bool {
        self.has_marks() && self.marks().lock().withholds(index.0)
    }

    /// Whether a page is poisoned. The mapping lock is held, or what is said may be old.
    pub(crate) fn poisons(&self, index: PageIndex) -> bool {
        self.has_marks() && self.marks().lock().poisons(index.0)
    }

    /// The entry for an address in tables of the host, if there is one.
    pub(crate) fn find_host_entry(&self, address: VirtAddr) -> Option<&Entry> {
        self.space.find_entry(address, self.size.level())
    }

    /// The entry for an address in tables of the host, made on need.
    pub(crate) fn host_entry(&self, address: VirtAddr) -> Result<&Entry, FaultError> {
        // Another mapping in the slot may be attached to a table there.
        self.space.entry(address, self.size.level())?.ok_or(FaultError::SlotShared)
    }
}
