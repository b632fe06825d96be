//! What memory is kept from: mseal(2), prctl(PR_SET_MDWE); and the release of a dying process's memory.

use libc::{SYS_mseal, SYS_prctl, SYS_process_mrelease};
use roundtable_programs::child::{fork, in_child};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::kinds::{Answer, advise, call, map, protect, remap, unmap};
use roundtable_programs::mem::{ANON, FIXED, Map, PRIVATE, R, RW, SHARED};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::PAGE;
use roundtable_programs::{row, tests};

tests! { sealed_areas, sealed_huge_pages, seals_and_gaps, no_gain_of_execution, release_of_the_dying, droppable_memory }

const EXECUTE: usize = libc::PROT_EXEC as usize;
const READ: usize = libc::PROT_READ as usize;
const MAY_MOVE: usize = libc::MREMAP_MAYMOVE as usize;

fn seal(address: usize, length: usize) -> Answer {
    call(SYS_mseal, [address, length, 0, 0, 0, 0])
}

/// Runs in a child: what is sealed stays to the end of the process.
fn sealed_areas() {
    in_child(|| {
        let mut rows = Rows::default();
        let at = map(0, 8 * PAGE, RW, PRIVATE | ANON, -1, 0).unwrap();
        row!(rows, EINVAL, call(SYS_mseal, [at, PAGE, 1, 0, 0, 0]));
        row!(rows, EINVAL, seal(at + 1, PAGE));
        row!(rows, EINVAL, seal(at, usize::MAX - PAGE / 2));
        row!(rows, OK, seal(at, 0));
        row!(rows, OK, seal(at + 2 * PAGE, 4 * PAGE));
        row!(rows, OK, seal(at + 3 * PAGE, PAGE));
        let middle = at + 2 * PAGE;
        row!(rows, EPERM, unmap(middle, PAGE));
        row!(rows, EPERM, unmap(at, 8 * PAGE));
        row!(rows, EPERM, protect(middle, PAGE, READ));
        // Even to what it has.
        row!(rows, EPERM, protect(middle, PAGE, RW as usize));
        row!(rows, EPERM, remap(middle, 2 * PAGE, 3 * PAGE, MAY_MOVE, 0));
        row!(rows, EPERM, remap(middle, 2 * PAGE, PAGE, 0, 0));
        row!(rows, EPERM, remap(middle, 2 * PAGE, 2 * PAGE, 0, 0));
        // The target of a move that is refused stays.
        let target = map(0, 2 * PAGE, RW, PRIVATE | ANON, -1, 0).unwrap();
        row!(rows, EPERM, remap(middle, 2 * PAGE, 2 * PAGE, MAY_MOVE | libc::MREMAP_FIXED as usize, target));
        row!(rows, OK, advise(target, 2 * PAGE, libc::MADV_DONTNEED));
        row!(rows, OK, unmap(target, 2 * PAGE));
        row!(rows, EPERM, map(middle, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0));
        // What can be written can be discarded.
        row!(rows, OK, advise(middle, PAGE, libc::MADV_DONTNEED));
        row!(rows, OK, advise(middle, PAGE, libc::MADV_DONTFORK));
        row!(rows, OK, advise(middle, PAGE, libc::MADV_DOFORK));
        // Beside it all is as ever.
        row!(rows, OK, protect(at, 2 * PAGE, READ));
        row!(rows, OK, unmap(at + 7 * PAGE, PAGE));
        let constant = map(0, 2 * PAGE, R, PRIVATE | ANON, -1, 0).unwrap();
        row!(rows, OK, seal(constant, 2 * PAGE));
        row!(rows, EPERM, advise(constant, PAGE, libc::MADV_DONTNEED));
        row!(rows, EPERM, advise(constant, PAGE, libc::MADV_FREE));
        row!(rows, EPERM, advise(constant, PAGE, libc::MADV_DONTFORK));
        row!(rows, OK, advise(constant, PAGE, libc::MADV_RANDOM));
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        assert!(smaps.lines().any(|line| line.starts_with("VmFlags") && line.contains(" sl")), "{smaps}");
        // A child has the seals too.
        fork(|| assert_eq!(unmap(middle, PAGE), Err(roundtable_programs::Errno::EPERM))).ok();
        rows.finish();
    });
}

fn sealed_huge_pages() {
    huge::pool(4);
    in_child(|| {
        let mut rows = Rows::default();
        let file = huge::sized(4);
        let at = map(0, 4 * HUGE, RW, SHARED, file.raw(), 0).unwrap();
        row!(rows, OK, seal(at, 2 * HUGE));
        row!(rows, EPERM, unmap(at, HUGE));
        row!(rows, EPERM, protect(at, 4 * HUGE, READ));
        row!(rows, EPERM, remap(at, 2 * HUGE, 2 * HUGE, MAY_MOVE | 2, 0x7000_0000_0000 >> 4));
        row!(rows, OK, unmap(at + 2 * HUGE, 2 * HUGE));
        rows.finish();
    });
    huge::expect_pool(4, 0);
}

fn seals_and_gaps() {
    in_child(|| {
        let mut rows = Rows::default();
        let at = map(0, 4 * PAGE, RW, PRIVATE | ANON, -1, 0).unwrap();
        unmap(at + 2 * PAGE, PAGE).unwrap();
        row!(rows, ENOMEM, seal(at, 4 * PAGE));
        row!(rows, OK, unmap(at, PAGE));
        rows.finish();
    });
}

fn no_gain_of_execution() {
    const SET: usize = 65;
    const GET: usize = 66;
    let prctl = |command: usize, bits: usize| call(SYS_prctl, [command, bits, 0, 0, 0, 0]);
    in_child(|| {
        let mut rows = Rows::default();
        row!(rows, EINVAL, prctl(SET, 4));
        row!(rows, EINVAL, prctl(SET, 2));
        row!(rows, EINVAL, call(SYS_prctl, [SET, 1, 1, 0, 0, 0]));
        assert_eq!(prctl(GET, 0), Ok(0));
        let code = map(0, PAGE, libc::PROT_READ | libc::PROT_EXEC, PRIVATE | ANON, -1, 0).unwrap();
        row!(rows, OK, prctl(SET, 1));
        row!(rows, EPERM, prctl(SET, 0));
        row!(rows, EPERM, prctl(SET, 3));
        assert_eq!(prctl(GET, 0), Ok(1));
        row!(rows, EACCES, map(0, PAGE, RW | libc::PROT_EXEC, PRIVATE | ANON, -1, 0));
        let data = map(0, PAGE, RW, PRIVATE | ANON, -1, 0).unwrap();
        row!(rows, EACCES, protect(data, PAGE, READ | EXECUTE));
        row!(rows, OK, protect(data, PAGE, READ));
        // What may be executed may go on to be.
        row!(rows, OK, protect(code, PAGE, EXECUTE));
        row!(rows, OK, protect(code, PAGE, READ | EXECUTE));
        row!(rows, EACCES, protect(code, PAGE, RW as usize | EXECUTE));
        fork(|| assert_eq!(prctl(GET, 0), Ok(1))).ok();
        rows.finish();
    });
    in_child(|| {
        assert_eq!(prctl(SET, 3), Ok(0));
        fork(|| assert_eq!(prctl(GET, 0), Ok(0))).ok();
    });
}

fn release_of_the_dying() {
    let mut rows = Rows::default();
    let (memory, own) = (Map::anonymous(PAGE), std::process::id() as usize);
    memory.set(0, 1);
    let open = |pid: usize| Fd::own(call(libc::SYS_pidfd_open, [pid, 0, 0, 0, 0, 0]).expect("pidfd_open"));
    let release = |fd: &Fd, flags: usize| call(SYS_process_mrelease, [fd.raw() as usize, flags, 0, 0, 0, 0]);
    let child = fork(|| {
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    });
    let fd = open(child.pid as usize);
    row!(rows, EINVAL, release(&fd, 1));
    row!(rows, EINVAL, release(&fd, 0));
    row!(rows, EINVAL, release(&open(own), 0));
    row!(rows, EBADF, release(&Fd::of_pages(1), 0));
    child.end();
    row!(rows, ESRCH, release(&fd, 0));
    rows.finish();
}

/// What may be dropped is, and is all zero then. Linux drops it unless somebody happens to look at the page.
fn droppable_memory() {
    const DROPPABLE: i32 = 8;
    let map = Map::new(8 * PAGE, RW, DROPPABLE | ANON, -1, 0).unwrap();
    (0..8).for_each(|page| map.set(page * PAGE, 1));
    let dropped = roundtable_programs::sys::settles(std::time::Duration::from_secs(10), || {
        assert_eq!(advise(map.address, 8 * PAGE, libc::MADV_PAGEOUT), Ok(0));
        (0..8).all(|page| map.get(page * PAGE) == 0)
    });
    assert!(dropped);
    // It is never locked, and nobody is told.
    let locked = || roundtable_programs::procfs::status(roundtable_programs::sys::pid(), "VmLck");
    let before = locked();
    assert_eq!(call(libc::SYS_mlock, [map.address, 8 * PAGE, 0, 0, 0, 0]), Ok(0));
    assert_eq!(locked(), before);
    assert_eq!(advise(map.address, 8 * PAGE, libc::MADV_PAGEOUT), Ok(0));
    // Other memory stays.
    let map = Map::new(PAGE, RW, PRIVATE | ANON, -1, 0).unwrap();
    map.set(0, 1);
    assert_eq!(advise(map.address, PAGE, libc::MADV_PAGEOUT), Ok(0));
    assert_eq!(map.get(0), 1);
}
