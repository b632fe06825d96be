//! What one round of checks knows of all mappings together: who refers to a table, and whose a page is.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::addr::{PageIndex, PhysAddr, TABLE_ENTRIES, VirtAddr};
use crate::hugetlb::Hugetlb;
use crate::machine::Machine;
use crate::pool::Page;
use crate::sync::{Arc, Weak};

type Check = core::result::Result<(), String>;

/// How often a table was found, and how often it counts itself attached.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Uses {
    found: u64,
    counted: u64,
}

/// A page as a mapping showed it.
struct Owner<M: Machine> {
    page: Weak<Page<M>>,
    file: u64,
    index: PageIndex,
}

/// A round of [`crate::Mapping::check`] over the mappings of all address spaces, each address space once.
pub struct CheckRound<M: Machine> {
    hugetlb: Arc<Hugetlb<M>>,
    /// The frames that were free at the start, sorted.
    free: Vec<PhysAddr>,
    tables: BTreeMap<PhysAddr, Uses>,
    /// Entries of processes that lead to tables.
    attachments: u64,
    pages: BTreeMap<PhysAddr, Owner<M>>,
    /// Pages of the table that is looked at, noted under a spin lock: with room for as many as a table has.
    noted: Vec<(PhysAddr, Owner<M>)>,
    /// Whether the table in a slot that several mappings may have a part of is one of theirs, by address space and slot.
    parts: BTreeMap<(u64, VirtAddr), bool>,
}

impl<M: Machine> fmt::Debug for CheckRound<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckRound")
            .field("tables", &self.tables.len())
            .field("attachments", &self.attachments)
            .field("pages", &self.pages.len())
            .finish_non_exhaustive()
    }
}

impl<M: Machine> CheckRound<M> {
    /// A round that has seen nothing yet.
    pub fn new(hugetlb: &Arc<Hugetlb<M>>) -> CheckRound<M> {
        let mut free: Vec<PhysAddr> = hugetlb.pools().iter().flat_map(|pool| pool.free_frames()).collect();
        free.sort_unstable();
        CheckRound {
            hugetlb: hugetlb.clone(),
            free,
            tables: BTreeMap::new(),
            attachments: 0,
            pages: BTreeMap::new(),
            noted: Vec::new(),
            parts: BTreeMap::new(),
        }
    }

    /// Tables that were found so far.
    #[must_use]
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Attachments that were found so far.
    #[must_use]
    pub fn attachments(&self) -> u64 {
        self.attachments
    }

    /// After the last mapping: each table is referred to as often as it counts, and all of them as often as the subsystem counts;
    /// each table in a slot that mappings have in part belongs to one of them.
    /// A mapping that comes or goes during the round makes a difference; one that stays while [`CheckRound::activity`] does not
    /// change is a broken invariant.
    ///
    /// # Errors
    ///
    /// Which table, and the numbers.
    pub fn check_counts(&self) -> Check {
        if let Some((frame, uses)) = self.tables.iter().find(|(_, uses)| uses.found != uses.counted) {
            return Err(format!(
                "invariant 4: {} entries lead to the table {frame:?}, which counts {}",
                uses.found, uses.counted
            ));
        }
        if let Some(((_, slot), _)) = self.parts.iter().find(|(_, is_own)| !**is_own) {
            return Err(format!("invariant 3: {slot:?} leads to a table that belongs to no mapping there"));
        }
        let (found, counted) = (self.attachments(), self.hugetlb.sharing().attachments);
        if found != counted {
            return Err(format!("invariant 4: {found} entries lead to tables, {counted} are counted"));
        }
        Ok(())
    }

    /// A number that changes when mappings begin or end to share a table.
    #[must_use]
    pub fn activity(&self) -> u64 {
        let sharing = self.hugetlb.sharing();
        sharing.shares + sharing.unshares
    }

    /// An entry of a process leads to a table.
    pub(super) fn found_attachment(&mut self) {
        self.attachments += 1;
    }

    /// An entry of a process, or of a table above, leads to the table, which counts so many. Returns whether its content is yet to be looked at: once, however
    /// many share it.
    pub(super) fn found_table(&mut self, frame: PhysAddr, counted: u64) -> bool {
        let uses = self.tables.entry(frame).or_default();
        uses.found += 1;
        uses.counted = counted;
        uses.found == 1
    }

    /// A PUD entry of a slot that a mapping has a part of leads to a table, of that mapping or not.
    pub(super) fn found_in_part(&mut self, space: u64, slot: VirtAddr, is_own: bool) {
        *self.parts.entry((space, slot)).or_default() |= is_own;
    }

    /// A mapping shows a page of a file, or of its own. The caller keeps the page from going.
    pub(super) fn found_page(&mut self, file: u64, index: PageIndex, page: &Arc<Page<M>>) -> Check {
        self.note_page(file, index, page)?;
        self.settle()
    }

    /// As [`CheckRound::found_page`], under a spin lock: one of the pages of a table, which is compared with others by
    /// [`CheckRound::settle`]. That was called before the table.
    pub(super) fn note_page(&mut self, file: u64, index: PageIndex, page: &Arc<Page<M>>) -> Check {
        let frame = page.frame();
        // The list is of the start; what is on it now counts.
        if self.free.binary_search(&frame).is_ok() && page.is_free() {
            return Err(format!("invariant 2: page {index:?} of file {file} is {frame:?}, which is free"));
        }
        self.noted.push((frame, Owner { page: Arc::downgrade(page), file, index }));
        Ok(())
    }

    /// Compares the pages that were noted with those of other mappings, and makes room for those of another table.
    pub(super) fn settle(&mut self) -> Check {
        for (frame, found) in self.noted.drain(..) {
            let (page, file, index) = (found.page.clone(), found.file, found.index);
            let Some(other) = self.pages.insert(frame, found) else { continue };
            // Pages come and go, and a frame with them; two that are there at once have a frame each.
            // Without a reference to one: that could be the last, and the page would come back later than its owner expects.
            let are_there = other.page.strong_count() != 0 && page.strong_count() != 0;
            if are_there && other.page.as_ptr() != page.as_ptr() {
                return Err(format!(
                    "invariant 6: {frame:?} is page {:?} of file {} and page {index:?} of file {file}",
                    other.index, other.file
                ));
            }
        }
        self.noted.reserve(TABLE_ENTRIES);
        Ok(())
    }
}
