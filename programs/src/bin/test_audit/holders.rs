//! Who has the huge pages when no process maps them, and to whom pages are promised.

use roundtable_programs::child::Child;
use roundtable_programs::file::Fd;
use roundtable_programs::harness;
use roundtable_programs::huge::{self, HUGE, HugeFs, counters};
use roundtable_programs::mem::{ANON, Map, NORESERVE, PRIVATE, RW, SHARED};
use serde_json::Value;

use crate::following::follow;
use crate::pool::pool_of;
use crate::saying::{advice, audit};
use crate::scene::stays;

/// The holder of this name, of a pool of which every page and every promise is explained.
#[track_caller]
pub fn holder<'a>(report: &'a Value, name: &str) -> &'a Value {
    let pool = pool_of(report);
    assert_eq!((&pool["unexplained"], &pool["unexplained_promises"]), (&0.into(), &0.into()), "{pool}");
    let holders = pool["holders"].as_array().expect("holders");
    let sum = |field: &str| holders.iter().map(|one| one[field].as_u64().unwrap()).sum::<u64>();
    let now = counters();
    assert_eq!((sum("pages"), sum("promised")), (now.total - now.free, now.reserved), "{pool}");
    let found = holders.iter().find(|one| one["subject"]["file"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {holders:?}"))
}

fn expect(holder: &Value, hold: &str, pages: u64, promised: u64) {
    assert_eq!(
        (&holder["hold"], holder["pages"].as_u64(), holder["promised"].as_u64()),
        (&hold.into(), Some(pages), Some(promised)),
        "{holder}"
    );
}

/// Ends the subtest where not even root may look into every process: no file is called left there.
pub fn need_all_in_sight() {
    let seen = &audit()["seen"];
    if seen["unreadable"] != 0 || seen["in_container"] != false || seen["others_hidden"] != false {
        harness::skip("not every process may be looked into here");
    }
}

/// A program was killed and left its file, as DPDK does: the pages are in use and no process maps any.
pub fn file_left_on_a_mount() {
    need_all_in_sight();
    let mount = HugeFs::mount("");
    huge::pool(24);
    let path = format!("{}/rtemap_0", mount.path);
    let file = Fd::open(&path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).unwrap();
    file.truncate(20 * HUGE as u64).unwrap();
    let killed = stays(|| {
        let map = file.map(20 * HUGE, RW, SHARED).unwrap();
        (0..20).for_each(|page| map.set(page * HUGE, 1));
        std::mem::forget(map);
    });
    let report = audit();
    expect(holder(&report, &path), "mapped", 20, 0);
    killed.end();
    // As long as anybody has it open it is not left.
    let report = audit();
    expect(holder(&report, &path), "open-file", 20, 0);
    let pids = &holder(&report, &path)["subject"]["some_pids"];
    assert!(pids.as_array().unwrap().contains(&roundtable_programs::sys::pid().into()), "{pids}");
    assert_eq!(advice(&report, &path, "open-file")["frees"], 20 * HUGE);
    drop(file);
    let report = audit();
    let left = holder(&report, &path);
    expect(left, "file", 20, 0);
    assert!(left["age_seconds"].as_u64().is_some_and(|age| age < 600), "{left}");
    let advice = advice(&report, &path, "left-files");
    assert_eq!(advice["frees"], 20 * HUGE, "{advice}");
    follow(&[advice]);
    huge::expect_pool(24, 0);
}

/// A file without a name that a process has open and does not map.
pub fn open_file_without_a_name() {
    huge::pool(8);
    let holding = stays(|| {
        let file = Fd::memfd("audit-held", libc::MFD_CLOEXEC | libc::MFD_HUGETLB).expect("memfd_create");
        file.truncate(5 * HUGE as u64).unwrap();
        file.fallocate(0, 0, 5 * HUGE as u64).unwrap();
        std::mem::forget(file);
    });
    let report = audit();
    let held = holder(&report, "memfd audit-held");
    expect(held, "descriptor", 5, 0);
    assert_eq!(held["subject"]["some_pids"], serde_json::json!([holding.pid]), "{held}");
    assert_eq!(advice(&report, "memfd audit-held", "open-file")["frees"], 5 * HUGE);
    holding.end();
    huge::expect_pool(8, 0);
}

/// A segment that nobody has attached any more.
pub fn segment_left_behind() {
    huge::pool(8);
    let flags = libc::IPC_CREAT | libc::SHM_HUGETLB | 0o600;
    // SAFETY: plain system calls.
    let id = unsafe { libc::shmget(libc::IPC_PRIVATE, 6 * HUGE, flags) };
    assert!(id >= 0, "shmget: {}", std::io::Error::last_os_error());
    stays(|| {
        // SAFETY: the kernel chooses the place.
        let at = unsafe { libc::shmat(id, std::ptr::null(), 0) } as *mut u8;
        // SAFETY: so much is attached there.
        (0..4).for_each(|page| unsafe { at.add(page * HUGE).write_volatile(1) });
    })
    .end();
    let report = audit();
    let name = format!("SysV segment {id} (key 0x00000000)");
    let left = holder(&report, &name);
    expect(left, "segment", 4, 2);
    let advice = advice(&report, &name, "left-segment");
    assert!(advice["steps"].to_string().contains(&format!("ipcrm -m {id}")), "{advice}");
    // SAFETY: takes integers.
    unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    huge::expect_pool(8, 0);
}

/// Promises of mapped files: what is mapped and not touched, and nothing of what was mapped without a reservation; private copies.
pub fn promises_and_private_pages() {
    huge::pool(40);
    let file = |name: &str| {
        let file = Fd::memfd(name, libc::MFD_CLOEXEC | libc::MFD_HUGETLB).expect("memfd_create");
        file.truncate(10 * HUGE as u64).unwrap();
        file
    };
    let map = |file: &Fd, flags: i32, pages: usize| -> Map {
        let map = file.map(10 * HUGE, RW, flags).unwrap();
        (0..pages).for_each(|page| map.set(page * HUGE, 1));
        map
    };
    let (reserved, unreserved) = (file("audit-reserved"), file("audit-unreserved"));
    let _maps = [map(&reserved, SHARED, 4), map(&unreserved, SHARED | NORESERVE, 3)];
    let _private: Child = stays(|| {
        let flags = PRIVATE | ANON | libc::MAP_HUGETLB;
        let private = Map::new(8 * HUGE, RW, flags, -1, 0).unwrap();
        (0..5).for_each(|page| private.set(page * HUGE, 1));
        std::mem::forget(private);
    });
    let report = audit();
    expect(holder(&report, "memfd audit-reserved"), "mapped", 4, 6);
    expect(holder(&report, "memfd audit-unreserved"), "mapped", 3, 0);
    expect(holder(&report, "anonymous memory"), "private", 5, 3);
}

/// A mount with a promise of its own.
pub fn mount_with_a_promise() {
    huge::pool(10);
    let mount = HugeFs::mount("min_size=8M,size=16M");
    let report = audit();
    expect(holder(&report, &format!("mount {}", mount.path)), "mount", 0, 4);
}
