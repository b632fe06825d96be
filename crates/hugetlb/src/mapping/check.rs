//! What must hold of a mapping's entries at any moment, looked at from the hardware's side.
//!
//! For a host's debug builds: [`Mapping::check`] reads the PUD entries of the address space and what they lead to, not the
//! library's own records of what it wrote, and compares with the file. It holds the mapping lock for writing and the cache lock
//! for each table, so that what it sees is one moment; it is correct to call it while everything else goes on.

use alloc::format;
use alloc::string::String;
use core::ops::Range;

use super::{CheckRound, Mapping, Placement, Slot};
use crate::addr::{PageIndex, PhysAddr, VirtAddr};
use crate::format::{is_leaf, is_managed, is_present, leaf_frame, protection, table_frame};
use crate::machine::{Machine, Space};
use crate::sharing::entry_index;
use crate::sync::Ordering;

type Check = core::result::Result<(), String>;

impl<M: Machine> Mapping<M> {
    /// Checks the invariants of what the hardware can reach through this mapping: every leaf leads to the file's page at its
    /// index, or to a private copy; a table of the library belongs to this part of the file and shows nothing else; no
    /// entry permits more than the mapping. The host holds its address-space lock for reading.
    ///
    /// `round` is told what was found: a page belongs to one file and is not free, and what a table's count is worth is seen when
    /// all mappings were looked at.
    ///
    /// # Errors
    ///
    /// Which invariant is broken, at which address, by which entry.
    pub fn check(&self, round: &mut CheckRound<M>) -> Check {
        // No fault of this mapping is under way, and nobody attaches or detaches it.
        let placement = self.area.placement().write();
        if self.area.slot(&placement, placement.start).is_none() {
            return self.check_host(&placement, placement.indices(), round);
        }
        for slot in self.area.slots(&placement) {
            let Some(entry) = self.area.space().find_pud_entry(slot.start) else { continue };
            let pud = entry.load(Ordering::Acquire);
            if is_managed(pud) {
                self.check_attached(slot, pud, round)?;
            } else if is_present(pud) {
                self.check_host(&placement, slot.first.0..slot.first.0 + slot.pages, round)?;
            }
        }
        Ok(())
    }

    /// A slot whose PUD entry leads to a table of the library.
    fn check_attached(&self, slot: Slot, pud: u64, round: &mut CheckRound<M>) -> Check {
        let frame = table_frame(pud);
        let cache = self.file.cache().lock();
        let adopted = self.area.table(slot.first);
        let owned = cache.table_at(slot.first, slot.pages, slot.entry);
        let counted = match (&adopted, owned) {
            (Some(table), _) => table.sharers(),
            (None, Some((_, attachments))) => attachments,
            (None, None) => 0,
        };
        let (adopted, owned) = (adopted.map(|table| table.frame()), owned.map(|(frame, _)| frame));
        let is_own = [adopted, owned].contains(&Some(frame));
        if !slot.is_whole() {
            // It may be the table of another mapping in the slot, which will say so.
            round.found_in_part(self.area.space().id(), slot.start, is_own);
            if !is_own {
                return Ok(());
            }
        }
        if !is_own {
            return Err(format!(
                "invariant 3: {:?} leads to the table {frame:?}, which does not belong there ({adopted:?}, {owned:?})",
                slot.start
            ));
        }
        // Adopted tables have the rights in their leaves.
        if owned.is_some() && !slot.protection.contains(protection(pud)) {
            return Err(format!(
                "invariant 3: {:?} permits {:?} by entry {pud:#x}, its mapping {:?}",
                slot.start,
                protection(pud),
                slot.protection
            ));
        }
        if !round.found_table(frame, counted) {
            return Ok(());
        }
        for (number, entry) in self.file.hugetlb().machine().table(frame).iter().enumerate() {
            // Under the cache lock: whatever a leaf leads to cannot leave the cache between this load and the comparison.
            let value = entry.load(Ordering::Acquire);
            if value == 0 {
                continue;
            }
            let within = number.checked_sub(slot.entry).filter(|within| (*within as u64) < slot.pages);
            let page = within.and_then(|within| cache.get(slot.first + within as u64));
            let found = is_leaf(value).then(|| leaf_frame(value, self.page_size()));
            if found.is_none() || found != page.map(|page| page.frame()) {
                return Err(format!(
                    "invariant 1: entry {number} of the table {frame:?} at {:?} is {value:#x}, the file's page there {:?}",
                    slot.start,
                    page.map(|page| page.frame())
                ));
            }
            if let Some(page) = page {
                round.found_page(self.file.id(), slot.first + (number - slot.entry) as u64, page)?;
            }
        }
        Ok(())
    }

    /// Entries in tables of the host.
    fn check_host(&self, placement: &Placement, indices: Range<u64>, round: &mut CheckRound<M>) -> Check {
        for index in indices.map(PageIndex) {
            let address = self.area.address(placement, index.0);
            let cache = self.file.cache().lock();
            let Some(entry) = self.area.find_host_entry(address) else { continue };
            let value = entry.load(Ordering::Acquire);
            if value == 0 {
                continue;
            }
            let copy = self.area.private().lock().copies.get(&index).map(|share| share.page().clone());
            let cached = cache.get(index);
            let frames = [&copy, &cached.cloned()].map(|page| page.as_ref().map(|page| page.frame()));
            self.check_leaf(placement, address, value, frames)?;
            if let Some(page) = copy.as_ref().or(cached) {
                round.found_page(self.file.id(), index, page)?;
            }
        }
        Ok(())
    }

    fn check_leaf(
        &self,
        placement: &Placement,
        address: VirtAddr,
        value: u64,
        [copy, cached]: [Option<PhysAddr>; 2],
    ) -> Check {
        let found = is_leaf(value).then(|| leaf_frame(value, self.page_size()));
        if found.is_none() || (found != copy && (copy.is_some() || found != cached)) {
            return Err(format!(
                "invariant 1: the entry at {address:?} ({}) is {value:#x}, the file's page there {cached:?}, the copy {copy:?}",
                entry_index(address)
            ));
        }
        if !placement.protection.contains(protection(value)) {
            return Err(format!(
                "invariant 3: the entry at {address:?} is {value:#x}, its mapping permits {:?}",
                placement.protection
            ));
        }
        Ok(())
    }
}
