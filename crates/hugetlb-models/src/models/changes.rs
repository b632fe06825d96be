//! Those who take away, against each other and against newcomers.

use hugetlb::{FallocateMode, MapOptions, Protection, ProtocolKind, SLOT_SIZE, VirtAddr};

use crate::{PAGE, SHARED, SLOT, Signal, World, stamp};

const NEXT: VirtAddr = VirtAddr(SLOT.0 + PAGE);

fn one_of(world: &World, process: usize, cpu: usize, address: VirtAddr, stored: u64) {
    let value = world.processes[process].load(cpu, address).unwrap();
    assert!(value == 0 || value == stored, "{value:#x}");
}

/// A mapping is made while a page goes: a new table must not get the page that is about to go.
pub(super) fn punch_against_mmap(protocol: ProtocolKind) {
    World::sharing(protocol, 1).with_processes(1).race([
        |world| world.punch(0, 1),
        |world| {
            // At another phase: a table of its own.
            world.processes[1].map(&world.files[0], NEXT, 2 * PAGE, 0, SHARED).unwrap();
            one_of(world, 1, 1, NEXT, stamp(0, 0));
        },
    ]);
}

/// A mapping whose TLB holds the page goes while the page goes.
pub(super) fn punch_against_munmap(protocol: ProtocolKind) {
    World::sharing(protocol, 2).race([|world| world.punch(0, 1), |world| world.processes[0].exit()]);
}

/// As [`punch_against_munmap`], for a mapping that has entries in a table of the host under every protocol.
pub(super) fn punch_against_munmap_of_a_part(protocol: ProtocolKind) {
    let world = World::new(protocol, 1);
    world.processes[0].map(&world.files[1], SLOT + 2 * PAGE, PAGE, 0, SHARED).unwrap();
    world.processes[0].take_slot(SLOT);
    world.processes[0].map(&world.files[0], SLOT, PAGE, 0, SHARED).unwrap();
    world.processes[0].store(0, SLOT, stamp(0, 0)).unwrap();
    world.race([
        |world| world.punch(0, 1),
        |world| {
            one_of(world, 0, 1, SLOT, stamp(0, 0));
            world.processes[0].unmap(SLOT..SLOT + PAGE);
        },
    ]);
}

/// Something else comes into the slot of a mapping, which goes on in a table of the host, while its page goes.
pub(super) fn punch_against_a_neighbour(protocol: ProtocolKind) {
    let world = World::new(protocol, 1);
    world.processes[0].map(&world.files[0], SLOT, 2 * PAGE, 0, SHARED).unwrap();
    world.processes[0].store(0, SLOT, stamp(0, 0)).unwrap();
    world.race([
        |world| world.punch(0, 1),
        |world| {
            let process = &world.processes[0];
            process.map(&world.files[1], SLOT + 2 * PAGE, PAGE, 0, SHARED).unwrap();
            one_of(world, 0, 1, SLOT, stamp(0, 0));
            process.store(1, SLOT + 2 * PAGE, stamp(1, 0)).unwrap();
            assert_eq!(process.load(0, SLOT + 2 * PAGE), Ok(stamp(1, 0)));
        },
    ]);
}

/// The only mapping of a slot, which covers a part of it.
fn part(protocol: ProtocolKind, processes: usize) -> World {
    let world = World::new(protocol, processes);
    world.processes[0].map(&world.files[0], SLOT, 2 * PAGE, 0, SHARED).unwrap();
    world.processes[0].store(0, SLOT, stamp(0, 0)).unwrap();
    world
}

/// Base pages come into a slot while a mapping there faults.
pub(super) fn slot_taken_against_a_fault(protocol: ProtocolKind) {
    part(protocol, 1).race([
        |world| world.processes[0].store(0, NEXT, stamp(0, 1)).unwrap(),
        |world| {
            world.processes[0].take_slot(SLOT + 2 * PAGE);
            one_of(world, 0, 1, NEXT, stamp(0, 1));
            assert_eq!(world.processes[0].load(1, SLOT), Ok(stamp(0, 0)));
        },
    ]);
}

/// Base pages come into a slot for the first time while the first fault of its mapping attaches.
pub(super) fn slot_taken_against_the_first_fault(protocol: ProtocolKind) {
    let world = World::new(protocol, 1);
    let nothing = MapOptions { protection: Protection::empty(), ..SHARED };
    world.processes[0].map(&world.files[0], SLOT, 2 * PAGE, 0, nothing).unwrap();
    world.race([
        |world| {
            world.processes[0].protect(SLOT..SLOT + 2 * PAGE, Protection::READ);
            assert_eq!(world.processes[0].load(0, SLOT), Ok(0));
        },
        |world| world.processes[0].take_slot(SLOT + 2 * PAGE),
    ]);
}

/// Base pages come into a slot while the process forks.
pub(super) fn slot_taken_against_fork(protocol: ProtocolKind) {
    part(protocol, 1).race([
        |world| {
            let child = world.processes[0].fork();
            child.take_slot(SLOT + 2 * PAGE);
            assert_eq!(child.load(0, SLOT), Ok(stamp(0, 0)));
        },
        |world| {
            world.processes[0].take_slot(SLOT + 2 * PAGE);
            assert_eq!(world.processes[0].load(1, SLOT), Ok(stamp(0, 0)));
        },
    ]);
}

/// Two threads need a table in a slot at once, while its page goes.
pub(super) fn slot_taken_twice_against_punch(protocol: ProtocolKind) {
    part(protocol, 1).race([
        |world| world.punch(0, 1),
        |world| world.processes[0].take_slot(SLOT + 2 * PAGE),
        |world| {
            world.processes[0].take_slot(SLOT + 2 * PAGE);
            one_of(world, 0, 1, SLOT, stamp(0, 0));
        },
    ]);
}

/// Two processes have the pages of a file in different windows, and the file ends before them.
pub(super) fn truncate_against_two_windows(protocol: ProtocolKind) {
    let world = World::new(protocol, 2);
    world.processes[0].map(&world.files[0], SLOT, 2 * PAGE, 0, SHARED).unwrap();
    world.processes[1].map(&world.files[0], NEXT, PAGE, PAGE, SHARED).unwrap();
    world.processes[0].store(0, NEXT, stamp(0, 1)).unwrap();
    world.race([
        |world| {
            world.files[0].truncate(PAGE).unwrap();
            assert_eq!(world.processes[1].load(1, NEXT), Err(Signal::Bus), "a page behind the end is seen");
        },
        |world| {
            let seen = world.processes[0].load(0, NEXT);
            assert!([Ok(stamp(0, 1)), Ok(0), Err(Signal::Bus)].contains(&seen), "{seen:x?}");
        },
        |world| {
            let seen = world.processes[1].load(0, NEXT);
            assert!([Ok(stamp(0, 1)), Ok(0), Err(Signal::Bus)].contains(&seen), "{seen:x?}");
        },
    ]);
}

/// A mapping of more slots than are detached from at a time.
pub(super) fn a_large_mapping_goes_as_a_whole(protocol: ProtocolKind) {
    let world = World::new(protocol, 1);
    let file = world.hugetlb.anonymous_file(hugetlb::PageSize::Size2M, 3 * SLOT_SIZE).unwrap();
    world.processes[0].map(&file, SLOT, 3 * SLOT_SIZE, 0, SHARED).unwrap();
    for slot in 0..3 {
        world.processes[0].store(0, SLOT + slot * SLOT_SIZE, 1).unwrap();
    }
    world.processes[0].exit();
    let sharing = world.hugetlb.sharing();
    assert_eq!((sharing.tables, sharing.attachments), (0, 0), "a table outlives its mapping");
    drop(file);
    world.finish();
}

/// A mapping moves while its page goes.
pub(super) fn punch_against_move(protocol: ProtocolKind) {
    World::sharing(protocol, 1).race([
        |world| world.punch(0, 1),
        |world| {
            let to = SLOT + SLOT_SIZE;
            world.processes[0].move_to(SLOT, to).unwrap();
            one_of(world, 0, 1, to, stamp(0, 0));
            assert_eq!(world.processes[0].load(0, SLOT), Err(Signal::Segv));
        },
    ]);
}

/// A mapping is cut in two while the pages of both parts go.
pub(super) fn punch_against_split(protocol: ProtocolKind) {
    let world = World::sharing(protocol, 2);
    world.processes[1].store(1, NEXT, stamp(0, 1)).unwrap();
    world.race([
        |world| world.punch(0, 2),
        |world| {
            world.processes[0].protect(NEXT..NEXT + PAGE, Protection::READ);
            one_of(world, 0, 1, SLOT, stamp(0, 0));
            one_of(world, 0, 1, NEXT, stamp(0, 1));
            assert_eq!(world.processes[0].store(1, NEXT, 5), Err(Signal::Segv));
        },
    ]);
}

/// A page that was mapped again between the passes of a hole punch is in the table of a sharer behind the walk; a mapping
/// that the walk has passed adopts the table.
pub(super) fn punch_against_adoption(protocol: ProtocolKind) {
    let world = World::sharing(protocol, 2);
    world.processes[1].store(1, NEXT, stamp(0, 1)).unwrap();
    world.race([
        |world| world.punch(0, 1),
        |world| {
            one_of(world, 1, 1, SLOT, stamp(0, 0));
            assert_eq!(world.processes[0].load(1, NEXT), Ok(stamp(0, 1)));
        },
    ]);
}

/// A mapping changes its entries, alone as it believes, while another adopts the table.
pub(super) fn protect_against_adoption(protocol: ProtocolKind) {
    let world = World::sharing(protocol, 1).with_processes(1);
    world.processes[1].map(&world.files[0], SLOT, SLOT_SIZE, 0, SHARED).unwrap();
    world.race([
        |world| {
            world.processes[0].protect(SLOT..SLOT + SLOT_SIZE, Protection::READ);
            assert_eq!(
                world.processes[0].store(0, SLOT, 5),
                Err(Signal::Segv),
                "a right that was lost is used"
            );
        },
        |world| {
            world.processes[1].store(1, SLOT, stamp(0, 0)).unwrap();
            world.processes[1].store(1, NEXT, stamp(0, 1)).unwrap();
        },
    ]);
}

/// Who has seen the fresh page that comes to the place of one that was taken sees no old translation afterwards.
pub(super) fn fresh_page_against_old_translations(protocol: ProtocolKind) {
    let world = World::sharing(protocol, 2);
    assert_eq!(world.processes[1].load(1, SLOT), Ok(stamp(0, 0)));
    world.race([
        |world| world.punch(0, 1),
        |world| {
            if world.processes[1].load(1, SLOT) == Ok(0) {
                assert_eq!(world.processes[0].load(0, SLOT), Ok(0), "the page that was taken is still seen");
            }
        },
    ]);
}

/// As [`fresh_page_against_old_translations`], for a table that is made, with the page, while the page goes.
pub(super) fn fresh_page_against_a_new_table(protocol: ProtocolKind) {
    let world = World::sharing(protocol, 1).with_processes(1);
    // The page stays in the file; nobody has it, so no shootdown comes before it goes. mmap waits for the punch, mprotect
    // does not: it brings the table here.
    let nothing = MapOptions { protection: Protection::empty(), ..SHARED };
    world.processes[1].map(&world.files[0], SLOT, SLOT_SIZE, 0, nothing).unwrap();
    world.processes[0].exit();
    world.race([
        |world| world.punch(0, 1),
        |world| {
            let process = &world.processes[1];
            process.protect(SLOT..SLOT + SLOT_SIZE, Protection::READ);
            one_of(world, 1, 1, SLOT, stamp(0, 0));
            if process.load(0, SLOT) == Ok(0) {
                assert_eq!(process.load(1, SLOT), Ok(0), "the page that was taken is still seen");
            }
        },
    ]);
}

/// A table goes, its frame becomes the table of another file, and a fault that began before is still under way.
pub(super) fn table_reuse_against_a_fault(protocol: ProtocolKind) {
    World::sharing(protocol, 2).with_processes(1).race([
        |world| world.processes[0].store(0, NEXT, stamp(0, 1)).unwrap(),
        |world| {
            world.processes[0].discard(SLOT..SLOT + SLOT_SIZE).unwrap();
            world.processes[1].exit();
        },
        |world| {
            let process = &world.processes[2];
            process.map(&world.files[1], SLOT, SLOT_SIZE, 0, SHARED).unwrap();
            process.store(1, SLOT, stamp(1, 0)).unwrap();
            assert_eq!(process.load(1, SLOT), Ok(stamp(1, 0)));
            assert_eq!(process.load(1, NEXT), Ok(0), "a page of another file");
        },
    ]);
}

/// Pages are allocated ahead while a mapping comes and one is there: neither misses a page.
pub(super) fn allocate_against_mmap(protocol: ProtocolKind) {
    World::sharing(protocol, 1).with_processes(1).race([
        |world| world.files[0].fallocate(FallocateMode::Allocate, PAGE, PAGE, || false).unwrap(),
        |world| {
            let options = MapOptions { protection: Protection::READ, ..SHARED };
            world.processes[1].map(&world.files[0], NEXT, 2 * PAGE, 0, options).unwrap();
            assert_eq!(world.processes[1].load(1, NEXT + PAGE), Ok(0));
            assert_eq!(world.processes[0].load(0, NEXT), Ok(0));
        },
    ]);
}
