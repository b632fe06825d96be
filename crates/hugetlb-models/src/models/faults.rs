//! Faults against whoever takes pages and tables away.

use hugetlb::{FallocateMode, MapOptions, Protection, ProtocolKind, SLOT_SIZE, VirtAddr};

use crate::{PAGE, SHARED, SLOT, Signal, World, stamp};

const NEXT: VirtAddr = VirtAddr(SLOT.0 + PAGE);

/// The first process faults on its second page.
fn store_next(world: &World) {
    world.processes[0].store(0, NEXT, stamp(0, 1)).unwrap();
    assert_eq!(world.processes[0].load(0, NEXT), Ok(stamp(0, 1)));
}

/// A fault of one thread, MADV_DONTNEED of the next, and then the only other sharer exits: the table goes while the fault
/// is under way, unless something keeps it.
pub(super) fn fault_against_discard(protocol: ProtocolKind) {
    World::sharing(protocol, 2).race([store_next, |world| {
        world.processes[0].discard(SLOT..SLOT + SLOT_SIZE).unwrap();
        world.processes[1].exit();
    }]);
}

/// A sharer goes while another faults into the table.
pub(super) fn fault_against_munmap(protocol: ProtocolKind) {
    World::sharing(protocol, 2).race([
        |world| {
            world.processes[1].store(0, NEXT, stamp(0, 1)).unwrap();
            assert_eq!(world.processes[1].load(0, NEXT), Ok(stamp(0, 1)));
        },
        |world| world.processes[0].exit(),
    ]);
}

/// A page that is there is taken away, and one that a fault is bringing.
pub(super) fn fault_against_punch(protocol: ProtocolKind) {
    World::sharing(protocol, 2).race([
        |world| {
            world.processes[1].store(0, NEXT, stamp(0, 1)).unwrap();
            let value = world.processes[1].load(0, NEXT).unwrap();
            assert!(value == 0 || value == stamp(0, 1), "{value:#x}");
            let value = world.processes[1].load(0, SLOT).unwrap();
            assert!(value == 0 || value == stamp(0, 0), "{value:#x}");
        },
        |world| world.punch(0, 2),
    ]);
}

/// As [`fault_against_discard`], with a hole punch elsewhere in the file that detaches the faulting mapping.
pub(super) fn fault_against_punch_and_exit(protocol: ProtocolKind) {
    World::sharing(protocol, 2).race([store_next, |world| {
        world.punch(2, 1);
        world.processes[1].exit();
    }]);
}

/// As [`fault_against_discard`], with a truncation behind the page.
pub(super) fn fault_against_truncate_and_exit(protocol: ProtocolKind) {
    World::sharing(protocol, 2).race([store_next, |world| {
        world.files[0].truncate(2 * PAGE).unwrap();
        world.processes[1].exit();
    }]);
}

/// No page appears behind the end of the file, and all accesses there are SIGBUS.
pub(super) fn fault_against_truncate(protocol: ProtocolKind) {
    truncate(World::sharing(protocol, 2));
}

/// As [`fault_against_truncate`], with promises that must come back.
pub(super) fn fault_against_truncate_with_promises(protocol: ProtocolKind) {
    let world = World::new(protocol, 2);
    for process in &world.processes {
        let options = MapOptions { no_reserve: false, ..SHARED };
        process.map(&world.files[0], SLOT, SLOT_SIZE, 0, options).unwrap();
    }
    truncate(world);
}

/// A file is as long again when a fault brings the page that it took before: the promise was deleted in between.
pub(super) fn fault_against_two_truncations(protocol: ProtocolKind) {
    let world = World::new(protocol, 2);
    let options = MapOptions { no_reserve: false, ..SHARED };
    world.processes[1].map(&world.files[0], SLOT, SLOT_SIZE, 0, options).unwrap();
    world.race([
        |world| {
            let stored = world.processes[1].store(0, NEXT, stamp(0, 1));
            assert!(matches!(stored, Ok(()) | Err(Signal::Bus)), "{stored:?}");
        },
        |world| {
            world.files[0].truncate(0).unwrap();
            world.files[0].truncate(2 * PAGE).unwrap();
        },
    ]);
}

fn truncate(world: World) {
    world.race([
        |world| {
            let stored = world.processes[1].store(0, NEXT, stamp(0, 1));
            assert!(matches!(stored, Ok(()) | Err(Signal::Bus)), "{stored:?}");
            let loaded = world.processes[1].load(0, NEXT);
            assert!(
                matches!(loaded, Err(Signal::Bus)) || loaded == Ok(stamp(0, 1)),
                "a store that was made is lost in a truncation: {loaded:?}"
            );
        },
        |world| {
            world.files[0].truncate(0).unwrap();
            assert_eq!(world.processes[0].load(1, SLOT), Err(Signal::Bus));
            assert_eq!(world.files[0].statistics().pages, 0, "a page appeared behind the end");
        },
    ]);
}

/// A process unmaps one page of its slot while another faults into the table that they share.
pub(super) fn fault_against_split(protocol: ProtocolKind) {
    World::sharing(protocol, 2).race([
        |world| {
            world.processes[1].store(0, NEXT, stamp(0, 1)).unwrap();
            assert_eq!(world.processes[1].load(0, NEXT), Ok(stamp(0, 1)));
        },
        |world| {
            world.processes[0].unmap(NEXT..NEXT + PAGE);
            assert_eq!(world.processes[0].load(1, NEXT), Err(Signal::Segv));
            assert_eq!(world.processes[0].load(1, SLOT), Ok(stamp(0, 0)));
        },
    ]);
}

/// A process loses and wins the right to store; the other sharer keeps it.
pub(super) fn fault_against_protect(protocol: ProtocolKind) {
    World::sharing(protocol, 2).race([
        |world| {
            world.processes[1].store(1, NEXT, stamp(0, 1)).unwrap();
            world.processes[1].store(1, SLOT, stamp(0, 0)).unwrap();
        },
        |world| {
            let process = &world.processes[0];
            process.protect(SLOT..SLOT + SLOT_SIZE, Protection::READ);
            // CPU 0 had stored there before.
            assert_eq!(process.store(0, SLOT, 5), Err(Signal::Segv), "a right that was lost is used");
            assert_eq!(process.load(0, SLOT), Ok(stamp(0, 0)));
            process.protect(SLOT..SLOT + SLOT_SIZE, crate::RW);
            assert_eq!(process.store(0, SLOT, stamp(0, 0)), Ok(()));
        },
    ]);
}

/// A child begins and ends while its parent's partner faults.
pub(super) fn fault_against_fork(protocol: ProtocolKind) {
    World::sharing(protocol, 2).race([
        |world| world.processes[0].store(0, NEXT, stamp(0, 1)).unwrap(),
        |world| {
            let child = world.processes[1].fork();
            assert_eq!(child.load(1, SLOT), Ok(stamp(0, 0)));
            let value = child.load(1, NEXT).unwrap();
            assert!(value == 0 || value == stamp(0, 1), "{value:#x}");
        },
    ]);
}

/// The last attachment goes while a new one comes.
pub(super) fn fault_against_reclaim(protocol: ProtocolKind) {
    let world = World::sharing(protocol, 1);
    let world = world.with_processes(1);
    world.race([
        |world| world.processes[0].exit(),
        |world| {
            let process = &world.processes[1];
            process.map(&world.files[0], SLOT, SLOT_SIZE, 0, SHARED).unwrap();
            assert_eq!(process.load(1, SLOT), Ok(stamp(0, 0)));
            process.store(1, NEXT, stamp(0, 1)).unwrap();
            assert_eq!(process.load(1, NEXT), Ok(stamp(0, 1)));
        },
    ]);
}

/// Two processes fault on the first page of an empty file: one page, one table.
pub(super) fn two_first_faults(protocol: ProtocolKind) {
    let world = World::new(protocol, 2);
    for process in &world.processes {
        process.map(&world.files[0], SLOT, SLOT_SIZE, 0, SHARED).unwrap();
    }
    world.race([
        |world| {
            world.processes[0].store(0, SLOT, stamp(0, 0)).unwrap();
            assert_eq!(world.processes[0].load(0, SLOT), Ok(stamp(0, 0)));
        },
        |world| {
            world.processes[1].store(1, SLOT, stamp(0, 0)).unwrap();
            world.processes[1].store(1, NEXT, stamp(0, 1)).unwrap();
            assert_eq!(world.processes[1].load(1, SLOT), Ok(stamp(0, 0)));
        },
    ]);
}

/// Two threads of one process make the first faults in a slot.
pub(super) fn first_faults_of_one_process(protocol: ProtocolKind) {
    let world = World::new(protocol, 1);
    world.processes[0].map(&world.files[0], SLOT, SLOT_SIZE, 0, SHARED).unwrap();
    world.race([
        |world| world.processes[0].store(0, SLOT, stamp(0, 0)).unwrap(),
        |world| {
            world.processes[0].store(1, NEXT, stamp(0, 1)).unwrap();
            assert_eq!(world.processes[0].load(1, NEXT), Ok(stamp(0, 1)));
        },
    ]);
}

const PRIVATE: MapOptions = MapOptions { shared: false, ..SHARED };

/// A page that nobody maps goes while it is mapped for the first time.
pub(super) fn first_fault_against_punch(protocol: ProtocolKind) {
    let world = World::new(protocol, 1);
    world.files[0].fallocate(FallocateMode::Allocate, 0, PAGE, || false).unwrap();
    world.processes[0].map(&world.files[0], SLOT, SLOT_SIZE, 0, SHARED).unwrap();
    world.race([|world| assert_eq!(world.processes[0].load(0, SLOT), Ok(0)), |world| world.punch(0, 1)]);
}

/// A child sees its parent's page as it was at the fork.
pub(super) fn store_against_fork_of_private_pages(protocol: ProtocolKind) {
    let world = World::new(protocol, 1);
    world.processes[0].map(&world.files[0], SLOT, PAGE, 0, PRIVATE).unwrap();
    world.processes[0].store(0, SLOT, 1).unwrap();
    world.race([
        |world| {
            world.processes[0].store(0, SLOT, 2).unwrap();
            assert_eq!(world.processes[0].load(0, SLOT), Ok(2), "the child writes into the parent's page");
        },
        |world| {
            let child = world.processes[0].fork();
            let first = child.load(1, SLOT).unwrap();
            assert!(first == 1 || first == 2, "{first:#x}");
            assert_eq!(child.load(1, SLOT), Ok(first), "the parent writes into the child's page");
            child.store(1, SLOT, 3).unwrap();
            assert_eq!(child.load(1, SLOT), Ok(3));
        },
    ]);
}

/// A child copies a page while its parent, which has the page alone from then on, stores to it: no CPU of the child sees the
/// parent's store.
pub(super) fn private_store_against_the_childs_copy(protocol: ProtocolKind) {
    let world = World::new(protocol, 1);
    world.processes[0].map(&world.files[0], SLOT, PAGE, 0, PRIVATE).unwrap();
    world.processes[0].store(0, SLOT, 1).unwrap();
    let child = world.processes[0].fork();
    // CPU 1 holds the page that both share.
    assert_eq!(child.load(1, SLOT), Ok(1));
    world.with(child).race([
        |world| world.processes[1].store(0, SLOT, 3).unwrap(),
        |world| {
            world.processes[0].store(0, SLOT, 2).unwrap();
            let seen = world.processes[1].load(1, SLOT).unwrap();
            assert!(seen == 1 || seen == 3, "the child sees its parent's store");
        },
    ]);
}

/// As [`private_store_against_the_childs_copy`], with a child that goes.
pub(super) fn private_store_against_exit_of_the_child(protocol: ProtocolKind) {
    let world = World::new(protocol, 1);
    world.processes[0].map(&world.files[0], SLOT, PAGE, 0, PRIVATE).unwrap();
    world.processes[0].store(0, SLOT, 1).unwrap();
    let child = world.processes[0].fork();
    assert_eq!(child.load(1, SLOT), Ok(1));
    world.with(child).race([
        |world| world.processes[1].exit(),
        |world| {
            world.processes[0].store(0, SLOT, 2).unwrap();
            let seen = world.processes[1].load(1, SLOT);
            assert!(seen == Ok(1) || seen == Err(Signal::Segv), "the child sees its parent's store");
        },
    ]);
}

/// A hole punch takes the file's page and a copy of it.
pub(super) fn private_fault_against_punch(protocol: ProtocolKind) {
    let world = World::new(protocol, 1);
    world.files[0].fallocate(FallocateMode::Allocate, 0, PAGE, || false).unwrap();
    world.processes[0].map(&world.files[0], SLOT, PAGE, 0, PRIVATE).unwrap();
    world.race([
        |world| {
            assert_eq!(world.processes[0].load(0, SLOT), Ok(0));
            world.processes[0].store(0, SLOT, 7).unwrap();
            let value = world.processes[0].load(0, SLOT).unwrap();
            assert!(value == 0 || value == 7, "{value:#x}");
        },
        |world| world.punch(0, 1),
    ]);
}

/// Two threads of a process store into a page that both read before: what one has stored the other's CPU sees.
pub(super) fn private_store_against_a_reader(protocol: ProtocolKind) {
    let world = World::new(protocol, 1);
    world.files[0].fallocate(FallocateMode::Allocate, 0, PAGE, || false).unwrap();
    world.processes[0].map(&world.files[0], SLOT, PAGE, 0, PRIVATE).unwrap();
    // CPU 1 holds the file's page.
    assert_eq!(world.processes[0].load(1, SLOT), Ok(0));
    world.race([
        |world| world.processes[0].store(0, SLOT, 7).unwrap(),
        |world| {
            world.processes[0].store(0, SLOT, 7).unwrap();
            assert_eq!(world.processes[0].load(1, SLOT), Ok(7), "a reader sees the origin of a copy");
        },
    ]);
}

/// A CPU walks into a leaf that a sharer's fault has just written, without a lock: the page's zeroes come first.
pub(super) fn fault_against_a_walk(protocol: ProtocolKind) {
    World::sharing(protocol, 2).race([
        |world| world.processes[1].store(0, NEXT, stamp(0, 1)).unwrap(),
        |world| {
            let value = world.processes[0].load(1, NEXT).unwrap();
            assert!(value == 0 || value == stamp(0, 1), "{value:#x} before the zeroes");
        },
    ]);
}
