//! What a user multiplies: steps, memory and holds of locks stay bounded, and what cannot be had fails as a whole.

use super::*;

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
