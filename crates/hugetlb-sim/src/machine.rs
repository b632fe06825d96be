//! The simulated machine: memory, CPUs, shootdowns, and what must always hold.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hugetlb::filetables::format::X86_64;
use hugetlb::{
    Config, Flush, Format, Hugetlb, Machine, OutOfMemory, PageSize, PhysAddr, Space, TableEntries, VirtAddr,
    filetables,
};
use parking_lot::Mutex;

use crate::cpu::{self, Cpu, Hardware};
use crate::memory::Memory;
use crate::process::Process;
use crate::rules::Rules;
use crate::space::SimSpace;

/// A handle to a simulated machine with page-table entries of the format `F`.
pub struct SimMachine<F: Format = X86_64>(Arc<Inner<F>>);

impl<F: Format> Clone for SimMachine<F> {
    fn clone(&self) -> SimMachine<F> {
        SimMachine(self.0.clone())
    }
}

struct Inner<F: Format> {
    memory: Arc<Memory>,
    hardware: Arc<Hardware<F>>,
    cpus: Vec<Cpu<F>>,
    next_space: AtomicU64,
    forget_flushes: AtomicBool,
    in_zero: Mutex<Option<Hook>>,
    in_flush: Mutex<Option<Hook>>,
}

/// Runs once, in the middle of what takes long on a real machine: so a test can put another thread's step exactly there.
type Hook = Box<dyn FnOnce() + Send>;

fn run_hook(place: &Mutex<Option<Hook>>) {
    // Taken first: what it calls may zero and flush, too.
    let hook = place.lock().take();
    if let Some(hook) = hook {
        hook();
    }
}

impl SimMachine {
    /// An x86-64 machine with so many CPUs, page-table frames, and huge frames of each size.
    pub fn new(cpus: usize, tables: usize, small: usize, large: usize) -> SimMachine {
        SimMachine::with_rules(Rules::X86_64, cpus, tables, small, large)
    }
}

impl<F: Format> SimMachine<F> {
    /// A machine of another architecture with so many CPUs, page-table frames, and huge frames of each size.
    pub fn with_rules(rules: Rules, cpus: usize, tables: usize, small: usize, large: usize) -> SimMachine<F> {
        let memory = Arc::new(Memory::new(tables, small, large));
        let hardware = Arc::new(Hardware::new(rules, memory.clone(), cpus));
        SimMachine(Arc::new(Inner {
            cpus: (0..cpus).map(|number| Cpu { hardware: hardware.clone(), number }).collect(),
            hardware,
            memory,
            next_space: AtomicU64::new(1),
            forget_flushes: AtomicBool::new(false),
            in_zero: Mutex::new(None),
            in_flush: Mutex::new(None),
        }))
    }

    /// What the machine's hardware does.
    pub fn rules(&self) -> Rules {
        self.0.hardware.rules
    }

    /// Breaks the machine on purpose: from now on flushes do nothing. Tests of the checkers use it.
    pub fn forget_flushes(&self) {
        self.0.forget_flushes.store(true, Ordering::SeqCst);
    }

    /// The `nth` allocation from now on fails, of whatever kind: a page table, a huge frame, a step's memory; 0 for none. Returns how many
    /// were still to come of what was set before, 0 when that has failed.
    pub fn fail_allocation(&self, nth: u64) -> u64 {
        self.0.memory.fail_allocation(nth)
    }

    /// Runs `hook` in the middle of the next zeroing.
    pub fn in_next_zero(&self, hook: impl FnOnce() + Send + 'static) {
        *self.0.in_zero.lock() = Some(Box::new(hook));
    }

    /// Runs `hook` in the next shootdown, before any TLB has forgotten anything.
    pub fn in_next_flush(&self, hook: impl FnOnce() + Send + 'static) {
        *self.0.in_flush.lock() = Some(Box::new(hook));
    }

    /// The subsystem on this machine.
    pub fn hugetlb(&self, config: Config) -> Arc<Hugetlb<SimMachine<F>>> {
        Hugetlb::new(self.clone(), config)
    }

    /// A CPU.
    pub fn cpu(&self, number: usize) -> &Cpu<F> {
        &self.0.cpus[number % self.0.cpus.len()]
    }

    /// A new process; `None` without a frame for its PUD table.
    pub fn process(&self) -> Option<Process<F>> {
        Some(Process::new(self.clone(), self.space()?))
    }

    pub(crate) fn space(&self) -> Option<SimSpace<F>> {
        SimSpace::new(self.0.next_space.fetch_add(1, Ordering::SeqCst), self.rules().root, &self.0.memory)
    }

    /// Page-table frames that are in use.
    pub fn tables_in_use(&self) -> usize {
        self.0.memory.tables_in_use()
    }

    /// Huge frames that were taken from the machine.
    pub fn huge_in_use(&self, size: PageSize) -> usize {
        self.0.memory.huge_in_use(size)
    }

    /// A word of memory, for the host's own copies.
    pub fn word(&self, address: PhysAddr) -> u64 {
        self.0.memory.word(address).load(Ordering::SeqCst)
    }

    /// Frees the host's table of a slot in which no mapping is left, if there is one.
    pub fn free_slot(&self, space: &SimSpace<F>, slot: VirtAddr) {
        if let Some(table) = space.take_host_table(slot) {
            self.free_host_table(space, slot, table);
        }
    }

    pub(crate) fn free_host_table(&self, space: &SimSpace<F>, slot: VirtAddr, table: PhysAddr) {
        let range = slot..slot + hugetlb::SLOT_SIZE;
        self.flush(&[Flush { space: space.clone(), range, tables: true }]);
        self.0.memory.free_table(table);
    }

    /// Compares each TLB with the tables, while no operation is under way: what a TLB holds the tables must say, with no
    /// fewer permissions. Tells also of the first break before make that was left out, where the machine demands it.
    pub fn check(&self) -> Result<(), String> {
        if let Some(unbroken) = &*self.0.hardware.unbroken.lock() {
            return Err(format!("made without a break: {unbroken}"));
        }
        for (number, cpu) in self.0.cpus.iter().enumerate() {
            let tlb = cpu.tlb().lock();
            for ((id, address), (space, held)) in &tlb.leaves {
                let now = cpu::walk(&self.0.hardware, space, *address);
                if !now.as_ref().is_some_and(|now| held.is_within(now)) {
                    return Err(format!(
                        "CPU {number}, space {id}, {address:?}: the TLB has {held:?}, the tables {now:?}"
                    ));
                }
            }
            for ((id, level, slot), (space, held, _)) in &tlb.tables {
                let now = space.now(*slot, *level);
                if !cpu::table_is_within::<F>(*held, now) {
                    return Err(format!(
                        "CPU {number}, space {id}, {slot:?}: cached {level:?} entry {held:?}, now {now:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

impl<F: Format> filetables::Machine for SimMachine<F> {
    type Format = F;
    type RawSpinLock = parking_lot::RawMutex;
    type Space = SimSpace<F>;

    fn allocate_table(&self) -> Option<PhysAddr> {
        self.0.memory.allocate_table()
    }

    fn retire_table(&self, table: PhysAddr) {
        for cpu in &self.0.cpus {
            let tlb = cpu.tlb().lock();
            let held = tlb.tables.values().any(|(_, held, _)| F::table_frame(*held) == table);
            assert!(!held, "a table is retired that a paging-structure cache leads to");
        }
        self.0.memory.free_table(table);
    }

    fn table(&self, table: PhysAddr) -> &TableEntries {
        self.0.memory.table(table)
    }

    fn flush_spaces(&self, concerned: &dyn Fn(u64) -> bool) {
        run_hook(&self.0.in_flush);
        if self.0.forget_flushes.load(Ordering::SeqCst) {
            return;
        }
        for cpu in &self.0.cpus {
            // The spaces of a CPU are asked about before its lock is taken for the flush: what is held then and not now was
            // flushed by another; what comes later was read from the changed tables.
            let held: BTreeSet<u64> = {
                let tlb = cpu.tlb().lock();
                tlb.leaves.keys().map(|key| key.0).chain(tlb.tables.keys().map(|key| key.0)).collect()
            };
            let held: Vec<u64> = held.into_iter().filter(|id| concerned(*id)).collect();
            let mut tlb = cpu.tlb().lock();
            for id in held {
                tlb.flush(id, &(VirtAddr(0)..VirtAddr(u64::MAX)), true);
            }
        }
    }
}

impl<F: Format> Machine for SimMachine<F> {
    type RawMutex = parking_lot::RawMutex;
    type RawRwLock = parking_lot::RawRwLock;
    type Payer = ();

    fn payer(&self) {}

    fn take_step(&self) -> Result<(), OutOfMemory> {
        if self.0.memory.fails() { Err(OutOfMemory) } else { Ok(()) }
    }

    fn allocate_huge(&self, size: PageSize) -> Option<PhysAddr> {
        self.0.memory.allocate_huge(size)
    }

    fn free_huge(&self, size: PageSize, frame: PhysAddr) {
        for cpu in &self.0.cpus {
            let held = cpu.tlb().lock().leaves.values().any(|(_, found)| found.frame == frame);
            assert!(!held, "a frame is freed that a TLB leads to");
        }
        self.0.memory.free_huge(size, frame);
    }

    fn zero(&self, start: PhysAddr, bytes: u64) {
        run_hook(&self.0.in_zero);
        self.0.memory.zero(start, bytes);
    }

    fn copy_huge(&self, size: PageSize, from: PhysAddr, to: PhysAddr) {
        self.0.memory.copy(size, from, to);
    }

    fn flush(&self, batch: &[Flush<SimSpace<F>>]) {
        run_hook(&self.0.in_flush);
        if self.0.forget_flushes.load(Ordering::SeqCst) {
            return;
        }
        for cpu in &self.0.cpus {
            // Waits for the access that runs there, as an interrupt does.
            let mut tlb = cpu.tlb().lock();
            for flush in batch {
                tlb.flush(flush.space.id(), &flush.range, flush.tables);
            }
        }
    }
}
