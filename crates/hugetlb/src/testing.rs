//! A machine for the unit tests: frames are numbers, each huge page has one word, and freed frames are checked.

use std::boxed::Box;
use std::collections::HashMap;
use std::sync::Mutex;
use std::vec::Vec;

use filetables::format::X86_64;
use filetables::{Entry, EntryValue, Format, Level};

use crate::addr::{PageSize, PhysAddr, VirtAddr};
use crate::error::OutOfMemory;
use crate::hugetlb::{Config, Hugetlb};
use crate::machine::{Flush, Machine, Space, TableEntries};
use crate::protocol::ProtocolKind;
use crate::sync::{Arc, AtomicU64, Flag, Ordering};

const TABLES: usize = 64;

/// Tables live here for good, so that references to them need no unsafe code.
struct Arena {
    tables: Vec<Box<TableEntries>>,
    free: Mutex<Vec<usize>>,
}

/// The test machine.
pub(crate) struct TestMachine {
    arena: Arc<Arena>,
    huge: Mutex<HashMap<u64, u64>>,
    used: Mutex<HashMap<u64, PageSize>>,
    next: AtomicU64,
    pub(crate) flushes: AtomicU64,
    watched: Mutex<Option<(TestSpace, VirtAddr)>>,
    seen: Mutex<Vec<EntryValue>>,
    at_flush: Mutex<Option<Hook>>,
    /// How often the library gave way.
    pub(crate) ways_given: AtomicU64,
    /// How often the library looked for an entry of an address space.
    looks: Arc<AtomicU64>,
    /// After so many steps there is no memory for a further one.
    pub(crate) steps_left: AtomicU64,
    /// There is no further huge frame.
    pub(crate) is_full: Flag,
}

/// Runs once.
type Hook = Box<dyn FnOnce() + Send>;

/// A test address space: PUD entries of its own, host PMD tables from the arena.
#[derive(Clone)]
pub(crate) struct TestSpace {
    id: u64,
    arena: Arc<Arena>,
    pud: Arc<TableEntries>,
    looks: Arc<AtomicU64>,
}

fn table_address(index: usize) -> PhysAddr {
    PhysAddr((index as u64 + 1) << 12)
}

impl Arena {
    fn allocate(&self) -> Option<PhysAddr> {
        self.free.lock().unwrap().pop().map(table_address)
    }

    fn entries(&self, table: PhysAddr) -> &TableEntries {
        &self.tables[(table.0 >> 12) as usize - 1]
    }
}

impl TestMachine {
    pub(crate) fn new() -> TestMachine {
        let tables = (0..TABLES).map(|_| Box::new([const { Entry::empty() }; 512])).collect();
        let arena = Arc::new(Arena { tables, free: Mutex::new((0..TABLES).collect()) });
        TestMachine {
            arena,
            huge: Mutex::default(),
            used: Mutex::default(),
            next: AtomicU64::new(1),
            flushes: AtomicU64::new(0),
            watched: Mutex::default(),
            seen: Mutex::default(),
            at_flush: Mutex::default(),
            ways_given: AtomicU64::new(0),
            looks: Arc::new(AtomicU64::new(0)),
            steps_left: AtomicU64::new(u64::MAX),
            is_full: Flag::new(false),
        }
    }

    pub(crate) fn space(&self) -> TestSpace {
        TestSpace {
            id: self.next.fetch_add(1, Ordering::SeqCst),
            arena: self.arena.clone(),
            pud: Arc::new([const { Entry::empty() }; 512]),
            looks: self.looks.clone(),
        }
    }

    /// How often the library looked for an entry of an address space.
    pub(crate) fn looks(&self) -> u64 {
        self.looks.load(Ordering::SeqCst)
    }

    /// The word of a huge page.
    pub(crate) fn word(&self, frame: PhysAddr) -> u64 {
        self.huge.lock().unwrap()[&frame.0]
    }

    pub(crate) fn set_word(&self, frame: PhysAddr, value: u64) {
        self.huge.lock().unwrap().insert(frame.0, value);
    }

    /// Notes from now on what the host's entry for an address is at each flush.
    pub(crate) fn watch(&self, space: TestSpace, address: VirtAddr) {
        *self.watched.lock().unwrap() = Some((space, address));
    }

    /// Runs `hook` at the next flush, before any TLB has forgotten anything.
    pub(crate) fn at_flush(&self, hook: impl FnOnce() + Send + 'static) {
        *self.at_flush.lock().unwrap() = Some(Box::new(hook));
    }

    /// What was noted.
    pub(crate) fn seen(&self) -> Vec<EntryValue> {
        self.seen.lock().unwrap().clone()
    }

    /// The table that a PUD entry leads to.
    pub(crate) fn table_of(&self, entry: EntryValue) -> &TableEntries {
        self.arena.entries(X86_64::table_frame(entry))
    }

    pub(crate) fn free_tables(&self) -> usize {
        self.arena.free.lock().unwrap().len()
    }
}

/// Present, writable, user: an entry of the host that leads to a table of its own.
const HOST_TABLE: u64 = 7;

impl TestSpace {
    fn pud_entry(&self, address: VirtAddr) -> &Entry {
        &self.pud[Level::Pud.index(address)]
    }

    /// Breaks the PUD entry for an address; returns what it was.
    pub(crate) fn set_pud(&self, address: VirtAddr, value: EntryValue) -> EntryValue {
        self.pud_entry(address).swap(value, Ordering::SeqCst)
    }

    pub(crate) fn pud(&self, address: VirtAddr) -> EntryValue {
        self.pud_entry(address).load(Ordering::SeqCst)
    }

    fn table(&self) -> Result<EntryValue, OutOfMemory> {
        self.arena.allocate().map(|table| EntryValue(table.0 | HOST_TABLE)).ok_or(OutOfMemory)
    }
}

impl Space for TestSpace {
    fn id(&self) -> u64 {
        self.id
    }

    fn find_entry(&self, address: VirtAddr, level: Level) -> Option<&Entry> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        match level {
            Level::Pud => Some(self.pud_entry(address)),
            Level::Pmd => {
                let pud = self.pud(address);
                let is_host = X86_64::is_present(pud) && !X86_64::is_managed(Level::Pud, pud);
                is_host.then(|| &self.arena.entries(X86_64::table_frame(pud))[Level::Pmd.index(address)])
            }
            Level::Pte | Level::Pgd => None,
        }
    }

    fn entry(&self, address: VirtAddr, level: Level) -> Result<Option<&Entry>, OutOfMemory> {
        if level == Level::Pmd && !X86_64::is_present(self.pud(address)) {
            let table = self.table()?;
            self.set_pud(address, table);
        }
        Ok(self.find_entry(address, level))
    }

    fn replace_managed(&self, address: VirtAddr, _: Level) -> Result<(), OutOfMemory> {
        let table = self.table()?;
        self.set_pud(address, table);
        Ok(())
    }
}

impl filetables::Machine for TestMachine {
    type Format = X86_64;
    type RawSpinLock = parking_lot::RawMutex;
    type Space = TestSpace;

    fn give_way(&self) {
        self.ways_given.fetch_add(1, Ordering::SeqCst);
    }

    fn allocate_table(&self) -> Option<PhysAddr> {
        self.arena.allocate()
    }

    fn retire_table(&self, table: PhysAddr) {
        assert!(
            self.arena
                .entries(table)
                .iter()
                .all(|entry| entry.load(Ordering::SeqCst) == EntryValue::default())
        );
        self.arena.free.lock().unwrap().push((table.0 >> 12) as usize - 1);
    }

    fn table(&self, table: PhysAddr) -> &TableEntries {
        self.arena.entries(table)
    }

    fn flush_spaces(&self, concerned: &dyn Fn(u64) -> bool) {
        let spaces = 1..self.next.load(Ordering::SeqCst);
        if spaces.into_iter().any(concerned) {
            self.flushes.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Machine for TestMachine {
    type RawMutex = parking_lot::RawMutex;
    type RawRwLock = parking_lot::RawRwLock;
    type Payer = ();

    fn payer(&self) {}

    fn take_step(&self) -> Result<(), OutOfMemory> {
        filetables::Machine::give_way(self);
        // The step after the last one that is permitted fails, and then all do.
        let left = self.steps_left.load(Ordering::SeqCst);
        self.steps_left.store(left.saturating_sub(1), Ordering::SeqCst);
        if left == 0 { Err(OutOfMemory) } else { Ok(()) }
    }

    fn allocate_huge(&self, size: PageSize) -> Option<PhysAddr> {
        if self.is_full.load(Ordering::SeqCst) {
            return None;
        }
        let frame = self.next.fetch_add(1, Ordering::SeqCst) << size.shift();
        self.used.lock().unwrap().insert(frame, size);
        self.huge.lock().unwrap().insert(frame, 0xdead);
        Some(PhysAddr(frame))
    }

    fn free_huge(&self, size: PageSize, frame: PhysAddr) {
        let mut used = self.used.lock().unwrap();
        let whole = frame.0 & !(PageSize::Size1G.bytes() - 1);
        if size == PageSize::Size2M && used.get(&whole) == Some(&PageSize::Size1G) {
            // It was demoted.
            let parts = (whole..whole + PageSize::Size1G.bytes()).step_by(size.bytes() as usize);
            used.extend(parts.map(|part| (part, size)));
        }
        assert_eq!(used.remove(&frame.0), Some(size), "a frame was freed twice");
        drop(used);
        self.huge.lock().unwrap().remove(&frame.0);
    }

    fn zero(&self, start: PhysAddr, _: u64) {
        self.huge.lock().unwrap().insert(start.0, 0);
    }

    fn copy_huge(&self, _: PageSize, from: PhysAddr, to: PhysAddr) {
        let word = self.word(from);
        self.set_word(to, word);
    }

    fn flush(&self, _: &[Flush<TestSpace>]) {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        // Taken first: it may set the next one.
        let hook = self.at_flush.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        if let Some((space, address)) = &*self.watched.lock().unwrap() {
            let entry = space
                .find_entry(*address, Level::Pmd)
                .map_or(EntryValue::default(), |entry| entry.load(Ordering::SeqCst));
            self.seen.lock().unwrap().push(entry);
        }
    }
}

/// A subsystem under a protocol with so many persistent 2 MiB pages.
pub(crate) fn hugetlb(pages: u64, protocol: ProtocolKind) -> Arc<Hugetlb<TestMachine>> {
    let config = Config { default_size: PageSize::Size2M, protocol };
    let hugetlb = Hugetlb::new(TestMachine::new(), config);
    assert_eq!(hugetlb.pool(PageSize::Size2M).set_persistent(pages, || false), pages);
    hugetlb
}
