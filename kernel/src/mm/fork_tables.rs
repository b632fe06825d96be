//! Private memory over fork by shared page tables.
//!
//! fork(2) does not copy a PTE table of private anonymous memory. Parent and child share it: the entries of
//! level 2 that lead to it (they are *forked*) lose the right to store, and the leaves stay as they are. Who
//! has to change a leaf makes the table its own first: it copies the table, or, when it is the only one left,
//! takes it back. With the kernel parameter `fork_tables=off` all entries are copied at once.
//!
//! # The guarantee
//!
//! *Nobody changes a leaf that another address space sees, and a page that two tables show is writable in
//! neither.* So each process has its own memory, as if fork had copied all entries.
//!
//! # Who may change a leaf
//!
//! A leaf to change is had from [`Tables::own_leaf`], [`Tables::find_or_make`] and [`Tables::walk`] only.
//! They end at a forked entry and say so ([`NoTable::SlotShared`], [`MetForked`]). The caller calls
//! [`AddressSpace::take_slot`] or [`AddressSpace::own_window`], which can fail without memory, and asks
//! again. Who only looks ([`Tables::leaf`], [`Tables::read`]) sees leaves of a shared table without WRITABLE.
//!
//! # What is shared
//!
//! A table that has [`WORTH`] pages or more, where all areas of the window (the 2 MiB that the table shows)
//! are private anonymous memory that fork copies: no MADV_DONTFORK or MADV_WIPEONFORK, no userfaultfd; and
//! one that has pages of files as well, by the rules of [`fork_files`](super::fork_files). So *where a leaf of a shared table
//! lies, each space that shares it has the same area*. An area that comes into the window later brings its
//! first leaf by a fault, which makes the table the space's own. Truncation and hole punches, which cannot
//! fail, take leaves out of a shared table for all at once; nobody else changes one.
//!
//! # What is counted
//!
//! The frame of a table counts the entries that lead to it. A leaf owns one reference to its page for all who
//! share the table. The number of pages that a table has when it becomes a shared one is noted with its
//! frame, and tells each who joins or leaves what its resident memory gains or loses. VmPTE has the tables
//! of a process's own only.
//!
//! # Who holds what
//!
//! | who | areas lock | page-table lock |
//! | --- | --- | --- |
//! | fork: share | write, of both | of both |
//! | fault, store from outside, userfaultfd, MADV_DONTNEED: own, leave | read | its own |
//! | munmap, mprotect, mremap: own, leave | write | its own |
//! | exit: leave | none: nobody else knows the space | its own |
//!
//! An entry becomes forked under the areas lock for writing. So who holds that lock, for reading or for
//! writing, and has made a window its own, keeps it. Those who share a table have no lock in common. They
//! meet in the count of the table's frame and in its leaves, as follows.
//!
//! # The races
//!
//! What meets here without a lock is in [`forked`], and has models.
//!
//! *A thread of the parent stores during the fork.* Its CPU may use a translation from before for a while. It
//! stores to the page that the child gets as well, as a store just before the fork. The parent's CPUs are
//! flushed before the areas lock of either is free: until then nobody copies or takes back the table, and the
//! child does not run.
//!
//! *Two copy at once.* A copy takes WRITABLE from each leaf of the shared table, takes a reference to the
//! page, and writes the leaf to its own table without WRITABLE. All of this may happen twice. Each drops its
//! reference to the shared table afterwards; who drops the last one frees what the table has ([`forked::let_go`]).
//!
//! *One copies, another finds itself alone.* Who copies drops its reference to the shared table last
//! (release). Who reads a count of 1 (acquire) sees all that those before have done: the leaves that lost
//! WRITABLE, and the references to their pages. So a leaf is still writable only if its page is in no other
//! table. A count of 1 cannot grow: the only entry is that of who reads it, and only its own fork adds one.
//!
//! *One leaves, another copies or takes back.* Who leaves (or has copied) clears or changes its entry,
//! flushes the CPUs that run it, and then drops its reference. So no TLB and no paging-structure cache leads
//! to a table that another one may change.
//!
//! *A walker without a lock* ([`walk`](super::walk)) may read a table that its space has just left. The table
//! is retired by the last who leaves it, and so its frame is not used again before the walker is done. The
//! walker may meet a leaf that the last owner has changed since. It learns the number of a frame, or that a
//! page is there, which is a report and was true a moment ago; nobody accesses memory by what such a walk
//! finds.
//!
//! *A store to a page that is shared by tables, not by leaves.* The page's count may be 1 although ten
//! address spaces have it. That a page is a process's alone is decided by the count only after the table was
//! made its own.

use alloc::format;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::PAGE;
use super::entry::Entry;
use super::fork_files::{self, Note, count_leaves, keep_leaves};
use super::forked::{self, Owned, WantsTable};
use super::gather::Gather;
use super::space::AddressSpace;
use super::tables::{ENTRIES, MetForked, NoMemory, NoTable, Resident, Tables, entries, span};
use super::vma::{Kind, VmFlags, Vma, VmaSet};
use crate::boot::cmdline;
use crate::errno::Result as KernelResult;
use crate::fs::sys;
use crate::memory::PhysAddr;
use crate::memory::frame::{Frame, Use};
use crate::sched;
use crate::sync::grace;

/// Bytes of a window.
pub(super) const WINDOW: u64 = span(2);
/// Pages that a table has if it is worth sharing. Fewer are copied more cheaply one by one than with the
/// fault that follows on sharing.
const WORTH: u64 = 64;

static ENABLED: AtomicBool = AtomicBool::new(true);

/// Events since boot.
struct Events {
    shared: AtomicU64,
    copied: AtomicU64,
    saved: AtomicU64,
}

static EVENTS: Events =
    Events { shared: AtomicU64::new(0), copied: AtomicU64::new(0), saved: AtomicU64::new(0) };

/// Reads the kernel parameter `fork_tables=`: `on` (the default) or `off`.
pub fn init() {
    match cmdline::get("fork_tables") {
        // Relaxed, here and below: a setting and statistics on which no other data hangs.
        None | Some("on") => {}
        Some("off") => ENABLED.store(false, Ordering::Relaxed),
        Some(other) => panic!("fork_tables={other}: there are on and off"),
    }
}

/// Makes the files `fork_*` of `/sys/kernel/mm/file_tables`.
pub(super) fn register(directory: &str) -> KernelResult<()> {
    let number = |name: &str, value: &'static AtomicU64| {
        let show = move || Ok(format!("{}\n", value.load(Ordering::Relaxed)));
        sys::register_read_only(&format!("{directory}/{name}"), show)
    };
    sys::register_read_only(&format!("{directory}/fork_mode"), || {
        Ok(if is_on() { "on\n" } else { "off\n" }.into())
    })?;
    number("fork_shared", &EVENTS.shared)?;
    number("fork_copies_made", &EVENTS.copied)?;
    number("fork_copies_saved", &EVENTS.saved)
}

/// Does fork share tables?
pub(super) fn is_on() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Has the child of a fork what this area has, page for page, in anonymous memory?
fn is_copied_whole(vma: &Vma) -> bool {
    matches!(vma.kind, Kind::Anonymous)
        && vma.userfault.is_none()
        && !vma.flags.intersects(VmFlags::SHARED | VmFlags::DONT_FORK | VmFlags::WIPE_ON_FORK)
}

/// May a child share the table of the window at `window`, by what areas are there? Areas of fewer pages than are worth it
/// answer that without a look at the table's entries: a small process has no others.
pub(super) fn may_share(set: &VmaSet, window: u64) -> Option<Sharing> {
    if !is_on() {
        return None;
    }
    let (mut bytes, end) = (0, window + WINDOW);
    let mut sharing = Sharing::Anonymous;
    for vma in set.overlapping(window..end) {
        bytes += vma.end.min(end) - vma.start.max(window);
        match is_copied_whole(vma) {
            true => {}
            false if fork_files::may_be_mixed(vma, window) => sharing = Sharing::Mixed,
            false => return None,
        }
    }
    (sharing == Sharing::Mixed || bytes >= WORTH * PAGE).then_some(sharing)
}

/// What a table has that may be shared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Anonymous memory.
    Anonymous,
    /// Pages of files as well.
    Mixed,
}

/// Pages in the table at `table` if they all are anonymous ones or the page of zeroes, and none says more
/// than a page does.
fn count_pages(table: PhysAddr) -> Option<u64> {
    const OWN: u64 = Entry::PRESENT | Entry::ANON;
    let mut pages = 0;
    // SAFETY: the caller holds the lock of the space whose table it is.
    for group in unsafe { entries(table) }.as_chunks::<8>().0 {
        let values = group.each_ref().map(|leaf| leaf.load(Ordering::SeqCst));
        let all = values.iter().fold(u64::MAX, |all, value| all & value);
        let any = values.iter().fold(0, |any, value| any | value);
        // Mostly all eight are pages, or none.
        if all & OWN == OWN && any & (Entry::SPECIAL | Entry::USERFAULT_WP) == 0 {
            pages += values.len() as u64;
            continue;
        }
        for value in values.map(Entry).into_iter().filter(|_| any != 0) {
            let plain = !value.is_marker() && !value.has(Entry::USERFAULT_WP);
            if !plain || value.owns_frame() && !value.has(Entry::ANON) {
                return None;
            }
            pages += u64::from(value.owns_frame());
        }
    }
    Some(pages)
}

impl Tables {
    /// Shares the table of the window at `window` with `child` if that is worth it; false if not. The areas
    /// locks of both are held for writing.
    pub(super) fn share_with(
        &mut self,
        child: &mut Tables,
        window: u64,
        sharing: Sharing,
        gather: &mut Gather,
    ) -> Result<bool, NoTable> {
        let Some(above) = self.above_leaves(window) else { return Ok(false) };
        let table = above.address();
        let note = match sharing {
            _ if above.is_forked(2) => Some(Note::at(table)),
            Sharing::Anonymous => count_pages(table)
                .filter(|pages| *pages >= WORTH)
                .map(|pages| Note::new(Resident { anonymous: pages, ..Resident::default() }, false)),
            Sharing::Mixed => {
                count_leaves(table).filter(|pages| pages.total() > 0).map(|pages| Note::new(pages, true))
            }
        };
        let Some(note) = note else { return Ok(false) };
        // What can fail comes first.
        let slot = child.find_or_make(window, 2)?;
        debug_assert_eq!(slot.load(Ordering::SeqCst), 0, "a child has a table at {window:#x} already");
        let Some(own) = self.find(window, 2) else { return Ok(false) };
        forked::share(own, slot);
        if !above.is_forked(2) {
            note.put(table);
            gather.flush_range(window..window + WINDOW);
            self.count -= 1;
            self.forked += 1;
        }
        child.forked += 1;
        child.resident.add_all(&note.pages());
        child.peak = child.peak.max(child.resident.total());
        EVENTS.shared.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Makes the table of a forked entry for `address` the space's own; `None` if there is no such entry. See
    /// [`forked::own`].
    fn own(
        &mut self,
        address: u64,
        spare: &mut Option<Frame>,
        flush: impl FnOnce(),
    ) -> Result<Option<Owned>, WantsTable> {
        let Some(slot) = self.find(address, 2).filter(|slot| Entry::load(slot).is_forked(2)) else {
            return Ok(None);
        };
        let table = Entry::load(slot).address();
        let note = Note::at(table);
        let keep = || note.is_mixed().then(|| keep_leaves(table));
        let owned = forked::own(slot, spare, keep, flush)?;
        let own = Entry::load(slot).address();
        if note.is_mixed() {
            // Not all of them were copied, and the files may have taken some out.
            self.resident.remove_all(&note.pages());
            self.resident.add_all(&count_leaves(own).unwrap_or_default());
        }
        Note::OWNED.put(own);
        self.count += 1;
        self.forked -= 1;
        let event = match owned {
            Owned::TakenBack => &EVENTS.saved,
            Owned::Copied(_) => &EVENTS.copied,
        };
        event.fetch_add(1, Ordering::Relaxed);
        Ok(Some(owned))
    }

    /// Does the window of `address` use a shared table that has such leaves outside of `range`?
    fn shares_outside(&self, address: u64, range: &Range<u64>, such: impl Fn(Entry) -> bool) -> bool {
        let Some(above) = self.above_leaves(address).filter(|above| above.is_forked(2)) else { return false };
        let window = address & !(WINDOW - 1);
        // SAFETY: the lock is held, and the entry keeps the table.
        let leaves = unsafe { entries(above.address()) };
        leaves.iter().enumerate().any(|(place, leaf)| {
            let at = window + (place * (WINDOW as usize / ENTRIES)) as u64;
            !range.contains(&at) && such(Entry::load(leaf))
        })
    }

    /// Leaves the shared tables that have leaves in `range`. Returns where to go on; stops when `gather` is
    /// full, and after some entries.
    fn leave_forked(&mut self, range: Range<u64>, gather: &mut Gather) -> u64 {
        let mut at = range.start;
        // Most tables may be the space's own, and a whole table of entries between one and the next.
        let mut steps = ENTRIES;
        while at < range.end && self.forked > 0 && !gather.is_full() {
            let (window, above) = match self.next_table_within(at..range.end, &mut steps) {
                Ok(found) => found,
                Err(next) => return next,
            };
            at = window + WINDOW;
            if !above.is_forked(2) {
                continue;
            }
            let Some(slot) = self.find(window, 2) else { continue };
            gather.forked(window..at, forked::leave(slot));
            self.forked -= 1;
            self.resident.remove_all(&Note::at(above.address()).pages());
            EVENTS.saved.fetch_add(1, Ordering::Relaxed);
        }
        if self.forked == 0 { range.end } else { at.min(range.end) }
    }
}

impl AddressSpace {
    /// Makes the table for `address` the space's own if address spaces share it since a fork; tells whether
    /// they did. The areas lock is held.
    pub(super) fn own_window(&self, address: u64) -> Result<bool, NoMemory> {
        // Made without a lock: others may wait for it.
        let mut spare = None;
        loop {
            let owned = self.tables.lock().own(address, &mut spare, || self.flush_all());
            match owned {
                Ok(owned) => {
                    let shared = owned.is_some();
                    if let Some(Owned::Copied(table)) = owned {
                        // What may be freed here takes its time.
                        forked::let_go(table);
                    }
                    return Ok(shared);
                }
                Err(WantsTable) => spare = Frame::alloc(Use::PageTable),
            }
            // Tables that are on their way out may be all that was missing.
            if spare.is_none() && !grace::collect() {
                return Err(NoMemory);
            }
        }
    }

    /// Makes all tables with leaves in `range` the space's own. The areas lock is held, for writing if that
    /// is to last.
    pub(super) fn own_windows(&self, range: Range<u64>) -> Result<(), NoMemory> {
        let mut at = range.start;
        while at < range.end {
            let tables = self.tables.lock();
            if tables.forked == 0 {
                return Ok(());
            }
            let next = tables.next_table(at..range.end);
            drop(tables);
            at = match next {
                Ok((window, above)) => {
                    if above.is_forked(2) {
                        self.own_window(window)?;
                    }
                    window + WINDOW
                }
                Err(next) => next,
            };
            sched::cond_resched();
        }
        Ok(())
    }

    /// Goes on after a walk that met a shared table: makes it the space's own. Returns where the walk goes
    /// on.
    pub(super) fn own_met(&self, met: MetForked) -> Result<u64, NoMemory> {
        self.own_window(met.0)?;
        Ok(met.0)
    }

    /// Makes the tables at the ends of `range` the space's own where they are shared and have leaves outside
    /// of it. The areas lock is held.
    pub(super) fn own_borders(&self, range: &Range<u64>) -> Result<(), NoMemory> {
        for border in [range.start, range.end - 1] {
            let tables = self.tables.lock();
            if tables.forked == 0 {
                return Ok(());
            }
            let outside = tables.shares_outside(border, range, |leaf| leaf.0 != 0);
            drop(tables);
            if outside {
                self.own_window(border)?;
            }
        }
        Ok(())
    }

    /// What does for [`AddressSpace::own_borders`] where there is no memory for a table: leaves the shared tables at the ends of `range` as a whole, if all
    /// that they have outside of it are pages of files, which come back by faults.
    pub(super) fn leave_borders(&self, range: &Range<u64>, gather: &mut Gather) -> Result<(), NoMemory> {
        let comes_back = |leaf: Entry| leaf.0 == 0 || leaf.owns_frame() && !leaf.has(Entry::ANON);
        for border in [range.start, range.end - 1] {
            // A shared table gets no other leaves: what is true of it stays so.
            if self.tables.lock().shares_outside(border, range, |leaf| !comes_back(leaf)) {
                return Err(NoMemory);
            }
            let window = border & !(WINDOW - 1);
            self.leave_forked(window..window + WINDOW, gather);
        }
        Ok(())
    }

    /// Leaves the shared tables that have leaves in `range`, all of which are to go. None has leaves outside
    /// of it that are to stay ([`AddressSpace::own_borders`]). The areas lock is held.
    pub(super) fn leave_forked(&self, range: Range<u64>, gather: &mut Gather) {
        let mut at = range.start;
        while at < range.end {
            at = self.tables.lock().leave_forked(at..range.end, gather);
            if gather.is_full() {
                gather.flush();
            }
            sched::cond_resched();
        }
    }
}
