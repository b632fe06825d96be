//! Pages behind the end of a file of huge pages: those that fallocate(2) has put there, and those of UFFDIO_COPY.

use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, HUGE, expect_pool, sized};
use roundtable_programs::mem::{Map, NONE, NORESERVE, PRIVATE, R, RW, SHARED, mprotect};
use roundtable_programs::uffd::{ALL_KINDS, CONTINUE, MINOR, MISSING, SIGBUS, Uffd, WP};
use roundtable_programs::{Errno, child, tests};

tests! { allocated_pages_are_reached, they_go_with_a_truncation, a_file_that_grows_again, allocation_that_fails_half_way, copies_for_private_mappings,
no_copies_for_shared_ones, copies_where_nothing_is_allowed, copies_are_inherited, continue_asks_the_file }

const KEEP_SIZE: i32 = 1;

fn pages(number: usize) -> u64 {
    (number * HUGE) as u64
}

/// A file of a page, with a second behind its end.
fn with_page_behind() -> Fd {
    let file = sized(1);
    file.fallocate(KEEP_SIZE, pages(1), pages(1)).unwrap();
    assert_eq!(file.stat().st_size as u64, pages(1));
    file
}

fn is_behind(address: usize) {
    assert_eq!(fault::load(address), Err(Fault::bus(address)));
}

/// By loads, by stores of another process, and by private mappings; not where nothing was allocated.
fn allocated_pages_are_reached() {
    huge::pool(6);
    let file = with_page_behind();
    let shared = file.map(3 * HUGE, R, SHARED | NORESERVE).unwrap();
    assert_eq!(fault::load(shared.address + HUGE), Ok(0));
    is_behind(shared.address + 2 * HUGE);
    let private = file.map(3 * HUGE, R, PRIVATE | NORESERVE).unwrap();
    child::in_child(|| {
        assert_eq!(fault::load(private.address + HUGE), Ok(0));
        mprotect(shared.address, 3 * HUGE, RW).unwrap();
        assert_eq!(fault::store(shared.address + HUGE, 5), Ok(()));
        is_behind(shared.address + 2 * HUGE);
        assert_eq!(fault::load(private.address + HUGE), Ok(5));
        mprotect(private.address, 3 * HUGE, RW).unwrap();
        assert_eq!(fault::store(private.address + HUGE, 6), Ok(()));
        is_behind(private.address + 2 * HUGE);
    });
    assert_eq!((fault::load(shared.address + HUGE), fault::load(private.address + HUGE)), (Ok(5), Ok(5)));
    // read(2) ends where the file does.
    assert_eq!(file.read_at(&mut [0; 8], pages(1)), Ok(0));
}

/// Even one that makes the file longer.
fn they_go_with_a_truncation() {
    huge::pool(6);
    for length in [0, 1, 2, 3] {
        let file = sized(1);
        file.fallocate(KEEP_SIZE, pages(3), pages(1)).unwrap();
        let map = file.map(4 * HUGE, R, SHARED | NORESERVE).unwrap();
        assert_eq!(fault::load(map.address + 3 * HUGE), Ok(0));
        file.truncate(pages(length)).unwrap();
        is_behind(map.address + 3 * HUGE);
        expect_pool(6, 0);
    }
}

/// What was allocated behind the end is a part of the file when a mapping has made that longer; holes behind the new end stay SIGBUS.
fn a_file_that_grows_again() {
    huge::pool(8);
    let file = sized(1);
    file.fallocate(KEEP_SIZE, pages(3), pages(1)).unwrap();
    let map = file.map(5 * HUGE, R, SHARED | NORESERVE).unwrap();
    assert_eq!(fault::load(map.address + 3 * HUGE), Ok(0));
    let longer = file.map(2 * HUGE, RW, SHARED | NORESERVE).unwrap();
    assert_eq!(file.stat().st_size as u64, pages(2));
    longer.set_u64(HUGE, 7);
    assert_eq!(fault::load(map.address + HUGE), Ok(7));
    is_behind(map.address + 2 * HUGE);
    assert_eq!(fault::load(map.address + 3 * HUGE), Ok(0));
    is_behind(map.address + 4 * HUGE);
}

/// The pages that were allocated before there were no more are there.
fn allocation_that_fails_half_way() {
    huge::pool(3);
    let file = sized(1);
    assert_eq!(file.fallocate(0, pages(1), pages(4)), Err(Errno::ENOSPC));
    assert_eq!(file.stat().st_size as u64, pages(1));
    let map = file.map(5 * HUGE, R, SHARED | NORESERVE).unwrap();
    assert_eq!(fault::load(map.address + 3 * HUGE), Ok(0));
    is_behind(map.address + 4 * HUGE);
}

/// A descriptor that has a mapping of a file of one page registered, and the address behind the file's end.
fn registered(file: &Fd, flags: i32, mode: u64) -> (Uffd, Map, usize) {
    let map = file.map(2 * HUGE, R, flags).unwrap();
    let uffd = Uffd::new(SIGBUS | ALL_KINDS);
    uffd.register(&map, mode).unwrap();
    let behind = map.address + HUGE;
    (uffd, map, behind)
}

fn copies_for_private_mappings() {
    huge::pool(4);
    let file = sized(1);
    let (uffd, map, behind) = registered(&file, PRIVATE, MISSING);
    is_behind(behind);
    assert_eq!(uffd.copy(behind, &[9; HUGE], 0), Ok(HUGE as i64));
    assert_eq!(map.get(HUGE), 9);
    assert_eq!(uffd.copy(behind, &[8; HUGE], 0), Err(Errno::EEXIST));
    // It goes with all that is behind the end.
    file.truncate(pages(1)).unwrap();
    is_behind(behind);
}

/// Where there is no page that is told before the end is.
fn no_copies_for_shared_ones() {
    huge::pool(2);
    let file = sized(1);
    let (uffd, _map, behind) = registered(&file, SHARED | NORESERVE, MISSING);
    assert_eq!(uffd.copy(behind, &[9; HUGE], 0), Err(Errno::EFAULT));
    expect_pool(2, 0);
    let others = sized(2);
    others.fallocate(0, 0, pages(2)).unwrap();
    assert_eq!(uffd.copy(behind, &[9; HUGE], 0), Err(Errno::ENOMEM));
    drop(others);
    // Nor is a store withheld from then on that was to be with the page.
    let map = file.map(HUGE, RW, SHARED | NORESERVE).unwrap();
    let uffd = Uffd::new(SIGBUS | ALL_KINDS);
    uffd.register(&map, MISSING | WP).unwrap();
    let others = sized(2);
    others.fallocate(0, 0, pages(2)).unwrap();
    assert_eq!(uffd.copy(map.address, &[9; HUGE], 2), Err(Errno::ENOMEM));
    drop(others);
    file.fallocate(0, 0, pages(1)).unwrap();
    assert_eq!(fault::write(map.address, 1), Ok(()));
    file.punch(0, pages(1)).unwrap();
    // A promise is not used up.
    let (uffd, _map, behind) = registered(&file, SHARED, MISSING);
    expect_pool(2, 2);
    assert_eq!(uffd.copy(behind, &[9; HUGE], 0), Err(Errno::EFAULT));
    expect_pool(2, 2);
}

/// The page is there when the program may look.
fn copies_where_nothing_is_allowed() {
    huge::pool(4);
    for flags in [SHARED, PRIVATE] {
        let file = sized(1);
        let map = file.map(HUGE, NONE, flags).unwrap();
        let uffd = Uffd::new(SIGBUS | ALL_KINDS);
        uffd.register(&map, MISSING).unwrap();
        assert_eq!(uffd.copy(map.address, &[4; HUGE], 0), Ok(HUGE as i64));
        assert_eq!(uffd.copy(map.address, &[5; HUGE], 0), Err(Errno::EEXIST));
        assert_eq!(fault::read(map.address), Err(Fault::forbidden(map.address)));
        mprotect(map.address, HUGE, RW).unwrap();
        assert_eq!(fault::read(map.address), Ok(4));
        assert_eq!(fault::write(map.address, 6), Ok(()));
    }
}

fn copies_are_inherited() {
    huge::pool(6);
    let file = sized(1);
    let (uffd, map, behind) = registered(&file, PRIVATE, MISSING);
    assert_eq!(uffd.copy(behind, &[9; HUGE], 0), Ok(HUGE as i64));
    drop(uffd);
    mprotect(map.address, 2 * HUGE, RW).unwrap();
    child::in_child(|| {
        assert_eq!(map.get(HUGE), 9);
        assert_eq!(fault::store(behind, 3), Ok(()));
        assert_eq!(map.get_u64(HUGE), 3);
    });
    assert_eq!(map.get(HUGE), 9);
}

/// UFFDIO_CONTINUE shows a page of the file: where there is none it says so, even if the mapping has a copy of its own.
fn continue_asks_the_file() {
    huge::pool(6);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, PRIVATE).unwrap();
    map.set(0, 1);
    let uffd = Uffd::new(SIGBUS | ALL_KINDS);
    uffd.register(&map, MINOR).unwrap();
    let shown = |page: usize| uffd.of_range(CONTINUE, map.address + page * HUGE, HUGE, 0);
    assert_eq!((shown(0), shown(1)), (Err(Errno::EFAULT), Err(Errno::EFAULT)));
    file.fallocate(0, 0, pages(1)).unwrap();
    assert_eq!((shown(0), shown(1)), (Err(Errno::EEXIST), Err(Errno::EFAULT)));
}
