//! Tables above those of leaves: a mapping that fills a PGD entry, attached by one store.
//!
//! Under `file-tables` it leads to a PUD table of the file, whose entries lead to the tables of leaves. The other protocols have
//! a PUD table of the host there; the models hold for them as well.

use hugetlb::{FallocateMode, Protection, ProtocolKind, SLOT_SIZE, VirtAddr};

use crate::{PAGE, SHARED, Signal, WIDE, World, stamp};

const LENGTH: u64 = 4 * SLOT_SIZE;
/// The first page of the second slot.
const NEXT: VirtAddr = VirtAddr(WIDE.0 + SLOT_SIZE);
const NEXT_PAGE: u64 = SLOT_SIZE / PAGE;

/// Processes that map the whole of the first file behind [`WIDE`].
fn world(protocol: ProtocolKind, processes: usize) -> World {
    let world = World::new(protocol, processes);
    world.files[0].truncate(LENGTH).unwrap();
    for process in &world.processes {
        process.map(&world.files[0], WIDE, LENGTH, 0, SHARED).unwrap();
    }
    world
}

/// As [`world`]; the first process has written page 0, and all are attached.
fn attached(protocol: ProtocolKind, processes: usize) -> World {
    let world = world(protocol, processes);
    for process in &world.processes {
        process.store(0, WIDE, stamp(0, 0)).unwrap();
    }
    if protocol == ProtocolKind::FileTables {
        let sharing = world.hugetlb.sharing();
        assert_eq!(
            (sharing.tables, sharing.attachments),
            (2, processes as u64),
            "the PUD table is not shared"
        );
    }
    world
}

/// An access finds what was stored, or a page that came after a punch.
fn stored_or_fresh(world: &World, process: usize, cpu: usize, address: VirtAddr, stored: u64) {
    let seen = world.processes[process].load(cpu, address);
    assert!(seen == Ok(stored) || seen == Ok(0), "{seen:x?}");
}

/// Two processes attach, and have the first tables of leaves made below one table.
pub(super) fn two_first_faults_below_a_wide_table(protocol: ProtocolKind) {
    world(protocol, 2).race([
        |world| {
            world.processes[0].store(0, WIDE, 1).unwrap();
            assert_eq!(world.processes[0].load(0, WIDE), Ok(1));
        },
        |world| {
            world.processes[1].store(1, NEXT, 2).unwrap();
            assert_eq!(world.processes[1].load(1, NEXT), Ok(2));
        },
    ]);
}

/// A page goes while another process has its table of leaves made.
pub(super) fn wide_fault_against_punch(protocol: ProtocolKind) {
    let world = attached(protocol, 2);
    world.files[0].fallocate(FallocateMode::Allocate, NEXT.0 - WIDE.0, PAGE, || false).unwrap();
    world.race([|world| world.punch(NEXT_PAGE, 1), |world| stored_or_fresh(world, 1, 1, NEXT, 0)]);
}

/// The file ends before a slot in which a process faults for the first time.
pub(super) fn wide_fault_against_truncate(protocol: ProtocolKind) {
    attached(protocol, 1).race([
        |world| {
            world.files[0].truncate(SLOT_SIZE).unwrap();
            assert_eq!(world.processes[0].load(0, NEXT), Err(Signal::Bus), "a page behind the end is seen");
        },
        |world| {
            let seen = world.processes[0].load(1, NEXT);
            assert!(seen == Ok(0) || seen == Err(Signal::Bus), "{seen:x?}");
        },
    ]);
}

/// A mapping leaves the wide table while another thread of the process faults below it.
pub(super) fn wide_fault_against_leaving(protocol: ProtocolKind) {
    attached(protocol, 1).race([
        |world| world.processes[0].store(0, NEXT, 2).unwrap(),
        |world| {
            world.processes[0].leave_wide();
            assert_eq!(world.processes[0].load(1, WIDE), Ok(stamp(0, 0)));
        },
    ]);
}

/// A child attaches while a page of the file goes.
pub(super) fn wide_fault_against_fork_and_punch(protocol: ProtocolKind) {
    attached(protocol, 1).race([
        |world| {
            let child = world.processes[0].fork();
            let seen = child.load(0, WIDE);
            assert!(seen == Ok(stamp(0, 0)) || seen == Ok(0), "{seen:x?}");
            world.keep(child);
        },
        |world| world.punch(0, 1),
    ]);
}

/// A part of a wide mapping goes, which leaves the table, while another process faults below it.
pub(super) fn wide_fault_against_munmap_of_a_part(protocol: ProtocolKind) {
    attached(protocol, 2).race([
        |world| {
            world.processes[0].unmap(NEXT..WIDE + LENGTH);
            assert_eq!(world.processes[0].load(0, NEXT), Err(Signal::Segv), "what was unmapped is there");
            assert_eq!(world.processes[0].load(0, WIDE), Ok(stamp(0, 0)));
        },
        |world| world.processes[1].store(1, NEXT, 2).unwrap(),
    ]);
}

/// The last process of a wide table exits while another one attaches, for loads only.
pub(super) fn wide_attach_against_exit(protocol: ProtocolKind) {
    let world = attached(protocol, 1).with_processes(1);
    world.race([
        |world| world.processes[0].exit(),
        |world| {
            let process = &world.processes[1];
            process.map(&world.files[0], WIDE, LENGTH, 0, SHARED).unwrap();
            process.protect(WIDE..WIDE + LENGTH, Protection::READ);
            assert_eq!(process.load(1, WIDE), Ok(stamp(0, 0)));
            assert_eq!(process.store(1, WIDE, 3), Err(Signal::Segv));
        },
    ]);
}
