//! What the audit says a pool needs, and what comes of doing it word for word.

use roundtable_programs::child::Child;
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, HUGE, counters};
use roundtable_programs::mem::{ANON, Map, RW, SHARED};
use serde_json::Value;

use crate::following::follow;
use crate::saying::{advice, audit};
use crate::scene::stays;

/// Bytes of each of the memories that want huge pages.
const WANTED: usize = 64 << 20;

/// The pool of the size that tests use.
pub fn pool_of(report: &Value) -> &Value {
    let pools = report["pools"].as_array().expect("pools");
    pools.iter().find(|pool| pool["page_size"] == HUGE).expect("the pool")
}

/// A pool of which some pages are in use and some promised, and two programs that want more: the pool grows by what they want and
/// no page of the others is lost; then they get what they want.
pub fn pool_advice_keeps_what_is_in_use() {
    huge::pool(12);
    let file = Fd::memfd("audit-pool", libc::MFD_CLOEXEC | libc::MFD_HUGETLB).expect("memfd_create");
    file.truncate(10 * HUGE as u64).unwrap();
    let map = file.map(10 * HUGE, RW, SHARED).unwrap();
    (0..4).for_each(|page| map.set(page * HUGE, 1));
    let memories: Vec<Map> = (0..2).map(|_| Map::new(WANTED, RW, SHARED | ANON, -1, 0).unwrap()).collect();
    let sharers: Vec<Child> = (0..2)
        .map(|_| {
            stays(|| memories.iter().for_each(|map| (0..WANTED).step_by(4096).for_each(|at| map.set(at, 1))))
        })
        .collect();
    let before = counters();
    let report = audit();
    let need = &pool_of(&report)["need"];
    assert_eq!((need["in_use"].as_u64(), need["promised"].as_u64()), (Some(4), Some(6)), "{need}");
    let ours = need["wanted"].as_array().unwrap().iter().filter(|want| {
        want["pages"] == WANTED / HUGE
            && want["subject"]["some_pids"].to_string().contains(&sharers[0].pid.to_string())
    });
    assert_eq!(ours.count(), 2, "{need}");
    let wanted: u64 =
        need["wanted"].as_array().unwrap().iter().map(|want| want["pages"].as_u64().unwrap()).sum();
    assert_eq!(need["nr_hugepages"], 4 + 6 + wanted, "{need}");
    follow(&[advice(&report, "pool of 2 MiB pages", "grow-pool")]);
    let after = counters();
    assert_eq!((after.total, after.reserved), (10 + wanted, before.reserved), "{after:?}");
    assert_eq!(after.total - after.free, before.total - before.free, "nobody lost a page");
    // All that was promised and wanted is there.
    (4..10).for_each(|page| map.set(page * HUGE, 1));
    for _ in 0..2 {
        let wanted = Fd::memfd("audit-wanted", libc::MFD_CLOEXEC | libc::MFD_HUGETLB).expect("memfd_create");
        wanted.truncate(WANTED as u64).unwrap();
        let wanted = wanted.map(WANTED, RW, SHARED).expect("the pool has what was wanted");
        (0..WANTED).step_by(HUGE).for_each(|at| wanted.set(at, 1));
        std::mem::forget(wanted);
    }
}
