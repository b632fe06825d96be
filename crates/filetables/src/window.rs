//! Which part of a file a table shows, and where a mapping shows it.

use core::ops::Range;

use crate::addr::{Level, TABLE_ENTRIES, VirtAddr};
use crate::format::Protection;

/// The key of a table: which pages it shows, in which entries, with which rights.
///
/// Mappings with the same window share a table, whatever their addresses are. The first entry and the first page
/// together are the *phase*. A table above the leaf level is always whole: all its entries show pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Window {
    /// The index of the first page, in pages of the file.
    pub first: u64,
    /// How many pages, in pages of the file.
    pub pages: u64,
    /// The level of the table.
    pub level: Level,
    /// The entry that shows the first page.
    pub entry: u16,
    /// The rights of the leaves: all of them where an entry above can take rights away.
    pub rights: Protection,
}

impl Window {
    /// The pages, by index.
    #[must_use]
    pub fn indices(&self) -> Range<u64> {
        self.first..self.first.saturating_add(self.pages)
    }

    /// The entry of a table of leaves that shows a page, if the window has the page.
    #[must_use]
    pub fn entry_of(&self, index: u64) -> Option<usize> {
        let within = index.checked_sub(self.first).filter(|within| *within < self.pages)?;
        Some(usize::from(self.entry) + within as usize)
    }
}

/// Pages of a file at addresses: what a mapping is to the tables of a file.
///
/// Pages whose index or address would be behind the last there is are none of the mapping's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The first address, a multiple of the page size.
    pub start: VirtAddr,
    /// The index of the page at the first address.
    pub first: u64,
    /// How many pages.
    pub pages: u64,
    /// The level of the leaves: the size of the pages.
    pub leaf: Level,
    /// The rights of the windows: [`Format::key_rights`](crate::format::Format::key_rights) of the mapping's.
    pub rights: Protection,
}

/// A part of a mapping that one entry of the process covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Where the entry begins; the mapping may begin later.
    pub address: VirtAddr,
    /// The level of the process's entry.
    pub level: Level,
    /// What a table for the slot shows.
    pub window: Window,
    /// Whether the mapping has all of the slot. Then nothing else is in it.
    pub whole: bool,
}

/// The highest level of a table that can belong to a file.
pub const HIGHEST: Level = Level::Pud;

impl Extent {
    /// How many pages have an index and an address.
    fn fitting(&self) -> u64 {
        self.pages.min(u64::MAX - self.first).min((u64::MAX - self.start.0) >> self.leaf.shift())
    }

    /// The address behind the last page.
    #[must_use]
    pub fn end(&self) -> VirtAddr {
        self.start + (self.fitting() << self.leaf.shift())
    }

    /// The index behind the last page.
    #[must_use]
    pub fn end_index(&self) -> u64 {
        self.first + self.fitting()
    }

    /// The part that lies in the slot of a process's entry of `level` around `address`, which the mapping covers.
    #[must_use]
    pub fn slot(&self, address: VirtAddr, level: Level) -> Option<Slot> {
        let table = level.below()?;
        if table < self.leaf || table > HIGHEST || address < self.start || address >= self.end() {
            return None;
        }
        let slot = address.floor(level);
        let slot_end = slot.0.saturating_add(level.span());
        let (from, to) = (slot.max(self.start), slot_end.min(self.end().0));
        let shift = self.leaf.shift();
        let window = Window {
            first: self.first + ((from.0 - self.start.0) >> shift),
            pages: (to - from.0) >> shift,
            level: table,
            entry: self.leaf.index(from) as u16 * u16::from(table == self.leaf),
            rights: self.rights,
        };
        let whole = from == slot && to == slot_end;
        // A part of what the highest table spans is not shared: whoever else came to the rest would need all of it back.
        (whole || (table == self.leaf && table < HIGHEST)).then_some(Slot {
            address: slot,
            level,
            window,
            whole,
        })
    }

    /// The slot around `address` of the highest level that the mapping fills, else of the level above the leaves. `None`
    /// where no table can be shared.
    #[must_use]
    pub fn highest_slot(&self, address: VirtAddr) -> Option<Slot> {
        let mut level = HIGHEST.above()?;
        loop {
            if let Some(slot) = self.slot(address, level) {
                return Some(slot);
            }
            level = level.below()?;
        }
    }

    /// The slots of the mapping in the order of their addresses, each of the highest level that the mapping fills.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        let extent = *self;
        let mut next = Some(extent.start);
        core::iter::from_fn(move || {
            while let Some(address) = next.filter(|address| *address < extent.end()) {
                let slot = extent.highest_slot(address);
                next = extent.behind(address, slot);
                if slot.is_some() {
                    return slot;
                }
            }
            None
        })
    }

    /// Where the slots go on behind that of `address`, or behind what cannot be shared around it.
    pub(crate) fn behind(&self, address: VirtAddr, slot: Option<Slot>) -> Option<VirtAddr> {
        let level = slot.map_or(HIGHEST.above()?, |slot| slot.level);
        address.floor(level).0.checked_add(level.span()).map(VirtAddr)
    }

    /// The parts of a slot one level down; none of a slot that leads to leaves.
    pub fn parts(&self, slot: Slot) -> impl Iterator<Item = Slot> + use<> {
        let extent = *self;
        let below = slot.level.below().filter(|_| slot.window.level > self.leaf);
        let count = if below.is_some() { TABLE_ENTRIES as u64 } else { 0 };
        (0..count).filter_map(move |part| {
            let below = below?;
            extent.slot(slot.address + part * below.span(), below)
        })
    }
}

#[cfg(all(test, not(roundtable_model)))]
mod tests {
    use super::*;
    use std::vec::Vec;

    const PAGE: u64 = 2 << 20;
    const SLOT: u64 = 1 << 30;

    fn extent(start: u64, first: u64, pages: u64) -> Extent {
        Extent { start: VirtAddr(start), first, pages, leaf: Level::Pmd, rights: Protection::all() }
    }

    #[test]
    fn a_mapping_inside_one_slot_has_one_window_at_its_phase() {
        let slots: Vec<Slot> = extent(5 * SLOT + 3 * PAGE, 7, 10).slots().collect();
        let [slot] = slots[..] else { panic!("{slots:?}") };
        assert_eq!((slot.address, slot.level), (VirtAddr(5 * SLOT), Level::Pud));
        assert_eq!((slot.window.first, slot.window.pages, slot.window.entry), (7, 10, 3));
        assert_eq!(slot.window.entry_of(7), Some(3));
        assert_eq!(slot.window.entry_of(16), Some(12));
        assert_eq!(slot.window.entry_of(17), None);
        assert_eq!(slot.window.entry_of(6), None);
    }

    #[test]
    fn a_large_mapping_uses_the_highest_level_that_it_fills() {
        let start = 512 * SLOT - 2 * SLOT - PAGE;
        let pages = 1 + 2 * 512 + 512 * 512 + 512 + 5;
        let slots: Vec<Slot> = extent(start, 100, pages).slots().collect();
        let levels: Vec<Level> = slots.iter().map(|slot| slot.window.level).collect();
        use Level::{Pmd, Pud};
        assert_eq!(levels, [Pmd, Pmd, Pmd, Pud, Pmd, Pmd]);
        assert_eq!(slots[3].window.pages, 512 * 512);
        assert_eq!(slots[3].window.entry, 0);
        assert_eq!(slots.iter().map(|slot| slot.window.pages).sum::<u64>(), pages);
        let mut first = 100;
        for slot in slots {
            assert_eq!(slot.window.first, first);
            first += slot.window.pages;
        }
    }

    #[test]
    fn the_parts_of_a_slot_are_its_content_one_level_down() {
        let whole = extent(512 * SLOT, 9, 512 * 512);
        let slot = whole.highest_slot(whole.start).unwrap();
        let parts: Vec<Slot> = whole.parts(slot).collect();
        assert_eq!(parts.len(), 512);
        assert!(parts.iter().all(|part| part.window.level == Level::Pmd && part.window.pages == 512));
        assert_eq!(parts[511].window.first, 9 + 511 * 512);
        assert_eq!(whole.parts(parts[0]).count(), 0);
    }
}
