//! Random sequences of operations on huge pages: data stays right, counters come back.
//!
//! Linux 6.12 loses count of reservations in some sequences (HugePages_Rsvd does not return; 16 of 120 such runs were
//! measured). What is known to do it there is left to `reservations_come_back`, which says so and is skipped where it
//! happens on a kernel that names itself Linux 6; the other counters and all data are checked everywhere.

use roundtable_programs::fault;
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::huge::{self, Counters, HUGE, counters, sized};
use roundtable_programs::mem::{self, ANON, Map, NORESERVE, PRIVATE, RW, SHARED};
use roundtable_programs::rng::Rng;
use roundtable_programs::sys::{self, is_linux};
use roundtable_programs::{child, tests};

tests! { data_and_free_pages: 100, reservations_come_back: 100 }

const PAGES: usize = 8;
const POOL: u64 = 40;

/// What one page of the file has to hold: `None` when nothing is known to be there.
type Model = [u64; PAGES];

struct World {
    file: Fd,
    maps: Vec<(Map, usize)>,
    model: Model,
    length: usize,
    next: u64,
}

impl World {
    fn check(&self) {
        for (map, first) in &self.maps {
            for page in 0..map.length / HUGE {
                let index = first + page;
                let at = map.address + page * HUGE;
                let seen = fault::read(at);
                if index >= self.length {
                    assert_eq!(seen.map_err(|fault| fault.signal), Err(libc::SIGBUS), "page {index}");
                } else if seen.is_ok() {
                    assert_eq!(map.get_u64(page * HUGE), self.model[index], "page {index}");
                }
            }
        }
    }

    fn step(&mut self, rng: &mut Rng) {
        let index = rng.below(PAGES);
        let offset = (index * HUGE) as u64;
        let count = 1 + rng.below(PAGES - index);
        match rng.below(12) {
            0 | 1 => {
                let flags = SHARED | if rng.chance(3) { NORESERVE } else { 0 };
                // A writable mapping makes the file longer.
                if let Ok(map) = self.file.map_at(offset, count * HUGE, RW, flags) {
                    self.length = self.length.max(index + count);
                    self.maps.push((map, index));
                }
            }
            2 if !self.maps.is_empty() => drop(self.maps.swap_remove(rng.below(self.maps.len()))),
            3 => {
                self.file.punch(offset, (count * HUGE) as u64).unwrap();
                self.model[index..index + count].fill(0);
            }
            4 if rng.chance(2) => {
                self.file.truncate(offset).unwrap();
                self.length = index;
                self.model[index..].fill(0);
            }
            5 => {
                self.file.truncate(((index + count) * HUGE) as u64).unwrap();
                self.length = index + count;
                self.model[self.length..].fill(0);
            }
            6
                // Not with KEEP_SIZE: whether a page behind the end can be touched is not for a test to say.
                if self.file.fallocate(0, offset, (count * HUGE) as u64).is_ok() => {
                    self.length = self.length.max(index + count);
                }
            7 | 8 if !self.maps.is_empty() => {
                let (map, first) = &self.maps[rng.below(self.maps.len())];
                let page = rng.below(map.length / HUGE);
                if fault::write(map.address + page * HUGE + 64, 1).is_ok() {
                    self.next += 1;
                    map.set_u64(page * HUGE, self.next);
                    self.model[first + page] = self.next;
                }
            }
            9 if !self.maps.is_empty() => {
                let (map, first) = &self.maps[rng.below(self.maps.len())];
                let model = self.model;
                child::in_child(|| {
                    let seen = fault::read(map.address);
                    if seen.is_ok() {
                        assert_eq!(map.get_u64(0), model[*first]);
                    }
                    mem::munmap(map.address, HUGE).unwrap();
                });
            }
            10 => {
                let flags = PRIVATE | ANON | libc::MAP_HUGETLB;
                if let Ok(map) = Map::new(count * HUGE, RW, flags, -1, 0) {
                    map.set(0, 1);
                    child::in_child(|| _ = fault::write(map.address, 2));
                    assert_eq!(map.get(0), 1);
                }
            }
            11 => {
                if let Ok(map) = self.file.map_at(offset, count * HUGE, RW, PRIVATE) {
                    self.length = self.length.max(index + count);
                    if fault::write(map.address, 0x77).is_ok() {
                        assert_eq!(fault::read(map.address), Ok(0x77));
                    }
                }
            }
            _ => {}
        }
    }
}

/// Runs sequences; gives the seeds after which reservations were left over.
fn run(seeds: std::ops::Range<u64>) -> Vec<u64> {
    huge::pool(POOL);
    let mut left = Vec::new();
    for seed in seeds {
        let before = counters();
        child::in_child(|| {
            let mut rng = Rng::new(seed);
            let file = sized(PAGES);
            let mut world = World { file, maps: Vec::new(), model: [0; PAGES], length: PAGES, next: 0 };
            for step in 0..60 {
                world.step(&mut rng);
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.check()));
                if let Err(payload) = result {
                    let text = roundtable_programs::harness::panic_message(payload.as_ref());
                    panic!("seed {seed}, step {step}: {text}");
                }
            }
        });
        let free = |c: Counters| (c.total - c.surplus, c.free);
        sys::settles(std::time::Duration::from_secs(2), || free(counters()) == free(before));
        let after = counters();
        assert_eq!(free(after), free(before), "seed {seed}: (persistent, free); {after:?}");
        if after.reserved != before.reserved {
            left.push(seed);
        }
    }
    left
}

/// Fewer on Linux, which takes six times as long and is not what is tested.
fn seeds() -> u64 {
    if is_linux() { 16 } else { 40 }
}

fn data_and_free_pages() {
    run(0..seeds());
}

fn reservations_come_back() {
    let left = run(1000..1000 + seeds());
    if !left.is_empty() && is_linux() {
        // Linux itself is known to leak here.
        skip(&format!("this Linux leaks reservations, as is known: seeds {left:?}"));
    }
    assert!(left.is_empty(), "HugePages_Rsvd did not come back after the seeds {left:?}");
}
