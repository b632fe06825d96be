//! Mappings of 512 GiB and more: what a table above the tables of leaves shows, and what changes inside of it.
//!
//! The content is checked on both kernels; that such a mapping has no table of its own only where tables belong to files.

use roundtable_programs::child;
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::huge::{self, GIB, HUGE, file, stamp};
use roundtable_programs::mem::{
    ANON, FIXED, Map, NORESERVE, PRIVATE, R, RW, SHARED, mmap, mprotect, mremap, munmap,
};
use roundtable_programs::sharing::{self, counter};
use roundtable_programs::{procfs, sys, tests};

tests! { no_table_of_its_own: 60, new_windows_show_up_everywhere: 60, a_hole_in_the_middle: 60, part_read_only: 60,
whole_read_only_and_back: 60, punch_inside: 60, truncate_inside: 60, a_part_moves: 60, base_pages_over_a_part: 60,
fork_of_what_was_cut: 60, readers_and_writers: 60 }

/// 1 TiB: two windows of 512 GiB.
const LENGTH: usize = 1024 * GIB;
/// Slots that have a page.
const SLOTS: [usize; 6] = [0, 1, 300, 511, 512, 1023];

fn offset(slot: usize) -> usize {
    slot * GIB + slot % 512 * HUGE
}

/// A file of 1 TiB with a page in each of a few slots.
fn filled() -> Fd {
    huge::pool(SLOTS.len() as u64 + 4);
    let file = file();
    file.truncate(LENGTH as u64).unwrap();
    for slot in SLOTS {
        file.fallocate(0, offset(slot) as u64, HUGE as u64).unwrap();
    }
    let map = whole(&file, RW);
    SLOTS.iter().for_each(|slot| map.set_u64(offset(*slot), stamp(5, *slot)));
    file
}

/// The file, at a multiple of 512 GiB.
fn whole(file: &Fd, protection: i32) -> Map {
    let place = Map::reserve(LENGTH, 512 * GIB);
    let flags = SHARED | FIXED | NORESERVE;
    mmap(place.address, LENGTH, protection, flags, file.raw(), 0).unwrap();
    place
}

#[track_caller]
fn expect(map: &Map, slots: &[usize]) {
    for slot in slots {
        let address = map.address + offset(*slot);
        assert_eq!(fault::load(address), Ok(stamp(5, *slot)), "slot {slot}");
    }
}

fn own_tables() -> u64 {
    procfs::status(sys::pid(), "VmPTE")
}

fn no_table_of_its_own() {
    if sharing::protocol().as_deref() != Some("file-tables") {
        skip("tables do not belong to files here");
    }
    let file = filled();
    let _first = whole(&file, RW);
    child::in_child(|| {
        // Brings the program in, with the tables for it.
        sys::faults();
        let (before, attached) = (own_tables(), counter("attachments"));
        let map = whole(&file, RW);
        assert_eq!(own_tables(), before, "kB of tables for 1 TiB");
        assert_eq!(counter("attachments"), attached + 2, "one store for 512 GiB");
        let (faults, _) = sys::faults();
        let found = SLOTS.map(|slot| map.get_u64(offset(slot)));
        assert_eq!(sys::faults().0, faults);
        assert_eq!(found, SLOTS.map(|slot| stamp(5, slot)));
        assert_eq!(own_tables(), before);
    });
    // Without an address the kernel finds such a place by itself.
    let anywhere = file.map(LENGTH, RW, SHARED | NORESERVE).unwrap();
    assert_eq!(anywhere.address % (512 * GIB), 0);
}

fn new_windows_show_up_everywhere() {
    let file = filled();
    let map = whole(&file, RW);
    child::in_child(|| {
        let own = whole(&file, RW);
        own.set_u64(700 * GIB, 7);
        map.set_u64(701 * GIB, 8);
        assert_eq!((map.get_u64(700 * GIB), own.get_u64(701 * GIB)), (7, 8));
    });
    assert_eq!((map.get_u64(700 * GIB), map.get_u64(701 * GIB)), (7, 8));
    expect(&map, &SLOTS);
}

fn a_hole_in_the_middle() {
    let file = filled();
    let (map, other) = (whole(&file, RW), whole(&file, RW));
    munmap(map.address + 300 * GIB, 5 * GIB).unwrap();
    let gone = map.address + offset(300);
    assert_eq!(fault::load(gone), Err(Fault::unmapped(gone)));
    expect(&map, &[0, 1, 511, 512, 1023]);
    map.set_u64(305 * GIB, 6);
    assert_eq!(other.get_u64(305 * GIB), 6);
    expect(&other, &SLOTS);
    assert_eq!(fault::load(gone), Err(Fault::unmapped(gone)));
}

fn part_read_only() {
    let file = filled();
    let (map, other) = (whole(&file, RW), whole(&file, RW));
    mprotect(map.address + 300 * GIB, 10 * HUGE + GIB, R).unwrap();
    let address = map.address + 300 * GIB + 5 * HUGE;
    assert_eq!(fault::load(address), Ok(0));
    assert_eq!(fault::store(address, 1), Err(Fault::forbidden(address)));
    assert_eq!(fault::store(map.address + 302 * GIB, 1), Ok(()));
    other.set_u64(300 * GIB + 5 * HUGE, 9);
    assert_eq!(fault::load(address), Ok(9));
    expect(&map, &SLOTS);
    expect(&other, &SLOTS);
}

fn whole_read_only_and_back() {
    let file = filled();
    let (map, other) = (whole(&file, RW), whole(&file, RW));
    let address = map.address + offset(511);
    mprotect(map.address, LENGTH, R).unwrap();
    assert_eq!(fault::store(address, 1), Err(Fault::forbidden(address)));
    other.set_u64(offset(511), stamp(5, 511));
    expect(&map, &SLOTS);
    mprotect(map.address, LENGTH, RW).unwrap();
    map.set_u64(offset(511) + 8, 4);
    assert_eq!(other.get_u64(offset(511) + 8), 4);
}

fn punch_inside() {
    let file = filled();
    let map = whole(&file, RW);
    expect(&map, &SLOTS);
    child::in_child(|| {
        expect(&map, &SLOTS);
        file.punch(300 * GIB as u64, 212 * GIB as u64).unwrap();
        assert_eq!((map.get_u64(offset(300)), map.get_u64(offset(511))), (0, 0));
    });
    assert_eq!((map.get_u64(offset(300)), map.get_u64(offset(511))), (0, 0));
    expect(&map, &[0, 1, 512, 1023]);
}

fn truncate_inside() {
    let file = filled();
    let map = whole(&file, RW);
    expect(&map, &SLOTS);
    file.truncate(400 * GIB as u64).unwrap();
    for slot in [511, 512, 1023] {
        let address = map.address + offset(slot);
        assert_eq!(fault::load(address), Err(Fault::bus(address)));
    }
    expect(&map, &[0, 1, 300]);
    file.truncate(LENGTH as u64).unwrap();
    assert_eq!(map.get_u64(offset(1023)), 0);
}

fn a_part_moves() {
    if sys::is_linux() {
        skip("Linux 6.12 does not come back from this mremap");
    }
    let file = filled();
    let map = whole(&file, RW);
    expect(&map, &SLOTS);
    let target = Map::reserve(4 * GIB, GIB);
    let moved = mremap(
        map.address + 300 * GIB,
        GIB,
        GIB,
        libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
        target.address + GIB,
    );
    assert_eq!(moved, Ok(target.address + GIB));
    assert_eq!(fault::load(target.address + GIB + offset(300) % GIB), Ok(stamp(5, 300)));
    let gone = map.address + offset(300);
    assert_eq!(fault::load(gone), Err(Fault::unmapped(gone)));
    expect(&map, &[0, 1, 511, 512, 1023]);
}

fn base_pages_over_a_part() {
    let file = filled();
    let map = whole(&file, RW);
    expect(&map, &SLOTS);
    let at = map.address + 300 * GIB;
    mmap(at, 16 * HUGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
    assert_eq!(fault::store(at + 4096, 3), Ok(()));
    assert_eq!((fault::load(at), fault::load(at + 4096)), (Ok(0), Ok(3)));
    expect(&map, &SLOTS);
    assert_eq!(fault::load(at + 16 * HUGE), Ok(0));
}

fn fork_of_what_was_cut() {
    let file = filled();
    let map = whole(&file, RW);
    munmap(map.address + 600 * GIB + 2 * HUGE, HUGE).unwrap();
    mprotect(map.address + 2 * GIB, GIB, R).unwrap();
    child::in_child(|| {
        expect(&map, &SLOTS);
        let (gone, kept) = (map.address + 600 * GIB + 2 * HUGE, map.address + 2 * GIB);
        assert_eq!(fault::load(gone), Err(Fault::unmapped(gone)));
        assert_eq!(fault::store(kept, 1), Err(Fault::forbidden(kept)));
        map.set_u64(600 * GIB, 11);
    });
    assert_eq!(map.get_u64(600 * GIB), 11);
}

fn readers_and_writers() {
    let file = filled();
    let (reader, writer) = (whole(&file, R), whole(&file, RW));
    let address = reader.address + offset(512);
    assert_eq!(fault::store(address, 1), Err(Fault::forbidden(address)));
    writer.set_u64(offset(512) + 8, 2);
    assert_eq!(fault::load(address + 8), Ok(2));
    expect(&reader, &SLOTS);
}
