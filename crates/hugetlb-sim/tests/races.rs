//! Threads as CPUs: faults against everything that takes pages and tables away.
//!
//! Each store writes a word that names the file and the page, so a load can tell whether it sees a page of another file, of
//! another index, or one that was freed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use hugetlb::filetables::format::{Aarch64, Riscv64, X86_64};
use hugetlb::{
    Config, FallocateMode, File, Format, Hugetlb, MapOptions, PageSize, Protection, ProtocolKind, SLOT_SIZE,
    VirtAddr,
};
use hugetlb_sim::{Process, Rules, Signal, SimMachine};

const SIZE: u64 = 2 << 20;
const POOL: u64 = 64;
const RW: Protection = Protection::READ.union(Protection::WRITE);
const SHARED: MapOptions = MapOptions { shared: true, no_reserve: true, protection: RW };
/// Loads and stores of the programs, at least, beside what takes away.
const LEAST_ACCESSES: u64 = 1000;
/// The page indices that are used: few, so that threads meet.
const INDICES: [u64; 6] = [0, 1, 2, 3, 510, 511];

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

fn stamp(file: u64, index: u64) -> u64 {
    (file << 32) | index | 1 << 63
}

struct World<F: Format> {
    machine: SimMachine<F>,
    hugetlb: Arc<Hugetlb<SimMachine<F>>>,
    files: [Arc<File<SimMachine<F>>>; 2],
    /// Process `n` maps file `n % 2` at slot 1, and at slot 3 privately.
    processes: Vec<Process<F>>,
    stop: AtomicBool,
    accesses: AtomicU64,
}

impl<F: Format> World<F> {
    fn new(rules: Rules, protocol: ProtocolKind, cpus: usize, processes: usize) -> World<F> {
        let machine = SimMachine::<F>::with_rules(rules, cpus, 256, POOL as usize, 0);
        let hugetlb = machine.hugetlb(Config { default_size: PageSize::Size2M, protocol });
        assert_eq!(hugetlb.pool(PageSize::Size2M).set_persistent(POOL, || false), POOL);
        let files = [(); 2].map(|()| hugetlb.anonymous_file(PageSize::Size2M, SLOT_SIZE).unwrap());
        let processes: Vec<Process<F>> = (0..processes).map(|_| machine.process().unwrap()).collect();
        for (number, process) in processes.iter().enumerate() {
            process.map(&files[number % 2], VirtAddr(SLOT_SIZE), SLOT_SIZE, 0, SHARED).unwrap();
            let private = MapOptions { shared: false, ..SHARED };
            process.map(&files[number % 2], VirtAddr(3 * SLOT_SIZE), 4 * SIZE, 0, private).unwrap();
        }
        World {
            machine,
            hugetlb,
            files,
            processes,
            stop: AtomicBool::new(false),
            accesses: AtomicU64::new(0),
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// A program: loads and stores on one CPU.
    fn run_program(&self, cpu: usize, seed: u64) {
        let mut random = Random(seed);
        // A program that fails ends the others.
        let _end = Ends(&self.stop);
        while !self.is_over() {
            let number = random.below(self.processes.len() as u64) as usize;
            let file = number as u64 % 2;
            let index = INDICES[random.below(INDICES.len() as u64) as usize];
            let private = index < 4 && random.below(4) == 0;
            let base = if private { 3 * SLOT_SIZE } else { SLOT_SIZE };
            let address = VirtAddr(base + index * SIZE);
            let process = &self.processes[number];
            let result = if random.below(2) == 0 {
                process.store(cpu, address, stamp(file, index)).map(|()| 0)
            } else {
                process.load(cpu, address)
            };
            match result {
                Ok(value) => assert!(
                    value == 0 || value == stamp(file, index),
                    "page {index} of file {file} reads {value:#x}"
                ),
                // Truncated, unmapped or protected at this moment.
                Err(Signal::Bus | Signal::Segv) => {}
                Err(Signal::OutOfMemory) => panic!("there are tables enough"),
            }
            self.accesses.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Everything that takes away. Each disturber changes the mappings of processes of its own, and any file.
    fn disturb(&self, steps: u64, disturber: u64) {
        let mut random = Random(disturber + 5);
        let slot = VirtAddr(SLOT_SIZE);
        let mut step = 0;
        // How often the programs run meanwhile is the host's decision; there is no race until they have run.
        while step < steps || (self.accesses.load(Ordering::SeqCst) <= LEAST_ACCESSES && !self.is_over()) {
            step += 1;
            let own = (0..self.processes.len()).filter(|number| (number / 2) as u64 % 2 == disturber);
            let own: Vec<usize> = own.collect();
            let number = own[random.below(own.len() as u64) as usize];
            let (process, file) = (&self.processes[number], &self.files[number % 2]);
            let first = random.below(4);
            let part = slot + first * SIZE..slot + (first + 1) * SIZE;
            match random.below(9) {
                0 => {
                    file.truncate(first * SIZE).unwrap();
                    file.truncate(SLOT_SIZE).unwrap();
                }
                1 | 2 => file.fallocate(FallocateMode::PunchHole, first * SIZE, 2 * SIZE, || false).unwrap(),
                3 => {
                    process.unmap(slot..slot + SLOT_SIZE).unwrap();
                    process.map(file, slot, SLOT_SIZE, 0, SHARED).unwrap();
                }
                4 => {
                    process.protect(slot..slot + SLOT_SIZE, Protection::READ).unwrap();
                    process.protect(slot..slot + SLOT_SIZE, RW).unwrap();
                }
                5 => process.discard(part).unwrap(),
                6 => {
                    process.unmap(part.clone()).unwrap();
                    process.map(file, part.start, SIZE, first * SIZE, SHARED).unwrap();
                    process.unmap(slot..slot + SLOT_SIZE).unwrap();
                    process.map(file, slot, SLOT_SIZE, 0, SHARED).unwrap();
                }
                7 => {
                    let child = process.fork().unwrap();
                    let value = child.load(number, slot + SIZE);
                    assert!(
                        !matches!(value, Ok(value) if value != 0 && value != stamp(number as u64 % 2, 1))
                    );
                    drop(child);
                }
                _ => {
                    let private = VirtAddr(3 * SLOT_SIZE);
                    process.unmap(private..private + 4 * SIZE).unwrap();
                    let options = MapOptions { shared: false, ..SHARED };
                    process.map(file, private, 4 * SIZE, 0, options).unwrap();
                }
            }
        }
    }

    fn finish(self) {
        self.machine.check().unwrap();
        drop((self.processes, self.files));
        let pool = self.hugetlb.pool(PageSize::Size2M).statistics();
        assert_eq!((pool.free, pool.reserved, pool.surplus), (POOL, 0, 0), "pages or promises leaked");
        assert_eq!(self.machine.tables_in_use(), 0, "page tables leaked");
        assert_eq!((self.hugetlb.sharing().tables, self.hugetlb.sharing().attachments), (0, 0));
    }
}

/// Sets a flag when it goes.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn faults_survive(protocol: ProtocolKind) {
    faults_survive_on::<X86_64>(Rules::X86_64, protocol, 1500);
}

fn faults_survive_on<F: Format>(rules: Rules, protocol: ProtocolKind, steps: u64) {
    let world = World::<F>::new(rules, protocol, 3, 6);
    thread::scope(|scope| {
        let programs: Vec<_> = (0..3)
            .map(|cpu| {
                scope.spawn({
                    let world = &world;
                    move || world.run_program(cpu, 77 + cpu as u64)
                })
            })
            .collect();
        let disturbers: Vec<_> = (0..2)
            .map(|number| {
                scope.spawn({
                    let world = &world;
                    move || world.disturb(steps, number)
                })
            })
            .collect();
        // Stop the programs also when a disturber fails, or the scope would wait for them for ever.
        let disturbed: Vec<_> = disturbers.into_iter().map(|thread| thread.join()).collect();
        world.stop.store(true, Ordering::SeqCst);
        for result in disturbed.into_iter().chain(programs.into_iter().map(|thread| thread.join())) {
            result.unwrap();
        }
    });
    world.finish();
}

#[test]
fn faults_survive_all_that_takes_away_under_vma_lock() {
    faults_survive(ProtocolKind::VmaLock);
}

#[test]
fn faults_survive_all_that_takes_away_under_file_lock() {
    faults_survive(ProtocolKind::FileLock);
}

#[test]
fn faults_survive_all_that_takes_away_under_file_tables() {
    faults_survive(ProtocolKind::FileTables);
}

#[test]
fn faults_survive_all_that_takes_away_with_private_tables() {
    faults_survive(ProtocolKind::None);
}

#[test]
fn faults_survive_on_other_architectures() {
    for protocol in [ProtocolKind::FileTables, ProtocolKind::VmaLock] {
        faults_survive_on::<Riscv64>(Rules::SV39, protocol, 300);
        faults_survive_on::<Aarch64>(Rules::AARCH64, protocol, 300);
    }
}

/// The checkers see what they are there for: without flushes the same calls leave TLBs that contradict the tables.
fn a_forgotten_flush_is_found(protocol: ProtocolKind) {
    let machine = SimMachine::new(2, 64, 8, 0);
    let hugetlb = machine.hugetlb(Config { default_size: PageSize::Size2M, protocol });
    hugetlb.pool(PageSize::Size2M).set_persistent(8, || false);
    let file = hugetlb.anonymous_file(PageSize::Size2M, SLOT_SIZE).unwrap();
    let process = machine.process().unwrap();
    let slot = VirtAddr(SLOT_SIZE);
    process.map(&file, slot, SLOT_SIZE, 0, SHARED).unwrap();
    let punch = || file.fallocate(FallocateMode::PunchHole, 0, SIZE, || false).unwrap();
    process.store(1, slot, 5).unwrap();
    machine.check().unwrap();
    punch();
    machine.check().unwrap();
    process.store(1, slot, 6).unwrap();
    machine.forget_flushes();
    punch();
    assert!(machine.check().unwrap_err().contains("the TLB has"));
    // The machine is broken: its destructors would find more.
    std::mem::forget((process, file));
}

#[test]
fn a_forgotten_flush_is_found_under_vma_lock() {
    a_forgotten_flush_is_found(ProtocolKind::VmaLock);
}

#[test]
fn a_forgotten_flush_is_found_under_file_tables() {
    a_forgotten_flush_is_found(ProtocolKind::FileTables);
}
