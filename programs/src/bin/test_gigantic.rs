//! Pages of 1 GiB: boot-time pool, mappings, faults, fork, limits.

use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::huge::{GIB, HUGE, HugeFs};
use roundtable_programs::mem::{ANON, Map, PRIVATE, R, RW, SHARED, munmap};
use roundtable_programs::{Errno, child, procfs, tests};

tests! { counters, anonymous: 60, file: 60, two_mappings: 60, fork_shares: 60, unaligned, pool_runs_out: 60,
truncate_and_refault: 60, memfd: 60, private_copy: 90, set_at_run_time: 60, demotion: 90 }

const FOLDER: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB";

fn read(name: &str) -> u64 {
    procfs::number(&format!("{FOLDER}/{name}"))
}

/// Free and reserved pages.
fn pool() -> (u64, u64) {
    (read("free_hugepages"), read("resv_hugepages"))
}

fn need(pages: u64) {
    if !std::path::Path::new(FOLDER).exists() {
        skip("this processor has no pages of 1 GiB");
    }
    let total = read("nr_hugepages");
    if total < pages {
        skip(&format!("{total} pages of 1 GiB, needs {pages}"));
    }
    assert_eq!(pool(), (total, 0));
}

fn anonymous_map(pages: usize) -> Result<Map, Errno> {
    let flags = PRIVATE | ANON | libc::MAP_HUGETLB | libc::MAP_HUGE_1GB;
    Map::new(pages * GIB, RW, flags, -1, 0)
}

fn counters() {
    need(1);
    assert_eq!(read("surplus_hugepages"), 0);
    // The sum over all sizes, in kB.
    let hugetlb = procfs::Meminfo::read().get("Hugetlb");
    assert_eq!(
        hugetlb,
        read("nr_hugepages") * (1 << 20) + procfs::Meminfo::read().get("HugePages_Total") * 2048
    );
}

fn anonymous() {
    need(1);
    let total = read("nr_hugepages");
    let map = anonymous_map(1).unwrap();
    assert_eq!(map.address % GIB, 0);
    assert_eq!(pool(), (total, 1));
    map.set(0, 1);
    map.set(GIB - 1, 2);
    map.set(123 * HUGE + 5, 3);
    assert_eq!(pool(), (total - 1, 0));
    assert_eq!((map.get(0), map.get(GIB - 1), map.get(123 * HUGE + 5), map.get(HUGE)), (1, 2, 3, 0));
    drop(map);
    assert_eq!(pool(), (total, 0));
}

fn file() {
    need(1);
    let total = read("nr_hugepages");
    let mount = HugeFs::mount("pagesize=1G");
    let file = mount.file();
    assert_eq!(file.statfs().f_bsize, GIB as i64);
    assert_eq!(file.truncate(HUGE as u64), Err(Errno::EINVAL));
    file.truncate(GIB as u64).unwrap();
    let map = file.map(GIB, RW, SHARED).unwrap();
    map.set(GIB / 2, 9);
    let mut byte = [0];
    assert_eq!(file.read_at(&mut byte, GIB as u64 / 2), Ok(1));
    assert_eq!(byte, [9]);
    assert_eq!(file.stat().st_blocks, (GIB / 512) as i64);
    assert_eq!(pool(), (total - 1, 0));
}

fn two_mappings() {
    need(1);
    let file = HugeFs::mount("pagesize=1G").file();
    file.truncate(GIB as u64).unwrap();
    let (a, b) = (file.map(GIB, RW, SHARED).unwrap(), file.map(GIB, R, SHARED).unwrap());
    a.set(77 * HUGE, 1);
    assert_eq!(b.get(77 * HUGE), 1);
    assert_eq!(fault::write(b.address, 1), Err(Fault::forbidden(b.address)));
}

fn fork_shares() {
    need(1);
    let file = HugeFs::mount("pagesize=1G").file();
    file.truncate(GIB as u64).unwrap();
    let map = file.map(GIB, RW, SHARED).unwrap();
    map.set(0, 1);
    child::in_child(|| {
        assert_eq!(map.get(0), 1);
        map.set(GIB - 1, 2);
    });
    assert_eq!(map.get(GIB - 1), 2);
}

fn unaligned() {
    need(1);
    let map = anonymous_map(1).unwrap();
    assert_eq!(munmap(map.address, HUGE), Err(Errno::EINVAL));
    assert_eq!(munmap(map.address + HUGE, GIB - HUGE), Err(Errno::EINVAL));
}

fn pool_runs_out() {
    need(1);
    let total = read("nr_hugepages") as usize;
    assert_eq!(anonymous_map(total + 1).err(), Some(Errno::ENOMEM));
    let flags = PRIVATE | ANON | libc::MAP_HUGETLB | libc::MAP_HUGE_1GB | libc::MAP_NORESERVE;
    let map = Map::new((total + 1) * GIB, R, flags, -1, 0).unwrap();
    (0..total).for_each(|page| assert_eq!(map.get(page * GIB), 0));
    let at = map.address + total * GIB;
    assert_eq!(fault::read(at), Err(Fault::bus(at)));
}

fn truncate_and_refault() {
    need(1);
    let file = HugeFs::mount("pagesize=1G").file();
    file.truncate(GIB as u64).unwrap();
    let map = file.map(GIB, RW, SHARED).unwrap();
    map.set(300 * HUGE, 1);
    file.truncate(0).unwrap();
    assert_eq!(fault::read(map.address), Err(Fault::bus(map.address)));
    file.truncate(GIB as u64).unwrap();
    assert_eq!(map.get(300 * HUGE), 0);
}

fn memfd() {
    need(1);
    let file = Fd::memfd("big", libc::MFD_HUGETLB | libc::MFD_HUGE_1GB).unwrap();
    file.truncate(GIB as u64).unwrap();
    file.map(GIB, RW, SHARED).unwrap().set(1, 1);
    let map = file.map(GIB, R, SHARED).unwrap();
    assert_eq!(map.get(1), 1);
}

fn set_at_run_time() {
    need(1);
    let total = read("nr_hugepages");
    let path = format!("{FOLDER}/nr_hugepages");
    procfs::write(&path, total - 1).unwrap();
    assert_eq!((read("nr_hugepages"), pool()), (total - 1, (total - 1, 0)));
    // The memory is in one piece still, mostly; more than there is cannot be had.
    procfs::write(&path, total).unwrap();
    assert!(read("nr_hugepages") <= total);
    procfs::write(&path, 1000).unwrap();
    assert!(read("nr_hugepages") < 1000);
    procfs::write(&path, total).unwrap();
    assert_eq!(read("nr_hugepages"), total);
}

fn private_copy() {
    need(2);
    let map = anonymous_map(1).unwrap();
    map.set(0, 1);
    map.set(GIB - 1, 4);
    child::in_child(|| {
        map.set(0, 2);
        assert_eq!((map.get(0), map.get(GIB - 1)), (2, 4));
    });
    assert_eq!(map.get(0), 1);
}

/// Pages of 2 MiB: all, free, surplus.
fn small_pool() -> (u64, u64, u64) {
    const SMALL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    let number = |name: &str| procfs::number(&format!("{SMALL}/{name}"));
    (number("nr_hugepages"), number("free_hugepages"), number("surplus_hugepages"))
}

fn store_error(path: &str, text: &str) -> Option<i32> {
    procfs::write(path, text).err()?.raw_os_error()
}

fn demotion() {
    need(2);
    let (total, small) = (read("nr_hugepages"), small_pool());
    let (demote, size) = (format!("{FOLDER}/demote"), format!("{FOLDER}/demote_size"));
    assert_eq!(std::fs::read_to_string(&size).unwrap(), "2048kB\n");
    for text in ["2048kB", "2M", "2097152\n"] {
        procfs::write(&size, text).unwrap();
    }
    for text in ["1G", "4k", "3M", "x"] {
        assert_eq!(store_error(&size, text), Some(libc::EINVAL), "{text}");
    }
    for (text, error) in [("x", libc::EINVAL), ("0x1", libc::EINVAL), ("99999999999999999999", libc::ERANGE)]
    {
        assert_eq!(store_error(&demote, text), Some(error), "{text}");
    }
    let mode = std::fs::metadata(&demote).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o200);
    let counts = |demoted: u64| {
        let (all, free, surplus) = small;
        assert_eq!(
            (read("nr_hugepages"), small_pool()),
            (total - demoted, (all + 512 * demoted, free + 512 * demoted, surplus))
        );
        assert_eq!(read("surplus_hugepages"), 0);
    };
    procfs::write(&demote, 0).unwrap();
    counts(0);
    // Pages in use and pages that are promised stay what they are: here all of them are, and nothing is to be had.
    let used = anonymous_map(1).unwrap();
    used.set(7, 7);
    let promised = anonymous_map(total as usize - 1).unwrap();
    procfs::write(&demote, 1).unwrap();
    counts(0);
    drop(promised);
    procfs::write(&demote, 1).unwrap();
    counts(1);
    assert_eq!((used.get(7), pool()), (7, (total - 2, 0)));
    // The new pages are as others: all of them can be had, each once.
    let pages = 512 + small.1 as usize;
    let map =
        Map::new(pages * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB, -1, 0).unwrap();
    (0..pages).for_each(|page| map.set(page * HUGE + HUGE / 2, page as u8));
    (0..pages).for_each(|page| {
        assert_eq!((map.get(page * HUGE), map.get(page * HUGE + HUGE / 2)), (0, page as u8))
    });
    assert_eq!(used.get(7), 7);
    drop((map, used));
    // More than there are: all of them.
    procfs::write(&demote, 1000).unwrap();
    counts(total);
    // For the programs that come later.
    procfs::write("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", small.0).unwrap();
    procfs::write(&format!("{FOLDER}/nr_hugepages"), total).unwrap();
    assert_eq!((read("nr_hugepages"), small_pool()), (total, small));
}
