//! Bugs that this code's ancestors in Linux had, each as the model that shows that we do not.

use hugetlb::{FallocateMode, MapOptions, Protection, ProtocolKind, SLOT_SIZE, VirtAddr};

use crate::{PAGE, SHARED, SLOT, Signal, World, stamp};

const NEXT: VirtAddr = VirtAddr(SLOT.0 + PAGE);

/// Linux counted the sharers of a table in its frame's reference count, which whoever looks at the frame raises for a
/// moment. Here somebody looks (a partner search that fails for want of the same rights) while the last sharer goes.
pub(super) fn cve_2024_57883_share_count_is_no_reference_count(protocol: ProtocolKind) {
    let world = World::sharing(protocol, 1).with_processes(1);
    let reading = MapOptions { protection: Protection::READ, ..SHARED };
    world.processes[1].map(&world.files[0], SLOT, SLOT_SIZE, 0, reading).unwrap();
    world.race([
        |world| world.processes[0].exit(),
        |world| assert_eq!(world.processes[1].load(1, SLOT), Ok(stamp(0, 0))),
    ]);
}

/// Linux unshared a table before it split the mapping, and let go of the locks in between: a fault shared it again, and
/// the split mapping had a table with entries outside of it. Here a partner faults and a hole is punched meanwhile.
pub(super) fn cve_2025_38084_shared_again_before_the_split(protocol: ProtocolKind) {
    World::sharing(protocol, 2).race([
        |world| {
            world.processes[1].store(0, NEXT, stamp(0, 1)).unwrap();
            world.punch(1, 1);
        },
        |world| {
            let process = &world.processes[0];
            process.unmap(NEXT..SLOT + SLOT_SIZE);
            assert_eq!(process.load(1, NEXT), Err(Signal::Segv), "what was unmapped is still there");
            assert_eq!(process.load(1, SLOT), Ok(stamp(0, 0)));
            assert_eq!(process.load(1, NEXT), Err(Signal::Segv), "what was unmapped is there again");
        },
    ]);
}

/// In Linux a walker without locks (get_user_pages_fast) could be in a table while it was unshared, freed and used for
/// something else. Here the frame becomes the table of another file while a walker is in it, as soon as it may.
pub(super) fn cve_2025_38085_lockless_walker_in_a_table_that_changed_hands(protocol: ProtocolKind) {
    reused_under_a_walker(World::sharing(protocol, 1));
}

/// The same on a machine that reuses a table at once: it has to fail.
pub(super) fn walker_without_grace(protocol: ProtocolKind) {
    let world = World::sharing(protocol, 1);
    world.machine.forget_grace_periods();
    reused_under_a_walker(world);
}

fn reused_under_a_walker(world: World) {
    let world = world.with_processes(1);
    world.files[1].fallocate(FallocateMode::Allocate, 0, PAGE, || false).unwrap();
    world.race([
        |world| {
            let found = world.machine.walk(0, world.processes[0].space(), SLOT);
            // The first page that was taken from the pool is the one of the first file.
            assert!(found.is_none() || found == Some(world.first_page), "a walker finds {found:?}");
        },
        |world| {
            world.processes[0].exit();
            world.processes[1].map(&world.files[1], SLOT, SLOT_SIZE, 0, SHARED).unwrap();
            assert_eq!(world.processes[1].load(1, SLOT), Ok(0));
        },
    ]);
}

/// In Linux some who asked whether a table is shared looked at the wrong counter and never heard yes; they changed the
/// entries of others. Here one loses a right, alone or not, while another shares the table.
pub(super) fn cve_2026_23100_sharing_not_noticed_by_a_reader(protocol: ProtocolKind) {
    World::sharing(protocol, 2).race([
        |world| {
            world.processes[0].protect(SLOT..SLOT + SLOT_SIZE, Protection::READ);
            assert_ne!(world.processes[0].translate(SLOT), Some(true));
        },
        |world| {
            world.processes[1].store(1, SLOT, stamp(0, 0)).unwrap();
            assert_eq!(world.processes[1].translate(SLOT), Some(true), "another's right was taken");
        },
    ]);
}

/// In Linux the mapping's lock hung off the VMA: a truncation that had found the VMA held or awaited a lock that an unmap
/// freed. Here the lock is a part of what the walk holds; and a walk that comes late finds a mapping without pages, so that
/// it leaves alone what has come to its place.
pub(super) fn truncation_holds_a_lock_that_is_freed(protocol: ProtocolKind) {
    let world = World::new(protocol, 1);
    // With a neighbour, so that it is on the file's list and its entries are in a table of the host.
    world.processes[0].map(&world.files[1], SLOT + 2 * PAGE, PAGE, PAGE, SHARED).unwrap();
    world.processes[0].take_slot(SLOT);
    world.processes[0].map(&world.files[0], SLOT, PAGE, 0, SHARED).unwrap();
    world.processes[0].store(0, SLOT, stamp(0, 0)).unwrap();
    world.race([
        |world| world.files[0].truncate(0).unwrap(),
        |world| {
            let process = &world.processes[0];
            process.unmap(SLOT..SLOT + PAGE);
            process.map(&world.files[1], SLOT, PAGE, 0, SHARED).unwrap();
            // On the CPU that may hold the old translation.
            process.store(0, SLOT, stamp(1, 0)).unwrap();
            assert_eq!(process.translate(SLOT), Some(true), "a truncation took another file's entry");
            assert_eq!(process.load(1, SLOT), Ok(stamp(1, 0)));
        },
    ]);
}
