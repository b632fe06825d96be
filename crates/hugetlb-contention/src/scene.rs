//! Operations of N CPUs on one file, and what they cost in lines that move.

use std::collections::BTreeSet;
use std::sync::Arc;

use hugetlb::{
    Access as By, Config, FallocateMode, File, Hugetlb, MapOptions, MapRequest, Mapping, PageSize,
    Protection, ProtocolKind, SLOT_SIZE, SpaceToken, VirtAddr,
};

use crate::coherence::{Access, Caches};
use crate::heap::CPUS;
use crate::hooks;
use crate::machine::{Counted, CountedSpace};

const PAGE: u64 = 2 << 20;
/// The protocols that are counted.
pub const PROTOCOLS: [ProtocolKind; 3] =
    [ProtocolKind::FileLock, ProtocolKind::VmaLock, ProtocolKind::FileTables];
/// Rounds before the count begins, and those that count.
const ROUNDS: (u64, u64) = (3, 4);
/// Where the shared mapping is, a private one, and a place for another.
const SHARED: VirtAddr = VirtAddr(SLOT_SIZE);
const PRIVATE: VirtAddr = VirtAddr(3 * SLOT_SIZE);
const PLACE: VirtAddr = VirtAddr(5 * SLOT_SIZE);

/// What each CPU does in turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// A touch of a page of the CPU's own that is in the file, by a process of its own that has dropped what it had of it
    /// (MADV_DONTNEED): a fault, where the protocol takes the entry away.
    Touch,
    /// The same in a private mapping: a fault under every protocol.
    PrivateFault,
    /// The same as `Touch`, of threads of one process.
    ThreadTouch,
    /// A fault on a page of its own that is not in the file.
    FreshFault,
    /// A hole punched over that page.
    Punch,
    /// mmap of the file's first GiB, a touch, munmap.
    Attach,
    /// Fork, of the shared mapping.
    Fork,
    /// Exit of the child.
    Exit,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 8] = [
        Operation::Touch,
        Operation::PrivateFault,
        Operation::ThreadTouch,
        Operation::FreshFault,
        Operation::Punch,
        Operation::Attach,
        Operation::Fork,
        Operation::Exit,
    ];

    /// As shown.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Touch => "touch of a present page",
            Operation::PrivateFault => "fault, present page, private mapping",
            Operation::ThreadTouch => "touch of a present page, threads",
            Operation::FreshFault => "fault, fresh page",
            Operation::Punch => "punch of a page",
            Operation::Attach => "mmap of 1 GiB, touch, munmap",
            Operation::Fork => "fork",
            Operation::Exit => "exit",
        }
    }
}

/// What one operation costs among so many CPUs that do the same.
#[derive(Clone, Debug)]
pub struct Cost {
    /// Lines that more than one CPU stored to.
    pub hot: u64,
    /// Lines that the operation took from other CPUs.
    pub moves: f64,
    /// How often of these it was the line that moved most.
    pub most: f64,
    /// CPUs that it interrupted.
    pub interrupts: f64,
    /// Who stored to the hot lines: for each how often it moved, and the functions.
    pub lines: Vec<(u64, BTreeSet<String>)>,
}

struct Process {
    token: SpaceToken<CountedSpace>,
    shared: Option<Mapping<Counted>>,
    private: Option<Mapping<Counted>>,
    child: Option<(SpaceToken<CountedSpace>, Mapping<Counted>)>,
}

struct World {
    machine: Counted,
    hugetlb: Arc<Hugetlb<Counted>>,
    file: Arc<File<Counted>>,
    processes: Vec<Process>,
    log: Vec<Access>,
}

fn options(shared: bool) -> MapOptions {
    MapOptions { shared, no_reserve: true, protection: Protection::READ | Protection::WRITE }
}

fn request(start: VirtAddr, shared: bool) -> MapRequest {
    MapRequest { start, length: SLOT_SIZE, offset: 0, options: options(shared) }
}

impl World {
    fn new(protocol: ProtocolKind, cpus: usize) -> World {
        let huge = 2 * CPUS;
        let machine = Counted::new(cpus, 8 * cpus + 16, huge);
        // On the first CPU, and in its memory.
        let (hugetlb, file) = hooks::library(0, &mut Vec::new(), || {
            let hugetlb = Hugetlb::new(machine.clone(), Config { default_size: PageSize::Size2M, protocol });
            let pool = hugetlb.pool(PageSize::Size2M);
            assert_eq!(pool.set_persistent(huge as u64, || false), huge as u64);
            let file = hugetlb.anonymous_file(PageSize::Size2M, SLOT_SIZE).expect("a file");
            (hugetlb, file)
        });
        let mut world = World { machine, hugetlb, file, processes: Vec::new(), log: Vec::new() };
        for cpu in 0..cpus {
            let space = world.machine.space();
            world.machine.switch(cpu, &space);
            let mut token = SpaceToken::new(space);
            let file = world.file.clone();
            let page = cpu as u64 * PAGE;
            world
                .on(cpu, || file.fallocate(FallocateMode::AllocateKeepSize, page, PAGE, || false))
                .expect("there are pages");
            let shared = world.on(cpu, || file.map(&mut token, request(SHARED, true))).expect("a mapping");
            let private = world.on(cpu, || file.map(&mut token, request(PRIVATE, false))).expect("a mapping");
            world.processes.push(Process {
                token,
                shared: Some(shared),
                private: Some(private),
                child: None,
            });
        }
        world
    }

    /// A call of the library on a CPU.
    fn on<T>(&mut self, cpu: usize, call: impl FnOnce() -> T) -> T {
        self.machine.enter(cpu);
        hooks::library(cpu, &mut self.log, call)
    }

    /// What has to be there before the operation.
    fn prepare(&mut self, operation: Operation, cpu: usize) {
        let address = VirtAddr(PRIVATE.0 + cpu as u64 * PAGE);
        match operation {
            Operation::PrivateFault => {
                let private = self.processes[cpu].private.take().expect("it is mapped");
                self.on(cpu, || private.discard(address..address + PAGE)).expect("it is in the mapping");
                self.processes[cpu].private = Some(private);
            }
            Operation::Touch => self.discard(cpu, cpu),
            Operation::ThreadTouch => self.discard(cpu, 0),
            Operation::FreshFault => self.punch(cpu),
            Operation::Punch => self.touch(cpu, cpu, CPUS + cpu),
            Operation::Exit => self.fork(cpu),
            Operation::Attach | Operation::Fork => {}
        }
    }

    fn run(&mut self, operation: Operation, cpu: usize) {
        match operation {
            Operation::Touch => self.touch(cpu, cpu, cpu),
            Operation::ThreadTouch => self.touch(cpu, 0, cpu),
            Operation::FreshFault => self.touch(cpu, cpu, CPUS + cpu),
            Operation::PrivateFault => {
                let private = self.processes[cpu].private.take().expect("it is mapped");
                let address = VirtAddr(PRIVATE.0 + cpu as u64 * PAGE);
                self.on(cpu, || private.fault(address, By::Read)).expect("the page is there");
                self.processes[cpu].private = Some(private);
            }
            Operation::Punch => self.punch(cpu),
            Operation::Attach => self.attach(cpu),
            Operation::Fork => self.fork(cpu),
            Operation::Exit => self.exit(cpu),
        }
    }

    /// Puts what was prepared away.
    fn tidy(&mut self, operation: Operation, cpu: usize) {
        match operation {
            Operation::FreshFault => self.punch(cpu),
            Operation::Fork => self.exit(cpu),
            _ => {}
        }
    }

    /// A load by a process, of which the library hears if the hardware finds no entry.
    fn touch(&mut self, cpu: usize, process: usize, page: usize) {
        let address = VirtAddr(SHARED.0 + page as u64 * PAGE);
        self.log.clear();
        if self.machine.is_mapped(self.processes[process].token.space(), address) {
            return;
        }
        let shared = self.processes[process].shared.take().expect("it is mapped");
        self.on(cpu, || shared.fault(address, By::Read)).expect("there are pages");
        self.processes[process].shared = Some(shared);
    }

    fn discard(&mut self, cpu: usize, process: usize) {
        let shared = self.processes[process].shared.take().expect("it is mapped");
        let address = VirtAddr(SHARED.0 + cpu as u64 * PAGE);
        self.on(cpu, || shared.discard(address..address + PAGE)).expect("it is in the mapping");
        self.processes[process].shared = Some(shared);
    }

    fn punch(&mut self, cpu: usize) {
        let file = self.file.clone();
        let start = (CPUS + cpu) as u64 * PAGE;
        self.on(cpu, || file.fallocate(FallocateMode::PunchHole, start, PAGE, || false)).expect("a punch");
    }

    fn attach(&mut self, cpu: usize) {
        let (machine, file) = (self.machine.clone(), self.file.clone());
        let mut process = self.processes.swap_remove(cpu);
        let token = &mut process.token;
        self.on(cpu, || {
            let mapping = file.map(token, request(PLACE, true)).expect("a mapping");
            if !hooks::machine(|| machine.is_mapped(token.space(), PLACE)) {
                mapping.fault(PLACE, By::Read).expect("the page is there");
            }
            mapping.unmap(token);
        });
        self.processes.push(process);
        let last = self.processes.len() - 1;
        self.processes.swap(cpu, last);
    }

    fn fork(&mut self, cpu: usize) {
        let mut child = SpaceToken::new(self.machine.space());
        let shared = self.processes[cpu].shared.take().expect("it is mapped");
        let mapping = self.on(cpu, || shared.fork(&mut child)).expect("there are tables");
        self.processes[cpu].shared = Some(shared);
        // The child runs where its parent forked.
        self.machine.switch(cpu, child.space());
        self.processes[cpu].child = Some((child, mapping));
    }

    fn exit(&mut self, cpu: usize) {
        let (mut token, mapping) = self.processes[cpu].child.take().expect("it was forked");
        self.on(cpu, || mapping.unmap(&mut token));
        let space = token.space().clone();
        self.machine.end(space, &[SHARED]);
        let parent = self.processes[cpu].token.space().clone();
        self.machine.switch(cpu, &parent);
    }

    /// All go, so that the machine can look whether anything is left.
    fn end(mut self) {
        for (cpu, mut process) in std::mem::take(&mut self.processes).into_iter().enumerate() {
            for mapping in [process.shared.take(), process.private.take()].into_iter().flatten() {
                self.on(cpu, || mapping.unmap(&mut process.token));
            }
            let space = process.token.space().clone();
            self.machine.end(space, &[SHARED, PRIVATE, PLACE]);
        }
        let sharing = self.hugetlb.sharing();
        assert_eq!((sharing.tables, sharing.attachments), (0, 0), "tables are left");
    }
}

/// Counts an operation; with `explain` also whose stores made the lines hot that moved most.
pub fn count(protocol: ProtocolKind, operation: Operation, cpus: usize, explain: bool) -> Cost {
    assert!((1..=CPUS).contains(&cpus));
    let mut world = World::new(protocol, cpus);
    let mut caches = Caches::default();
    let round = |world: &mut World, caches: &mut Caches| {
        let (mut moves, mut interrupts) = (0, 0);
        for cpu in 0..cpus {
            world.prepare(operation, cpu);
        }
        for cpu in 0..cpus {
            world.machine.take_interrupts();
            world.run(operation, cpu);
            interrupts += world.machine.take_interrupts();
            moves += world.log.iter().filter(|access| caches.access(cpu, **access)).count() as u64;
        }
        for cpu in 0..cpus {
            world.tidy(operation, cpu);
        }
        (moves, interrupts)
    };
    for _ in 0..ROUNDS.0 {
        round(&mut world, &mut caches);
    }
    caches.begin();
    let (mut moves, mut interrupts) = (0, 0);
    for _ in 0..ROUNDS.1 {
        let sums = round(&mut world, &mut caches);
        (moves, interrupts) = (moves + sums.0, interrupts + sums.1);
    }
    let count = caches.count();
    let mut lines = Vec::new();
    for (line, moved) in caches.hot().into_iter().take(if explain { 8 } else { 0 }) {
        hooks::watch(Some(line));
        round(&mut world, &mut Caches::default());
        lines.push((moved, hooks::watch(None)));
    }
    world.end();
    let each = |number: u64| number as f64 / (ROUNDS.1 * cpus as u64) as f64;
    Cost { hot: count.hot, moves: each(moves), most: each(count.most), interrupts: each(interrupts), lines }
}
