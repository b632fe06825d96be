//! Reservations: who promises pages to whom, and when promises end.

use roundtable_programs::fault::{self, Fault};
use roundtable_programs::huge::{self, HUGE, expect_pool, sized};
use roundtable_programs::mem::{self, ANON, Map, NORESERVE, PRIVATE, R, RW, SHARED, munmap};
use roundtable_programs::shared::Shared;
use roundtable_programs::{Errno, child, tests};

tests! { shared_reserves_at_mmap, shared_by_region_not_by_mapping, shared_overlapping_regions,
shared_keeps_after_unmap, shared_returns_at_last_close, private_reserves_by_mapping,
private_of_a_file_returns_at_unmap, private_partial_unmap, private_read_only_reserves,
noreserve_reserves_nothing, noreserve_takes_no_promised_page, failed_mmap_returns_all, touch_consumes,
truncate_returns, punch_of_a_page_keeps_the_file_mapped, fallocate_consumes_reserve,
fork_child_has_no_reserve, parent_keeps_reserve_after_fork, exit_returns, exec_returns, kill_returns,
shared_reservation_outlives_its_maker, second_mapping_needs_no_second_promise, mremap_carries_reserve }

fn private(pages: usize) -> Result<Map, Errno> {
    Map::new(pages * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0)
}

fn shared_reserves_at_mmap() {
    huge::pool(8);
    let file = sized(4);
    expect_pool(8, 0);
    let map = file.map(4 * HUGE, RW, SHARED).unwrap();
    expect_pool(8, 4);
    map.set(0, 1);
    expect_pool(7, 3);
}

fn shared_by_region_not_by_mapping() {
    huge::pool(8);
    let file = sized(4);
    let first = file.map(4 * HUGE, RW, SHARED).unwrap();
    let second = file.map(4 * HUGE, RW, SHARED).unwrap();
    expect_pool(8, 4);
    first.set(0, 1);
    second.set(HUGE, 2);
    expect_pool(6, 2);
    assert_eq!((second.get(0), first.get(HUGE)), (1, 2));
}

fn shared_overlapping_regions() {
    huge::pool(8);
    let file = sized(6);
    let _first = file.map_at(0, 3 * HUGE, RW, SHARED).unwrap();
    expect_pool(8, 3);
    let _second = file.map_at(2 * HUGE as u64, 3 * HUGE, RW, SHARED).unwrap();
    expect_pool(8, 5);
    let _third = file.map_at(0, 6 * HUGE, RW, SHARED).unwrap();
    expect_pool(8, 6);
}

fn shared_keeps_after_unmap() {
    huge::pool(8);
    let file = sized(4);
    let map = file.map(4 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    drop(map);
    // The promise was made to the file, and the file is still there.
    expect_pool(7, 3);
    let map = file.map(4 * HUGE, RW, SHARED).unwrap();
    expect_pool(7, 3);
    assert_eq!(map.get(0), 1);
}

fn shared_returns_at_last_close() {
    huge::pool(8);
    let file = sized(4);
    let map = file.map(4 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    drop(file);
    expect_pool(7, 3);
    drop(map);
    expect_pool(8, 0);
}

fn private_reserves_by_mapping() {
    huge::pool(8);
    let first = private(3).unwrap();
    expect_pool(8, 3);
    let second = private(3).unwrap();
    expect_pool(8, 6);
    first.set(0, 1);
    expect_pool(7, 5);
    drop(first);
    expect_pool(8, 3);
    drop(second);
    expect_pool(8, 0);
}

fn private_of_a_file_returns_at_unmap() {
    huge::pool(8);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, PRIVATE).unwrap();
    expect_pool(8, 2);
    map.set(0, 1);
    expect_pool(7, 1);
    drop(map);
    expect_pool(8, 0);
    // Nothing of it has reached the file.
    assert_eq!(file.stat().st_blocks, 0);
}

fn private_partial_unmap() {
    huge::pool(8);
    let map = private(4).unwrap();
    map.set(HUGE, 1);
    expect_pool(7, 3);
    munmap(map.address, 2 * HUGE).unwrap();
    expect_pool(8, 2);
    munmap(map.address + 3 * HUGE, HUGE).unwrap();
    expect_pool(8, 1);
    map.set(2 * HUGE, 1);
    expect_pool(7, 0);
    drop(map);
    expect_pool(8, 0);
}

fn private_read_only_reserves() {
    huge::pool(4);
    let map = Map::new(2 * HUGE, R, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    expect_pool(4, 2);
    drop(map);
    expect_pool(4, 0);
}

fn noreserve_reserves_nothing() {
    huge::pool(2);
    let file = sized(100);
    let map = file.map(100 * HUGE, RW, SHARED | NORESERVE).unwrap();
    expect_pool(2, 0);
    map.set(50 * HUGE, 1);
    expect_pool(1, 0);
    let anonymous = Map::new(100 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB | NORESERVE, -1, 0).unwrap();
    anonymous.set(70 * HUGE, 1);
    expect_pool(0, 0);
    drop((map, file, anonymous));
    expect_pool(2, 0);
}

fn noreserve_takes_no_promised_page() {
    huge::pool(2);
    let promised = private(2).unwrap();
    let greedy = Map::new(HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB | NORESERVE, -1, 0).unwrap();
    assert_eq!(fault::write(greedy.address, 1), Err(Fault::bus(greedy.address)));
    promised.set(0, 1);
    promised.set(HUGE, 1);
    expect_pool(0, 0);
}

fn failed_mmap_returns_all() {
    huge::pool(4);
    let file = sized(8);
    let part = file.map_at(2 * HUGE as u64, 2 * HUGE, RW, SHARED).unwrap();
    expect_pool(4, 2);
    assert_eq!(file.map(8 * HUGE, RW, SHARED).err(), Some(Errno::ENOMEM));
    expect_pool(4, 2);
    assert_eq!(private(3).err(), Some(Errno::ENOMEM));
    expect_pool(4, 2);
    let rest = private(2).unwrap();
    expect_pool(4, 4);
    drop((part, rest, file));
    expect_pool(4, 0);
}

fn touch_consumes() {
    huge::pool(4);
    let map = private(4).unwrap();
    for page in 0..4 {
        expect_pool(4 - page, 4 - page);
        assert_eq!(map.get(page as usize * HUGE + 5), 0);
    }
    expect_pool(0, 0);
}

fn truncate_returns() {
    huge::pool(8);
    let file = sized(6);
    let map = file.map(6 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    map.set(5 * HUGE, 1);
    expect_pool(6, 4);
    // Pages and promises behind the new end are returned, though the mapping is still as long.
    file.truncate(2 * HUGE as u64).unwrap();
    expect_pool(7, 1);
    file.truncate(0).unwrap();
    expect_pool(8, 0);
    drop(map);
    expect_pool(8, 0);
}

fn punch_of_a_page_keeps_the_file_mapped() {
    huge::pool(8);
    let file = sized(4);
    let map = file.map(4 * HUGE, RW, SHARED).unwrap();
    (0..4).for_each(|page| map.set(page * HUGE, 1));
    expect_pool(4, 0);
    file.punch(HUGE as u64, 2 * HUGE as u64).unwrap();
    // The promise for a hole is gone with its page.
    expect_pool(6, 0);
    assert_eq!((map.get(HUGE), map.get(3 * HUGE)), (0, 1));
    expect_pool(5, 0);
}

fn fallocate_consumes_reserve() {
    huge::pool(8);
    let file = sized(4);
    let _map = file.map(4 * HUGE, RW, SHARED).unwrap();
    expect_pool(8, 4);
    file.fallocate(0, 0, 2 * HUGE as u64).unwrap();
    expect_pool(6, 2);
    let other = sized(2);
    other.fallocate(0, 0, 2 * HUGE as u64).unwrap();
    expect_pool(4, 2);
    // Allocated pages need no promise.
    let _other = other.map(2 * HUGE, RW, SHARED).unwrap();
    expect_pool(4, 2);
}

fn fork_child_has_no_reserve() {
    huge::pool(2);
    let map = private(2).unwrap();
    expect_pool(2, 2);
    child::in_child(|| {
        // Both free pages are promised to the parent.
        assert_eq!(fault::write(map.address, 1), Err(Fault::bus(map.address)));
    });
    expect_pool(2, 2);
    map.set(0, 1);
    map.set(HUGE, 1);
    expect_pool(0, 0);
}

fn parent_keeps_reserve_after_fork() {
    huge::pool(4);
    let map = private(2).unwrap();
    map.set(0, 1);
    expect_pool(3, 1);
    child::in_child(|| assert_eq!(map.get(0), 1));
    expect_pool(3, 1);
    map.set(HUGE, 1);
    expect_pool(2, 0);
    drop(map);
    expect_pool(4, 0);
}

fn exit_returns() {
    huge::pool(8);
    let file = sized(3);
    child::in_child(|| {
        let map = private(2).unwrap();
        map.set(0, 1);
        let shared = file.map(3 * HUGE, RW, SHARED).unwrap();
        shared.set(0, 1);
        expect_pool(6, 3);
        std::mem::forget((map, shared));
    });
    // The private part is gone; the file's page and promises stay with the file.
    expect_pool(7, 2);
    drop(file);
    expect_pool(8, 0);
}

fn exec_returns() {
    huge::pool(4);
    let shared = Shared::new();
    let child = child::fork(|| {
        let map = private(3).unwrap();
        map.set(0, 1);
        expect_pool(3, 2);
        shared.add(0);
        let path = roundtable_programs::sys::c_string("/proc/self/exe");
        let list = roundtable_programs::sys::c_string("--list");
        let words = [path.as_ptr(), list.as_ptr(), std::ptr::null()];
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        // SAFETY: the words are NUL-terminated, the list ends with null; dup2 takes integers.
        unsafe {
            libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), 1);
            libc::execv(path.as_ptr(), words.as_ptr());
        }
        panic!("execv: {}", Errno::last());
    });
    child.ok();
    assert_eq!(shared.get(0), 1);
    expect_pool(4, 0);
}

fn kill_returns() {
    huge::pool(4);
    let shared = Shared::new();
    let child = child::fork(|| {
        let map = private(3).unwrap();
        map.set(HUGE, 1);
        shared.add(0);
        shared.wait(1, 1);
    });
    shared.wait(0, 1);
    expect_pool(3, 2);
    child.end();
    huge::expect_counters(huge::Counters { total: 4, free: 4, reserved: 0, surplus: 0 });
}

fn shared_reservation_outlives_its_maker() {
    huge::pool(4);
    let file = sized(4);
    child::in_child(|| {
        file.map(4 * HUGE, RW, SHARED).unwrap();
    });
    expect_pool(4, 4);
    assert_eq!(private(1).err(), Some(Errno::ENOMEM));
    file.truncate(HUGE as u64).unwrap();
    expect_pool(4, 1);
}

fn second_mapping_needs_no_second_promise() {
    huge::pool(2);
    let file = sized(2);
    let maps: Vec<Map> = (0..10).map(|_| file.map(2 * HUGE, RW, SHARED).unwrap()).collect();
    expect_pool(2, 2);
    for (index, map) in maps.iter().enumerate() {
        map.set(HUGE + index, index as u8);
    }
    expect_pool(1, 1);
    assert!((0..10).all(|index| maps[0].get(HUGE + index) == index as u8));
}

fn mremap_carries_reserve() {
    huge::pool(4);
    let map = private(2).unwrap();
    map.set(0, 42);
    let target = Map::reserve(2 * HUGE, HUGE);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    mem::mremap(map.address, 2 * HUGE, 2 * HUGE, flags, target.address).unwrap();
    std::mem::forget(map);
    expect_pool(3, 1);
    assert_eq!(target.get(0), 42);
    target.set(HUGE, 1);
    expect_pool(2, 0);
    drop(target);
    expect_pool(4, 0);
}
