//! fallocate(2): allocate pages ahead, punch holes.

use core::ops::Range;

use crate::addr::{PageIndex, PhysAddr};
use crate::error::{Error, Result};
use crate::file::{File, MAX_FILE_SIZE, SizeLock};
use crate::machine::Machine;

/// The mode of fallocate(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FallocateMode {
    /// Mode 0: allocate, and extend the file to the end of the range.
    Allocate,
    /// `FALLOC_FL_KEEP_SIZE`: allocate, also beyond the end of the file, which stays where it is.
    AllocateKeepSize,
    /// `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`: free the pages that lie wholly in the range, zero the rest of it.
    PunchHole,
}

impl FallocateMode {
    /// The mode of a `FALLOC_FL_*` value.
    ///
    /// # Errors
    ///
    /// [`Error::NotSupported`] for all that hugetlbfs does not know.
    pub fn from_flags(flags: u32) -> Result<FallocateMode> {
        match flags {
            0 => Ok(FallocateMode::Allocate),
            1 => Ok(FallocateMode::AllocateKeepSize),
            3 => Ok(FallocateMode::PunchHole),
            _ => Err(Error::NotSupported),
        }
    }
}

impl<M: Machine> File<M> {
    /// fallocate(2) on a byte range. `interrupted` is asked before each page.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the range is empty, [`Error::TooBig`] when it ends beyond the largest file,
    /// [`Error::NoSpace`] when the pool or the mount is used up, [`Error::NoMemory`] when there is no memory for the record of a page
    /// (pages allocated so far stay),
    /// [`Error::Interrupted`]; the pages allocated so far stay, and mode 0 has extended the file to the end of the range all the same.
    pub fn fallocate(
        &self,
        mode: FallocateMode,
        offset: u64,
        length: u64,
        interrupted: impl FnMut() -> bool,
    ) -> Result<()> {
        if length == 0 {
            return Err(Error::Invalid);
        }
        let end = offset.checked_add(length).filter(|end| *end <= MAX_FILE_SIZE).ok_or(Error::TooBig)?;
        let held = self.lock_size();
        match mode {
            FallocateMode::PunchHole => self.punch(&held, offset, end)?,
            FallocateMode::Allocate => {
                let allocated = self.allocate_range(&held, offset, end, interrupted);
                // As on Linux, a signal does not keep the file from growing.
                if self.size() < end && matches!(allocated, Ok(()) | Err(Error::Interrupted)) {
                    self.grow(&held, end);
                }
                allocated?;
            }
            FallocateMode::AllocateKeepSize => self.allocate_range(&held, offset, end, interrupted)?,
        }
        Ok(())
    }

    fn allocate_range(
        &self,
        held: &SizeLock,
        offset: u64,
        end: u64,
        interrupted: impl FnMut() -> bool,
    ) -> Result<()> {
        let size = self.page_size();
        let first = offset >> size.shift();
        let mut indices = first..end.div_ceil(size.bytes());
        let result = self.allocate_pages(&mut indices, interrupted);
        // All before the first that is left have their pages.
        if indices.start > first {
            self.show_to(held, indices.start);
        }
        result
    }

    /// Allocates the pages of `indices`, from which it takes those that it has come to.
    fn allocate_pages(&self, indices: &mut Range<u64>, mut interrupted: impl FnMut() -> bool) -> Result<()> {
        while !indices.is_empty() {
            let index = PageIndex(indices.start);
            if interrupted() {
                return Err(Error::Interrupted);
            }
            // For the record of the page.
            self.pool().machine().take_step()?;
            let at = self.lock_index(index)?;
            if self.content().get(index.0).is_none() {
                let page = self.allocate_page(&at, true)?;
                page.zero();
                self.bring_page(&at, &page, true).map_err(|_| Error::NoMemory)?;
            }
            indices.start += 1;
        }
        Ok(())
    }

    fn punch(&self, held: &SizeLock, offset: u64, end: u64) -> Result<()> {
        let bytes = self.page_size().bytes();
        let (first, last) = (offset.div_ceil(bytes), end / bytes);
        if first > last {
            // The range lies within one page.
            return self.zero_within(offset, end);
        }
        self.zero_within(offset, first * bytes)?;
        if first < last {
            self.unmap(first..last);
            self.remove_pages(held, first..last, true);
        }
        self.zero_within(last * bytes, end)
    }

    /// Zeroes bytes of one page, if the file has it; the mappings see it at once.
    fn zero_within(&self, from: u64, end: u64) -> Result<()> {
        if from >= end {
            return Ok(());
        }
        let size = self.page_size();
        let index = PageIndex(from >> size.shift());
        let _index = self.lock_index(index)?;
        if let Some(page) = self.content().get(index.0) {
            let within = from & (size.bytes() - 1);
            self.pool().machine().zero(PhysAddr(page.frame().0 + within), end - from);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PageSize;
    use crate::protocol::ProtocolKind;
    use crate::testing::hugetlb;

    #[test]
    fn a_signal_leaves_the_pages_and_the_size_as_on_linux() {
        const MIB2: u64 = 2 << 20;
        for (mode, size) in [(FallocateMode::Allocate, 4 * MIB2), (FallocateMode::AllocateKeepSize, 0)] {
            let file = hugetlb(4, ProtocolKind::FileTables).anonymous_file(PageSize::Size2M, 0).unwrap();
            let mut pages = 0;
            let interrupted = || {
                pages += 1;
                pages > 2
            };
            assert_eq!(file.fallocate(mode, 0, 4 * MIB2, interrupted), Err(Error::Interrupted));
            assert_eq!((file.statistics().pages, file.statistics().size), (2, size));
        }
    }
}
