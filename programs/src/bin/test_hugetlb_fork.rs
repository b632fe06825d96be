//! Huge memory over fork: shared, private with copy-on-write, advice for fork.

use roundtable_programs::fault::{self, Fault};
use roundtable_programs::huge::{self, HUGE, expect_pool, sized};
use roundtable_programs::mem::{ANON, Map, PRIVATE, R, RW, SHARED, madvise};
use roundtable_programs::shared::Shared;
use roundtable_programs::{child, tests};

tests! { shared_is_shared, shared_anonymous, private_child_writes, private_parent_writes, private_sees_file_until_it_writes,
private_write_does_not_reach_the_file, parent_write_takes_page_from_child, last_owner_copies_nothing,
child_copy_needs_a_page, three_generations, dontfork, wipeonfork_is_refused, read_only_then_writable,
untouched_pages_are_apart, many_children_verify, private_over_truncate }

fn private(pages: usize) -> Map {
    Map::new(pages * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).expect("private huge memory")
}

fn shared_is_shared() {
    huge::pool(2);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    child::in_child(|| {
        assert_eq!(map.get(0), 1);
        map.set(0, 2);
        map.set(HUGE, 3);
    });
    assert_eq!((map.get(0), map.get(HUGE)), (2, 3));
    expect_pool(0, 0);
}

fn shared_anonymous() {
    huge::pool(2);
    let map = Map::new(2 * HUGE, RW, SHARED | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    child::in_child(|| map.set(HUGE + 1, 9));
    assert_eq!(map.get(HUGE + 1), 9);
    drop(map);
    expect_pool(2, 0);
}

fn private_child_writes() {
    huge::pool(4);
    let map = private(1);
    map.set(0, 1);
    map.set(HUGE - 1, 2);
    child::in_child(|| {
        map.set(0, 7);
        assert_eq!((map.get(0), map.get(HUGE - 1)), (7, 2));
        expect_pool(2, 0);
    });
    assert_eq!((map.get(0), map.get(HUGE - 1)), (1, 2));
    expect_pool(3, 0);
}

fn private_parent_writes() {
    huge::pool(4);
    let map = private(1);
    map.set(0, 1);
    let shared = Shared::new();
    let child = child::fork(|| {
        shared.add(0);
        shared.wait(1, 1);
        assert_eq!(map.get(0), 1);
    });
    shared.wait(0, 1);
    map.set(0, 5);
    expect_pool(2, 0);
    shared.add(1);
    child.ok();
    assert_eq!(map.get(0), 5);
    expect_pool(3, 0);
}

fn private_sees_file_until_it_writes() {
    huge::pool(4);
    let file = sized(1);
    let shared = file.map(HUGE, RW, SHARED).unwrap();
    let private = file.map(HUGE, RW, PRIVATE).unwrap();
    shared.set(0, 1);
    assert_eq!(private.get(0), 1);
    shared.set(0, 2);
    assert_eq!(private.get(0), 2);
    private.set(1, 9);
    shared.set(0, 3);
    assert_eq!((private.get(0), private.get(1), shared.get(1)), (2, 9, 0));
}

fn private_write_does_not_reach_the_file() {
    huge::pool(4);
    let file = sized(1);
    file.map(HUGE, RW, SHARED).unwrap().set(77, 1);
    let private = file.map(HUGE, RW, PRIVATE).unwrap();
    private.set(77, 2);
    let mut byte = [0];
    file.read_at(&mut byte, 77).unwrap();
    assert_eq!(byte, [1]);
    drop(private);
    file.read_at(&mut byte, 77).unwrap();
    assert_eq!(byte, [1]);
}

fn parent_write_takes_page_from_child() {
    // One page in all, in use by parent and child. The parent was promised its memory, so when it writes and there is
    // no page for a copy, the child loses its view: it gets a SIGBUS when it looks again.
    huge::pool(1);
    let map = private(1);
    map.set(0, 1);
    let shared = Shared::new();
    let child = child::fork(|| {
        assert_eq!(fault::read(map.address), Ok(1));
        shared.add(0);
        shared.wait(1, 1);
        assert_eq!(fault::read(map.address), Err(Fault::bus(map.address)));
    });
    shared.wait(0, 1);
    map.set(0, 2);
    assert_eq!(map.get(0), 2);
    shared.add(1);
    child.ok();
    expect_pool(0, 0);
}

fn last_owner_copies_nothing() {
    huge::pool(1);
    let map = private(1);
    map.set(0, 1);
    child::in_child(|| assert_eq!(map.get(0), 1));
    // The child is gone: the page is this process's own, and writing needs no other.
    map.set(0, 2);
    assert_eq!(map.get(0), 2);
    expect_pool(0, 0);
}

fn child_copy_needs_a_page() {
    huge::pool(1);
    let map = private(1);
    map.set(0, 1);
    child::in_child(|| {
        assert_eq!(fault::write(map.address, 2), Err(Fault::bus(map.address)));
        assert_eq!(map.get(0), 1);
    });
    assert_eq!(map.get(0), 1);
}

fn three_generations() {
    huge::pool(8);
    let map = private(1);
    map.set(0, 1);
    child::in_child(|| {
        child::in_child(|| {
            map.set(0, 3);
            child::in_child(|| {
                assert_eq!(map.get(0), 3);
                map.set(0, 4);
            });
            assert_eq!(map.get(0), 3);
        });
        assert_eq!(map.get(0), 1);
        map.set(0, 2);
    });
    assert_eq!(map.get(0), 1);
    expect_pool(7, 0);
}

fn dontfork() {
    huge::pool(2);
    let map = private(1);
    map.set(0, 1);
    madvise(map.address, HUGE, libc::MADV_DONTFORK).unwrap();
    child::in_child(|| assert_eq!(fault::read(map.address), Err(Fault::unmapped(map.address))));
    madvise(map.address, HUGE, libc::MADV_DOFORK).unwrap();
    child::in_child(|| assert_eq!(fault::read(map.address), Ok(1)));
}

fn wipeonfork_is_refused() {
    huge::pool(2);
    let file = sized(1);
    let map = file.map(HUGE, RW, SHARED).unwrap();
    assert_eq!(madvise(map.address, HUGE, libc::MADV_WIPEONFORK), Err(roundtable_programs::Errno::EINVAL));
}

fn read_only_then_writable() {
    huge::pool(4);
    let map = private(1);
    map.set(0, 1);
    roundtable_programs::mem::mprotect(map.address, HUGE, R).unwrap();
    child::in_child(|| {
        roundtable_programs::mem::mprotect(map.address, HUGE, RW).unwrap();
        map.set(0, 2);
    });
    roundtable_programs::mem::mprotect(map.address, HUGE, RW).unwrap();
    assert_eq!(map.get(0), 1, "mprotect must not make a shared private page writable");
    map.set(0, 3);
}

fn untouched_pages_are_apart() {
    huge::pool(4);
    let map =
        Map::new(2 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB | libc::MAP_NORESERVE, -1, 0).unwrap();
    child::in_child(|| map.set(0, 1));
    assert_eq!(map.get(0), 0);
    map.set(HUGE, 5);
    child::in_child(|| assert_eq!(map.get(HUGE), 5));
}

fn many_children_verify() {
    huge::pool(24);
    let map = private(4);
    let common = sized(4);
    let shared = common.map(4 * HUGE, RW, SHARED).unwrap();
    (0..4).for_each(|page| {
        map.set_u64(page * HUGE, huge::stamp(1, page));
        shared.set_u64(page * HUGE, huge::stamp(2, page));
    });
    let children: Vec<_> = (0..8)
        .map(|number| {
            let (map, shared) = (&map, &shared);
            child::fork(move || {
                let mine = number % 4;
                map.set_u64(mine * HUGE + 64, number as u64);
                shared.set_u64(mine * HUGE + 64 + 8 * number, number as u64);
                for page in 0..4 {
                    assert_eq!(map.get_u64(page * HUGE), huge::stamp(1, page));
                    assert_eq!(shared.get_u64(page * HUGE), huge::stamp(2, page));
                    let expected = if page == mine { number as u64 } else { 0 };
                    assert_eq!(map.get_u64(page * HUGE + 64), expected);
                }
            })
        })
        .collect();
    children.into_iter().for_each(|child| child.ok());
    for number in 0..8 {
        assert_eq!(shared.get_u64(number % 4 * HUGE + 64 + 8 * number), number as u64);
        assert_eq!(map.get_u64(number % 4 * HUGE + 64), 0);
    }
    drop((map, shared, common));
    expect_pool(24, 0);
}

fn private_over_truncate() {
    huge::pool(4);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, PRIVATE).unwrap();
    file.map(2 * HUGE, RW, SHARED).unwrap().set(HUGE, 1);
    map.set(0, 5);
    assert_eq!(map.get(HUGE), 1);
    file.truncate(0).unwrap();
    // Truncation takes private copies too.
    assert_eq!(fault::read(map.address), Err(Fault::bus(map.address)));
    assert_eq!(fault::read(map.address + HUGE), Err(Fault::bus(map.address + HUGE)));
}
