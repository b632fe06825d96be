//! What stands behind a mapping: page caches, and the list of mappings that a file keeps.
//!
//! A file whose pages go away (truncation, hole punch) first takes them out of its cache and then calls
//! [`MappingList::unmap`]. A fault reads the list's count of such calls, asks the cache for the page, and installs it only when the count is still
//! the same, under the page-table lock that the unmapping takes too. So either the fault's entry is there when the unmapping comes,
//! and goes, or the fault sees the new count and asks again.
//!
//! Lock order: address-space lock, mapping list, page-table lock.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use super::AddressSpace;
use crate::errno::{Errno, Result};
use crate::memory::PAGE_SHIFT;
use crate::memory::frame::Frame;
use crate::sync::Mutex;

/// The pages of a file in memory.
pub trait PageCache: Send + Sync {
    /// The page at `index`, allocated when there is none; `write` says that a store is about to follow. `EFAULT`
    /// behind the end of the file (the fault becomes SIGBUS), `ENOMEM` or `ENOSPC` when there is no room. May sleep.
    fn page(&self, index: u64, write: bool) -> Result<Frame>;

    /// The page at `index` when it is there already. Never sleeps: faults use it to map a page's neighbours too.
    fn cached(&self, index: u64) -> Option<Frame> {
        let _ = index;
        None
    }

    /// Bytes in the file.
    fn size(&self) -> u64;

    /// The mappings of the file.
    fn mappings(&self) -> &MappingList;

    /// Device and inode number, for `/proc/PID/maps`.
    fn id(&self) -> (u64, u64);

    /// Takes the pages `range` out of the cache and all mappings, for MADV_REMOVE on memory without a file.
    fn punch(&self, range: Range<u64>) -> Result<()> {
        let _ = range;
        Err(Errno::EINVAL)
    }

    /// Do its pages count as shared memory (tmpfs, shared anonymous memory), not as file pages?
    fn is_shmem(&self) -> bool {
        true
    }
}

/// What a file gives to mmap(2).
pub enum Backing {
    /// Base pages of a cache.
    PageCache(Arc<dyn PageCache>),
    /// Zero-filled memory of its own, as for `/dev/zero`: shared or private as the mapping is.
    Zero,
    /// Huge pages.
    Huge(Arc<crate::hugetlb::HugeFile>),
}

/// One mapping of (a part of) a file, as the file sees it.
struct Entry {
    space: Weak<AddressSpace>,
    /// Address of the first page.
    start: u64,
    /// Index of that page in the file.
    first: u64,
    pages: u64,
    writable: bool,
}

/// Who maps a file.
pub struct MappingList {
    /// In the order of creation, so a fork's child comes after its parent: an unmapping that has passed the child already
    /// has also emptied the parent, from which the child copies.
    entries: Mutex<BTreeMap<u64, Entry>>,
    unmappings: AtomicU64,
}

impl MappingList {
    /// No mappings.
    pub const fn new() -> Self {
        Self { entries: Mutex::new(BTreeMap::new()), unmappings: AtomicU64::new(0) }
    }

    /// Removes the file's own pages `range` (page indices) from all mappings and TLBs; private copies stay. The pages must
    /// be out of the cache already. Sleeps.
    pub fn unmap(&self, range: Range<u64>) {
        self.unmap_where(range, false);
    }

    /// As [`MappingList::unmap`], and private copies of the pages go too: what truncation wants.
    pub fn unmap_with_copies(&self, range: Range<u64>) {
        self.unmap_where(range, true);
    }

    fn unmap_where(&self, range: Range<u64>, with_copies: bool) {
        self.unmappings.fetch_add(1, Ordering::SeqCst);
        // The last reference to an address space must not be dropped under the list's lock: its end takes that lock.
        let mut visited = Vec::new();
        let entries = self.entries.lock();
        for entry in entries.values() {
            let first = range.start.max(entry.first);
            let end = range.end.min(entry.first + entry.pages);
            if first >= end {
                continue;
            }
            let Some(space) = entry.space.upgrade() else { continue };
            let address = |index: u64| entry.start + ((index - entry.first) << PAGE_SHIFT);
            space.unmap_file_pages(address(first)..address(end), with_copies);
            visited.push(space);
        }
        drop(entries);
    }

    /// Is there a shared mapping through which stores reach the file, or could after mprotect(2)?
    pub fn has_writable(&self) -> bool {
        self.entries.lock().values().any(|entry| entry.writable)
    }

    /// How often pages were unmapped so far; see the module.
    pub(super) fn unmappings(&self) -> u64 {
        self.unmappings.load(Ordering::SeqCst)
    }
}

impl Default for MappingList {
    fn default() -> Self {
        Self::new()
    }
}

/// A mapping's place in its file's list; dropping it takes the mapping off.
pub(super) struct Link {
    cache: Arc<dyn PageCache>,
    id: u64,
}

impl Link {
    /// Puts a mapping on the list: `pages` pages of the file from index `first` on, at address `start`.
    pub(super) fn new(
        cache: Arc<dyn PageCache>,
        space: Weak<AddressSpace>,
        start: u64,
        first: u64,
        pages: u64,
        writable: bool,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut entries = cache.mappings().entries.lock();
        // Relaxed: only the numbers have to differ, and ascend under the list's lock.
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        entries.insert(id, Entry { space, start, first, pages, writable });
        drop(entries);
        Self { cache, id }
    }

    /// The cache that it belongs to.
    pub(super) fn cache(&self) -> &Arc<dyn PageCache> {
        &self.cache
    }

    /// Gives the mapping new bounds. `meanwhile` runs under the list's lock, so no unmapping sees the change half done.
    pub(super) fn update(&self, start: u64, first: u64, pages: u64, meanwhile: impl FnOnce()) {
        let mut entries = self.cache.mappings().entries.lock();
        if let Some(entry) = entries.get_mut(&self.id) {
            (entry.start, entry.first, entry.pages) = (start, first, pages);
        }
        meanwhile();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cache.mappings().entries.lock().remove(&self.id);
    }
}
