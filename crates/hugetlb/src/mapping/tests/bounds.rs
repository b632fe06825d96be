//! What a user multiplies: steps, memory and holds of locks stay bounded, and what cannot be had fails as a whole.

use super::*;
use crate::mapping::Presence;

/// A private mapping that has a copy of each page.
fn private_mapping(pages: u64) -> (System, Arc<File<TestMachine>>, Mapped) {
    let hugetlb = hugetlb(pages, ProtocolKind::FileTables);
    let file = file(&hugetlb, pages * MIB2);
    let (_, mapping) = map_at(&file, HERE, pages * MIB2, PRIVATE);
    (0..pages).for_each(|page| store(&mapping, HERE + page * MIB2, page));
    (hugetlb, file, mapping)
}

#[test]
fn what_waits_for_a_flush_is_bounded() {
    const PAGES: u64 = 1100;
    let (hugetlb, _file, mapping) = private_mapping(PAGES);
    let count = |counter: &crate::sync::AtomicU64| counter.load(Ordering::SeqCst);
    let (flushes, ways) = (count(&hugetlb.machine().flushes), count(&hugetlb.machine().ways_given));
    mapping.discard(HERE..HERE + PAGES * MIB2).unwrap();
    assert!(count(&hugetlb.machine().flushes) - flushes >= PAGES / 512);
    assert!(count(&hugetlb.machine().ways_given) - ways >= PAGES / 512);
    assert_eq!(pool(&hugetlb), (PAGES, PAGES));
}

#[test]
fn a_fork_that_fails_at_any_step_changes_nothing() {
    let (hugetlb, _file, parent) = private_mapping(200);
    let mut failures = 0;
    for steps in 0.. {
        hugetlb.machine().steps_left.store(steps, Ordering::SeqCst);
        let child = parent.fork(hugetlb.machine().space());
        hugetlb.machine().steps_left.store(u64::MAX, Ordering::SeqCst);
        if let Ok(child) = child {
            assert_eq!(private_page(&parent).shares(), 2);
            assert_eq!(load(&child, HERE + 199 * MIB2), 199);
            break;
        }
        failures += 1;
        assert_eq!(private_page(&parent).shares(), 1);
        assert_eq!(parent.translate(HERE).map(|(_, writable)| writable), Some(true));
    }
    assert!(failures >= 2, "a fork of 200 copies takes one step");
    assert_eq!(pool(&hugetlb), (0, 0));
}

#[test]
fn a_truncation_meets_all_of_many_mappings() {
    let hugetlb = hugetlb(4, ProtocolKind::FileTables);
    let file = file(&hugetlb, 4 * MIB2);
    file.fallocate(FallocateMode::Allocate, 0, 4 * MIB2, || false).unwrap();
    let options = MapOptions { no_reserve: true, ..PRIVATE };
    let mappings: std::vec::Vec<_> = (0..50).map(|_| map_at(&file, HERE, 4 * MIB2, options).1).collect();
    mappings.iter().for_each(|mapping| assert_eq!(load(mapping, HERE + 3 * MIB2), 0));
    file.truncate(3 * MIB2).unwrap();
    for mapping in &mappings {
        assert_eq!(mapping.fault(HERE + 3 * MIB2, Access::Read), Err(FaultError::Sigbus));
    }
    assert_eq!(pool(&hugetlb).0, 1);
}

#[test]
fn an_owner_takes_its_page_back_from_all_of_many_children() {
    let (_hugetlb, _file, parent) = private_mapping(1);
    let child = || parent.fork(parent.file().hugetlb().machine().space()).unwrap();
    let children: std::vec::Vec<_> = (0..50).map(|_| child()).collect();
    children.iter().for_each(|child| assert_eq!(load(child, HERE), 0));
    store(&parent, HERE, 7);
    assert_eq!(load(&parent, HERE), 7);
    for child in &children {
        assert_eq!(child.fault(HERE, Access::Read), Err(FaultError::Sigbus));
    }
}

#[test]
fn a_pool_grows_and_shrinks_in_small_steps() {
    let hugetlb = hugetlb(0, ProtocolKind::FileTables);
    let pool = hugetlb.pool(PageSize::Size2M);
    let ways = || hugetlb.machine().ways_given.load(Ordering::SeqCst);
    let before = ways();
    assert_eq!(pool.set_persistent(2000, || false), 2000);
    assert!(ways() - before >= 2000);
    let before = ways();
    assert_eq!(pool.set_persistent(3, || false), 3);
    assert!(ways() - before >= 1997 / 64);
    pool.check().unwrap();
    // As surplus pages, which a promise adds and its end frees.
    pool.set_overcommit(1000).unwrap();
    let file = file(&hugetlb, 1000 * MIB2);
    file.reserve(0..1000 * MIB2).unwrap();
    assert_eq!((pool.statistics().surplus, pool.statistics().reserved), (997, 1000));
    let before = ways();
    drop(file);
    assert!(ways() - before >= 997 / 64);
    assert_eq!((pool.statistics().total, pool.statistics().surplus, pool.statistics().reserved), (3, 0, 0));
    pool.check().unwrap();
}

#[test]
fn without_memory_for_its_list_a_pool_does_not_grow() {
    let hugetlb = hugetlb(2, ProtocolKind::FileTables);
    let pool = hugetlb.pool(PageSize::Size2M);
    pool.set_overcommit(2000).unwrap();
    // The list has room for a first chunk, and gets no second one.
    hugetlb.machine().steps_left.store(512 - 2, Ordering::SeqCst);
    assert_eq!(file(&hugetlb, 1500 * MIB2).reserve(0..1500 * MIB2), Err(Error::NoMemory));
    hugetlb.machine().steps_left.store(0, Ordering::SeqCst);
    assert_eq!(pool.set_persistent(1500, || false), 512);
    hugetlb.machine().steps_left.store(u64::MAX, Ordering::SeqCst);
    assert_eq!((pool.statistics().total, pool.statistics().surplus, pool.statistics().reserved), (512, 0, 0));
    pool.check().unwrap();
    assert_eq!(pool.set_persistent(1500, || false), 1500);
}

#[test]
fn looks_at_a_sparse_private_mapping_pass_over_what_is_missing() {
    // All that the test machine has.
    const LENGTH: u64 = 512 << 30;
    let hugetlb = hugetlb(2, ProtocolKind::FileTables);
    let file = file(&hugetlb, LENGTH);
    let start = VirtAddr(0);
    let (_, mapping) = map_at(&file, start, LENGTH, MapOptions { no_reserve: true, ..PRIVATE });
    store(&mapping, start, 1);
    store(&mapping, start + LENGTH / 2, 1);
    let machine = hugetlb.machine();
    let (looks, ways) = (|| machine.looks(), || machine.ways_given.load(Ordering::SeqCst));
    let (looks_before, ways_before) = (looks(), ways());
    assert_eq!(mapping.resident().private, 2 * MIB2);
    // Two tables of 512 entries, and some looks for each of the other slots.
    assert!(looks() - looks_before < 4096, "{} looks", looks() - looks_before);
    assert!(ways() - ways_before >= 2);
    let (looks_before, ways_before) = (looks(), ways());
    mapping.check(&mut CheckRound::new(&hugetlb)).unwrap();
    assert!(looks() - looks_before < 4096, "{} looks", looks() - looks_before);
    assert!(ways() - ways_before >= 2);
}

#[test]
fn a_hole_punch_comes_to_its_end_though_its_mappings_are_forked_meanwhile() {
    /// At each flush the youngest mapping is forked twice: as fast as a walk visits them, and once more.
    fn fork_at_flushes(hugetlb: &System, family: Arc<std::sync::Mutex<std::vec::Vec<Mapped>>>) {
        let system = hugetlb.clone();
        hugetlb.machine().at_flush(move || {
            let mut mappings = family.lock().unwrap();
            if mappings.len() > 40 {
                return;
            }
            for _ in 0..2 {
                let child = mappings.last().unwrap().fork(system.machine().space()).unwrap();
                let _ = child.fault(HERE, Access::Read);
                mappings.push(child);
            }
            drop(mappings);
            fork_at_flushes(&system, family);
        });
    }
    let (hugetlb, file, first) = private_mapping(1);
    let second = first.fork(hugetlb.machine().space()).unwrap();
    assert_eq!(load(&second, HERE), 0);
    let family = Arc::new(std::sync::Mutex::new(std::vec![second]));
    fork_at_flushes(&hugetlb, family.clone());
    file.fallocate(FallocateMode::PunchHole, 0, MIB2, || false).unwrap();
    hugetlb.machine().at_flush(|| ());
    let mut family = family.lock().unwrap();
    assert!((3..=5).contains(&family.len()), "{} mappings", family.len());
    for mapping in family.iter().chain([&first]) {
        assert_eq!(mapping.presence(HERE), Presence::Absent);
        assert!(!mapping.is_resident(HERE));
    }
    family.clear();
    drop(first);
    assert_eq!(pool(&hugetlb), (1, 0));
}

#[test]
fn no_promise_is_made_behind_the_end_of_a_file() {
    let hugetlb = hugetlb(2, ProtocolKind::FileTables);
    let file = file(&hugetlb, MIB2);
    // As a fault that looked at the end before a truncation.
    file.truncate(0).unwrap();
    let at = file.lock_index(PageIndex(0)).unwrap();
    assert!(matches!(file.allocate_page(&at, false), Err(Error::Invalid)));
    assert!(!file.promises().lock().contains(0));
    drop(at);
    assert_eq!(pool(&hugetlb), (2, 0));
}

#[test]
fn a_file_of_many_pages_goes_in_small_steps() {
    const PAGES: u64 = 640;
    let hugetlb = hugetlb(PAGES, ProtocolKind::FileTables);
    let file = file(&hugetlb, PAGES * MIB2);
    file.fallocate(FallocateMode::Allocate, 0, PAGES * MIB2, || false).unwrap();
    let ways = || hugetlb.machine().ways_given.load(Ordering::SeqCst);
    let before = ways();
    drop(file);
    assert!(ways() - before >= PAGES / filetables::REMOVED_AT_A_TIME);
    assert_eq!(pool(&hugetlb), (PAGES, 0));
}
