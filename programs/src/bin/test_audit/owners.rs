//! Who has the page tables, in memory that nobody shares.

use std::time::Duration;

use roundtable_programs::mem::{ANON, NORESERVE, PRIVATE, RW, mmap};
use roundtable_programs::sys::settles;

use crate::saying::{audit_worth, command};
use crate::scene::stays;

const STEP: usize = 2 << 20;
/// Tables that the process gets: one for each page that it touches.
const TABLES: usize = 8192;

/// One page in each 2 MiB of 16 GiB: 32 MiB of tables for 32 MiB of memory.
pub fn tables_of_private_memory() {
    let child = stays(|| {
        let length = TABLES * STEP;
        let at = mmap(0, length, RW, PRIVATE | ANON | NORESERVE, -1, 0).expect("mmap");
        // Without huge pages of either kind.
        // SAFETY: the range was mapped just now.
        unsafe { libc::madvise(at as *mut _, length, libc::MADV_NOHUGEPAGE) };
        for place in (at..at + length).step_by(STEP) {
            // SAFETY: the same.
            unsafe { (place as *mut u8).write_volatile(1) };
        }
    });
    let report = audit_worth("1M");
    let tables = &report["page_tables"];
    let bytes = |value: &serde_json::Value| value.as_u64().unwrap();
    let of = |list: &str| {
        tables[list]
            .as_array()
            .unwrap()
            .iter()
            .find(|owner| owner["some_pids"].as_array().unwrap().contains(&child.pid.into()))
    };
    let process = of("processes").unwrap_or_else(|| panic!("{tables}"));
    let expected = (TABLES * 4096) as u64;
    assert!((expected..expected + (1 << 20)).contains(&bytes(&process["private"])), "{process}");
    assert!(of("programs").is_some(), "{tables}");
    // All of it adds up to the host's own figure.
    let (seen, total) = (bytes(&tables["seen"]), bytes(&tables["total"]));
    assert_eq!(seen + bytes(&tables["remainder"]), total + bytes(&tables["excess"]), "{tables}");
    for (list, others) in
        [("programs", "other_programs"), ("units", "other_units"), ("processes", "other_processes")]
    {
        let told: u64 = tables[list].as_array().unwrap().iter().map(|owner| bytes(&owner["bytes"])).sum();
        assert_eq!(told + bytes(&tables[others]["bytes"]), seen, "{list}: {tables}");
    }
    let sparse = report["advice"].as_array().unwrap().iter().find(|advice| {
        advice["id"] == "sparse-memory"
            && advice["subject"]["some_pids"].to_string().contains(&child.pid.to_string())
    });
    let gain = bytes(&sparse.unwrap_or_else(|| panic!("{}", report["advice"]))["gain"]);
    assert!((expected * 9 / 10..expected * 11 / 10).contains(&gain), "{gain}");
    // What it promises comes true when the process ends.
    let before = bytes(&report["check"]["page_tables"]);
    child.end();
    let mut after = before;
    // Newer kernels free tables after a grace period.
    let comes_true = settles(Duration::from_secs(20), || {
        std::fs::read("/proc/sys/vm/stat_refresh").expect("root may");
        after = bytes(&audit_worth("1M")["check"]["page_tables"]);
        (gain * 9 / 10..gain * 11 / 10 + (1 << 20)).contains(&before.saturating_sub(after))
    });
    assert!(comes_true, "{before} {after}");
    let text = String::from_utf8_lossy(&command(&["audit"]).output().unwrap().stdout).into_owned();
    assert!(text.contains("Who has the page tables"), "{text}");
}
