//! Regions of msharefs: many processes that change, use, attach and leave at once, and what is left when all
//! have gone.
//!
//! Linux has no msharefs; there these are skipped.

use std::sync::atomic::Ordering;

use roundtable_programs::child::{self, Child, End};
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::leak::Baseline;
use roundtable_programs::mem::{ANON, Map, NONE, PRIVATE, R, RW, SHARED, munmap};
use roundtable_programs::mshare::{AT, Region, checked, count, ready};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{self, PAGE};
use roundtable_programs::{Errno, tests};

tests! { everything_returns: 60, change_and_touch_at_once: 90, attach_and_detach_at_once: 90,
unmapping_reaches_other_cpus: 60, protection_reaches_other_cpus: 60, punch_reaches_other_cpus: 60,
huge_punch_reaches_other_cpus: 60, many_regions: 60 }

fn everything_returns() {
    ready();
    let counts = || ["regions", "attachments", "pages", "table_bytes"].map(count);
    let (baseline, before) = (Baseline::take(), counts());
    for _ in 0..3 {
        let region = Region::of(2);
        for part in 0..8 {
            region.map_shared(part << 36, 1 << 20);
            region.map((part << 36) + (1 << 30), 1 << 20, RW, PRIVATE | ANON, -1, 0).unwrap();
        }
        let map = region.attach();
        let children: Vec<_> = (0..4)
            .map(|_| {
                child::fork(|| {
                    for part in 0..8usize {
                        for page in 0..256 {
                            map.set((part << 36) + page * PAGE, 1);
                            map.set((part << 36) + (1 << 30) + page * PAGE, 1);
                        }
                    }
                })
            })
            .collect();
        children.into_iter().for_each(Child::ok);
        assert_eq!(count("pages"), before[2] + 16 * 256);
        region.unmap(0, 1 << 37).unwrap();
        assert_eq!(count("pages"), before[2] + 12 * 256);
    }
    assert_eq!(counts(), before);
    baseline.check();
}

/// Processes that map, unmap, protect and touch the same pages inside. Whoever reads finds nothing, a zero,
/// or what was written there.
fn change_and_touch_at_once() {
    const PAGES: usize = 8;
    const ROUNDS: u32 = 400;
    ready();
    let (region, control) = (Region::new(), Shared::new());
    let place = |page: usize| AT + page * PAGE;
    let value = |page: usize| 0x1000 + page as u64;
    let until_done = |work: &mut dyn FnMut(usize)| {
        for page in (0..PAGES).cycle() {
            if control.get(0) == 2 {
                return;
            }
            work(page);
        }
    };
    let changers: Vec<_> = (0..2)
        .map(|which| {
            child::fork(|| {
                for round in 0..ROUNDS {
                    let page = (round as usize * 3 + which * 4) % PAGES;
                    region_change(&region, place(page), round);
                }
                control.add(0);
            })
        })
        .collect();
    let touchers: Vec<_> = (0..2)
        .map(|which| {
            child::fork(|| {
                let mut map = region.attach();
                let mut rounds = 0u32;
                until_done(&mut |page| {
                    let address = map.address + place(page);
                    match fault::load(address) {
                        Ok(0) | Err(Fault { signal: libc::SIGSEGV, .. }) => {}
                        Ok(found) => {
                            assert_eq!(found, value(page), "page {page} shows another page's memory")
                        }
                        Err(other) => panic!("{other:?}"),
                    }
                    let _ = fault::store(address, value(page));
                    rounds += 1;
                    if which == 1 && rounds.is_multiple_of(64) {
                        map = region.attach();
                    }
                });
            })
        })
        .collect();
    changers.into_iter().chain(touchers).for_each(Child::ok);
    checked();
}

fn region_change(region: &Region, at: usize, round: u32) {
    let flags = if round.is_multiple_of(5) { PRIVATE } else { SHARED };
    let result = match round % 4 {
        0 | 1 => region.map(at, PAGE, RW, flags | ANON, -1, 0),
        2 => region.unmap(at, PAGE),
        _ => region.protect(at, PAGE, R),
    };
    assert!(matches!(result, Ok(()) | Err(Errno::ENOMEM)), "{result:?}");
}

fn attach_and_detach_at_once() {
    ready();
    let region = Region::new();
    region.map_shared(AT, PAGE);
    let children: Vec<_> = (0..3)
        .map(|which| {
            child::fork(|| {
                for round in 0..150u32 {
                    let map = region.attach();
                    assert_eq!(fault::store(map.address + AT, 3), Ok(()));
                    match (round + which) % 3 {
                        0 => munmap(map.address, map.length).unwrap(),
                        1 => child::in_child(|| assert_eq!(fault::load(map.address + AT), Ok(3))),
                        // What is mapped over it takes its place.
                        _ => drop(Map::at(
                            map.address,
                            map.length,
                            NONE,
                            PRIVATE | ANON | libc::MAP_FIXED | libc::MAP_NORESERVE,
                            -1,
                            0,
                        )),
                    }
                }
            })
        })
        .collect();
    for child in children {
        assert_eq!(child.wait(), End::Code(0));
        checked();
    }
    assert_eq!(region.attach().get(AT), 3);
}

/// A child on another CPU that reads the page at `at`, without a system call in between that would empty its
/// TLB, until `change` is done; then it reads once more. In each round `prepare` comes first.
fn seen_elsewhere(
    region: &Region,
    at: usize,
    prepare: &dyn Fn(&Map),
    change: &dyn Fn(),
    expected: impl Fn(usize) -> Result<u64, Fault>,
) {
    const ROUNDS: u32 = 30;
    let cpus = sys::cpus();
    if cpus.len() < 2 {
        skip("one CPU");
    }
    let (control, map) = (Shared::new(), region.attach());
    let child = child::fork(|| {
        sys::pin(cpus[1]);
        let map = region.attach();
        let address = map.address + at;
        for round in 1..=ROUNDS {
            while control.get(0) < round {
                std::hint::spin_loop();
            }
            let _ = fault::load(address);
            control.word(1).store(round, Ordering::SeqCst);
            while control.get(2) < round {
                let _ = std::hint::black_box(fault::load(address));
            }
            if fault::load(address) != expected(address) {
                control.word(4).fetch_add(1, Ordering::SeqCst);
            }
            control.word(3).store(round, Ordering::SeqCst);
        }
    });
    sys::pin(cpus[0]);
    let wait_for = |index: usize, round: u32| {
        while control.get(index) < round {
            std::thread::yield_now();
        }
    };
    for round in 1..=ROUNDS {
        prepare(&map);
        control.word(0).store(round, Ordering::SeqCst);
        wait_for(1, round);
        change();
        control.word(2).store(round, Ordering::SeqCst);
        wait_for(3, round);
    }
    child.ok();
    assert_eq!(control.get(4), 0, "of {ROUNDS} changes so many were not seen on another CPU");
}

fn unmapping_reaches_other_cpus() {
    ready();
    let region = Region::new();
    let prepare = |map: &Map| {
        region.map_shared(AT, PAGE);
        map.set_u64(AT, 5);
    };
    seen_elsewhere(&region, AT, &prepare, &|| region.unmap(AT, PAGE).unwrap(), |at| Err(Fault::unmapped(at)));
}

fn protection_reaches_other_cpus() {
    ready();
    let region = Region::new();
    region.map_shared(AT, PAGE);
    let prepare = |map: &Map| {
        region.protect(AT, PAGE, RW).unwrap();
        map.set_u64(AT, 5);
    };
    seen_elsewhere(&region, AT, &prepare, &|| region.protect(AT, PAGE, NONE).unwrap(), |at| {
        Err(Fault::forbidden(at))
    });
}

/// Files go through tables of their own: a whole window of them here.
fn punch_reaches_other_cpus() {
    ready();
    let (region, file) = (Region::new(), Fd::temporary());
    file.truncate(HUGE as u64).unwrap();
    region.map(1 << 30, HUGE, RW, SHARED, file.raw(), 0).unwrap();
    let prepare = |map: &Map| map.set_u64(1 << 30, 5);
    seen_elsewhere(&region, 1 << 30, &prepare, &|| file.punch(0, PAGE as u64).unwrap(), |_| Ok(0));
}

fn huge_punch_reaches_other_cpus() {
    ready();
    huge::pool(4);
    let (region, file) = (Region::new(), huge::file());
    file.truncate(HUGE as u64).unwrap();
    region.map(1 << 30, HUGE, RW, SHARED, file.raw(), 0).unwrap();
    let prepare = |map: &Map| map.set_u64(1 << 30, 5);
    seen_elsewhere(&region, 1 << 30, &prepare, &|| file.punch(0, HUGE as u64).unwrap(), |_| Ok(0));
}

fn many_regions() {
    ready();
    let (regions, attachments) = (count("regions"), count("attachments"));
    let all: Vec<Region> = (0..100).map(|_| Region::new()).collect();
    let maps: Vec<Map> = all.iter().map(Region::attach).collect();
    for (number, (region, map)) in all.iter().zip(&maps).enumerate() {
        region.map_shared(AT, PAGE);
        map.set(AT, number as u8);
    }
    child::in_child(|| {
        assert_eq!(count("attachments"), attachments + 200);
        assert!(maps.iter().enumerate().all(|(number, map)| map.get(AT) == number as u8));
    });
    assert_eq!(count("regions"), regions + 100);
    checked();
    drop((maps, all));
    assert_eq!((count("regions"), count("attachments")), (regions, attachments));
}
