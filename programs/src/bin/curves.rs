//! What operations on one file cost against the number of things around them, on a machine whose clock counts instructions.
//!
//! An ordinary Linux program. Each line that begins with `curve` is a point: the thing, how many there are, the operation, its cost.
//! `cargo xtask run --icount -c 1 -m 6G -- curves` prints them; docs/benchmark.md has the tables.

use std::process::ExitCode;
use std::time::Instant;

use roundtable_programs::child;
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB, HUGE};
use roundtable_programs::mem::{FIXED, Map, NORESERVE, PRIVATE, R, RW, SHARED, mmap, munmap};
use roundtable_programs::shared::Shared;

/// Huge pages that the machine has to have.
const POOL: u64 = 64;
/// How often a cost is measured; the least counts.
const RUNS: usize = 3;
/// The file's first GiB is what is measured on: its pages from here on are there.
const PRESENT: usize = 16;

fn main() -> ExitCode {
    if huge::set_pool(POOL) < POOL {
        eprintln!("curves: there is no memory for {POOL} huge pages");
        return 1.into();
    }
    // As many mappings as the curves are of, and some.
    let _ = std::fs::write("/proc/sys/vm/max_map_count", "250000");
    mappings("windows", SHARED, &[1, 10, 100, 1000, 10_000, 100_000]);
    mappings("private mappings", PRIVATE, &[1, 10, 100, 1000, 10_000, 100_000]);
    sharers(&[1, 10, 100, 1000, 10_000]);
    sizes();
    huge::set_pool(0);
    0.into()
}

/// The least instructions of some runs.
fn cost(mut run: impl FnMut() -> u64) -> u64 {
    (0..RUNS).map(|_| run()).min().unwrap_or(0)
}

fn count(run: impl FnOnce()) -> u64 {
    let start = Instant::now();
    run();
    start.elapsed().as_nanos() as u64
}

fn load(address: usize) {
    // SAFETY: callers have mapped the page.
    unsafe { (address as *const u64).read_volatile() };
}

/// What is measured on: a mapping of the first GiB of a file.
struct Scene {
    file: Fd,
    home: Map,
    /// A page that is there.
    page: usize,
    /// One that can be made and taken away: the same in a file of one page.
    fresh: usize,
}

impl Scene {
    /// In a file of so many pages.
    fn new(pages: usize) -> Scene {
        let file = huge::sized(pages);
        let present = PRESENT.min(pages);
        file.fallocate(0, 0, (present * HUGE) as u64).expect("fallocate");
        Scene { file, home: Map::reserve(GIB, GIB), page: present - 1, fresh: present.min(pages - 1) }
    }

    fn map(&self, flags: i32) {
        mmap(self.home.address, GIB, RW, flags | FIXED | NORESERVE, self.file.raw(), 0).expect("mmap");
    }

    /// Prints the costs of all operations.
    fn measure(&self, thing: &str, number: usize) {
        let say = |operation: &str, cost: u64| println!("curve {thing}|{number}|{operation}|{cost}");
        let page = self.home.address + self.page * HUGE;
        let attach = cost(|| {
            let took = count(|| {
                self.map(SHARED);
                load(page);
            });
            munmap(self.home.address, GIB).expect("munmap");
            took
        });
        say("mmap of 1 GiB and a touch", attach);
        let detach = cost(|| {
            self.map(SHARED);
            load(page);
            count(|| munmap(self.home.address, GIB).expect("munmap"))
        });
        say("munmap", detach);
        self.map(SHARED);
        load(page);
        let fresh = self.home.address + self.fresh * HUGE;
        let punch = || self.file.punch((self.fresh * HUGE) as u64, HUGE as u64).expect("punch");
        punch();
        let fault = cost(|| {
            let took = count(|| load(fresh));
            punch();
            took
        });
        say("fault on a fresh page", fault);
        let punched = cost(|| {
            load(fresh);
            count(punch)
        });
        say("punch of a page", punched);
        munmap(self.home.address, GIB).expect("munmap");
    }
}

/// Against mappings of other pages of the file, each of two pages.
fn mappings(thing: &str, kind: i32, numbers: &[usize]) {
    let most = numbers.iter().copied().max().unwrap_or(0);
    let scene = Scene::new(512 + 2 * most);
    // Neighbours are not congruent, so that none becomes a part of another.
    let place = Map::reserve(3 * most * HUGE, GIB);
    let mut there = 0;
    for &number in numbers {
        while there < number {
            let address = place.address + 3 * there * HUGE;
            let offset = ((512 + 2 * there) * HUGE) as i64;
            if let Err(error) = mmap(address, 2 * HUGE, R, kind | FIXED | NORESERVE, scene.file.raw(), offset)
            {
                println!("# no more than {there} {thing}: {error}");
                return;
            }
            there += 1;
        }
        scene.measure(thing, number);
    }
}

/// Against processes that have the same part mapped.
fn sharers(numbers: &[usize]) {
    let scene = Scene::new(512);
    let control = Shared::new();
    let home = Map::reserve(GIB, GIB);
    mmap(home.address, GIB, RW, SHARED | FIXED | NORESERVE, scene.file.raw(), 0).expect("mmap");
    let mut children = Vec::new();
    'numbers: for &number in numbers {
        while children.len() + 1 < number {
            // Without a pipe to each, which all later ones would inherit.
            // SAFETY: this process has one thread, and the child ends without a return.
            match unsafe { libc::fork() } {
                0 => {
                    load(home.address);
                    control.add(0);
                    control.wait_without_limit(1, 1);
                    // SAFETY: ends the process; nothing of the parent's may run twice.
                    unsafe { libc::_exit(0) }
                }
                -1 => {
                    println!(
                        "# no more than {} sharers: {}",
                        children.len() + 1,
                        std::io::Error::last_os_error()
                    );
                    break 'numbers;
                }
                pid => children.push(pid),
            }
            // One after the other: so many at once would wait for the CPU.
            control.wait_without_limit(0, children.len() as u32);
        }
        scene.measure("sharers", number);
    }
    control.set(1, 1);
    for pid in children {
        child::waitpid(pid, 0).expect("waitpid");
    }
}

/// Against the file's size, all of which is mapped.
fn sizes() {
    const MIB: usize = 1 << 20;
    for bytes in [2, 64, 512, 4 << 10, 32 << 10, 256 << 10, 2 << 20, 4 << 20].map(|size| size * MIB) {
        let scene = Scene::new(bytes / HUGE);
        let whole = Map::reserve(bytes, GIB);
        mmap(whole.address, bytes, RW, SHARED | FIXED | NORESERVE, scene.file.raw(), 0).expect("mmap");
        load(whole.address);
        scene.measure("bytes of the file", bytes);
        munmap(whole.address, bytes).expect("munmap");
    }
}
