//! Shared anonymous memory: a page cache without a file.
//!
//! `MAP_SHARED | MAP_ANONYMOUS` mappings and SysV segments are of this kind. Pages appear, zeroed, at the first touch, and go with the last
//! mapping, or when MADV_REMOVE punches them out.

use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use super::accounting;
use super::backing::{MappingList, PageCache};
use super::page_store::{Content, PageStore};
use crate::errno::{Errno, Result};
use crate::memory::frame::{Frame, Use};
use crate::memory::{PAGE_SIZE, reserve};

/// Memory of a fixed size that several address spaces share.
pub struct SharedMemory {
    /// Bytes.
    size: u64,
    pages: PageStore,
    mappings: MappingList,
    ino: u64,
    committed: bool,
}

/// Pages of all shared anonymous memory.
static PAGES: AtomicU64 = AtomicU64::new(0);

/// Pages that shared anonymous memory and SysV segments have now: part of `Shmem` in `/proc/meminfo`.
pub fn page_count() -> u64 {
    // Relaxed: a statistic.
    PAGES.load(Ordering::Relaxed)
}

/// The device number that maps show for it: as the kernel-internal mount of tmpfs. No file system has it.
pub const DEVICE: u64 = 1;

impl SharedMemory {
    /// `size` bytes of zeroes. Commits them unless told not to.
    pub fn new(size: u64, reserve: bool) -> Result<Arc<Self>> {
        static NEXT_INO: AtomicU64 = AtomicU64::new(1024);
        if reserve {
            accounting::commit(size.div_ceil(PAGE_SIZE as u64))?;
        }
        let memory = Arc::new(Self {
            size,
            pages: PageStore::new(),
            mappings: MappingList::new(),
            // Relaxed: only the numbers have to differ.
            ino: NEXT_INO.fetch_add(1, Ordering::Relaxed),
            committed: reserve,
        });
        let end = size.div_ceil(PAGE_SIZE as u64);
        memory.pages.grow(end, end)?;
        Ok(memory)
    }

    /// Puts a page where there is none. It is counted before anybody can find it, and take it out again: the sum is never below zero.
    fn add(&self, index: u64, frame: &Frame) -> Result<(Frame, bool)> {
        // Relaxed, here and below: a statistic.
        PAGES.fetch_add(1, Ordering::Relaxed);
        let added = self.pages.insert(index, frame, true);
        if !matches!(added, Ok((_, true))) {
            PAGES.fetch_sub(1, Ordering::Relaxed);
        }
        added
    }

    /// How many pages there are now.
    pub fn pages(&self) -> u64 {
        self.pages.count()
    }
}

impl PageCache for SharedMemory {
    fn page(&self, index: u64, _write: bool) -> Result<Frame> {
        if index >= self.size.div_ceil(PAGE_SIZE as u64) {
            return Err(Errno::EFAULT);
        }
        if let Some(frame) = self.cached(index) {
            return Ok(frame);
        }
        reserve::ask(PAGE_SIZE)?;
        let new = Frame::alloc_zeroed(Use::File).ok_or(Errno::ENOMEM)?;
        let (frame, _) = self.add(index, &new)?;
        // Another thread may have been faster: theirs counts.
        Ok(frame)
    }

    fn cached(&self, index: u64) -> Option<Frame> {
        self.pages.get(index)
    }

    fn cached_some(&self, first: u64, wanted: u32, found: &mut [Option<Frame>]) {
        self.pages.get_some(first, wanted, found);
    }

    fn insert(&self, index: u64, frame: &Frame) -> Result<()> {
        if index >= self.size.div_ceil(PAGE_SIZE as u64) {
            return Err(Errno::EFAULT);
        }
        // A segment may outlive whoever fills it.
        reserve::ask_lasting(PAGE_SIZE)?;
        let (_, ours) = self.add(index, frame)?;
        if ours { Ok(()) } else { Err(Errno::EEXIST) }
    }

    fn punch(&self, range: Range<u64>) -> Result<()> {
        let mut next = Some(range.start);
        while let Some(from) = next {
            let removed;
            (removed, next) = self.pages.remove(from..range.end);
            if removed.is_empty() {
                continue;
            }
            // Relaxed: a statistic.
            PAGES.fetch_sub(removed.len() as u64, Ordering::Relaxed);
            self.mappings.unmap(from..next.unwrap_or(range.end));
            super::page_store::let_go(removed);
            crate::sched::cond_resched();
        }
        Ok(())
    }

    fn content(&self) -> Option<&Content> {
        self.pages.content()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn mappings(&self) -> &MappingList {
        &self.mappings
    }

    fn id(&self) -> (u64, u64) {
        (DEVICE, self.ino)
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        self.pages.empty(|count| {
            // Relaxed: a statistic.
            PAGES.fetch_sub(count, Ordering::Relaxed);
        });
        if self.committed {
            accounting::uncommit(self.size.div_ceil(PAGE_SIZE as u64));
        }
    }
}
