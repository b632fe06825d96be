//! The mappings that a file knows of: those on its list, and the address spaces that its tables know.

use core::ops::Range;

use filetables::Space;

use super::File;
use crate::area::Area;
use crate::error::OutOfMemory;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::range_list::{Key, Place, Search};
use crate::sync::{Arc, Ordering};

/// How many areas a walk takes from the list at a time, so that it does not keep the list locked while it waits.
const AREAS_AT_A_TIME: usize = if cfg!(roundtable_model) { 2 } else { 16 };

/// The last unmapping of a file.
#[derive(Clone, Debug)]
pub(crate) struct LastUnmapping {
    pub(crate) number: u64,
    /// Empty when it is over.
    pub(crate) indices: Range<u64>,
}

impl LastUnmapping {
    /// There was none yet.
    pub(super) const NONE: LastUnmapping = LastUnmapping { number: 0, indices: 0..0 };
}

/// An unmapping under way.
pub(crate) struct Unmapping<'f, M: Machine> {
    file: &'f File<M>,
    pub(crate) number: u64,
}

impl<M: Machine> Drop for Unmapping<'_, M> {
    fn drop(&mut self) {
        self.file.unmapping.lock().indices = 0..0;
    }
}

impl<M: Machine> File<M> {
    /// Begins an unmapping of the indices, which is over when the result goes. The size lock admits one at a time.
    pub(crate) fn begin_unmapping(&self, indices: Range<u64>) -> Unmapping<'_, M> {
        let mut last = self.unmapping.lock();
        *last = LastUnmapping { number: last.number + 1, indices };
        Unmapping { file: self, number: last.number }
    }

    /// The last unmapping, with the indices that it is about: none when it is over. A new area takes nothing of these over, and
    /// then need not be visited. The mapping lock of its origin is held.
    pub(crate) fn last_unmapping(&self) -> LastUnmapping {
        self.unmapping.lock().clone()
    }

    /// Shows `visit` the listed mappings that have a page of the indices, with no lock held. An area that a fork or a split
    /// makes while its origin is locked is met, too: who is on the list at the start is visited first, then who has come
    /// meanwhile, and so on. `visit` says whether there was something to do: when there was nothing to do with all of those who
    /// have come, then who comes after them comes of them, and it is over.
    pub(crate) fn each_listed(&self, indices: Range<u64>, mut visit: impl FnMut(&Arc<Area<M>>) -> bool) {
        // Most files have no listed mappings.
        if self.mappings.read().is_empty() {
            return;
        }
        let mut search = Search { indices, ages: 0..0 };
        let (mut after, mut any) = (None, false);
        loop {
            let mut areas = [const { None }; AREAS_AT_A_TIME];
            {
                let list = self.mappings.read();
                if after.is_none() {
                    search.ages = search.ages.end..list.next_age();
                    any = false;
                }
                let mut places = areas.iter_mut();
                let mut last = None;
                list.find(&search, after, |key, area| {
                    // One more than there is place for is found, and found again next.
                    let Some(place) = places.next() else { return Some(()) };
                    (last, *place) = (Some(key), Some(area.clone()));
                    None
                });
                after = last;
                if after.is_none() && (!any || search.ages.end == list.next_age()) {
                    return;
                }
            }
            for area in areas.iter().flatten() {
                any |= visit(area);
            }
            if Mutant::WalkEndsEarly.is_on() {
                return;
            }
            self.hugetlb.machine().give_way();
        }
    }
}

impl<M: Machine> Area<M> {
    /// Memory for its place on the file's list.
    pub(crate) fn place(self: &Arc<Self>, machine: &M) -> Result<Place<Arc<Self>>, OutOfMemory> {
        machine.take_step()?;
        Place::new(self.indices.clone(), self.clone())
    }

    /// Puts the mapping on the file's list, unless it is there: from now on unmappings visit it.
    ///
    /// It comes before the mapping's first entry in a table that others do not know of. A walk that is under way may have
    /// passed the list's end: it takes the pages away index by index afterwards, and then meets the mapping.
    pub(crate) fn enlist(&self, file: &File<M>, place: Place<Arc<Self>>) {
        let mut list = file.mappings().write();
        // Relaxed, here and below: the list's lock orders it; once set it stays.
        if self.listed.load(Ordering::Relaxed) == 0 {
            let key = list.insert(place);
            self.listed.store(key.age() + 1, Ordering::Relaxed);
        }
    }

    /// Takes the mapping, which has no entries any more, from the file's list.
    pub(crate) fn delist(&self, file: &File<M>) {
        // Relaxed: nobody enlists a mapping that is going away.
        if let Some(age) = self.listed.load(Ordering::Relaxed).checked_sub(1) {
            file.mappings().write().remove(Key::new(self.indices.start, age));
        }
    }

    /// Makes the address space known to the file's tables, before the first of them is attached.
    ///
    /// Of two faults that come here at once each joins, so that none goes on before the space is known; one takes it back.
    pub(crate) fn join(&self, file: &File<M>) -> Result<(), OutOfMemory> {
        // Acquire: with the swap of who joined.
        if self.joined.load(Ordering::Acquire) {
            return Ok(());
        }
        file.content().join(self.space.id())?;
        if self.joined.swap(true, Ordering::AcqRel) {
            file.content().leave(self.space.id());
        }
        Ok(())
    }

    /// Takes it back: no table is attached, and the TLBs were flushed.
    pub(crate) fn leave(&self, file: &File<M>) {
        if self.joined.swap(false, Ordering::AcqRel) {
            file.content().leave(self.space.id());
        }
    }
}
