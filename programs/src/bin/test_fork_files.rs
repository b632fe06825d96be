//! Windows over fork that have pages of files beside copies of such, as those of libraries: parent and child share the page table
//! until one of them changes something, and what a file loses goes out of it for all.
//!
//! What programs see is the same on Linux. Tables are counted only where fork shares them.

use std::sync::atomic::{AtomicBool, Ordering};

use roundtable_programs::child::{self, Child, in_child};
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::inject::Injector;
use roundtable_programs::leak::Baseline;
use roundtable_programs::mem::{
    ANON, FIXED, Map, PRIVATE, R, RW, SHARED, madvise, mmap, mprotect, mremap, munmap,
};
use roundtable_programs::ordinary::{PAGE, WINDOW, expect_stamps_at, stamp, stamped};
use roundtable_programs::shared::Shared;
use roundtable_programs::{held, procfs, sys, tests};

tests! { reading_copies_nothing: 60, stores_stay_apart: 60, generations: 60, calls_in_the_child: 60,
calls_in_the_parent: 60, a_punch_is_for_all: 60, a_truncation_is_for_all: 60, shared_mappings_beside: 60,
punches_against_forks: 120, truncations_against_stores: 120, looked_at_while_punched: 120,
killed_while_punched: 120, a_punch_cannot_fail: 60, residency_is_told: 60, own_and_shared_tables: 60, locked_pages_stay: 60, second_forks_are_short: 60, a_discard_cannot_fail: 60 }

const COUNTERS: &str = "/sys/kernel/mm/file_tables";

/// Pages of the file, and of the parts of a window: the file to store to, the file to read, anonymous memory.
const PAGES: usize = 128;
const COPIED: usize = 0;
const READ: usize = 160;
const ANONYMOUS: usize = 320;
/// Every so-manieth page of the first part is a copy.
const EVERY: usize = 8;
const COPY: u64 = 0xc0b1_0000;

/// A window with all three in it, at a multiple of a window, and nothing between them but what may not be touched.
struct Mixed {
    file: Fd,
    start: usize,
    _place: Map,
}

impl Mixed {
    fn new() -> Self {
        let file = stamped(PAGES * PAGE);
        let place = Map::reserve(3 * WINDOW, WINDOW);
        let start = place.address + WINDOW;
        let mixed = Self { file, start, _place: place };
        mmap(mixed.at(COPIED), PAGES * PAGE, RW, PRIVATE | FIXED, mixed.file.raw(), 0).unwrap();
        mmap(mixed.at(READ), PAGES * PAGE, R, PRIVATE | FIXED, mixed.file.raw(), 0).unwrap();
        mmap(mixed.at(ANONYMOUS), PAGES * PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
        for page in (0..PAGES).step_by(EVERY) {
            mixed.store(COPIED + page, COPY + page as u64);
        }
        (0..PAGES).for_each(|page| mixed.store(ANONYMOUS + page, page as u64));
        mixed.expect();
        mixed
    }

    fn at(&self, page: usize) -> usize {
        self.start + page * PAGE
    }

    #[track_caller]
    fn load(&self, page: usize) -> u64 {
        // SAFETY: something is mapped there, or the test is to fail.
        unsafe { (self.at(page) as *const u64).read_volatile() }
    }

    fn store(&self, page: usize, value: u64) {
        // SAFETY: as above.
        unsafe { (self.at(page) as *mut u64).write_volatile(value) };
    }

    /// All is as it was made.
    #[track_caller]
    fn expect(&self) {
        self.expect_copies();
        self.expect_anonymous();
        for page in (0..PAGES).filter(|page| page % EVERY != 0) {
            assert_eq!(self.load(COPIED + page), stamp(page), "page {page}");
        }
        expect_stamps_at(self.at(READ), PAGES * PAGE, 0);
    }

    #[track_caller]
    fn expect_copies(&self) {
        for page in (0..PAGES).step_by(EVERY) {
            assert_eq!(self.load(COPIED + page), COPY + page as u64, "copy {page}");
        }
    }

    #[track_caller]
    fn expect_anonymous(&self) {
        (0..PAGES).for_each(|page| assert_eq!(self.load(ANONYMOUS + page), page as u64));
    }
}

fn shares_tables() -> bool {
    std::fs::read_to_string(format!("{COUNTERS}/fork_mode")).is_ok_and(|mode| mode.trim() == "on")
}

fn counter(name: &str) -> Option<u64> {
    shares_tables().then(|| procfs::number(&format!("{COUNTERS}/{name}")))
}

/// What the first fork puts into the tables is not looked for once more by the second one.
fn second_forks_are_short() {
    const WINDOWS: usize = 32;
    let of_tables = |line: &held::Line| line.iter().any(|word| word.contains("mm/tables.rs"));
    let takes = || {
        held::locks().map(|lines| {
            lines.iter().filter(|line| of_tables(line)).map(|line| held::number(line, 0)).sum::<u64>()
        })
    };
    if !shares_tables() || takes().is_none() {
        skip("this kernel does not share tables, or does not count its locks");
    }
    let all: Vec<Mixed> = (0..WINDOWS).map(|_| Mixed::new()).collect();
    let count = || {
        held::begin_anew();
        in_child(|| ());
        takes().expect("they are counted")
    };
    let (first, second) = (count(), count());
    println!("# {first} and {second} holds of page-table locks");
    // Sixteen for each window, which has 256 pages of files: some others come and go.
    assert!(second + 12 * WINDOWS as u64 <= first, "{first} holds of page-table locks, and then {second}");
    all.iter().for_each(Mixed::expect);
}

/// Who only reads has no faults in the window, and so no table of it.
fn reading_copies_nothing() {
    let mixed = Mixed::new();
    let shared = counter("fork_shared");
    in_child(|| {
        let before = sys::faults().0;
        mixed.expect();
        let faults = sys::faults().0 - before;
        // The test's own code and stack may fault in once.
        assert!(!shares_tables() || faults < 8, "{faults} faults");
    });
    let shared = shared.and_then(|before| Some(counter("fork_shared")? - before));
    assert!(shared.is_none_or(|count| count >= 1), "the window is not shared");
    mixed.expect();
}

fn stores_stay_apart() {
    let (mixed, turn) = (Mixed::new(), Shared::new());
    let child = child::fork(|| {
        mixed.expect();
        for page in 0..PAGES {
            mixed.store(COPIED + page, 1);
        }
        mixed.store(ANONYMOUS, 1);
        expect_stamps_at(mixed.at(READ), PAGES * PAGE, 0);
        turn.add(0);
        turn.wait(1, 1);
        assert!((0..PAGES).all(|page| mixed.load(COPIED + page) == 1));
        assert_eq!((mixed.load(ANONYMOUS), mixed.load(ANONYMOUS + 1)), (1, 1));
    });
    let reader = child::fork(|| {
        mixed.expect();
        turn.wait(1, 1);
        mixed.expect();
    });
    turn.wait(0, 1);
    mixed.expect();
    (1..PAGES).for_each(|page| mixed.store(COPIED + page, 2));
    mixed.store(ANONYMOUS + 1, 2);
    turn.add(1);
    child.ok();
    reader.ok();
    assert!((1..PAGES).all(|page| mixed.load(COPIED + page) == 2));
    assert_eq!(mixed.load(COPIED), COPY);
    expect_stamps_at(mixed.at(READ), PAGES * PAGE, 0);
}

fn generation(mixed: &Mixed, number: usize) {
    mixed.store(COPIED + number, number as u64);
    if number < 7 {
        in_child(|| generation(mixed, number + 1));
    }
    assert!((1..=number).all(|older| mixed.load(COPIED + older) == older as u64));
    assert!((number + 1..8).all(|younger| mixed.load(COPIED + younger) == stamp(younger)));
    mixed.expect_copies();
    mixed.expect_anonymous();
    expect_stamps_at(mixed.at(READ), PAGES * PAGE, 0);
}

fn generations() {
    let mixed = Mixed::new();
    generation(&mixed, 1);
    expect_stamps_at(mixed.at(COPIED + 9), 7 * PAGE, 9);
}

/// Calls that change a part of the window, and what is left there for who has made them.
type Call = (&'static str, fn(&Mixed));

const CALLS: &[Call] = &[
    ("munmap of copies", |mixed| {
        munmap(mixed.at(COPIED + 1), (PAGES - 1) * PAGE).unwrap();
        assert_eq!(mixed.load(COPIED), COPY);
        assert_eq!(fault::read(mixed.at(COPIED + 1)), Err(Fault::unmapped(mixed.at(COPIED + 1))));
        expect_stamps_at(mixed.at(READ), PAGES * PAGE, 0);
        mixed.expect_anonymous();
    }),
    ("munmap of the file", |mixed| {
        munmap(mixed.at(READ), PAGES * PAGE).unwrap();
        assert_eq!(fault::read(mixed.at(READ)), Err(Fault::unmapped(mixed.at(READ))));
        mixed.expect_copies();
        mixed.expect_anonymous();
    }),
    ("munmap of all", |mixed| {
        munmap(mixed.start, WINDOW).unwrap();
        assert_eq!(fault::read(mixed.at(READ)), Err(Fault::unmapped(mixed.at(READ))));
        // Nothing of what was there comes back.
        mmap(mixed.start, WINDOW, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
        assert!((0..WINDOW / PAGE).all(|page| mixed.load(page) == 0));
    }),
    ("mprotect", |mixed| {
        mprotect(mixed.at(READ), PAGE, RW).unwrap();
        mprotect(mixed.at(COPIED), 2 * PAGE, R).unwrap();
        mixed.store(READ, 7);
        assert_eq!((mixed.load(READ), mixed.load(READ + 1)), (7, stamp(1)));
        assert_eq!(fault::write(mixed.at(COPIED), 1), Err(Fault::forbidden(mixed.at(COPIED))));
        assert_eq!((mixed.load(COPIED), mixed.load(COPIED + 1)), (COPY, stamp(1)));
        mixed.expect_copies();
        mixed.expect_anonymous();
    }),
    ("mremap", |mixed| {
        let length = PAGES * PAGE;
        let moved =
            mremap(mixed.at(COPIED), length, length, libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP, 0);
        // Only anonymous memory before Linux 5.13, and files since.
        let moved = Map { address: moved.unwrap(), length };
        assert_eq!((moved.get_u64(0), moved.get_u64(PAGE)), (COPY, stamp(1)));
        expect_stamps_at(mixed.at(COPIED), length, 0);
        expect_stamps_at(mixed.at(READ), length, 0);
    }),
    ("MADV_DONTNEED", |mixed| {
        madvise(mixed.at(COPIED), PAGES / 2 * PAGE, libc::MADV_DONTNEED).unwrap();
        madvise(mixed.at(ANONYMOUS), PAGE, libc::MADV_DONTNEED).unwrap();
        expect_stamps_at(mixed.at(COPIED), PAGES / 2 * PAGE, 0);
        assert_eq!(mixed.load(COPIED + PAGES / 2), COPY + PAGES as u64 / 2);
        assert_eq!((mixed.load(ANONYMOUS), mixed.load(ANONYMOUS + 1)), (0, 1));
    }),
    ("MAP_FIXED", |mixed| {
        mmap(mixed.at(READ + 1), PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
        assert_eq!((mixed.load(READ), mixed.load(READ + 1), mixed.load(READ + 2)), (stamp(0), 0, stamp(2)));
        mixed.expect_copies();
    }),
    ("a file in a gap", |mixed| {
        let other = Fd::of_pages(4);
        other.write_at(&[7; 4 * PAGE], 0).unwrap();
        mmap(mixed.at(480), 4 * PAGE, RW, PRIVATE | FIXED, other.raw(), 0).unwrap();
        other.punch(0, PAGE as u64).unwrap();
        assert_eq!((mixed.load(480), mixed.load(481)), (0, 0x0707_0707_0707_0707));
        other.truncate(PAGE as u64).unwrap();
        assert_eq!(fault::read(mixed.at(481)), Err(Fault::bus(mixed.at(481))));
        mixed.expect();
    }),
    ("mlock", |mixed| {
        // SAFETY: locks what is mapped.
        sys::check(unsafe { libc::mlock(mixed.at(READ) as *const _, 4 * PAGE) }).unwrap();
        mixed.expect();
    }),
];

fn calls_in_the_child() {
    for (name, call) in CALLS {
        let mixed = Mixed::new();
        let others: Vec<Child> = (0..2).map(|_| child::fork(|| call(&mixed))).collect();
        others.into_iter().for_each(|child| assert_eq!(child.wait(), child::End::Code(0), "{name}"));
        mixed.expect();
    }
}

fn calls_in_the_parent() {
    for (_, call) in CALLS {
        let (mixed, turn) = (Mixed::new(), Shared::new());
        let children: Vec<Child> = (0..2)
            .map(|_| {
                child::fork(|| {
                    turn.wait(0, 1);
                    mixed.expect();
                })
            })
            .collect();
        call(&mixed);
        turn.add(0);
        children.into_iter().for_each(Child::ok);
    }
}

/// Children that share the window, each of which looks when it is told to, as often as it is.
fn lookers(count: u32, turn: &Shared, look: &dyn Fn(u32)) -> Vec<Child> {
    let children = (0..count).map(|_| {
        child::fork(|| {
            for round in 0.. {
                turn.add(0);
                turn.wait(1, round + 1);
                look(round);
                if turn.get(2) == round + 1 {
                    return;
                }
            }
        })
    });
    let children: Vec<Child> = children.collect();
    turn.wait(0, count);
    children
}

/// Has them look once, for the last time if `is_last`.
fn looked(children: u32, turn: &Shared, round: u32, is_last: bool) {
    if is_last {
        turn.set(2, round + 1);
    }
    turn.set(1, round + 1);
    if !is_last {
        turn.wait(0, children * (round + 2));
    }
}

fn a_punch_is_for_all() {
    let (mixed, turn) = (Mixed::new(), Shared::new());
    let gone = 16..48;
    let look = |round: u32| {
        let value = |page: usize| match gone.contains(&page) {
            true if round == 0 => stamp(page),
            true if round == 1 => 0,
            true => 77,
            false => stamp(page),
        };
        for page in 0..PAGES {
            assert_eq!(mixed.load(READ + page), value(page), "round {round}, page {page}");
            if page % EVERY != 0 {
                assert_eq!(mixed.load(COPIED + page), value(page), "round {round}, page {page}");
            }
        }
        mixed.expect_copies();
        mixed.expect_anonymous();
    };
    let children = lookers(4, &turn, &look);
    looked(4, &turn, 0, false);
    mixed.file.punch((gone.start * PAGE) as u64, (gone.len() * PAGE) as u64).unwrap();
    looked(4, &turn, 1, false);
    look(1);
    for page in gone.clone() {
        mixed.file.write_at(&77u64.to_ne_bytes(), (page * PAGE) as u64).unwrap();
    }
    looked(4, &turn, 2, true);
    children.into_iter().for_each(Child::ok);
    look(2);
}

/// Copies of the pages behind the end go as well.
fn a_truncation_is_for_all() {
    let (mixed, turn) = (Mixed::new(), Shared::new());
    let look = |round: u32| {
        if round == 0 {
            return mixed.expect();
        }
        for page in 0..PAGES {
            let there = page < PAGES / 2;
            for (part, value) in [(READ, stamp(page)), (COPIED, COPY + page as u64)] {
                if part == COPIED && there && page % EVERY != 0 {
                    continue;
                }
                let at = mixed.at(part + page);
                let expected = if there { Ok(value) } else { Err(Fault::bus(at)) };
                let expected = if round == 2 && !there { Ok(0) } else { expected };
                assert_eq!(fault::load(at), expected, "round {round}, page {page}");
            }
        }
        mixed.expect_anonymous();
    };
    let children = lookers(4, &turn, &look);
    looked(4, &turn, 0, false);
    mixed.file.truncate((PAGES / 2 * PAGE) as u64).unwrap();
    looked(4, &turn, 1, false);
    look(1);
    mixed.file.truncate((PAGES * PAGE) as u64).unwrap();
    looked(4, &turn, 2, true);
    children.into_iter().for_each(Child::ok);
    look(2);
}

/// A shared mapping in the window is everybody's, whoever stores.
fn shared_mappings_beside() {
    let (mixed, turn) = (Mixed::new(), Shared::new());
    let other = stamped(8 * PAGE);
    mmap(mixed.at(480), 8 * PAGE, RW, SHARED | FIXED, other.raw(), 0).unwrap();
    expect_stamps_at(mixed.at(480), 8 * PAGE, 0);
    mixed.store(480, 5);
    let child = child::fork(|| {
        mixed.expect();
        assert_eq!((mixed.load(480), mixed.load(481)), (5, stamp(1)));
        turn.add(0);
        turn.wait(1, 1);
        assert_eq!(mixed.load(481), 6);
        mixed.store(482, 7);
    });
    turn.wait(0, 1);
    mixed.store(481, 6);
    turn.add(1);
    child.ok();
    assert_eq!((mixed.load(480), mixed.load(481), mixed.load(482)), (5, 6, 7));
    mixed.expect();
}

/// Whoever shares the window finds what the file has, never a page that it has lost: while one of them only looks, one
/// makes the table its own, and one has children that do either and end.
fn punches_against_forks() {
    const NEW: u64 = 0x4e00;
    for round in 0..40 {
        let (mixed, turn) = (Mixed::new(), Shared::new());
        let look = |mixed: &Mixed| {
            let is_written = turn.get(1) != 0;
            // Pages 1 to 7, which nobody has a copy of.
            for page in 1..EVERY {
                let found = mixed.load(READ + page);
                let is_right = match is_written {
                    true => found == NEW,
                    // Between the punch and the store there is nothing.
                    false => found == stamp(page) || found == 0 || found == NEW,
                };
                assert!(is_right, "round {round}: page {page} has {found:#x}");
            }
        };
        let until_the_end = |step: &dyn Fn(u64)| {
            turn.add(0);
            let mut number = 0;
            while turn.get(2) == 0 {
                look(&mixed);
                step(number);
                number += 1;
            }
            mixed.expect_anonymous();
        };
        let children = [
            child::fork(|| until_the_end(&|_| ())),
            child::fork(|| until_the_end(&|number| mixed.store(COPIED + 2 * EVERY, number))),
            child::fork(|| {
                until_the_end(&|number| {
                    in_child(|| {
                        if number % 2 == 1 {
                            mixed.store(COPIED + 2 * EVERY, number);
                        }
                        look(&mixed);
                    });
                });
            }),
        ];
        turn.wait(0, children.len() as u32);
        mixed.file.punch(PAGE as u64, ((EVERY - 1) * PAGE) as u64).unwrap();
        // What was given away is somebody's now.
        let other = Map::anonymous(16 * PAGE);
        (0..16).for_each(|page| other.set_u64(page * PAGE, u64::MAX));
        for page in 1..EVERY {
            mixed.file.write_at(&NEW.to_ne_bytes(), (page * PAGE) as u64).unwrap();
        }
        turn.set(1, 1);
        look(&mixed);
        turn.set(2, 1);
        children.into_iter().for_each(Child::ok);
        mixed.expect_copies();
        mixed.expect_anonymous();
    }
}

/// Copies of what a truncation takes are being copied once more.
fn truncations_against_stores() {
    for round in 0..40 {
        let (mixed, turn) = (Mixed::new(), Shared::new());
        let children: Vec<Child> = (0..3)
            .map(|number: usize| {
                child::fork(|| {
                    turn.add(0);
                    turn.wait(1, 1);
                    // Makes the table its own, in the middle of the truncation.
                    mixed.store(ANONYMOUS + number, number as u64);
                    turn.add(2);
                    turn.wait(3, 1);
                    for page in (PAGES / 2..PAGES).step_by(EVERY) {
                        let at = mixed.at(COPIED + page);
                        assert_eq!(fault::load(at), Err(Fault::bus(at)), "round {round}");
                    }
                    assert_eq!(mixed.load(COPIED + EVERY), COPY + EVERY as u64);
                    mixed.expect_anonymous();
                })
            })
            .collect();
        turn.wait(0, 3);
        turn.set(1, 1);
        mixed.file.truncate((PAGES / 2 * PAGE) as u64).unwrap();
        turn.wait(2, 3);
        turn.set(3, 1);
        children.into_iter().for_each(Child::ok);
        mixed.file.truncate((PAGES * PAGE) as u64).unwrap();
        assert!((PAGES / 2..PAGES).all(|page| mixed.load(COPIED + page) == 0));
        mixed.expect_anonymous();
    }
}

/// Reads a child's memory while its pages go.
fn looked_at_while_punched() {
    let (mixed, turn) = (Mixed::new(), Shared::new());
    let children: Vec<Child> = (0..2)
        .map(|_| {
            child::fork(|| {
                turn.add(0);
                turn.wait_without_limit(1, 1);
            })
        })
        .collect();
    turn.wait(0, 2);
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for child in &children {
            let (mixed, end, pid) = (&mixed, &end, child.pid);
            scope.spawn(move || {
                let memory = Fd::open(&format!("/proc/{pid}/mem"), libc::O_RDONLY).unwrap();
                let mut bytes = vec![0; PAGES * PAGE];
                while !end.load(Ordering::SeqCst) {
                    assert_eq!(memory.read_at(&mut bytes, mixed.at(READ) as u64), Ok(PAGES * PAGE));
                    for page in 0..PAGES {
                        let word = u64::from_ne_bytes(bytes[page * PAGE..][..8].try_into().unwrap());
                        assert!(word == 0 || word == stamp(page), "page {page} has {word:#x}");
                    }
                }
            });
        }
        for _ in 0..40 {
            mixed.file.punch(0, (PAGES * PAGE) as u64).unwrap();
            let other = Map::anonymous(PAGES * PAGE);
            (0..PAGES).for_each(|page| other.set_u64(page * PAGE, u64::MAX));
            for page in 0..PAGES {
                mixed.file.write_at(&stamp(page).to_ne_bytes(), (page * PAGE) as u64).unwrap();
            }
        }
        end.store(true, Ordering::SeqCst);
    });
    turn.set(1, 1);
    children.into_iter().for_each(Child::ok);
    mixed.expect();
}

fn killed_while_punched() {
    in_child(|| drop(Mixed::new()));
    let baseline = Baseline::take();
    for _ in 0..8 {
        let (mixed, turn) = (Mixed::new(), Shared::new());
        let children: Vec<Child> = (0..3)
            .map(|_| {
                child::fork(|| {
                    turn.add(0);
                    loop {
                        (0..PAGES).for_each(|page| mixed.store(COPIED + page, 9));
                        madvise(mixed.at(COPIED), PAGES * PAGE, libc::MADV_DONTNEED).unwrap();
                    }
                })
            })
            .collect();
        turn.wait(0, 3);
        for child in children {
            mixed.file.punch(0, (PAGES * PAGE) as u64).unwrap();
            child.end();
            for page in 0..PAGES {
                mixed.file.write_at(&stamp(page).to_ne_bytes(), (page * PAGE) as u64).unwrap();
            }
        }
        mixed.expect();
    }
    baseline.check();
}

/// A punch and a truncation take pages out of shared tables without memory of their own.
fn a_punch_cannot_fail() {
    let (mixed, turn) = (Mixed::new(), Shared::new());
    let child = child::fork(|| {
        turn.add(0);
        turn.wait(1, 1);
        assert!((0..PAGES).all(|page| mixed.load(READ + page) == 0));
        mixed.expect_copies();
    });
    turn.wait(0, 1);
    let injector = Injector::new();
    for nth in 1.. {
        assert!(nth < 100, "a punch never succeeds");
        injector.arm(nth);
        let result = mixed.file.punch(0, (PAGES * PAGE) as u64);
        let left = injector.disarm();
        if result.is_ok() && left > 0 {
            break;
        }
    }
    turn.add(1);
    child.ok();
}

/// Nor does MADV_DONTNEED of a part of a window where nothing else is lost by giving the whole of it up.
fn a_discard_cannot_fail() {
    let file = stamped(PAGES * PAGE);
    let place = Map::reserve(3 * WINDOW, WINDOW);
    let start = place.address + WINDOW;
    mmap(start, PAGES * PAGE, R, PRIVATE | FIXED, file.raw(), 0).unwrap();
    expect_stamps_at(start, PAGES * PAGE, 0);
    drop(Injector::new());
    for nth in 1.. {
        assert!(nth < 100, "it never goes without a failure");
        let child = child::fork_code(|| {
            let injector = Injector::new();
            injector.arm(nth);
            let result = madvise(start + 8 * PAGE, 8 * PAGE, libc::MADV_DONTNEED);
            let left = injector.disarm();
            expect_stamps_at(start, PAGES * PAGE, 0);
            assert_eq!(result, Ok(()), "failure {nth}");
            i32::from(left > 0)
        });
        match child.wait() {
            child::End::Code(0) => {}
            end => {
                assert_eq!(end, child::End::Code(1));
                break;
            }
        }
    }
    expect_stamps_at(start, PAGES * PAGE, 0);
}

/// What smaps says of a sharer is what it can reach.
fn residency_is_told() {
    let mixed = Mixed::new();
    in_child(|| {
        let of = |page: usize, name: &str| {
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let start = format!("{:08x}-", mixed.at(page));
            let lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
            let line = lines.skip(1).find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        mixed.expect();
        let kib = (PAGES * PAGE / 1024) as u64;
        for page in [COPIED, READ, ANONYMOUS] {
            assert_eq!(of(page, "Rss:"), kib, "part at {page}");
        }
        assert_eq!(of(COPIED, "Anonymous:"), kib / EVERY as u64);
        assert_eq!((of(READ, "Anonymous:"), of(ANONYMOUS, "Anonymous:")), (0, kib));
        let total = procfs::status(sys::pid(), "VmRSS");
        assert!(total >= 3 * kib, "VmRSS is {total} KiB");
        mixed.file.truncate(0).unwrap();
        assert_eq!((of(READ, "Rss:"), of(COPIED, "Rss:"), of(ANONYMOUS, "Rss:")), (0, 0, kib));
    });
    assert_eq!(fault::read(mixed.at(READ)), Err(Fault::bus(mixed.at(READ))));
    mixed.expect_anonymous();
}

/// A truncation of more pages at once than are gathered for one flush: those of a table of the parent's own, and of one that is shared.
fn own_and_shared_tables() {
    const ALL: usize = 2 * WINDOW / PAGE - 1;
    let file = stamped(ALL * PAGE);
    let place = Map::reserve(4 * WINDOW, WINDOW);
    // Not where the file has tables of its own.
    let start = place.address + PAGE;
    mmap(start, ALL * PAGE, RW, PRIVATE | FIXED, file.raw(), 0).unwrap();
    let load = |page: usize| fault::load(start + page * PAGE);
    (0..ALL).for_each(|page| assert!(load(page).is_ok()));
    let words = Shared::new();
    let child = child::fork(|| words.wait(0, 1));
    fault::store(start, 1).unwrap();
    (0..ALL).for_each(|page| assert!(load(page).is_ok()));
    file.truncate(0).unwrap();
    for page in [0, 1, ALL / 2, ALL - 1] {
        assert_eq!(load(page), Err(Fault::bus(start + page * PAGE)));
    }
    words.set(0, 1);
    child.ok();
}

/// What is locked is there in the parent after a fork and a store beside it, though nobody has looked at it yet.
fn locked_pages_stay() {
    let file = stamped(PAGES * PAGE);
    let place = Map::reserve(3 * WINDOW, WINDOW);
    let (locked, beside) = (place.address + WINDOW, place.address + WINDOW + 2 * PAGES * PAGE);
    mmap(locked, PAGES * PAGE, R, PRIVATE | FIXED, file.raw(), 0).unwrap();
    mmap(beside, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
    fault::store(beside, 1).unwrap();
    // SAFETY: the pages are mapped.
    sys::check(unsafe { libc::mlock(locked as *const _, PAGES * PAGE) }).expect("mlock");
    let words = Shared::new();
    let child = child::fork(|| words.wait(0, 1));
    fault::store(beside, 2).unwrap();
    let before = sys::faults().0;
    (0..PAGES).for_each(|page| assert_eq!(fault::load(locked + page * PAGE), Ok(stamp(page))));
    let faults = sys::faults().0 - before;
    // The test's own code may fault in.
    assert!(faults < 8, "{faults} faults at pages that are locked");
    words.set(0, 1);
    child.ok();
}
