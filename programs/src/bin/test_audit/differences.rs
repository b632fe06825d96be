//! How processes map a file: with which protection and flags, privately, under a userfaultfd.

use roundtable_programs::file::Fd;
use roundtable_programs::harness;
use roundtable_programs::huge::GIB;
use roundtable_programs::mem::{PRIVATE, R, RW, SHARED, madvise};

use crate::saying::{audit, expect, file_of};
use crate::scene::{FEW, PLACE, filled, map_at, stays, touch, two};

pub fn other_protection() {
    let seen = two(|file| map_at(PLACE, GIB, R, SHARED, file), &[("protection_differs", 2)], FEW as u32);
    assert!(seen["cures"].to_string().contains("same protection"), "{seen}");
}

pub fn other_flags() {
    let prepare = |file: &Fd| {
        map_at(PLACE, GIB, RW, SHARED, file);
        madvise(PLACE, GIB, libc::MADV_DONTFORK).expect("MADV_DONTFORK");
    };
    let seen = two(prepare, &[("flags_differ", 2)], FEW as u32);
    assert_eq!(seen["differing_flags"], serde_json::json!(["dc"]));
}

pub fn private_mappings() {
    two(|file| map_at(PLACE, GIB, RW, PRIVATE, file), &[("no_partner", 1), ("private", 1)], FEW as u32);
}

/// Maps the file and has a userfaultfd wait for faults of this mode.
fn watched(file: &Fd, mode: u64, feature: u64) {
    const API: u64 = 0xc018_aa3f;
    const REGISTER: u64 = 0xc020_aa00;
    map_at(PLACE, GIB, RW, SHARED, file);
    // SAFETY: a plain system call.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) } as i32;
    if fd < 0 {
        harness::skip(&format!("userfaultfd: {}", std::io::Error::last_os_error()));
    }
    let mut api = [0xaa, feature, 0];
    let mut register = [PLACE as u64, GIB as u64, mode, 0];
    // SAFETY: the arrays have the layout of uffdio_api and uffdio_register, and live through the calls.
    let results =
        unsafe { [libc::ioctl(fd, API, api.as_mut_ptr()), libc::ioctl(fd, REGISTER, register.as_mut_ptr())] };
    assert_eq!(results, [0, 0], "{}", std::io::Error::last_os_error());
}

pub fn userfaultfd_write_protect() {
    let verdicts = [("no_partner", 1), ("userfaultfd_write_protect", 1)];
    two(|file| watched(file, 1 << 1, 1 << 12), &verdicts, FEW as u32);
}

pub fn userfaultfd_minor() {
    // A minor fault would wait for somebody who answers: it is registered when the pages are mapped.
    let (file, name) = filled(GIB, FEW);
    let _first = stays(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    });
    let _second = stays(|| watched(&file, 1 << 2, 1 << 9));
    let report = audit();
    expect(file_of(&report, "huge", &name), &[("no_partner", 1), ("untouched", 1)]);
}
