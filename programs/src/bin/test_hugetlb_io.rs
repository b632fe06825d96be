//! The kernel reads and writes huge memory: files, pipes, sockets, futexes; and programs that end in the middle.

use std::time::Duration;

use roundtable_programs::child::{self, End};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::huge::{self, HUGE, expect_pool, sized};
use roundtable_programs::mem::{ANON, Map, PRIVATE, R, RW, SHARED};
use roundtable_programs::shared::{self, Shared};
use roundtable_programs::{Errno, sys, tests};

tests! { write_to_a_file, read_into_absent_pages, read_across_a_page_border, pipe_both_ways, bad_part_is_efault,
read_into_empty_pool_is_efault, readv_into_pieces, futex_between_processes, futex_private_mapping,
atomics_between_processes, killed_while_writing, exits_with_threads, copy_into_cow_page, getrandom_into_huge }

/// SAFETY of all raw reads and writes below: the kernel checks each address.
fn read_to(fd: &Fd, address: usize, length: usize) -> Result<usize, Errno> {
    // SAFETY: as above.
    sys::check(unsafe { libc::read(fd.raw(), address as *mut _, length) as i64 })
}

fn write_from(fd: &Fd, address: usize, length: usize) -> Result<usize, Errno> {
    // SAFETY: as above.
    sys::check(unsafe { libc::write(fd.raw(), address as *const _, length) as i64 })
}

fn seek(fd: &Fd, to: i64) {
    // SAFETY: takes integers.
    sys::check(unsafe { libc::lseek(fd.raw(), to, libc::SEEK_SET) }).unwrap();
}

fn pattern(at: usize) -> u8 {
    (at * 7 + at / 4096) as u8
}

fn write_to_a_file() {
    huge::pool(2);
    let map = sized(2).map(2 * HUGE, RW, SHARED).unwrap();
    (0..100_000).for_each(|at| map.set(HUGE - 50_000 + at, pattern(at)));
    let file = Fd::temporary();
    assert_eq!(write_from(&file, map.address + HUGE - 50_000, 100_000), Ok(100_000));
    let mut buffer = vec![0; 100_000];
    assert_eq!(file.read_at(&mut buffer, 0), Ok(100_000));
    assert!(buffer.iter().enumerate().all(|(at, &byte)| byte == pattern(at)));
}

fn read_into_absent_pages() {
    huge::pool(3);
    let file = Fd::temporary();
    let data: Vec<u8> = (0..2 * HUGE + 5).map(pattern).collect();
    assert_eq!(file.write(&data), Ok(data.len()));
    seek(&file, 0);
    let map = sized(3).map(3 * HUGE, RW, SHARED).unwrap();
    assert_eq!(read_to(&file, map.address, data.len()), Ok(data.len()));
    assert!((0..data.len()).step_by(97).all(|at| map.get(at) == pattern(at)));
    assert_eq!(map.get(data.len()), 0);
    expect_pool(0, 0);
}

fn read_across_a_page_border() {
    huge::pool(2);
    let map = sized(2).map(2 * HUGE, RW, SHARED).unwrap();
    let file = Fd::temporary();
    file.write(b"0123456789").unwrap();
    seek(&file, 0);
    assert_eq!(read_to(&file, map.address + HUGE - 5, 10), Ok(10));
    assert_eq!((map.get(HUGE - 1), map.get(HUGE)), (b'4', b'5'));
}

fn pipe_both_ways() {
    huge::pool(2);
    let map = sized(2).map(2 * HUGE, RW, SHARED).unwrap();
    let (read, write) = pipe(0);
    (0..HUGE).step_by(64).for_each(|at| map.set(at, pattern(at)));
    let child = child::fork(|| assert_eq!(write_from(&write, map.address, HUGE), Ok(HUGE)));
    let mut done = 0;
    while done < HUGE {
        done += read_to(&read, map.address + HUGE + done, HUGE - done).unwrap();
    }
    child.ok();
    assert!((0..HUGE).step_by(64).all(|at| map.get(HUGE + at) == pattern(at)));
}

fn bad_part_is_efault() {
    huge::pool(2);
    let place = Map::reserve(2 * HUGE, HUGE);
    let file = sized(1);
    roundtable_programs::mem::mmap(place.address, HUGE, RW, SHARED | libc::MAP_FIXED, file.raw(), 0).unwrap();
    let source = Fd::temporary();
    source.write(&[7; 8192]).unwrap();
    seek(&source, 0);
    // What fits is read, the rest is not.
    let got = read_to(&source, place.address + HUGE - 4096, 8192).unwrap();
    assert!(got <= 4096, "{got}");
    assert_eq!(read_to(&source, place.address + HUGE, 10), Err(Errno::EFAULT));
}

fn read_into_empty_pool_is_efault() {
    huge::pool(1);
    let map =
        Map::new(2 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB | libc::MAP_NORESERVE, -1, 0).unwrap();
    map.set(0, 1);
    let file = Fd::temporary();
    file.write(b"data").unwrap();
    seek(&file, 0);
    assert_eq!(read_to(&file, map.address + HUGE, 4), Err(Errno::EFAULT));
    assert_eq!(read_to(&file, map.address, 4), Ok(4));
}

fn readv_into_pieces() {
    huge::pool(2);
    let map = sized(2).map(2 * HUGE, RW, SHARED).unwrap();
    let file = Fd::temporary();
    file.write(b"abcdefgh").unwrap();
    let piece = |at: usize| libc::iovec { iov_base: (map.address + at) as *mut _, iov_len: 4 };
    let pieces = [piece(HUGE + 10), piece(10)];
    // SAFETY: the kernel checks each address.
    let got = sys::check(unsafe { libc::preadv(file.raw(), pieces.as_ptr(), 2, 0) as i64 });
    assert_eq!(got, Ok(8));
    assert_eq!((map.get(HUGE + 10), map.get(10)), (b'a', b'e'));
}

fn futex_between_processes() {
    huge::pool(1);
    let file = sized(1);
    let map = file.map(HUGE, RW, SHARED).unwrap();
    // The other process has the page at another address: the key must be the page, not the address.
    let child = child::fork(|| {
        let other = file.map(HUGE, RW, SHARED).unwrap();
        assert_ne!(other.address, map.address);
        let word = other.atomic(1_000_000);
        while word.load(SeqCst) == 0 {
            let errno = shared::wait(word, 0, Some(Duration::from_secs(20)));
            assert!(errno == 0 || errno == libc::EAGAIN || errno == libc::EINTR, "errno {errno}");
        }
        other.atomic(1_000_004).store(1, SeqCst);
        shared::wake(other.atomic(1_000_004), 1);
    });
    std::thread::sleep(Duration::from_millis(50));
    map.atomic(1_000_000).store(1, SeqCst);
    shared::wake(map.atomic(1_000_000), 1);
    while map.atomic(1_000_004).load(SeqCst) == 0 {
        let errno = shared::wait(map.atomic(1_000_004), 0, Some(Duration::from_secs(20)));
        assert!(errno == 0 || errno == libc::EAGAIN, "errno {errno}");
    }
    child.ok();
}

use std::sync::atomic::Ordering::SeqCst;

fn futex_private_mapping() {
    huge::pool(1);
    let map = Map::new(HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    let word = map.atomic(4096);
    assert_eq!(shared::wait(word, 1, None), libc::EAGAIN);
    assert_eq!(shared::wait(word, 0, Some(Duration::from_millis(10))), libc::ETIMEDOUT);
    assert_eq!(shared::wake(word, 1), 0);
}

fn atomics_between_processes() {
    huge::pool(1);
    let map = sized(1).map(HUGE, RW, SHARED).unwrap();
    let children: Vec<_> = (0..4)
        .map(|_| {
            child::fork(|| {
                for _ in 0..5000 {
                    map.atomic(8).fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    children.into_iter().for_each(|child| child.ok());
    assert_eq!(map.atomic(8).load(SeqCst), 20_000);
}

fn killed_while_writing() {
    huge::pool(16);
    for round in 0..10 {
        let file = sized(4);
        let started = Shared::new();
        let child = child::fork(|| {
            let private = Map::new(4 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
            let shared = file.map(4 * HUGE, RW, SHARED).unwrap();
            started.add(0);
            for turn in 0.. {
                private.set(turn % 4 * HUGE, 1);
                shared.set(turn % 4 * HUGE, 1);
                roundtable_programs::mem::madvise(private.address, 4 * HUGE, libc::MADV_DONTNEED).unwrap();
            }
        });
        started.wait(0, 1);
        std::thread::sleep(Duration::from_millis(round));
        child.kill(libc::SIGKILL);
        assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
        drop(file);
        huge::expect_counters(huge::Counters { total: 16, free: 16, reserved: 0, surplus: 0 });
    }
}

fn exits_with_threads() {
    huge::pool(8);
    let end = child::fork_code(|| {
        for index in 0..4 {
            std::thread::spawn(move || {
                let map = Map::new(2 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
                loop {
                    map.set(index, 1);
                    map.set(HUGE + index, 1);
                }
            });
        }
        std::thread::sleep(Duration::from_millis(100));
        9
    });
    assert_eq!(end.wait(), End::Code(9));
    huge::expect_counters(huge::Counters { total: 8, free: 8, reserved: 0, surplus: 0 });
}

fn copy_into_cow_page() {
    huge::pool(4);
    let map = Map::new(HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    map.set(0, 1);
    map.set(1, 2);
    let file = Fd::temporary();
    file.write(b"x").unwrap();
    child::in_child(|| {
        seek(&file, 0);
        // The kernel's own write has to copy the page as the processor's would.
        assert_eq!(read_to(&file, map.address, 1), Ok(1));
        assert_eq!((map.get(0), map.get(1)), (b'x', 2));
    });
    assert_eq!((map.get(0), map.get(1)), (1, 2));
}

fn getrandom_into_huge() {
    huge::pool(1);
    let file = sized(1);
    let map = file.map(HUGE, RW, SHARED).unwrap();
    // SAFETY: the kernel checks the address.
    let got = sys::check(unsafe { libc::getrandom((map.address + 100) as *mut _, 256, 0) as i64 });
    assert_eq!(got, Ok(256));
    assert!((0..256).any(|at| map.get(100 + at) != 0));
    assert_eq!((map.get(99), map.get(356)), (0, 0));
    let view = file.map(HUGE, R, SHARED).unwrap();
    assert_eq!(view.get(150), map.get(150));
}
