//! Physical memory: page-table frames and huge frames.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use hugetlb::{Entry, EntryValue, PageSize, PhysAddr, TABLE_SIZE, TableEntries};
use parking_lot::Mutex;

/// The words of a huge page that are simulated, spread evenly over it.
pub const WORDS: usize = 8;
/// What the words of a free huge page hold.
pub const POISON: u64 = 0xdead_dead_dead_dead;

const TABLES_BASE: u64 = 1 << 32;

/// A frame of a page table: aligned, so that its entries lie in the cache lines in which a machine has them.
#[repr(align(4096))]
struct TableFrame(TableEntries);

/// Frames that are handed out last in, first out, so that what is freed too early is soon somebody else's.
struct FreeList {
    free: Mutex<Vec<usize>>,
    used: Mutex<HashSet<usize>>,
}

impl FreeList {
    fn new(count: usize) -> FreeList {
        FreeList { free: Mutex::new((0..count).rev().collect()), used: Mutex::default() }
    }

    fn take(&self) -> Option<usize> {
        let number = self.free.lock().pop()?;
        assert!(self.used.lock().insert(number), "a frame was handed out twice");
        Some(number)
    }

    fn give(&self, number: usize) {
        assert!(self.used.lock().remove(&number), "a frame was freed twice");
        self.free.lock().push(number);
    }
}

/// All memory of a machine.
pub(crate) struct Memory {
    tables: Vec<Box<TableFrame>>,
    table_list: FreeList,
    huge: [HugeFrames; 2],
    /// Allocations until the one that fails, that one included; 0 for none.
    failing: AtomicU64,
}

struct HugeFrames {
    size: PageSize,
    base: u64,
    frames: Vec<[AtomicU64; WORDS]>,
    list: FreeList,
}

impl HugeFrames {
    fn new(size: PageSize, base: u64, count: usize) -> HugeFrames {
        let frames = (0..count).map(|_| [const { AtomicU64::new(POISON) }; WORDS]).collect();
        HugeFrames { size, base, frames, list: FreeList::new(count) }
    }

    fn number(&self, frame: PhysAddr) -> usize {
        ((frame.0 - self.base) >> self.size.shift()) as usize
    }
}

impl Memory {
    pub(crate) fn new(tables: usize, small: usize, large: usize) -> Memory {
        Memory {
            tables: (0..tables).map(|_| Box::new(TableFrame([const { Entry::empty() }; 512]))).collect(),
            table_list: FreeList::new(tables),
            huge: [
                HugeFrames::new(PageSize::Size2M, 1 << 40, small),
                HugeFrames::new(PageSize::Size1G, 1 << 44, large),
            ],
            failing: AtomicU64::new(0),
        }
    }

    /// The `nth` allocation from now on fails; returns what was left to go of the one before.
    pub(crate) fn fail_allocation(&self, nth: u64) -> u64 {
        self.failing.swap(nth, Ordering::SeqCst)
    }

    /// Does this allocation fail on purpose?
    pub(crate) fn fails(&self) -> bool {
        let count_down = |left: u64| left.checked_sub(1);
        self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count_down) == Ok(1)
    }

    pub(crate) fn allocate_table(&self) -> Option<PhysAddr> {
        if self.fails() {
            return None;
        }
        let number = self.table_list.take()?;
        for entry in self.tables[number].0.iter() {
            entry.store(EntryValue::default(), Ordering::SeqCst);
        }
        Some(PhysAddr(TABLES_BASE + number as u64 * TABLE_SIZE))
    }

    pub(crate) fn free_table(&self, table: PhysAddr) {
        // A walk through a freed table finds translations to nowhere rather than plausible ones.
        for entry in self.table(table).iter() {
            entry.store(EntryValue(u64::MAX), Ordering::SeqCst);
        }
        self.table_list.give(((table.0 - TABLES_BASE) / TABLE_SIZE) as usize);
    }

    pub(crate) fn table(&self, table: PhysAddr) -> &TableEntries {
        &self.tables[((table.0 - TABLES_BASE) / TABLE_SIZE) as usize].0
    }

    pub(crate) fn tables_in_use(&self) -> usize {
        self.table_list.used.lock().len()
    }

    pub(crate) fn allocate_huge(&self, size: PageSize) -> Option<PhysAddr> {
        if self.fails() {
            return None;
        }
        let huge = self.of(size);
        Some(PhysAddr(huge.base + ((huge.list.take()? as u64) << size.shift())))
    }

    pub(crate) fn free_huge(&self, size: PageSize, frame: PhysAddr) {
        for word in &self.of(size).frames[self.of(size).number(frame)] {
            word.store(POISON, Ordering::SeqCst);
        }
        self.of(size).list.give(self.of(size).number(frame));
    }

    pub(crate) fn huge_in_use(&self, size: PageSize) -> usize {
        self.of(size).list.used.lock().len()
    }

    /// The simulated word that lies at or before an address.
    pub(crate) fn word(&self, address: PhysAddr) -> &AtomicU64 {
        let huge = self.at(address);
        let within = (address.0 & (huge.size.bytes() - 1)) / (huge.size.bytes() / WORDS as u64);
        &huge.frames[huge.number(address)][within as usize]
    }

    /// Zeroes the simulated words that begin in the range.
    pub(crate) fn zero(&self, start: PhysAddr, bytes: u64) {
        let stride = self.at(start).size.bytes() / WORDS as u64;
        let mut address = start.0.next_multiple_of(stride);
        while address < start.0 + bytes {
            self.word(PhysAddr(address)).store(0, Ordering::SeqCst);
            address += stride;
        }
    }

    pub(crate) fn copy(&self, size: PageSize, from: PhysAddr, to: PhysAddr) {
        let huge = self.of(size);
        for (from, to) in huge.frames[huge.number(from)].iter().zip(&huge.frames[huge.number(to)]) {
            to.store(from.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }

    fn of(&self, size: PageSize) -> &HugeFrames {
        &self.huge[usize::from(size == PageSize::Size1G)]
    }

    fn at(&self, address: PhysAddr) -> &HugeFrames {
        &self.huge[usize::from(address.0 >= 1 << 44)]
    }
}
