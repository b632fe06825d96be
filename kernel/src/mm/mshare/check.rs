//! The page-table checker's part for regions.

use alloc::string::String;
use core::sync::atomic::Ordering;

use super::area::{RegionArea, root_entry};
use super::region::{GRANULE, Region, all};
use crate::hugetlb::CheckRound;
use crate::memory::frame::{FrameState, Use, state_of};
use crate::mm::AddressSpace;
use crate::mm::entry::Entry;
use crate::mm::tables::TOP;
use crate::mm::vma::Vma;
use crate::sched;

impl RegionArea {
    /// What is wrong with `entry`, which the process has at `address` in a table of `level`, if anything is.
    pub(in crate::mm) fn check_entry(
        &self,
        vma: &Vma,
        level: u32,
        address: u64,
        entry: Entry,
    ) -> Result<(), String> {
        let bad = |what: &str| {
            Err(alloc::format!("invariant 3: {what}: entry {:#x} of level {level} at {address:#x}", entry.0))
        };
        if level != TOP {
            return bad("a region is attached below the root");
        }
        let table = self.region().table(address - vma.start);
        // The hardware notes that it used the entry.
        if entry.without(Entry::ACCESSED) != root_entry(table, vma.flags) {
            return bad("an attachment that is not what its area says");
        }
        match state_of(table.page_number()) {
            FrameState::Used { by: Use::PageTable, references: 1 } => Ok(()),
            state => Err(alloc::format!("invariant 4: the table of a region is {state:?} at {address:#x}")),
        }
    }

    /// Is every part of the region attached that is to be?
    pub(in crate::mm) fn check_complete(&self, space: &AddressSpace, vma: &Vma) -> Result<(), String> {
        let tables = space.page_tables().lock();
        for address in vma.range().step_by(GRANULE as usize) {
            let found = tables.find(address, TOP).map_or(0, |entry| entry.load(Ordering::SeqCst));
            let wanted = root_entry(self.region().table(address - vma.start), vma.flags);
            if Entry(found).without(Entry::ACCESSED) != wanted {
                return Err(alloc::format!(
                    "invariant 3: entry {found:#x} at {address:#x} does not lead to the region that is attached"
                ));
            }
        }
        Ok(())
    }
}

impl Region {
    /// What is wrong with its tables, if anything is. `round` gets to know what was found.
    fn check(&self, round: &mut CheckRound) -> Result<(), String> {
        let names = |what| alloc::format!("region {} of {:#x} bytes: {what}", self.id(), self.size());
        self.space().check_huge(round).map_err(names)
    }
}

/// Checks all regions; returns how many there are.
pub fn check_all(round: &mut CheckRound) -> Result<usize, String> {
    let mut count = 0;
    for region in all() {
        region.check(round)?;
        count += 1;
        sched::cond_resched();
    }
    Ok(count)
}
