//! UFFDIO_MOVE: pages that go to another place of a program's memory.

use std::thread;

use roundtable_programs::child::{self, in_child};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::mem::{ANON, Map, PRIVATE, R, RW, SHARED, mprotect};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::PAGE;
use roundtable_programs::uffd::{ALL_KINDS, MISSING, MOVE, MOVES, Uffd, WP};
use roundtable_programs::{Errno, fault, procfs, row, tests};

tests! { pages_move, holes, what_is_in_the_way, shared_since_a_fork, what_is_refused, who_waits_goes_on,
many_pages: 60, stores_are_not_lost: 60 }

const SKIP_HOLES: u64 = 2;

/// Moves, and how much was moved, whatever the call's result.
fn try_move(uffd: &Uffd, to: usize, from: usize, length: usize, mode: u64) -> (Result<usize, Errno>, i64) {
    let mut words = [to as u64, from as u64, length as u64, mode, 0x55];
    (uffd.ioctl(MOVE, &mut words), words[4] as i64)
}

fn refused(uffd: &Uffd, to: usize, from: usize, length: usize, mode: u64) -> Result<usize, Errno> {
    try_move(uffd, to, from, length, mode).0
}

/// A registered place of so many pages.
fn place(uffd: &Uffd, pages: usize) -> Map {
    let map = Map::anonymous(pages * PAGE);
    uffd.register(&map, MISSING).unwrap();
    map
}

fn monitor() -> Uffd {
    Uffd::new(ALL_KINDS | MOVES)
}

/// Whether there is a page, by what reads of a registered place would wait for.
fn is_there(address: usize) -> bool {
    roundtable_programs::mem::mincore(address, PAGE).unwrap()[0]
}

fn pages_move() {
    let uffd = monitor();
    let to = place(&uffd, 4);
    let from = Map::anonymous(4 * PAGE);
    for page in 0..4 {
        from.set(page * PAGE + 5, page as u8 + 1);
    }
    let resident = procfs::status(roundtable_programs::sys::pid(), "RssAnon");
    assert_eq!(try_move(&uffd, to.address, from.address, 3 * PAGE, 0), (Ok(0), 3 * PAGE as i64));
    assert_eq!([5, PAGE + 5, 2 * PAGE + 5].map(|at| to.get(at)), [1, 2, 3]);
    assert!(!is_there(to.address + 3 * PAGE));
    // They are gone from where they were, and can be stored to where they are.
    assert_eq!([5, PAGE + 5, 2 * PAGE + 5, 3 * PAGE + 5].map(|at| from.get(at)), [0, 0, 0, 4]);
    to.set(5, 9);
    assert_eq!((to.get(5), from.get(5)), (9, 0));
    let now = procfs::status(roundtable_programs::sys::pid(), "RssAnon");
    assert!(now.abs_diff(resident) <= 64, "{resident} {now}");
    // Within one area, too.
    let both = place(&uffd, 4);
    uffd.copy(both.address, &[7; PAGE], 0).unwrap();
    assert_eq!(try_move(&uffd, both.address + 2 * PAGE, both.address, PAGE, 0), (Ok(0), PAGE as i64));
    assert_eq!((both.get(2 * PAGE), is_there(both.address)), (7, false));
    // What was only read is a page as well.
    let (zeroes, to) = (Map::anonymous(PAGE), place(&uffd, 1));
    assert_eq!(zeroes.get(0), 0);
    assert_eq!(try_move(&uffd, to.address, zeroes.address, PAGE, 0), (Ok(0), PAGE as i64));
    assert_eq!(to.get(0), 0);
    to.set(0, 1);
    assert_eq!((to.get(0), zeroes.get(0)), (1, 0));
}

fn holes() {
    let uffd = monitor();
    let to = place(&uffd, 4);
    let from = Map::anonymous(4 * PAGE);
    from.set(0, 1);
    from.set(3 * PAGE, 4);
    assert_eq!(try_move(&uffd, to.address + PAGE, from.address + PAGE, PAGE, 0).0, Err(Errno::ENOENT));
    assert_eq!(try_move(&uffd, to.address, from.address, 4 * PAGE, 0), (Err(Errno::EAGAIN), PAGE as i64));
    from.set(0, 2);
    let (to, len) = (place(&uffd, 4), 4 * PAGE);
    assert_eq!(try_move(&uffd, to.address, from.address, len, SKIP_HOLES), (Ok(0), len as i64));
    assert_eq!((to.get(0), to.get(3 * PAGE)), (2, 4));
    assert!(!is_there(to.address + PAGE) && !is_there(to.address + 2 * PAGE));
}

fn what_is_in_the_way() {
    let uffd = monitor();
    let to = place(&uffd, 3);
    let from = Map::anonymous(3 * PAGE);
    (0..3).for_each(|page| from.set(page * PAGE, 1));
    uffd.copy(to.address + PAGE, &[7; PAGE], 0).unwrap();
    assert_eq!(try_move(&uffd, to.address, from.address, 3 * PAGE, 0), (Err(Errno::EAGAIN), PAGE as i64));
    let told = -(Errno::EEXIST as i64);
    let at = PAGE;
    let answer = try_move(&uffd, to.address + at, from.address + at, 2 * PAGE, 0);
    assert_eq!(answer, (Err(Errno::EEXIST), told));
    assert_eq!((to.get(0), to.get(PAGE), from.get(PAGE), from.get(2 * PAGE)), (1, 7, 1, 1));
}

fn shared_since_a_fork() {
    let uffd = monitor();
    let to = place(&uffd, 2);
    let from = Map::anonymous(2 * PAGE);
    (0..2).for_each(|page| from.set(page * PAGE, 1));
    let (wait, go) = roundtable_programs::file::pipe(0);
    let child = child::fork(|| {
        wait.read(&mut [0]).unwrap();
        assert_eq!((from.get(0), from.get(PAGE)), (1, 1));
    });
    // A page that a child has as well stays.
    assert_eq!(refused(&uffd, to.address, from.address, PAGE, 0), Err(Errno::EBUSY));
    from.set(PAGE, 2);
    assert_eq!(try_move(&uffd, to.address + PAGE, from.address + PAGE, PAGE, 0), (Ok(0), PAGE as i64));
    assert_eq!((from.get(0), to.get(PAGE)), (1, 2));
    go.write(&[0]).unwrap();
    child.ok();
    // What has moved is inherited.
    in_child(|| {
        assert_eq!(to.get(PAGE), 2);
        to.set(PAGE, 3);
    });
    assert_eq!(to.get(PAGE), 2);
}

fn what_is_refused() {
    huge::pool(4);
    let uffd = monitor();
    let to = place(&uffd, 2);
    let from = Map::anonymous(2 * PAGE);
    (0..2).for_each(|page| from.set(page * PAGE, 1));
    let mut rows = Rows::default();
    row!(rows, EINVAL, refused(&uffd, to.address, from.address, PAGE, 4));
    row!(rows, EINVAL, refused(&uffd, to.address + 1, from.address, PAGE, 0));
    row!(rows, EINVAL, refused(&uffd, to.address, from.address + 1, PAGE, 0));
    row!(rows, EINVAL, refused(&uffd, to.address, from.address, 1, 0));
    row!(rows, EINVAL, refused(&uffd, to.address, from.address, 0, 0));
    row!(rows, EINVAL, refused(&uffd, usize::MAX & !(PAGE - 1), from.address, PAGE, 0));
    // A target that is not registered, or by another.
    let bare = Map::anonymous(PAGE);
    row!(rows, EINVAL, refused(&uffd, bare.address, from.address, PAGE, 0));
    let stranger = Uffd::new(ALL_KINDS);
    stranger.register(&bare, MISSING).unwrap();
    row!(rows, EINVAL, refused(&uffd, bare.address, from.address, PAGE, 0));
    // Memory of another kind.
    let shared = Map::new(PAGE, RW, SHARED | ANON, -1, 0).unwrap();
    shared.set(0, 1);
    row!(rows, EINVAL, refused(&uffd, to.address, shared.address, PAGE, 0));
    let file = Fd::of_pages(1);
    let private = file.map(PAGE, RW, PRIVATE).unwrap();
    private.set(0, 1);
    row!(rows, EINVAL, refused(&uffd, to.address, private.address, PAGE, 0));
    let large = Map::new(HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    large.set(0, 1);
    row!(rows, EINVAL, refused(&uffd, to.address, large.address, PAGE, 0));
    // Other rights.
    let reading = Map::anonymous(PAGE);
    reading.set(0, 1);
    mprotect(reading.address, PAGE, R).unwrap();
    row!(rows, EINVAL, refused(&uffd, to.address, reading.address, PAGE, 0));
    let hole = Map::reserve(PAGE, PAGE);
    let nowhere = hole.address;
    hole.unmap().unwrap();
    row!(rows, ENOENT, refused(&uffd, to.address, nowhere, PAGE, 0));
    row!(rows, EFAULT, uffd_call(&uffd, 8));
    // All is as it was.
    row!(rows, OK, refused(&uffd, to.address, from.address, 2 * PAGE, 0));
    rows.finish();
    assert!(fault::read(nowhere).is_err());
}

fn uffd_call(uffd: &Uffd, argument: usize) -> Result<usize, Errno> {
    roundtable_programs::kinds::call(libc::SYS_ioctl, [uffd.0.raw() as usize, MOVE, argument, 0, 0, 0])
}

fn who_waits_goes_on() {
    let uffd = monitor();
    let to = place(&uffd, 2);
    let from = Map::anonymous(2 * PAGE);
    (0..2).for_each(|page| from.set(page * PAGE, 1));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| to.get(PAGE));
        assert_eq!(uffd.next().address, to.address + PAGE);
        assert_eq!(try_move(&uffd, to.address, from.address, 2 * PAGE, 0), (Ok(0), 2 * PAGE as i64));
        assert_eq!(waiting.join().unwrap(), 1);
    });
    // Without waking, by the mode.
    let to = place(&uffd, 1);
    from.set(0, 2);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| to.get(0));
        assert_eq!(uffd.next().address, to.address);
        assert_eq!(try_move(&uffd, to.address, from.address, PAGE, 1), (Ok(0), PAGE as i64));
        assert_eq!(uffd.wake(to.address, PAGE), Ok(0));
        assert_eq!(waiting.join().unwrap(), 2);
    });
}

fn many_pages() {
    const PAGES: usize = 5000;
    let uffd = monitor();
    let to = place(&uffd, PAGES);
    let from = Map::anonymous(PAGES * PAGE);
    (0..PAGES).for_each(|page| from.set_u64(page * PAGE, 1));
    // A child shares the tables, and is gone again. On Linux a page stays that was not stored to since.
    in_child(|| assert_eq!(from.get_u64(PAGE), 1));
    (0..PAGES).for_each(|page| from.set_u64(page * PAGE, page as u64));
    assert_eq!(try_move(&uffd, to.address, from.address, PAGES * PAGE, 0), (Ok(0), (PAGES * PAGE) as i64));
    assert!((0..PAGES).all(|page| to.get_u64(page * PAGE) == page as u64));
    uffd.register(&to, MISSING | WP).unwrap();
    uffd.protect(to.address, to.length, 1).unwrap();
    uffd.protect(to.address, to.length, 0).unwrap();
    (0..PAGES).for_each(|page| to.set_u64(page * PAGE, 7));
}

/// A page that goes to and fro while a thread counts in it: no count is lost, wherever the page is.
fn stores_are_not_lost() {
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::SeqCst;
    let uffd = monitor();
    let (here, there) = (place(&uffd, 1), place(&uffd, 1));
    uffd.copy(here.address, &[0; PAGE], 0).unwrap();
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        let counting = scope.spawn(|| {
            let mut counted = 0u32;
            while !ends.load(SeqCst) {
                // Where the page is away it waits until it is back.
                here.atomic(0).fetch_add(1, SeqCst);
                counted += 1;
            }
            counted
        });
        let mut rounds = (0..500).flat_map(|_| [(&there, &here), (&here, &there)]);
        let failed = rounds.find_map(|(to, from)| {
            let answer = try_move(&uffd, to.address, from.address, PAGE, 0);
            (answer != (Ok(0), PAGE as i64)).then_some(answer)
        });
        ends.store(true, SeqCst);
        if failed.is_some() {
            // Whatever came in the way: the thread is not to wait for ever.
            let _ = uffd.copy(here.address, &[0; PAGE], 0);
            let _ = uffd.wake(here.address, PAGE);
        }
        let counted = counting.join().unwrap();
        assert_eq!(failed, None);
        assert_eq!(here.atomic(0).load(SeqCst), counted);
    });
}
