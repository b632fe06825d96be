//! Faults that must come to an end: whatever holds up the access, the machine goes on, and what is withheld stays so.

use std::time::Duration;

use roundtable_programs::child::{End, fork};
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB, HUGE};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::mem::{
    ANON, FIXED, Map, NONE, NORESERVE, PRIVATE, R, RW, SHARED, madvise, mmap, mprotect, munmap,
};
use roundtable_programs::sys::{self, PAGE, is_linux};
use roundtable_programs::uffd::{MINOR, MINOR_SHMEM, MISSING, POISON, POISONS, Uffd, WP, WP_FILES};
use roundtable_programs::{Errno, procfs, tests};

tests! { stores_to_the_vdso, marks_of_a_mode_that_is_gone, closed_at_the_limit_of_areas, whole_areas_at_the_limit,
ends_beside_its_own_list, residency_of_a_wide_range,
neighbours_stay_withheld, neighbours_stay_poisoned, neighbours_stay_minor, fork_beyond_what_is_committed,
wide_window_over_crowded_ones, crowds_that_come_and_go: 60 }

/// One that does not wait for messages.
fn listener(features: u64) -> Uffd {
    let uffd = Uffd::bare(libc::O_NONBLOCK);
    uffd.api(features).expect("UFFDIO_API");
    uffd
}

fn withhold(uffd: &Uffd, map: &Map) -> Answer {
    uffd.protect(map.address, map.length, 1)
}

fn has_message(uffd: &Uffd) -> bool {
    uffd.0.read(&mut [0; 32]) == Ok(32)
}

/// A store by the kernel: a byte that is 0.
fn store_by_read(address: usize) -> Result<usize, Errno> {
    let zero = Fd::open("/dev/zero", libc::O_RDONLY)?;
    // SAFETY: the kernel writes a byte that nothing of Rust's is in, or fails.
    sys::check(unsafe { libc::read(zero.raw(), address as *mut libc::c_void, 1) } as i64)
}

/// The same by a process from outside, as it is to itself.
fn store_from_outside(address: usize) -> Result<usize, Errno> {
    let zero = 0u8;
    let local = libc::iovec { iov_base: (&raw const zero).cast_mut().cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: 1 };
    // SAFETY: as above.
    sys::check(unsafe { libc::process_vm_writev(sys::pid(), &local, 1, &remote, 1, 0) } as i64)
}

fn stores_to_the_vdso() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
    let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
    let address = |text| usize::from_str_radix(text, 16).unwrap();
    let vdso = address(start)..address(end);
    // As a whole: Linux does not cut it.
    let writable = mprotect(vdso.start, vdso.len(), RW | libc::PROT_EXEC);
    // Linux makes a copy; here nobody may store there.
    let (right, stored, outside) = match is_linux() {
        true => (Ok(()), Ok(1), Ok(1)),
        false => (Err(Errno::EACCES), Err(Errno::EFAULT), Err(Errno::EFAULT)),
    };
    assert_eq!(writable, right);
    // Behind the header and all tables, in the last byte.
    assert_eq!(store_by_read(vdso.end - 1), stored);
    assert_eq!(store_from_outside(vdso.end - 1), outside);
}

fn marks_of_a_mode_that_is_gone() {
    huge::pool(2);
    let uffd = listener(WP_FILES);
    let file = Fd::of_pages(1);
    let huge = huge::sized(1);
    for (what, map) in [
        ("anonymous", Map::anonymous(PAGE)),
        ("memfd", file.map(PAGE, RW, SHARED).unwrap()),
        ("private file", file.map(PAGE, RW, PRIVATE).unwrap()),
        ("huge", huge.map(HUGE, RW, SHARED).unwrap()),
        ("private huge", huge.map(HUGE, RW, PRIVATE).unwrap()),
    ] {
        // Linux 6.12 itself does not come back from there, whatever signal comes.
        if is_linux() && what.ends_with("huge") {
            continue;
        }
        map.set(0, 1);
        assert!(uffd.register(&map, WP).is_ok(), "{what}");
        assert_eq!(withhold(&uffd, &map), Ok(0), "{what}");
        assert!(uffd.register(&map, MISSING).is_ok(), "{what}");
        assert_eq!(store_by_read(map.address), Ok(1), "{what}");
        assert_eq!(store_from_outside(map.address), Ok(1), "{what}");
        map.set(0, 2);
        assert_eq!((map.get(0), has_message(&uffd)), (2, false), "{what}");
    }
}

/// So many areas as there may be, with one more, as mmap(2) has it. Their number is put back at the end.
struct Full {
    limit: String,
    maps: Vec<usize>,
}

const LIMIT: &str = "/proc/sys/vm/max_map_count";

impl Full {
    fn new() -> Full {
        let full = Full { limit: std::fs::read_to_string(LIMIT).unwrap(), maps: Vec::with_capacity(1000) };
        std::fs::write(LIMIT, "400").unwrap();
        full
    }

    fn fill(&mut self) {
        // Neighbours with different rights are two areas.
        let rights = [R, NONE].into_iter().cycle();
        let maps = rights.map_while(|rights| mmap(0, PAGE, rights, PRIVATE | ANON, -1, 0).ok()).take(1000);
        self.maps.extend(maps);
        assert!((100..1000).contains(&self.maps.len()));
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        std::fs::write(LIMIT, self.limit.trim()).unwrap();
        self.maps.iter().for_each(|map| munmap(*map, PAGE).unwrap());
    }
}

fn closed_at_the_limit_of_areas() {
    let map = Map::anonymous(4 * PAGE);
    let uffd = listener(0);
    uffd.register(&map, MISSING).unwrap();
    let mut full = Full::new();
    full.fill();
    drop(uffd);
    map.set(0, 1);
    assert_eq!(map.get(PAGE), 0);
}

/// A process looks at its list of robust futexes when it ends: nobody answers for its own userfaultfd then.
fn ends_beside_its_own_list() {
    let child = fork(|| {
        let map = Map::anonymous(PAGE);
        let uffd = listener(0);
        uffd.register(&map, MISSING).unwrap();
        let arguments = [map.address, 24, 0, 0, 0, 0];
        assert_eq!(call(libc::SYS_set_robust_list, arguments), Ok(0));
        call(libc::SYS_set_tid_address, [map.address, 0, 0, 0, 0, 0]).unwrap();
        // SAFETY: takes an integer.
        unsafe { libc::raise(libc::SIGKILL) };
    });
    assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
}

/// mincore(2) of so much takes minutes: a kill ends it before.
fn residency_of_a_wide_range() {
    const WIDE: usize = 1 << 42;
    let child = fork(|| {
        // SAFETY: fresh mappings, of which nothing is read.
        unsafe {
            let none = libc::PROT_NONE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let range = libc::mmap(std::ptr::null_mut(), WIDE, none, flags, -1, 0);
            // One huge page as the answer, again and again.
            let answer = libc::mmap(std::ptr::null_mut(), WIDE / PAGE, none, flags, -1, 0);
            assert!(range != libc::MAP_FAILED && answer != libc::MAP_FAILED);
            let file = Fd::memfd("answer", 0).unwrap();
            file.truncate(HUGE as u64).unwrap();
            for at in (0..WIDE / PAGE).step_by(HUGE) {
                let flags = libc::MAP_SHARED | libc::MAP_FIXED;
                let at = libc::mmap(answer.add(at), HUGE, RW, flags, file.raw(), 0);
                assert!(at != libc::MAP_FAILED);
            }
            libc::mincore(range, WIDE, answer.cast());
        }
    });
    std::thread::sleep(Duration::from_millis(300));
    child.kill(libc::SIGKILL);
    assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
}

fn whole_areas_at_the_limit() {
    let map = Map::anonymous(4 * PAGE);
    // Not beside others that it could become one with.
    mprotect(map.address, map.length, R | libc::PROT_EXEC).unwrap();
    let mut full = Full::new();
    full.fill();
    assert_eq!(mprotect(map.address, map.length, RW | libc::PROT_EXEC), Ok(()));
    assert_eq!(madvise(map.address, map.length, libc::MADV_DONTFORK), Ok(()));
    // SAFETY: takes numbers.
    let locked = unsafe { sys::check(libc::mlock(map.address as *const libc::c_void, map.length)) };
    assert_eq!(locked, Ok(0));
    // SAFETY: takes nothing.
    assert_eq!(sys::check(unsafe { libc::munlockall() }), Ok(0));
    assert_eq!(procfs::status(sys::pid(), "VmLck"), 0);
    // What has to be cut is refused.
    assert_eq!(mprotect(map.address, PAGE, R), Err(Errno::ENOMEM));
}

/// A file of 16 pages that are there, and a mapping of it in which nothing is touched.
fn untouched(pages: &[usize]) -> (Fd, Map) {
    let file = Fd::of_pages(16);
    pages.iter().for_each(|page| assert_eq!(file.write_at(&[7; PAGE], (page * PAGE) as u64), Ok(PAGE)));
    let map = file.map(16 * PAGE, RW, SHARED).unwrap();
    (file, map)
}

fn neighbours_stay_withheld() {
    let (_file, map) = untouched(&Vec::from_iter(0..16));
    let uffd = listener(WP_FILES);
    uffd.register(&map, WP).unwrap();
    withhold(&uffd, &map).unwrap();
    assert_eq!((map.get(0), has_message(&uffd)), (7, false));
    let child = fork_thread_store(&map, 1);
    assert!(sys::settles(Duration::from_secs(10), || has_message(&uffd)), "no message of the store");
    drop(uffd);
    child.join().unwrap();
    assert_eq!(map.get(PAGE), 1);
}

/// Another thread stores to a page, and may wait.
fn fork_thread_store(map: &Map, page: usize) -> std::thread::JoinHandle<()> {
    let address = map.address + page * PAGE;
    // SAFETY: the mapping lives until the thread is joined.
    std::thread::spawn(move || unsafe { (address as *mut u8).write_volatile(1) })
}

fn neighbours_stay_poisoned() {
    let (_file, map) = untouched(&(0..16).filter(|page| *page != 1).collect::<Vec<_>>());
    let uffd = listener(POISONS);
    uffd.register(&map, MISSING).unwrap();
    assert_eq!(uffd.of_range(POISON, map.address + PAGE, PAGE, 0), Ok(PAGE as i64));
    // The page is there by now; what was said of its address stays.
    let other = _file.map(16 * PAGE, RW, SHARED).unwrap();
    other.set(PAGE, 9);
    assert_eq!(map.get(0), 7);
    assert!(fault::read(map.address + PAGE).is_err());
}

fn neighbours_stay_minor() {
    let (_file, map) = untouched(&Vec::from_iter(0..16));
    let uffd = listener(MINOR_SHMEM);
    // A page that is not there is no minor fault: it is made.
    _file.punch(0, PAGE as u64).unwrap();
    uffd.register(&map, MINOR).unwrap();
    assert_eq!((map.get(0), has_message(&uffd)), (0, false));
    let child = fork_thread_store(&map, 1);
    assert!(sys::settles(Duration::from_secs(10), || has_message(&uffd)), "no message of the minor fault");
    drop(uffd);
    child.join().unwrap();
    assert_eq!(map.get(PAGE), 1);
}

fn fork_beyond_what_is_committed() {
    let memory = procfs::Meminfo::read().get("MemTotal") as usize * 1024;
    let half = (memory / 5 * 3).next_multiple_of(HUGE);
    // In a window of its own, with a table that each child makes and gives back.
    let spinner = fork(|| {
        loop {
            std::hint::spin_loop();
        }
    });
    let place = Map::reserve(4 * HUGE + 2 * half, HUGE);
    let file = Fd::of_pages(512);
    mmap(place.address, HUGE, RW, SHARED | FIXED, file.raw(), 0).unwrap();
    file.write_at(&[1], 0).unwrap();
    for part in 0..2 {
        let at = place.address + 2 * HUGE + part * half;
        mmap(at, half, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
    }
    // SAFETY: a child, should there be one, does nothing but end.
    let forked = unsafe { libc::fork() };
    if forked == 0 {
        // SAFETY: ends the process.
        unsafe { libc::_exit(0) };
    }
    let forked = sys::check(forked);
    drop(spinner);
    assert_eq!(forked, Err(Errno::ENOMEM));
}

/// Maps a part of a file at so many different places within a slot of its own each, and touches it.
fn crowd(file: &Fd, places: &Map, step: usize, length: usize, offset: usize, touch: usize) {
    for slot in 1..=16 {
        let at = places.address + slot * length.max(GIB);
        let shift = slot * step;
        mmap(at, length, R, SHARED | FIXED | NORESERVE, file.raw(), (offset + shift) as i64).unwrap();
        assert_eq!(fault::read(at + touch - shift), Ok(b'x'));
    }
}

fn wide_window_over_crowded_ones() {
    const WIDE: usize = 512 * GIB;
    let file = Fd::memfd("wide", 0).unwrap();
    file.truncate(WIDE as u64).unwrap();
    file.write_at(b"x", (GIB / 2) as u64).unwrap();
    let narrow = Map::reserve(18 * GIB, GIB);
    crowd(&file, &narrow, HUGE, GIB, 0, GIB / 2);
    let place = Map::reserve(WIDE, WIDE);
    mmap(place.address, WIDE, RW, SHARED | FIXED | NORESERVE, file.raw(), 0).unwrap();
    assert_eq!(fault::read(place.address + GIB / 2), Ok(b'x'));
    place.set(GIB / 2, b'y');
    assert_eq!(place.get(GIB / 2 + PAGE), 0);
    assert_eq!(fault::read(place.address + WIDE), Err(Fault::unmapped(place.address + WIDE)));
}

/// Threads fault in a mapping of 512 GiB while windows over the same piece of the file come and go in another process.
fn crowds_that_come_and_go() {
    const WIDE: usize = 512 * GIB;
    huge::pool(4);
    let file = huge::file();
    file.truncate(WIDE as u64).unwrap();
    for page in 0..2 {
        file.fallocate(0, (page * HUGE) as u64, HUGE as u64).unwrap();
    }
    let other = fork(|| {
        let places = Map::reserve(18 * GIB, GIB);
        loop {
            for slot in 0..16 {
                let at = places.address + slot * (GIB + HUGE);
                mmap(at, HUGE, RW, SHARED | FIXED | NORESERVE, file.raw(), 0).unwrap();
                assert_eq!(fault::read(at), Ok(0));
            }
            for slot in 0..16 {
                let at = places.address + slot * (GIB + HUGE);
                mmap(at, HUGE, NONE, PRIVATE | ANON | FIXED | NORESERVE, -1, 0).unwrap();
            }
        }
    });
    let place = Map::reserve(WIDE, WIDE);
    for _ in 0..150 {
        mmap(place.address, WIDE, RW, SHARED | FIXED | NORESERVE, file.raw(), 0).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let at = place.address + thread % 2 * HUGE;
                scope.spawn(move || assert_eq!(fault::read(at), Ok(0)));
            }
        });
    }
    other.kill(libc::SIGKILL);
    assert_eq!(other.wait(), End::Signal(libc::SIGKILL));
}
