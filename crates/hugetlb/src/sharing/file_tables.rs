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
//! A slot in which the mapping is not alone, or in which the host has a table, has entries in a table of the host. A
//! mapping is on the file's list, where unmappings visit it, only from its first fault in such a slot.

use core::iter::Peekable;
use core::ops::Range;

use super::{Change, Protocol, Purpose};
use crate::addr::{PageIndex, PhysAddr, SLOT_SIZE};
use crate::error::{FaultError, OutOfMemory};
use crate::file::{Cache, File, Window};
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
}

fn window(slot: Slot) -> Window {
    Window { first: slot.first, pages: slot.pages, entry: slot.entry }
}

/// Attaches a slot, unless it is, to the table that `find` finds. Several faults may try at once, so the cache is locked from the
/// look to the store.
///
/// The space has joined the cache before the hardware can walk into the table: an unmapping that comes later flushes it, one
/// that came earlier left the entries clear.
fn attach_locked(
    slot: Slot,
    entry: &AtomicU64,
    find: impl FnOnce() -> Option<(PhysAddr, Attached)>,
) -> Attached {
    // Acquire: pairs with the host's release when it installs a table of its own.
    let old = entry.load(Ordering::Acquire);
    if format::is_managed(old) && !Mutant::SlotAttachedTwice.is_on() {
        return Attached::Before;
    }
    if format::is_present(old) && !Mutant::SlotAttachedTwice.is_on() {
        return Attached::Occupied;
    }
    let Some((frame, attached)) = find() else { return Attached::NoTable };
    // Release: a walker that follows the entry finds the table's content.
    entry.store(format::managed(frame, slot.protection), Ordering::Release);
    attached
}

/// As [`attach_locked`], to any table of the window; `spare` becomes it when there is none.
fn attach_one<M: Machine>(
    cache: &mut Cache<M>,
    area: &Area<M>,
    slot: Slot,
    entry: &AtomicU64,
    spare: &mut Option<PhysAddr>,
) -> Attached {
    area.join(cache);
    attach_locked(slot, entry, || {
        let had_spare = spare.is_some();
        let frame = cache.attach(window(slot), spare)?;
        Some((frame, if had_spare && spare.is_none() { Attached::New } else { Attached::Now }))
    })
}

/// What came of attempts to attach: for the counters.
#[derive(Default)]
struct Tally {
    joined: u64,
    made: u64,
    occupied: u64,
    alone_no_more: u64,
}

impl Tally {
    fn add(&mut self, attached: Attached) {
        match attached {
            Attached::Now => self.joined += 1,
            Attached::New => self.made += 1,
            Attached::Occupied => self.occupied += 1,
            Attached::Before | Attached::NoTable => {}
        }
    }

    fn count(&self, counters: &Counters) {
        counters.attachments.add(self.joined + self.made);
        counters.tables.add(self.made);
        counters.shares.add(self.joined);
        counters.fall_back(Fallback::Occupied, self.occupied);
        counters.fall_back(Fallback::Neighbour, self.alone_no_more);
    }
}

/// Attaches the slot of a fault; makes a table on need. Returns whether it is attached: else the host has a table there.
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
    Ok(attached != Attached::Occupied)
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
    let mut tables = next.map(|(slot, _)| cache.tables_from(window(slot)));
    for _ in 0..ATTACHED_AT_A_TIME {
        let Some((slot, place)) = next else { break };
        let mut attached = match &mut tables {
            _ if !slot.alone => {
                tally.alone_no_more += 1;
                Attached::Before
            }
            Some(run) => attach_locked(slot, place, || Some((run.attach(window(slot))?, Attached::Now))),
            None => Attached::NoTable,
        };
        if attached == Attached::NoTable {
            // Where one table is missing the next ones are, too: no run any more.
            tables = None;
            attached = attach_one(&mut cache, area, slot, place, spare);
            if attached == Attached::NoTable {
                return Ok(true);
            }
        }
        tally.add(attached);
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
            && slot.alone
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
        // Acquire: with who attached.
        let old = entry.load(Ordering::Acquire);
        if !format::is_managed(old) {
            return Change::Host;
        }
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

    fn unmap(&self, file: &File<M>, indices: Range<u64>) {
        hide(file, indices.clone());
        file.unmap_listed(indices);
    }

    fn unmap_for_good(&self, file: &File<M>, index: PageIndex) {
        // A table that is made from now on may show the page once more: that one goes with the page, see `Cache::remove`.
        self.unmap(file, index.0..index.0 + 1);
    }
}
