//! Random operations of several processes, against an oracle that has no page tables.

mod common;

use std::ops::Range;
use std::sync::Arc;

use common::{Model, Operation, Outcome, Protection, SLOT};
use hugetlb::{Config, FallocateMode, File, Hugetlb, MapOptions, PageSize, ProtocolKind, VirtAddr};
use hugetlb_sim::{Process, Signal, SimMachine};
use proptest::prelude::*;
use proptest::sample::select;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

const SIZE: u64 = 2 << 20;
const FILES: usize = 2;
/// More than the operations of one case can use, so that no access finds the pool empty: the oracle has no pool.
const PAGES: u64 = 1500;
const CPUS: usize = 2;

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

fn protections() -> impl Strategy<Value = Protection> {
    prop_oneof![1 => Just(Protection::Nothing), 2 => Just(Protection::Read), 6 => Just(Protection::ReadWrite)]
}

/// Pages at which something may happen: near the ends of slots and of the mapping.
fn page_in(start: u64, pages: u64) -> impl Strategy<Value = u64> + Clone {
    let mut choices: Vec<u64> =
        [0, 1, 2, 510, 511, 512, 513, pages - 1].into_iter().filter(|within| *within < pages).collect();
    choices.sort_unstable();
    choices.dedup();
    select(choices).prop_map(move |within| start + within)
}

fn range_in(start: u64, pages: u64) -> impl Strategy<Value = Range<u64>> {
    (page_in(start, pages), page_in(start, pages)).prop_map(|(a, b)| a.min(b)..a.max(b) + 1)
}

fn file_range() -> impl Strategy<Value = Range<u64>> {
    (select(vec![0, 1, 2, 510, 511, 512]), 1u64..4).prop_map(|(first, pages)| first..first + pages)
}

struct Oracle;

impl ReferenceStateMachine for Oracle {
    type State = Model;
    type Transition = Operation;

    fn init_state() -> BoxedStrategy<Model> {
        Just(Model::new(FILES)).boxed()
    }

    fn transitions(model: &Model) -> BoxedStrategy<Operation> {
        let processes = model.processes.len();
        let map = (
            (0..processes, 0..FILES, 1u64..6, select(vec![0, 0, 0, 1, 511])),
            (select(vec![1, 3, 512, 512, 513, 1024]), select(vec![0, 0, 0, 1, 512])),
            (prop::bool::weighted(0.75), any::<bool>(), protections()),
        )
            .prop_map(
                |((process, file, slot, within), (pages, first), (shared, reserve, protection))| {
                    // Large mappings promise nothing, so that the pool is enough for all.
                    let reserve = reserve && pages <= 3;
                    Operation::Map {
                        process,
                        file,
                        start: slot * SLOT + within,
                        pages,
                        first,
                        shared,
                        reserve,
                        protection,
                    }
                },
            );
        let mut choices: Vec<(u32, BoxedStrategy<Operation>)> = vec![
            (4, map.boxed()),
            (1, (0..processes).prop_map(|process| Operation::Fork { process }).boxed()),
            (1, (0..processes).prop_map(|process| Operation::Exit { process }).boxed()),
            (
                1,
                (0..FILES, select(vec![0, 1, 2, 511, 512, 513, 1024]))
                    .prop_map(|(file, pages)| Operation::Truncate { file, pages })
                    .boxed(),
            ),
            (2, (0..FILES, file_range()).prop_map(|(file, range)| Operation::Punch { file, range }).boxed()),
            (
                1,
                (0..FILES, file_range(), any::<bool>())
                    .prop_map(|(file, range, keep_size)| Operation::Allocate { file, range, keep_size })
                    .boxed(),
            ),
        ];
        let mappings: Vec<(usize, u64, u64)> = model
            .processes
            .iter()
            .enumerate()
            .flat_map(|(process, mappings)| mappings.iter().map(move |(start, m)| (process, *start, m.pages)))
            .collect();
        if !mappings.is_empty() {
            let one = || select(mappings.clone());
            let ranged =
                || one().prop_flat_map(|(process, start, pages)| (Just(process), range_in(start, pages)));
            let paged =
                || one().prop_flat_map(|(process, start, pages)| (Just(process), page_in(start, pages)));
            choices.extend([
                (2, ranged().prop_map(|(process, range)| Operation::Unmap { process, range }).boxed()),
                (
                    2,
                    (ranged(), protections())
                        .prop_map(|((process, range), protection)| Operation::Protect {
                            process,
                            range,
                            protection,
                        })
                        .boxed(),
                ),
                (2, ranged().prop_map(|(process, range)| Operation::Discard { process, range }).boxed()),
                (
                    1,
                    (one(), 1u64..6, select(vec![0, 0, 7]))
                        .prop_map(|((process, from, _), slot, within)| Operation::Move {
                            process,
                            from,
                            to: slot * SLOT + within,
                        })
                        .boxed(),
                ),
                (
                    10,
                    (paged(), 0..CPUS)
                        .prop_map(|((process, page), cpu)| Operation::Load { process, cpu, page })
                        .boxed(),
                ),
                (
                    10,
                    (paged(), 0..CPUS, 1u64..1 << 32)
                        .prop_map(|((process, page), cpu, value)| Operation::Store {
                            process,
                            cpu,
                            page,
                            value,
                        })
                        .boxed(),
                ),
            ]);
        }
        prop::strategy::Union::new_weighted(choices).boxed()
    }

    fn preconditions(model: &Model, operation: &Operation) -> bool {
        model.is_valid(operation)
    }

    fn apply(mut model: Model, operation: &Operation) -> Model {
        model.apply(operation);
        model
    }
}

struct System {
    machine: SimMachine,
    hugetlb: Arc<Hugetlb<SimMachine>>,
    files: Vec<Arc<File<SimMachine>>>,
    processes: Vec<Process>,
}

impl System {
    fn new(protocol: ProtocolKind) -> System {
        let machine = SimMachine::new(CPUS, 512, PAGES as usize, 0);
        let hugetlb = machine.hugetlb(Config { default_size: PageSize::Size2M, protocol });
        assert_eq!(hugetlb.pool(PageSize::Size2M).set_persistent(PAGES, || false), PAGES);
        let files = (0..FILES).map(|_| hugetlb.anonymous_file(PageSize::Size2M, 0).unwrap()).collect();
        let processes = vec![machine.process().unwrap()];
        System { machine, hugetlb, files, processes }
    }

    fn apply(&mut self, operation: Operation) -> Option<Outcome> {
        let outcome = |result: Result<u64, Signal>| match result {
            Ok(value) => Outcome::Value(value),
            Err(Signal::Segv) => Outcome::Segv,
            Err(Signal::Bus) => Outcome::Bus,
            Err(Signal::OutOfMemory) => panic!("there are tables enough"),
        };
        match operation {
            Operation::Map { process, file, start, pages, first, shared, reserve, protection } => {
                let protection = hugetlb_protection(protection);
                let options = MapOptions { shared, no_reserve: !reserve, protection };
                let (start, length, offset) = (VirtAddr(start * SIZE), pages * SIZE, first * SIZE);
                self.processes[process].map(&self.files[file], start, length, offset, options).unwrap();
            }
            Operation::Unmap { process, range } => self.processes[process].unmap(bytes(&range)),
            Operation::Protect { process, range, protection } => {
                self.processes[process].protect(bytes(&range), hugetlb_protection(protection));
            }
            Operation::Discard { process, range } => self.processes[process].discard(bytes(&range)).unwrap(),
            Operation::Move { process, from, to } => {
                self.processes[process].move_to(VirtAddr(from * SIZE), VirtAddr(to * SIZE)).unwrap();
            }
            Operation::Fork { process } => {
                let child = self.processes[process].fork().unwrap();
                self.processes.push(child);
            }
            Operation::Exit { process } => drop(self.processes.swap_remove(process)),
            Operation::Truncate { file, pages } => self.files[file].truncate(pages * SIZE).unwrap(),
            Operation::Punch { file, range } => self.fallocate(file, FallocateMode::PunchHole, &range),
            Operation::Allocate { file, range, keep_size } => {
                let mode = if keep_size { FallocateMode::AllocateKeepSize } else { FallocateMode::Allocate };
                self.fallocate(file, mode, &range);
            }
            Operation::Load { process, cpu, page } => {
                return Some(outcome(self.processes[process].load(cpu, VirtAddr(page * SIZE))));
            }
            Operation::Store { process, cpu, page, value } => {
                let address = VirtAddr(page * SIZE);
                return Some(outcome(self.processes[process].store(cpu, address, value).map(|()| value)));
            }
        }
        None
    }

    fn fallocate(&self, file: usize, mode: FallocateMode, range: &Range<u64>) {
        let length = (range.end - range.start) * SIZE;
        self.files[file].fallocate(mode, range.start * SIZE, length, || false).unwrap();
    }

    fn check(&self, model: &Model) {
        self.machine.check().unwrap();
        let pool = self.hugetlb.pool(PageSize::Size2M).statistics();
        assert!(pool.free <= pool.total && pool.reserved <= pool.free, "{pool:?}");
        assert_eq!((pool.total, pool.surplus), (PAGES, 0));
        for (file, model) in self.files.iter().zip(&model.files) {
            let statistics = file.statistics();
            assert_eq!((statistics.size, statistics.pages), (model.size * SIZE, model.pages.len() as u64));
        }
        let sharing = self.hugetlb.sharing();
        assert!(sharing.attachments >= sharing.tables, "{sharing:?}");
    }

    fn finish(self) {
        drop((self.processes, self.files));
        let pool = self.hugetlb.pool(PageSize::Size2M).statistics();
        assert_eq!((pool.free, pool.reserved, pool.surplus), (PAGES, 0, 0), "pages or promises leaked");
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

            fn init_test(_: &Model) -> Self {
                $system(System::new($protocol))
            }

            fn apply(mut state: Self, model: &Model, operation: Operation) -> Self {
                assert_eq!(state.0.apply(operation), model.outcome);
                state
            }

            fn check_invariants(state: &Self, model: &Model) {
                state.0.check(model);
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
