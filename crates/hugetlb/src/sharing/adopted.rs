//! Tables that mappings adopt from one another: what `unfenced`, `file-lock` and `vma-lock` have in common.
//!
//! A mapping that faults in an empty slot which it covers wholly adopts the table of a partner: another mapping of the
//! file that has one for the same part, congruent modulo 1 GiB and with the same permissions. From then on their faults
//! fill one table.
//!
//! * A [`Table`] counts the mappings attached to it, and nothing else; the count rises from 1 or more only. A mapping that
//!   detaches clears its PUD entry, flushes its TLBs, and only *then* is counted out. So a count of 1 means that no
//!   other TLB holds anything of the table.
//! * Entries of a table that several mappings are attached to are added (under the fault mutex of their index) but never
//!   changed or taken away. Whoever wants to change entries detaches; or, when it is alone, *closes* the table to newcomers,
//!   changes them in place, flushes, and opens it again.
//! * The last that is counted out takes the entries down and retires the frame.

use super::{Change, Purpose, Table, entry_index};
use crate::addr::PageIndex;
use crate::error::{FaultError, OutOfMemory};
use crate::file::File;
use crate::format::{self, Protection};
use crate::machine::{Machine, Space};
use crate::mapping::{Area, Batch, Fault, Placement, Slot, publish};
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::stats::Fallback;
use crate::sync::{Arc, AtomicU64, Ordering};

/// Where a fault is to write its leaf.
pub(super) enum Target<'f, M: Machine> {
    /// Into a table of the library, at an entry.
    Shared(&'f M, Arc<Table<M>>, usize),
    /// Into an entry of a table of the host.
    Host(&'f AtomicU64, Protection),
}

impl<M: Machine> Target<'_, M> {
    /// Writes the leaf, unless a sharer has. What keeps the target from going meanwhile is the protocol's business.
    pub(super) fn publish(&self, page: &Page<M>) {
        match self {
            Target::Shared(machine, table, entry) => {
                publish(&table.entries(*machine)[*entry], page, table.protection());
            }
            Target::Host(entry, protection) => publish(entry, page, *protection),
        }
    }
}

/// Puts a new mapping on the file's list, where partners are found.
pub(super) fn enlist<M: Machine>(file: &File<M>, area: &Arc<Area<M>>, placement: &Placement) {
    if area.is_listed() {
        return;
    }
    let partial = area.slots(placement).filter(|slot| !slot.is_whole()).count() as u64;
    file.hugetlb().counters().fall_back(Fallback::NotCovered, partial);
    area.enlist(file);
}

/// A fault that lets go of its mapping before it clears the page (long), and writes into the table that it found before. What keeps
/// the table meanwhile, if anything, is the protocol's business.
pub(super) fn fault_letting_go<M: Machine>(fault: &Fault<'_, M>) -> Result<Arc<Page<M>>, FaultError> {
    let target = {
        let placement = fault.lock_mapping()?;
        find_target(fault, &placement)?
    };
    let page = fault.page()?;
    target.publish(&page);
    Ok(page)
}

/// The place for the leaf of a fault; attaches the mapping to a table on need.
pub(super) fn find_target<'f, M: Machine>(
    fault: &Fault<'f, M>,
    placement: &Placement,
) -> Result<Target<'f, M>, FaultError> {
    let slot = fault.area.slot(placement, fault.address).filter(Slot::is_whole);
    let table = match slot {
        Some(slot) => table_for_fault(fault.file, fault.area, slot)?,
        None => None,
    };
    Ok(match table {
        Some(table) => Target::Shared(fault.file.hugetlb().machine(), table, entry_index(fault.address)),
        None => Target::Host(fault.host_entry()?, placement.protection),
    })
}

/// The table of a slot; `None` when the host has one there.
fn table_for_fault<M: Machine>(
    file: &File<M>,
    area: &Area<M>,
    slot: Slot,
) -> Result<Option<Arc<Table<M>>>, OutOfMemory> {
    if let Some(table) = area.table(slot.first) {
        return Ok(Some(table));
    }
    // Two first faults, in one process or in two, must not make two tables for one part of the file. Only a slot's
    // first fault in a process comes here.
    let attach = file.attach().lock();
    if let Some(table) = area.table(slot.first).filter(|_| !Mutant::SlotNotLookedAtAgain.is_on()) {
        return Ok(Some(table));
    }
    let counters = file.hugetlb().counters();
    let entry = area.space().pud_entry(slot.start)?;
    // Acquire: pairs with the host's release when it installs a table of its own.
    if format::is_present(entry.load(Ordering::Acquire)) {
        counters.fall_back(Fallback::Occupied, 1);
        return Ok(None);
    }
    let partner = if attach.may_adopt() { adopt(file, area, slot) } else { None };
    let table = match partner {
        Some(table) => {
            counters.shares.add(1);
            table
        }
        None => {
            let frame = file.hugetlb().machine().allocate_table().ok_or(OutOfMemory)?;
            counters.tables.add(1);
            Arc::new(Table::new(frame, slot.first, slot.protection))
        }
    };
    counters.attachments.add(1);
    // Release: a walker that follows the entry finds the table's content.
    entry.store(format::managed(table.frame(), Protection::all()), Ordering::Release);
    // Behind the entry: else a fault that finds the table here resolves nothing, and comes again until the entry is there.
    area.set_table(slot.first, table.clone());
    Ok(Some(table))
}

/// A partner's table, with this mapping counted in already.
fn adopt<M: Machine>(file: &File<M>, area: &Area<M>, slot: Slot) -> Option<Arc<Table<M>>> {
    file.mappings().read().values().filter(|other| other.id() != area.id()).find_map(|other| {
        // The partner may be detaching just now. It is counted out only after its flush, and `adopt` refuses a count of 0:
        // what we get is alive and stays so.
        other.table(slot.first).filter(|table| table.adopt(slot.protection))
    })
}

/// Gives the table of a slot up, or keeps others out of it while its entries change.
pub(super) fn prepare_change<M: Machine>(
    area: &Area<M>,
    slot: Slot,
    purpose: Purpose,
    batch: &mut Batch<'_, M>,
) -> Change<M> {
    let Some(table) = area.table(slot.first).filter(|_| slot.is_whole()) else { return Change::Host };
    if purpose != Purpose::Leave && table.close() {
        if let Purpose::Protect(protection) = purpose {
            table.set_protection(protection);
        }
        batch.open_later(table.clone());
        return Change::InPlace(table);
    }
    area.take_table(slot.first);
    if let Some(entry) = area.space().find_pud_entry(slot.start) {
        // From here the hardware cannot walk into the table any more; what TLBs still hold goes with the batch's flush,
        // and the table counts this mapping until then.
        if !Mutant::UpperEntryKept.is_on() {
            entry.store(0, Ordering::Release);
        }
    }
    batch.release_later(table);
    batch.flush_tables(area, slot.start);
    Change::Done
}

/// The walk visits mappings in turn. Without the pause a mapping behind the walker could adopt the table of one before it,
/// with the entry still in.
pub(super) fn unmap_for_good<M: Machine>(file: &File<M>, index: PageIndex) {
    // Taken alone: a mapping that holds the mutex holds its own lock too, for which the walk waits.
    if Mutant::AdoptedDuringRemoval.is_on() {
        return file.unmap_listed(index.0..index.0 + 1);
    }
    file.attach().lock().pause();
    file.unmap_listed(index.0..index.0 + 1);
    file.attach().lock().resume();
}
