//! munmap, mprotect and mremap of any range: mappings are cut where it begins and ends. It is what a kernel has that calls the library,
//! and what the cases of sharing need.

use alloc::vec::Vec;
use core::ops::Range;

use hugetlb::{Error, Protection, VirtAddr};

use crate::process::{Areas, Process};

impl Areas {
    /// Cuts the mapping in two that an address lies in.
    fn cut(&mut self, at: VirtAddr) -> Result<(), Error> {
        if let Some((_, lower)) = self.mappings.range_mut(..at).next_back()
            && at < lower.start() + lower.length()
        {
            let upper = lower.split(at)?;
            self.mappings.insert(at, upper);
        }
        Ok(())
    }

    /// Where the mappings begin that a range consists of: none reaches out of it any more.
    fn within(&mut self, range: &Range<VirtAddr>) -> Result<Vec<VirtAddr>, Error> {
        self.cut(range.start)?;
        self.cut(range.end)?;
        Ok(self.mappings.range(range.clone()).map(|(start, _)| *start).collect())
    }

    pub fn unmap(&mut self, range: Range<VirtAddr>) -> Result<(), Error> {
        for start in self.within(&range)? {
            if let Some(mapping) = self.mappings.remove(&start) {
                mapping.unmap(&mut self.token);
            }
        }
        Ok(())
    }
}

impl Process {
    pub fn unmap(&self, range: Range<VirtAddr>) -> Result<(), Error> {
        self.areas.write().unmap(range)
    }

    pub fn protect(&self, range: Range<VirtAddr>, protection: Protection) -> Result<(), Error> {
        let mut areas = self.areas.write();
        areas.within(&range)?;
        areas.mappings.range_mut(range).for_each(|(_, mapping)| mapping.protect(protection));
        Ok(())
    }

    /// Moves what is mapped in a range, in the place of what was at the target.
    pub fn move_to(&self, range: Range<VirtAddr>, target: VirtAddr) -> Result<(), Error> {
        let mut areas = self.areas.write();
        areas.unmap(target..target + (range.end.0 - range.start.0))?;
        for start in areas.within(&range)? {
            if let Some(mut mapping) = areas.mappings.remove(&start) {
                let to = target + (start.0 - range.start.0);
                let result = mapping.move_to(to);
                areas.mappings.insert(mapping.start(), mapping);
                result?;
            }
        }
        Ok(())
    }
}
