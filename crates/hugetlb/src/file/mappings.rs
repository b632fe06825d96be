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

impl<M: Machine> File<M> {
    /// Shows `visit` the listed mappings that have a page of the indices, with no lock held. An area that a fork or a split
    /// makes while its origin is locked is met, too: who is on the list at the start is visited first, then who has come
    /// meanwhile, and so on.
    pub(crate) fn each_listed(&self, indices: Range<u64>, mut visit: impl FnMut(&Arc<Area<M>>)) {
        // Most files have no listed mappings.
        if self.mappings.read().is_empty() {
            return;
        }
        let mut search = Search { indices, ages: 0..0 };
        let mut after = None;
        loop {
            let mut areas = [const { None }; AREAS_AT_A_TIME];
            {
                let list = self.mappings.read();
                if after.is_none() {
                    search.ages = search.ages.end..list.next_age();
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
                if after.is_none() && search.ages.end == list.next_age() {
                    return;
                }
            }
            areas.iter().flatten().for_each(&mut visit);
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
