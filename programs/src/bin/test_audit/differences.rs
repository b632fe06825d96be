//! How processes map a file: with which protection and flags, privately, under a userfaultfd.

use roundtable_programs::child;
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB, HUGE};
use roundtable_programs::mem::{FIXED, PRIVATE, R, RW, SHARED, madvise, mmap};
use roundtable_programs::shared::Shared;
use roundtable_programs::{harness, sys};

use crate::saying::{audit, expect, file_of};
use crate::scene::{
    FEW, PLACE, expect_faults, faults_by, faults_of_a_new_one, filled, map_at, stays, touch, two,
};

pub fn other_protection() {
    let seen = two(|file| map_at(PLACE, GIB, R, SHARED, file), &[("protection_differs", 2)], FEW as u32);
    assert!(seen["advice"].to_string().contains("same-protection"), "{seen}");
}

pub fn other_flags() {
    for (advice, flag) in [
        (libc::MADV_DONTFORK, "dc"),
        (libc::MADV_DONTDUMP, "dd"),
        (libc::MADV_RANDOM, "rr"),
        (libc::MADV_SEQUENTIAL, "sr"),
    ] {
        let prepare = |file: &Fd| {
            map_at(PLACE, GIB, RW, SHARED, file);
            madvise(PLACE, GIB, advice).expect("madvise");
        };
        expect_flag(flag, prepare);
    }
}

/// The second one's mapping has a flag that the first one's has not, or the other way round.
fn expect_flag(flag: &str, prepare: impl Fn(&Fd)) {
    let seen = two(prepare, &[("flags_differ", 2)], FEW as u32);
    assert_eq!(seen["differing_flags"], serde_json::json!([flag]));
    assert!(seen["advice"].to_string().contains("same-flags"), "{seen}");
}

/// A mapping that reserves its pages, beside one that does not.
pub fn other_reservation() {
    let (file, name) = filled(GIB, FEW);
    let _first = stays(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    });
    // All pages that the file has not yet.
    huge::set_pool(514);
    let reserve = || {
        mmap(PLACE, GIB, RW, SHARED | FIXED, file.raw(), 0).expect("mmap with a reservation");
    };
    let second = stays(|| {
        reserve();
        touch(PLACE, FEW);
    });
    let report = audit();
    let seen = file_of(&report, "huge", &name);
    expect(seen, &[("flags_differ", 2)]);
    assert_eq!(seen["differing_flags"], serde_json::json!(["nr"]));
    second.end();
    expect_faults(faults_of_a_new_one(reserve, PLACE, FEW), FEW as u32);
}

/// Locked memory shares: Linux compares no flags of mlock.
pub fn locked_memory() {
    let (file, name) = filled(GIB, FEW);
    let map = || map_at(PLACE, GIB, RW, SHARED, &file);
    let lock = || {
        // SAFETY: locks what is mapped, and makes it present.
        let result = unsafe { libc::mlock(PLACE as *const _, FEW * HUGE) };
        assert_eq!(result, 0, "mlock: {}", std::io::Error::last_os_error());
    };
    let _first = stays(|| {
        map();
        touch(PLACE, FEW);
    });
    let _second = stays(|| {
        map();
        lock();
    });
    expect(file_of(&audit(), "huge", &name), &[("shared", 2)]);
    expect_faults(faults_by(map, lock), 1);
}

/// Who watches a process's writes through /proc/PID/clear_refs takes a flag from its mappings.
pub fn soft_dirty_tracking() {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
    if !smaps.lines().any(|line| line.starts_with("VmFlags:") && line.contains(" sd")) {
        harness::skip("this kernel is built without CONFIG_MEM_SOFT_DIRTY");
    }
    expect_flag("sd", |file| {
        map_at(PLACE, GIB, RW, SHARED, file);
        std::fs::write("/proc/self/clear_refs", "4").expect("clear_refs");
    });
}

/// A protection key is among the flags that Linux compares, but not among those that smaps lists.
pub fn protection_key() {
    // SAFETY: takes integers.
    let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, 0) };
    if key < 0 {
        harness::skip(&format!("no protection key: {}", std::io::Error::last_os_error()));
    }
    expect_flag(&format!("k{key}"), |file| {
        map_at(PLACE, GIB, RW, SHARED, file);
        // SAFETY: protects what was just mapped.
        let result = unsafe { libc::syscall(libc::SYS_pkey_mprotect, PLACE, GIB, RW, key) };
        assert_eq!(result, 0, "pkey_mprotect: {}", std::io::Error::last_os_error());
    });
}

pub fn private_mappings() {
    two(|file| map_at(PLACE, GIB, RW, PRIVATE, file), &[("no_partner", 1), ("private", 1)], FEW as u32);
}

/// A userfaultfd over the mapping of the file that it makes.
struct Watch {
    fd: Fd,
}

impl Watch {
    /// Maps the file and waits for faults of this mode.
    fn new(file: &Fd, mode: u64, feature: u64) -> Watch {
        const API: u64 = 0xc018_aa3f;
        const REGISTER: u64 = 0xc020_aa00;
        map_at(PLACE, GIB, RW, SHARED, file);
        // SAFETY: a plain system call.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        let fd = Fd::own(sys::check(fd).expect("userfaultfd"));
        let mut api = [0xaa, feature, 0];
        let mut register = [PLACE as u64, GIB as u64, mode, 0];
        // SAFETY: the arrays have the layout of uffdio_api and uffdio_register, and live through the calls.
        let results = unsafe {
            [
                libc::ioctl(fd.raw(), API, api.as_mut_ptr()),
                libc::ioctl(fd.raw(), REGISTER, register.as_mut_ptr()),
            ]
        };
        assert_eq!(results, [0, 0], "{}", std::io::Error::last_os_error());
        Watch { fd }
    }

    /// Maps the file's own pages there, as the answer to minor faults.
    fn map_pages(&self, address: usize, pages: usize) {
        const CONTINUE: u64 = 0xc020_aa07;
        let mut range = [address as u64, (pages * HUGE) as u64, 0, 0];
        // SAFETY: the array has the layout of uffdio_continue and lives through the call.
        let result = unsafe { libc::ioctl(self.fd.raw(), CONTINUE, range.as_mut_ptr()) };
        assert_eq!(result, 0, "UFFDIO_CONTINUE: {}", std::io::Error::last_os_error());
    }

    /// Waits for the next fault and gives its address.
    fn next_fault(&self) -> usize {
        let mut message = [0u64; 4];
        // SAFETY: an array of u64 is as good as one of bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(message.as_mut_ptr().cast(), 32) };
        assert_eq!(self.fd.read(bytes), Ok(32), "one message of a fault");
        message[2] as usize
    }
}

/// Ends the subtest where the kernel lets nobody watch.
fn need_userfaultfd() {
    // SAFETY: a plain system call.
    match sys::check(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) }) {
        Ok(fd) => drop(Fd::own(fd)),
        Err(error) => harness::skip(&format!("userfaultfd: {error}")),
    }
}

/// Maps the file under a watch that lasts as long as the process.
fn watched(mode: u64, feature: u64) -> impl Fn(&Fd) {
    move |file| std::mem::forget(Watch::new(file, mode, feature))
}

/// Waiting for missing pages alone forbids no sharing, but it is another flag than the others have.
pub fn userfaultfd_missing() {
    need_userfaultfd();
    expect_flag("um", watched(1, 1 << 4));
}

pub fn userfaultfd_write_protect() {
    need_userfaultfd();
    let verdicts = [("no_partner", 1), ("userfaultfd_write_protect", 1)];
    two(watched(1 << 1, 1 << 12), &verdicts, FEW as u32);
}

pub fn userfaultfd_minor() {
    const MODE: (u64, u64) = (1 << 2, 1 << 9);
    need_userfaultfd();
    let (file, name) = filled(GIB, FEW);
    let _first = stays(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    });
    let _second = stays(|| {
        let watch = Watch::new(&file, MODE.0, MODE.1);
        watch.map_pages(PLACE, FEW);
        std::mem::forget(watch);
    });
    let report = audit();
    expect(file_of(&report, "huge", &name), &[("no_partner", 1), ("userfaultfd_minor", 1)]);
    // In a shared table the pages would be there, and nobody would be asked.
    let control = Shared::new();
    child::in_child(|| {
        let watch = Watch::new(&file, MODE.0, MODE.1);
        std::thread::scope(|scope| {
            scope.spawn(|| touch(PLACE, FEW));
            for _ in 0..FEW {
                let address = watch.next_fault();
                watch.map_pages(address & !(HUGE - 1), 1);
                control.add(0);
            }
        });
    });
    assert_eq!(control.get(0), FEW as u32);
}
