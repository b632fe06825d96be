//! Private memory over fork, where parent and child share page tables until one of them changes something.
//!
//! What programs see is the same on Linux. Copies of tables are counted only where fork shares them.

use std::sync::atomic::{AtomicBool, Ordering};

use roundtable_programs::child::{self, Child, in_child};
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::inject::Injector;
use roundtable_programs::leak::Baseline;
use roundtable_programs::mem::{
    ANON, FIXED, Map, NONE, PRIVATE, R, RW, madvise, mincore, mmap, mprotect, mremap, munmap,
};
use roundtable_programs::shared::{self, Shared};
use roundtable_programs::sys::{self, check, faults};
use roundtable_programs::{Errno, procfs, tests};

tests! { child_and_parent_are_apart: 60, generations: 60, many_children: 60, reading_copies_nothing: 60,
last_one_takes_back: 60, calls_in_the_child: 60, calls_in_the_parent: 60, stored_to_from_outside: 60,
futexes: 60, threads_store_during_fork: 100, killed_while_storing: 60, half_not_for_the_child: 60,
file_in_a_gap: 60, several_areas: 60, few_pages: 60, execute: 60, failing_calls: 60, failing_fork: 60 }

const PAGE: usize = 4096;
const WINDOW: usize = 2 << 20;
const PAGES: usize = WINDOW / PAGE;
const COUNTERS: &str = "/sys/kernel/mm/file_tables";

fn shares_tables() -> bool {
    std::fs::read_to_string(format!("{COUNTERS}/fork_mode")).is_ok_and(|mode| mode.trim() == "on")
}

/// How much a counter of shared tables grows while `work` runs, if fork shares them.
fn growth(counter: &str, work: impl FnOnce()) -> Option<u64> {
    let count = || shares_tables().then(|| procfs::number(&format!("{COUNTERS}/{counter}")));
    let before = count();
    work();
    Some(count()? - before?)
}

/// What the page at `offset` has at its begin in a generation.
fn stamp(offset: usize, generation: u64) -> u64 {
    generation << 32 | (offset / PAGE) as u64
}

/// Private memory of whole windows, at a multiple of a window, with nothing beside it.
fn windows(count: usize) -> Map {
    let place = Map::reserve((count + 2) * WINDOW, WINDOW);
    let start = place.address + WINDOW;
    mmap(start, count * WINDOW, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
    munmap(place.address, WINDOW).unwrap();
    munmap(start + count * WINDOW, WINDOW).unwrap();
    std::mem::forget(place);
    Map { address: start, length: count * WINDOW }
}

/// As [`windows`], each page stamped.
fn stamped(count: usize) -> Map {
    let map = windows(count);
    put_stamps(&map, (0..map.length).step_by(PAGE), 0);
    map
}

fn put_stamps(map: &Map, offsets: impl Iterator<Item = usize>, generation: u64) {
    offsets.for_each(|at| map.set_u64(at, stamp(at, generation)));
}

#[track_caller]
fn expect_stamps(map: &Map, offsets: impl Iterator<Item = usize>, generation: u64) {
    offsets.for_each(|at| assert_eq!(map.get_u64(at), stamp(at, generation), "at {at:#x}"));
}

fn all(map: &Map) -> impl Iterator<Item = usize> + use<> {
    (0..map.length).step_by(PAGE)
}

fn child_and_parent_are_apart() {
    let (map, turn) = (stamped(3), Shared::new());
    let mut child = None;
    let shared = growth("fork_shared", || {
        child = Some(child::fork(|| {
            expect_stamps(&map, all(&map), 0);
            // The first window as a whole, and one page of the second.
            put_stamps(&map, (0..WINDOW).step_by(PAGE), 1);
            put_stamps(&map, WINDOW + 5 * PAGE..WINDOW + 5 * PAGE + 1, 1);
            turn.add(0);
            turn.wait(1, 1);
            expect_stamps(&map, (0..WINDOW).step_by(PAGE), 1);
            assert_eq!(map.get_u64(WINDOW + 5 * PAGE), stamp(WINDOW + 5 * PAGE, 1));
            expect_stamps(&map, (WINDOW..2 * WINDOW).step_by(PAGE).filter(|at| *at != WINDOW + 5 * PAGE), 0);
            expect_stamps(&map, (2 * WINDOW..3 * WINDOW).step_by(PAGE), 0);
        }));
    });
    assert!(shared.is_none_or(|count| count >= 3), "{shared:?} tables shared");
    turn.wait(0, 1);
    expect_stamps(&map, all(&map), 0);
    put_stamps(&map, (WINDOW..3 * WINDOW).step_by(PAGE), 2);
    turn.add(1);
    child.unwrap().ok();
    expect_stamps(&map, (0..WINDOW).step_by(PAGE), 0);
    expect_stamps(&map, (WINDOW..3 * WINDOW).step_by(PAGE), 2);
    in_child(|| expect_stamps(&map, (WINDOW..3 * WINDOW).step_by(PAGE), 2));
}

/// Each generation stores to pages of its own, forks the next, and finds all as it was.
fn generation(map: &Map, number: u64, last: u64) {
    let own = |number: u64| (number as usize * PAGE..map.length).step_by(16 * PAGE);
    put_stamps(map, own(number), number);
    if number < last {
        in_child(|| generation(map, number + 1, last));
    }
    for older in 1..=number {
        expect_stamps(map, own(older), older);
    }
    for younger in number + 1..=last {
        expect_stamps(map, own(younger), 0);
    }
    expect_stamps(map, (0..map.length).step_by(16 * PAGE), 0);
}

fn generations() {
    let map = stamped(2);
    generation(&map, 1, 8);
    expect_stamps(&map, all(&map).filter(|at| at / PAGE % 16 != 1), 0);
}

fn many_children() {
    let (map, turn) = (stamped(2), Shared::new());
    let children: Vec<Child> = (0..8)
        .map(|number: usize| {
            let child = child::fork(|| {
                turn.wait(1, 1);
                // All at once: some copy the table, others leave it, one may be the last.
                if number.is_multiple_of(2) {
                    put_stamps(&map, (number * PAGE..WINDOW).step_by(64 * PAGE), 1);
                    expect_stamps(&map, (number * PAGE..WINDOW).step_by(64 * PAGE), 1);
                }
                expect_stamps(&map, (PAGE..map.length).step_by(2 * PAGE), 0);
            });
            // Stores between two forks are for those who come later.
            map.set_u64(WINDOW, number as u64);
            child
        })
        .collect();
    turn.set(1, 1);
    put_stamps(&map, (0..WINDOW).step_by(PAGE), 7);
    children.into_iter().for_each(Child::ok);
    expect_stamps(&map, (0..WINDOW).step_by(PAGE), 7);
    expect_stamps(&map, (WINDOW + PAGE..2 * WINDOW).step_by(PAGE), 0);
}

/// The field of the area at an address in smaps, in kB.
fn smaps(address: usize, name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("{address:x}-")));
    let row = lines.find_map(|line| line.strip_prefix(&format!("{name}:")));
    row.and_then(|row| row.split_whitespace().next()?.parse().ok()).expect("a row of smaps")
}

/// Is the page at `offset` mapped by this process alone?
fn is_exclusive(map: &Map, offset: usize) -> bool {
    let mut word = [0; 8];
    let pagemap = Fd::open("/proc/self/pagemap", libc::O_RDONLY).unwrap();
    assert_eq!(pagemap.read_at(&mut word, ((map.address + offset) / PAGE * 8) as u64), Ok(8));
    let word = u64::from_ne_bytes(word);
    assert_eq!(word >> 63, 1, "no page at {offset:#x}");
    word >> 56 & 1 == 1
}

fn reading_copies_nothing() {
    let (map, kib) = (stamped(2), 2 * WINDOW as u64 / 1024);
    assert!(is_exclusive(&map, PAGE));
    assert_eq!((smaps(map.address, "Rss"), smaps(map.address, "Pss")), (kib, kib));
    let anonymous = procfs::status(sys::pid(), "RssAnon");
    in_child(|| {
        let before = faults().0;
        expect_stamps(&map, all(&map), 0);
        let count = faults().0 - before;
        // The test's own stack and data fault.
        assert!(!shares_tables() || count < 16, "{count} faults");
        assert!(mincore(map.address, map.length).unwrap().iter().all(|there| *there));
        let own = procfs::status(sys::pid(), "RssAnon");
        assert!(own.abs_diff(anonymous) < 512, "RssAnon is {own}, the parent's {anonymous}");
        assert_eq!((smaps(map.address, "Rss"), smaps(map.address, "Pss")), (kib, kib / 2));
        assert_eq!((smaps(map.address, "Shared_Dirty"), smaps(map.address, "Private_Dirty")), (kib, 0));
        assert_eq!(smaps(map.address, "Anonymous"), kib);
        assert!(!is_exclusive(&map, PAGE));
        // One page becomes the child's own.
        map.set(PAGE, 9);
        assert!(is_exclusive(&map, PAGE) && !is_exclusive(&map, 2 * PAGE));
        assert_eq!((smaps(map.address, "Private_Dirty"), smaps(map.address, "Rss")), (4, kib));
    });
    assert!(is_exclusive(&map, PAGE));
    assert_eq!((smaps(map.address, "Pss"), smaps(map.address, "Private_Dirty")), (kib, kib));
}

fn last_one_takes_back() {
    let map = stamped(2);
    in_child(|| expect_stamps(&map, all(&map), 0));
    // The child is gone: nothing is to be copied, neither tables nor pages.
    let before = faults().0;
    let copies = growth("fork_copies_made", || put_stamps(&map, all(&map), 1));
    let count = faults().0 - before;
    assert!(
        !shares_tables() || copies.is_some_and(|copies| copies < 2) && count < 16,
        "{copies:?}, {count} faults"
    );
    expect_stamps(&map, all(&map), 1);
    // And where a child has copied before it went.
    in_child(|| put_stamps(&map, all(&map), 2));
    put_stamps(&map, (0..map.length).step_by(2 * PAGE), 3);
    expect_stamps(&map, (0..map.length).step_by(2 * PAGE), 3);
    expect_stamps(&map, (PAGE..map.length).step_by(2 * PAGE), 1);
}

/// A call in memory of three windows whose pages have stamps of generation 0, and what has to come of it.
type Call = (&'static str, fn(&Map));

const CALLS: &[Call] = &[
    ("munmap of a part", |map| {
        munmap(map.address + WINDOW + 8 * PAGE, 8 * PAGE).unwrap();
        assert_eq!(
            fault::read(map.address + WINDOW + 8 * PAGE),
            Err(Fault::unmapped(map.address + WINDOW + 8 * PAGE))
        );
        expect_stamps(map, all(map).filter(|at| !(WINDOW + 8 * PAGE..WINDOW + 16 * PAGE).contains(at)), 0);
        put_stamps(map, 0..1, 5);
        put_stamps(map, WINDOW..WINDOW + 1, 5);
    }),
    ("munmap across windows", |map| {
        munmap(map.address + WINDOW - PAGE, WINDOW + 2 * PAGE).unwrap();
        expect_stamps(map, (0..WINDOW - PAGE).step_by(PAGE), 0);
        expect_stamps(map, (2 * WINDOW + PAGE..3 * WINDOW).step_by(PAGE), 0);
    }),
    ("munmap of all", |map| munmap(map.address, map.length).unwrap()),
    ("mprotect of a part", |map| {
        let at = WINDOW + 3 * PAGE;
        mprotect(map.address + at, 4 * PAGE, R).unwrap();
        assert_eq!(fault::write(map.address + at, 1), Err(Fault::forbidden(map.address + at)));
        mprotect(map.address + at, 4 * PAGE, RW).unwrap();
        put_stamps(map, (at..at + 4 * PAGE).step_by(PAGE), 6);
        expect_stamps(map, (at..at + 4 * PAGE).step_by(PAGE), 6);
        expect_stamps(map, (at + 4 * PAGE..map.length).step_by(PAGE), 0);
    }),
    ("mprotect of all", |map| {
        mprotect(map.address, map.length, NONE).unwrap();
        assert_eq!(fault::read(map.address + WINDOW), Err(Fault::forbidden(map.address + WINDOW)));
        mprotect(map.address, map.length, R).unwrap();
        expect_stamps(map, all(map), 0);
        assert_eq!(fault::write(map.address, 1), Err(Fault::forbidden(map.address)));
        mprotect(map.address, map.length, RW).unwrap();
        put_stamps(map, all(map), 6);
        expect_stamps(map, all(map), 6);
    }),
    ("mremap of a part", |map| {
        let (at, length) = (WINDOW + 3 * PAGE, WINDOW);
        let moved = mremap(map.address + at, length, length + PAGE, libc::MREMAP_MAYMOVE, 0).unwrap();
        let moved = Map { address: moved, length: length + PAGE };
        for offset in (0..length).step_by(PAGE) {
            assert_eq!(moved.get_u64(offset), stamp(at + offset, 0), "at {offset:#x}");
            moved.set_u64(offset, 1);
        }
        assert_eq!(moved.get_u64(length), 0);
        expect_stamps(map, (0..at).step_by(PAGE).chain((at + length..map.length).step_by(PAGE)), 0);
    }),
    ("mremap within shared windows", |map| {
        munmap(map.address + 2 * WINDOW, 4 * PAGE).unwrap();
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let target = map.address + 2 * WINDOW;
        assert_eq!(mremap(map.address, 4 * PAGE, 4 * PAGE, flags, target), Ok(target));
        (0..4).for_each(|page| assert_eq!(map.get_u64(2 * WINDOW + page * PAGE), stamp(page * PAGE, 0)));
        expect_stamps(map, (4 * PAGE..2 * WINDOW).step_by(PAGE), 0);
        expect_stamps(map, (2 * WINDOW + 4 * PAGE..3 * WINDOW).step_by(PAGE), 0);
    }),
    ("mremap that leaves the area", |map| {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
        let moved = Map { address: mremap(map.address, WINDOW, WINDOW, flags, 0).unwrap(), length: WINDOW };
        expect_stamps(&moved, all(&moved), 0);
        assert!((0..WINDOW).step_by(PAGE).all(|at| map.get_u64(at) == 0));
        expect_stamps(map, (WINDOW..3 * WINDOW).step_by(PAGE), 0);
    }),
    ("MADV_DONTNEED of a part", |map| {
        let part = WINDOW / 2..2 * WINDOW + WINDOW / 2;
        madvise(map.address + part.start, part.len(), libc::MADV_DONTNEED).unwrap();
        assert!(part.clone().step_by(PAGE).all(|at| map.get_u64(at) == 0));
        expect_stamps(map, all(map).filter(|at| !part.contains(at)), 0);
        put_stamps(map, all(map), 8);
        expect_stamps(map, all(map), 8);
    }),
    ("MADV_DONTNEED of all", |map| {
        let before = procfs::status(sys::pid(), "RssAnon");
        madvise(map.address, map.length, libc::MADV_DONTNEED).unwrap();
        let after = procfs::status(sys::pid(), "RssAnon");
        assert!(after + 5 * 1024 < before, "RssAnon was {before}, is {after}");
        assert!(mincore(map.address, map.length).unwrap().iter().all(|there| !there));
        put_stamps(map, (0..map.length).step_by(7 * PAGE), 8);
        expect_stamps(map, (0..map.length).step_by(7 * PAGE), 8);
    }),
    ("MAP_FIXED over a part", |map| {
        let at = map.address + WINDOW + PAGE;
        mmap(at, 2 * PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
        assert_eq!((map.get_u64(WINDOW + PAGE), map.get_u64(WINDOW + 2 * PAGE)), (0, 0));
        expect_stamps(map, (0..WINDOW + PAGE).step_by(PAGE), 0);
        expect_stamps(map, (WINDOW + 3 * PAGE..map.length).step_by(PAGE), 0);
    }),
    ("mlock", |map| {
        // SAFETY: locks what is mapped.
        unsafe {
            check(libc::mlock((map.address + PAGE) as *const _, 4 * PAGE)).unwrap();
            check(libc::munlock((map.address + PAGE) as *const _, 4 * PAGE)).unwrap();
        }
        expect_stamps(map, all(map), 0);
    }),
    ("reading into it", |map| {
        // Stores of the kernel's.
        let zero = Fd::open("/dev/zero", libc::O_RDONLY).unwrap();
        // SAFETY: inside the mapping, which Rust knows nothing of.
        let bytes = unsafe { std::slice::from_raw_parts_mut((map.address + PAGE) as *mut u8, 2 * PAGE) };
        assert_eq!(zero.read(bytes), Ok(2 * PAGE));
        assert_eq!((map.get_u64(PAGE), map.get_u64(2 * PAGE)), (0, 0));
        expect_stamps(map, (3 * PAGE..map.length).step_by(PAGE), 0);
    }),
];

fn calls_in_the_child() {
    for (name, call) in CALLS {
        let map = stamped(3);
        let child = child::fork(|| call(&map));
        assert_eq!(child.wait(), child::End::Code(0), "{name}");
        expect_stamps(&map, all(&map), 0);
        put_stamps(&map, (0..map.length).step_by(32 * PAGE), 1);
        expect_stamps(&map, (0..map.length).step_by(32 * PAGE), 1);
    }
}

fn calls_in_the_parent() {
    for (name, call) in CALLS {
        let (map, turn) = (stamped(3), Shared::new());
        let child = child::fork(|| {
            turn.wait(0, 1);
            expect_stamps(&map, all(&map), 0);
            put_stamps(&map, (0..map.length).step_by(32 * PAGE), 1);
            expect_stamps(&map, (PAGE..map.length).step_by(32 * PAGE), 0);
        });
        println!("# {name}");
        call(&map);
        turn.add(0);
        child.ok();
    }
}

fn stored_to_from_outside() {
    let (map, turn) = (stamped(2), Shared::new());
    let child = child::fork(|| {
        turn.wait(0, 1);
        assert_eq!((map.get_u64(8), map.get_u64(WINDOW)), (42, 43));
        expect_stamps(&map, (0..WINDOW).step_by(PAGE), 0);
    });
    let mut word = 42u64;
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: (map.address + 8) as *mut _, iov_len: 8 };
    // SAFETY: the local range is the word, the remote one is the child's.
    assert_eq!(unsafe { libc::process_vm_writev(child.pid, &local, 1, &remote, 1, 0) }, 8);
    let memory = Fd::open(&format!("/proc/{}/mem", child.pid), libc::O_RDWR).unwrap();
    assert_eq!(memory.write_at(&43u64.to_ne_bytes(), (map.address + WINDOW) as u64), Ok(8));
    assert_eq!((map.get_u64(8), map.get_u64(WINDOW)), (0, stamp(WINDOW, 0)));
    turn.add(0);
    child.ok();
    expect_stamps(&map, all(&map), 0);
}

fn futexes() {
    let map = stamped(1);
    map.atomic(PAGE).store(0, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            while map.atomic(PAGE).load(Ordering::SeqCst) == 0 {
                shared::wait(map.atomic(PAGE), 0, None);
            }
        });
        // The word is in a table that the child shares.
        let turn = Shared::new();
        let child = child::fork(|| {
            map.atomic(PAGE).store(2, Ordering::SeqCst);
            assert_eq!(shared::wake(map.atomic(PAGE), 1), 0, "the child wakes a thread of the parent");
            assert_eq!(shared::wait(map.atomic(PAGE), 1, None), libc::EAGAIN);
            turn.wait(0, 1);
        });
        assert_eq!(map.atomic(PAGE).load(Ordering::SeqCst), 0);
        map.atomic(PAGE).store(1, Ordering::SeqCst);
        shared::wake(map.atomic(PAGE), i32::MAX);
        sleeper.join().unwrap();
        turn.add(0);
        child.ok();
    });
}

/// A thread stores numbers that grow, page by page: whoever looks at one moment finds a part with one number
/// and behind it a part with the one before.
fn threads_store_during_fork() {
    const LENGTH: usize = WINDOW;
    let (map, end) = (windows(2), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for part in [0, LENGTH] {
            let (map, end) = (&map, &end);
            scope.spawn(move || {
                let mut round = 0;
                while !end.load(Ordering::SeqCst) {
                    round += 1;
                    (part..part + LENGTH).step_by(PAGE).for_each(|at| map.set_u64(at, round));
                }
                assert!((part..part + LENGTH).step_by(PAGE).all(|at| map.get_u64(at) == round));
            });
        }
        for _ in 0..20 {
            in_child(|| {
                let look = || (0..map.length).step_by(PAGE).map(|at| map.get_u64(at));
                let first: Vec<u64> = look().collect();
                for part in first.chunks(LENGTH / PAGE) {
                    let (most, least) = (part[0], part[part.len() - 1]);
                    let border = part.iter().position(|round| *round != most).unwrap_or(part.len());
                    assert!(most - least <= 1, "rounds {least} to {most}");
                    assert!(part[border..].iter().all(|round| *round == least), "no moment was like this");
                }
                std::thread::yield_now();
                assert!(look().eq(first.iter().copied()), "the parent's stores reach the child");
                put_stamps(&map, (0..map.length).step_by(64 * PAGE), 9);
            });
        }
        end.store(true, Ordering::SeqCst);
    });
}

fn killed_while_storing() {
    let map = stamped(4);
    in_child(|| ());
    let baseline = Baseline::take();
    for round in 0..8 {
        let turn = Shared::new();
        let child = child::fork(|| {
            turn.add(0);
            loop {
                put_stamps(&map, all(&map), 9);
                madvise(map.address + PAGE, WINDOW, libc::MADV_DONTNEED).unwrap();
            }
        });
        turn.wait(0, 1);
        put_stamps(&map, (round * PAGE..map.length).step_by(16 * PAGE), 0);
        child.end();
        expect_stamps(&map, all(&map), 0);
    }
    baseline.check();
}

fn half_not_for_the_child() {
    let map = stamped(3);
    in_child(|| expect_stamps(&map, all(&map), 0));
    // What is shared already, and what is not.
    map.set_u64(0, stamp(0, 0));
    let inside = map.address + 64 * PAGE;
    madvise(inside, 8 * PAGE, libc::MADV_DONTFORK).unwrap();
    madvise(map.address + WINDOW + 64 * PAGE, 8 * PAGE, libc::MADV_WIPEONFORK).unwrap();
    in_child(|| {
        assert_eq!(fault::read(inside), Err(Fault::unmapped(inside)));
        let wiped = WINDOW + 64 * PAGE..WINDOW + 72 * PAGE;
        assert!(wiped.clone().step_by(PAGE).all(|at| map.get_u64(at) == 0));
        let kept = |at: &usize| !wiped.contains(at) && !(64 * PAGE..72 * PAGE).contains(at);
        expect_stamps(&map, all(&map).filter(kept), 0);
        put_stamps(&map, all(&map).filter(kept), 1);
    });
    expect_stamps(&map, all(&map), 0);
}

fn file_in_a_gap() {
    let map = stamped(2);
    let gap = WINDOW + 100 * PAGE;
    munmap(map.address + gap, 4 * PAGE).unwrap();
    let others = || all(&map).filter(|at| !(gap..gap + 4 * PAGE).contains(at));
    let file = Fd::of_pages(4);
    file.write_at(&[7; 4 * PAGE], 0).unwrap();
    in_child(|| {
        let flags = PRIVATE | FIXED;
        mmap(map.address + gap, 4 * PAGE, RW, flags, file.raw(), 0).unwrap();
        // Nothing of it is there yet, and the table around it is shared.
        file.punch(0, PAGE as u64).unwrap();
        assert_eq!((map.get(gap), map.get(gap + PAGE)), (0, 7));
        map.set(gap + 2 * PAGE, 1);
        file.truncate(2 * PAGE as u64).unwrap();
        assert_eq!(fault::read(map.address + gap + 2 * PAGE), Err(Fault::bus(map.address + gap + 2 * PAGE)));
        assert_eq!(map.get(gap + PAGE), 7);
        expect_stamps(&map, others(), 0);
    });
    assert_eq!(fault::read(map.address + gap), Err(Fault::unmapped(map.address + gap)));
    expect_stamps(&map, others(), 0);
}

/// Areas with other rights in one window, as between stacks and their guards.
fn several_areas() {
    let map = stamped(2);
    for part in (0..map.length).step_by(64 * PAGE) {
        mprotect(map.address + part, PAGE, NONE).unwrap();
        mprotect(map.address + part + PAGE, PAGE, R).unwrap();
    }
    let usable = || all(&map).filter(|at| !matches!(at / PAGE % 64, 0 | 1));
    in_child(|| {
        assert_eq!(fault::read(map.address), Err(Fault::forbidden(map.address)));
        assert_eq!(fault::write(map.address + PAGE, 1), Err(Fault::forbidden(map.address + PAGE)));
        put_stamps(&map, usable().step_by(50), 1);
        mprotect(map.address, map.length, RW).unwrap();
        expect_stamps(&map, usable().step_by(50), 1);
        expect_stamps(&map, (0..map.length).step_by(64 * PAGE), 0);
    });
    in_child(|| {
        // One area of many goes.
        munmap(map.address + 2 * PAGE, 62 * PAGE).unwrap();
        expect_stamps(&map, (WINDOW + 2 * PAGE..WINDOW + 64 * PAGE).step_by(PAGE), 0);
    });
    expect_stamps(&map, usable(), 0);
    munmap(map.address, WINDOW).unwrap();
    expect_stamps(&map, usable().filter(|at| *at >= WINDOW), 0);
}

/// A few pages are copied entry by entry, and behave alike.
fn few_pages() {
    let map = windows(1);
    put_stamps(&map, (0..8 * PAGE).step_by(PAGE), 0);
    let turn = Shared::new();
    let child = child::fork(|| {
        put_stamps(&map, (0..4 * PAGE).step_by(PAGE), 1);
        turn.wait(0, 1);
        expect_stamps(&map, (4 * PAGE..8 * PAGE).step_by(PAGE), 0);
        // It grows beyond what is copied, and is shared with a grandchild.
        put_stamps(&map, all(&map), 2);
        in_child(|| {
            expect_stamps(&map, all(&map), 2);
            put_stamps(&map, all(&map), 3);
        });
        expect_stamps(&map, all(&map), 2);
    });
    put_stamps(&map, (0..8 * PAGE).step_by(PAGE), 4);
    turn.add(0);
    child.ok();
    expect_stamps(&map, (0..8 * PAGE).step_by(PAGE), 4);
}

fn execute() {
    let map = stamped(4);
    in_child(|| ());
    let baseline = Baseline::take();
    for _ in 0..4 {
        let child = child::fork(|| {
            let arguments = [c"test_fork_tables".as_ptr(), c"--list".as_ptr(), std::ptr::null()];
            // SAFETY: the arguments are strings and end; the list goes nowhere.
            unsafe {
                libc::close(1);
                libc::execv(c"/proc/self/exe".as_ptr(), arguments.as_ptr());
            }
            panic!("execv: {}", Errno::last());
        });
        child.wait();
        put_stamps(&map, all(&map), 0);
    }
    expect_stamps(&map, all(&map), 0);
    baseline.check();
}

/// Runs `call` in a child on shared windows until it succeeds, each time with a later allocation that fails.
/// What fails has changed nothing.
fn sweep(name: &str, call: impl Fn(&Map) -> Result<(), Errno>) {
    let (map, injector) = (stamped(2), Injector::new());
    drop(injector);
    let mut failures = 0;
    for nth in 1.. {
        let child = child::fork_code(|| {
            let injector = Injector::new();
            injector.arm(nth);
            let result = call(&map);
            let left = injector.disarm();
            match result {
                Ok(()) => return if left == 0 { 2 } else { 0 },
                Err(error) => assert_eq!(error, Errno::ENOMEM, "{name}, allocation {nth}"),
            }
            // Nothing is changed, and a second attempt succeeds.
            expect_stamps(&map, all(&map), 0);
            put_stamps(&map, (0..map.length).step_by(32 * PAGE), 1);
            expect_stamps(&map, (0..map.length).step_by(32 * PAGE), 1);
            call(&map).unwrap();
            1
        });
        match child.wait() {
            child::End::Code(0) => break,
            child::End::Code(1) => failures += 1,
            child::End::Code(2) => {}
            end => panic!("{name}, allocation {nth}: {end:?}"),
        }
        expect_stamps(&map, all(&map), 0);
        assert!(nth < 100, "{name} never ends");
    }
    assert!(failures > 0 || !shares_tables(), "{name} copies no table that could fail");
}

fn failing_calls() {
    let middle = |map: &Map| map.address + WINDOW - 16 * PAGE;
    sweep("munmap", |map| munmap(middle(map), 32 * PAGE));
    sweep("mprotect", |map| mprotect(middle(map), 32 * PAGE, R));
    sweep("MADV_DONTNEED", |map| madvise(middle(map), 32 * PAGE, libc::MADV_DONTNEED));
    sweep("mremap", |map| {
        mremap(middle(map), 32 * PAGE, 32 * PAGE, libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP, 0).map(drop)
    });
}

fn failing_fork() {
    let (map, injector) = (stamped(2), Injector::new());
    let baseline = Baseline::take();
    for nth in 1.. {
        assert!(nth < 1000, "fork never succeeds");
        injector.arm(nth);
        // SAFETY: the child only looks, and ends.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let right = (0..map.length).step_by(PAGE).all(|at| map.get_u64(at) == stamp(at, 0));
            // SAFETY: ends the process.
            unsafe { libc::_exit(if right { 0 } else { 1 }) };
        }
        let left = injector.disarm();
        if pid > 0 {
            assert_eq!(child::waitpid(pid, 0).unwrap().1, child::End::Code(0));
            if left > 0 {
                break;
            }
        }
        // A table may be shared with a child that did not come to be.
        put_stamps(&map, (nth as usize % PAGES * PAGE..map.length).step_by(16 * PAGE), 0);
        expect_stamps(&map, all(&map), 0);
    }
    baseline.check();
}
