//! Random operations of several processes, against an oracle that has no page tables.
//!
//! After each operation the library's own checkers look at all tables, and the pools' counters must be what the oracle makes
//! of its pages and promises.

mod generate;
mod model;
mod operation;
mod supply;

use std::ops::Range;
use std::sync::Arc;

use generate::{CPUS, GIGANTIC, Oracle};
use hugetlb::{
    CheckRound, Config, Error, FallocateMode, File, Hugetlb, MapOptions, PageSize, ProtocolKind, VirtAddr,
};
use hugetlb_sim::{Process, Signal, SimMachine};
use model::Model;
use operation::{Operation, Outcome, Protection};
use proptest::prelude::*;
use proptest_state_machine::{StateMachineTest, prop_state_machine};
use supply::{Pages, Supply};

const SIZE: u64 = 2 << 20;
/// More than are needed.
const TABLES: usize = 512;

fn hugetlb_protection(protection: Protection) -> hugetlb::Protection {
    match protection {
        Protection::Nothing => hugetlb::Protection::empty(),
        Protection::Read => hugetlb::Protection::READ,
        Protection::ReadWrite => hugetlb::Protection::READ | hugetlb::Protection::WRITE,
    }
}

fn bytes(pages: &Range<u64>) -> Range<VirtAddr> {
    VirtAddr(pages.start * SIZE)..VirtAddr(pages.end * SIZE)
}

/// What was done, told when it ends in a panic: what the shrinker calls minimal need not fail.
#[derive(Default)]
struct History(Vec<Operation>);

impl Drop for History {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("after {:?}", self.0);
        }
    }
}

struct System {
    machine: SimMachine,
    hugetlb: Arc<Hugetlb<SimMachine>>,
    files: Vec<Arc<File<SimMachine>>>,
    processes: Vec<Process>,
    /// What is, where the generator's model is what would be if no pool was ever empty.
    model: Model,
    history: History,
}

impl System {
    fn new(protocol: ProtocolKind, model: &Model) -> System {
        let machine = SimMachine::new(CPUS, TABLES, model.frames as usize, GIGANTIC as usize);
        let hugetlb = machine.hugetlb(Config { default_size: PageSize::Size2M, protocol });
        for (size, pages) in [(PageSize::Size2M, model.frames / 2), (PageSize::Size1G, GIGANTIC - 1)] {
            assert_eq!(hugetlb.pool(size).set_persistent(pages, || false), pages);
        }
        let files = model.files.iter().map(|file| hugetlb.anonymous_file(file.page_size, 0).unwrap());
        let files = files.collect();
        let processes = vec![machine.process().unwrap()];
        System { machine, hugetlb, files, processes, model: model.clone(), history: History::default() }
    }

    fn supply(&self) -> Supply {
        let frames = [(PageSize::Size2M, self.model.frames), (PageSize::Size1G, GIGANTIC)];
        Supply(frames.map(|(size, frames)| {
            Pages::of(self.hugetlb.pool(size).statistics(), frames - self.machine.huge_in_use(size) as u64)
        }))
    }

    /// Does the operation on both sides, if it still makes sense.
    fn step(&mut self, operation: Operation) {
        let mut supply = self.supply();
        if !self.model.is_valid(&operation) {
            return;
        }
        self.history.0.push(operation.clone());
        let expected = self.model.apply(&operation, &mut supply);
        assert_eq!(self.apply(operation), expected);
        self.check();
    }

    fn apply(&mut self, operation: Operation) -> Outcome {
        let outcome = |result: Result<u64, Signal>| match result {
            Ok(value) => Outcome::Value(value),
            Err(Signal::Segv) => Outcome::Segv,
            Err(Signal::Bus) => Outcome::Bus,
            Err(Signal::OutOfMemory) => panic!("there are tables enough"),
        };
        let done = |result: Result<(), Error>| match result {
            Ok(()) => Outcome::Done,
            Err(Error::NoMemory) => Outcome::NoMemory,
            Err(Error::NoSpace) => Outcome::NoSpace,
            Err(other) => panic!("{other:?}"),
        };
        match operation {
            Operation::Map { process, file, start, pages, first, shared, reserve, protection } => {
                let protection = hugetlb_protection(protection);
                let options = MapOptions { shared, no_reserve: !reserve, protection };
                let (start, length, offset) = (VirtAddr(start * SIZE), pages * SIZE, first * SIZE);
                return done(self.processes[process].map(&self.files[file], start, length, offset, options));
            }
            Operation::Unmap { process, range } => self.processes[process].unmap(bytes(&range)).unwrap(),
            Operation::Protect { process, range, protection } => {
                self.processes[process].protect(bytes(&range), hugetlb_protection(protection)).unwrap();
            }
            Operation::Discard { process, range } => {
                return done(self.processes[process].discard(bytes(&range)));
            }
            Operation::Move { process, from, to } => {
                return done(self.processes[process].move_to(VirtAddr(from * SIZE), VirtAddr(to * SIZE)));
            }
            Operation::Fork { process } => {
                let child = self.processes[process].fork().unwrap();
                self.processes.push(child);
            }
            Operation::Exit { process } => drop(self.processes.swap_remove(process)),
            Operation::Truncate { file, pages } => return done(self.files[file].truncate(pages * SIZE)),
            Operation::Punch { file, range } => {
                return done(self.fallocate(file, FallocateMode::PunchHole, &range));
            }
            Operation::Allocate { file, range, keep_size } => {
                let mode = if keep_size { FallocateMode::AllocateKeepSize } else { FallocateMode::Allocate };
                return done(self.fallocate(file, mode, &range));
            }
            Operation::Load { process, cpu, page } => {
                return outcome(self.processes[process].load(cpu, self.address(process, page)));
            }
            Operation::Store { process, cpu, page, value } => {
                let address = self.address(process, page);
                return outcome(self.processes[process].store(cpu, address, value).map(|()| value));
            }
            Operation::Resize { size, pages } => {
                return Outcome::Persistent(self.hugetlb.pool(size).set_persistent(pages, || false));
            }
            Operation::Overcommit { pages } => {
                return done(self.hugetlb.pool(PageSize::Size2M).set_overcommit(pages));
            }
        }
        Outcome::Done
    }

    /// The word that stands for the page that is mapped around an address.
    fn address(&self, process: usize, page: u64) -> VirtAddr {
        let mapping = self.model.mapping_at(process, page);
        let unit = mapping.map_or(1, |(_, mapping)| self.model.files[mapping.file].unit());
        VirtAddr((page - page % unit) * SIZE)
    }

    fn fallocate(&self, file: usize, mode: FallocateMode, range: &Range<u64>) -> Result<(), Error> {
        let length = (range.end - range.start) * SIZE;
        self.files[file].fallocate(mode, range.start * SIZE, length, || false)
    }

    fn check(&self) {
        self.machine.check().unwrap();
        for (file, model) in self.files.iter().zip(&self.model.files) {
            file.check_tables().unwrap();
            let statistics = file.statistics();
            assert_eq!((statistics.size, statistics.pages), (model.size * SIZE, model.pages.len() as u64));
        }
        let mut round = CheckRound::new(&self.hugetlb);
        for process in &self.processes {
            process.check(&mut round).unwrap();
        }
        round.check_counts().unwrap();
        for size in PageSize::ALL {
            self.hugetlb.pool(size).check().unwrap();
            let pool = self.hugetlb.pool(size).statistics();
            assert_eq!(
                (pool.total - pool.free, pool.reserved),
                self.model.counts(size),
                "pages in use and promised: {pool:?}"
            );
        }
        let sharing = self.hugetlb.sharing();
        assert!(sharing.attachments >= sharing.tables, "{sharing:?}");
    }

    fn finish(self) {
        drop((self.processes, self.files));
        for size in PageSize::ALL {
            self.hugetlb.pool(size).check().unwrap();
            let pool = self.hugetlb.pool(size).statistics();
            assert_eq!(
                (pool.free, pool.reserved, pool.surplus),
                (pool.total, 0, 0),
                "pages or promises leaked"
            );
            assert_eq!(self.machine.huge_in_use(size) as u64, pool.total, "frames leaked");
        }
        assert_eq!(self.machine.tables_in_use(), 0, "page tables leaked");
        let sharing = self.hugetlb.sharing();
        assert_eq!((sharing.tables, sharing.attachments), (0, 0));
        self.machine.check().unwrap();
    }
}

macro_rules! against_the_oracle {
    ($system:ident, $protocol:expr) => {
        struct $system(System);

        impl StateMachineTest for $system {
            type SystemUnderTest = Self;
            type Reference = Oracle;

            fn init_test(model: &Model) -> Self {
                $system(System::new($protocol, model))
            }

            fn apply(mut state: Self, _: &Model, operation: Operation) -> Self {
                state.0.step(operation);
                state
            }

            fn teardown(state: Self) {
                state.0.finish();
            }
        }
    };
}

against_the_oracle!(WithFileLock, ProtocolKind::FileLock);
against_the_oracle!(WithVmaLock, ProtocolKind::VmaLock);
against_the_oracle!(WithFileTables, ProtocolKind::FileTables);
against_the_oracle!(WithoutSharing, ProtocolKind::None);

prop_state_machine! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn file_lock_agrees_with_the_oracle(sequential 1..80 => WithFileLock);

    #[test]
    fn file_tables_agree_with_the_oracle(sequential 1..80 => WithFileTables);

    #[test]
    fn vma_lock_agrees_with_the_oracle(sequential 1..80 => WithVmaLock);

    #[test]
    fn private_tables_agree_with_the_oracle(sequential 1..80 => WithoutSharing);
}
