//! What the killer holds against a process: memory that its end gives back, wherever that is noted.
//!
//! `/proc/PID/oom_score` is the killer's own number.

use roundtable_programs::child;
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, Map, NORESERVE, PRIVATE, RW, SHARED};
use roundtable_programs::mshare::{self, Region};
use roundtable_programs::procfs::{self, Meminfo};
use roundtable_programs::sys::{self, PAGE};
use roundtable_programs::tests;

tests! { tables_of_a_sparse_file: 60, tables_of_an_empty_file: 60, what_is_read_before_it_is_written, what_futexes_bring, what_children_brought, mappings_in_regions: 60, regions_without_mappings,
timers_of_another }

const MIB: usize = 1 << 20;

/// Does what takes so much memory, in a child, and compares the child's points.
#[track_caller]
fn costs<T>(bytes: usize, work: impl FnOnce() -> T) {
    child::in_child(|| {
        let score = || procfs::number("/proc/self/oom_score");
        let before = score();
        let _made = work();
        let all = Meminfo::read().get("MemTotal") as usize * 1024;
        // A thousandth of memory is a point, and what is shown of it two thirds, each rounded down.
        let wanted = (bytes * 1000 / all).saturating_sub(1) * 2 / 3;
        let points = score() - before;
        assert!(wanted > 2, "{bytes} bytes are nothing in {all}");
        assert!(points as usize + 1 >= wanted, "{points} points for {} MiB", bytes / MIB);
    });
}

/// Pages of a file of 512 GiB, each 2 MiB behind the other.
fn sparse(count: usize, mut work: impl FnMut(&Fd, &Map, usize)) -> (Fd, Map) {
    const SIZE: usize = 512 << 30;
    let file = Fd::memfd("sparse", 0).expect("memfd");
    file.truncate(SIZE as u64).expect("ftruncate");
    let map = file.map(SIZE, RW, SHARED | NORESERVE).expect("mmap");
    (0..count).for_each(|index| work(&file, &map, index * 2 * MIB));
    (file, map)
}

fn tables_of_a_sparse_file() {
    costs(2 * 8192 * PAGE, || sparse(8192, |_, map, at| map.set(at, 1)));
}

/// The pages go, and the tables stay.
fn tables_of_an_empty_file() {
    let touch_and_punch = |file: &Fd, map: &Map, at: usize| {
        map.set(at, 1);
        file.punch(at as u64, PAGE as u64).expect("fallocate");
    };
    costs(8192 * PAGE, || sparse(8192, touch_and_punch));
}

fn what_is_read_before_it_is_written() {
    const SIZE: usize = 64 * MIB;
    mshare::ready();
    let region = Region::new();
    region.map(0, SIZE, RW, PRIVATE | ANON | NORESERVE, -1, 0).expect("a mapping inside");
    costs(SIZE, || {
        let map = region.attach();
        let sum: u64 = (0..SIZE).step_by(PAGE).map(|at| u64::from(map.get(at))).sum();
        assert_eq!(sum, 0);
        (0..SIZE).step_by(PAGE).for_each(|at| map.set(at, 1));
        map
    });
}

/// What `fill` brings into shared memory of a region counts for who has the region attached.
#[track_caller]
fn brings(fill: impl FnOnce(&Map, usize)) {
    const SIZE: usize = 64 * MIB;
    mshare::ready();
    let region = Region::new();
    region.map_shared(0, SIZE);
    costs(SIZE, || {
        let map = region.attach();
        fill(&map, SIZE);
        map
    });
}

fn what_futexes_bring() {
    brings(|map, size| {
        for at in (0..size).step_by(PAGE) {
            let wake = [map.address + at, libc::FUTEX_WAKE as usize, 1, 0, 0, 0];
            assert_eq!(call(libc::SYS_futex, wake), Ok(0));
        }
    });
}

/// They are gone, and their parent has it all the same.
fn what_children_brought() {
    brings(|map, size| {
        for part in (0..size).step_by(size / 4) {
            child::in_child(|| (part..part + size / 4).step_by(PAGE).for_each(|at| map.set(at, 1)));
        }
    });
}

/// Each with shared memory of its own, which nobody has attached.
fn mappings_in_regions() {
    const COUNT: usize = 20_000;
    mshare::ready();
    let region = Region::new();
    costs(COUNT * 1024, || (0..COUNT).for_each(|index| region.map_shared(index * PAGE, PAGE)));
    region.unmap(0, COUNT * PAGE).expect("an unmapping inside");
}

fn regions_without_mappings() {
    const GRANULES: usize = 200;
    mshare::ready();
    costs(50 * GRANULES * PAGE, || (0..50).map(|_| Region::of(GRANULES)).collect::<Vec<_>>());
}

/// Each keeps the process by whose CPU time it goes, though nothing else be left of it.
fn timers_of_another() {
    if sys::is_linux() {
        skip("there they count for nobody");
    }
    const COUNT: usize = 12_000;
    /// Less than what the kernel has of a process alone.
    const PROCESS: usize = 2048;
    let many = libc::rlimit { rlim_cur: 2 * COUNT as u64, rlim_max: 2 * COUNT as u64 };
    // SAFETY: the limit lives through the call.
    sys::check(unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &many) }).expect("setrlimit");
    costs(COUNT * PROCESS, || {
        let other = child::fork(|| {
            loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            }
        });
        for _ in 0..COUNT {
            let mut timer: libc::timer_t = std::ptr::null_mut();
            // SAFETY: the identifier is written.
            sys::check(unsafe { libc::timer_create(!other.pid << 3 | 2, std::ptr::null_mut(), &mut timer) })
                .expect("timer_create");
        }
        other.end();
    });
}
