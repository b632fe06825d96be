//! The protocol `file-tables`: the tables belong to the file, so there is nothing to race for.
//!
//! A table is a part of the file, as its pages are. No mapping owns it and none can take it away, so a fault never
//! depends on who else maps the file; see [`crate::file::mirror`] for how tables follow the cache.
//!
//! * **Attach**: one store of a PUD entry for each slot, at mmap and at fork. What is in the file then faults in no process.
//! * **Rights** stand in the PUD entry, which belongs to the process: readers and writers share a table, and mprotect
//!   rewrites one entry for each slot.
//! * **Fault**: on a page that the file does not have yet. Adding it to the file shows it to all.
//! * **Detach**: one store and this process's flush. MADV_DONTNEED has nothing to do: the data is the file's.
//! * **Punch and truncate** clear the entries in the file's tables, normally one for each page, and ask each CPU once whether
//!   it runs a sharer. How many sharers there are does not matter.
//!
//! A slot has one table, so of several mappings that have a part of a slot one is attached at most, and none when the host
//! has a table there. Who needs the slot next asks for it, and from then on it has a table of the host ([`crate::machine`]). A
//! mapping is on the file's list, where unmappings visit it, only from its first fault in such a slot.

use core::iter::Peekable;
use core::ops::Range;

use super::{Change, Protocol, Purpose};
use crate::addr::{PageIndex, PhysAddr, SLOT_SIZE};
use crate::error::{FaultError, OutOfMemory};
use crate::file::{Cache, File, Run, Window};
use crate::format;
use crate::machine::{Machine, Space};
use crate::mapping::{Area, Batch, Fault, Placement, Slot, publish};
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::stats::{Counters, Fallback};
use crate::sync::{Arc, AtomicU64, Ordering};

/// Tables that a mapping makes ahead of the first fault in their windows. A mapping of a sparse file may be larger than all
/// memory; beyond this the slots are attached when a fault needs them. 16 MiB of tables map 4 TiB.
const MADE_AHEAD: u64 = 4096;

/// Slots that are attached with one hold of the cache lock.
const ATTACHED_AT_A_TIME: usize = 64;

/// Pages that are hidden with one flush.
const HIDDEN_AT_A_TIME: usize = 512;

pub(super) struct FileTables;

/// What came of an attempt to attach a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attached {
    /// It was attached already.
    Before,
    /// It is attached now, to a table that was there.
    Now,
    /// It is attached now, to a table that was made for it.
    New,
    /// The window has no table yet, and there was none to become it.
    NoTable,
    /// The host has a table in the slot.
    Occupied,
    /// Another mapping in the slot is attached.
    Neighbour,
}

fn window(slot: Slot) -> Window {
    Window { first: slot.first, pages: slot.pages, entry: slot.entry }
}

/// What is in the PUD entry of a slot; `None` when it is empty.
fn occupant<M: Machine>(cache: &Cache<M>, slot: Slot, entry: &AtomicU64) -> Option<Attached> {
    // Acquire: pairs with the host's release when it installs a table of its own.
    let old = entry.load(Ordering::Acquire);
    if !format::is_present(old) || Mutant::SlotAttachedTwice.is_on() {
        return None;
    }
    if !format::is_managed(old) {
        return Some(Attached::Occupied);
    }
    // As in `Area::attached`.
    let is_own = || cache.table_at(slot.first, slot.pages, slot.entry).map(|(frame, _)| frame);
    match slot.is_whole() || Mutant::StrangersTableTaken.is_on() || is_own() == Some(format::table_frame(old))
    {
        true => Some(Attached::Before),
        false => Some(Attached::Neighbour),
    }
}

/// Makes the empty PUD entry of a slot lead to a table. False when the host or another mapping in the slot came first.
///
/// The space has joined the cache before the hardware can walk into the table: an unmapping that comes later flushes it, one
/// that came earlier left the entries clear.
fn lead(slot: Slot, entry: &AtomicU64, frame: PhysAddr) -> bool {
    let new = format::managed(frame, slot.protection);
    if Mutant::SlotAttachedTwice.is_on() {
        entry.store(new, Ordering::Release);
        return true;
    }
    // Release: a walker that follows the entry finds the table's content. Relaxed: who fails looks again.
    entry.compare_exchange(0, new, Ordering::Release, Ordering::Relaxed).is_ok()
}

/// Attaches a slot, unless it is, to the table of its window; `spare` becomes it when there is none. Several faults may try at
/// once, so the cache is locked from the look to the store.
fn attach_one<M: Machine>(
    cache: &mut Cache<M>,
    area: &Area<M>,
    slot: Slot,
    entry: &AtomicU64,
    spare: &mut Option<PhysAddr>,
) -> Attached {
    area.join(cache);
    loop {
        if let Some(occupant) = occupant(cache, slot, entry) {
            return occupant;
        }
        let had_spare = spare.is_some();
        let Some(frame) = cache.attach(window(slot), spare) else { return Attached::NoTable };
        let made = had_spare && spare.is_none();
        if lead(slot, entry, frame) {
            return if made { Attached::New } else { Attached::Now };
        }
        cache.detach(&[window(slot)], |unused| *spare = Some(unused));
    }
}

/// What came of attempts to attach: for the counters.
#[derive(Default)]
struct Tally {
    joined: u64,
    made: u64,
    occupied: u64,
    neighbours: u64,
}

impl Tally {
    fn add(&mut self, attached: Attached) {
        match attached {
            Attached::Now => self.joined += 1,
            Attached::New => self.made += 1,
            Attached::Occupied => self.occupied += 1,
            Attached::Neighbour => self.neighbours += 1,
            Attached::Before | Attached::NoTable => {}
        }
    }

    fn count(&self, counters: &Counters) {
        counters.attachments.add(self.joined + self.made);
        counters.tables.add(self.made);
        counters.shares.add(self.joined);
        counters.fall_back(Fallback::Occupied, self.occupied);
        counters.fall_back(Fallback::Neighbour, self.neighbours);
    }
}

/// Attaches the slot of a fault; makes a table on need. Returns whether it is attached: else the host or another mapping has a
/// table there.
fn attach_for_fault<M: Machine>(file: &File<M>, area: &Area<M>, slot: Slot) -> Result<bool, OutOfMemory> {
    let entry = area.space().pud_entry(slot.start)?;
    let mut spare = None;
    let attached = loop {
        let attached = attach_one(&mut file.cache().lock(), area, slot, entry, &mut spare);
        if attached != Attached::NoTable {
            break attached;
        }
        // Not under the spin lock: it may sleep.
        spare = Some(file.hugetlb().machine().allocate_table().ok_or(OutOfMemory)?);
    };
    give_back(file, spare);
    let mut tally = Tally::default();
    tally.add(attached);
    tally.count(file.hugetlb().counters());
    Ok(matches!(attached, Attached::Before | Attached::Now | Attached::New))
}

/// Attaches slots from the first on, as many as lie in its row of PUD entries, with one hold of the cache lock. Returns
/// whether the next one needs a table first.
fn attach_row<M: Machine>(
    file: &File<M>,
    area: &Area<M>,
    slots: &mut Peekable<impl Iterator<Item = Slot>>,
    spare: &mut Option<PhysAddr>,
    tally: &mut Tally,
) -> Result<bool, OutOfMemory> {
    let Some(first) = slots.peek().map(|slot| slot.start) else { return Ok(false) };
    let row = area.space().pud_entries(first)?;
    let entry = |slot: &Slot| row.get(((slot.start.0 - first.0) / SLOT_SIZE) as usize);
    let mut cache = file.cache().lock();
    area.join(&mut cache);
    let mut next = slots.peek().and_then(|slot| Some((*slot, entry(slot)?)));
    let mut tables: Option<Run<'_>> = None;
    // Where one table is missing the next ones are, too: no run any more.
    let mut run_ends = false;
    for _ in 0..ATTACHED_AT_A_TIME {
        let Some((slot, place)) = next else { break };
        // Acquire: as in `occupant`.
        let in_run = slot.is_whole() && !run_ends && !format::is_present(place.load(Ordering::Acquire));
        if in_run && tables.is_none() {
            tables = Some(cache.tables_from(window(slot)));
        }
        let found = tables.as_mut().filter(|_| in_run).and_then(|run| run.attach(window(slot)));
        match found {
            // Nobody else has anything in the slot, and nobody faults in this mapping.
            Some(frame) if lead(slot, place, frame) => tally.add(Attached::Now),
            Some(_) => {
                tables = None;
                cache.detach(&[window(slot)], |_| debug_assert!(false, "the table had other sharers"));
            }
            None => {
                tables = None;
                run_ends |= in_run;
                match attach_one(&mut cache, area, slot, place, spare) {
                    Attached::NoTable => return Ok(true),
                    attached => tally.add(attached),
                }
            }
        }
        slots.next();
        next = slots.peek().and_then(|slot| Some((*slot, entry(slot)?)));
    }
    Ok(false)
}

fn give_back<M: Machine>(file: &File<M>, spare: Option<PhysAddr>) {
    if let Some(unused) = spare {
        file.hugetlb().machine().retire_table(unused);
    }
}

/// Hides pages from all who are attached, and flushes, so many pages at a time.
fn hide<M: Machine>(file: &File<M>, indices: Range<u64>) {
    let (mut next, end) = (Some(PageIndex(indices.start)), PageIndex(indices.end));
    while let Some(first) = next
        && first < end
    {
        let mut batch = Batch::new(file);
        next = file.cache().lock().hide(first..end, HIDDEN_AT_A_TIME, |page, entries| {
            batch.hide(page, entries);
        });
        batch.finish();
    }
}

impl<M: Machine> Protocol<M> for FileTables {
    fn fault(&self, fault: &Fault<'_, M>) -> Result<Arc<Page<M>>, FaultError> {
        // For reading: so that the mapping is not taken apart under the fault, and no slot is attached for a dead one. An
        // unmapping by others does not take this lock.
        let placement = fault.lock_mapping()?;
        let page = fault.page()?;
        if let Some(slot) = fault.area.slot(&placement, fault.address)
            && attach_for_fault(fault.file, fault.area, slot)?
        {
            // The page came with the table or went into it; but a hole punch that has not reached the page yet may have
            // hidden it.
            if !Mutant::NotShownAgain.is_on() {
                fault.file.cache().lock().show(&fault.index, &page);
            }
            return Ok(page);
        }
        // Listed before it has an entry: see `Area::enlist`.
        if !Mutant::NotEnlisted.is_on() {
            fault.area.enlist(fault.file);
        }
        publish(fault.host_entry()?, &page, placement.protection);
        Ok(page)
    }

    fn attach(&self, file: &File<M>, area: &Arc<Area<M>>, placement: &Placement) {
        if placement.protection.is_empty() {
            // An attached table permits loads at least.
            return;
        }
        let mut slots = area.slots(placement).peekable();
        let (mut tally, mut spare) = (Tally::default(), None);
        while slots.peek().is_some() {
            match attach_row(file, area, &mut slots, &mut spare, &mut tally) {
                Ok(false) => {}
                Ok(true) if tally.made < MADE_AHEAD => {
                    spare = file.hugetlb().machine().allocate_table();
                    if spare.is_none() {
                        // Without memory now: the first fault in the slot tries again, and reports.
                        break;
                    }
                }
                Ok(true) => drop(slots.next()),
                Err(OutOfMemory) => break,
            }
        }
        give_back(file, spare);
        tally.count(file.hugetlb().counters());
    }

    fn prepare_change(
        &self,
        area: &Area<M>,
        slot: Slot,
        purpose: Purpose,
        batch: &mut Batch<'_, M>,
    ) -> Change<M> {
        let Some(entry) = area.space().find_pud_entry(slot.start) else { return Change::Done };
        let Some(old) = area.attached(batch.file(), &slot, entry) else { return Change::Host };
        match purpose {
            // Attached slots lose pages with the file only.
            Purpose::Clear => {}
            Purpose::Protect(protection) => {
                entry.store(format::managed(format::table_frame(old), protection), Ordering::Release);
                if !protection.contains(slot.protection) && !Mutant::LostRightNotFlushed.is_on() {
                    batch.flush_tables(area, slot.start);
                }
            }
            Purpose::Leave => {
                // From here the hardware cannot walk into the table any more; what TLBs still hold goes with the batch's
                // flush, and the table counts this mapping until then.
                if !Mutant::UpperEntryKept.is_on() {
                    entry.store(0, Ordering::Release);
                }
                batch.detach_later(window(slot));
                batch.flush_tables(area, slot.start);
            }
        }
        Change::Done
    }

    fn leave_slot(&self, area: &Area<M>, slot: Slot, batch: &mut Batch<'_, M>) -> Result<bool, OutOfMemory> {
        let Some(entry) = area.space().find_pud_entry(slot.start) else { return Ok(false) };
        if area.attached(batch.file(), &slot, entry).is_none() || Mutant::CrowdedSlotKept.is_on() {
            return Ok(false);
        }
        // The entry is never empty in between, in which another mapping in the slot could attach.
        area.space().replace_managed(slot.start)?;
        // What TLBs and paging-structure caches hold of the table stays right until the flush: it still counts this mapping, and
        // its pages are flushed for this space, too, when they go.
        batch.detach_later(window(slot));
        if !Mutant::CrowdedSlotNotFlushed.is_on() {
            batch.flush_tables(area, slot.start);
        }
        batch.file().hugetlb().counters().fall_back(Fallback::Neighbour, 1);
        Ok(true)
    }

    fn unmap(&self, file: &File<M>, indices: Range<u64>) {
        hide(file, indices.clone());
        file.unmap_listed(indices);
    }

    fn unmap_for_good(&self, file: &File<M>, index: PageIndex) {
        // A table that is made from now on may show the page once more: that one goes with the page, see `Cache::remove`.
        self.unmap(file, index.0..index.0 + 1);
    }
}
