//! Does the same on many CPUs, each on pages of its own of one file, for who counts the cache lines that several CPUs write.
//!
//! An ordinary Linux program. It marks its operations (`guest_link::profile`), and ends each number of CPUs with a mark of its own;
//! `cargo xtask bench --contention` does the rest.

use std::process::ExitCode;

use guest_link::profile::{end_of_round, marked};
use guest_link::record::Operation;
use roundtable_programs::child::{self, Child};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB, HUGE};
use roundtable_programs::mem::{FIXED, Map, NORESERVE, PRIVATE, R, RW, SHARED, madvise, mmap, munmap};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{cpus, pin};

/// How often each CPU does each operation, after once that does not count.
const RUNS: usize = 4;
/// The pages of each CPU, in a part of the file that is its own; parts of four CPUs lie in one GiB.
const PART: usize = 128;
/// Pages that each CPU punches.
const PUNCHED: usize = 2;

/// A page of a CPU's part. Those of different CPUs are not congruent modulo 64, so far as there are so many: files have 64 fault mutexes.
fn page(cpu: usize, number: usize) -> usize {
    cpu * PART + (cpu * 8) % 64 + number
}

fn main() -> ExitCode {
    let mut counts: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let most = cpus().len();
    counts.retain(|count| (1..=most).contains(count));
    if counts.is_empty() {
        eprintln!("usage: contention CPUS...   there are {most}");
        return 2.into();
    }
    let pages = (most * (RUNS + PUNCHED + 2)) as u64;
    if huge::set_pool(pages) < pages {
        eprintln!("contention: there is no memory for {pages} huge pages");
        return 1.into();
    }
    for count in counts {
        round(count);
        end_of_round();
        println!("contention of {count}");
    }
    huge::set_pool(0);
    0.into()
}

/// What each CPU does in turn: the file, the CPU's number among them, and where it may map.
type Turn = fn(&Fd, usize, &Map);

/// One number of CPUs: each operation is done by all of them before the next.
fn round(count: usize) {
    let file = huge::sized(count * PART);
    for cpu in 0..count {
        file.fallocate(0, (page(cpu, 0) * HUGE) as u64, ((RUNS + 1) * HUGE) as u64).expect("fallocate");
    }
    let turns: [Turn; 5] = [present, attach, fresh, punch, life];
    let control = Shared::new();
    let children: Vec<Child> = (0..count)
        .map(|cpu| {
            child::fork(|| {
                pin(cpus()[cpu]);
                let home = Map::reserve(count.div_ceil(4) * GIB, GIB);
                for (number, turn) in turns.iter().enumerate() {
                    // Nobody begins before all are there: what came before belongs to nobody's operation.
                    control.add(0);
                    control.wait_without_limit(0, ((number + 1) * count) as u32);
                    turn(&file, cpu, &home);
                }
            })
        })
        .collect();
    children.into_iter().for_each(Child::ok);
}

/// Marks all but the first run, which brings tables and caches.
fn each_run(operation: Operation, mut run: impl FnMut(usize)) {
    for number in 0..=RUNS {
        match number {
            0 => run(0),
            _ => marked(operation, || run(number)),
        }
    }
}

fn map(file: &Fd, home: &Map, rights: i32, flags: i32) {
    mmap(home.address, home.length, rights, flags | FIXED | NORESERVE, file.raw(), 0).expect("mmap");
}

fn load(address: usize) {
    // SAFETY: callers have mapped the page.
    unsafe { (address as *const u64).read_volatile() };
}

/// Faults on pages that the file has, in a private mapping, where each page faults in each process.
fn present(file: &Fd, cpu: usize, home: &Map) {
    map(file, home, R, PRIVATE);
    each_run(Operation::Present, |run| load(home.address + page(cpu, run) * HUGE));
    munmap(home.address, home.length).expect("munmap");
}

/// Maps the file and unmaps it.
fn attach(file: &Fd, cpu: usize, home: &Map) {
    // One GiB, which four CPUs share.
    let (offset, address) = (cpu / 4 * GIB, home.address + cpu / 4 * GIB);
    for number in 0..=RUNS {
        let attach = || {
            mmap(address, GIB, RW, SHARED | FIXED | NORESERVE, file.raw(), offset as i64).expect("mmap");
            load(address + page(cpu, 0) % 512 * HUGE);
        };
        let detach = || munmap(address, GIB).expect("munmap");
        if number == 0 {
            attach();
            detach();
        } else {
            marked(Operation::Attach, attach);
            marked(Operation::Detach, detach);
        }
    }
}

/// Faults on pages that the file does not have yet.
fn fresh(file: &Fd, cpu: usize, home: &Map) {
    map(file, home, RW, SHARED);
    let place = |run| home.address + page(cpu, RUNS + 1 + run % PUNCHED) * HUGE;
    let drop = |run| madvise(place(run), HUGE, libc::MADV_REMOVE).expect("MADV_REMOVE");
    for number in 0..=RUNS {
        if number == 0 {
            load(place(0));
            drop(0);
        } else {
            marked(Operation::Fresh, || load(place(number)));
            drop(number);
        }
    }
    munmap(home.address, home.length).expect("munmap");
}

/// Punches pages that all have mapped.
fn punch(file: &Fd, cpu: usize, home: &Map) {
    map(file, home, RW, SHARED);
    let first = page(cpu, RUNS + 1);
    for number in 0..=RUNS {
        file.fallocate(0, (first * HUGE) as u64, (PUNCHED * HUGE) as u64).expect("fallocate");
        let punch = || file.punch((first * HUGE) as u64, (PUNCHED * HUGE) as u64).expect("punch");
        match number {
            0 => punch(),
            _ => marked(Operation::Punch, punch),
        }
    }
    munmap(home.address, home.length).expect("munmap");
}

/// A process that has the file mapped forks one that ends.
fn life(file: &Fd, _: usize, home: &Map) {
    map(file, home, RW, SHARED);
    each_run(Operation::Exit, |_| {
        // SAFETY: this process has one thread, and the child only ends.
        match unsafe { libc::fork() } {
            // SAFETY: ends the process; nothing of the parent's may run twice.
            0 => unsafe { libc::_exit(0) },
            pid => {
                child::waitpid(pid, 0).expect("waitpid");
            }
        }
    });
}
