//! SIGBUS in huge memory: behind the end of a file, and when the pool is empty.

use roundtable_programs::fault::{self, Fault};
use roundtable_programs::huge::{self, HUGE, expect_pool, sized};
use roundtable_programs::mem::{ANON, Map, NORESERVE, PRIVATE, R, RW, SHARED};
use roundtable_programs::{child, tests};

tests! { behind_the_end, after_truncate, in_another_process_after_truncate, empty_pool_without_reserve,
empty_pool_private_noreserve, file_cut_and_grown_again }

fn behind_the_end() {
    huge::pool(4);
    let file = sized(1);
    file.map(HUGE, RW, SHARED).unwrap().set(0, 1);
    // A writable mapping would make the file longer.
    let map = file.map(2 * HUGE, R, SHARED).unwrap();
    let behind = map.address + HUGE;
    assert_eq!(fault::read(behind), Err(Fault::bus(behind)));
    assert_eq!(fault::read(behind + 12345), Err(Fault::bus(behind + 12345)));
    assert_eq!(map.get(0), 1);
}

fn after_truncate() {
    huge::pool(4);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    map.set(HUGE, 2);
    file.truncate(HUGE as u64).unwrap();
    assert_eq!(fault::read(map.address + HUGE + 7), Err(Fault::bus(map.address + HUGE + 7)));
    assert_eq!(fault::read(map.address), Ok(1));
}

fn in_another_process_after_truncate() {
    huge::pool(4);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    map.set(HUGE, 2);
    let shared = roundtable_programs::shared::Shared::new();
    let child = child::fork(|| {
        assert_eq!(fault::read(map.address + HUGE), Ok(2));
        shared.add(0);
        shared.wait(1, 1);
        assert_eq!(fault::read(map.address + HUGE), Err(Fault::bus(map.address + HUGE)));
    });
    shared.wait(0, 1);
    file.truncate(0).unwrap();
    shared.add(1);
    child.ok();
    huge::expect_pool(4, 0);
}

fn empty_pool_without_reserve() {
    huge::pool(2);
    let taken = sized(1);
    let other = taken.map(HUGE, RW, SHARED).unwrap();
    other.set(0, 1);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED | NORESERVE).unwrap();
    expect_pool(1, 0);
    map.set(0, 1);
    expect_pool(0, 0);
    let second = map.address + HUGE;
    assert_eq!(fault::write(second, 1), Err(Fault::bus(second)));
    // Room again, and the same access succeeds.
    drop((other, taken));
    assert_eq!(fault::write(second, 1), Ok(()));
}

fn empty_pool_private_noreserve() {
    huge::pool(1);
    let map = Map::new(2 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB | NORESERVE, -1, 0).unwrap();
    expect_pool(1, 0);
    map.set(0, 7);
    let second = map.address + HUGE;
    assert_eq!(fault::read(second), Err(Fault::bus(second)));
    assert_eq!(map.get(0), 7);
}

fn file_cut_and_grown_again() {
    huge::pool(2);
    let file = sized(1);
    let map = file.map(HUGE, RW, SHARED).unwrap();
    map.set(100, 9);
    file.truncate(0).unwrap();
    assert_eq!(fault::read(map.address + 100), Err(Fault::bus(map.address + 100)));
    file.truncate(HUGE as u64).unwrap();
    assert_eq!(fault::read(map.address + 100), Ok(0), "a page that comes back is zeroed");
}
