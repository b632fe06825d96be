//! The page-table checker: walks the tables of all address spaces and says which invariant is broken.
//!
//! Kernel parameter `hugetlb_check=SECONDS` runs it again and again; a broken invariant is a panic, or a line in the log and a count with
//! `hugetlb_check=SECONDS,report`. Reading
//! `/sys/kernel/mm/hugepages/sharing/check` runs it once, and tells: `ok` and what was looked at, or what is wrong.
//!
//! It needs no standstill. Of each address space it holds the areas lock for reading, so that no mapping comes or goes; the
//! library holds the mapping's lock and the file's cache lock over each comparison. An entry that is right at every moment is right
//! at the moment that this picks. Only the counts over all address spaces are no matter of one moment: a wrong one is looked at
//! again and again, and is wrong when nothing else changes meanwhile. And they are compared only where all address spaces were found: one that a
//! fork is making, or an end taking down, belongs to no process, for as long as its thread is not run; so does one that ends while somebody
//! reads it from outside, and waits for a userfaultfd's monitor.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::sync::Arc;

use ::hugetlb::PageSize;

use super::{CheckRound, system};
use crate::boot::cmdline;
use crate::memory::reserve;
use crate::mm;
use crate::process;
use crate::sched::{self, Sleep};
use crate::time::{self, SECOND};

/// How often a count is looked at before it is wrong, and the time between two looks. Whoever is between writing an entry and counting it
/// has got on by then.
const LOOKS: u32 = 5;
const PAUSE: u64 = SECOND / 5;

/// What a round looked at.
pub(super) struct Round {
    spaces: usize,
    attached: u64,
    /// Address spaces that no process has: there are some, and counts were not compared.
    others: usize,
}

impl core::fmt::Display for Round {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "ok: {} address spaces, {} attached tables", self.spaces, self.attached)?;
        match self.others {
            0 => Ok(()),
            others => {
                write!(f, "; not compared with counts, for {others} address spaces belong to no process now")
            }
        }
    }
}

/// A count that is wrong, and the [`CheckRound::activity`] before it was taken.
#[derive(PartialEq, Eq)]
struct Miscount {
    what: String,
    activity: u64,
}

/// Checks everything once.
pub(super) fn run() -> Result<Round, String> {
    let _checking = reserve::checking();
    let (mut before, mut same) = (None, 1);
    for left in (0..2 * LOOKS).rev() {
        let (round, miscount) = look()?;
        match (&before, miscount) {
            (None, None) if round.others == 0 => return Ok(round),
            (Some(before), Some(now)) if *before == now => {
                same += 1;
                if same == LOOKS {
                    return Err(now.what);
                }
            }
            // It has changed, or is right now.
            (Some(_), now) if now.is_some() || round.others == 0 => return Ok(round),
            (_, now) => (before, same) = (now, 1),
        }
        if left == 0 {
            return Ok(round);
        }
        pause(PAUSE);
    }
    unreachable!("the last look has returned")
}

/// Looks at every address space once, however many processes have it.
fn look() -> Result<(Round, Option<Miscount>), String> {
    let mut round = CheckRound::new(system());
    let activity = round.activity();
    let mut spaces = BTreeSet::new();
    for process in process::processes() {
        let Some(mm) = process.mm() else { continue };
        if !spaces.insert(Arc::as_ptr(&mm).addr()) {
            continue;
        }
        mm.check_huge(&mut round)
            .map_err(|what| alloc::format!("process {} ({}): {what}", process.pid, name(&process.comm())))?;
        sched::cond_resched();
    }
    let regions = mm::mshare::check_all(&mut round)?;
    check_pools()?;
    let spaces = spaces.len() + regions;
    let others = mm::space::count().saturating_sub(spaces);
    let counts = if others == 0 { round.check_counts() } else { Ok(()) };
    let miscount = counts.err().map(|what| Miscount { what, activity });
    Ok((Round { spaces, attached: round.attachments(), others }, miscount))
}

fn pause(time: u64) {
    // The deadline is what ends this sleep.
    let _ = sched::sleep(Sleep::Uninterruptible, Some(time::now() + time), || false);
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
            pause(period);
            if let Err(what) = run() {
                assert!(report, "hugetlb_check: {what}");
                broken += 1;
                log::error!("hugetlb_check: {what} (number {broken})");
            }
        }
    });
}
