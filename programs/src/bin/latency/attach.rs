//! How a second process comes to see the present pages of a file: faults and time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest_link::record::{AttachCase, Record};
use roundtable_programs::child;
use roundtable_programs::huge::{GIB, HUGE};
use roundtable_programs::mem::{ANON, FIXED, Map, NORESERVE, PRIVATE, RW, SHARED, mmap};
use roundtable_programs::sys::faults;

use crate::stage::{BATCH, PAGES, Stage, summary, touch};

/// Processes for each case.
const RUNS: usize = 5;
/// Where the mapping of another phase begins in its slot, in pages.
const SHIFT: usize = 5;

/// Measures all cases. This process has the whole file attached, so there is a partner to share with.
pub fn measure(stage: &Stage) -> Result<(), String> {
    touch(stage.address(0, 0), PAGES);
    for case in [AttachCase::Congruent, AttachCase::OtherPhase, AttachCase::Part, AttachCase::Private] {
        let pages = if case == AttachCase::Part { BATCH } else { PAGES };
        let mut counts = Vec::new();
        let mut times = Vec::new();
        // One process that goes before: it leaves behind the table that the case shares, if it can share one. It stays.
        let results = Map::new(4096, RW, SHARED | ANON, -1, 0).map_err(|error| error.to_string())?;
        let partner = partner(stage, case, pages);
        for _ in 0..RUNS {
            child::fork(|| attach(stage, case, pages, &results)).ok();
            counts.push(word(&results, 0).load(Ordering::SeqCst));
            times.push(Duration::from_nanos(word(&results, 8).load(Ordering::SeqCst)));
        }
        partner.end();
        counts.sort_unstable();
        let (nanoseconds, _) = summary(times);
        let faults = counts[counts.len() / 2];
        stage.say(&Record::Attach { case, pages: pages as u32, faults, nanoseconds });
    }
    Ok(())
}

fn word(map: &Map, offset: usize) -> &AtomicU64 {
    // SAFETY: inside the mapping, aligned, and the mapping lives as long as the result.
    unsafe { AtomicU64::from_ptr((map.address + offset) as *mut u64) }
}

/// Where and how a case maps.
fn map(stage: &Stage, case: AttachCase, pages: usize) -> usize {
    let start = match case {
        AttachCase::OtherPhase => stage.address(1, SHIFT),
        _ => stage.address(1, 0),
    };
    let sharing = if case == AttachCase::Private { PRIVATE } else { SHARED };
    mmap(start, pages * HUGE, RW, sharing | FIXED | NORESERVE, stage.file.raw(), 0).expect("mmap");
    start
}

/// A process that maps and touches as the case does, and stays.
fn partner(stage: &Stage, case: AttachCase, pages: usize) -> child::Child {
    let ready = roundtable_programs::shared::Shared::new();
    let partner = child::fork(|| {
        touch(map(stage, case, pages), pages);
        ready.add(0);
        loop {
            // SAFETY: takes nothing; ends with a signal.
            unsafe { libc::pause() };
        }
    });
    ready.wait(0, 1);
    partner
}

fn attach(stage: &Stage, case: AttachCase, pages: usize, results: &Map) {
    // What was inherited is not what is measured, and code and stack are faulted in by a first time.
    stage.unmap(0);
    warm_up();
    word(results, 0).store(0, Ordering::SeqCst);
    let (before, _) = faults();
    let start = Instant::now();
    touch(map(stage, case, pages), pages);
    let took = start.elapsed();
    let (after, _) = faults();
    word(results, 0).store(after - before, Ordering::SeqCst);
    word(results, 8).store(took.as_nanos() as u64, Ordering::SeqCst);
}

fn warm_up() {
    let own = Map::anonymous(GIB / 512);
    touch(own.address, 1);
    let _ = (Instant::now().elapsed(), faults());
}
