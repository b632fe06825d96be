//! The pool of huge pages: its size at run time, surplus pages, the files that show it.

use roundtable_programs::huge::{
    self, Counters, HUGE, expect_counters, expect_pool, file, set_overcommit, set_pool, sized,
};
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW, SHARED};
use roundtable_programs::procfs::{self, Meminfo};
use roundtable_programs::{Errno, child, tests};

tests! { grows_and_shrinks, gives_memory_back, shrinks_only_to_what_is_in_use, keeps_reserved_pages,
pages_in_use_become_surplus, overcommit, overcommit_has_a_limit, surplus_goes_when_freed,
surplus_becomes_persistent, sysfs_agrees, meminfo_hugetlb_line, no_pages_no_mapping }

fn grows_and_shrinks() {
    huge::pool(8);
    assert_eq!(set_pool(3), 3);
    expect_counters(Counters { total: 3, free: 3, reserved: 0, surplus: 0 });
    assert_eq!(set_pool(0), 0);
    expect_counters(Counters { total: 0, free: 0, reserved: 0, surplus: 0 });
}

fn gives_memory_back() {
    huge::pool(0);
    let before = Meminfo::read().get("MemFree");
    huge::pool(64);
    let with = Meminfo::read().get("MemFree");
    // Half of it: Linux keeps tens of MiB of pages that were just freed on lists of its CPUs, which MemFree leaves out.
    let half = 64 * 1024;
    assert!(with + half < before, "64 huge pages are 128 MiB: {before} kB free, then {with}");
    huge::pool(0);
    let after = Meminfo::read().get("MemFree");
    assert!(after > with + half, "{before} kB free, with the pool {with}, after it {after}");
}

fn shrinks_only_to_what_is_in_use() {
    huge::pool(4);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    map.set(HUGE, 1);
    set_pool(0);
    // The two in use stay, and are surplus from now on: they go when they are freed.
    expect_counters(Counters { total: 2, free: 0, reserved: 0, surplus: 2 });
    drop((map, file));
    expect_counters(Counters { total: 0, free: 0, reserved: 0, surplus: 0 });
}

fn keeps_reserved_pages() {
    huge::pool(4);
    let file = sized(3);
    let map = file.map(3 * HUGE, RW, SHARED).unwrap();
    set_pool(0);
    // Reserved pages are promised: they stay, free, and are surplus.
    expect_counters(Counters { total: 3, free: 3, reserved: 3, surplus: 3 });
    (0..3).for_each(|page| map.set(page * HUGE, 1));
    expect_counters(Counters { total: 3, free: 0, reserved: 0, surplus: 3 });
    drop((map, file));
    expect_counters(Counters { total: 0, free: 0, reserved: 0, surplus: 0 });
}

fn pages_in_use_become_surplus() {
    huge::pool(4);
    let file = sized(4);
    let map = file.map(4 * HUGE, RW, SHARED).unwrap();
    (0..4).for_each(|page| map.set(page * HUGE, page as u8));
    set_pool(1);
    expect_counters(Counters { total: 4, free: 0, reserved: 0, surplus: 3 });
    file.truncate(2 * HUGE as u64).unwrap();
    expect_counters(Counters { total: 2, free: 0, reserved: 0, surplus: 1 });
    file.truncate(0).unwrap();
    expect_counters(Counters { total: 1, free: 1, reserved: 0, surplus: 0 });
}

fn overcommit() {
    huge::pool(1);
    set_overcommit(3);
    let map = Map::new(4 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    // Surplus pages are taken when they are promised, not when they are touched.
    expect_counters(Counters { total: 4, free: 4, reserved: 4, surplus: 3 });
    (0..4).for_each(|page| map.set(page * HUGE, 1));
    expect_counters(Counters { total: 4, free: 0, reserved: 0, surplus: 3 });
    drop(map);
    expect_counters(Counters { total: 1, free: 1, reserved: 0, surplus: 0 });
}

fn overcommit_has_a_limit() {
    huge::pool(1);
    set_overcommit(2);
    let result = Map::new(4 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0);
    assert_eq!(result.err(), Some(Errno::ENOMEM));
    expect_counters(Counters { total: 1, free: 1, reserved: 0, surplus: 0 });
}

fn surplus_goes_when_freed() {
    huge::pool(0);
    set_overcommit(4);
    child::in_child(|| {
        let map = Map::new(3 * HUGE, RW, SHARED | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
        map.set(0, 1);
        expect_counters(Counters { total: 3, free: 2, reserved: 2, surplus: 3 });
    });
    expect_counters(Counters { total: 0, free: 0, reserved: 0, surplus: 0 });
}

fn surplus_becomes_persistent() {
    huge::pool(0);
    set_overcommit(2);
    let map = Map::new(2 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    map.set(0, 1);
    expect_counters(Counters { total: 2, free: 1, reserved: 1, surplus: 2 });
    set_pool(2);
    expect_counters(Counters { total: 2, free: 1, reserved: 1, surplus: 0 });
    drop(map);
    expect_counters(Counters { total: 2, free: 2, reserved: 0, surplus: 0 });
}

fn sysfs_agrees() {
    huge::pool(5);
    set_overcommit(2);
    let map = Map::new(2 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    map.set(0, 1);
    let folder = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    let read = |name: &str| procfs::number(&format!("{folder}/{name}"));
    assert_eq!(read("nr_hugepages"), 5);
    assert_eq!(read("free_hugepages"), 4);
    assert_eq!(read("resv_hugepages"), 1);
    assert_eq!(read("surplus_hugepages"), 0);
    assert_eq!(read("nr_overcommit_hugepages"), 2);
    procfs::write(&format!("{folder}/nr_hugepages"), 7).unwrap();
    expect_counters(Counters { total: 7, free: 6, reserved: 1, surplus: 0 });
}

fn meminfo_hugetlb_line() {
    huge::pool(6);
    let meminfo = Meminfo::read();
    assert_eq!(meminfo.get("Hugepagesize"), 2048);
    // It is the sum over all sizes.
    assert!(meminfo.get("Hugetlb") >= 6 * 2048);
    assert_eq!(meminfo.get("Hugetlb") % 2048, 0);
}

fn no_pages_no_mapping() {
    huge::pool(0);
    let anonymous = Map::new(HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0);
    assert_eq!(anonymous.err(), Some(Errno::ENOMEM));
    // A file may be as long as one likes; mapping it is what needs pages.
    let file = file();
    file.truncate(HUGE as u64).unwrap();
    assert_eq!(file.map(HUGE, RW, SHARED).err(), Some(Errno::ENOMEM));
    assert_eq!(file.fallocate(0, 0, HUGE as u64), Err(Errno::ENOSPC));
    expect_pool(0, 0);
}
