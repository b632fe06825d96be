//! The ioctl `PAGEMAP_SCAN`: which pages of a range are of certain kinds, as regions, and stores withheld from them again in the same step.
//!
//! A page that was stored into is told and withheld under one hold of the areas lock. It has no withheld stores when it is told; a store
//! that comes between is one that was told of, and one that comes later meets the withheld page and is told next time.

use alloc::vec::Vec;
use core::ops::Range;

use ::hugetlb::Presence;

use super::entry::Entry;
use super::fault::zero_page;
use super::space::Areas;
use super::vma::{Kind, VmFlags, Vma};
use super::{AddressSpace, PAGE};
use crate::errno::{Errno, Result};
use crate::memory::fallible;

/// What a page is; the bits are the interface's.
mod category {
    pub const WP_ALLOWED: u64 = 1 << 0;
    pub const WRITTEN: u64 = 1 << 1;
    pub const FILE: u64 = 1 << 2;
    pub const PRESENT: u64 = 1 << 3;
    pub const SWAPPED: u64 = 1 << 4;
    pub const ZERO: u64 = 1 << 5;
    pub const HUGE: u64 = 1 << 6;
}

/// All categories that there are, that of pages changed since `clear_refs` among them: no page is of it here.
pub const CATEGORIES: u64 = (1 << 8) - 1;
/// Withhold stores from the pages that are told.
pub const WP_MATCHING: u64 = 1 << 0;
/// `EPERM` where that is impossible, in place of leaving it out.
pub const CHECK_WPASYNC: u64 = 1 << 1;

/// Regions that are collected before they go to the caller.
const MOST_REGIONS: usize = 512;
/// Pages that are looked at in one hold of the areas lock.
const STEP: u64 = 512;

/// What is looked for.
pub struct Request {
    pub flags: u64,
    pub range: Range<u64>,
    /// Categories that count the other way round.
    pub inverted: u64,
    /// All of these, and one of those unless there are none.
    pub all_of: u64,
    pub any_of: u64,
    /// What is told of them.
    pub told: u64,
}

impl Request {
    /// Can pages of an area that stores can, or cannot, be withheld from be of interest?
    fn wants_area(&self, categories: u64) -> bool {
        let required = self.all_of & category::WP_ALLOWED;
        (categories ^ self.inverted) & required == required
    }

    fn wants(&self, categories: u64) -> bool {
        let categories = categories ^ self.inverted;
        categories & self.all_of == self.all_of && (self.any_of == 0 || categories & self.any_of != 0)
    }
}

/// `struct page_region`: begin, end, categories.
pub type Region = [u64; 3];

/// The regions that were found, to be taken away from time to time.
pub struct Found {
    regions: Vec<Region>,
    /// How many more the caller has room for; `None` for one who wants none.
    room: Option<u64>,
    /// How many more pages are wanted.
    pages: u64,
}

/// Why it did not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// There is room for no more: some regions are to be taken away, if the caller has more room.
    Full,
    /// There is a part of a huge page, from which alone stores cannot be withheld.
    Part,
}

impl Found {
    /// For a caller with room for so many regions, and so many pages.
    pub fn new(room: Option<u64>, pages: u64) -> Result<Self> {
        let now = room.unwrap_or(0).min(MOST_REGIONS as u64) as usize;
        Ok(Self { regions: fallible::with_capacity(now)?, room, pages })
    }

    /// What was found until now. It is the caller's.
    pub fn take(&mut self) -> impl Iterator<Item = Region> + '_ {
        if let Some(room) = &mut self.room {
            *room -= self.regions.len() as u64;
        }
        self.regions.drain(..)
    }

    /// Is there no use in going on?
    pub fn is_done(&self) -> bool {
        self.room.is_some_and(|room| room == 0) || self.pages == 0
    }

    /// Adds pages; returns the end of what there was room for.
    fn add(&mut self, pages: Range<u64>, categories: u64) -> (u64, Option<Stop>) {
        let Some(room) = self.room else { return (pages.end, None) };
        let end = pages.end.min(pages.start.saturating_add(self.pages.saturating_mul(PAGE)));
        if end == pages.start {
            return (end, Some(Stop::Full));
        }
        let is_full = self.regions.len() as u64 == room.min(MOST_REGIONS as u64);
        match self.regions.last_mut() {
            Some([_, last, kind]) if *last == pages.start && *kind == categories => *last = end,
            _ if is_full => return (pages.start, Some(Stop::Full)),
            _ => self.regions.push([pages.start, end, categories]),
        }
        self.pages -= (end - pages.start) / PAGE;
        (end, (end < pages.end).then_some(Stop::Full))
    }
}

impl AddressSpace {
    /// Looks at some pages from `from` on; returns how far it came, and what stopped it.
    pub fn scan_some(&self, request: &Request, from: u64, found: &mut Found) -> Result<(u64, Option<Stop>)> {
        let areas = self.read();
        let end = request.range.end;
        let Some(vma) = areas.set.find_in(from..end) else {
            return Ok((end, None));
        };
        let (from, end) = (from.max(vma.start), end.min(vma.end));
        let withholds = vma.flags.contains(VmFlags::USERFAULT_WP)
            && vma.userfault.as_ref().is_some_and(|u| u.is_asynchronous());
        if !withholds && request.flags & CHECK_WPASYNC != 0 {
            return Err(Errno::EPERM);
        }
        let area = if withholds { category::WP_ALLOWED } else { 0 };
        let left_out = !withholds && request.flags & WP_MATCHING != 0 || matches!(vma.kind, Kind::Special(_));
        if left_out || !request.wants_area(area) {
            return Ok((end, None));
        }
        match &vma.kind {
            Kind::Huge(_) => self.scan_huge(request, &areas, vma, area, from..end, found),
            _ => self.scan_base(request, &areas, vma, area, from..end.min(from + STEP * PAGE), found),
        }
    }

    fn scan_base(
        &self,
        request: &Request,
        areas: &Areas,
        vma: &Vma,
        area: u64,
        range: Range<u64>,
        found: &mut Found,
    ) -> Result<(u64, Option<Stop>)> {
        let (mut at, mut stop) = (range.start, None);
        // Pages from which stores are to be withheld.
        let mut stored = range.start..range.start;
        while at < range.end && stop.is_none() {
            let categories = area | self.categories(vma, at);
            let mut next = at + PAGE;
            if request.wants(categories) {
                (next, stop) = found.add(at..next, categories & request.told);
                if next > at && request.flags & WP_MATCHING != 0 && categories & category::WRITTEN != 0 {
                    if stored.end != at {
                        self.withhold_stored(areas, vma, stored)?;
                        stored = at..at;
                    }
                    stored.end = next;
                }
            }
            at = next;
        }
        self.withhold_stored(areas, vma, stored)?;
        Ok((at, stop))
    }

    fn withhold_stored(&self, areas: &Areas, vma: &Vma, stored: Range<u64>) -> Result<()> {
        if stored.is_empty() { Ok(()) } else { self.withhold_in(&areas.set, vma, stored) }
    }

    /// What a page of an area of base pages is.
    fn categories(&self, vma: &Vma, at: u64) -> u64 {
        if matches!(vma.kind, Kind::Region(_)) {
            return self.tables.lookup(at).map_or(0, |_| category::PRESENT | category::WRITTEN);
        }
        let entry = self.tables.lock().leaf(at);
        let written = if entry.has(Entry::USERFAULT_WP) { 0 } else { category::WRITTEN };
        if entry.is_mapped() {
            let zero = entry.has(Entry::SPECIAL) && entry.address().0 == zero_page().0;
            let file = !zero && !entry.has(Entry::ANON);
            return category::PRESENT
                | written
                | if zero { category::ZERO } else { 0 }
                | if file { category::FILE } else { 0 };
        }
        if entry.is_marker() {
            return category::SWAPPED | written;
        }
        if self.tables.lookup(at).is_some_and(|_| self.shows(vma, at)) {
            return category::PRESENT | category::FILE | category::WRITTEN;
        }
        // Nobody has withheld stores from the page that comes.
        if vma.flags.contains(VmFlags::USERFAULT_WP) { category::WRITTEN } else { 0 }
    }

    /// One huge page, or a part of it.
    fn scan_huge(
        &self,
        request: &Request,
        areas: &Areas,
        vma: &Vma,
        area: u64,
        range: Range<u64>,
        found: &mut Found,
    ) -> Result<(u64, Option<Stop>)> {
        let Kind::Huge(huge) = &vma.kind else { return Ok((range.end, None)) };
        let size = huge.page_size();
        let page = range.start & !(size - 1)..(range.start & !(size - 1)) + size;
        let part = range.start..range.end.min(page.end);
        let withheld = huge.is_withheld(page.start);
        let categories = area
            | match huge.is_resident(page.start) {
                true => {
                    let copied = huge.presence(page.start) == Presence::Copied;
                    category::HUGE
                        | category::PRESENT
                        | if withheld { 0 } else { category::WRITTEN }
                        | if copied || !vma.flags.contains(VmFlags::SHARED) { 0 } else { category::FILE }
                }
                false if withheld => category::HUGE | category::SWAPPED,
                false => 0,
            };
        if !request.wants(categories) {
            return Ok((part.end, None));
        }
        let withholds = request.flags & WP_MATCHING != 0 && categories & category::WRITTEN != 0;
        if withholds && part != page {
            return Ok((part.start, Some(Stop::Part)));
        }
        if withholds && found.pages < size / PAGE && found.room.is_some() {
            return Ok((part.start, Some(Stop::Part)));
        }
        let (next, stop) = found.add(part.clone(), categories & request.told);
        if withholds && next == part.end {
            self.withhold_in(&areas.set, vma, page)?;
        }
        Ok((next, stop))
    }
}
