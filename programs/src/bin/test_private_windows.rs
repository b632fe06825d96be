//! Private mappings of files in base pages: they show the file by its tables, window by window, until somebody stores there.
//!
//! What programs see is the same on Linux. Faults and tables are counted only where files have tables.

use std::sync::atomic::{AtomicUsize, Ordering};

use roundtable_programs::child::{fork, in_child};
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::GIB;
use roundtable_programs::mem::{self, FIXED, Map, NONE, PRIVATE, R, RW, SHARED, madvise, mprotect, mremap};
use roundtable_programs::ordinary::{
    PAGE, WINDOW, counter, expect_no_faults, expect_stamps, expect_stamps_at, has_tables, stamp, stamped,
};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{self, check};
use roundtable_programs::{procfs, tests};

tests! { newcomer_faults_nothing: 60, the_file_shows_until_a_store: 60, stores_stay_private: 60,
a_gibibyte_with_a_store: 60, rights_come_and_go: 60, forced_stores: 60, stores_by_the_kernel: 60, fork_keeps_apart: 60,
punches_and_truncations: 60, discarded_copies: 60, moved_with_copies: 60, partial_changes: 60, residency_is_told: 60,
sharing_is_told: 60, a_store_among_readers: 120, copies_are_seen_at_once: 120, large_programs_start_attached: 60 }

/// Page `page` of a mapping, its address.
fn at(map: &Map, page: usize) -> usize {
    map.address + page * PAGE
}

fn newcomer_faults_nothing() {
    let file = stamped(4 * WINDOW);
    for protection in [R, RW, libc::PROT_READ | libc::PROT_EXEC] {
        let map = file.map(4 * WINDOW, protection, PRIVATE).unwrap();
        expect_no_faults(|| expect_stamps(&map, 0));
    }
    let map = file.map_at(WINDOW as u64, 2 * WINDOW, R, PRIVATE).unwrap();
    expect_no_faults(|| expect_stamps(&map, WINDOW / PAGE));
    in_child(|| {
        expect_no_faults(|| expect_stamps(&map, WINDOW / PAGE));
        let other = file.map(4 * WINDOW, RW, PRIVATE).unwrap();
        expect_no_faults(|| expect_stamps(&other, 0));
    });
}

fn the_file_shows_until_a_store() {
    let file = stamped(2 * WINDOW);
    let map = file.map(2 * WINDOW, RW, PRIVATE).unwrap();
    expect_stamps(&map, 0);
    file.write_at(&7u64.to_ne_bytes(), 8).unwrap();
    file.write_at(&7u64.to_ne_bytes(), PAGE as u64 + 8).unwrap();
    assert_eq!((map.get_u64(8), map.get_u64(PAGE + 8)), (7, 7));
    map.set_u64(16, 1);
    file.write_at(&9u64.to_ne_bytes(), 8).unwrap();
    file.write_at(&9u64.to_ne_bytes(), PAGE as u64 + 8).unwrap();
    // The page that was stored to is a copy, its neighbour is still the file's.
    assert_eq!((map.get_u64(8), map.get_u64(PAGE + 8)), (7, 9));
    expect_stamps(&map, 0);
}

fn stores_stay_private() {
    let file = stamped(4 * WINDOW);
    let maps: Vec<Map> = (0..3).map(|_| file.map(4 * WINDOW, RW, PRIVATE).unwrap()).collect();
    let shared = file.map(4 * WINDOW, RW, SHARED).unwrap();
    maps.iter().for_each(|map| expect_stamps(map, 0));
    let left = has_tables().then(|| counter("left"));
    for (number, map) in maps.iter().enumerate() {
        (number..1024).step_by(7).for_each(|page| map.set_u64(page * PAGE, number as u64));
    }
    // Two of the four windows, of three mappings.
    if let Some(left) = left {
        assert_eq!(counter("left") - left, 6);
    }
    expect_stamps(&shared, 0);
    let mut word = [0; 8];
    for (number, map) in maps.iter().enumerate() {
        for page in 0..2048 {
            let own = page < 1024 && page % 7 == number % 7;
            assert_eq!(map.get_u64(page * PAGE), if own { number as u64 } else { stamp(page) });
            file.read_at(&mut word, (page * PAGE) as u64).unwrap();
            assert_eq!(u64::from_ne_bytes(word), stamp(page));
        }
    }
}

fn a_gibibyte_with_a_store() {
    let file = Fd::temporary();
    file.truncate(2 * GIB as u64).unwrap();
    let places: Vec<usize> = (0..2 * GIB).step_by(64 * WINDOW).collect();
    for place in &places {
        file.write_at(&stamp(place / PAGE).to_ne_bytes(), *place as u64).unwrap();
    }
    let map = file.map(2 * GIB, RW, PRIVATE).unwrap();
    let shows = |except: usize| {
        for place in places.iter().filter(|place| **place != except) {
            assert_eq!(map.get_u64(*place), stamp(place / PAGE), "at {place:#x}");
        }
    };
    expect_no_faults(|| shows(usize::MAX));
    map.set_u64(places[5], 1);
    shows(places[5]);
    in_child(|| {
        shows(places[5]);
        assert_eq!(map.get_u64(places[5]), 1);
        map.set_u64(places[12], 2);
        shows_all_but(&map, &places, &[5, 12]);
    });
    assert_eq!(map.get_u64(places[12]), stamp(places[12] / PAGE));
    let mut word = [0; 8];
    file.read_at(&mut word, places[5] as u64).unwrap();
    assert_eq!(u64::from_ne_bytes(word), stamp(places[5] / PAGE));
}

fn shows_all_but(map: &Map, places: &[usize], except: &[usize]) {
    for (_, place) in places.iter().enumerate().filter(|(number, _)| !except.contains(number)) {
        assert_eq!(map.get_u64(*place), stamp(place / PAGE));
    }
}

fn rights_come_and_go() {
    let file = stamped(2 * WINDOW);
    let map = file.map(2 * WINDOW, R, PRIVATE).unwrap();
    expect_stamps(&map, 0);
    assert_eq!(fault::write(map.address, 1), Err(Fault::forbidden(map.address)));
    mprotect(map.address, map.length, RW).unwrap();
    expect_stamps(&map, 0);
    map.set_u64(3 * PAGE, 1);
    mprotect(map.address, map.length, NONE).unwrap();
    assert_eq!(fault::read(at(&map, 3)), Err(Fault::forbidden(at(&map, 3))));
    assert_eq!(fault::read(at(&map, 600)), Err(Fault::forbidden(at(&map, 600))));
    mprotect(map.address, map.length, R).unwrap();
    assert_eq!((map.get_u64(3 * PAGE), map.get_u64(4 * PAGE)), (1, stamp(4)));
    assert_eq!(fault::write(at(&map, 600), 1), Err(Fault::forbidden(at(&map, 600))));
    expect_stamps_at(map.address + WINDOW, WINDOW, WINDOW / PAGE);
    let shared = file.map(2 * WINDOW, R, SHARED).unwrap();
    expect_stamps(&shared, 0);
}

/// A debugger stores where the program may not: to a copy.
fn forced_stores() {
    let (file, turn) = (stamped(2 * WINDOW), Shared::new());
    let map = file.map(2 * WINDOW, R, PRIVATE).unwrap();
    expect_stamps(&map, 0);
    let child = fork(|| {
        expect_stamps(&map, 0);
        turn.add(0);
        turn.wait(1, 1);
        assert_eq!((map.get_u64(5 * PAGE), map.get_u64(6 * PAGE)), (42, stamp(6)));
    });
    turn.wait(0, 1);
    let memory = Fd::open(&format!("/proc/{}/mem", child.pid), libc::O_RDWR).unwrap();
    let mut word = [0; 8];
    assert_eq!(memory.read_at(&mut word, at(&map, 5) as u64), Ok(8));
    assert_eq!(u64::from_ne_bytes(word), stamp(5));
    assert_eq!(memory.write_at(&42u64.to_ne_bytes(), at(&map, 5) as u64), Ok(8));
    for (page, value) in [(5, 42), (6, stamp(6))] {
        assert_eq!(memory.read_at(&mut word, at(&map, page) as u64), Ok(8));
        assert_eq!(u64::from_ne_bytes(word), value);
    }
    turn.set(1, 1);
    child.ok();
    expect_stamps(&map, 0);
}

/// read(2) and process_vm_writev(2) store to a copy as the program does.
fn stores_by_the_kernel() {
    let (file, other) = (stamped(2 * WINDOW), stamped(2 * WINDOW));
    let map = file.map(2 * WINDOW, RW, PRIVATE).unwrap();
    expect_stamps(&map, 0);
    // SAFETY: the buffer is in the mapping.
    let read = unsafe { libc::pread(other.raw(), at(&map, 9) as *mut _, 8, 100 * PAGE as i64) };
    assert_eq!(check(read as i64), Ok(8));
    let mut word = 43u64;
    let remote = libc::iovec { iov_base: at(&map, 600) as *mut _, iov_len: 8 };
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    // SAFETY: the local range is the word, the remote one is in the mapping.
    assert_eq!(unsafe { libc::process_vm_writev(sys::pid(), &local, 1, &remote, 1, 0) }, 8);
    assert_eq!((map.get_u64(9 * PAGE), map.get_u64(600 * PAGE)), (stamp(100), 43));
    let again = file.map(2 * WINDOW, R, PRIVATE).unwrap();
    expect_stamps(&again, 0);
}

fn fork_keeps_apart() {
    let file = stamped(3 * WINDOW);
    let map = file.map(3 * WINDOW, RW, PRIVATE).unwrap();
    expect_stamps(&map, 0);
    (0..100).for_each(|page| map.set_u64(page * PAGE, 1));
    let turn = Shared::new();
    let child = fork(|| {
        (0..100).for_each(|page| assert_eq!(map.get_u64(page * PAGE), 1));
        expect_stamps_at(at(&map, 100), 3 * WINDOW - 100 * PAGE, 100);
        map.set_u64(8, 2);
        map.set_u64(600 * PAGE, 2);
        turn.add(0);
        turn.wait(1, 1);
        assert_eq!(
            (map.get_u64(8), map.get_u64(601 * PAGE), map.get_u64(1100 * PAGE)),
            (2, stamp(601), stamp(1100))
        );
        in_child(|| {
            assert_eq!((map.get_u64(8), map.get_u64(600 * PAGE), map.get_u64(99 * PAGE)), (2, 2, 1));
            map.set_u64(700 * PAGE, 3);
        });
        assert_eq!(map.get_u64(700 * PAGE), stamp(700));
    });
    turn.wait(0, 1);
    assert_eq!((map.get_u64(8), map.get_u64(600 * PAGE)), (0, stamp(600)));
    map.set_u64(601 * PAGE, 4);
    map.set_u64(1100 * PAGE, 4);
    turn.set(1, 1);
    child.ok();
    assert_eq!(
        (map.get_u64(601 * PAGE), map.get_u64(1100 * PAGE), map.get_u64(700 * PAGE)),
        (4, 4, stamp(700))
    );
}

fn punches_and_truncations() {
    let file = stamped(3 * WINDOW);
    let (map, reader) =
        (file.map(3 * WINDOW, RW, PRIVATE).unwrap(), file.map(3 * WINDOW, R, PRIVATE).unwrap());
    expect_stamps(&map, 0);
    expect_stamps(&reader, 0);
    map.set_u64(8, 1);
    map.set_u64(2 * WINDOW + 8, 1);
    file.punch(0, (WINDOW + PAGE) as u64).unwrap();
    // A copy stays.
    assert_eq!((map.get_u64(8), map.get_u64(0), map.get_u64(PAGE), map.get_u64(WINDOW)), (1, stamp(0), 0, 0));
    assert_eq!(
        (reader.get_u64(0), reader.get_u64(WINDOW), reader.get_u64(WINDOW + PAGE)),
        (0, 0, stamp(513))
    );
    file.truncate((WINDOW + 2 * PAGE) as u64).unwrap();
    // A truncation takes copies, too.
    for place in [2 * WINDOW, WINDOW + 2 * PAGE] {
        assert_eq!(fault::read(map.address + place), Err(Fault::bus(map.address + place)));
        assert_eq!(fault::write(map.address + place, 1), Err(Fault::bus(map.address + place)));
        assert_eq!(fault::read(reader.address + place), Err(Fault::bus(reader.address + place)));
    }
    file.truncate(3 * WINDOW as u64).unwrap();
    assert_eq!((map.get_u64(2 * WINDOW + 8), reader.get_u64(2 * WINDOW)), (0, 0));
    assert_eq!((map.get_u64(8), map.get_u64(WINDOW + PAGE)), (1, stamp(513)));
}

fn discarded_copies() {
    let file = stamped(2 * WINDOW);
    let map = file.map(2 * WINDOW, RW, PRIVATE).unwrap();
    expect_stamps(&map, 0);
    (0..600).for_each(|page| map.set_u64(page * PAGE, 1));
    madvise(at(&map, 10), 20 * PAGE, libc::MADV_DONTNEED).unwrap();
    assert_eq!((map.get_u64(9 * PAGE), map.get_u64(30 * PAGE)), (1, 1));
    expect_stamps_at(at(&map, 10), 20 * PAGE, 10);
    madvise(map.address, map.length, libc::MADV_DONTNEED).unwrap();
    expect_stamps(&map, 0);
    map.set_u64(PAGE, 3);
    assert_eq!((map.get_u64(PAGE), map.get_u64(2 * PAGE)), (3, stamp(2)));
}

fn moved_with_copies() {
    let file = stamped(3 * WINDOW);
    let map = file.map(2 * WINDOW, RW, PRIVATE).unwrap();
    expect_stamps(&map, 0);
    map.set_u64(5 * PAGE, 1);
    for shift in [0, PAGE] {
        let to = Map::reserve(4 * WINDOW, WINDOW);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let source = if shift == 0 { map.address } else { MOVED.load(Ordering::SeqCst) };
        let length = if shift == 0 { 2 * WINDOW } else { 3 * WINDOW };
        let new = mremap(source, length, 3 * WINDOW, flags, to.address + shift).unwrap();
        MOVED.store(new, Ordering::SeqCst);
        std::mem::forget(to);
        let moved = std::mem::ManuallyDrop::new(Map { address: new, length: 3 * WINDOW });
        assert_eq!(moved.get_u64(5 * PAGE), 1);
        expect_stamps_at(new, 5 * PAGE, 0);
        expect_stamps_at(new + 6 * PAGE, 3 * WINDOW - 6 * PAGE, 6);
    }
    std::mem::forget(map);
}

/// Where the mapping of [`moved_with_copies`] went.
static MOVED: AtomicUsize = AtomicUsize::new(0);

fn partial_changes() {
    let file = stamped(3 * WINDOW);
    let map = file.map(3 * WINDOW, RW, PRIVATE).unwrap();
    expect_stamps(&map, 0);
    mprotect(at(&map, 600), PAGE, R).unwrap();
    assert_eq!(fault::write(at(&map, 600), 1), Err(Fault::forbidden(at(&map, 600))));
    map.set_u64(601 * PAGE, 1);
    mem::munmap(at(&map, 3), PAGE).unwrap();
    assert_eq!(fault::read(at(&map, 3)), Err(Fault::unmapped(at(&map, 3))));
    mem::mmap(at(&map, 3), PAGE, RW, PRIVATE | FIXED, file.raw(), 77 * PAGE as i64).unwrap();
    assert_eq!(map.get_u64(3 * PAGE), stamp(77));
    map.set_u64(3 * PAGE, 2);
    assert_eq!(
        (map.get_u64(2 * PAGE), map.get_u64(4 * PAGE), map.get_u64(77 * PAGE)),
        (stamp(2), stamp(4), stamp(77))
    );
    expect_stamps_at(at(&map, 602), 3 * WINDOW - 602 * PAGE, 602);
}

/// The field of the area at an address in smaps, in kB.
fn smaps(address: usize, name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("{address:x}-")));
    let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).expect("the field in smaps")
}

fn residency_is_told() {
    let file = stamped(4 * WINDOW);
    let before = procfs::status(sys::pid(), "RssShmem");
    // The test's own program lies on tmpfs, too.
    let expect = |kilobytes: u64| {
        let more = procfs::status(sys::pid(), "RssShmem") - before;
        assert!((kilobytes..kilobytes + 1024).contains(&more), "{more} kB, not {kilobytes}");
    };
    let map = file.map(4 * WINDOW, RW, PRIVATE).unwrap();
    expect_stamps(&map, 0);
    let kilobytes = 4 * WINDOW as u64 / 1024;
    expect(kilobytes);
    assert_eq!((smaps(map.address, "Rss"), smaps(map.address, "Anonymous")), (kilobytes, 0));
    (0..2048).step_by(2).for_each(|page| map.set_u64(page * PAGE, 1));
    expect_stamps_at(at(&map, 1), PAGE, 1);
    (0..2048).for_each(|page| _ = map.get_u64(page * PAGE));
    assert_eq!((smaps(map.address, "Rss"), smaps(map.address, "Anonymous")), (kilobytes, kilobytes / 2));
    expect(kilobytes / 2);
    assert!(mem::mincore(map.address, map.length).unwrap().into_iter().all(|resident| resident));
}

fn sharing_is_told() {
    let file = stamped(2 * WINDOW);
    let map = file.map(2 * WINDOW, RW, PRIVATE).unwrap();
    expect_stamps(&map, 0);
    let kilobytes = 2 * WINDOW as u64 / 1024;
    assert_eq!(smaps(map.address, "Pss"), kilobytes);
    let (other, turn) = (file.map(2 * WINDOW, R, SHARED).unwrap(), Shared::new());
    expect_stamps(&other, 0);
    assert_eq!((smaps(map.address, "Pss"), smaps(other.address, "Pss")), (kilobytes / 2, kilobytes / 2));
    let child = fork(|| {
        expect_stamps(&map, 0);
        expect_stamps(&other, 0);
        turn.add(0);
        turn.wait(1, 1);
    });
    turn.wait(0, 1);
    assert_eq!(smaps(map.address, "Pss"), kilobytes / 4);
    (0..1024).for_each(|page| map.set_u64(page * PAGE, 1));
    assert_eq!((smaps(map.address, "Pss"), smaps(map.address, "Private_Dirty")), (kilobytes, kilobytes));
    turn.set(1, 1);
    child.ok();
}

/// Threads read in all windows without an end. A store in one of them gets on, and so do its successors.
fn a_store_among_readers() {
    let file = stamped(4 * WINDOW);
    let stop = Shared::new();
    for round in 0..20u64 {
        let map = file.map(4 * WINDOW, RW, PRIVATE).unwrap();
        stop.set(0, 0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while stop.get(0) == 0 {
                        for window in 0..4 {
                            let page = window * 512 + 3;
                            assert_eq!(map.get_u64(page * PAGE), stamp(page));
                        }
                    }
                });
            }
            for window in 0..4 {
                map.set_u64(window * WINDOW, round);
                assert_eq!(map.get_u64(window * WINDOW), round);
            }
            stop.set(0, 1);
        });
    }
}

/// What a thread stores is what another one reads as soon as it is told, whatever it has read there before.
fn copies_are_seen_at_once() {
    const WINDOWS: usize = 16;
    let file = stamped(WINDOWS * WINDOW);
    for _ in 0..10 {
        let map = file.map(WINDOWS * WINDOW, RW, PRIVATE).unwrap();
        let turn = Shared::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for window in 0..WINDOWS {
                    // In the TLB of this CPU, as the file's page.
                    assert_eq!(map.get_u64(window * WINDOW), stamp(window * 512));
                    turn.set(0, window as u32 + 1);
                    while turn.get(1) != window as u32 + 1 {
                        std::thread::yield_now();
                    }
                    assert_eq!(map.get_u64(window * WINDOW), 1);
                }
            });
            // Two threads make the window their own at the same time.
            scope.spawn(|| {
                for window in 0..WINDOWS {
                    while turn.get(0) < window as u32 + 1 {
                        std::thread::yield_now();
                    }
                    map.set_u64(window * WINDOW + PAGE, 2);
                }
            });
            for window in 0..WINDOWS {
                while turn.get(0) < window as u32 + 1 {
                    std::thread::yield_now();
                }
                map.set_u64(window * WINDOW, 1);
                turn.set(1, window as u32 + 1);
            }
        });
        assert!((0..WINDOWS).all(|window| map.get_u64(window * WINDOW + PAGE) == 2));
    }
    let shared = file.map(WINDOWS * WINDOW, R, SHARED).unwrap();
    expect_stamps(&shared, 0);
}

/// A position-independent program of one segment of so many pages, which reads a byte of each and ends.
fn reader_of(pages: u32) -> Vec<u8> {
    const ENTRY: u64 = 0x100;
    let length = u64::from(pages) * PAGE as u64;
    let mut image = vec![1; length as usize];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        image[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_DYN, x86-64, version 1.
    put(&[3, 0, 62, 0, 1, 0, 0, 0]);
    [ENTRY, 64, 0].iter().for_each(|word| put(&word.to_le_bytes()));
    // Flags; sizes of the header and of its one program header.
    put(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // PT_LOAD to read and to execute: offset, two addresses, two sizes, alignment.
    put(&[1, 0, 0, 0, 5, 0, 0, 0]);
    [0, 0, 0, length, length, PAGE as u64].iter().for_each(|word| put(&word.to_le_bytes()));
    let count = pages.to_le_bytes();
    let code: [&[u8]; 8] = [
        // lea rsi, [the begin]; mov ecx, pages
        &[0x48, 0x8d, 0x35, 0xf9, 0xfe, 0xff, 0xff, 0xb9],
        &count,
        // again: mov al, [rsi]; add rsi, 4096
        &[0x8a, 0x06, 0x48, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00],
        // dec ecx; jnz again
        &[0xff, 0xc9],
        &[0x75, 0xf3],
        // exit(0)
        &[0x31, 0xff],
        &[0xb8, 0x3c, 0x00, 0x00, 0x00],
        &[0x0f, 0x05],
    ];
    let code = code.concat();
    image[ENTRY as usize..ENTRY as usize + code.len()].copy_from_slice(&code);
    image
}

/// The text of a program shows by the tables of its file as well.
fn large_programs_start_attached() {
    const PATH: &str = "/tmp/large-program";
    std::fs::write(PATH, reader_of(4096)).unwrap();
    let path = sys::c_string(PATH);
    // SAFETY: the path is a string.
    check(unsafe { libc::chmod(path.as_ptr(), 0o755) }).unwrap();
    for _ in 0..8 {
        let count = faults_of_children(|| {
            in_child(|| {
                let arguments = [path.as_ptr(), std::ptr::null()];
                // SAFETY: the arguments are strings and end.
                unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) };
                panic!("execv: {}", std::io::Error::last_os_error());
            });
        });
        // A fault maps no more than 16 pages of an area.
        assert!(!has_tables() || count < 200, "{count} faults");
    }
    std::fs::remove_file(PATH).unwrap();
}

/// Minor faults of the children that end while `work` runs.
fn faults_of_children(work: impl FnOnce()) -> i64 {
    let count = || {
        // SAFETY: zeroes are a value of the structure, which the call fills.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        check(unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) }).unwrap();
        usage.ru_minflt
    };
    let before = count();
    work();
    count() - before
}
