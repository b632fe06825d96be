//! A host of the library that is as small as can be: one CPU, plain memory, no kernel.
//!
//! It is the beginning of a port: each item is what a kernel has already. The tests run it, and the conformance kit on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hugetlb::filetables::Machine as TableMachine;
use hugetlb::filetables::format::Native;
use hugetlb::{
    Access, Config, Entry, EntryValue, Flush, Format, Hugetlb, Level, Machine, MapOptions, MapRequest,
    OutOfMemory, PageSize, PhysAddr, Protection, SLOT_SIZE, Space, SpaceToken, TABLE_SIZE, TableEntries,
    VirtAddr,
};
use hugetlb_sim::conformance::Host;
use parking_lot::Mutex;

#[path = "minimal_host/kit.rs"]
mod kit;

/// Tables lie here, huge frames above 4 GiB. A kernel has its linear map.
const TABLES: (u64, u64) = (1 << 20, 64);
const HUGE: (u64, u64) = (1 << 32, 8);
const SIZE: u64 = PageSize::Size2M.bytes();

/// The machine's memory, and its one TLB.
struct Hardware {
    tables: Vec<Box<TableEntries>>,
    words: Box<[AtomicU64]>,
    /// Free tables, those that wait for the end of a grace period, and free huge frames.
    free: Mutex<Vec<PhysAddr>>,
    retired: Mutex<Vec<PhysAddr>>,
    free_huge: Mutex<Vec<PhysAddr>>,
    tlb: Mutex<HashMap<(u64, VirtAddr), PhysAddr>>,
    spaces: AtomicU64,
}

/// The machine. A kernel's is usually a type without fields.
#[derive(Clone)]
pub struct MinimalMachine(Arc<Hardware>);

/// The root table of a process. The last handle frees the host's tables.
struct Tables {
    id: u64,
    machine: MinimalMachine,
    root: PhysAddr,
}

/// A handle to an address space's page tables.
#[derive(Clone)]
pub struct MinimalSpace(Arc<Tables>);

impl TableMachine for MinimalMachine {
    type Format = Native;
    type RawSpinLock = parking_lot::RawMutex;
    type Space = MinimalSpace;

    fn allocate_table(&self) -> Option<PhysAddr> {
        self.0.free.lock().pop()
    }

    // Not at once: a walk through the tables that began before may be in it still.
    fn retire_table(&self, table: PhysAddr) {
        self.0.retired.lock().push(table);
    }

    fn table(&self, table: PhysAddr) -> &TableEntries {
        &self.0.tables[((table.0 - TABLES.0) / TABLE_SIZE) as usize]
    }

    // A kernel asks each CPU which space it runs, and interrupts those of which `concerned` says yes.
    fn flush_spaces(&self, concerned: &dyn Fn(u64) -> bool) {
        self.0.tlb.lock().retain(|(space, _), _| !concerned(*space));
    }
}

impl Machine for MinimalMachine {
    type RawMutex = parking_lot::RawMutex;
    type RawRwLock = parking_lot::RawRwLock;
    type Payer = ();

    fn payer(&self) {}

    fn take_step(&self) -> Result<(), OutOfMemory> {
        Ok(())
    }

    fn allocate_huge(&self, size: PageSize) -> Option<PhysAddr> {
        (size == PageSize::Size2M).then(|| self.0.free_huge.lock().pop()).flatten()
    }

    fn free_huge(&self, _: PageSize, frame: PhysAddr) {
        self.0.free_huge.lock().push(frame);
    }

    fn zero(&self, start: PhysAddr, bytes: u64) {
        (0..bytes).step_by(8).for_each(|at| self.write(PhysAddr(start.0 + at), 0));
    }

    fn copy_huge(&self, size: PageSize, from: PhysAddr, to: PhysAddr) {
        let bytes = (0..size.bytes()).step_by(8);
        bytes.for_each(|at| self.write(PhysAddr(to.0 + at), self.read(PhysAddr(from.0 + at))));
    }

    fn flush(&self, batch: &[Flush<MinimalSpace>]) {
        let mut tlb = self.0.tlb.lock();
        for flush in batch {
            tlb.retain(|(space, page), _| *space != flush.space.id() || !flush.range.contains(page));
        }
    }
}

impl MinimalSpace {
    /// The entry of `level` for an address, through the host's tables; makes them on need.
    fn walk(&self, address: VirtAddr, level: Level, make: bool) -> Result<Option<&Entry>, OutOfMemory> {
        let machine = &self.0.machine;
        let (mut table, mut at) = (self.0.root, Level::Pgd);
        while at > level {
            let entry = &machine.table(table)[at.index(address)];
            if make && entry.load(Ordering::Acquire) == EntryValue::default() {
                let new = machine.allocate_table().ok_or(OutOfMemory)?;
                if entry.fill(Native::table(new)).is_err() {
                    machine.0.free.lock().push(new);
                }
            }
            let value = entry.load(Ordering::Acquire);
            let is_hosts = Native::is_present(value) && !Native::is_managed(at, value);
            let Some(below) = at.below().filter(|_| is_hosts && !Native::is_leaf(at, value)) else {
                return Ok(None);
            };
            (table, at) = (Native::table_frame(value), below);
        }
        Ok(Some(&machine.table(table)[level.index(address)]))
    }
}

impl Tables {
    /// Gives the host's tables back. The mappings are gone, and those of the library with them.
    fn free(&self, table: PhysAddr, level: Option<Level>) {
        for entry in self.machine.table(table) {
            let value = entry.swap(EntryValue::default(), Ordering::AcqRel);
            if let Some(level) =
                level.filter(|level| Native::is_present(value) && !Native::is_leaf(*level, value))
            {
                self.free(Native::table_frame(value), level.below());
            }
        }
        self.machine.retire_table(table);
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        self.free(self.root, Some(Level::Pgd));
        self.machine.flush_spaces(&|space| space == self.id);
    }
}

impl Space for MinimalSpace {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn find_entry(&self, address: VirtAddr, level: Level) -> Option<&Entry> {
        self.walk(address, level, false).ok().flatten()
    }

    fn entry(&self, address: VirtAddr, level: Level) -> Result<Option<&Entry>, OutOfMemory> {
        self.walk(address, level, true)
    }

    fn replace_managed(&self, address: VirtAddr, level: Level) -> Result<(), OutOfMemory> {
        let entry = self.find_entry(address, level).ok_or(OutOfMemory)?;
        let table = self.0.machine.allocate_table().ok_or(OutOfMemory)?;
        entry.store(Native::table(table), Ordering::Release);
        Ok(())
    }
}

/// Two processes map a file: the second one needs no fault for what the first one has stored.
pub fn main() {
    let machine = MinimalMachine::new();
    let hugetlb = Hugetlb::new(machine.clone(), Config::default());
    assert_eq!(hugetlb.pool(PageSize::Size2M).set_persistent(4, || false), 4);
    let file = hugetlb.anonymous_file(PageSize::Size2M, SLOT_SIZE).expect("whole pages");
    let options =
        MapOptions { shared: true, no_reserve: true, protection: Protection::READ | Protection::WRITE };
    let here = VirtAddr(SLOT_SIZE);
    let request = MapRequest { start: here, length: SLOT_SIZE, offset: 0, options };
    let mut first = SpaceToken::new(machine.space());
    let mut second = SpaceToken::new(machine.space());
    let mapping = file.map(&mut first, request).expect("memory for a mapping");
    assert_eq!(machine.translate(first.space(), here), None);
    mapping.fault(here, Access::Write).expect("a page is free");
    machine.write(machine.translate(first.space(), here).expect("it was resolved"), 42);
    let other = file.map(&mut second, request).expect("memory for a mapping");
    let place = machine.translate(second.space(), here).expect("attached to the first one's table");
    assert_eq!(machine.read(place), 42);
    println!("two processes, {} page table, {} fault", hugetlb.sharing().tables, hugetlb.sharing().faults);
    mapping.unmap(&mut first);
    other.unmap(&mut second);
}
