//! Files of base pages with a stamp in each page, and what their page tables spare.

use crate::file::Fd;
use crate::mem::Map;
use crate::procfs;
use crate::sys::faults;

pub const PAGE: usize = 4096;
/// Bytes that a page table of leaves shows.
pub const WINDOW: usize = 2 << 20;
const FILE_TABLES: &str = "/sys/kernel/mm/file_tables";

/// Have files of base pages tables here?
pub fn has_tables() -> bool {
    std::fs::read_to_string(format!("{FILE_TABLES}/mode")).is_ok_and(|mode| mode.trim() == "all")
}

/// A number of `/sys/kernel/mm/file_tables`.
pub fn counter(name: &str) -> u64 {
    procfs::number(&format!("{FILE_TABLES}/{name}"))
}

/// What page `index` of a file has at its begin.
pub fn stamp(index: usize) -> u64 {
    0x5eed_0000 + index as u64
}

/// A file of so many bytes, each page stamped.
pub fn stamped(length: usize) -> Fd {
    let file = Fd::temporary();
    file.truncate(length as u64).unwrap();
    for index in 0..length / PAGE {
        assert_eq!(file.write_at(&stamp(index).to_ne_bytes(), (index * PAGE) as u64), Ok(8));
    }
    file
}

/// What a mapping of a stamped file from page `first` on has.
#[track_caller]
pub fn expect_stamps(map: &Map, first: usize) {
    expect_stamps_at(map.address, map.length, first);
}

/// As [`expect_stamps`], of a part.
#[track_caller]
pub fn expect_stamps_at(address: usize, length: usize, first: usize) {
    for at in (0..length).step_by(PAGE) {
        // SAFETY: the caller has something mapped there; what the kernel makes of the access is what is tested.
        let word = unsafe { ((address + at) as *const u64).read_volatile() };
        assert_eq!(word, stamp(first + at / PAGE), "at {at:#x}");
    }
}

/// Minor faults while `work` runs.
fn faults_of(work: impl FnOnce()) -> u64 {
    let before = faults().0;
    work();
    faults().0 - before
}

/// `work` faults no page in where files have tables.
#[track_caller]
pub fn expect_no_faults(work: impl FnOnce()) {
    let count = faults_of(work);
    // The test's own code and stack may fault in once.
    assert!(!has_tables() || count < 8, "{count} faults");
}
