//! What a host needs for userfaultfd(2): tables of a mapping's own, withheld stores, pages with a content from
//! elsewhere.
//!
//! A registered mapping has to fault where others would not: on a page that is in the file already (mode MINOR), and at
//! a store to a page that it may read (mode WP). Both are impossible in a table that others share, so the host keeps
//! such a mapping out of them. Linux does the same (`uffd_disable_huge_pmd_share`).

use core::ops::Range;

use filetables::{EntryValue, Format, Protection};

use super::Mapping;
use crate::addr::VirtAddr;
use crate::area::{Area, marks};
use crate::error::{Error, FaultError, OutOfMemory, Result};
use crate::file::File;
use crate::machine::Machine;
use crate::sharing::{Access, Batch, Fault, Fill, Purpose};
use crate::sync::Ordering;

/// What there is of a page before a fault, whether the address space has an entry for it or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// Nothing, and nothing can be: the file ends before it, or the mapping does not cover the address.
    BeyondEnd,
    /// Nothing: the file has a hole.
    Absent,
    /// A page of the file.
    InFile,
    /// The mapping's own copy.
    Copied,
}

impl<M: Machine> Mapping<M> {
    /// Takes the mapping out of all shared tables for the rest of its life, and its parts after a split; a child's
    /// mapping after a fork shares again. Its pages come back by faults. The host holds its address-space lock for
    /// writing.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when there is none for its place on the file's list; nothing has changed then.
    pub fn keep_unshared(&self) -> core::result::Result<(), OutOfMemory> {
        let _fence = self.file.protocol().change_fence(&self.file);
        // Held over the flush: as in `drop`.
        let placement = self.area.lock();
        if !self.is_shared() || self.area.is_unshared() {
            return Ok(());
        }
        // From now on it has entries that the file does not write itself.
        if !self.area.is_listed() {
            let place = self.area.place(self.file.hugetlb().machine())?;
            self.area.enlist(&self.file, place);
        }
        self.area.set_unshared();
        let mut batch = Batch::new(&self.file);
        let all = placement.indices();
        self.area.clear_entries(&self.file, &placement, all, Purpose::Leave, &mut batch);
        batch.finish();
        Ok(())
    }

    /// Withholds stores from the pages of a byte range, whatever the mapping permits, or permits them again. It holds
    /// for pages that come later, too. A store to such a page is the host's to judge: it asks [`Mapping::is_withheld`]
    /// before it calls [`Mapping::fault`]. The mapping is unshared ([`Mapping::keep_unshared`]) or private. The host
    /// holds its address-space lock.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the range is not of whole pages of the mapping, or the mapping may share tables.
    /// [`Error::NoMemory`] when there is none to note it; nothing has changed then. To permit all of a mapping takes
    /// none.
    pub fn withhold_stores(&self, range: Range<VirtAddr>, withhold: bool) -> Result<()> {
        let indices = self.indices(&range).ok_or(Error::Invalid)?;
        if self.is_shared() && !self.area.is_unshared() {
            return Err(Error::Invalid);
        }
        let _fence = self.file.protocol().change_fence(&self.file);
        // Held over the flush: as in `drop`.
        let placement = self.area.lock();
        let (machine, marks) = (self.file.hugetlb().machine(), self.area.marks());
        if withhold {
            marks::withhold(machine, marks, indices.clone())?;
            self.area.set_has_marks();
        } else {
            marks::permit(machine, marks, indices.clone())?;
        }
        // A private page may have relatives: its next store faults and looks.
        let restores = self.is_shared();
        if !withhold && !restores {
            return Ok(());
        }
        let level = self.page_size().level();
        let purpose = Purpose::Protect(placement.protection);
        let mut batch = Batch::new(&self.file);
        self.area.change_entries(&self.file, &placement, indices, purpose, &mut batch, |entry, _, _| {
            // Relaxed: the mapping lock orders it; nothing is read through it.
            let old = entry.load(Ordering::Relaxed);
            if !M::Format::is_leaf(level, old) {
                return false;
            }
            let permitted =
                if withhold { M::Format::protection(old) - Protection::WRITE } else { placement.protection };
            // AcqRel: no store with the old rights is ordered behind the flush.
            let frame = M::Format::leaf_frame(level, old);
            entry.swap(M::Format::leaf(level, frame, permitted), Ordering::AcqRel);
            withhold && M::Format::protection(old).contains(Protection::WRITE)
        });
        batch.finish();
        Ok(())
    }

    /// Whether stores to the page of an address are withheld.
    #[must_use]
    pub fn is_withheld(&self, address: VirtAddr) -> bool {
        self.index(address).is_some_and(|index| self.area.withholds(index))
    }

    /// Poisons the page of an address where the address space has no entry: a fault there is [`FaultError::Poisoned`],
    /// until a page is put there or [`Mapping::discard`] comes by. False when there is an entry. The mapping is unshared from now
    /// on ([`Mapping::keep_unshared`]).
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when there is none to note it; nothing has changed then.
    pub fn poison(&self, address: VirtAddr) -> core::result::Result<bool, OutOfMemory> {
        let Some(index) = self.index(address) else { return Ok(false) };
        let is_present =
            |placement: &_| self.area.leaf(&self.file, placement, address) != EntryValue::default();
        if is_present(&self.area.placement()) {
            return Ok(false);
        }
        // In a table of the file another process's page would come into sight there, without a fault that is refused.
        self.keep_unshared()?;
        // No fault is under way.
        let placement = self.area.lock();
        let present = is_present(&placement);
        if !present {
            marks::poison(self.file.hugetlb().machine(), self.area.marks(), index.0)?;
            self.area.set_has_marks();
        }
        Ok(!present)
    }

    /// What [`Mapping::poison`] did to the page of an address counts no more: a fault there finds what it would have found before. A page that is
    /// broken stays so.
    pub fn lift_poison(&self, address: VirtAddr) {
        if let Some(index) = self.index(address) {
            self.area.heal(&self.file, index.0..index.0 + 1);
        }
    }

    /// Whether the page of an address is poisoned, or broken.
    #[must_use]
    pub fn is_poisoned(&self, address: VirtAddr) -> bool {
        self.index(address).is_some_and(|index| {
            let is_broken = || self.area.page(&self.file, index).is_some_and(|page| page.is_broken());
            self.area.poisons(index) || is_broken()
        })
    }

    /// What a fault at an address would find. The host holds its address-space lock.
    #[must_use]
    pub fn presence(&self, address: VirtAddr) -> Presence {
        let Some(index) = self.index(address) else { return Presence::BeyondEnd };
        if self.area.private().lock().copy(index).is_some() {
            return Presence::Copied;
        }
        match self.file.shown_page(index) {
            Some(_) => Presence::InFile,
            None if self.file.ends_before(index.0) => Presence::BeyondEnd,
            None => Presence::Absent,
        }
    }

    /// Whether the file has a page at an address, whether the mapping has a copy of its own or not.
    #[must_use]
    pub fn is_in_file(&self, address: VirtAddr) -> bool {
        self.index(address).is_some_and(|index| self.file.shown_page(index).is_some())
    }

    /// Puts a page with the content that `fill` writes where there is none, as a fault would: nobody sees it before it
    /// is written. False when there is a page. `fill` must not touch memory that can fault. The host holds its
    /// address-space lock for reading.
    ///
    /// # Errors
    ///
    /// As [`Mapping::fault`]: [`FaultError::Sigbus`] without a free page. [`FaultError::NotMapped`] behind the end of the file, where a
    /// private mapping may have a page: as on Linux.
    pub fn fill(&self, address: VirtAddr, fill: Fill<'_>) -> core::result::Result<bool, FaultError> {
        let index = self.index(address).ok_or(FaultError::NotMapped)?;
        let protocol = self.file.protocol();
        // In this order: as `Mapping::fault_then`.
        let _fence = protocol.fault_fence(&self.file);
        let fault = Fault {
            file: &self.file,
            area: &self.area,
            address: address.floor(self.page_size().level()),
            access: Access::Write,
            fill: Some(fill),
            index: self.file.lock_index(index)?,
        };
        if self.area.is_shared() {
            if self.file.content().get(index.0).is_some() {
                return Ok(false);
            }
            if self.file.ends_before(index.0) {
                // Linux takes the page first, and tells first that there is none.
                self.file.try_page(&fault.index).map_err(|_| FaultError::Sigbus)?;
                return Err(FaultError::NotMapped);
            }
            // The host keeps the rights as they are. PROT_NONE has no entries.
            let is_shown = !self.area.placement().protection.is_empty();
            let filled = if is_shown { protocol.fault(&fault) } else { fault.unshown_page() };
            match filled {
                Ok(_) => {}
                // The index is locked, so the page is this one. It has no entry yet, and the next access makes it. A mapping that
                // would be told of that access is unshared, and has its entry before the page.
                Err(_) if self.file.content().get(index.0).is_some() => {}
                Err(error) => return Err(error),
            }
        } else {
            if self.area.private().lock().copy(index).is_some() || self.is_resident(address) {
                return Ok(false);
            }
            fault.private()?;
        }
        self.area.heal(&self.file, index.0..index.0 + 1);
        Ok(true)
    }

    /// The page indices of a byte range of whole pages inside the mapping.
    pub(super) fn indices(&self, range: &Range<VirtAddr>) -> Option<Range<u64>> {
        let size = self.page_size();
        let inside = range.start >= self.start() && range.end.0 <= self.start().0 + self.length();
        if !inside
            || range.start > range.end
            || !range.start.begins(size.level())
            || !range.end.begins(size.level())
        {
            return None;
        }
        let index = |at: VirtAddr| self.placement.first.0 + ((at.0 - self.start().0) >> size.shift());
        Some(index(range.start)..index(range.end))
    }
}

impl<M: Machine> Area<M> {
    /// The indices are not poisoned any more.
    pub(super) fn heal(&self, file: &File<M>, indices: Range<u64>) {
        if self.has_marks() {
            marks::heal(file.hugetlb().machine(), self.marks(), indices);
        }
    }
}
