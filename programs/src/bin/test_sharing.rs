//! Shared page tables: they are there, they save memory and faults, and no operation on one process harms another.
//!
//! Whether tables are shared shows in faults and in PageTables; that data stays right is what most of these look at.

use std::time::{Duration, Instant};

use roundtable_programs::child::{self, Child};
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB, HUGE, expect_pool, file, stamp};
use roundtable_programs::mem::{
    self, FIXED, Map, NORESERVE, PRIVATE, R, RW, SHARED, mmap, mprotect, mremap, munmap,
};
use roundtable_programs::procfs::Meminfo;
use roundtable_programs::rng::Rng;
use roundtable_programs::shared::Shared;
use roundtable_programs::{sys, tests};

tests! { second_process_has_few_faults: 60, tables_grow_by_little: 60, other_phase_is_right: 60, private_is_apart: 60,
mprotect_of_one: 60, partial_mprotect_of_one: 60, partial_munmap_of_one: 60, munmap_of_one: 60, mremap_of_one: 60,
map_fixed_over_one: 60, fork_of_one: 60, exit_of_one: 60, truncate_with_sharers: 60, punch_with_sharers: 60,
new_pages_show_up_everywhere: 60, read_only_sharer: 60, two_files_in_turn: 60, part_of_a_slot: 60,
several_slots: 60, random_operations: 110 }

/// The pages of one table, of which tests use a few.
const SLOT: usize = 512;
/// The pages of the file that these tests fill.
const USED: [usize; 6] = [0, 1, 100, 255, 510, 511];

/// A sparse file of 1 GiB with a few pages, each with its stamp.
fn filled() -> Fd {
    huge::pool(16);
    let file = file();
    file.truncate(GIB as u64).unwrap();
    let map = file.map(GIB, RW, SHARED | NORESERVE).unwrap();
    USED.iter().for_each(|&page| map.set_u64(page * HUGE, stamp(1, page)));
    file
}

/// Address space for a mapping at which it can be shared.
fn slot(slots: usize) -> Map {
    Map::reserve(slots * GIB, GIB)
}

fn map_in(place: &Map, offset: usize, file: &Fd, protection: i32) {
    let flags = SHARED | FIXED | NORESERVE;
    mmap(place.address + offset, GIB, protection, flags, file.raw(), 0).expect("mmap at a fixed address");
}

fn verify(place: &Map) {
    for page in USED {
        assert_eq!(place.get_u64(page * HUGE), stamp(1, page), "page {page}");
    }
}

/// Children that map the file at a slot of their own, verify, and verify again when told to.
struct Sharers {
    control: Shared,
    children: Vec<Child>,
}

impl Sharers {
    fn start(count: usize, file: &Fd, check: impl Fn(&Map)) -> Sharers {
        let control = Shared::new();
        let children = (0..count)
            .map(|_| {
                child::fork(|| {
                    let place = slot(1);
                    map_in(&place, 0, file, RW);
                    verify(&place);
                    control.add(0);
                    control.wait(1, 1);
                    check(&place);
                })
            })
            .collect();
        control.wait(0, count as u32);
        Sharers { control, children }
    }

    #[track_caller]
    fn check(self) {
        self.control.set(1, 1);
        self.children.into_iter().for_each(|child| child.ok());
    }
}

/// One process does something to its mapping while others share it; they see no difference.
#[track_caller]
fn one_disturbs(act: impl FnOnce(&Map)) {
    let file = filled();
    let sharers = Sharers::start(3, &file, verify);
    child::in_child(|| {
        let place = slot(3);
        map_in(&place, GIB, &file, RW);
        let view = Map { address: place.address + GIB, length: GIB };
        verify(&view);
        act(&view);
        std::mem::forget(view);
    });
    sharers.check();
    let place = slot(1);
    map_in(&place, 0, &file, R);
    verify(&place);
    drop((place, file));
    expect_pool(16, 0);
}

fn full_file() -> Fd {
    if huge::set_pool(SLOT as u64) < SLOT as u64 {
        roundtable_programs::harness::skip("there is no memory for 512 huge pages");
    }
    let file = file();
    file.fallocate(0, 0, GIB as u64).unwrap();
    file
}

/// Faults and time to touch every page of a new mapping, in a child.
fn touch_all(file: &Fd, control: &Shared, shift: usize, flags: i32) -> Child {
    child::fork(move || {
        let place = Map::reserve(3 * GIB, GIB);
        let start = place.address + GIB + shift;
        let touch = |address: usize, pages: usize| {
            for page in 0..pages {
                // SAFETY: mapped below, or the own page of the warm-up.
                unsafe { ((address + page * HUGE) as *const u8).read_volatile() };
            }
        };
        let own = Map::anonymous(4096);
        own.set(0, 1);
        touch(own.address, 1);
        let _ = Instant::now();
        let (before, _) = sys::faults();
        mmap(start, GIB, R, flags | FIXED | NORESERVE, file.raw(), 0).unwrap();
        touch(start, SLOT);
        let (after, _) = sys::faults();
        control.set(2, (after - before) as u32);
        control.add(0);
        control.wait(1, 1);
    })
}

fn second_process_has_few_faults() {
    let file = full_file();
    let control = Shared::new();
    let first = touch_all(&file, &control, 0, SHARED);
    control.wait(0, 1);
    let second = touch_all(&file, &control, 0, SHARED);
    control.wait(0, 2);
    let faults = control.get(2);
    control.set(1, 1);
    first.ok();
    second.ok();
    // Linux: one to find the table. All within one fault or two for the stack and the like.
    assert!(faults <= 4, "{faults} faults to touch {SLOT} pages that another process has");
}

fn tables_grow_by_little() {
    let file = full_file();
    let control = Shared::new();
    // So many that the saving stands out from what Linux's counters on each CPU have not yet told.
    let count = 200;
    let mut children = vec![touch_all(&file, &control, 0, SHARED)];
    control.wait(0, 1);
    let before = Meminfo::read().get("PageTables");
    for number in 1..=count {
        children.push(touch_all(&file, &control, 0, SHARED));
        control.wait(0, number + 1);
    }
    let shared = Meminfo::read().get("PageTables").saturating_sub(before);
    for number in 1..=count {
        children.push(touch_all(&file, &control, 0, PRIVATE));
        control.wait(0, count + number + 1);
    }
    let private = Meminfo::read().get("PageTables").saturating_sub(before + shared);
    control.set(1, 1);
    children.into_iter().for_each(|child| child.ok());
    // Processes that do not share have a table more each.
    let saved = private as i64 - shared as i64;
    assert!(
        saved >= i64::from(count) * 4 / 2,
        "{count} sharers: {shared} kB of page tables; as many others: {private} kB"
    );
}

fn other_phase_is_right() {
    let file = filled();
    let sharers = Sharers::start(2, &file, verify);
    child::in_child(|| {
        // Not congruent to the offset: Linux cannot share it. What is read must be right in any case.
        let place = slot(3);
        for shift in [HUGE, 7 * HUGE, GIB - HUGE] {
            mmap(place.address + shift, GIB, RW, SHARED | FIXED | NORESERVE, file.raw(), 0).unwrap();
            let view = Map { address: place.address + shift, length: GIB };
            verify(&view);
            view.set_u64(100 * HUGE + 8, shift as u64);
            munmap(view.address, GIB).unwrap();
            std::mem::forget(view);
        }
    });
    sharers.check();
    let map = file.map(GIB, R, SHARED | NORESERVE).unwrap();
    assert_eq!(map.get_u64(100 * HUGE + 8), (GIB - HUGE) as u64);
}

fn private_is_apart() {
    let file = filled();
    let sharers = Sharers::start(2, &file, verify);
    child::in_child(|| {
        let place = slot(1);
        mmap(place.address, GIB, RW, PRIVATE | FIXED | NORESERVE, file.raw(), 0).unwrap();
        verify(&place);
        USED.iter().for_each(|&page| place.set_u64(page * HUGE, 0xdead));
        assert_eq!(place.get_u64(0), 0xdead);
    });
    sharers.check();
}

fn mprotect_of_one() {
    one_disturbs(|view| {
        mprotect(view.address, GIB, R).unwrap();
        assert_eq!(fault::write(view.address, 1), Err(Fault::forbidden(view.address)));
        verify(view);
        mprotect(view.address, GIB, mem::NONE).unwrap();
        assert_eq!(fault::read(view.address), Err(Fault::forbidden(view.address)));
        mprotect(view.address, GIB, RW).unwrap();
        verify(view);
        view.set(8, 1);
    });
}

fn partial_mprotect_of_one() {
    one_disturbs(|view| {
        mprotect(view.address + 100 * HUGE, 200 * HUGE, R).unwrap();
        let at = view.address + 100 * HUGE + 16;
        assert_eq!(fault::write(at, 1), Err(Fault::forbidden(at)));
        verify(view);
        view.set(HUGE + 8, 1);
        mprotect(view.address + 100 * HUGE, 200 * HUGE, RW).unwrap();
        view.set(100 * HUGE + 16, 1);
        verify(view);
    });
}

fn partial_munmap_of_one() {
    one_disturbs(|view| {
        munmap(view.address + 50 * HUGE, 100 * HUGE).unwrap();
        let at = view.address + 100 * HUGE;
        assert_eq!(fault::read(at), Err(Fault::unmapped(at)));
        for page in [0, 1, 255, 510, 511] {
            assert_eq!(view.get_u64(page * HUGE), stamp(1, page));
        }
    });
}

fn munmap_of_one() {
    one_disturbs(|view| {
        munmap(view.address, GIB).unwrap();
        assert_eq!(fault::read(view.address), Err(Fault::unmapped(view.address)));
    });
}

fn mremap_of_one() {
    one_disturbs(|view| {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let target = slot(2);
        mremap(view.address, GIB, GIB, flags, target.address + HUGE).unwrap();
        let moved = Map { address: target.address + HUGE, length: GIB };
        verify(&moved);
        assert_eq!(fault::read(view.address), Err(Fault::unmapped(view.address)));
        // A part of it, back.
        mremap(moved.address + 255 * HUGE, HUGE, HUGE, flags, view.address).unwrap();
        assert_eq!(view.get_u64(0), stamp(1, 255));
        std::mem::forget(moved);
    });
}

fn map_fixed_over_one() {
    one_disturbs(|view| {
        mmap(view.address + 100 * HUGE, HUGE, RW, PRIVATE | mem::ANON | FIXED, -1, 0).unwrap();
        view.set_u64(100 * HUGE, 5);
        assert_eq!(view.get_u64(100 * HUGE), 5);
        assert_eq!(view.get_u64(255 * HUGE), stamp(1, 255));
    });
}

fn fork_of_one() {
    one_disturbs(|view| {
        let children: Vec<Child> = (0..3)
            .map(|_| {
                child::fork(|| {
                    verify(view);
                    munmap(view.address + 255 * HUGE, HUGE).unwrap();
                    assert_eq!(view.get_u64(510 * HUGE), stamp(1, 510));
                })
            })
            .collect();
        verify(view);
        children.into_iter().for_each(|child| child.ok());
        verify(view);
    });
}

fn exit_of_one() {
    one_disturbs(|view| {
        let child = child::fork(|| {
            verify(view);
            // SAFETY: ends this process at once.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        });
        assert_eq!(child.wait(), child::End::Signal(libc::SIGKILL));
        verify(view);
    });
}

fn truncate_with_sharers() {
    let file = filled();
    let sharers = Sharers::start(4, &file, |place| {
        assert_eq!(place.get_u64(0), stamp(1, 0));
        assert_eq!(place.get_u64(100 * HUGE), stamp(1, 100));
        for page in [255, 510, 511] {
            let at = place.address + page * HUGE;
            assert_eq!(fault::read(at), Err(Fault::bus(at)));
        }
    });
    file.truncate(200 * HUGE as u64).unwrap();
    expect_pool(13, 0);
    sharers.check();
}

fn punch_with_sharers() {
    let file = filled();
    let sharers = Sharers::start(4, &file, |place| {
        assert_eq!((place.get_u64(0), place.get_u64(511 * HUGE)), (stamp(1, 0), stamp(1, 511)));
        // Somebody's first touch fills the hole, zeroed but for what sharers write.
        assert_eq!(place.get_u64(100 * HUGE), 0);
        assert_eq!(place.get_u64(255 * HUGE), 0);
    });
    file.punch(100 * HUGE as u64, 200 * HUGE as u64).unwrap();
    expect_pool(12, 0);
    sharers.check();
    expect_pool(10, 0);
}

fn new_pages_show_up_everywhere() {
    let file = filled();
    let sharers = Sharers::start(3, &file, |place| assert_eq!(place.get_u64(300 * HUGE), 4711));
    file.map(GIB, RW, SHARED | NORESERVE).unwrap().set_u64(300 * HUGE, 4711);
    sharers.check();
    expect_pool(9, 0);
}

fn read_only_sharer() {
    let file = filled();
    let sharers = Sharers::start(2, &file, verify);
    child::in_child(|| {
        let place = slot(1);
        map_in(&place, 0, &file, R);
        verify(&place);
        for page in [0, 300] {
            let at = place.address + page * HUGE;
            assert_eq!(fault::write(at, 1), Err(Fault::forbidden(at)));
        }
        let writer = slot(1);
        map_in(&writer, 0, &file, RW);
        writer.set_u64(HUGE + 8, 99);
        assert_eq!(place.get_u64(HUGE + 8), 99);
        assert_eq!(fault::write(place.address, 1), Err(Fault::forbidden(place.address)));
    });
    sharers.check();
}

fn two_files_in_turn() {
    let one = filled();
    let two = file();
    two.truncate(GIB as u64).unwrap();
    two.map(GIB, RW, SHARED | NORESERVE).unwrap().set_u64(0, stamp(2, 0));
    let sharers = Sharers::start(2, &one, verify);
    child::in_child(|| {
        let place = slot(1);
        for _ in 0..20 {
            map_in(&place, 0, &one, RW);
            assert_eq!(place.get_u64(0), stamp(1, 0));
            map_in(&place, 0, &two, RW);
            assert_eq!(place.get_u64(0), stamp(2, 0));
            assert_eq!(fault::read(place.address + GIB - 1).map(drop), Ok(()));
        }
    });
    sharers.check();
}

fn part_of_a_slot() {
    let file = filled();
    let sharers = Sharers::start(2, &file, verify);
    child::in_child(|| {
        let place = slot(1);
        // The first quarter at its place, and a mapping of something else behind it in the same slot.
        mmap(place.address, 128 * HUGE, RW, SHARED | FIXED | NORESERVE, file.raw(), 0).unwrap();
        assert_eq!(place.get_u64(100 * HUGE), stamp(1, 100));
        let other = huge::sized(2);
        mmap(place.address + 200 * HUGE, 2 * HUGE, RW, SHARED | FIXED, other.raw(), 0).unwrap();
        place.set_u64(200 * HUGE, 1);
        assert_eq!(place.get_u64(HUGE), stamp(1, 1));
        let at = place.address + 130 * HUGE;
        assert_eq!(fault::read(at), Err(Fault::forbidden(at)));
        child::in_child(|| assert_eq!((place.get_u64(0), place.get_u64(200 * HUGE)), (stamp(1, 0), 1)));
    });
    sharers.check();
    expect_pool(10, 0);
}

fn several_slots() {
    huge::pool(16);
    let file = file();
    file.truncate(4 * GIB as u64).unwrap();
    let pages = [0, 511, 512, 1023, 1024, 1500, 2047];
    let whole = |place: &Map| {
        mmap(place.address, 4 * GIB, RW, SHARED | FIXED | NORESERVE, file.raw(), 0).unwrap();
    };
    let place = slot(4);
    whole(&place);
    pages.iter().for_each(|&page| place.set_u64(page * HUGE, stamp(5, page)));
    let verify = |place: &Map| pages.iter().all(|&page| place.get_u64(page * HUGE) == stamp(5, page));
    child::in_child(|| {
        let other = slot(4);
        whole(&other);
        assert!(verify(&other));
        // Over the border of two slots.
        munmap(other.address + 500 * HUGE, 100 * HUGE).unwrap();
        for page in [0, 1023, 1024, 2047] {
            assert_eq!(other.get_u64(page * HUGE), stamp(5, page));
        }
        assert!(verify(&place));
    });
    assert!(verify(&place));
    drop((place, file));
    expect_pool(16, 0);
}

/// Several processes do random things to mappings of one file. A page has its stamp or is zero, never another's.
fn random_operations() {
    let seed = 20_241_124;
    let file = filled();
    let foreign = file_of_others();
    let end = Instant::now() + Duration::from_secs(6);
    let children: Vec<Child> = (0..4u64)
        .map(|number| {
            let (file, foreign) = (&file, &foreign);
            child::fork(move || {
                let mut rng = Rng::new(seed + number);
                while Instant::now() < end {
                    random_process(&mut rng, file, foreign);
                }
            })
        })
        .collect();
    children.into_iter().for_each(|child| child.ok());
    drop((file, foreign));
    expect_pool(16, 0);
}

fn file_of_others() -> Fd {
    let file = file();
    file.truncate(GIB as u64).unwrap();
    file.map(GIB, RW, SHARED | NORESERVE).unwrap().set_u64(0, stamp(9, 0));
    file
}

fn random_process(rng: &mut Rng, file: &Fd, foreign: &Fd) {
    let place = slot(3);
    let shift = if rng.chance(4) { rng.below(SLOT) * HUGE } else { 0 };
    let flags = SHARED | FIXED | NORESERVE;
    mmap(place.address + GIB + shift, GIB, RW, flags, file.raw(), 0).unwrap();
    let view = Map { address: place.address + GIB + shift, length: GIB };
    for _ in 0..rng.below(30) {
        let page = USED[rng.below(USED.len())];
        let at = view.address + page * HUGE;
        match rng.below(9) {
            0 => munmap(at, HUGE).unwrap(),
            1 => _ = mmap(at, HUGE, RW, flags, file.raw(), (page * HUGE) as i64).unwrap(),
            2 => _ = mprotect(at, HUGE, R),
            3 => _ = mprotect(view.address, GIB, RW),
            4 => _ = mem::madvise(at, HUGE, libc::MADV_DONTNEED),
            5 => {
                file.punch((page * HUGE) as u64, HUGE as u64).unwrap();
                // Whoever refills it writes the same stamp.
                if fault::write(at + 8, 0).is_ok() {
                    let stamp = stamp(1, page).to_ne_bytes();
                    (0..8).for_each(|byte| _ = fault::write(at + byte, stamp[byte]));
                }
            }
            6 => {
                mmap(place.address, GIB, R, flags, foreign.raw(), 0).unwrap();
                assert_eq!(place.get_u64(0), stamp(9, 0));
            }
            7 => child::fork(|| check_pages(&view)).ok(),
            _ => {}
        }
        check_pages(&view);
    }
    std::mem::forget(view);
}

fn check_pages(view: &Map) {
    for page in USED {
        let bytes = [0, 1, 2, 3, 4, 5, 6, 7].map(|byte| fault::read(view.address + page * HUGE + byte));
        for (byte, &expected) in bytes.iter().zip(stamp(1, page).to_ne_bytes().iter()) {
            // A hole that another process is about to fill is zero, byte by byte; a hole of this one is unmapped; and
            // with every page of the pool in use there is nothing to fill it with.
            let fits = match byte {
                Ok(byte) => *byte == 0 || *byte == expected,
                Err(fault) => fault.signal == libc::SIGSEGV && fault.code == fault::SEGV_MAPERR,
            };
            assert!(fits, "page {page}: {bytes:x?} instead of {:x}", stamp(1, page));
        }
    }
}
