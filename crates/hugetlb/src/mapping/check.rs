//! What must hold of a mapping's entries at any moment, looked at from the hardware's side.
//!
//! For a host's debug builds: [`Mapping::check`] reads the PUD entries of the address space and what they lead to, not the
//! library's own records of what it wrote, and compares with the file. It holds the mapping lock for writing and the lock of the piece
//! for each entry, so that what it sees is one moment; it is correct to call it while everything else goes on.

use alloc::format;
use alloc::string::String;
use core::ops::Range;

use filetables::{Entry, EntryValue, Format, Found, Level, Seen, Slot, Space};

use super::{CheckRound, Mapping};
use crate::addr::{PageIndex, PhysAddr, VirtAddr};
use crate::area::Placement;
use crate::machine::Machine;
use crate::sharing::Table;
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
        let placement = self.area.lock();
        if !self.is_shared() {
            return self.check_host(&placement, placement.indices(), round);
        }
        let extent = self.area.extent(&placement);
        let mut next = Some(placement.start);
        while let Some(address) = next.filter(|address| *address < extent.end()) {
            let found;
            (found, next) = self.file.content().look(self.area.space(), &extent, address);
            let slot = extent.slot(address, Level::Pud).filter(|slot| !slot.whole);
            if let Some(slot) = slot
                && let Some(entry) = self.area.space().find_entry(slot.address, slot.level)
                && M::Format::is_managed(slot.level, entry.load(Ordering::Acquire))
            {
                // It may be the table of another mapping in the slot, which will say so.
                let is_own = matches!(found, Found::Attached(..));
                round.found_in_part(self.area.space().id(), slot.address, is_own);
            }
            let end = next.map_or(extent.end(), |next| next.min(extent.end()));
            let index =
                |address: VirtAddr| extent.first + ((address.0 - extent.start.0) >> self.page_size().shift());
            match found {
                Found::Nothing => {}
                Found::Host => self.check_host(&placement, index(address)..index(end), round)?,
                Found::Attached(slot, entry) => self.check_attached(&placement, slot, entry, round)?,
            }
        }
        Ok(())
    }

    /// A slot whose entry leads to a table of the library.
    fn check_attached(
        &self,
        placement: &Placement,
        slot: Slot,
        entry: &Entry,
        round: &mut CheckRound<M>,
    ) -> Check {
        let value = entry.load(Ordering::Acquire);
        let frame = M::Format::table_frame(value);
        round.found_attachment();
        if let Some(table) = self.file.protocol().table(&self.area, slot.window.first) {
            return self.check_adopted(placement, slot, &table, frame, round);
        }
        if M::Format::table_exceeds(value, placement.protection) {
            return Err(format!(
                "invariant 3: {:?} permits {:?} by entry {value:?}, its mapping {:?}",
                slot.address,
                M::Format::table_rights(value),
                placement.protection
            ));
        }
        self.file.content().check_slot(&slot.window, frame, &mut |seen| match seen {
            Seen::Table(frame, attachments) => {
                round.settle()?;
                Ok(round.found_table(frame, attachments))
            }
            Seen::Page(index, page) => round.note_page(self.file.id(), PageIndex(index), page).map(|()| true),
        })?;
        round.settle()
    }

    fn check_adopted(
        &self,
        placement: &Placement,
        slot: Slot,
        table: &Table,
        frame: PhysAddr,
        round: &mut CheckRound<M>,
    ) -> Check {
        if table.frame != frame {
            return Err(format!(
                "invariant 3: {:?} leads to the table {frame:?}, which does not belong there ({:?})",
                slot.address, table.frame
            ));
        }
        if !round.found_table(frame, table.sharers) {
            return Ok(());
        }
        for (number, entry) in self.file.hugetlb().machine().table(frame).iter().enumerate() {
            let index = PageIndex(slot.window.first + number as u64);
            let value = entry.load(Ordering::Acquire);
            if value == EntryValue::default() {
                continue;
            }
            let cached = self.file.content().get(index.0);
            // Once more: a page whose entry is still there has not left the content before it was looked up.
            if entry.load(Ordering::Acquire) != value {
                continue;
            }
            let address = slot.address + ((number as u64) << self.page_size().shift());
            let frames = [None, cached.as_ref().map(|page| page.frame())];
            self.check_leaf(placement, address, value, frames)?;
            if let Some(page) = &cached {
                round.found_page(self.file.id(), index, page)?;
            }
        }
        Ok(())
    }

    /// Entries in tables of the host.
    fn check_host(&self, placement: &Placement, indices: Range<u64>, round: &mut CheckRound<M>) -> Check {
        self.area.each_host_entry(&self.file, placement, indices, |entry, index| {
            let value = entry.load(Ordering::Acquire);
            if value == EntryValue::default() {
                return Ok(());
            }
            let address = self.area.address(placement, index.0);
            let copy = self.area.private().lock().copy(index).map(|share| share.page().clone());
            let cached = self.file.content().get(index.0);
            let frames = [&copy, &cached].map(|page| page.as_ref().map(|page| page.frame()));
            self.check_leaf(placement, address, value, frames)?;
            if let Some(page) = copy.as_ref().or(cached.as_ref()) {
                round.found_page(self.file.id(), index, page)?;
            }
            Ok(())
        })
    }

    fn check_leaf(
        &self,
        placement: &Placement,
        address: VirtAddr,
        value: EntryValue,
        [copy, cached]: [Option<PhysAddr>; 2],
    ) -> Check {
        let level = self.page_size().level();
        let found = M::Format::is_leaf(level, value).then(|| M::Format::leaf_frame(level, value));
        if found.is_none() || (found != copy && (copy.is_some() || found != cached)) {
            return Err(format!(
                "invariant 1: the entry at {address:?} is {value:?}, the file's page there {cached:?}, the copy {copy:?}"
            ));
        }
        if M::Format::exceeds(value, placement.protection) {
            return Err(format!(
                "invariant 3: the entry at {address:?} is {value:?}, its mapping permits {:?}",
                placement.protection
            ));
        }
        Ok(())
    }
}
