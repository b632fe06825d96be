//! Pages of files in tables that address spaces share since a fork.
//!
//! A window of 2 MiB in which the pages of libraries and of a program lie has pages of files, and copies of some that
//! were stored to. Its table is *mixed*. Fork shares it as [`fork_tables`](super::fork_tables) says, and first puts the
//! pages in it that the files have at hand: a child that reads there has no fault, and so no table of its own.
//!
//! # The guarantee
//!
//! *A page that a file has lost is in no shared table and in no TLB when the call that took it out returns.*
//!
//! # How a page gets out
//!
//! A truncation or a hole punch cannot fail, so it cannot make a table somebody's own, which takes memory. It need not:
//! who shares a table has the same part of the same file at each address that has a leaf, since whoever unmaps, moves
//! or protects anything makes the table its own first. So the leaf goes out of the shared table, once for all. Each
//! space that shares the table has its mapping on the file's list (fork puts both there before it shares), so the
//! unmapping comes to the table by one of them, and finds it under that space's page-table lock: its reference keeps
//! the table.
//!
//! *The others' CPUs.* Nobody knows who shares a table. All CPUs that run a process are flushed
//! ([`Gather::shared_page`]), before the page is let go of.
//!
//! *The others' walks.* A space that copies the table, or reads a page's bytes by it, holds its own page-table lock, and not that by which
//! the leaf is taken out. They meet in a lock of the table ([`keep_leaves`]), from the look at the leaf until the page has one
//! more reference, or is not needed any more. Lock order: page-table lock, this lock. Spaces without anything else in common wait for it, all children of a server
//! at their first store: nobody makes a table or flushes CPUs under it.
//!
//! *Copies.* A space that copies the table has the page in its own table then, if it copied the leaf before it went. It does both under its
//! page-table lock. The unmapping visits it, too: before the copy, then the leaf is out of the shared table before; or
//! after it, then it is in a table of the space's own. What fork hands from one space to another during the unmapping is met by its
//! second round, as all that fork copies: see [`MappingList`](super::backing::MappingList).
//!
//! # What is copied
//!
//! Copies, and those pages of files that somebody has accessed. The others come back by faults.
//!
//! # What is shared
//!
//! A table without marks of userfaultfd, in a window whose areas are private anonymous memory or files in base pages,
//! and none is withheld from the child, watched, a shared mapping of a window's size or more, or one that could use the
//! *file's* table there. A table that had to be made a space's own once is *hot*: its process stores there between two
//! forks, and its pages are copied one by one.
//!
//! # What is counted
//!
//! The pages by kind, noted with the frame when the table becomes a shared one. A page that goes out of it is counted on until the table is
//! left: `VmRSS` says too much then, `smaps` does not.

use core::ops::Range;
use core::sync::atomic::Ordering;

use super::PAGE;
use super::entry::Entry;
use super::fault::{leaf_bits, map_around};
use super::fork_tables::WINDOW;
use super::gather::{BATCH, Gather};
use super::space::{AddressSpace, Zap};
use super::tables::{FILLED, Resident, Tables, entries, index};
use super::vma::{Kind, VmFlags, Vma, VmaSet};
use crate::memory::frame::Frame;
use crate::memory::{PAGE_SHIFT, PhysAddr};
use crate::sched;
use crate::sync::{SpinLock, SpinLockGuard};

/// What is noted with the frame of a table of leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Note(u32);

impl Note {
    /// Bits for the number of pages of one kind; there are three of them.
    const BITS: u32 = 10;
    /// It has pages of files.
    const MIXED: u32 = 1 << 30;
    /// It was made its space's own once.
    const HOT: u32 = 1 << 31;

    /// Of a new table.
    pub(super) const NONE: Self = Self(0);
    /// Of one that was made a space's own.
    pub(super) const OWNED: Self = Self(Self::HOT);

    /// Of a table that is about to be shared, with these pages.
    pub(super) fn new(pages: Resident, is_mixed: bool) -> Self {
        let mixed = if is_mixed { Self::MIXED } else { 0 };
        let [anonymous, file, shmem] = [pages.anonymous, pages.file, pages.shmem].map(|pages| pages as u32);
        Self(anonymous | file << Self::BITS | shmem << (2 * Self::BITS) | mixed)
    }

    /// Of the table at `table`.
    pub(super) fn at(table: PhysAddr) -> Self {
        Self(Frame::noted_at(table))
    }

    /// Notes it for the table at `table`, which nobody shares.
    pub(super) fn put(self, table: PhysAddr) {
        Frame::note_at(table, self.0);
    }

    pub(super) fn is_mixed(self) -> bool {
        self.0 & Self::MIXED != 0
    }

    pub(super) fn is_hot(self) -> bool {
        self.0 & Self::HOT != 0
    }

    /// How many pages the table had when it became a shared one.
    pub(super) fn pages(self) -> Resident {
        let of = |kind: u32| u64::from(self.0 >> (kind * Self::BITS) & ((1 << Self::BITS) - 1));
        Resident { anonymous: of(0), file: of(1), shmem: of(2) }
    }
}

/// Locks of tables, by their addresses.
static LEAVES: [SpinLock<()>; 64] = [const { SpinLock::new(()) }; 64];

/// Keeps the leaves of the shared table at `table` from being taken out, and the pages that they name.
pub(super) fn keep_leaves(table: PhysAddr) -> SpinLockGuard<'static, ()> {
    LEAVES[(table.0 >> PAGE_SHIFT) as usize % LEAVES.len()].lock()
}

/// The pages in the table at `table`; `None` if a leaf says more than a page does. The caller holds the lock of the
/// space whose table it is.
pub(super) fn count_leaves(table: PhysAddr) -> Option<Resident> {
    let mut pages = Resident::default();
    // SAFETY: see above.
    for leaf in unsafe { entries(table) } {
        let leaf = Entry::load(leaf);
        if leaf.is_marker() || leaf.has(Entry::USERFAULT_WP) {
            return None;
        }
        pages.add(leaf);
    }
    Some(pages)
}

/// May the area lie in windows whose tables have pages of files, and are shared? Otherwise all windows that it lies in are refused.
pub(super) fn may_ever_be_mixed(vma: &Vma) -> bool {
    let Kind::File(_) = &vma.kind else { return false };
    // A copy of the table leaves out pages that nobody has used yet, which what is locked must not miss.
    let withheld = VmFlags::DONT_FORK | VmFlags::WIPE_ON_FORK | VmFlags::SECRET | VmFlags::LOCKED;
    if vma.userfault.is_some() || vma.flags.intersects(withheld) {
        return false;
    }
    // Larger ones have tables of the file's where they can, and elsewhere their mappings are not on the file's list before
    // they have a page.
    !vma.flags.contains(VmFlags::SHARED) || vma.len() < WINDOW
}

/// May the area lie in the window at `window`, whose table has pages of files, and is shared?
pub(super) fn may_be_mixed(vma: &Vma, window: u64) -> bool {
    if !may_ever_be_mixed(vma) {
        return false;
    }
    if vma.flags.contains(VmFlags::SHARED) {
        return true;
    }
    // The child is attached to such a window, or its faults do that.
    vma.is_touched() || !vma.table_windows().is_some_and(|windows| windows.range().contains(&window))
}

impl Tables {
    /// Keeps the pages from going away to which leaves lead for the window of `address`, if others may take them out: see
    /// [`keep_leaves`].
    pub(super) fn keep_shared(&self, address: u64) -> Option<SpinLockGuard<'static, ()>> {
        let above = self.above_leaves(address).filter(|above| above.is_forked(2))?;
        Note::at(above.address()).is_mixed().then(|| keep_leaves(above.address()))
    }

    /// Whether the table of the window at `window` is a shared one since an earlier fork; `None` if it could not become one with pages of
    /// files.
    fn is_mixed_already(&self, window: u64) -> Option<bool> {
        let above = self.above_leaves(window)?;
        let is_shared = above.is_forked(2);
        (is_shared || !Note::at(above.address()).is_hot()).then_some(is_shared)
    }
}

impl AddressSpace {
    /// Before the table of the window at `window`, which has pages of files, is shared with a child whose areas are
    /// `childs`: false if it should not be. The areas lock is held for writing.
    pub(super) fn prepare_mixed(&self, set: &VmaSet, childs: &VmaSet, window: u64) -> bool {
        let Some(is_shared) = self.tables.lock().is_mixed_already(window) else { return false };
        for vma in set.overlapping(window..window + WINDOW).chain(childs.overlapping(window..window + WINDOW))
        {
            if let Kind::File(area) = &vma.kind {
                // Before either has pages of the file by the shared table: see `MappingList`.
                area.link.enlist(vma.start, vma.pages());
            }
        }
        // One that is shared was filled before it became so, and nothing may be put into it.
        if !is_shared {
            for vma in set.overlapping(window..window + WINDOW) {
                self.fill_window(vma, window);
            }
        }
        true
    }

    /// Puts the pages that a private area's file has at hand into the table of the window at `window`. An area that covers the
    /// window is no library's, but may be very large, and the child may never look at it.
    fn fill_window(&self, vma: &Vma, window: u64) {
        const AT_ONCE: u64 = FILLED as u64 * PAGE;
        let Kind::File(area) = &vma.kind else { return };
        let is_private = !vma.flags.contains(VmFlags::SHARED) && vma.flags.intersects(VmFlags::ACCESS);
        let (start, end) = (vma.start.max(window), vma.end.min(window + WINDOW));
        if !is_private || end - start == WINDOW {
            return;
        }
        let cache = &**area.link.cache();
        let shmem = if cache.is_shmem() { Entry::SHMEM } else { 0 };
        for at in (start & !(AT_ONCE - 1)..end).step_by(AT_ONCE as usize) {
            map_around(&mut self.tables.lock(), vma, cache, at, leaf_bits(vma.flags) | shmem);
            sched::cond_resched();
        }
    }

    /// A file's pages went away: takes them out of the table that the space shares at `range.start`, as far as `what`
    /// says. Returns where to go on. Called as [`AddressSpace::unmap_file_pages`] is.
    pub(super) fn zap_shared(&self, range: Range<u64>, what: Zap, gather: &mut Gather) -> u64 {
        let window_end = (range.start & !(WINDOW - 1)) + WINDOW;
        let end = range.end.min(window_end).min(range.start + BATCH as u64 * PAGE);
        let tables = self.tables.lock();
        let Some(above) = tables.above_leaves(range.start).filter(|above| above.is_forked(2)) else {
            // It has become the space's own.
            return range.start;
        };
        let count = (end - range.start).div_ceil(PAGE) as usize;
        gather.reserve(count);
        let _kept = keep_leaves(above.address());
        // SAFETY: the page-table lock is held, and the entry keeps the table.
        for leaf in &unsafe { entries(above.address()) }[index(range.start, 1)..][..count] {
            let value = Entry::load(leaf);
            if !value.owns_frame() || what == Zap::FilePages && value.has(Entry::ANON) {
                continue;
            }
            // The hardware may have set bits since.
            let value = Entry(leaf.swap(0, Ordering::SeqCst));
            // SAFETY: the table owned this reference, and who shares it takes none of its own without the lock.
            gather.shared_page(unsafe { Frame::from_raw(value.address()) });
        }
        end
    }
}
