//! protect, discard, move, split: what changes a mapping that stays.

use core::ops::Range;

use filetables::{Format, Level, Protection};

use super::Mapping;
use crate::addr::{PageIndex, VirtAddr};
use crate::area::marks::RangeRoom;
use crate::area::{self, Area, Exclusive, Placement, Private};
use crate::error::{Error, OutOfMemory, Result};
use crate::file::File;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::sharing::{Batch, Purpose, next_slot};
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
            let _fence = self.file.protocol().change_fence(&self.file);
            // Held over the flush: as in `drop`.
            let mut placement = self.area.lock();
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
        placement: &Exclusive<'_, M>,
        protection: Protection,
        loses: bool,
        batch: &mut Batch<'_, M>,
    ) {
        let private = !self.area.is_shared();
        let level = self.page_size().level();
        let purpose = Purpose::Protect(protection);
        self.area.change_entries(
            &self.file,
            placement,
            placement.indices(),
            purpose,
            batch,
            |entry, index, _| {
                // Relaxed: the mapping lock orders it; nothing is read through it.
                let old = entry.load(Ordering::Relaxed);
                if !M::Format::is_leaf(level, old) {
                    return false;
                }
                // A private page may have relatives: the next store faults and looks.
                let fixed = private || self.area.withholds(index);
                let permitted = if fixed { protection - Protection::WRITE } else { protection };
                // AcqRel: no access with the old rights is ordered behind the flush.
                let frame = M::Format::leaf_frame(level, old);
                entry.swap(M::Format::leaf(level, frame, permitted), Ordering::AcqRel);
                let was_writable = M::Format::protection(old).contains(Protection::WRITE);
                !Mutant::LostRightNotFlushed.is_on() && (loses || (private && was_writable))
            },
        );
    }

    /// Takes the mapping out of the shared table in the slot around an address: an empty table of the host takes the
    /// place of the shared one, and the mapping's pages there come back by faults. Returns whether the mapping was
    /// attached.
    ///
    /// The host calls it of each mapping in the slot when it needs a table of its own there and finds a managed PUD
    /// entry, or when another mapping's fault says [`crate::FaultError::SlotShared`]. It holds its address-space lock
    /// for reading or writing.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when the host has no frame for its table; nothing has changed then.
    pub fn leave_slot(&self, address: VirtAddr) -> Result<bool, OutOfMemory> {
        // Held over the flush: as in `drop`.
        let placement = self.area.lock();
        // Where the mapping has the slot: the address may be of its neighbour.
        let slot = address.floor(Level::Pud);
        let address = slot.max(placement.start);
        let end = placement.start.0 + (placement.pages << self.page_size().shift());
        if !self.is_shared() || address.floor(Level::Pud) != slot || address.0 >= end {
            return Ok(false);
        }
        let mut batch = Batch::new(&self.file);
        let left = self.file.protocol().leave_slot(&self.area, &placement, address, &mut batch)?;
        batch.finish();
        Ok(left)
    }

    /// Attaches the mapping in the slot around an address, if the slot's PUD entry is empty: so the next access there
    /// need not fault. The host may call it when something has left the slot. It holds its address-space lock for
    /// writing. Where the architecture wants an entry to be broken before it is made anew (AArch64: a table's frame must not change
    /// under a TLB that may have walked it), the host has flushed the TLBs of the table that was there.
    pub fn settle(&self, address: VirtAddr) {
        let (start, end) = (self.start(), self.start() + self.length());
        let from = address.floor(Level::Pud).max(start);
        let to = next_slot(address).map_or(end, |next| next.min(end));
        if from < to {
            let shift = self.page_size().shift();
            let part = Placement {
                start: from,
                first: self.placement.first + ((from.0 - start.0) >> shift),
                pages: (to.0 - from.0) >> shift,
                ..self.placement
            };
            self.attach_part(&part);
        }
    }

    /// Forgets the pages of a byte range that lies in the mapping (MADV_DONTNEED): a shared mapping finds them again in
    /// the file, a private one starts anew from the file's content. The host holds its address-space lock for reading
    /// or writing.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the range is not of whole pages of the mapping.
    pub fn discard(&self, range: Range<VirtAddr>) -> Result<()> {
        let indices = self.indices(&range).ok_or(Error::Invalid)?;
        let _fence = self.file.protocol().change_fence(&self.file);
        // Held over the flush: as in `drop`.
        let placement = self.area.lock();
        let mut batch = Batch::new(&self.file);
        self.area.clear(&self.file, &placement, indices.clone(), Purpose::Clear, &mut batch);
        batch.finish();
        self.area.heal(&self.file, indices);
        Ok(())
    }

    /// Moves the mapping to another address (mremap); what is not attached there at once comes back by faults. The host
    /// holds its address-space lock for writing and has nothing else in the new range.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when `start` is not a multiple of the page size or the range ends beyond all addresses.
    pub fn move_to(&mut self, start: VirtAddr) -> Result<()> {
        if !start.begins(self.page_size().level()) || start.0.checked_add(self.length()).is_none() {
            return Err(Error::Invalid);
        }
        {
            let _fence = self.file.protocol().change_fence(&self.file);
            // Held over the flush: as in `drop`.
            let mut placement = self.area.lock();
            let mut batch = Batch::new(&self.file);
            let all = placement.indices();
            self.area.clear_entries(&self.file, &placement, all, Purpose::Leave, &mut batch);
            placement.start = start;
            self.placement = *placement;
            batch.finish();
        }
        self.attach();
        Ok(())
    }

    /// Splits the mapping at an address inside; this one keeps the lower part. The host holds its address-space lock
    /// for writing.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when `at` is not inside or not a multiple of the page size. [`Error::NoMemory`] when there is
    /// none for the upper part; nothing has changed then.
    pub fn split(&mut self, at: VirtAddr) -> Result<Mapping<M>> {
        let size = self.page_size();
        if at <= self.start() || at.0 >= self.start().0 + self.length() || !at.begins(size.level()) {
            return Err(Error::Invalid);
        }
        let lower_pages = (at.0 - self.start().0) >> size.shift();
        let middle = self.placement.first + lower_pages;
        let _fence = self.file.protocol().change_fence(&self.file);
        // Held until both halves are on the list and the flush is done. In between nobody can share the slot again:
        // Linux let a fault do so (CVE-2025-38084).
        let mut placement = self.area.lock();
        let upper_placement =
            Placement { start: at, first: middle, pages: placement.pages - lower_pages, ..*placement };
        let (promise, robbed) = {
            let private = self.area.private().lock();
            (private.promise.clone(), private.robbed)
        };
        let space = self.area.space().clone();
        let private = Private::new(promise, robbed);
        let area = self.new_area(space, upper_placement, private, self.area.unmapped_by());
        let machine = self.file.hugetlb().machine();
        let place = self.area.is_listed().then(|| area.place(machine)).transpose()?;
        let marks = area::marks::cut_room(machine, self.area.marks(), middle.0)?;
        let mut batch = Batch::new(&self.file);
        // The slot that the cut goes through has two mappings from now on.
        let protocol = self.file.protocol();
        let is_cut = self.is_shared()
            && !Mutant::SplitSlotKept.is_on()
            && protocol.leave_cut_slot(&self.area, &placement, at, &mut batch);
        if self.is_shared() && Mutant::SharedAgainInSplit.is_on() {
            protocol.attach(&self.file, &self.area, &placement);
        }
        placement.pages = lower_pages;
        self.placement = *placement;
        area.take_over(&self.area, &placement, &self.file, middle, marks);
        if let Some(place) = place {
            area.enlist(&self.file, place);
        }
        let upper = Mapping { file: self.file.clone(), area, placement: upper_placement, is_unmapped: false };
        batch.finish();
        drop(placement);
        if is_cut {
            // A slot of 512 GiB has many parts that neither half has to miss.
            self.attach();
            upper.attach();
        }
        Ok(upper)
    }
}

impl<M: Machine> Area<M> {
    /// Takes over from a lower part what belongs to the indices from `from` on: private copies, marks and tables.
    /// `room` is for the marks.
    fn take_over(
        self: &Arc<Self>,
        lower: &Area<M>,
        held: &Exclusive<'_, M>,
        file: &File<M>,
        from: PageIndex,
        room: Option<RangeRoom>,
    ) {
        let machine = file.hugetlb().machine();
        if lower.is_unshared() {
            self.set_unshared();
        }
        if lower.has_marks() {
            self.set_has_marks();
            area::marks::split_off(machine, lower.marks(), from.0, self.marks(), room);
        }
        area::split_off(machine, lower.private(), from, self.private());
        if lower.has_joined() {
            let joined = self.join(file);
            debug_assert!(joined.is_ok(), "a space that is known needs no memory to be known twice");
        }
        file.protocol().split(lower, held, from.0, self);
    }
}
