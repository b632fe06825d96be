//! Where mmap and shmat put huge pages: at addresses at which tables can be shared, and else as Linux does.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::huge::{self, GIB, HUGE, file};
use roundtable_programs::mem::{ANON, Map, NONE, NORESERVE, PRIVATE, R, RW, SHARED, mmap, munmap};
use roundtable_programs::shared::Shared;
use roundtable_programs::{child, sys, tests};

tests! { histories_do_not_matter, offsets_are_kept, small_mappings_have_slots, private_ones_lie_together,
base_pages_keep_away, segments_have_slots, many_small_ones: 120, a_slot_is_used_again, hint_is_taken, hint_in_use,
no_replace, within_the_limit, low_addresses, hints_beyond_everything }

const MIB64: usize = 64 << 20;

/// Where tables are shared is our own business: Linux chooses by size alone.
fn only_ours() {
    if std::fs::metadata("/sys/kernel/mm/hugepages/sharing").is_err() {
        skip("this kernel does not choose addresses for sharing");
    }
}

fn map(file: &Fd, length: usize, offset: usize) -> Map {
    Map::new(length, RW, SHARED | NORESERVE, file.raw(), offset as i64).expect("mmap")
}

fn slots(map: &Map) -> std::ops::RangeInclusive<usize> {
    map.address / GIB..=(map.address + map.length - 1) / GIB
}

/// Leaves the address space in disorder.
fn history(seed: usize) {
    for number in 1..40 {
        let pages = (number * (seed + 7) * 2_654_435_761) % 3000 + 1;
        std::mem::forget(Map::new(pages * 4096, NONE, PRIVATE | ANON | NORESERVE, -1, 0).unwrap());
        if number % 3 == 0 {
            std::mem::forget(
                Map::new(MIB64, RW, SHARED | ANON | libc::MAP_HUGETLB | NORESERVE, -1, 0).unwrap(),
            );
        }
    }
}

fn histories_do_not_matter() {
    only_ours();
    let (file, places) = (file(), Shared::new());
    file.truncate(8 * GIB as u64).unwrap();
    for process in 0..4 {
        child::in_child(|| {
            (0..process).for_each(history);
            let map = map(&file, 2 * GIB, 3 * HUGE);
            places.set(process, (map.address % GIB) as u32);
        });
    }
    assert_eq!([0, 1, 2, 3].map(|process| places.get(process)), [(3 * HUGE) as u32; 4]);
}

fn offsets_are_kept() {
    only_ours();
    let file = file();
    file.truncate(8 * GIB as u64).unwrap();
    for (pages, offset) in [(1, 0), (1, 511), (32, 500), (512, 1), (600, 512), (1024, 1500)] {
        let map = map(&file, pages * HUGE, offset * HUGE);
        assert_eq!(map.address % GIB, offset * HUGE % GIB, "{pages} pages from {offset}");
    }
}

fn small_mappings_have_slots() {
    only_ours();
    let file = file();
    file.truncate(GIB as u64).unwrap();
    let maps: Vec<Map> = (0..8).map(|number| map(&file, MIB64, number * MIB64)).collect();
    let all: Vec<usize> = maps.iter().flat_map(slots).collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "two mappings in a slot: {maps:?}");
}

fn private_ones_lie_together() {
    only_ours();
    // Nothing is shared there, so a slot each would only cost page tables.
    let maps: Vec<Map> = (0..8)
        .map(|_| Map::new(HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB | NORESERVE, -1, 0).expect("mmap"))
        .collect();
    let all: BTreeSet<usize> = maps.iter().flat_map(slots).collect();
    assert!(all.len() <= 2, "{maps:?}");
}

fn base_pages_keep_away() {
    only_ours();
    let file = file();
    file.truncate(GIB as u64).unwrap();
    let mut taken = BTreeSet::new();
    for _ in 0..20 {
        let (huge, base) = (map(&file, MIB64, 0), Map::anonymous(3 * 4096));
        taken.extend(slots(&huge));
        assert!(!taken.contains(&(base.address / GIB)), "{base:?} is in a slot of huge pages");
        std::mem::forget((huge, base));
    }
}

fn segments_have_slots() {
    only_ours();
    huge::pool(64);
    let attach = || {
        // SAFETY: plain calls; the segment goes with its last attachment.
        unsafe {
            let flags = libc::IPC_CREAT | libc::SHM_HUGETLB | 0o600;
            let id = sys::check(libc::shmget(libc::IPC_PRIVATE, MIB64, flags)).expect("shmget");
            let address = libc::shmat(id as i32, std::ptr::null(), 0);
            assert!(address as isize != -1, "shmat: {}", Errno::last());
            sys::check(libc::shmctl(id as i32, libc::IPC_RMID, std::ptr::null_mut())).expect("shmctl");
            address as usize
        }
    };
    let (a, b) = (attach(), attach());
    assert_eq!((a % GIB, b % GIB), (0, 0));
    assert_ne!(a, b);
    for address in [a, b] {
        // SAFETY: detaches what was attached.
        sys::check(unsafe { libc::shmdt(address as *const _) }).expect("shmdt");
    }
}

fn many_small_ones() {
    let file = file();
    file.truncate(HUGE as u64).unwrap();
    let start = Instant::now();
    let maps: Vec<Map> = (0..4000).map(|_| map(&file, HUGE, 0)).collect();
    let places: BTreeSet<usize> = maps.iter().map(|map| map.address).collect();
    assert_eq!(places.len(), maps.len());
    assert!(start.elapsed() < Duration::from_secs(60), "{:?} for 4000 mappings", start.elapsed());
}

fn a_slot_is_used_again() {
    let file = file();
    file.truncate(GIB as u64).unwrap();
    let places: BTreeSet<usize> = (0..500).map(|_| map(&file, MIB64, 0).address).collect();
    // The last one is gone before the next comes.
    assert!(places.len() <= 2, "{} places for one mapping at a time", places.len());
}

/// Free address space of some size, well away from where the kernel would go by itself.
fn free(length: usize) -> usize {
    let place = Map::reserve(length, GIB);
    let address = place.address;
    drop(place);
    address
}

fn hint_is_taken() {
    let file = file();
    file.truncate(GIB as u64).unwrap();
    let place = free(4 * GIB);
    for (hint, expected) in
        [(0, 0), (7 * HUGE, 7 * HUGE), (7 * HUGE + 1, 7 * HUGE), (9 * HUGE - 4096, 8 * HUGE)]
    {
        let flags = SHARED | NORESERVE;
        let map = Map::at(place + hint, MIB64, RW, flags, file.raw(), 0).expect("mmap");
        assert_eq!(map.address, place + expected, "hint {hint:#x}");
    }
}

fn hint_in_use() {
    let file = file();
    file.truncate(GIB as u64).unwrap();
    let place = Map::reserve(GIB, GIB);
    let map = Map::at(place.address, MIB64, RW, SHARED | NORESERVE, file.raw(), 0).expect("mmap");
    assert!(map.address + MIB64 <= place.address || map.address >= place.address + GIB);
    assert!(map.address.is_multiple_of(HUGE));
}

fn no_replace() {
    let file = file();
    file.truncate(GIB as u64).unwrap();
    let flags = SHARED | NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let place = free(GIB);
    let map = Map::at(place, MIB64, RW, flags, file.raw(), 0).expect("mmap where nothing is");
    assert_eq!(map.address, place);
    let again = |at: usize| mmap(at, MIB64, RW, flags, file.raw(), 0);
    assert_eq!(again(place), Err(Errno::EEXIST));
    assert_eq!(again(place + MIB64 - HUGE), Err(Errno::EEXIST));
    let beside = again(place + MIB64).expect("mmap beside it");
    assert_eq!(beside, place + MIB64);
    munmap(beside, MIB64).unwrap();
    assert_eq!(again(place + 4096), Err(Errno::EINVAL));
}

/// Pages of address space that the process has, the first number of statm.
fn size() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
    text.split(' ').next().and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
}

fn within_the_limit() {
    let file = file();
    file.truncate(GIB as u64).unwrap();
    child::in_child(|| {
        // The room around a mapping does not count, only what is mapped.
        let limit = size() + MIB64 as u64 + (1 << 20);
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the structure lives through the call.
        sys::check(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }).expect("setrlimit");
        let first = map(&file, MIB64, 0);
        let second = mmap(0, MIB64, RW, SHARED | NORESERVE, file.raw(), 0);
        assert_eq!(second, Err(Errno::ENOMEM));
        drop(first);
        assert!(Map::new(MIB64, R, SHARED | NORESERVE, file.raw(), 0).is_ok());
    });
}

fn low_addresses() {
    // Linux 6.12 leaves MAP_32BIT out for huge pages.
    only_ours();
    let file = file();
    file.truncate(GIB as u64).unwrap();
    let maps: Vec<Map> = (0..3)
        .map(|_| Map::new(MIB64, RW, SHARED | NORESERVE | libc::MAP_32BIT, file.raw(), 0).expect("mmap"))
        .collect();
    assert!(maps.iter().all(|map| map.address + MIB64 <= 1 << 31), "{maps:?}");
}

/// A hint is a hint, though what is behind it wraps around. On both kernels.
fn hints_beyond_everything() {
    const PAGE: usize = 4096;
    for hint in [usize::MAX - PAGE + 1, usize::MAX, usize::MAX - GIB + 1, 1 << 47, (1 << 47) - PAGE] {
        // Beyond 47 bits Linux gives what a processor with five levels has.
        for (flags, end) in [(libc::MAP_32BIT, 1 << 31), (0, usize::MAX)] {
            for length in [PAGE, 2 * PAGE, MIB64] {
                let at = mmap(hint, length, RW, PRIVATE | ANON | NORESERVE | flags, -1, 0).expect("mmap");
                assert!(at != 0 && at + length <= end, "{hint:#x} {length:#x} {at:#x}");
                munmap(at, length).unwrap();
            }
        }
    }
    // Nothing was left that wraps around: this goes through all areas.
    // SAFETY: takes no argument.
    sys::check(unsafe { libc::munlockall() }).unwrap();
}
