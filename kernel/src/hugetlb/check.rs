//! The page-table checker: walks the tables of all address spaces and says which invariant is broken.
//!
//! Kernel parameter `hugetlb_check=SECONDS` runs it again and again; a broken invariant is a panic, or a line in the log and a count with
//! `hugetlb_check=SECONDS,report`. Reading
//! `/sys/kernel/mm/hugepages/sharing/check` runs it once, and tells: `ok` and what was looked at, or what is wrong.
//!
//! It needs no standstill. Of each address space it holds the areas lock for reading, so that no mapping comes or goes; the
//! library holds the mapping's lock and the file's cache lock over each comparison. An entry that is right at every moment is right
//! at the moment that this picks.

use alloc::collections::BTreeSet;
use alloc::string::String;

use ::hugetlb::PageSize;

use super::system;
use crate::boot::cmdline;
use crate::process;
use crate::sched::{self, Sleep};
use crate::time::{self, SECOND};

/// What a round looked at.
#[derive(Default)]
pub(super) struct Round {
    spaces: usize,
    attached: usize,
}

impl core::fmt::Display for Round {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "ok: {} address spaces, {} attached tables", self.spaces, self.attached)
    }
}

/// Checks everything once.
pub(super) fn run() -> Result<Round, String> {
    let mut round = Round::default();
    let mut seen = BTreeSet::new();
    for process in process::processes() {
        let Some(mm) = process.mm() else { continue };
        mm.check_huge(&mut seen)
            .map_err(|what| alloc::format!("process {} ({}): {what}", process.pid, name(&process.comm())))?;
        round.spaces += 1;
        // A table that was seen may be another's by the time of the next process.
        round.attached += seen.len();
        seen.clear();
        sched::cond_resched();
    }
    check_pools()?;
    Ok(round)
}

fn name(comm: &[u8; 16]) -> String {
    String::from_utf8_lossy(comm).trim_end_matches('\0').into()
}

/// Invariant 5.
fn check_pools() -> Result<(), String> {
    for size in PageSize::ALL {
        let pool = system().pool(size).statistics();
        if pool.free > pool.total || pool.reserved > pool.free || pool.surplus > pool.total {
            return Err(alloc::format!("invariant 5: {pool:?}"));
        }
    }
    Ok(())
}

/// Starts the thread that the command line asks for.
pub(super) fn init() {
    let Some(value) = cmdline::get("hugetlb_check") else { return };
    let report = value.split(',').any(|word| word == "report");
    // Without a number: each second.
    let period = value.split(',').find_map(|word| word.parse::<u64>().ok()).unwrap_or(1).max(1) * SECOND;
    sched::spawn_kernel_thread("khugecheckd", move || {
        let mut broken = 0u64;
        loop {
            // The deadline is what ends this sleep.
            let _ = sched::sleep(Sleep::Uninterruptible, Some(time::now() + period), || false);
            if let Err(what) = run() {
                assert!(report, "hugetlb_check: {what}");
                broken += 1;
                log::error!("hugetlb_check: {what} (number {broken})");
            }
        }
    });
}
