//! Shared memory in base pages by the tables of its files: memfd, shared anonymous memory, System V segments.
//!
//! What programs see is the same on Linux. Faults and tables are counted only where files have tables.

use std::sync::atomic::Ordering;

use roundtable_programs::child::{Child, fork, in_child};
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::GIB;
use roundtable_programs::mem::{
    self, ANON, FIXED, Map, NONE, PRIVATE, R, RW, SHARED, madvise, mmap, mprotect, mremap, munmap,
};
use roundtable_programs::ordinary::{
    PAGE, WINDOW, counter, expect_no_faults, expect_stamps, expect_stamps_at, has_tables, stamp, stamped,
};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{self, check};
use roundtable_programs::{procfs, tests};

tests! { newcomer_faults_nothing: 60, inherited_memory_faults_nothing: 60, segments_fault_nothing: 60,
a_window_of_a_gibibyte: 60, tables_go_with_the_last: 60, new_pages_show_in_all: 60, punch_shows_in_all: 60,
truncation_reaches_all: 60, rights_are_of_the_mapping: 60, prot_none_and_back: 60, partial_mprotect: 60,
partial_munmap: 60, fixed_map_inside: 60, moved_and_grown: 60, dontneed_keeps_the_data: 60, file_grows_into_windows: 60,
private_beside_shared: 60, incongruent_mapping: 60, seen_from_outside: 60, residency_is_told: 60, sharing_is_told: 60, sharing_by_other_tables_is_told: 60, sharing_of_a_gibibyte_is_told: 60,
locked_windows: 60, futex_in_a_window: 60, faults_against_punches: 120, windows_against_cuts: 120, seals_count_windows: 60 }

fn newcomer_faults_nothing() {
    let file = stamped(4 * WINDOW);
    for protection in [R, RW] {
        let map = file.map(4 * WINDOW, protection, SHARED).unwrap();
        expect_no_faults(|| expect_stamps(&map, 0));
    }
    let map = file.map_at(WINDOW as u64, 2 * WINDOW, RW, SHARED).unwrap();
    expect_no_faults(|| {
        expect_stamps(&map, WINDOW / PAGE);
        map.set(5, 1);
    });
    in_child(|| {
        let map = file.map(4 * WINDOW, RW, SHARED).unwrap();
        assert_eq!(map.get(WINDOW + 5), 1);
        expect_no_faults(|| expect_stamps_at(map.address, WINDOW, 0));
    });
}

fn inherited_memory_faults_nothing() {
    let map = Map::new(4 * WINDOW, RW, SHARED | ANON, -1, 0).unwrap();
    (0..4 * WINDOW).step_by(PAGE).for_each(|at| map.set_u64(at, stamp(at / PAGE)));
    in_child(|| {
        expect_no_faults(|| expect_stamps(&map, 0));
        map.set_u64(8, 77);
    });
    assert_eq!(map.get_u64(8), 77);
}

fn segments_fault_nothing() {
    // SAFETY: takes integers; the segment goes with its last attachment.
    let (id, address) = unsafe {
        let id = check(libc::shmget(libc::IPC_PRIVATE, 4 * WINDOW, 0o600)).unwrap() as i32;
        let address = check(libc::shmat(id, std::ptr::null(), 0) as i64).unwrap();
        (id, address)
    };
    let map = std::mem::ManuallyDrop::new(Map { address, length: 4 * WINDOW });
    (0..4 * WINDOW).step_by(PAGE).for_each(|at| map.set_u64(at, stamp(at / PAGE)));
    // SAFETY: as above.
    let again = check(unsafe { libc::shmat(id, std::ptr::null(), libc::SHM_RDONLY) as i64 }).unwrap();
    let other = std::mem::ManuallyDrop::new(Map { address: again, length: 4 * WINDOW });
    expect_no_faults(|| expect_stamps(&other, 0));
    assert_eq!(fault::write(again, 1), Err(Fault::forbidden(again)));
    // SAFETY: nothing of the program is there.
    unsafe {
        check(libc::shmdt(again as *const _)).unwrap();
        check(libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut())).unwrap();
        check(libc::shmdt(address as *const _)).unwrap();
    }
    assert_eq!(fault::read(address), Err(Fault::unmapped(address)));
}

fn a_window_of_a_gibibyte() {
    let file = Fd::temporary();
    file.truncate(2 * GIB as u64).unwrap();
    let map = file.map(2 * GIB, RW, SHARED).unwrap();
    let places: Vec<usize> = (0..2 * GIB).step_by(64 * WINDOW).collect();
    places.iter().for_each(|at| map.set_u64(*at, stamp(*at / PAGE)));
    in_child(|| {
        let shows = |other: &Map| {
            expect_no_faults(|| {
                places.iter().for_each(|at| assert_eq!(other.get_u64(*at), stamp(*at / PAGE)))
            });
        };
        let tables = || procfs::status(sys::pid(), "VmPTE");
        // A child begins with few tables: its own program, stack and heap get theirs in a first round.
        tables();
        shows(&map);
        let own = tables();
        let other = file.map(2 * GIB, R, SHARED).unwrap();
        shows(&other);
        let tables = tables() - own;
        assert!(!has_tables() || tables <= 8, "{tables} kB of tables of its own");
        // A page that comes later shows as well.
        map.set_u64(WINDOW + 8, 3);
        assert_eq!(other.get_u64(WINDOW + 8), 3);
        // A part is taken out of the gibibyte; the rest goes on.
        munmap(other.address + 3 * WINDOW + PAGE, PAGE).unwrap();
        let hole = other.address + 3 * WINDOW + PAGE;
        assert_eq!(fault::read(hole), Err(Fault::unmapped(hole)));
        places.iter().for_each(|at| assert_eq!(other.get_u64(*at), stamp(*at / PAGE)));
    });
    assert_eq!(map.get_u64(WINDOW + 8), 3);
}

fn tables_go_with_the_last() {
    if !has_tables() {
        roundtable_programs::harness::skip("files have no tables here");
    }
    let (tables, attachments) = (counter("tables"), counter("attachments"));
    let by_level = || ["pte/tables", "pte/attachments", "pmd/tables", "pmd/attachments"].map(counter);
    let before = by_level();
    let file = stamped(4 * WINDOW);
    let map = file.map(4 * WINDOW, RW, SHARED).unwrap();
    assert_eq!((counter("tables"), counter("attachments")), (tables + 4, attachments + 4));
    let other = file.map(4 * WINDOW, R, SHARED).unwrap();
    assert_eq!((counter("tables"), counter("attachments")), (tables + 4, attachments + 8));
    other.unmap().unwrap();
    in_child(|| expect_stamps(&map, 0));
    assert_eq!((counter("tables"), counter("attachments")), (tables + 4, attachments + 4));
    map.unmap().unwrap();
    assert_eq!((counter("tables"), counter("attachments")), (tables, attachments));
    assert_eq!(by_level(), before);
    // All of a GiB is shown by one entry, in which the tables of leaves are the file's business.
    file.truncate(GIB as u64).unwrap();
    let place = Map::reserve(GIB, GIB);
    mmap(place.address, GIB, RW, SHARED | FIXED, file.raw(), 0).unwrap();
    let shown: Vec<u64> = by_level().iter().zip(before).map(|(now, then)| now - then).collect();
    assert_eq!(shown, [4, 0, 1, 1]);
}

/// Children that map the file, each at an address of its own, and do `work` when the counter says so.
fn sharers(file: &Fd, turn: &Shared, count: usize, work: impl Fn(&Map) + Copy) -> Vec<Child> {
    let length = file.stat().st_size as usize;
    let start = |_| {
        fork(|| {
            let map = file.map(length, RW, SHARED).unwrap();
            expect_stamps(&map, 0);
            turn.add(0);
            turn.wait(1, 1);
            work(&map);
        })
    };
    let children = (0..count).map(start).collect();
    turn.wait(0, count as u32);
    children
}

fn new_pages_show_in_all() {
    let (file, turn) = (stamped(2 * WINDOW), Shared::new());
    file.punch(PAGE as u64, PAGE as u64).unwrap();
    assert_eq!(file.write_at(&stamp(1).to_ne_bytes(), PAGE as u64), Ok(8));
    let children = sharers(&file, &turn, 8, |map| {
        assert_eq!(map.get_u64(PAGE + 8), 9);
        expect_stamps(map, 0);
    });
    file.write_at(&9u64.to_ne_bytes(), PAGE as u64 + 8).unwrap();
    turn.set(1, 1);
    children.into_iter().for_each(Child::ok);
}

fn punch_shows_in_all() {
    let (file, turn) = (stamped(2 * WINDOW), Shared::new());
    let children = sharers(&file, &turn, 16, |map| {
        for at in (0..map.length).step_by(PAGE) {
            let punched = (PAGE..WINDOW + 3 * PAGE).contains(&at);
            assert_eq!(map.get_u64(at), if punched { 0 } else { stamp(at / PAGE) });
        }
    });
    file.punch(PAGE as u64, (WINDOW + 2 * PAGE) as u64).unwrap();
    turn.set(1, 1);
    children.into_iter().for_each(Child::ok);
}

fn truncation_reaches_all() {
    let (file, turn) = (stamped(2 * WINDOW), Shared::new());
    let children = sharers(&file, &turn, 8, |map| {
        let at = map.address + WINDOW + PAGE;
        assert_eq!(fault::read(at), Err(Fault::bus(at)));
        assert_eq!(map.get_u64(WINDOW), stamp(WINDOW / PAGE));
        turn.add(2);
        turn.wait(1, 2);
        assert_eq!((map.get_u64(WINDOW + PAGE), map.get_u64(2 * WINDOW - PAGE)), (0, 0));
        assert_eq!(map.get_u64(WINDOW + 8), 0);
    });
    let map = file.map(2 * WINDOW, RW, SHARED).unwrap();
    map.set_u64(WINDOW + 8, 5);
    file.truncate(WINDOW as u64 + 8).unwrap();
    turn.set(1, 1);
    turn.wait(2, 8);
    file.truncate(2 * WINDOW as u64).unwrap();
    turn.set(1, 2);
    children.into_iter().for_each(Child::ok);
}

fn rights_are_of_the_mapping() {
    let file = stamped(2 * WINDOW);
    let (reader, writer) =
        (file.map(2 * WINDOW, R, SHARED).unwrap(), file.map(2 * WINDOW, RW, SHARED).unwrap());
    writer.set(9, 1);
    assert_eq!(reader.get(9), 1);
    assert_eq!(fault::write(reader.address, 1), Err(Fault::forbidden(reader.address)));
    mprotect(writer.address, 2 * WINDOW, R).unwrap();
    assert_eq!(fault::write(writer.address, 1), Err(Fault::forbidden(writer.address)));
    mprotect(reader.address, 2 * WINDOW, RW).unwrap();
    assert_eq!(fault::write(reader.address + 9, 2), Ok(()));
    assert_eq!(writer.get(9), 2);
}

fn prot_none_and_back() {
    let file = stamped(2 * WINDOW);
    let map = file.map(2 * WINDOW, RW, SHARED).unwrap();
    expect_stamps(&map, 0);
    mprotect(map.address, 2 * WINDOW, NONE).unwrap();
    assert_eq!(fault::read(map.address), Err(Fault::forbidden(map.address)));
    mprotect(map.address, 2 * WINDOW, R).unwrap();
    expect_stamps(&map, 0);
    assert_eq!(fault::write(map.address, 1), Err(Fault::forbidden(map.address)));
}

fn partial_mprotect() {
    let file = stamped(3 * WINDOW);
    let (map, other) = (file.map(3 * WINDOW, RW, SHARED).unwrap(), file.map(3 * WINDOW, RW, SHARED).unwrap());
    let part = map.address + WINDOW + 4 * PAGE;
    mprotect(part, 4 * PAGE, R).unwrap();
    assert_eq!(fault::write(part, 1), Err(Fault::forbidden(part)));
    assert_eq!(fault::write(part - 8, 1), Ok(()));
    assert_eq!(fault::write(part + 4 * PAGE + 8, 1), Ok(()));
    other.set_u64(WINDOW + 4 * PAGE, 7);
    assert_eq!(map.get_u64(WINDOW + 4 * PAGE), 7);
    file.punch(0, 3 * WINDOW as u64).unwrap();
    for at in (0..3 * WINDOW).step_by(PAGE) {
        assert_eq!((map.get_u64(at), other.get_u64(at)), (0, 0));
    }
    mprotect(part, 4 * PAGE, RW).unwrap();
    map.set_u64(WINDOW + 5 * PAGE, 8);
    assert_eq!(other.get_u64(WINDOW + 5 * PAGE), 8);
}

fn partial_munmap() {
    let file = stamped(3 * WINDOW);
    let (map, other) = (file.map(3 * WINDOW, RW, SHARED).unwrap(), file.map(3 * WINDOW, RW, SHARED).unwrap());
    expect_stamps(&map, 0);
    let hole = map.address + WINDOW + PAGE;
    munmap(hole, 2 * PAGE).unwrap();
    assert_eq!(fault::read(hole), Err(Fault::unmapped(hole)));
    assert_eq!(fault::read(hole + PAGE), Err(Fault::unmapped(hole + PAGE)));
    expect_stamps(&other, 0);
    expect_stamps_at(map.address, WINDOW + PAGE, 0);
    mmap(hole, 2 * PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
    assert_eq!(fault::read(hole), Ok(0));
    expect_stamps(&other, 0);
    munmap(map.address, 3 * WINDOW).unwrap();
    assert_eq!(fault::read(map.address), Err(Fault::unmapped(map.address)));
    expect_stamps(&other, 0);
}

fn fixed_map_inside() {
    let file = stamped(2 * WINDOW);
    let (map, other) = (file.map(2 * WINDOW, RW, SHARED).unwrap(), file.map(2 * WINDOW, RW, SHARED).unwrap());
    expect_stamps(&map, 0);
    let inside = map.address + 8 * PAGE;
    mmap(inside, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
    assert_eq!(map.get_u64(8 * PAGE), 0);
    map.set_u64(8 * PAGE, 1);
    // The file's own page once more, and another file's.
    mmap(inside + PAGE, PAGE, RW, SHARED | FIXED, file.raw(), 0).unwrap();
    assert_eq!(map.get_u64(9 * PAGE), stamp(0));
    let strange = stamped(WINDOW);
    mmap(map.address + WINDOW, WINDOW, RW, SHARED | FIXED, strange.raw(), 0).unwrap();
    assert_eq!(map.get_u64(WINDOW), stamp(0));
    assert_eq!(map.get_u64(10 * PAGE), stamp(10));
    expect_stamps(&other, 0);
}

fn moved_and_grown() {
    let file = stamped(4 * WINDOW);
    let map = file.map(2 * WINDOW, RW, SHARED).unwrap();
    expect_stamps(&map, 0);
    let to = Map::reserve(4 * WINDOW, WINDOW);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let moved = mremap(map.address, 2 * WINDOW, 3 * WINDOW, flags, to.address).unwrap();
    assert_eq!(fault::read(map.address), Err(Fault::unmapped(map.address)));
    expect_stamps_at(moved, 3 * WINDOW, 0);
    // To where it is not congruent, and a part of a window only.
    let odd = Map::reserve(2 * WINDOW, WINDOW);
    let part = mremap(to.address + PAGE, WINDOW, WINDOW, flags, odd.address).unwrap();
    expect_stamps_at(part, WINDOW, 1);
    let hole = to.address + PAGE;
    assert_eq!(fault::read(hole), Err(Fault::unmapped(hole)));
    assert_eq!(fault::load(to.address), Ok(stamp(0)));
}

fn dontneed_keeps_the_data() {
    let map = Map::new(2 * WINDOW, RW, SHARED | ANON, -1, 0).unwrap();
    (0..2 * WINDOW).step_by(PAGE).for_each(|at| map.set_u64(at, stamp(at / PAGE)));
    madvise(map.address + PAGE, PAGE, libc::MADV_DONTNEED).unwrap();
    expect_stamps(&map, 0);
    madvise(map.address, 2 * WINDOW, libc::MADV_DONTNEED).unwrap();
    assert_eq!(smaps(map.address, "Rss"), 0);
    expect_stamps(&map, 0);
    madvise(map.address + WINDOW, PAGE, libc::MADV_REMOVE).unwrap();
    assert_eq!((map.get_u64(WINDOW), map.get_u64(WINDOW + PAGE)), (0, stamp(WINDOW / PAGE + 1)));
}

fn file_grows_into_windows() {
    let file = stamped(WINDOW / 2);
    let (small, private) =
        (file.map(WINDOW / 2, RW, SHARED).unwrap(), file.map(WINDOW / 2, RW, PRIVATE).unwrap());
    expect_stamps(&small, 0);
    private.set_u64(8, 6);
    file.truncate(2 * WINDOW as u64).unwrap();
    let map = file.map(2 * WINDOW, RW, SHARED).unwrap();
    expect_stamps_at(map.address, WINDOW / 2, 0);
    small.set_u64(8, 4);
    assert_eq!((map.get_u64(8), private.get_u64(8)), (4, 6));
    map.set_u64(PAGE + 8, 5);
    assert_eq!((small.get_u64(PAGE + 8), private.get_u64(PAGE + 8)), (5, 5));
    assert_eq!(map.get_u64(WINDOW), 0);
    // Where there is data, for lseek(2), went along.
    let seek = |offset, whence| {
        // SAFETY: takes integers.
        check(unsafe { libc::lseek(file.raw(), offset, whence) }).unwrap()
    };
    assert_eq!(seek(0, libc::SEEK_HOLE), WINDOW / 2);
    assert_eq!(seek((WINDOW / 2) as i64, libc::SEEK_DATA), WINDOW);
    file.punch(0, WINDOW as u64).unwrap();
    assert_eq!((small.get_u64(8), map.get_u64(8), private.get_u64(8)), (0, 0, 6));
    file.truncate(PAGE as u64).unwrap();
    assert_eq!(fault::read(small.address + PAGE), Err(Fault::bus(small.address + PAGE)));
    assert_eq!(fault::read(map.address + WINDOW), Err(Fault::bus(map.address + WINDOW)));
}

fn private_beside_shared() {
    let file = stamped(2 * WINDOW);
    let (shared, private) =
        (file.map(2 * WINDOW, RW, SHARED).unwrap(), file.map(2 * WINDOW, RW, PRIVATE).unwrap());
    expect_stamps(&private, 0);
    private.set_u64(PAGE, 1);
    shared.set_u64(2 * PAGE, 2);
    assert_eq!((shared.get_u64(PAGE), private.get_u64(2 * PAGE)), (stamp(1), 2));
    file.punch(0, 4 * PAGE as u64).unwrap();
    assert_eq!((private.get_u64(0), private.get_u64(PAGE), private.get_u64(2 * PAGE)), (0, 1, 0));
    file.truncate(PAGE as u64).unwrap();
    assert_eq!(fault::read(private.address + PAGE), Err(Fault::bus(private.address + PAGE)));
}

fn incongruent_mapping() {
    let file = stamped(3 * WINDOW);
    let place = Map::reserve(4 * WINDOW, WINDOW);
    let flags = SHARED | FIXED;
    let at = mmap(place.address + PAGE, 3 * WINDOW, RW, flags, file.raw(), 0).unwrap();
    let (odd, even) = (Map { address: at, length: 3 * WINDOW }, file.map(3 * WINDOW, RW, SHARED).unwrap());
    expect_stamps(&odd, 0);
    odd.set_u64(WINDOW + 8, 1);
    assert_eq!(even.get_u64(WINDOW + 8), 1);
    file.punch(WINDOW as u64, PAGE as u64).unwrap();
    assert_eq!((odd.get_u64(WINDOW), even.get_u64(WINDOW)), (0, 0));
}

fn seen_from_outside() {
    let (file, turn) = (stamped(2 * WINDOW), Shared::new());
    let map = file.map(2 * WINDOW, RW, SHARED).unwrap();
    let child = fork(|| {
        turn.add(0);
        turn.wait(1, 1);
        assert_eq!(map.get_u64(WINDOW + 8), 42);
    });
    turn.wait(0, 1);
    let mut word = 0u64;
    let remote = |at: usize| libc::iovec { iov_base: (map.address + at) as *mut _, iov_len: 8 };
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    // SAFETY: the local range is the word, the remote one is the child's.
    unsafe {
        assert_eq!(libc::process_vm_readv(child.pid, &local, 1, &remote(3 * PAGE), 1, 0), 8);
        assert_eq!(std::ptr::read_volatile(&raw const word), stamp(3));
        std::ptr::write_volatile(&raw mut word, 42);
        assert_eq!(libc::process_vm_writev(child.pid, &local, 1, &remote(WINDOW + 8), 1, 0), 8);
    }
    let memory = Fd::open(&format!("/proc/{}/mem", child.pid), libc::O_RDONLY).unwrap();
    let mut bytes = [0; 8];
    assert_eq!(memory.read_at(&mut bytes, (map.address + 4 * PAGE) as u64), Ok(8));
    assert_eq!(u64::from_ne_bytes(bytes), stamp(4));
    turn.set(1, 1);
    child.ok();
}

/// The field of the area at an address in smaps, in kB.
fn smaps(address: usize, name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("{address:x}-")));
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect(name);
    value.split_whitespace().next().unwrap().parse().unwrap()
}

fn residency_is_told() {
    // The program may be a file on tmpfs itself: in a first round it comes in.
    residency(|_, _| true);
    residency(|value, expected| (expected..expected + 128).contains(&value));
}

fn residency(is_near: impl Fn(u64, u64) -> bool) {
    let file = Fd::temporary();
    file.truncate(4 * WINDOW as u64).unwrap();
    let rss = || procfs::status(sys::pid(), "RssShmem");
    let before = rss();
    let map = file.map(4 * WINDOW, RW, SHARED).unwrap();
    (0..WINDOW).step_by(PAGE).for_each(|at| map.set_u64(at, 1));
    map.set_u64(3 * WINDOW, 1);
    let kib = (WINDOW + PAGE) as u64 / 1024;
    assert!(is_near(rss(), before + kib), "{} kB, {before} kB before", rss());
    assert_eq!((smaps(map.address, "Rss"), smaps(map.address, "Pss")), (kib, kib));
    assert_eq!(smaps(map.address, "Private_Dirty"), kib);
    assert_eq!(smaps(map.address, "Anonymous"), 0);
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let shared: u64 = statm.split(' ').nth(2).unwrap().parse().unwrap();
    assert!(shared >= kib / 4, "{statm}");
    let resident = mem::mincore(map.address, 4 * WINDOW).unwrap();
    assert_eq!(resident.iter().filter(|page| **page).count(), WINDOW / PAGE + 1);
    assert!(resident[3 * WINDOW / PAGE] && !resident[WINDOW / PAGE]);
    let pagemap = Fd::open("/proc/self/pagemap", libc::O_RDONLY).unwrap();
    let word = |at: usize| {
        let mut word = [0; 8];
        assert_eq!(pagemap.read_at(&mut word, ((map.address + at) / PAGE * 8) as u64), Ok(8));
        u64::from_ne_bytes(word) >> 56
    };
    // Present, of a file, mapped by nobody else.
    assert_eq!((word(0) & 0xa1, word(3 * WINDOW) & 0xa1, word(WINDOW)), (0xa1, 0xa1, 0));
    let peak = procfs::status(sys::pid(), "VmHWM");
    map.unmap().unwrap();
    assert!(is_near(rss(), before), "{} kB, {before} kB before", rss());
    // Linux sums its counters up now and then only.
    assert!(procfs::status(sys::pid(), "VmHWM") + 1024 >= peak);
}

fn sharing_is_told() {
    let (file, turn) = (stamped(2 * WINDOW), Shared::new());
    let map = file.map(2 * WINDOW, RW, SHARED).unwrap();
    expect_stamps(&map, 0);
    let child = fork(|| {
        expect_stamps(&map, 0);
        turn.add(0);
        turn.wait(1, 1);
    });
    turn.wait(0, 1);
    let kib = 2 * WINDOW as u64 / 1024;
    assert_eq!((smaps(map.address, "Rss"), smaps(map.address, "Pss")), (kib, kib / 2));
    let shared = smaps(map.address, "Shared_Clean") + smaps(map.address, "Shared_Dirty");
    assert_eq!(shared, kib);
    assert!(procfs::status(child.pid, "RssShmem") >= kib);
    turn.set(1, 1);
    child.ok();
    assert_eq!(smaps(map.address, "Pss"), kib);
}

/// Who maps a page counts, whichever tables show it to him.
fn sharing_by_other_tables_is_told() {
    let (file, kib) = (stamped(2 * WINDOW), 2 * WINDOW as u64 / 1024);
    let map = file.map(2 * WINDOW, RW, SHARED).unwrap();
    expect_stamps(&map, 0);
    let place = Map::anonymous(4 * WINDOW);
    let at = place.address.next_multiple_of(WINDOW) + PAGE;
    mmap(at, 2 * WINDOW, R, SHARED | FIXED, file.raw(), 0).unwrap();
    expect_stamps_at(at, 2 * WINDOW, 0);
    let private = file.map(2 * WINDOW, R, PRIVATE).unwrap();
    expect_stamps(&private, 0);
    for area in [map.address, at, private.address] {
        let (rss, pss) = (smaps(area, "Rss"), smaps(area, "Pss"));
        assert_eq!((rss, pss.abs_diff(kib / 3) <= 1), (kib, true), "{pss} kB");
        assert_eq!(smaps(area, "Shared_Clean") + smaps(area, "Shared_Dirty"), kib);
    }
    munmap(at, 2 * WINDOW).unwrap();
    private.unmap().unwrap();
    assert_eq!((smaps(map.address, "Pss"), smaps(map.address, "Shared_Dirty")), (kib, 0));
}

fn sharing_of_a_gibibyte_is_told() {
    let (file, turn) = (Fd::temporary(), Shared::new());
    file.truncate(GIB as u64).unwrap();
    let wide = file.map(GIB, RW, SHARED).unwrap();
    let narrow = file.map(WINDOW, RW, SHARED).unwrap();
    let touch = || [(&wide, 0), (&wide, 100 * WINDOW), (&narrow, 0)].map(|(map, at)| map.set_u64(at, 1));
    touch();
    let child = fork(|| {
        touch();
        turn.add(0);
        turn.wait(1, 1);
    });
    turn.wait(0, 1);
    assert_eq!((smaps(wide.address, "Rss"), smaps(narrow.address, "Rss")), (8, 4));
    // One page has four mappings, the other two.
    assert_eq!((smaps(wide.address, "Pss"), smaps(narrow.address, "Pss")), (3, 1));
    assert_eq!(smaps(wide.address, "Shared_Dirty"), 8);
    turn.set(1, 1);
    child.ok();
    assert_eq!((smaps(wide.address, "Pss"), smaps(narrow.address, "Pss")), (6, 2));
    assert_eq!((smaps(wide.address, "Private_Dirty"), smaps(wide.address, "Shared_Dirty")), (4, 4));
}

fn locked_windows() {
    let map = Map::new(2 * WINDOW, RW, SHARED | ANON, -1, 0).unwrap();
    // SAFETY: the range is mapped.
    check(unsafe { libc::mlock((map.address + PAGE) as *const _, WINDOW) }).unwrap();
    assert!(mem::mincore(map.address + PAGE, WINDOW).unwrap().iter().all(|page| *page));
    assert_eq!(smaps(map.address + PAGE, "Locked"), WINDOW as u64 / 1024);
    // SAFETY: as above.
    check(unsafe { libc::munlock(map.address as *const _, 2 * WINDOW) }).unwrap();
    map.set_u64(0, 1);
    assert_eq!(smaps(map.address, "Locked"), 0);
}

fn futex_in_a_window() {
    let (file, turn) = (stamped(2 * WINDOW), Shared::new());
    let map = file.map(2 * WINDOW, RW, SHARED).unwrap();
    let child = fork(|| {
        let own = file.map(2 * WINDOW, RW, SHARED).unwrap();
        own.atomic(WINDOW).store(0, Ordering::SeqCst);
        turn.add(0);
        while own.atomic(WINDOW).load(Ordering::SeqCst) == 0 {
            roundtable_programs::shared::wait(own.atomic(WINDOW), 0, None);
        }
    });
    turn.wait(0, 1);
    map.atomic(WINDOW).store(1, Ordering::SeqCst);
    roundtable_programs::shared::wake(map.atomic(WINDOW), 1);
    child.ok();
}

/// Children store their mark and look at it, while holes are punched: they find it, or nothing, never another page's.
fn faults_against_punches() {
    let file = Fd::temporary();
    file.truncate(2 * WINDOW as u64).unwrap();
    let stop = Shared::new();
    let pages = 64;
    let worker = |number: usize| {
        let (file, stop) = (&file, &stop);
        move || {
            let map = file.map(2 * WINDOW, RW, SHARED).unwrap();
            while stop.get(0) == 0 {
                for page in (number..pages).step_by(3) {
                    let at = page * PAGE + number * 8;
                    map.set_u64(at, stamp(page));
                    let found = map.get_u64(at);
                    assert!(found == stamp(page) || found == 0, "page {page} has {found:#x}");
                }
                // Now and then with no table, or with its own.
                madvise(map.address, WINDOW, libc::MADV_DONTNEED).unwrap();
            }
        }
    };
    let children: Vec<Child> = (0..3).map(|number| fork(worker(number))).collect();
    for round in 0..300 {
        file.punch((round % 8 * 8 * PAGE) as u64, (8 * PAGE) as u64).unwrap();
        if round % 50 == 0 {
            file.truncate(WINDOW as u64).unwrap();
            file.truncate(2 * WINDOW as u64).unwrap();
        }
    }
    stop.set(0, 1);
    children.into_iter().for_each(Child::ok);
    file.punch(0, 2 * WINDOW as u64).unwrap();
    let map = file.map(2 * WINDOW, RW, SHARED).unwrap();
    assert!((0..pages).all(|page| map.is_all(page * PAGE, PAGE, 0)));
}

/// Threads read one half of a mapping while another cuts and mends the other half.
fn windows_against_cuts() {
    let file = stamped(4 * WINDOW);
    let map = file.map(4 * WINDOW, RW, SHARED).unwrap();
    let stop = Shared::new();
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (map, stop) = (&map, &stop);
            scope.spawn(move || {
                while stop.get(0) == 0 {
                    for page in 0..WINDOW / PAGE {
                        let index = number * WINDOW / PAGE + page;
                        assert_eq!(map.get_u64(index * PAGE), stamp(index));
                    }
                }
            });
        }
        for round in 0..20 {
            let at = map.address + WINDOW + (round % 512) * PAGE;
            mprotect(at, PAGE, R).unwrap();
            mprotect(map.address, 4 * WINDOW, RW).unwrap();
            madvise(map.address, 4 * WINDOW, libc::MADV_DONTNEED).unwrap();
            mmap(map.address + 2 * WINDOW, WINDOW + PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
            let offset = 2 * WINDOW as i64;
            mmap(map.address + 2 * WINDOW, WINDOW + PAGE, RW, SHARED | FIXED, file.raw(), offset).unwrap();
        }
        stop.set(0, 1);
    });
    expect_stamps(&map, 0);
}

fn seals_count_windows() {
    let file = Fd::memfd("sealed", libc::MFD_ALLOW_SEALING).unwrap();
    file.truncate(2 * WINDOW as u64).unwrap();
    let seal = || {
        // SAFETY: takes integers.
        check(unsafe { libc::fcntl(file.raw(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) })
    };
    let map = file.map(2 * WINDOW, RW, SHARED).unwrap();
    map.set(0, 1);
    assert_eq!(seal(), Err(roundtable_programs::Errno::EBUSY));
    munmap(map.address + WINDOW, WINDOW).unwrap();
    assert_eq!(seal(), Err(roundtable_programs::Errno::EBUSY));
    map.unmap().unwrap();
    seal().unwrap();
}
