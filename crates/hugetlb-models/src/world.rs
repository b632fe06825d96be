//! What a model starts with, and what must be left at its end.

use std::sync::{Arc, Mutex};

use hugetlb::{
    Config, FallocateMode, File, Hugetlb, MapOptions, PageSize, PhysAddr, Protection, ProtocolKind,
    SLOT_SIZE, VirtAddr,
};

use crate::explore::spawn;
use crate::machine::{HUGE_BASE, ModelMachine};
use crate::process::Process;

/// The bytes of a page.
pub const PAGE: u64 = 2 << 20;
/// Where mappings are.
pub const SLOT: VirtAddr = VirtAddr(SLOT_SIZE);
/// Surplus pages that the pool may lend.
pub const POOL: u64 = 4;
/// Loads and stores.
pub const RW: Protection = Protection::READ.union(Protection::WRITE);
/// A shared mapping without promises.
pub const SHARED: MapOptions = MapOptions { shared: true, no_reserve: true, protection: RW };

/// What a program writes into a page of a file.
pub fn stamp(file: u64, index: u64) -> u64 {
    (file << 32) | index | 1 << 63
}

/// A machine with a subsystem, two files of one slot, and processes.
pub struct World {
    /// The machine.
    pub machine: ModelMachine,
    /// The subsystem.
    pub hugetlb: Arc<Hugetlb<ModelMachine>>,
    /// Files of one slot.
    pub files: [Arc<File<ModelMachine>>; 2],
    /// Processes; none has a mapping at the start.
    pub processes: Vec<Process>,
    /// Processes that a step has made, until the end.
    kept: Mutex<Vec<Process>>,
    /// The page that is taken from the pool first.
    pub first_page: PhysAddr,
}

impl World {
    /// A world under a protocol.
    pub fn new(protocol: ProtocolKind, processes: usize) -> World {
        let world = World::on(ModelMachine::new(POOL as usize), protocol, processes);
        // Surplus pages go back to the machine at once, which looks who still leads to them.
        world.hugetlb.pool(PageSize::Size2M).set_overcommit(POOL).unwrap();
        world
    }

    fn on(machine: ModelMachine, protocol: ProtocolKind, processes: usize) -> World {
        let hugetlb = Hugetlb::new(machine.clone(), Config { default_size: PageSize::Size2M, protocol });
        let files = [(); 2].map(|()| hugetlb.anonymous_file(PageSize::Size2M, SLOT_SIZE).unwrap());
        let processes = (0..processes).map(|_| Process::new(&machine)).collect();
        let first_page = PhysAddr(HUGE_BASE);
        World { machine, hugetlb, files, processes, kept: Mutex::default(), first_page }
    }

    /// As [`World::new`], with a pool of so many persistent pages and no more.
    pub fn with_pool(protocol: ProtocolKind, pages: usize, processes: usize) -> World {
        let world = World::on(ModelMachine::new(pages), protocol, processes);
        assert_eq!(world.hugetlb.pool(PageSize::Size2M).set_persistent(pages as u64, || false), pages as u64);
        world
    }

    /// As [`World::new`]; each process maps the first file's slot, and has it attached: the first has written page 0.
    pub fn sharing(protocol: ProtocolKind, processes: usize) -> World {
        let world = World::new(protocol, processes);
        for process in &world.processes {
            process.map(&world.files[0], SLOT, SLOT_SIZE, 0, SHARED).unwrap();
            process.store(0, SLOT, stamp(0, 0)).unwrap();
        }
        world
    }

    /// The world with further processes.
    pub fn with_processes(mut self, processes: usize) -> World {
        self.processes.extend((0..processes).map(|_| Process::new(&self.machine)));
        self
    }

    /// The world with a process that was forked.
    pub fn with(mut self, process: Process) -> World {
        self.processes.push(process);
        self
    }

    /// Keeps a process that a step has made until the end.
    pub fn keep(&self, process: Process) {
        self.kept.lock().unwrap().push(process);
    }

    /// Punches pages of the first file.
    pub fn punch(&self, first: u64, pages: u64) {
        self.files[0].fallocate(FallocateMode::PunchHole, first * PAGE, pages * PAGE, || false).unwrap();
    }

    /// Runs the steps side by side, then looks at what is left.
    pub fn race<const N: usize>(self, steps: [fn(&World); N]) {
        self.raced(steps).finish();
    }

    /// As [`World::race`], to go on with; [`World::finish`] comes last.
    pub fn raced<const N: usize>(self, steps: [fn(&World); N]) -> World {
        let world = Arc::new(self);
        let threads = steps.map(|step| {
            let world = world.clone();
            spawn(move || step(&world))
        });
        for thread in threads {
            thread();
        }
        Arc::into_inner(world).expect("all threads are done")
    }

    /// Looks at what is left.
    pub fn finish(self) {
        self.machine.check();
        for file in &self.files {
            file.check_tables().unwrap();
        }
        let World { machine, hugetlb, files, processes, kept, .. } = self;
        drop((processes, kept));
        for file in &files {
            file.check_unmapped().unwrap();
        }
        drop(files);
        hugetlb.pool(PageSize::Size2M).check().unwrap();
        hugetlb.pool(PageSize::Size2M).set_persistent(0, || false);
        hugetlb.pool(PageSize::Size2M).check().unwrap();
        let pool = hugetlb.pool(PageSize::Size2M).statistics();
        assert_eq!((pool.total, pool.reserved, pool.surplus), (0, 0, 0), "pages or promises leaked");
        assert_eq!(machine.huge_in_use(), 0, "huge frames leaked");
        assert_eq!(machine.tables_in_use(), 0, "page tables leaked");
        let sharing = hugetlb.sharing();
        assert_eq!((sharing.tables, sharing.attachments), (0, 0), "the counters of sharing do not return");
    }
}
