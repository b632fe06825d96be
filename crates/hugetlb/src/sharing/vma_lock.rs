//! The protocol `vma-lock`: a fault is fenced by its mapping's own lock.
//!
//! A mapping that faults in an empty slot adopts the table of a partner: another mapping of the file that has one for the
//! same part, congruent modulo 1 GiB and with the same permissions. From then on their faults fill one table.
//!
//! **The fence.** A fault holds its area's lock for reading from the look at the PUD entry to the store of the leaf; who
//! detaches a mapping (unmap, protect, move, split, truncate, punch) holds that area's lock for writing. So a fault
//! that found a table is attached to it when it writes. Mappings of others go on: their lock is another one.
//!
//! **The price.** Truncation and hole punch visit and detach every mapping of the file, and each comes back by a fault.

use super::{Change, Protocol, Slot, Table};
use crate::addr::{PageIndex, VirtAddr};
use crate::error::OutOfMemory;
use crate::file::File;
use crate::format;
use crate::machine::{Machine, Space};
use crate::mapping::{Area, Batch};
use crate::stats::Fallback;
use crate::sync::{Arc, Ordering};

pub(super) struct VmaLock;

impl VmaLock {
    /// A partner's table, with this mapping counted in already.
    fn adopt<M: Machine>(file: &File<M>, area: &Area<M>, slot: Slot) -> Option<Arc<Table<M>>> {
        file.mappings().read().values().filter(|other| other.id() != area.id()).find_map(|other| {
            // The partner may be detaching just now. It is counted out only after its flush, and `adopt` refuses a count of 0:
            // what we get is alive and stays so.
            other.table(slot.base).filter(|table| table.adopt(slot.protection))
        })
    }
}

impl<M: Machine> Protocol<M> for VmaLock {
    fn table_for_fault(
        &self,
        file: &File<M>,
        area: &Area<M>,
        slot: Slot,
    ) -> Result<Option<Arc<Table<M>>>, OutOfMemory> {
        if let Some(table) = area.table(slot.base) {
            return Ok(Some(table));
        }
        // Two first faults, in one process or in two, must not make two tables for one part of the file. Only a slot's
        // first fault in a process comes here.
        let attach = file.attach().lock();
        if let Some(table) = area.table(slot.base) {
            return Ok(Some(table));
        }
        let counters = file.hugetlb().counters();
        let entry = area.space().pud_entry(slot.start)?;
        // Acquire: pairs with the host's release when it installs a table of its own.
        if format::is_present(entry.load(Ordering::Acquire)) {
            counters.fall_back(Fallback::Occupied, 1);
            return Ok(None);
        }
        let partner = if attach.may_adopt() { Self::adopt(file, area, slot) } else { None };
        let table = match partner {
            Some(table) => {
                counters.shares.add(1);
                table
            }
            None => {
                let frame = file.hugetlb().machine().allocate_table().ok_or(OutOfMemory)?;
                counters.tables.add(1);
                Arc::new(Table::new(frame, slot.base, slot.protection))
            }
        };
        counters.attachments.add(1);
        area.set_table(slot.base, table.clone());
        // Release: a walker that follows the entry finds the table's content.
        entry.store(format::managed(table.frame()), Ordering::Release);
        Ok(Some(table))
    }

    fn prepare_change(
        &self,
        area: &Area<M>,
        start: VirtAddr,
        base: PageIndex,
        keep: bool,
        batch: &mut Batch<'_, M>,
    ) -> Change<M> {
        let Some(table) = area.table(base) else { return Change::NoTable };
        if keep && table.close() {
            batch.open_later(table.clone());
            return Change::InPlace(table);
        }
        area.take_table(base);
        if let Some(entry) = area.space().find_pud_entry(start) {
            // From here the hardware cannot walk into the table any more; what TLBs still hold goes with the batch's flush,
            // and the table counts this mapping until then.
            entry.store(0, Ordering::Release);
        }
        batch.release_later(table);
        batch.flush_tables(area, start);
        Change::Detached
    }
}
