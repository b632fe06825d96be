//! Private mappings: promises, copies that forks share, and who takes them away.

use hugetlb::{MapOptions, PageSize, ProtocolKind};

use crate::{PAGE, SHARED, SLOT, Signal, World};

/// A private mapping that is promised its pages.
const PROMISED: MapOptions = MapOptions { shared: false, no_reserve: false, ..SHARED };
/// One that is not.
const PRIVATE: MapOptions = MapOptions { shared: false, ..SHARED };

/// A thread discards a promised page while another process reads it through the mapping. The pool's only page is in use or
/// promised to the mapping.
pub(super) fn discard_against_fault_of_a_promised_page(protocol: ProtocolKind) {
    let world = World::with_pool(protocol, 1, 1);
    world.processes[0].map(&world.files[0], SLOT, PAGE, 0, PROMISED).unwrap();
    let world = world.raced([
        |world| assert_eq!(world.processes[0].load_remote(SLOT), Ok(0)),
        |world| world.processes[0].discard(SLOT..SLOT + PAGE).unwrap(),
    ]);
    let pool = world.hugetlb.pool(PageSize::Size2M).statistics();
    assert_eq!(pool.reserved, pool.free, "a promise was lost in a discard");
    assert_eq!(world.processes[0].store(1, SLOT, 2), Ok(()));
    world.finish();
}

/// The owner of the promise takes its page back from a child that uses it, in an empty pool.
pub(super) fn robbing_against_the_child(protocol: ProtocolKind) {
    let world = World::with_pool(protocol, 1, 1);
    world.processes[0].map(&world.files[0], SLOT, PAGE, 0, PROMISED).unwrap();
    world.processes[0].store(0, SLOT, 1).unwrap();
    let child = world.processes[0].fork();
    assert_eq!(child.load(1, SLOT), Ok(1));
    world.with(child).race([
        |world| assert_eq!(world.processes[0].store(0, SLOT, 2), Ok(()), "an owner does not get its page"),
        |world| {
            let seen = world.processes[1].load(1, SLOT);
            assert!(seen == Ok(1) || seen == Err(Signal::Bus), "the child sees its parent's store");
        },
    ]);
}

/// As [`robbing_against_the_child`], while the child has a child.
pub(super) fn robbing_against_fork_of_the_child(protocol: ProtocolKind) {
    let world = World::with_pool(protocol, 1, 1);
    world.processes[0].map(&world.files[0], SLOT, PAGE, 0, PROMISED).unwrap();
    world.processes[0].store(0, SLOT, 1).unwrap();
    let child = world.processes[0].fork();
    world.with(child).race([
        |world| assert_eq!(world.processes[0].store(0, SLOT, 2), Ok(()), "an owner does not get its page"),
        |world| {
            let grandchild = world.processes[1].fork();
            let seen = grandchild.load(1, SLOT);
            assert!(seen == Ok(1) || seen == Err(Signal::Bus), "a grandchild sees the store");
            world.keep(grandchild);
        },
    ]);
}

/// An owner takes its page back from a child that shares it, and leaves another child the copy that it has made.
pub(super) fn robbing_spares_other_pages(protocol: ProtocolKind) {
    let world = World::with_pool(protocol, 2, 1);
    world.processes[0].map(&world.files[0], SLOT, PAGE, 0, PROMISED).unwrap();
    world.processes[0].store(0, SLOT, 1).unwrap();
    let [own, sharing] = [(); 2].map(|()| world.processes[0].fork());
    own.store(0, SLOT, 5).unwrap();
    world.with(own).with(sharing).race([
        |world| {
            world.processes[0].store(0, SLOT, 2).unwrap();
            assert_eq!(world.processes[2].load(0, SLOT), Err(Signal::Bus));
        },
        |world| assert_eq!(world.processes[1].load(1, SLOT), Ok(5), "a copy of its own was robbed"),
    ]);
}

/// A child is made while the file loses its pages: what it has a share of goes, too.
pub(super) fn truncate_against_fork_of_private_pages(protocol: ProtocolKind) {
    let world = World::new(protocol, 1);
    world.processes[0].map(&world.files[0], SLOT, PAGE, 0, PRIVATE).unwrap();
    world.processes[0].store(0, SLOT, 1).unwrap();
    let world = world.raced([
        |world| world.files[0].truncate(0).unwrap(),
        |world| {
            let child = world.processes[0].fork();
            world.keep(child);
        },
    ]);
    assert_eq!(world.machine.huge_in_use(), 0, "a child keeps a page that was truncated");
    world.finish();
}

/// More mappings than a walk takes from the list at a time.
pub(super) fn punch_meets_all_of_many(protocol: ProtocolKind) {
    let world = World::new(protocol, 3);
    for process in &world.processes {
        process.map(&world.files[0], SLOT, PAGE, 0, PRIVATE).unwrap();
        process.store(0, SLOT, 1).unwrap();
    }
    world.punch(0, 1);
    for process in &world.processes {
        assert_eq!(process.load(0, SLOT), Ok(0), "a mapping keeps a page that was punched");
    }
    world.finish();
}

/// A file is truncated while it is mapped with promises: it has a size only with the promise that mmap made for it.
pub(super) fn truncate_against_mmap_with_promises(protocol: ProtocolKind) {
    let world = World::with_pool(protocol, 1, 1);
    world.files[0].truncate(0).unwrap();
    let world = world.raced([
        |world| world.files[0].truncate(0).unwrap(),
        |world| {
            let promised = MapOptions { no_reserve: false, ..SHARED };
            world.processes[0].map(&world.files[0], SLOT, PAGE, 0, promised).unwrap();
        },
    ]);
    let promised = world.hugetlb.pool(PageSize::Size2M).statistics().reserved;
    assert_eq!(
        promised * PAGE,
        world.files[0].statistics().size,
        "a size without its promise, or the reverse"
    );
    world.finish();
}
