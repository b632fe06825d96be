//! The protocol `file-tables`: the tables belong to the file, so there is nothing to race for.
//!
//! A table is a part of the file, as its pages are. No mapping owns it and none can take it away, so a fault never
//! depends on who else maps the file; see [`filetables`] for how tables follow the content.
//!
//! * **Attach**: one store for each slot whose window has pages, at mmap and at fork. What is in the file then faults in no
//!   process.
//! * **Rights** stand in the entry of the process where the architecture combines them: readers and writers share a
//!   table, and mprotect rewrites one entry for each slot.
//! * **Fault**: on a page that the file does not have yet, or the first in a window that was empty. Adding a page to the file
//!   shows it to all.
//! * **Detach**: one store and this process's flush. MADV_DONTNEED has nothing to do: the data is the file's.
//! * **Punch and truncate** clear the entries in the file's tables, normally one for each page, and ask each CPU once whether
//!   it runs a sharer. How many sharers there are does not matter.
//!
//! A slot has one table, so of several mappings that have a part of a slot one is attached at most, and none when the host
//! has a table there. Who needs the slot next asks for it, and from then on it has a table of the host ([`crate::machine`]). A
//! mapping is on the file's list, where unmappings visit it, only from its first fault in such a slot.

use core::ops::Range;

use filetables::{AttachTally, Attached, Entry, EntryValue, Format, Found, Slot, Space};

use super::{Batch, Change, Fault, Protocol, Purpose, Table, publish};
use crate::addr::VirtAddr;
use crate::area::{Area, Exclusive, Placement};
use crate::error::{FaultError, OutOfMemory};
use crate::file::File;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::state::State;
use crate::stats::{Counters, Fallback};
use crate::sync::{Arc, Ordering, ReadGuard, WriteGuard};

pub(super) struct FileTables;

pub(super) const PROTOCOL: FileTables = FileTables;

fn count(counters: &Counters, tally: &AttachTally) {
    counters.shares.add(tally.shared);
    counters.fall_back(Fallback::Occupied, tally.occupied);
    counters.fall_back(Fallback::Neighbour, tally.neighbours);
    counters.fall_back(Fallback::Crowded, tally.crowded);
}

/// Detaches a slot. From here the hardware cannot walk into the table any more; what TLBs still hold goes with the batch's
/// flush, and the table counts this mapping until then.
fn leave<M: Machine>(area: &Area<M>, slot: &Slot, entry: &Entry, batch: &mut Batch<'_, M>) {
    if !Mutant::UpperEntryKept.is_on() {
        entry.store(EntryValue::default(), Ordering::Release);
    }
    batch.detach_later(slot.window);
    batch.flush_tables(area, slot.address, slot.level);
}

/// Attaches the slot of a fault whose page is in the file. False when the slot has a table of the host.
fn attach_for_fault<M: Machine>(fault: &Fault<'_, M>, placement: &Placement) -> Result<bool, FaultError> {
    let content = fault.file.content();
    fault.area.join(fault.file)?;
    let (space, extent) = (fault.area.space(), fault.area.extent(placement));
    let mut tally = AttachTally::default();
    let attached = content.attach_for_fault(space, &extent, fault.address, placement.protection, &mut tally);
    count(fault.file.hugetlb().counters(), &tally);
    match attached? {
        // Empty: a truncation has just put the page behind the end. The access faults once more.
        Attached::Before | Attached::Shared | Attached::Made | Attached::Empty => {
            // Who makes a table may not have come to the page yet.
            content.show(fault.index.index().0);
            Ok(true)
        }
        Attached::Occupied | Attached::Neighbour | Attached::Crowded => Ok(false),
    }
}

/// The entry for the page of a fault in tables of the host.
fn own_entry<'m, M: Machine>(fault: &Fault<'m, M>) -> Result<&'m Entry, FaultError> {
    // Listed before it has an entry: see `Area::enlist`.
    if !fault.area.is_listed() && !Mutant::NotEnlisted.is_on() {
        let place = fault.area.place(fault.file.hugetlb().machine())?;
        fault.area.enlist(fault.file, place);
    }
    fault.host_entry()
}

impl<M: Machine> Protocol<M> for FileTables {
    fn file_state(&self) -> State {
        State::NONE
    }

    fn area_state(&self) -> State {
        State::NONE
    }

    fn fault_fence<'f>(&self, _: &'f File<M>) -> Option<ReadGuard<'f, M, ()>> {
        None
    }

    fn change_fence<'f>(&self, _: &'f File<M>) -> Option<WriteGuard<'f, M, ()>> {
        None
    }

    fn fault(&self, fault: &Fault<'_, M>) -> Result<Arc<Page<M>>, FaultError> {
        // For reading: so that the mapping is not taken apart under the fault, and no slot is attached for a dead one. An
        // unmapping by others does not take this lock.
        let placement = fault.lock_mapping()?;
        if fault.area.is_unshared() {
            // What can fail comes before the page: see `Mapping::fill`.
            let entry = own_entry(fault)?;
            let page = fault.page()?;
            publish::<M>(entry, &page, fault.permitted(placement.protection));
            return Ok(page);
        }
        let page = fault.page()?;
        if !attach_for_fault(fault, &placement)? {
            publish::<M>(own_entry(fault)?, &page, fault.permitted(placement.protection));
        }
        Ok(page)
    }

    fn attach(&self, file: &File<M>, area: &Arc<Area<M>>, placement: &Placement) {
        // An attached table permits loads at least, and an empty file has none.
        if area.is_unshared()
            || placement.protection.is_empty()
            || file.content().is_empty()
            || area.join(file).is_err()
        {
            return;
        }
        let mut tally = AttachTally::default();
        let extent = area.extent(placement);
        // Without memory now the first fault in the slot tries again, and reports.
        let _ = file.content().attach_all(area.space(), &extent, placement.protection, &mut tally);
        count(file.hugetlb().counters(), &tally);
    }

    fn lists_all(&self) -> bool {
        false
    }

    fn prepare_change(
        &self,
        area: &Area<M>,
        placement: &Exclusive<'_, M>,
        address: VirtAddr,
        purpose: Purpose,
        batch: &mut Batch<'_, M>,
    ) -> (Change, Option<VirtAddr>) {
        let (found, behind) = batch.file().content().look(area.space(), &area.extent(placement), address);
        let (slot, entry) = match found {
            Found::Attached(slot, entry) => (slot, entry),
            Found::Host => return (Change::Host, behind),
            Found::Nothing => return (Change::Done, behind),
        };
        match purpose {
            // Attached slots lose pages with the file only.
            Purpose::Clear => {}
            Purpose::Protect(protection) if M::Format::RIGHTS_COMBINE => {
                let table = M::Format::table_frame(entry.load(Ordering::Acquire));
                entry.store(M::Format::managed(table, protection), Ordering::Release);
                if !protection.contains(placement.protection) && !Mutant::LostRightNotFlushed.is_on() {
                    batch.flush_tables(area, slot.address, slot.level);
                }
            }
            // With other rights it is another table's.
            Purpose::Protect(_) | Purpose::Leave => leave(area, &slot, entry, batch),
        }
        (Change::Done, behind)
    }

    fn leave_cut_slot(
        &self,
        area: &Area<M>,
        placement: &Exclusive<'_, M>,
        at: VirtAddr,
        batch: &mut Batch<'_, M>,
    ) -> bool {
        match batch.file().content().look(area.space(), &area.extent(placement), at) {
            (Found::Attached(slot, entry), _) if slot.address != at => {
                leave(area, &slot, entry, batch);
                slot.window.level > area.extent(placement).leaf
            }
            _ => false,
        }
    }

    fn leave_slot(
        &self,
        area: &Area<M>,
        placement: &Exclusive<'_, M>,
        address: VirtAddr,
        batch: &mut Batch<'_, M>,
    ) -> Result<bool, OutOfMemory> {
        let extent = area.extent(placement);
        let (found, _) = batch.file().content().look(area.space(), &extent, address);
        // Nothing else can be in a slot that the mapping covers wholly. Its own fault asks for a slot of 512 GiB, in which
        // too many windows lie over a page.
        let wanted = |slot: &Slot| !slot.whole || slot.window.level > extent.leaf;
        let (slot, entry, reason) = match found {
            Found::Attached(slot, entry) if wanted(&slot) && !Mutant::CrowdedSlotKept.is_on() => {
                (slot, entry, if slot.whole { Fallback::Crowded } else { Fallback::Neighbour })
            }
            _ => return Ok(false),
        };
        // The entry is never empty in between, in which another mapping in the slot could attach.
        let attached = match M::Format::BROKEN {
            None => None,
            Some(broken) => {
                // Break before make. A fault that meets the broken entry asks the mappings to leave the slot, and waits for
                // this one's lock.
                let attached = entry.swap(broken, Ordering::AcqRel);
                let mut first = Batch::new(batch.file());
                first.flush_tables(area, slot.address, slot.level);
                first.finish();
                Some(attached)
            }
        };
        if let Err(error) = area.space().replace_managed(slot.address, slot.level) {
            if let Some(attached) = attached {
                entry.store(attached, Ordering::Release);
            }
            return Err(error);
        }
        // What TLBs and paging-structure caches hold of the table stays right until the flush: it still counts this mapping, and
        // its pages are flushed for this space, too, when they go.
        batch.detach_later(slot.window);
        if !Mutant::CrowdedSlotNotFlushed.is_on() {
            batch.flush_tables(area, slot.address, slot.level);
        }
        batch.file().hugetlb().counters().fall_back(reason, 1);
        Ok(true)
    }

    fn unmap_for_good(&self, _: &File<M>, run: Range<u64>, unmap: &dyn Fn(Range<u64>)) {
        unmap(run);
    }

    fn split(&self, _: &Area<M>, _: &Exclusive<'_, M>, _: u64, _: &Area<M>) {}

    fn table(&self, _: &Area<M>, _: u64) -> Option<Table> {
        None
    }
}
