//! The conformance kit, on the smallest host, and on hosts that are broken: each is told by the sentence that it breaks.

#[path = "../examples/minimal_host.rs"]
mod minimal_host;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use hugetlb::filetables::{self, format::Native};
use hugetlb::lock_api::{GuardSend, RawMutex, RawRwLock};
use hugetlb::{
    Entry, EntryValue, Flush, Level, Machine, OutOfMemory, PageSize, PhysAddr, Space, TableEntries, VirtAddr,
};
use hugetlb_sim::conformance::{Host, check};
use minimal_host::{MinimalMachine, MinimalSpace};

hugetlb_sim::conformance!(MinimalMachine);

#[test]
fn the_example_shows_what_it_says() {
    minimal_host::main();
}

/// A lock that keeps nobody out.
pub struct Open;

// SAFETY: None: that is what is wrong with it. Only the kit uses it, and guards nothing by it.
unsafe impl RawMutex for Open {
    const INIT: Open = Open;
    type GuardMarker = GuardSend;

    fn lock(&self) {}

    fn try_lock(&self) -> bool {
        true
    }

    unsafe fn unlock(&self) {}
}

// SAFETY: As above.
unsafe impl RawRwLock for Open {
    const INIT: Open = Open;
    type GuardMarker = GuardSend;

    fn lock_shared(&self) {}

    fn try_lock_shared(&self) -> bool {
        true
    }

    unsafe fn unlock_shared(&self) {}

    fn lock_exclusive(&self) {}

    fn try_lock_exclusive(&self) -> bool {
        true
    }

    unsafe fn unlock_exclusive(&self) {}
}

const DIRTY: u8 = 1;
const CROOKED: u8 = 2;
const TWICE: u8 = 3;
const AT_ONCE: u8 = 4;
const ZERO_ALL: u8 = 5;
const ZERO_LITTLE: u8 = 6;
const COPY_HALF: u8 = 7;
const NO_FLUSH: u8 = 8;
const NO_SPACES: u8 = 9;
const SAME_ID: u8 = 10;
const CLEARED: u8 = 11;
const NOT_REPLACED: u8 = 12;
const HUGE_TWICE: u8 = 13;
const UNMANAGED: u8 = 14;

thread_local! {
    /// The fault of the machines that are made by this thread.
    static FAULT: Cell<u8> = const { Cell::new(0) };
}

/// The smallest host with a fault.
struct Faulty {
    fault: u8,
    machine: MinimalMachine,
    first: std::sync::Mutex<Option<PhysAddr>>,
    is_used: AtomicBool,
}

#[derive(Clone)]
struct FaultySpace(MinimalSpace, u8);

impl Space for FaultySpace {
    fn id(&self) -> u64 {
        if self.1 == SAME_ID { 1 } else { self.0.id() }
    }

    fn find_entry(&self, address: VirtAddr, level: Level) -> Option<&Entry> {
        match self.0.find_entry(address, level) {
            // Whatever is above.
            None if self.1 == UNMANAGED => self.0.find_entry(address, Level::Pud),
            found => found,
        }
    }

    fn entry(&self, address: VirtAddr, level: Level) -> Result<Option<&Entry>, OutOfMemory> {
        self.0.entry(address, level)
    }

    fn replace_managed(&self, address: VirtAddr, level: Level) -> Result<(), OutOfMemory> {
        if self.1 == NOT_REPLACED {
            return Ok(());
        }
        if self.1 == CLEARED
            && let Some(entry) = self.0.find_entry(address, level)
        {
            entry.store(EntryValue::default(), Ordering::Release);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        self.0.replace_managed(address, level)
    }
}

impl filetables::Machine for Faulty {
    type Format = Native;
    type RawSpinLock = Open;
    type Space = FaultySpace;

    fn allocate_table(&self) -> Option<PhysAddr> {
        let table = self.machine.allocate_table()?;
        if self.fault == DIRTY && self.is_used.load(Ordering::Relaxed) {
            self.table(table)[511].store(EntryValue(8), Ordering::Relaxed);
        }
        if self.fault == CROOKED {
            return Some(PhysAddr(table.0 + 8));
        }
        if self.fault == TWICE {
            return Some(*self.first.lock().unwrap().get_or_insert(table));
        }
        Some(table)
    }

    fn retire_table(&self, table: PhysAddr) {
        self.is_used.store(true, Ordering::Relaxed);
        self.machine.retire_table(table);
        if self.fault == AT_ONCE {
            self.machine.pass_grace_period();
        }
    }

    fn table(&self, table: PhysAddr) -> &TableEntries {
        self.machine.table(PhysAddr(table.0 & !0xfff))
    }

    fn flush_spaces(&self, concerned: &dyn Fn(u64) -> bool) {
        if self.fault != NO_SPACES {
            self.machine.flush_spaces(concerned);
        }
    }
}

impl Machine for Faulty {
    type RawMutex = Open;
    type RawRwLock = Open;
    type Payer = ();

    fn payer(&self) {}

    fn take_step(&self) -> Result<(), OutOfMemory> {
        Ok(())
    }

    fn allocate_huge(&self, size: PageSize) -> Option<PhysAddr> {
        let frame = self.machine.allocate_huge(size)?;
        Some(if self.fault == HUGE_TWICE { *self.first.lock().unwrap().get_or_insert(frame) } else { frame })
    }

    fn free_huge(&self, size: PageSize, frame: PhysAddr) {
        self.machine.free_huge(size, frame);
    }

    fn zero(&self, start: PhysAddr, bytes: u64) {
        match self.fault {
            ZERO_ALL => self.machine.zero(PhysAddr(start.0 - 8), bytes + 8),
            ZERO_LITTLE => self.machine.zero(start, bytes - 8),
            _ => self.machine.zero(start, bytes),
        }
    }

    fn copy_huge(&self, size: PageSize, from: PhysAddr, to: PhysAddr) {
        let last = PhysAddr(to.0 + size.bytes() - 8);
        let before = self.machine.read(last);
        self.machine.copy_huge(size, from, to);
        if self.fault == COPY_HALF {
            self.machine.write(last, before);
        }
    }

    fn flush(&self, batch: &[Flush<FaultySpace>]) {
        if self.fault != NO_FLUSH {
            let unwrap = |flush: &Flush<FaultySpace>| Flush {
                space: flush.space.0.clone(),
                range: flush.range.clone(),
                tables: flush.tables,
            };
            self.machine.flush(&batch.iter().map(unwrap).collect::<Vec<_>>());
        }
    }
}

impl Host for Faulty {
    fn new() -> Self {
        Faulty {
            fault: FAULT.get(),
            machine: MinimalMachine::new(),
            first: std::sync::Mutex::default(),
            is_used: AtomicBool::new(false),
        }
    }

    fn space(&self) -> FaultySpace {
        FaultySpace(self.machine.space(), self.fault)
    }

    fn translate(&self, space: &FaultySpace, address: VirtAddr) -> Option<PhysAddr> {
        self.machine.translate(&space.0, address)
    }

    fn read(&self, place: PhysAddr) -> u64 {
        self.machine.read(place)
    }

    fn write(&self, place: PhysAddr, value: u64) {
        self.machine.write(place, value);
    }

    fn pass_grace_period(&self) {
        self.machine.pass_grace_period();
    }
}

/// What is broken, beside the locks, which are in all of these hosts.
fn broken(fault: u8) -> Vec<&'static str> {
    FAULT.set(fault);
    let (locks, others): (Vec<_>, Vec<_>) =
        check::<Faulty>().into_iter().map(|broken| broken.sentence).partition(|s| s.starts_with("Raw"));
    assert_eq!(
        locks,
        [
            "RawSpinLock: one holder at a time",
            "RawMutex: one holder at a time",
            "RawRwLock: a writer is alone",
            "RawRwLock: readers are together",
        ]
    );
    others
}

#[test]
fn each_fault_is_told_by_its_sentence() {
    assert_eq!(broken(0), [""; 0]);
    assert_eq!(broken(DIRTY), ["a frame for a page table is all zero"]);
    assert_eq!(broken(ZERO_ALL), ["zero fills the bytes from start with zeroes, and no others"]);
    assert_eq!(broken(ZERO_LITTLE), ["zero fills the bytes from start with zeroes, and no others"]);
    assert_eq!(broken(COPY_HALF), ["copy_huge copies a whole huge frame"]);
    assert_eq!(broken(AT_ONCE), ["a retired table is reused only after a grace period"]);
    assert_eq!(
        broken(NO_SPACES),
        ["flush_spaces makes every CPU forget all of the spaces that are concerned"]
    );
    let flushes = [
        "flush makes every CPU forget a leaf",
        "flush with tables makes every CPU forget entries that led to tables",
    ];
    assert_eq!(broken(NO_FLUSH), flushes);
    let id = "Space::id tells spaces apart, also after one is gone and another was made";
    assert!(broken(SAME_ID).contains(&id));
    let replaced = "Space::replace_managed puts an empty table of the host into the entry";
    assert_eq!(broken(NOT_REPLACED), [replaced]);
    let one_store = "Space::replace_managed is one store: the entry is never empty in between";
    assert_eq!(broken(CLEARED), [one_store]);
    assert!(broken(CROOKED).contains(&"a frame for a page table is 4 KiB, aligned"));
    assert!(broken(TWICE).contains(&"a frame for a page table is nobody else's"));
    assert!(broken(HUGE_TWICE).contains(&"a huge frame is naturally aligned, and nobody else's"));
    let none = "Space::entry and find_entry give none where an entry above is managed";
    assert!(broken(UNMANAGED).contains(&none));
}
