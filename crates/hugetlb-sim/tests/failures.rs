//! Each allocation fails once: what an operation cannot have leaves everything as it was.
//!
//! A scenario is run again and again, and the nth time its nth allocation fails, until it asks for fewer. Whatever it came to, all counters are
//! afterwards what they were, nothing is left that hardware could reach, and the same scenario succeeds in the same system.

use std::sync::Arc;

use hugetlb::{
    CheckRound, Config, Error, FallocateMode, File, Hugetlb, MapOptions, OutOfMemory, PageSize, Protection,
    ProtocolKind, SLOT_SIZE, VirtAddr,
};
use hugetlb_sim::{Process, Signal, SimMachine};

const SIZE: u64 = 2 << 20;
const POOL: u64 = 32;
const RW: Protection = Protection::READ.union(Protection::WRITE);
const SHARED: MapOptions = MapOptions { shared: true, no_reserve: true, protection: RW };
const PRIVATE: MapOptions = MapOptions { shared: false, ..SHARED };
const RESERVED: MapOptions = MapOptions { no_reserve: false, ..SHARED };
const HERE: VirtAddr = VirtAddr(4 * SLOT_SIZE);
const PROTOCOLS: [ProtocolKind; 4] =
    [ProtocolKind::None, ProtocolKind::FileLock, ProtocolKind::VmaLock, ProtocolKind::FileTables];

/// An operation said that there was no memory.
struct Failed;

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        assert!(matches!(error, Error::NoMemory | Error::NoSpace), "{error}");
        Failed
    }
}

impl From<OutOfMemory> for Failed {
    fn from(_: OutOfMemory) -> Failed {
        Failed
    }
}

impl From<Signal> for Failed {
    fn from(signal: Signal) -> Failed {
        assert!(matches!(signal, Signal::OutOfMemory | Signal::Bus), "{signal:?}");
        Failed
    }
}

type Outcome = Result<(), Failed>;

struct World {
    machine: SimMachine,
    hugetlb: Arc<Hugetlb<SimMachine>>,
}

impl World {
    fn new(protocol: ProtocolKind) -> World {
        let machine = SimMachine::new(2, 512, 2 * POOL as usize, 0);
        let hugetlb = machine.hugetlb(Config { default_size: PageSize::Size2M, protocol });
        let world = World { machine, hugetlb };
        assert_eq!(world.hugetlb.pool(PageSize::Size2M).set_persistent(POOL, || false), POOL);
        world
    }

    fn file(&self, slots: u64) -> Result<Arc<File<SimMachine>>, Failed> {
        Ok(self.hugetlb.anonymous_file(PageSize::Size2M, slots * SLOT_SIZE)?)
    }

    fn process(&self) -> Result<Process, Failed> {
        self.machine.process().ok_or(Failed)
    }

    /// All that must be as before.
    fn counters(&self) -> impl PartialEq + std::fmt::Debug {
        let (pool, sharing) = (self.hugetlb.pool(PageSize::Size2M).statistics(), self.hugetlb.sharing());
        (
            [pool.total, pool.free, pool.reserved, pool.surplus],
            [sharing.tables, sharing.attachments, sharing.reached],
            (self.machine.tables_in_use(), self.machine.huge_in_use(PageSize::Size2M)),
        )
    }

    fn check(&self, files: &[&Arc<File<SimMachine>>], processes: &[&Process]) {
        self.machine.check().unwrap();
        files.iter().for_each(|file| file.check_tables().unwrap());
        let mut round = CheckRound::new(&self.hugetlb);
        processes.iter().for_each(|process| process.check(&mut round).unwrap());
        round.check_counts().unwrap();
        self.hugetlb.pool(PageSize::Size2M).check().unwrap();
    }
}

/// Runs the scenario under each protocol with each of its allocations failing.
fn each_allocation_fails(scenario: impl Fn(&World) -> Outcome) {
    for protocol in PROTOCOLS {
        let world = World::new(protocol);
        let before = world.counters();
        let mut failures = 0;
        for nth in 1.. {
            world.machine.fail_allocation(nth);
            let outcome = scenario(&world);
            let has_failed = world.machine.fail_allocation(0) == 0;
            assert_eq!(world.counters(), before, "{protocol:?}: after failure {nth} ({})", outcome.is_err());
            world.machine.check().unwrap();
            assert!(scenario(&world).is_ok(), "{protocol:?}: without a failure, after failure {nth}");
            assert_eq!(world.counters(), before, "{protocol:?}: at the end of {nth}");
            if !has_failed {
                break;
            }
            failures += u64::from(outcome.is_err());
        }
        assert!(failures > 0, "{protocol:?}: no failure was told of");
    }
}

#[test]
fn shared_mappings_and_faults() {
    each_allocation_fails(|world| {
        let (file, first, second) = (world.file(2)?, world.process()?, world.process()?);
        for (process, offset) in [(&first, 0), (&second, 0), (&second, 8 * SLOT_SIZE)] {
            process.map(&file, HERE + offset, 2 * SLOT_SIZE, 0, SHARED)?;
        }
        let result = (0..4).try_for_each(|page| {
            first.store(0, HERE + page * SLOT_SIZE / 2, page + 1)?;
            assert_eq!(second.load(1, HERE + page * SLOT_SIZE / 2)?, page + 1);
            assert_eq!(second.load(1, HERE + (8 * SLOT_SIZE + page * SLOT_SIZE / 2))?, page + 1);
            Ok(())
        });
        world.check(&[&file], &[&first, &second]);
        result
    });
}

#[test]
fn windows_of_512_gib() {
    each_allocation_fails(|world| {
        let (file, first, second) = (world.file(512)?, world.process()?, world.process()?);
        let wide = VirtAddr(4 * 512 * SLOT_SIZE);
        first.map(&file, wide, 512 * SLOT_SIZE, 0, SHARED)?;
        first.store(0, wide + 3 * SLOT_SIZE, 3)?;
        second.map(&file, wide, 512 * SLOT_SIZE, 0, SHARED)?;
        let result = (|| {
            assert_eq!(second.load(1, wide + 3 * SLOT_SIZE)?, 3);
            second.store(1, wide + 9 * SLOT_SIZE, 9)?;
            // A part that permits less leaves the window.
            second.protect(wide + 3 * SLOT_SIZE..wide + 4 * SLOT_SIZE, Protection::READ)?;
            assert_eq!(second.load(1, wide + 3 * SLOT_SIZE)?, 3);
            assert_eq!(first.load(0, wide + 9 * SLOT_SIZE)?, 9);
            file.fallocate(FallocateMode::PunchHole, 0, 4 * SLOT_SIZE, || false)?;
            assert_eq!(first.load(0, wide + 3 * SLOT_SIZE)?, 0);
            Ok(())
        })();
        world.check(&[&file], &[&first, &second]);
        result
    });
}

#[test]
fn private_copies_over_generations() {
    each_allocation_fails(|world| {
        let (file, parent) = (world.file(1)?, world.process()?);
        parent.map(&file, HERE, 4 * SIZE, 0, PRIVATE)?;
        (0..3).try_for_each(|page| parent.store(0, HERE + page * SIZE, 10 + page))?;
        let child = parent.fork().ok_or(Failed)?;
        let grandchild = child.fork().ok_or(Failed)?;
        let result = (|| {
            child.store(1, HERE, 20)?;
            parent.store(0, HERE + SIZE, 30)?;
            let seen = |process: &Process, page: u64| process.load(1, HERE + page * SIZE);
            assert_eq!((seen(&parent, 0)?, seen(&child, 0)?, seen(&grandchild, 0)?), (10, 20, 10));
            assert_eq!((seen(&parent, 1)?, seen(&child, 1)?), (30, 11));
            child.discard(HERE..HERE + SIZE)?;
            assert_eq!(seen(&child, 0)?, 0);
            Ok(())
        })();
        world.check(&[&file], &[&parent, &child, &grandchild]);
        result
    });
}

#[test]
fn parts_of_mappings() {
    each_allocation_fails(|world| {
        let (file, process, neighbour) = (world.file(2)?, world.process()?, world.process()?);
        process.map(&file, HERE, 2 * SLOT_SIZE, 0, SHARED)?;
        neighbour.map(&file, HERE, 2 * SLOT_SIZE, 0, SHARED)?;
        let result = (|| {
            (0..4).try_for_each(|page| neighbour.store(1, HERE + page * SIZE, page + 1))?;
            process.protect(HERE + SIZE..HERE + 2 * SIZE, Protection::READ)?;
            process.unmap(HERE + 2 * SIZE..HERE + 3 * SIZE)?;
            assert_eq!(process.load(0, HERE + SIZE)?, 2);
            assert_eq!(process.load(0, HERE + 3 * SIZE)?, 4);
            process.move_to(HERE + 3 * SIZE, HERE + 8 * SLOT_SIZE)?;
            assert_eq!(process.load(0, HERE + 8 * SLOT_SIZE)?, 4);
            let child = process.fork().ok_or(Failed)?;
            assert_eq!(child.load(1, HERE)?, 1);
            Ok(())
        })();
        world.check(&[&file], &[&process, &neighbour]);
        result
    });
}

#[test]
fn parts_of_private_mappings() {
    each_allocation_fails(|world| {
        let (file, process) = (world.file(1)?, world.process()?);
        process.map(&file, HERE, 6 * SIZE, 0, MapOptions { no_reserve: false, ..PRIVATE })?;
        let result = (|| {
            (0..5).try_for_each(|page| process.store(0, HERE + page * SIZE, 10 + page))?;
            let child = process.fork().ok_or(Failed)?;
            // One copy is the parent's alone, one has lost its page to the child, and their promises differ.
            process.store(0, HERE, 20)?;
            process.discard(HERE..HERE + 2 * SIZE)?;
            process.protect(HERE + 2 * SIZE..HERE + 3 * SIZE, Protection::READ)?;
            process.unmap(HERE + 3 * SIZE..HERE + 4 * SIZE)?;
            let seen = |page: u64| process.load(0, HERE + page * SIZE);
            assert_eq!((seen(0)?, seen(1)?, seen(2)?, seen(4)?), (0, 0, 12, 14));
            assert_eq!((child.load(1, HERE)?, child.load(1, HERE + 3 * SIZE)?), (10, 13));
            Ok(())
        })();
        world.check(&[&file], &[&process]);
        result
    });
}

#[test]
fn reservations_and_sizes() {
    each_allocation_fails(|world| {
        let (file, process) = (world.file(1)?, world.process()?);
        file.fallocate(FallocateMode::Allocate, 0, 3 * SIZE, || false)?;
        process.map(&file, HERE, 6 * SIZE, 0, RESERVED)?;
        let result = (|| {
            (0..6).try_for_each(|page| process.store(0, HERE + page * SIZE, page))?;
            file.truncate(2 * SIZE)?;
            assert_eq!(process.load(1, HERE + SIZE)?, 1);
            file.truncate(SLOT_SIZE)?;
            file.fallocate(FallocateMode::PunchHole, 0, SIZE, || false)?;
            assert_eq!(process.load(1, HERE)?, 0);
            Ok(())
        })();
        world.check(&[&file], &[&process]);
        result
    });
}

#[test]
fn pools_grow_as_far_as_they_can() {
    let world = World::new(ProtocolKind::FileTables);
    let pool = world.hugetlb.pool(PageSize::Size2M);
    for nth in 1..40 {
        world.machine.fail_allocation(nth);
        let got = pool.set_persistent(POOL + 16, || false);
        let has_failed = world.machine.fail_allocation(0) == 0;
        assert!(if has_failed { (POOL..POOL + 16).contains(&got) } else { got == POOL + 16 }, "{nth}: {got}");
        world.check(&[], &[]);
        assert_eq!(pool.set_persistent(POOL + 16, || false), POOL + 16);
        assert_eq!(pool.set_persistent(POOL, || false), POOL);
    }
    assert_eq!(world.machine.huge_in_use(PageSize::Size2M), POOL as usize);
}
