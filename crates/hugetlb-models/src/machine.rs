//! The machine of a model: a few frames, two CPUs with TLBs, and what must never happen.
//!
//! What CPUs and programs do are steps of the model: loads of entries and words, and the lock that makes an access and a
//! shootdown come one after the other. The machine's own records are not: they are looked at between two steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hugetlb::filetables::format::Native;
use hugetlb::sync::AtomicU64;
use hugetlb::{
    Access, Entry, EntryValue, Flush, Format, Level, Machine, OutOfMemory, PageSize, PhysAddr, Protection,
    SLOT_SIZE, Space, TABLE_SIZE, TableEntries, VirtAddr, filetables,
};

use crate::lock::{RawMutex, RawRwLock};
use crate::space::{ModelSpace, Upper, WIDE};

/// CPUs of the machine.
pub const CPUS: usize = 2;
/// Page-table frames.
const TABLES: usize = 8;
/// What a huge page has in it that nobody uses.
pub(crate) const POISON: u64 = 0xdead_dead_dead_dead;
pub(crate) const HUGE_BASE: u64 = 1 << 40;

/// A translation, with the rights of both levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Translation {
    frame: PhysAddr,
    writable: bool,
}

/// What a CPU remembers, by space and address. Only a flush empties it.
#[derive(Default)]
struct Tlb {
    leaves: BTreeMap<(u64, VirtAddr), Translation>,
    /// PUD entries that lead to tables.
    tables: BTreeMap<(u64, VirtAddr), EntryValue>,
    /// PGD entries that do, by space.
    uppers: BTreeMap<u64, EntryValue>,
}

impl Tlb {
    fn flush(&mut self, space: u64, range: &std::ops::Range<VirtAddr>, tables: bool) {
        let page = PageSize::Size2M.bytes();
        self.leaves.retain(|(id, address), _| {
            *id != space || *address + page <= range.start || *address >= range.end
        });
        if tables {
            self.tables.retain(|(id, slot), _| {
                *id != space || *slot + SLOT_SIZE <= range.start || *slot >= range.end
            });
            self.uppers.retain(|id, _| *id != space || range.end <= WIDE);
        }
    }

    fn spaces(&self) -> BTreeSet<u64> {
        let below = self.leaves.keys().chain(self.tables.keys()).map(|(space, _)| *space);
        below.chain(self.uppers.keys().copied()).collect()
    }
}

#[derive(Clone, PartialEq, Eq)]
enum TableState {
    Free,
    Used,
    /// Waits for the walkers that were under way.
    Retired([bool; CPUS]),
}

struct Records {
    tables: Vec<TableState>,
    huge: Vec<bool>,
    tlbs: [Tlb; CPUS],
    walking: [bool; CPUS],
    /// Breaks the machine on purpose: a retired table is reused at once.
    no_grace_period: bool,
    spaces: Vec<Weak<Upper>>,
}

/// Frames, and who uses them.
pub(crate) struct Memory {
    tables: Vec<TableEntries>,
    words: Vec<AtomicU64>,
    records: Mutex<Records>,
    /// What every allocator has: who gets a frame comes after who gave it back. Walkers begin and end under it, too.
    frames: lock_api::Mutex<RawMutex, ()>,
}

/// A handle to the machine of a model.
#[derive(Clone)]
pub struct ModelMachine(Arc<Inner>);

struct Inner {
    memory: Arc<Memory>,
    /// An access runs to its end before an interrupt.
    interrupts: [lock_api::Mutex<RawMutex, ()>; CPUS],
}

fn table_number(table: PhysAddr) -> usize {
    (table.0 / TABLE_SIZE) as usize - 1
}

fn huge_number(frame: PhysAddr) -> usize {
    ((frame.0 - HUGE_BASE) >> PageSize::Size2M.shift()) as usize
}

impl Memory {
    fn records(&self) -> MutexGuard<'_, Records> {
        // A failed model unwinds through here, too.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn allocate_table(&self) -> Option<PhysAddr> {
        let _frames = self.frames.lock();
        let mut records = self.records();
        // Reused as soon as may be: the harshest case.
        let grace = [false; CPUS];
        let number = records
            .tables
            .iter()
            .position(|state| *state == TableState::Retired(grace))
            .or_else(|| records.tables.iter().position(|state| *state == TableState::Free))?;
        let left = self.tables[number].iter().any(|entry| entry.peek() != EntryValue::default());
        assert!(!left, "an entry was written into a table behind its end");
        records.tables[number] = TableState::Used;
        Some(PhysAddr((number as u64 + 1) * TABLE_SIZE))
    }

    pub(crate) fn retire_table(&self, table: PhysAddr) {
        let _frames = self.frames.lock();
        let mut records = self.records();
        let number = table_number(table);
        assert!(records.tables[number] == TableState::Used, "a table is retired twice");
        let left = self.tables[number].iter().any(|entry| entry.peek() != EntryValue::default());
        assert!(!left, "a table is retired with entries in it");
        let leads = records.spaces.iter().filter_map(Weak::upgrade).any(|space| space.leads_to(table));
        assert!(!leads, "a table is retired that a PUD entry leads to");
        let below = self.tables.iter().flatten().map(Entry::peek);
        let leads = |entry| Native::is_present(entry) && Native::table_frame(entry) == table;
        assert!(!below.into_iter().any(leads), "a table is retired that a table above leads to");
        let held = records.tlbs.iter().any(|tlb| {
            tlb.tables.values().chain(tlb.uppers.values()).any(|value| Native::table_frame(*value) == table)
        });
        assert!(!held, "a table is retired that a paging-structure cache leads to");
        let waits_for = if records.no_grace_period { [false; CPUS] } else { records.walking };
        records.tables[number] = TableState::Retired(waits_for);
    }

    pub(crate) fn table(&self, table: PhysAddr) -> &TableEntries {
        let state = self.records().tables[table_number(table)].clone();
        assert!(state == TableState::Used, "a table is used behind its end");
        &self.tables[table_number(table)]
    }

    fn free_huge(&self, frame: PhysAddr) {
        let _frames = self.frames.lock();
        self.check_unreachable(frame, "a page is freed");
        // Relaxed: as a program's store.
        self.words[huge_number(frame)].store(POISON, Ordering::Relaxed);
        self.records().huge[huge_number(frame)] = false;
    }

    /// Nobody reaches a page any more, or yet.
    fn check_unreachable(&self, frame: PhysAddr, what: &str) {
        let records = self.records();
        assert!(records.huge[huge_number(frame)], "{what} that is free");
        let held = records.tlbs.iter().any(|tlb| tlb.leaves.values().any(|found| found.frame == frame));
        assert!(!held, "{what} that a TLB leads to");
        let shown = self.tables.iter().flatten().map(Entry::peek).any(|entry| {
            Native::is_leaf(Level::Pmd, entry) && Native::leaf_frame(Level::Pmd, entry) == frame
        });
        assert!(!shown, "{what} that an entry leads to");
    }

    /// The word of a page that a program or the host touches.
    fn word(&self, frame: PhysAddr) -> &AtomicU64 {
        assert!(self.records().huge[huge_number(frame)], "a program reaches a page that was freed");
        &self.words[huge_number(frame)]
    }
}

/// The bit of an entry that permits stores.
const WRITABLE: u64 = 1 << 1;

/// Whether an entry permits stores.
fn is_writable(entry: EntryValue) -> bool {
    Native::protection(entry).contains(Protection::WRITE)
}

/// The tables do not permit an access.
pub(crate) struct PageFault;

impl ModelMachine {
    /// A machine with so many huge frames.
    pub(crate) fn new(frames: usize) -> ModelMachine {
        let records = Records {
            tables: vec![TableState::Free; TABLES],
            huge: vec![false; frames],
            tlbs: Default::default(),
            walking: [false; CPUS],
            no_grace_period: false,
            spaces: Vec::new(),
        };
        let memory = Memory {
            tables: (0..TABLES).map(|_| std::array::from_fn(|_| Entry::empty())).collect(),
            words: (0..frames).map(|_| AtomicU64::new(POISON)).collect(),
            records: Mutex::new(records),
            frames: lock_api::Mutex::new(()),
        };
        let interrupts = std::array::from_fn(|_| lock_api::Mutex::new(()));
        ModelMachine(Arc::new(Inner { memory: Arc::new(memory), interrupts }))
    }

    /// Breaks the machine on purpose: a table is reused while a walker is in it.
    pub fn forget_grace_periods(&self) {
        self.0.memory.records().no_grace_period = true;
    }

    pub(crate) fn space(&self) -> ModelSpace {
        let mut records = self.0.memory.records();
        let space = ModelSpace::new(records.spaces.len() as u64 + 1, self.0.memory.clone());
        records.spaces.push(Arc::downgrade(&space.0));
        space
    }

    /// Page-table frames in use.
    pub(crate) fn tables_in_use(&self) -> usize {
        self.0.memory.records().tables.iter().filter(|state| **state == TableState::Used).count()
    }

    /// Huge frames in use.
    pub(crate) fn huge_in_use(&self) -> usize {
        self.0.memory.records().huge.iter().filter(|used| **used).count()
    }

    pub(crate) fn free_host_table(&self, space: &ModelSpace, at: VirtAddr, level: Level, table: PhysAddr) {
        self.flush(&[Flush { space: space.clone(), range: at..at + level.span(), tables: true }]);
        self.0.memory.retire_table(table);
    }

    /// One load or store of a program.
    pub(crate) fn access(
        &self,
        cpu: usize,
        space: &ModelSpace,
        address: VirtAddr,
        store: Option<u64>,
    ) -> Result<u64, PageFault> {
        let _running = self.0.interrupts[cpu].lock();
        let access = if store.is_some() { Access::Write } else { Access::Read };
        let key = (space.id(), address.floor(Level::Pmd));
        let found = self.translate(cpu, space, address);
        let Some(found) = found.filter(|found| found.writable || access == Access::Read) else {
            // As on x86, a page fault drops what the TLB has for the address.
            let tlb = &mut self.0.memory.records().tlbs[cpu];
            tlb.leaves.remove(&key);
            tlb.tables.remove(&(space.id(), address.floor(Level::Pud)));
            if address >= WIDE {
                tlb.uppers.remove(&space.id());
            }
            return Err(PageFault);
        };
        // Relaxed: a program's loads and stores are ordered by nothing but what led to the page.
        let word = self.0.memory.word(found.frame);
        Ok(match store {
            Some(value) => {
                word.store(value, Ordering::Relaxed);
                value
            }
            None => word.load(Ordering::Relaxed),
        })
    }

    fn translate(&self, cpu: usize, space: &ModelSpace, address: VirtAddr) -> Option<Translation> {
        let leaf_key = (space.id(), address.floor(Level::Pmd));
        let table_key = (space.id(), address.floor(Level::Pud));
        let memory = &self.0.memory;
        let (hit, cached, upper) = {
            let tlb = &memory.records().tlbs[cpu];
            let upper = tlb.uppers.get(&space.id()).copied();
            (tlb.leaves.get(&leaf_key).copied(), tlb.tables.get(&table_key).copied(), upper)
        };
        if hit.is_some() {
            return hit;
        }
        let pud = match cached {
            Some(pud) => pud,
            None => {
                // Acquire, here and below: the walker reads what an entry leads to after the entry.
                let pgd = space.pgd(address).map(|pgd| upper.unwrap_or_else(|| pgd.load(Ordering::Acquire)));
                if let Some(pgd) = pgd {
                    if !Native::is_present(pgd) {
                        return None;
                    }
                    memory.records().tlbs[cpu].uppers.insert(space.id(), pgd);
                }
                let pud = space.pud(pgd, address).load(Ordering::Acquire);
                if !Native::is_present(pud) {
                    return None;
                }
                // What is cached of a PUD entry has the rights of both.
                match pgd.is_none_or(is_writable) {
                    true => pud,
                    false => EntryValue(pud.0 & !WRITABLE),
                }
            }
        };
        let index = Level::Pmd.index(address);
        let leaf = memory.table(Native::table_frame(pud))[index].load(Ordering::Acquire);
        let mut records = memory.records();
        records.tlbs[cpu].tables.insert(table_key, pud);
        if !Native::is_leaf(Level::Pmd, leaf) {
            return None;
        }
        let frame = Native::leaf_frame(Level::Pmd, leaf);
        let found = Translation { frame, writable: is_writable(leaf) && is_writable(pud) };
        records.tlbs[cpu].leaves.insert(leaf_key, found);
        Some(found)
    }

    /// What the host itself reads.
    pub(crate) fn word(&self, frame: PhysAddr) -> u64 {
        // Relaxed: as a program's load.
        self.0.memory.word(frame).load(Ordering::Relaxed)
    }

    /// What a lockless walker of the host finds at an address: the frame, if there is one. It holds up grace periods, and
    /// nothing else.
    pub fn walk(&self, cpu: usize, space: &ModelSpace, address: VirtAddr) -> Option<PhysAddr> {
        let memory = &self.0.memory;
        {
            let _frames = memory.frames.lock();
            memory.records().walking[cpu] = true;
        }
        // Acquire: as the hardware.
        let pud = space.pud(None, address).load(Ordering::Acquire);
        let found = Native::is_present(pud).then(|| {
            let number = table_number(Native::table_frame(pud));
            let index = Level::Pmd.index(address);
            memory.tables[number][index].load(Ordering::Acquire)
        });
        let found = found.filter(|leaf| Native::is_leaf(Level::Pmd, *leaf));
        let _frames = memory.frames.lock();
        let mut records = memory.records();
        records.walking[cpu] = false;
        for state in &mut records.tables {
            if let TableState::Retired(waits_for) = state {
                waits_for[cpu] = false;
            }
        }
        found.map(|leaf| Native::leaf_frame(Level::Pmd, leaf))
    }

    /// Compares each TLB with the tables at the end of a model.
    pub(crate) fn check(&self) {
        let memory = &self.0.memory;
        let records = memory.records();
        let space = |id: u64| records.spaces[id as usize - 1].upgrade().map(ModelSpace);
        // The table without being a step, and without the lock that is held.
        let entries = |value| &memory.tables[table_number(Native::table_frame(value))];
        let upper = |space: &ModelSpace, address: VirtAddr| {
            space.pgd(address).map_or(EntryValue(u64::MAX), Entry::peek)
        };
        // The PUD entry, with the rights of both levels.
        let pud = |id: u64, address: VirtAddr| {
            let Some(space) = space(id) else { return EntryValue::default() };
            match upper(&space, address) {
                _ if address < WIDE => space.pud(None, address).peek(),
                pgd if !Native::is_present(pgd) => EntryValue::default(),
                pgd => {
                    let pud = entries(pgd)[Level::Pud.index(address)].peek();
                    if is_writable(pgd) { pud } else { EntryValue(pud.0 & !WRITABLE) }
                }
            }
        };
        for (cpu, tlb) in records.tlbs.iter().enumerate() {
            for (id, held) in &tlb.uppers {
                let now = space(*id).map_or(EntryValue::default(), |space| upper(&space, WIDE));
                let same = Native::is_present(now) && Native::table_frame(now) == Native::table_frame(*held);
                assert!(
                    same && is_writable(*held) <= is_writable(now),
                    "a paging-structure cache contradicts the PGD: CPU {cpu}, space {id}"
                );
            }
            for ((id, slot), held) in &tlb.tables {
                let now = pud(*id, *slot);
                let same = Native::is_present(now) && Native::table_frame(now) == Native::table_frame(*held);
                assert!(
                    same && is_writable(*held) <= is_writable(now),
                    "a paging-structure cache contradicts the tables: CPU {cpu}, space {id}, {slot:?}"
                );
            }
            for ((id, address), held) in &tlb.leaves {
                let pud = pud(*id, *address);
                let index = Level::Pmd.index(*address);
                let leaf = match Native::is_present(pud) {
                    true => entries(pud)[index].peek(),
                    false => EntryValue::default(),
                };
                let same =
                    Native::is_leaf(Level::Pmd, leaf) && Native::leaf_frame(Level::Pmd, leaf) == held.frame;
                let writable = is_writable(leaf) && is_writable(pud);
                assert!(
                    same && held.writable <= writable,
                    "a TLB contradicts the tables: CPU {cpu}, space {id}, {address:?}"
                );
            }
        }
    }
}

impl filetables::Machine for ModelMachine {
    type Format = Native;
    type RawSpinLock = RawMutex;
    type Space = ModelSpace;

    fn allocate_table(&self) -> Option<PhysAddr> {
        self.0.memory.allocate_table()
    }

    fn retire_table(&self, table: PhysAddr) {
        self.0.memory.retire_table(table);
    }

    fn table(&self, table: PhysAddr) -> &TableEntries {
        self.0.memory.table(table)
    }

    fn flush_spaces(&self, concerned: &dyn Fn(u64) -> bool) {
        for (cpu, interrupts) in self.0.interrupts.iter().enumerate() {
            let _interrupt = interrupts.lock();
            let spaces = self.0.memory.records().tlbs[cpu].spaces();
            for space in spaces.into_iter().filter(|space| concerned(*space)) {
                let all = VirtAddr(0)..VirtAddr(u64::MAX);
                self.0.memory.records().tlbs[cpu].flush(space, &all, true);
            }
        }
    }
}

impl Machine for ModelMachine {
    type RawMutex = RawMutex;
    type RawRwLock = RawRwLock;
    type Payer = ();

    fn payer(&self) {}

    fn take_step(&self) -> Result<(), OutOfMemory> {
        Ok(())
    }

    fn allocate_huge(&self, size: PageSize) -> Option<PhysAddr> {
        assert_eq!(size, PageSize::Size2M);
        let _frames = self.0.memory.frames.lock();
        let mut records = self.0.memory.records();
        let number = records.huge.iter().position(|used| !used)?;
        records.huge[number] = true;
        Some(PhysAddr(HUGE_BASE + ((number as u64) << size.shift())))
    }

    fn free_huge(&self, _: PageSize, frame: PhysAddr) {
        self.0.memory.free_huge(frame);
    }

    fn zero(&self, start: PhysAddr, bytes: u64) {
        if bytes == PageSize::Size2M.bytes() {
            self.0.memory.check_unreachable(start, "a fresh page is zeroed");
        }
        // Relaxed: what orders it before its sight is the library's business.
        self.0.memory.word(start).store(0, Ordering::Relaxed);
    }

    fn copy_huge(&self, _: PageSize, from: PhysAddr, to: PhysAddr) {
        let memory = &self.0.memory;
        // Relaxed: as `zero`.
        memory.word(to).store(memory.word(from).load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn flush(&self, batch: &[Flush<ModelSpace>]) {
        for (cpu, interrupts) in self.0.interrupts.iter().enumerate() {
            let _interrupt = interrupts.lock();
            for flush in batch {
                let tlb = &mut self.0.memory.records().tlbs[cpu];
                tlb.flush(flush.space.id(), &flush.range, flush.tables);
            }
        }
    }
}
