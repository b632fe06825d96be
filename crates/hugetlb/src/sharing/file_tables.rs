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

use core::ops::Range;

use super::{Change, Protocol, Purpose};
use crate::addr::PageIndex;
use crate::error::{FaultError, OutOfMemory};
use crate::file::{File, Window};
use crate::format;
use crate::machine::{Machine, Space};
use crate::mapping::{Area, Batch, Fault, Placement, Slot, publish};
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::stats::Fallback;
use crate::sync::{Arc, Ordering};

/// Tables that a mapping makes ahead of the first fault in their windows. A mapping of a sparse file may be larger than all
/// memory; beyond this the slots are attached when a fault needs them. 16 MiB of tables map 4 TiB.
const MADE_AHEAD: usize = 4096;

/// Pages that are hidden with one flush.
const HIDDEN_AT_A_TIME: usize = 512;

pub(super) struct FileTables;

/// What came of an attempt to attach a slot.
#[derive(PartialEq, Eq)]
enum Attached {
    /// It is attached.
    Yes,
    /// It is attached, to a table that was made for it.
    New,
    /// The window has no table yet, and none was to be made.
    NoTable,
    /// The host has a table in the slot.
    Occupied,
}

fn window(slot: Slot) -> Window {
    Window { first: slot.first, pages: slot.pages, entry: slot.entry }
}

/// Attaches a slot, unless it is; several faults may try at once.
fn attach_slot<M: Machine>(
    file: &File<M>,
    area: &Area<M>,
    slot: Slot,
    make: bool,
) -> Result<Attached, OutOfMemory> {
    let hugetlb = file.hugetlb();
    let entry = area.space().pud_entry(slot.start)?;
    let mut spare = None;
    let result = loop {
        {
            let mut cache = file.cache().lock();
            // Acquire: pairs with the host's release when it installs a table of its own. Under the lock, so that two
            // faults do not attach twice.
            let old = entry.load(Ordering::Acquire);
            if format::is_managed(old) {
                break Attached::Yes;
            }
            if format::is_present(old) {
                break Attached::Occupied;
            }
            let had_spare = spare.is_some();
            if let Some(frame) = cache.attach(window(slot), &mut spare) {
                let made = had_spare && spare.is_none();
                // The space is known before the hardware can walk into the table: an unmapping that comes later flushes it, one
                // that came earlier left the entries clear.
                area.join(&mut cache);
                // Release: a walker that follows the entry finds the table's content.
                entry.store(format::managed(frame, slot.protection), Ordering::Release);
                hugetlb.counters().attachments.add(1);
                hugetlb.counters().tables.add(u64::from(made));
                hugetlb.counters().shares.add(u64::from(!made));
                break if made { Attached::New } else { Attached::Yes };
            }
        }
        if !make {
            break Attached::NoTable;
        }
        // Not under the spin lock: it may sleep.
        spare = Some(hugetlb.machine().allocate_table().ok_or(OutOfMemory)?);
    };
    if let Some(unused) = spare {
        hugetlb.machine().retire_table(unused);
    }
    Ok(result)
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
        {
            match attach_slot(fault.file, fault.area, slot, true)? {
                Attached::Occupied => fault.file.hugetlb().counters().fall_back(Fallback::Occupied, 1),
                _ => {
                    // The page came with the table or went into it; but a hole punch that has not reached the page yet may
                    // have hidden it.
                    if !Mutant::NotShownAgain.is_on() {
                        fault.file.cache().lock().show(&fault.index, &page);
                    }
                    return Ok(page);
                }
            }
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
        let counters = file.hugetlb().counters();
        let mut made = 0;
        for slot in area.slots(placement) {
            if !slot.alone {
                counters.fall_back(Fallback::Neighbour, 1);
                continue;
            }
            match attach_slot(file, area, slot, made < MADE_AHEAD) {
                Ok(Attached::New) => made += 1,
                Ok(Attached::Occupied) => counters.fall_back(Fallback::Occupied, 1),
                // Without memory now: the first fault in the slot tries again, and reports.
                Ok(_) | Err(OutOfMemory) => {}
            }
        }
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
