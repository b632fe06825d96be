//! protect, discard, move, split: what changes a mapping that stays.

use core::ops::Range;

use super::{Area, Batch, Mapping};
use crate::addr::VirtAddr;
use crate::error::{Error, Result};
use crate::format::{self, Protection};
use crate::machine::Machine;
use crate::sharing::Change;
use crate::sync::Ordering;

impl<M: Machine> Mapping<M> {
    /// Changes what the whole mapping permits (mprotect); split it first for a part. The host holds its address-space
    /// lock for writing.
    pub fn protect(&mut self, protection: Protection) {
        // Held over the flush: as in `drop`.
        let mut placement = self.area.placement().write();
        let old = placement.protection;
        if old == protection {
            return;
        }
        let mut batch = Batch::new(&self.file);
        if protection.is_empty() {
            // An entry permits loads at least, so PROT_NONE has none.
            self.area.clear_entries(&self.file, &placement, placement.indices(), false, &mut batch);
        } else {
            self.change_protection(&placement, protection, !protection.contains(old), &mut batch);
        }
        placement.protection = protection;
        self.placement.protection = protection;
        batch.finish();
    }

    fn change_protection(
        &self,
        placement: &super::Placement,
        protection: Protection,
        loses: bool,
        batch: &mut Batch<'_, M>,
    ) {
        let private = !self.area.is_shared();
        // Tables of the library first learn what their leaves will say, then adopters may come again.
        for_each_slot(placement, self.page_size().shift(), |address| {
            if let Some(slot) = self.area.slot(placement, address)
                && let Change::InPlace(table) = self
                    .file
                    .hugetlb()
                    .protocol()
                    .prepare_change(&self.area, slot.start, slot.base, true, batch)
            {
                table.set_protection(protection);
            }
        });
        let size = self.page_size();
        self.area.change_entries(&self.file, placement, placement.indices(), true, batch, |entry, _, _| {
            // Relaxed: the mapping lock orders it; nothing is read through it.
            let old = entry.load(Ordering::Relaxed);
            if !format::is_leaf(old) {
                return false;
            }
            // A private page may have relatives: the next store faults and looks.
            let permitted = if private { protection - Protection::WRITE } else { protection };
            // AcqRel: no access with the old rights is ordered behind the flush.
            entry.swap(format::leaf(format::leaf_frame(old, size), permitted), Ordering::AcqRel);
            loses || (private && format::is_writable(old))
        });
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
        // Held over the flush: as in `drop`.
        let placement = self.area.placement().write();
        let mut batch = Batch::new(&self.file);
        self.area.clear(&self.file, &placement, indices, true, &mut batch);
        batch.finish();
        Ok(())
    }

    /// Moves the mapping to another address (mremap); its pages come back by faults there. The host holds its address-space
    /// lock for writing and has nothing else in the new range.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when `start` is not a multiple of the page size or the range ends beyond all addresses.
    pub fn move_to(&mut self, start: VirtAddr) -> Result<()> {
        if !start.is_aligned(self.page_size()) || start.0.checked_add(self.length()).is_none() {
            return Err(Error::Invalid);
        }
        // Held over the flush: as in `drop`.
        let mut placement = self.area.placement().write();
        let mut batch = Batch::new(&self.file);
        self.area.clear_entries(&self.file, &placement, placement.indices(), false, &mut batch);
        placement.start = start;
        self.placement.start = start;
        batch.finish();
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
        // Held until both halves are on the list and the flush is done. In between nobody can share the slot again: Linux let
        // a fault do so (CVE-2025-38084).
        let mut placement = self.area.placement().write();
        let mut batch = Batch::new(&self.file);
        if let Some(slot) = self.area.slot(&placement, at)
            && slot.start != at
        {
            // The slot that the cut goes through has two mappings from now on.
            let table = self
                .file
                .hugetlb()
                .protocol()
                .prepare_change(&self.area, slot.start, slot.base, false, &mut batch);
            debug_assert!(!matches!(table, Change::InPlace(_)), "the table was to be given up");
        }
        let mut upper_placement = *placement;
        upper_placement.start = at;
        upper_placement.first = middle;
        upper_placement.pages -= lower_pages;
        let private = self.area.private().lock().split_off(middle);
        placement.pages = lower_pages;
        self.placement.pages = lower_pages;
        let upper = Self::enlist(
            self.file.clone(),
            self.area.space().clone(),
            self.area.is_shared(),
            upper_placement,
            private,
        );
        upper.area.adopt_tables(&self.area, middle);
        batch.finish();
        Ok(upper)
    }
}

/// Calls `visit` with an address in each slot of the placement.
fn for_each_slot(placement: &super::Placement, shift: u32, mut visit: impl FnMut(VirtAddr)) {
    let end = placement.start.0 + (placement.pages << shift);
    let mut address = placement.start;
    while address.0 < end {
        visit(address);
        let Some(next) = address.slot().0.checked_add(crate::addr::SLOT_SIZE) else { return };
        address = VirtAddr(next);
    }
}

impl<M: Machine> Area<M> {
    /// Takes over the managed tables of a lower part from an index on.
    fn adopt_tables(&self, lower: &Area<M>, from: crate::addr::PageIndex) {
        let tables = lower.split_tables(from);
        for (base, table) in tables {
            self.set_table(base, table);
        }
    }
}
