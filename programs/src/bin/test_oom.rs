//! Memory that runs out: who takes it is refused or killed, everybody else goes on.

use std::time::{Duration, Instant};

use roundtable_programs::child::{self, Child, End};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB};
use roundtable_programs::kinds::call;
use roundtable_programs::leak::Baseline;
use roundtable_programs::mem::{ANON, FIXED, Map, NORESERVE, PRIVATE, RW, SHARED, mprotect};
use roundtable_programs::mshare::{self, Region};
use roundtable_programs::procfs::{self, Meminfo};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::is_linux;
use roundtable_programs::{Errno, tests};

tests! { one_hog_is_killed: 60, a_slow_end_kills_nobody_else: 60, a_storm_of_hogs: 100, page_tables_run_out: 60, shared_memory_runs_out: 60,
a_region_runs_out: 100, a_region_is_filled_for_others: 100, a_hog_that_changes_its_areas: 100, all_memory_as_huge_pages: 60, more_than_there_is_at_once }

const PAUSE: Duration = Duration::from_millis(10);

/// Marks this process as the one to kill.
fn volunteer() {
    procfs::write("/proc/self/oom_score_adj", 1000).expect("oom_score_adj");
}

fn take_everything(flags: i32) {
    volunteer();
    let bytes = Meminfo::read().get("MemTotal") as usize * 1024;
    for _ in 0..4 {
        let map = Map::new(bytes, RW, flags | ANON | libc::MAP_NORESERVE, -1, 0).expect("address space");
        (0..bytes).step_by(4096).for_each(|at| map.set(at, 1));
        std::mem::forget(map);
    }
    unreachable!("four times all memory");
}

/// A process that counts, in memory of its own, and touches new pages after each pause.
fn bystander(shared: &Shared, pause: Duration) -> Child {
    child::fork(|| {
        loop {
            let map = Map::anonymous(16 * 4096);
            (0..16).for_each(|page| map.set(page * 4096, 1));
            shared.add(0);
            std::thread::sleep(pause);
        }
    })
}

fn one_hog_is_killed() {
    let shared = Shared::new();
    let bystander = bystander(&shared, PAUSE);
    shared.wait(0, 1);
    let before = Baseline::take();
    let hog = child::fork(|| take_everything(PRIVATE));
    assert_eq!(hog.wait(), End::Signal(libc::SIGKILL));
    before.check();
    let count = shared.get(0);
    assert!(shared.wait_for(0, count + 3, Duration::from_secs(20)), "the bystander is gone");
    bystander.end();
}

/// While a victim's memory is on its way back, others in need have to wait for it, not to become the next victims.
fn a_slow_end_kills_nobody_else() {
    let shared = Shared::new();
    let bystanders: Vec<Child> = (0..3).map(|_| bystander(&shared, Duration::ZERO)).collect();
    shared.wait(0, 1);
    let before = Baseline::take();
    // What is to be shown is how this kernel waits; on Linux once is enough to see that the test is right.
    let victims = if is_linux() { 1 } else { 2 };
    for _ in 0..victims {
        let hog = child::fork(|| {
            // Entries that the kernel has to look at, at its end, before it comes to any page that it can give back.
            let zeroes = Map::at(0x1000_0000, GIB, RW, PRIVATE | ANON | NORESERVE | FIXED, -1, 0).unwrap();
            (0..GIB).step_by(4096).for_each(|at| _ = zeroes.get(at));
            take_everything(PRIVATE)
        });
        assert_eq!(hog.wait(), End::Signal(libc::SIGKILL));
    }
    before.check();
    let count = shared.get(0);
    assert!(shared.wait_for(0, count + 3, Duration::from_secs(20)), "the bystanders are gone");
    bystanders.into_iter().for_each(Child::end);
}

fn a_storm_of_hogs() {
    let shared = Shared::new();
    let bystander = bystander(&shared, PAUSE);
    shared.wait(0, 1);
    let before = Baseline::take();
    for _ in 0..2 {
        let hogs: Vec<Child> = (0..6).map(|_| child::fork(|| take_everything(PRIVATE))).collect();
        for hog in hogs {
            assert_eq!(hog.wait(), End::Signal(libc::SIGKILL));
        }
    }
    before.check();
    let count = shared.get(0);
    assert!(shared.wait_for(0, count + 3, Duration::from_secs(20)), "the bystander is gone");
    bystander.end();
}

fn page_tables_run_out() {
    let before = Baseline::take();
    let hog = child::fork(|| {
        volunteer();
        // Every page needs a table of its own.
        let size = 1usize << 45;
        let map = Map::new(size, RW, PRIVATE | ANON | libc::MAP_NORESERVE, -1, 0).expect("address space");
        (0..size).step_by(2 << 20).for_each(|at| _ = map.get(at));
        unreachable!("16 million tables");
    });
    assert_eq!(hog.wait(), End::Signal(libc::SIGKILL));
    before.check();
}

fn shared_memory_runs_out() {
    let before = Baseline::take();
    let hog = child::fork(|| take_everything(SHARED));
    assert_eq!(hog.wait(), End::Signal(libc::SIGKILL));
    before.check();
    // A file on a tmpfs has the tmpfs's limit.
    let path = "/tmp/too-much";
    let file = Fd::open(path, libc::O_RDWR | libc::O_CREAT).unwrap();
    let block = vec![1; 1 << 20];
    let start = Instant::now();
    let error = loop {
        match file.write(&block) {
            Ok(_) => assert!(start.elapsed() < Duration::from_secs(40), "the tmpfs has no end"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Errno::ENOSPC | Errno::ENOMEM), "{error}");
    drop(file);
    std::fs::remove_file(path).unwrap();
    before.check();
}

/// Who fills a region answers for it, not who merely has it attached and is larger otherwise.
fn a_region_runs_out() {
    mshare::ready();
    let before = Baseline::take();
    let (region, shared) = (Region::new(), Shared::new());
    let bytes = Meminfo::read().get("MemTotal") as usize * 1024;
    region.map(0, bytes, RW, PRIVATE | ANON | NORESERVE, -1, 0).unwrap();
    region.attach().set(0, 1);
    let bystanders: Vec<Child> = (0..2).map(|_| attached_bystander(&region, &shared)).collect();
    shared.wait(0, 4);
    let hog = child::fork(|| {
        let map = region.attach();
        (0..bytes).step_by(4096).for_each(|at| map.set(at, 1));
        unreachable!("all memory in a region");
    });
    assert_eq!(hog.wait(), End::Signal(libc::SIGKILL));
    let count = shared.get(0);
    assert!(shared.wait_for(0, count + 4, Duration::from_secs(20)), "the bystanders are gone");
    // What is in the region stays until it is taken out.
    assert!(mshare::count("pages") > bytes as u64 / 4096 / 4);
    region.unmap(0, bytes).unwrap();
    assert_eq!(mshare::count("pages"), 0);
    bystanders.into_iter().for_each(Child::end);
    drop(region);
    before.check();
}

/// A process that has a region attached and 64 MiB of its own, and touches new pages.
fn attached_bystander(region: &Region, shared: &Shared) -> Child {
    child::fork(|| {
        let (attached, own) = (region.attach(), Map::anonymous(64 << 20));
        (0..own.length).step_by(4096).for_each(|at| own.set(at, 1));
        loop {
            assert_eq!(attached.get(0), 1);
            let map = Map::anonymous(16 * 4096);
            (0..16).for_each(|page| map.set(page * 4096, 1));
            shared.add(0);
            std::thread::sleep(PAUSE);
        }
    })
}

/// Who fills a region answers for it, however that is done: by the call that maps memory there, and when it is not attached any more.
fn a_region_is_filled_for_others() {
    const POPULATE: i32 = libc::MAP_POPULATE;
    mshare::ready();
    let before = Baseline::take();
    let bytes = Meminfo::read().get("MemTotal") as usize * 1024;
    for by_attachment in [false, true] {
        let (region, shared) = (Region::new(), Shared::new());
        region.map(0, 4096, RW, PRIVATE | ANON | NORESERVE, -1, 0).unwrap();
        region.attach().set(0, 1);
        let bystanders: Vec<Child> = (0..2).map(|_| attached_bystander(&region, &shared)).collect();
        shared.wait(0, 4);
        let hog = child::fork(|| {
            let flags = PRIVATE | ANON | NORESERVE;
            region.map(4096, bytes, RW, if by_attachment { flags } else { flags | POPULATE }, -1, 0).unwrap();
            if by_attachment {
                drop(Map::new(region.size, RW, SHARED | POPULATE, region.fd.raw(), 0).unwrap());
            }
            take_everything_at_rest();
        });
        assert_eq!(hog.wait(), End::Signal(libc::SIGKILL));
        assert!(mshare::count("pages") > bytes as u64 / 4096 / 4);
        // They look at what is there.
        all_live(bystanders);
        region.unmap(0, bytes).unwrap();
    }
    before.check();
}

/// None of them was killed; and ends them.
#[track_caller]
fn all_live(bystanders: Vec<Child>) {
    for bystander in bystanders {
        assert_eq!(child::waitpid(bystander.pid, libc::WNOHANG).unwrap().0, 0, "a bystander was killed");
        bystander.end();
    }
}

/// Takes what is left, without a word to the killer.
fn take_everything_at_rest() -> ! {
    let bytes = Meminfo::read().get("MemTotal") as usize * 1024;
    let map = Map::new(bytes, RW, PRIVATE | ANON | NORESERVE, -1, 0).expect("address space");
    (0..bytes).step_by(4096).for_each(|at| map.set(at, 1));
    unreachable!("all memory");
}

/// The largest is found while it changes its areas all the time.
fn a_hog_that_changes_its_areas() {
    const AREAS: usize = 2_000;
    let shared = Shared::new();
    let before = Baseline::take();
    let bystanders: Vec<Child> = (0..2)
        .map(|_| {
            child::fork(|| {
                let own = Map::anonymous(64 << 20);
                (0..own.length).step_by(4096).for_each(|at| own.set(at, 1));
                loop {
                    shared.add(0);
                    std::thread::sleep(PAUSE);
                }
            })
        })
        .collect();
    shared.wait(0, 2);
    let hog = child::fork(|| {
        let small = Map::new(2 * AREAS * 4096, RW, PRIVATE | ANON | NORESERVE, -1, 0).unwrap();
        for area in 0..AREAS {
            mprotect(small.address + 2 * area * 4096, 4096, libc::PROT_READ).unwrap();
        }
        let bytes = Meminfo::read().get("MemTotal") as usize * 1024;
        let file = Fd::memfd("hog", 0).unwrap();
        file.truncate(bytes as u64).unwrap();
        let map = file.map(bytes, RW, SHARED).unwrap();
        // Most of it before, for each page has to wait for the areas then.
        let most = ((Meminfo::read().get("MemFree") as usize * 1024) & !4095) - (48 << 20);
        (0..most).step_by(4096).for_each(|at| map.set(at, 1));
        let (at, length) = (small.address, small.length);
        std::thread::spawn(move || {
            loop {
                // Each of the areas, in one call.
                let locked = call(libc::SYS_mlock2, [at, length, libc::MLOCK_ONFAULT as usize, 0, 0, 0]);
                let unlocked = call(libc::SYS_munlock, [at, length, 0, 0, 0, 0]);
                assert_eq!((locked, unlocked), (Ok(0), Ok(0)));
            }
        });
        (most..bytes).step_by(4096).for_each(|at| map.set(at, 1));
        unreachable!("all memory");
    });
    assert_eq!(hog.wait(), End::Signal(libc::SIGKILL));
    all_live(bystanders);
    before.check();
}

fn all_memory_as_huge_pages() {
    let before = Baseline::take();
    let total = Meminfo::read().get("MemTotal") / 2048;
    // Not all memory can become huge pages; what it comes to is a fact to be read back, not an error.
    let got = huge::set_pool(total + 1000);
    assert!(got > 0 && got < total, "{got} huge pages of a memory of {total}");
    assert_eq!(huge::counters().total, got);
    // There is little left for anything else, but some.
    child::in_child(|| Map::anonymous(64 << 10).set(0, 1));
    assert_eq!(huge::set_pool(0), 0);
    before.check();
}

fn more_than_there_is_at_once() {
    // The kernel's heuristic refuses what can never be: far more than all memory, to be reserved.
    let bytes = Meminfo::read().get("MemTotal") as usize * 1024 * 16;
    let result = Map::new(bytes, RW, PRIVATE | ANON, -1, 0);
    assert_eq!(result.err(), Some(Errno::ENOMEM));
}
