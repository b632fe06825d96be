//! What a situation is made of: files of huge pages, processes that map them, and the faults of one that comes anew.

use std::time::Duration;

use roundtable_programs::child::{self, Child};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB, HUGE};
use roundtable_programs::mem::{FIXED, NORESERVE, RW, SHARED, mmap};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys;
use serde_json::Value;

use crate::saying::{advice_of, audit, expect, file_of};

/// Where mappings go: free in every process, far from everything.
pub const PLACE: usize = 0x2000_0000_0000;
pub const FEW: usize = 16;

/// A file of huge pages with so many of them there, and the name that the audit gives it.
pub fn filled(length: usize, pages: usize) -> (Fd, String) {
    filled_at(length, &[0], pages)
}

/// The same with so many pages at each of these places in the file.
pub fn filled_at(length: usize, places: &[usize], pages: usize) -> (Fd, String) {
    huge::pool((places.len() * pages) as u64 + 2);
    let name = format!("audit-{}", sys::pid());
    let file = Fd::memfd(&name, libc::MFD_CLOEXEC | libc::MFD_HUGETLB).expect("memfd_create");
    file.truncate(length as u64).unwrap();
    places.iter().for_each(|&place| fill(&file, length, place, pages));
    (file, format!("memfd {name}"))
}

/// A file of 1 GiB on a hugetlbfs, with a few pages.
pub fn create(path: &str) -> Fd {
    let file = Fd::open(path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).expect("file on hugetlbfs");
    file.truncate(GIB as u64).unwrap();
    fill(&file, GIB, 0, FEW);
    file
}

/// Puts pages into a file, from this place in it on, and leaves no mapping of it.
fn fill(file: &Fd, length: usize, from: usize, pages: usize) {
    let map = file.map(length, RW, SHARED | NORESERVE).unwrap();
    (0..pages).for_each(|page| map.set_u64(from + page * HUGE, page as u64));
}

pub fn map_at(address: usize, length: usize, protection: i32, flags: i32, file: &Fd) {
    mmap(address, length, protection, flags | FIXED | NORESERVE, file.raw(), 0).expect("mmap");
}

pub fn touch(address: usize, pages: usize) {
    for page in 0..pages {
        // SAFETY: callers have mapped so many pages there.
        unsafe { ((address + page * HUGE) as *const u8).read_volatile() };
    }
}

/// Waits until it is killed.
pub fn stay() -> ! {
    loop {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
}

/// A child that has done this and stays.
pub fn stays(work: impl FnOnce()) -> Child {
    let control = Shared::new();
    let child = child::fork(|| {
        work();
        control.add(0);
        stay();
    });
    assert!(control.wait_for(0, 1, Duration::from_secs(60)), "the child does not get ready");
    child
}

/// Minor faults that a process takes which comes anew, maps, and touches these pages.
pub fn faults_of_a_new_one(map: impl FnOnce(), address: usize, pages: usize) -> u32 {
    faults_at(map, &[address], pages)
}

/// The same for so many pages at each of these places.
pub fn faults_at(map: impl FnOnce(), places: &[usize], pages: usize) -> u32 {
    faults_by(map, || places.iter().for_each(|&place| touch(place, pages)))
}

/// Minor faults of this work, by a process that comes anew and maps first.
pub fn faults_by(map: impl FnOnce(), work: impl FnOnce()) -> u32 {
    let control = Shared::new();
    child::in_child(|| {
        map();
        // The first call makes the code's own pages present.
        sys::faults();
        let (before, _) = sys::faults();
        work();
        control.set(0, (sys::faults().0 - before) as u32);
    });
    control.get(0)
}

/// Faults by code and stack, which a page of the test's own may cost.
#[track_caller]
pub fn expect_faults(faults: u32, expected: u32) {
    assert!((expected..=expected + 2).contains(&faults), "{faults} faults, {expected} expected");
}

/// Two processes, the second one different: the verdict, and the faults of a third that is as the second. What the audit says
/// of the file comes back, and under `advice` the kinds of what it advises.
pub fn two(prepare: impl Fn(&Fd), verdicts: &[(&str, u64)], faults: u32) -> Value {
    let (file, name) = filled(GIB, FEW);
    let _first = stays(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    });
    let second = stays(|| {
        prepare(&file);
        touch(PLACE, FEW);
    });
    let report = audit();
    let mut seen = file_of(&report, "huge", &name).clone();
    expect(&seen, verdicts);
    seen["advice"] = advice_of(&report, &name).iter().map(|advice| advice["id"].clone()).collect();
    second.end();
    expect_faults(faults_of_a_new_one(|| prepare(&file), PLACE, FEW), faults);
    seen
}
