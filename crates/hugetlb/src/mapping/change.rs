//! protect, discard, move, split: what changes a mapping that stays.

use core::ops::Range;

use super::{Alone, Area, Batch, Mapping, Placement};
use crate::addr::{PageIndex, VirtAddr};
use crate::error::{Error, Result};
use crate::file::File;
use crate::format::{self, Protection};
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::sharing::{Change, Purpose};
use crate::sync::{Arc, Ordering};

impl<M: Machine> Mapping<M> {
    /// Changes what the whole mapping permits (mprotect); split it first for a part. The host holds its address-space
    /// lock for writing.
    pub fn protect(&mut self, protection: Protection) {
        let old = self.placement.protection;
        if old == protection {
            return;
        }
        {
            let _fence = self.file.hugetlb().protocol().change_fence(&self.file);
            // Held over the flush: as in `drop`.
            let mut placement = self.area.placement().write();
            let mut batch = Batch::new(&self.file);
            if protection.is_empty() {
                // An entry permits loads at least, so PROT_NONE has none.
                let all = placement.indices();
                self.area.clear_entries(&self.file, &placement, all, Purpose::Leave, &mut batch);
            } else {
                self.change_protection(&placement, protection, !protection.contains(old), &mut batch);
            }
            placement.protection = protection;
            self.placement.protection = protection;
            batch.finish();
        }
        if old.is_empty() {
            self.attach();
        }
    }

    fn change_protection(
        &self,
        placement: &Placement,
        protection: Protection,
        loses: bool,
        batch: &mut Batch<'_, M>,
    ) {
        let private = !self.area.is_shared();
        let size = self.page_size();
        let purpose = Purpose::Protect(protection);
        self.area.change_entries(
            &self.file,
            placement,
            placement.indices(),
            purpose,
            batch,
            |entry, _, _| {
                // Relaxed: the mapping lock orders it; nothing is read through it.
                let old = entry.load(Ordering::Relaxed);
                if !format::is_leaf(old) {
                    return false;
                }
                // A private page may have relatives: the next store faults and looks.
                let permitted = if private { protection - Protection::WRITE } else { protection };
                // AcqRel: no access with the old rights is ordered behind the flush.
                entry.swap(format::leaf(format::leaf_frame(old, size), permitted), Ordering::AcqRel);
                !Mutant::LostRightNotFlushed.is_on() && (loses || (private && format::is_writable(old)))
            },
        );
    }

    /// Tells the mapping what is around it: `room` are the addresses, its own included, in which the address space has
    /// nothing else. The host holds its address-space lock for writing.
    ///
    /// The host calls it *before* it puts something else into a slot that the mapping ends in, and may call it when there
    /// is more room than before: a slot that the mapping has for itself can have a shared table.
    pub fn set_room(&mut self, room: Range<VirtAddr>) {
        let alone = Alone::new(self.start(), self.length(), &room);
        let before = self.placement.alone;
        if alone == before {
            return;
        }
        {
            let _fence = self.file.hugetlb().protocol().change_fence(&self.file);
            // Held over the flush: as in `drop`.
            let mut placement = self.area.placement().write();
            let mut batch = Batch::new(&self.file);
            let last = VirtAddr(self.start().0 + self.length() - 1);
            let crowded = Placement { alone, ..*placement };
            for address in [self.start(), last] {
                let slots = (self.area.slot(&placement, address), self.area.slot(&crowded, address));
                if let (Some(slot), Some(next)) = slots
                    && slot.alone
                    && !next.alone
                    && !slot.is_whole()
                {
                    // Its pages come back by faults, into a table of the host.
                    let protocol = self.file.hugetlb().protocol();
                    if !Mutant::CrowdedSlotKept.is_on() {
                        protocol.prepare_change(&self.area, slot, Purpose::Leave, &mut batch);
                    }
                }
            }
            *placement = crowded;
            self.placement.alone = alone;
            batch.finish();
        }
        if (alone.first && !before.first) || (alone.last && !before.last) {
            self.attach();
        }
    }

    /// Forgets the pages of a byte range that lies in the mapping (MADV_DONTNEED): a shared mapping finds them again in
    /// the file, a private one starts anew from the file's content. The host holds its address-space lock for reading or
    /// writing.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the range is not of whole pages of the mapping.
    pub fn discard(&self, range: Range<VirtAddr>) -> Result<()> {
        let size = self.page_size();
        let inside = range.start >= self.start() && range.end.0 <= self.start().0 + self.length();
        if !inside || range.start > range.end || !range.start.is_aligned(size) || !range.end.is_aligned(size)
        {
            return Err(Error::Invalid);
        }
        let first = self.placement.first.0;
        let indices = first + ((range.start.0 - self.start().0) >> size.shift())
            ..first + ((range.end.0 - self.start().0) >> size.shift());
        let _fence = self.file.hugetlb().protocol().change_fence(&self.file);
        // Held over the flush: as in `drop`.
        let placement = self.area.placement().write();
        let mut batch = Batch::new(&self.file);
        self.area.clear(&self.file, &placement, indices, Purpose::Clear, &mut batch);
        batch.finish();
        Ok(())
    }

    /// Moves the mapping to another address (mremap); what is not attached there at once comes back by faults. `room` as for
    /// [`Mapping::set_room`]. The host holds its address-space lock for writing and has nothing else in the new range.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when `start` is not a multiple of the page size or the range ends beyond all addresses.
    pub fn move_to(&mut self, start: VirtAddr, room: Range<VirtAddr>) -> Result<()> {
        if !start.is_aligned(self.page_size()) || start.0.checked_add(self.length()).is_none() {
            return Err(Error::Invalid);
        }
        {
            let _fence = self.file.hugetlb().protocol().change_fence(&self.file);
            // Held over the flush: as in `drop`.
            let mut placement = self.area.placement().write();
            let mut batch = Batch::new(&self.file);
            let all = placement.indices();
            self.area.clear_entries(&self.file, &placement, all, Purpose::Leave, &mut batch);
            placement.start = start;
            placement.alone = Alone::new(start, self.length(), &room);
            self.placement = *placement;
            batch.finish();
        }
        self.attach();
        Ok(())
    }

    /// Splits the mapping at an address inside; this one keeps the lower part. The host holds its address-space lock for
    /// writing.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when `at` is not inside or not a multiple of the page size.
    pub fn split(&mut self, at: VirtAddr) -> Result<Mapping<M>> {
        let size = self.page_size();
        if at <= self.start() || at.0 >= self.start().0 + self.length() || !at.is_aligned(size) {
            return Err(Error::Invalid);
        }
        let lower_pages = (at.0 - self.start().0) >> size.shift();
        let middle = self.placement.first + lower_pages;
        let _fence = self.file.hugetlb().protocol().change_fence(&self.file);
        // Held until both halves are on the list and the flush is done. In between nobody can share the slot again: Linux let
        // a fault do so (CVE-2025-38084).
        let mut placement = self.area.placement().write();
        let mut batch = Batch::new(&self.file);
        let cut = self.area.slot(&placement, at).filter(|slot| slot.start != at);
        if let Some(slot) = cut.filter(|_| !Mutant::SplitSlotKept.is_on()) {
            // The slot that the cut goes through has two mappings from now on.
            let protocol = self.file.hugetlb().protocol();
            let change = protocol.prepare_change(&self.area, slot, Purpose::Leave, &mut batch);
            debug_assert!(!matches!(change, Change::InPlace(_)), "the table was to be given up");
            if Mutant::SharedAgainInSplit.is_on() {
                protocol.attach(&self.file, &self.area, &placement);
            }
        }
        let upper_placement = Placement {
            start: at,
            first: middle,
            pages: placement.pages - lower_pages,
            alone: Alone { first: cut.is_none(), ..placement.alone },
            ..*placement
        };
        let private = self.area.private().lock().split_off(middle);
        placement.pages = lower_pages;
        placement.alone.last = cut.is_none();
        self.placement = *placement;
        let (file, space) = (self.file.clone(), self.area.space().clone());
        let upper = Self::unattached(file, space, self.area.is_shared(), upper_placement, private);
        upper.area.take_over(&self.area, &self.file, middle);
        batch.finish();
        Ok(upper)
    }
}

impl<M: Machine> Area<M> {
    /// Takes over from a lower part what belongs to the indices from `from` on: its place on the file's list, its tables.
    fn take_over(self: &Arc<Self>, lower: &Area<M>, file: &File<M>, from: PageIndex) {
        if lower.is_listed() {
            self.enlist(file);
        }
        self.join_as(lower, &mut file.cache().lock());
        for (base, table) in lower.split_tables(from) {
            self.set_table(base, table);
        }
    }
}
