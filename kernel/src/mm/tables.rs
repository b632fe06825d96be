//! User page tables: walking, filling, emptying, freeing.
//!
//! One spin lock per address space guards its tables' structure and all changes by software; the hardware sets accessed and dirty
//! bits at any time, so entries are changed with atomic operations only. Every entry that maps a counted frame owns one
//! reference to it. Ranges of huge pages belong to the `hugetlb` library below the PUD level: the walks here never enter
//! them, since their callers go by area.

use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use super::entry::Entry;
use super::fork_files::Note;
use super::gather::Gather;
use super::space::cpus_running;
use crate::arch::cpu::{AtomicCpuSet, CpuSet};
use crate::memory::frame::{Frame, Use};
use crate::memory::{PAGE_SHIFT, PAGE_SIZE, PhysAddr, paging, reserve};
use crate::sync::{SpinLock, SpinLockGuard};

/// Entries of a table.
pub const ENTRIES: usize = 512;
const PAGE: u64 = PAGE_SIZE as u64;
/// The level of the root; leaves are level 1.
pub(super) const TOP: u32 = 4;

/// There was no frame for a page table.
#[derive(Debug)]
pub struct NoMemory;

/// Why there is no table of the address space's own for an address.
#[derive(Debug)]
pub enum NoTable {
    /// There was no frame for it.
    NoMemory,
    /// Others share the table, of huge pages in the same slot, of a file, or since a fork: see
    /// [`super::AddressSpace::take_slot`].
    SlotShared,
}

/// A walk that changes leaves met a table with leaves in its range that address spaces share since a fork, at
/// this address. What came before is done. [`super::AddressSpace::own_window`] makes the table the space's
/// own; then the walk can go on here.
#[derive(Debug)]
pub struct MetForked(pub u64);

impl From<NoMemory> for NoTable {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// Base-2 logarithm of what an entry of a table of `level` spans.
const fn shift(level: u32) -> u32 {
    PAGE_SHIFT as u32 + 9 * (level - 1)
}

/// Bytes that an entry of a table of `level` spans.
pub const fn span(level: u32) -> u64 {
    1 << shift(level)
}

pub(super) const fn index(address: u64, level: u32) -> usize {
    (address >> shift(level)) as usize % ENTRIES
}

/// The entries of the table at `address`.
///
/// # Safety
/// The frame must be a page table that nobody frees while the result is in use.
pub unsafe fn entries<'a>(address: PhysAddr) -> &'a [AtomicU64; ENTRIES] {
    // SAFETY: the direct map shows the whole frame, aligned; the caller vouches for its life.
    unsafe { &*address.as_ptr::<[AtomicU64; ENTRIES]>() }
}

/// Pages that are mapped, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resident {
    /// Anonymous pages and private copies.
    pub anonymous: u64,
    /// Pages of files.
    pub file: u64,
    /// Pages of tmpfs files and shared anonymous memory.
    pub shmem: u64,
}

impl Resident {
    fn each(&mut self, other: &Self, change: impl Fn(&mut u64, u64)) {
        change(&mut self.anonymous, other.anonymous);
        change(&mut self.file, other.file);
        change(&mut self.shmem, other.shmem);
    }

    /// Counts pages in.
    pub(super) fn add_all(&mut self, pages: &Self) {
        self.each(pages, |mine, more| *mine += more);
    }

    /// Counts pages out.
    pub(super) fn remove_all(&mut self, pages: &Self) {
        self.each(pages, |mine, less| *mine -= less);
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.anonymous + self.file + self.shmem
    }

    fn counter(&mut self, entry: Entry) -> &mut u64 {
        if entry.has(Entry::ANON) {
            &mut self.anonymous
        } else if entry.has(Entry::SHMEM) {
            &mut self.shmem
        } else {
            &mut self.file
        }
    }

    /// Counts a page in.
    pub fn add(&mut self, entry: Entry) {
        if entry.owns_frame() {
            *self.counter(entry) += 1;
        }
    }

    /// Counts a page out.
    pub fn remove(&mut self, entry: Entry) {
        if entry.owns_frame() {
            *self.counter(entry) -= 1;
        }
    }
}

/// What a leaf below an entry of level 2 is for the space that looks, and how many address spaces have it so.
fn seen_through(above: Entry, leaf: Entry) -> (Entry, u32) {
    match above.is_forked(2) {
        true => (leaf.without(Entry::WRITABLE), Frame::count_at(above.address())),
        false => (leaf, 1),
    }
}

/// The tables of one address space, their lock, and the CPUs that have them loaded.
pub struct PageTables {
    /// Differs from that of all other tables, for ever.
    pub id: u64,
    /// What CR3 gets.
    pub root: PhysAddr,
    pub(super) cpus: AtomicCpuSet,
    /// Are they those of a region? No CPU loads them; CPUs reach them through the entries of processes: see [`super::mshare`].
    pub is_region: bool,
    inner: SpinLock<Tables>,
}

impl PageTables {
    pub fn new(is_region: bool) -> Result<Arc<Self>, NoMemory> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let tables = Tables::new(is_region)?;
        Ok(Arc::new(Self {
            // Relaxed: only the numbers have to differ.
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            root: tables.root(),
            cpus: AtomicCpuSet::new(),
            is_region,
            inner: SpinLock::growing(tables),
        }))
    }

    /// Takes the page-table lock.
    #[track_caller]
    pub fn lock(&self) -> SpinLockGuard<'_, Tables> {
        self.inner.lock()
    }

    /// The CPUs that have the tables loaded, or run a process that a region is attached to.
    pub fn cpus(&self) -> CpuSet {
        if self.is_region { cpus_running(&|id| id == self.id) } else { self.cpus.load() }
    }
}

/// Leaves that are filled at once, at most.
pub(super) const FILLED: usize = 16;

/// Entries that are looked at together.
const TOGETHER: usize = 8;

/// The first of `slots` from `place` on that is not 0.
#[inline]
fn next_used(slots: &[AtomicU64], mut place: usize) -> Option<usize> {
    // Relaxed: whoever uses an entry loads it once more.
    let is_used = |slot: &AtomicU64| slot.load(Ordering::Relaxed) != 0;
    loop {
        let rest = slots.get(place..)?;
        match rest.first_chunk::<TOGETHER>() {
            Some(some) if some.iter().fold(0, |all, slot| all | slot.load(Ordering::Relaxed)) == 0 => {
                place += TOGETHER;
            }
            Some(some) => return some.iter().position(is_used).map(|within| place + within),
            None => return rest.iter().position(is_used).map(|within| place + within),
        }
    }
}

/// Puts leaves into tables one after another, and remembers the table of leaves that it came to last.
pub(super) struct Filler<'t> {
    tables: &'t mut Tables,
    /// Where the last table's window begins, and the table.
    last: Option<(u64, PhysAddr)>,
}

impl Filler<'_> {
    /// As [`Tables::install`].
    pub(super) fn install(&mut self, address: u64, entry: Entry) -> Result<(), NoTable> {
        let table = self.table(address)?;
        // SAFETY: as in `Tables::find`: the tables are borrowed, so nobody frees or shares one of them.
        let slot = unsafe { &entries(table)[index(address, 1)] };
        self.tables.put(slot, entry);
        Ok(())
    }

    /// Leaves a mark where there is no page.
    pub(super) fn mark(&mut self, address: u64, mark: u64) -> Result<(), NoTable> {
        let table = self.table(address)?;
        // SAFETY: as above.
        unsafe { &entries(table)[index(address, 1)] }.store(mark, Ordering::SeqCst);
        Ok(())
    }

    /// The table with the leaf of an address.
    fn table(&mut self, address: u64) -> Result<PhysAddr, NoTable> {
        let window = address & !(span(2) - 1);
        match self.last {
            Some((last, table)) if last == window => Ok(table),
            _ => {
                self.tables.find_or_make(address, 1)?;
                let above = self.tables.above_leaves(address).ok_or(NoTable::NoMemory)?;
                self.last = Some((window, above.address()));
                Ok(above.address())
            }
        }
    }
}

/// The tables of one address space, behind its page-table lock.
pub struct Tables {
    root: Frame,
    /// Tables below the root that belong to this address space alone.
    pub count: u64,
    /// Entries that lead to tables which address spaces share since a fork.
    pub(super) forked: u64,
    /// Pages that the leaves map.
    pub resident: Resident,
    /// The most that were ever mapped.
    pub peak: u64,
    /// A region's: they may outlive who makes them, and processes' entries lead to its tables of the third level.
    is_region: bool,
}

impl Tables {
    /// A root that maps the kernel and nothing else.
    fn new(is_region: bool) -> Result<Self, NoMemory> {
        let root = Frame::alloc_zeroed(Use::PageTable).ok_or(NoMemory)?;
        // SAFETY: the new table is ours alone.
        paging::copy_kernel_half(unsafe { entries(root.phys()) });
        Ok(Self { root, count: 0, forked: 0, resident: Resident::default(), peak: 0, is_region })
    }

    /// What CR3 gets.
    pub fn root(&self) -> PhysAddr {
        self.root.phys()
    }

    /// The entry of `level`, above the leaves, for `address`, if the tables above it exist.
    pub fn find(&self, address: u64, level: u32) -> Option<&AtomicU64> {
        debug_assert!(level > 1, "a leaf is asked for by `own_leaf`");
        let (mut table, mut at) = (self.root.phys(), TOP);
        loop {
            // SAFETY: a table that a present entry names lives as long as the lock is held, which `&self` stands for.
            let entry = unsafe { &entries(table)[index(address, at)] };
            if at == level {
                return Some(entry);
            }
            let value = Entry(entry.load(Ordering::SeqCst));
            if value.is_end(at) {
                return None;
            }
            table = value.address();
            at -= 1;
        }
    }

    /// The entry of level 2 for `address` if it leads to a table of leaves that is no file's: the space's
    /// own, or one that address spaces share since a fork.
    pub(super) fn above_leaves(&self, address: u64) -> Option<Entry> {
        let value = Entry(self.find(address, 2)?.load(Ordering::SeqCst));
        (!value.is_end(2) || value.is_forked(2)).then_some(value)
    }

    /// The leaf entry for `address`, to change it; `None` without a table. `SlotShared` when the table is not
    /// the space's own.
    pub fn own_leaf(&self, address: u64) -> Result<Option<&AtomicU64>, NoTable> {
        match self.above_leaves(address) {
            Some(above) if above.is_forked(2) => Err(NoTable::SlotShared),
            // SAFETY: as in `find`.
            Some(above) => Ok(Some(unsafe { &entries(above.address())[index(address, 1)] })),
            None => Ok(None),
        }
    }

    /// The entry of `level` for `address`; makes the tables above it.
    pub fn find_or_make(&mut self, address: u64, level: u32) -> Result<&AtomicU64, NoTable> {
        let mut table = self.root.phys();
        let mut at = TOP;
        loop {
            // SAFETY: as in `find`.
            let entry = unsafe { &entries(table)[index(address, at)] };
            if at == level {
                return Ok(entry);
            }
            let mut value = Entry(entry.load(Ordering::SeqCst));
            if !value.is_present() {
                if self.is_region {
                    // No end of a process frees it.
                    reserve::ask_lasting(PAGE_SIZE).map_err(|_| NoMemory)?;
                }
                let new = Frame::alloc_zeroed(Use::PageTable).ok_or(NoMemory)?;
                Note::NONE.put(new.phys());
                value = Entry::table(new.phys());
                // The library attaches its tables without the lock. SeqCst: the walkers in hardware see the zeroes before the
                // entry.
                match entry.compare_exchange(0, value.0, Ordering::SeqCst, Ordering::SeqCst) {
                    Ok(_) => {
                        // The entry has the reference now.
                        let _ = new.into_raw();
                        self.count += 1;
                    }
                    Err(now) => value = Entry(now),
                }
            }
            if value.leads_to_shared(at) || value.is_forked(at) {
                return Err(NoTable::SlotShared);
            }
            assert!(!value.is_end(at), "base page inside huge pages at {address:#x}");
            table = value.address();
            at -= 1;
        }
    }

    /// Puts an empty table in the place of the library's to which the entry of `level` for `address` leads, and which nobody else changes
    /// meanwhile.
    pub fn replace_shared(&mut self, address: u64, level: u32) -> Result<(), NoMemory> {
        if self.is_region {
            // As in `find_or_make`.
            reserve::ask_lasting(PAGE_SIZE).map_err(|_| NoMemory)?;
        }
        let new = Frame::alloc_zeroed(Use::PageTable).ok_or(NoMemory)?;
        Note::NONE.put(new.phys());
        let slot = self.find(address, level).ok_or(NoMemory)?;
        // SeqCst: as in `find_or_make`.
        let old = Entry(slot.swap(Entry::table(new.into_raw()).0, Ordering::SeqCst));
        assert!(old.leads_to_shared(level), "a table that is not the library's is replaced at {address:#x}");
        self.count += 1;
        Ok(())
    }

    /// The leaf entry for `address`, to look at it: without WRITABLE when the table is not the space's own.
    pub fn leaf(&self, address: u64) -> Entry {
        self.leaf_and_sharers(address).0
    }

    /// As [`Tables::leaf`], and how many address spaces have it in their tables.
    pub(super) fn leaf_and_sharers(&self, address: u64) -> (Entry, u32) {
        let Some(above) = self.above_leaves(address) else { return (Entry(0), 1) };
        // SAFETY: as in `find`. Who shares a table keeps it.
        let leaf = Entry(unsafe { entries(above.address())[index(address, 1)].load(Ordering::SeqCst) });
        seen_through(above, leaf)
    }

    /// Puts a leaf where there was none. The entry takes the frame's reference over. If a marker says so, stores to it are withheld.
    pub fn install(&mut self, address: u64, entry: Entry) -> Result<(), NoTable> {
        let slot = core::ptr::from_ref(self.find_or_make(address, 1)?);
        // SAFETY: as in `find`; the entry is in a table, not in what is borrowed here.
        self.put(unsafe { &*slot }, entry);
        Ok(())
    }

    /// As [`Tables::install`], for the entries of one call after another, most of them neighbours.
    pub(super) fn filler(&mut self) -> Filler<'_> {
        Filler { tables: self, last: None }
    }

    fn put(&mut self, slot: &AtomicU64, entry: Entry) {
        let marker = Entry(slot.load(Ordering::SeqCst)).0 & Entry::USERFAULT_WP;
        let entry = if marker == 0 { entry } else { entry.with(marker).without(Entry::WRITABLE) };
        slot.store(entry.0, Ordering::SeqCst);
        self.resident.add(entry);
        self.peak = self.peak.max(self.resident.total());
    }

    /// Puts leaves where there are none in `range`, at most [`FILLED`] whose table is there and one for all. `find` is told which are wanted,
    /// a bit for each, and puts entries that take the frames' references over in their places.
    pub fn fill(&mut self, range: Range<u64>, find: impl FnOnce(u32, &mut [Entry])) {
        let above = self.above_leaves(range.start).filter(|above| !above.is_forked(2));
        let Some(table) = above.map(Entry::address) else { return };
        let count = ((range.end - range.start) >> PAGE_SHIFT) as usize;
        // SAFETY: as in `find`.
        let leaves = unsafe { &entries(table)[index(range.start, 1)..][..count] };
        // A userfaultfd's marker says what is to happen there: a fault heeds it.
        let is_wanted = |leaf: &AtomicU64| u32::from(leaf.load(Ordering::SeqCst) == 0);
        let wanted = leaves.iter().enumerate().fold(0, |all, (place, leaf)| all | is_wanted(leaf) << place);
        let mut found = [Entry(0); FILLED];
        let found = &mut found[..count];
        find(wanted, found);
        for (leaf, entry) in leaves.iter().zip(found).filter(|(_, entry)| entry.0 != 0) {
            leaf.store(entry.0, Ordering::SeqCst);
            self.resident.add(*entry);
        }
        self.peak = self.peak.max(self.resident.total());
    }

    /// Gives `visit` each leaf entry of `range` that is not 0, to change it, at most `budget` slots of them.
    /// Returns where to go on; the end of the range when it is done. Ends at a table with leaves in the range
    /// that is not the space's own.
    pub fn walk(
        &self,
        range: Range<u64>,
        budget: usize,
        mut visit: impl FnMut(u64, &AtomicU64),
    ) -> Result<u64, MetForked> {
        self.each_table(range, budget, |at, count, above| {
            // SAFETY: as in `find`.
            let leaves = &unsafe { entries(above.address()) }[index(at, 1)..][..count];
            // Most entries of an area are empty, and all of them are looked at: nothing more is done for
            // those.
            for (place, leaf) in leaves.iter().enumerate() {
                if leaf.load(Ordering::SeqCst) != 0 {
                    if above.is_forked(2) {
                        return Err(MetForked(at));
                    }
                    visit(at + place as u64 * PAGE, leaf);
                }
            }
            Ok(())
        })
    }

    /// As [`Tables::walk`], to look only: `visit` gets each entry as [`Tables::leaf`] has it, and how many
    /// address spaces have it in their tables.
    pub(super) fn read(
        &self,
        range: Range<u64>,
        budget: usize,
        mut visit: impl FnMut(u64, Entry, u32),
    ) -> u64 {
        let walked = self.each_table(range.clone(), budget, |at, count, above| {
            // SAFETY: as in `leaf_and_sharers`.
            let leaves = &unsafe { entries(above.address()) }[index(at, 1)..][..count];
            for (place, leaf) in leaves.iter().enumerate() {
                let leaf = Entry(leaf.load(Ordering::SeqCst));
                if leaf.0 != 0 {
                    let (leaf, sharers) = seen_through(above, leaf);
                    visit(at + place as u64 * PAGE, leaf, sharers);
                }
            }
            Ok(())
        });
        walked.unwrap_or(range.end)
    }

    /// Calls `work` for each part of `range` that one table of leaves serves, as long as `budget` slots last:
    /// where it begins, how many leaves it has, the entry above. Returns where to go on.
    fn each_table(
        &self,
        range: Range<u64>,
        budget: usize,
        mut work: impl FnMut(u64, usize, Entry) -> Result<(), MetForked>,
    ) -> Result<u64, MetForked> {
        let mut at = range.start;
        let mut left = budget;
        while at < range.end && left > 0 {
            // The entry above the leaves for `at`, or how far the gap reaches.
            let mut table = self.root.phys();
            let mut level = TOP;
            let found = loop {
                // SAFETY: as in `find`.
                let value = Entry(unsafe { entries(table)[index(at, level)].load(Ordering::SeqCst) });
                if value.is_forked(level) {
                    break Some(value);
                }
                if value.is_end(level) {
                    break None;
                }
                if level == 2 {
                    break Some(value);
                }
                table = value.address();
                level -= 1;
            };
            let Some(above) = found else {
                // The whole entry is empty. No overflow: user addresses end far below.
                at = (at & !(span(level) - 1)) + span(level);
                // Looking at an empty entry costs as well, and there can be many.
                left -= 1;
                continue;
            };
            let end = range.end.min((at & !(span(2) - 1)) + span(2));
            let count = ((end - at).div_ceil(PAGE) as usize).min(left);
            work(at, count, above)?;
            at += count as u64 * PAGE;
            left -= count;
        }
        Ok(at.min(range.end))
    }

    /// The begin of the first window in `range` whose entry of level 2 leads to a table of leaves, and the
    /// entry. Looks at a bounded number of entries; `Err` with where to go on if it has found none.
    pub(super) fn next_table(&self, range: Range<u64>) -> Result<(u64, Entry), u64> {
        self.next_table_within(range, &mut { ENTRIES })
    }

    /// As [`Self::next_table`]; looks at `steps` entries at the most, and counts those down.
    pub(super) fn next_table_within(
        &self,
        range: Range<u64>,
        steps: &mut usize,
    ) -> Result<(u64, Entry), u64> {
        let mut at = range.start & !(span(2) - 1);
        while *steps > 0 && at < range.end {
            *steps -= 1;
            let mut table = self.root.phys();
            let mut level = TOP;
            loop {
                // SAFETY: as in `find`.
                let value = Entry(unsafe { entries(table)[index(at, level)].load(Ordering::SeqCst) });
                if value.is_forked(level) || level == 2 && !value.is_end(level) {
                    return Ok((at, value));
                }
                if value.is_end(level) {
                    break;
                }
                table = value.address();
                level -= 1;
            }
            at = (at & !(span(level) - 1)) + span(level);
        }
        Err(at.min(range.end))
    }

    /// Nobody is attached any more, and never will be: all tables may go.
    pub fn end_region(&mut self) {
        self.is_region = false;
    }

    /// Frees tables for addresses in `range` that lie in `hole` as a whole: all leaves in it are empty, and no area is in it. Looks at a bounded
    /// number of entries, and stops when `gather` is full; returns where to go on, the end of the range when it is done.
    pub fn free(&mut self, range: Range<u64>, hole: &Range<u64>, gather: &mut Gather) -> u64 {
        const STEPS: usize = 4 * ENTRIES;
        let mut steps = STEPS;
        let root = self.root.phys();
        self.free_below(root, TOP, 0, &range, hole, gather, &mut steps).unwrap_or(range.end)
    }

    /// Frees the tables of levels below `level` that the table at `table`, which begins at address `base`, names. Returns where it stopped if it
    /// is not done.
    #[allow(clippy::too_many_arguments)]
    fn free_below(
        &mut self,
        table: PhysAddr,
        level: u32,
        base: u64,
        range: &Range<u64>,
        hole: &Range<u64>,
        gather: &mut Gather,
        steps: &mut usize,
    ) -> Option<u64> {
        let top = base + (span(level) * ENTRIES as u64).min(1 << 47);
        let (start, end) = (range.start.max(base), range.end.min(top));
        if level == 1 || start >= end {
            return None;
        }
        // SAFETY: as in `find`.
        let slots = unsafe { &entries(table)[..=index(end - 1, level)] };
        let mut next = index(start, level);
        while let Some(i) = next_used(slots, next) {
            // Looking at empty entries costs as well.
            *steps = steps.saturating_sub((i - next) / TOGETHER);
            next = i + 1;
            let from = base + i as u64 * span(level);
            let to = from + span(level);
            if *steps == 0 || gather.is_full() {
                return Some(from.max(start));
            }
            *steps -= 1;
            let slot = &slots[i];
            let value = Entry(slot.load(Ordering::SeqCst));
            if value.is_end(level) {
                continue;
            }
            let stopped = self.free_below(value.address(), level - 1, from, range, hole, gather, steps);
            if stopped.is_some() {
                return stopped;
            }
            // Race: a process attaches while the last area of a part of the region goes. The entry that it writes leads to a table that
            // stays until the region's end, so nobody has to look for it.
            let is_attached = self.is_region && level == TOP;
            if from >= hole.start && to <= hole.end && !is_attached {
                slot.store(0, Ordering::SeqCst);
                self.count -= 1;
                // SAFETY: the entry owned the reference that `find_or_make` gave it, and is gone.
                gather.table(from..to, unsafe { Frame::from_raw(value.address()) });
            }
        }
        *steps = steps.saturating_sub((slots.len() - next) / TOGETHER);
        None
    }
}
