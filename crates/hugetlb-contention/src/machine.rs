//! The simulated machine as the library sees it, with what it does itself left out of the records.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hugetlb::filetables::{self, format::X86_64};
use hugetlb::lock_api::{GuardSend, RawMutex, RawRwLock};
use hugetlb::{Entry, Flush, Level, Machine, OutOfMemory, PageSize, PhysAddr, Space, TableEntries, VirtAddr};
use hugetlb_sim::{SimMachine, SimSpace};

use crate::hooks;

/// A spinning lock, of one byte as the kernel's.
pub struct Spin(AtomicBool);

// SAFETY: the swap to `true` succeeds for one holder.
unsafe impl RawMutex for Spin {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Spin = Spin(AtomicBool::new(false));
    type GuardMarker = GuardSend;

    fn lock(&self) {
        assert!(self.try_lock(), "CPUs take turns, so nobody holds it");
    }

    fn try_lock(&self) -> bool {
        !self.0.swap(true, Ordering::Acquire)
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A sleeping lock for readers and writers, of 32 bytes as the kernel's: a word for who holds it, and a queue.
pub struct Sleeping {
    state: AtomicU64,
    _queue: [AtomicU64; 3],
}

const WRITER: u64 = 1 << 32;

// SAFETY: the state counts a writer only when there is no reader, and the other way round.
unsafe impl RawRwLock for Sleeping {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Sleeping = Sleeping { state: AtomicU64::new(0), _queue: [const { AtomicU64::new(0) }; 3] };
    type GuardMarker = GuardSend;

    fn lock_shared(&self) {
        assert!(self.try_lock_shared(), "CPUs take turns, so nobody writes");
    }

    fn try_lock_shared(&self) -> bool {
        let old = self.state.fetch_add(1, Ordering::Acquire);
        if old >= WRITER {
            self.state.fetch_sub(1, Ordering::Relaxed);
        }
        old < WRITER
    }

    unsafe fn unlock_shared(&self) {
        self.state.fetch_sub(1, Ordering::Release);
    }

    fn lock_exclusive(&self) {
        assert!(self.try_lock_exclusive(), "CPUs take turns, so nobody holds it");
    }

    fn try_lock_exclusive(&self) -> bool {
        self.state.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    unsafe fn unlock_exclusive(&self) {
        self.state.fetch_sub(WRITER, Ordering::Release);
    }
}

/// A mutex whose waiters sleep: a [`Sleeping`] that only writers use.
pub struct SleepingMutex(Sleeping);

// SAFETY: as of `Sleeping`.
unsafe impl RawMutex for SleepingMutex {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: SleepingMutex = SleepingMutex(<Sleeping as RawRwLock>::INIT);
    type GuardMarker = GuardSend;

    fn lock(&self) {
        self.0.lock_exclusive();
    }

    fn try_lock(&self) -> bool {
        self.0.try_lock_exclusive()
    }

    unsafe fn unlock(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.unlock_exclusive() };
    }
}

/// What runs where, and what CPUs asked of each other.
#[derive(Default)]
struct Cpus {
    /// The address space that each runs.
    spaces: Vec<u64>,
    current: usize,
    interrupts: u64,
}

/// A simulated machine with so many CPUs, which run their spaces all the time.
#[derive(Clone)]
pub struct Counted {
    machine: SimMachine,
    cpus: Rc<RefCell<Cpus>>,
}

// SAFETY: one thread simulates all CPUs; the library wants machines that many could use.
unsafe impl Send for Counted {}
// SAFETY: as above.
unsafe impl Sync for Counted {}

impl Counted {
    /// A machine with so many CPUs, tables and huge pages.
    pub fn new(cpus: usize, tables: usize, huge: usize) -> Counted {
        let cpus = Cpus { spaces: vec![0; cpus], ..Cpus::default() };
        Counted { machine: SimMachine::new(1, tables, huge, 0), cpus: Rc::new(RefCell::new(cpus)) }
    }

    /// A new address space.
    pub fn space(&self) -> CountedSpace {
        CountedSpace(self.machine.process().expect("there are frames for tables").space().clone())
    }

    /// A CPU runs a space from now on.
    pub fn switch(&self, cpu: usize, space: &CountedSpace) {
        self.cpus.borrow_mut().spaces[cpu] = space.id();
    }

    /// What follows happens on a CPU.
    pub fn enter(&self, cpu: usize) {
        self.cpus.borrow_mut().current = cpu;
    }

    /// CPUs that were interrupted for a flush, since this was asked last.
    pub fn take_interrupts(&self) -> u64 {
        std::mem::take(&mut self.cpus.borrow_mut().interrupts)
    }

    /// Whether a word of the space's tables leads to a page at an address, as the hardware sees it.
    pub fn is_mapped(&self, space: &CountedSpace, address: VirtAddr) -> bool {
        let found = self.machine.cpu(0).load(&space.0, address).is_ok();
        self.machine.cpu(0).flush_here(&space.0, address);
        found
    }

    /// A space ends: nothing is mapped in these slots.
    pub fn end(&self, space: CountedSpace, slots: &[VirtAddr]) {
        slots.iter().for_each(|slot| self.machine.free_slot(&space.0, *slot));
    }

    /// Interrupts the other CPUs that run a space of which `concerned` says yes.
    fn interrupt(&self, concerned: impl Fn(usize, u64) -> bool) {
        let (spaces, current) = {
            let cpus = self.cpus.borrow();
            (cpus.spaces.clone(), cpus.current)
        };
        let others = spaces.iter().enumerate().filter(|(cpu, _)| *cpu != current);
        let asked = others.filter(|(_, space)| concerned(current, **space)).count() as u64;
        self.cpus.borrow_mut().interrupts += asked;
    }
}

impl filetables::Machine for Counted {
    type Format = X86_64;
    type RawSpinLock = Spin;
    type Space = CountedSpace;

    fn allocate_table(&self) -> Option<PhysAddr> {
        hooks::machine(|| self.machine.allocate_table())
    }

    fn retire_table(&self, table: PhysAddr) {
        hooks::machine(|| self.machine.retire_table(table));
    }

    fn table(&self, table: PhysAddr) -> &TableEntries {
        hooks::machine(|| self.machine.table(table))
    }

    fn flush_spaces(&self, concerned: &dyn Fn(u64) -> bool) {
        hooks::machine(|| {
            self.interrupt(|current, space| hooks::asked(current, || concerned(space)));
            self.machine.flush_spaces(&|_| true);
        });
    }
}

impl Machine for Counted {
    type RawMutex = SleepingMutex;
    type RawRwLock = Sleeping;
    type Payer = ();

    fn payer(&self) {}

    fn take_step(&self) -> Result<(), OutOfMemory> {
        Ok(())
    }

    fn allocate_huge(&self, size: PageSize) -> Option<PhysAddr> {
        hooks::machine(|| self.machine.allocate_huge(size))
    }

    fn free_huge(&self, size: PageSize, frame: PhysAddr) {
        hooks::machine(|| self.machine.free_huge(size, frame));
    }

    fn zero(&self, start: PhysAddr, bytes: u64) {
        hooks::machine(|| self.machine.zero(start, bytes));
    }

    fn copy_huge(&self, size: PageSize, from: PhysAddr, to: PhysAddr) {
        hooks::machine(|| self.machine.copy_huge(size, from, to));
    }

    fn flush(&self, batch: &[Flush<CountedSpace>]) {
        hooks::machine(|| {
            self.interrupt(|_, space| batch.iter().any(|flush| flush.space.id() == space));
            let plain = |flush: &Flush<CountedSpace>| Flush {
                space: flush.space.0.clone(),
                range: flush.range.clone(),
                tables: flush.tables,
            };
            self.machine.flush(&batch.iter().map(plain).collect::<Vec<_>>());
        });
    }
}

/// The tables of an address space. To walk through those of the host is the host's business; what the library does with the entries
/// that it gets is recorded.
#[derive(Clone)]
pub struct CountedSpace(SimSpace);

impl Space for CountedSpace {
    fn id(&self) -> u64 {
        hooks::machine(|| self.0.id())
    }

    fn find_entry(&self, address: VirtAddr, level: Level) -> Option<&Entry> {
        hooks::machine(|| self.0.find_entry(address, level))
    }

    fn entry(&self, address: VirtAddr, level: Level) -> Result<Option<&Entry>, OutOfMemory> {
        hooks::machine(|| self.0.entry(address, level))
    }

    fn replace_managed(&self, address: VirtAddr, level: Level) -> Result<(), OutOfMemory> {
        hooks::machine(|| self.0.replace_managed(address, level))
    }
}
