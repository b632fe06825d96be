//! What stands behind a mapping: page caches, and the list of mappings that a file keeps.
//!
//! A file whose pages go away (truncation, hole punch) first takes them out of its cache and then calls
//! [`MappingList::unmap`]. A fault reads the list's count of such calls, asks the cache for the page, and installs it only when the count is still
//! the same, under the page-table lock that the unmapping takes too. So either the fault's entry is there when the unmapping comes,
//! and goes, or the fault sees the new count and asks again.
//!
//! The list is of mappings that may have pages of the file in tables of their own. A mapping comes on it with its first such page
//! ([`Link::enlist`]), before the fault reads the count; what it shows through tables of the file (see [`super::windows`]) goes with the
//! page. So an unmapping does not visit those who only use the file's tables.
//!
//! Lock order: address-space lock, mapping list, page-table lock.

use alloc::sync::{Arc, Weak};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ::hugetlb::OutOfMemory;
use summary_tree::{Summary, SummaryTree};

use super::AddressSpace;
use super::page_store::Content;
use crate::errno::{Errno, Result};
use crate::memory::PAGE_SHIFT;
use crate::memory::frame::Frame;
use crate::sync::Mutex;

/// The pages of a file in memory.
pub trait PageCache: Send + Sync {
    /// The page at `index`, allocated when there is none; `write` says that a store is about to follow. `EFAULT`
    /// behind the end of the file (the fault becomes SIGBUS), `ENOMEM` or `ENOSPC` when there is no room. May sleep.
    fn page(&self, index: u64, write: bool) -> Result<Frame>;

    /// The page at `index` when it is there already. Never sleeps.
    fn cached(&self, index: u64) -> Option<Frame> {
        let _ = index;
        None
    }

    /// The pages from `first` on, none behind the file's end, of which `wanted` has a bit, each in its place in `found` when it is there
    /// already, and data. Never sleeps: faults map a page's neighbours by it.
    fn cached_some(&self, first: u64, wanted: u32, found: &mut [Option<Frame>]) {
        let places = found.iter_mut().enumerate().filter(|(place, _)| wanted & (1 << place) != 0);
        places.for_each(|(place, found)| *found = self.cached(first + place as u64));
    }

    /// Puts a page with a content where there is none, for userfaultfd. `EEXIST` when there is one, `EFAULT` behind the end of the file,
    /// `ENOMEM` or `ENOSPC` when there is no room.
    fn insert(&self, index: u64, frame: &Frame) -> Result<()>;

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

    /// No mapping has pages of it any more. It may give its pages back. May sleep.
    fn left_mappings(&self) {}

    /// The pages with the page tables that show them, if the file has such tables.
    fn content(&self) -> Option<&Content> {
        None
    }

    /// May stores reach the file through a mapping? Where they would not get where the file is, no shared mapping that may ever be written
    /// is made.
    fn takes_stores(&self) -> bool {
        true
    }

    /// Is it for the process's own instructions and copies alone: nobody looks at it from outside? See memfd_secret(2).
    fn is_secret(&self) -> bool {
        false
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
    /// A piece of address space.
    Region(Arc<super::mshare::Region>),
}

/// One mapping of (a part of) a file, as the file sees it. Its key is the index of its first page in the file, and a number of its own.
struct Entry {
    space: Weak<AddressSpace>,
    /// Address of the first page.
    start: u64,
    pages: u64,
}

type Key = (u64, u64);

/// The highest end of some mappings, as an index in the file.
struct FarEnd(u64);

impl Summary<Key, Entry> for FarEnd {
    fn of(key: &Key, entry: &Entry) -> Self {
        Self(key.0 + entry.pages)
    }

    fn join(&mut self, other: &Self) {
        self.0 = self.0.max(other.0);
    }
}

#[derive(Default)]
struct Entries {
    /// By place in the file: who maps some pages is found without a look at all the others.
    tree: SummaryTree<Key, Entry, FarEnd>,
    /// How many are writable.
    writable: usize,
}

/// Who maps a file.
pub struct MappingList {
    entries: Mutex<Entries>,
    unmappings: AtomicU64,
}

impl MappingList {
    /// No mappings.
    pub const fn new() -> Self {
        let entries = Entries { tree: SummaryTree::new(), writable: 0 };
        Self { entries: Mutex::new(entries), unmappings: AtomicU64::new(0) }
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
        let entries = self.entries.lock();
        // Pages may be on their way between two mappings that are both on the list: fork copies private ones to the child, mremap moves
        // any. Those that went past the first round are met by the second. No further way begins meanwhile: its mapping would have to
        // come on the list first.
        for _ in 0..2 {
            let mut met = 0;
            let visit = |key: &Key, entry: &Entry| {
                let first = range.start.max(key.0);
                let end = range.end.min(key.0 + entry.pages);
                if first < end
                    && let Some(space) = entry.space.upgrade()
                {
                    met += 1;
                    let address = |index: u64| entry.start + ((index - key.0) << PAGE_SHIFT);
                    space.unmap_file_pages(address(first)..address(end), with_copies);
                    // The end of an address space takes this list's lock.
                    AddressSpace::let_go_later(space);
                }
                None::<()>
            };
            let _ = entries.tree.find_first(&(range.end, 0), |far| far.0 > range.start, visit);
            if met < 2 {
                break;
            }
        }
        drop(entries);
        AddressSpace::let_go();
    }

    /// Is there a shared mapping through which stores reach the file, or could after mprotect(2)?
    pub fn has_writable(&self) -> bool {
        self.entries.lock().writable > 0
    }

    /// Is there a mapping that may have pages of the file in tables of its own?
    pub(super) fn has_listed(&self) -> bool {
        !self.entries.lock().tree.is_empty()
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

/// What a mapping is to its file: its place in the file's list, and what it joined. Dropping it ends both.
pub(super) struct Link {
    cache: Arc<dyn PageCache>,
    key: Key,
    space: Weak<AddressSpace>,
    writable: bool,
    /// Changes under the list's lock.
    listed: AtomicBool,
    /// The id of the page tables that use tables of the file; 0 as long as none do.
    joined: AtomicU64,
}

impl Link {
    /// Makes a mapping known to its file: it shows pages from index `first` on. It is not on the list yet.
    pub(super) fn new(
        cache: Arc<dyn PageCache>,
        space: Weak<AddressSpace>,
        first: u64,
        writable: bool,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed: only the numbers have to differ.
        let key = (first, NEXT.fetch_add(1, Ordering::Relaxed));
        if writable {
            let mut entries = cache.mappings().entries.lock();
            entries.writable += 1;
        }
        Self { cache, key, space, writable, listed: AtomicBool::new(false), joined: AtomicU64::new(0) }
    }

    /// Puts the mapping on the list, unless it is there: it has `pages` pages, at address `start`.
    ///
    /// Before it has a page in tables of its own. An unmapping that has begun, and does not find it, took the pages out of the cache before.
    pub(super) fn enlist(&self, start: u64, pages: u64) {
        // Acquire: with who put it there.
        if self.listed.load(Ordering::Acquire) {
            return;
        }
        let mut entries = self.cache.mappings().entries.lock();
        // Relaxed: under the lock. Another thread may have been faster.
        if !self.listed.load(Ordering::Relaxed) {
            entries.tree.insert(self.key, Entry { space: self.space.clone(), start, pages });
            self.listed.store(true, Ordering::Release);
        }
    }

    /// Is it on the list?
    pub(super) fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Acquire)
    }

    /// The tables of `space`, by their id, are about to use tables of the file for this mapping.
    pub(super) fn join(&self, space: u64) -> Result<(), OutOfMemory> {
        if self.has_joined() {
            return Ok(());
        }
        let Some(content) = self.cache.content() else { return Ok(()) };
        content.join(space)?;
        // AcqRel: as `has_joined`. Of two threads one has joined twice.
        if self.joined.swap(space, Ordering::AcqRel) != 0 {
            content.leave(space);
        }
        Ok(())
    }

    /// Has it joined?
    pub(super) fn has_joined(&self) -> bool {
        // Acquire: who sees it may rely on the content's knowing.
        self.joined.load(Ordering::Acquire) != 0
    }

    /// Takes over what `other`, a mapping of the same file in the same space, is to the file.
    pub(super) fn join_as(&self, other: &Link) {
        let space = other.joined.load(Ordering::Acquire);
        if space != 0 {
            // The space has joined: that it does once more needs no memory.
            let joined = self.join(space);
            debug_assert!(joined.is_ok(), "a space that has joined could not join again");
        }
    }

    /// The cache that it belongs to.
    pub(super) fn cache(&self) -> &Arc<dyn PageCache> {
        &self.cache
    }

    /// The mapping has so many pages from now on. It begins where it began.
    pub(super) fn resize(&self, pages: u64) {
        if !self.is_listed() {
            return;
        }
        self.cache.mappings().entries.lock().tree.update(&self.key, |entry| entry.pages = pages);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if *self.listed.get_mut() || self.writable {
            let mut entries = self.cache.mappings().entries.lock();
            entries.tree.remove(&self.key);
            entries.writable -= usize::from(self.writable);
            let was_last = *self.listed.get_mut() && entries.tree.is_empty();
            drop(entries);
            if was_last {
                self.cache.left_mappings();
            }
        }
        if *self.joined.get_mut() != 0
            && let Some(content) = self.cache.content()
        {
            content.leave(*self.joined.get_mut());
        }
    }
}
