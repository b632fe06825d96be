//! A bystander's accesses to a file while another process does something to it.
//!
//! The two run on CPUs of their own. Only accesses that overlap the disturbance itself count: in between, the other
//! process makes the next one possible, which may keep the CPUs busy with thousands of sharers.

use std::time::{Duration, Instant};

use guest_link::record::{Access, Record, Times};
use hdrhistogram::Histogram;
use roundtable_programs::child::{End, waitpid};
use roundtable_programs::huge::{GIB, HUGE};
use roundtable_programs::mem::{R, RW, madvise, mprotect};
use roundtable_programs::rng::Rng;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{cpus, faults, pin, preemptions};

use crate::crew::Crew;
use crate::stage::{BATCH, CUT, LENGTH, PAGES, PUNCHED, Stage, store_one, touch_one};

/// Odd while the disturbance goes on; half of it is how often it was done.
const STORM: usize = 0;
/// The disturbance has begun, or is over for good.
const STATE: usize = 1;
const READY: u32 = 1;
const OVER: u32 = 2;

/// A disturbance that waits for thousands of processes between two times is done so often at least.
const LEAST: u32 = 3;
/// The pages that a bystander looks at: neither punched nor cut off.
const LOOKED_AT: std::ops::Range<usize> = PUNCHED + BATCH..CUT;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    None,
    Punch,
    Truncate,
    Mprotect,
    Fork,
    Exit,
}

impl Disturbance {
    const ALL: [Disturbance; 6] = [
        Disturbance::None,
        Disturbance::Punch,
        Disturbance::Truncate,
        Disturbance::Mprotect,
        Disturbance::Fork,
        Disturbance::Exit,
    ];

    fn name(self) -> &'static str {
        match self {
            Disturbance::None => "none",
            Disturbance::Punch => "punch",
            Disturbance::Truncate => "truncate",
            Disturbance::Mprotect => "mprotect",
            Disturbance::Fork => "fork",
            Disturbance::Exit => "exit",
        }
    }
}

/// Measures all cases with the crew that there is.
pub fn measure(stage: &Stage, crew: &Crew, limit: Duration) -> Result<(), String> {
    for access in [Access::Present, Access::Fresh] {
        for disturbance in Disturbance::ALL {
            // A truncation cuts off the slot in which the fresh pages are.
            if access == Access::Fresh && disturbance == Disturbance::Truncate {
                continue;
            }
            case(stage, crew, access, disturbance, limit)?;
        }
    }
    Ok(())
}

fn case(
    stage: &Stage,
    crew: &Crew,
    access: Access,
    disturbance: Disturbance,
    limit: Duration,
) -> Result<(), String> {
    let control = Shared::new();
    crew.touch()?;
    let cpus = cpus();
    let watcher = start(|| {
        pin(cpus[cpus.len() - 1]);
        watch(stage, crew, access, disturbance, &control)
    })?;
    let disturber = start(|| {
        pin(cpus[0]);
        disturb(stage, crew, disturbance, limit, &control)
    });
    let disturbed = disturber.and_then(finish);
    // Whatever became of the other one, the watcher must come to its end.
    control.set(STATE, OVER);
    let watched = finish(watcher);
    if access == Access::Fresh {
        stage.punch(PAGES, PAGES);
    }
    disturbed.and(watched)
}

fn start(run: impl FnOnce() -> Result<(), String>) -> Result<i32, String> {
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(format!("fork: {}", std::io::Error::last_os_error())),
        0 => {
            let code = match run() {
                Ok(()) => 0,
                Err(message) => {
                    eprintln!("latency: {message}");
                    1
                }
            };
            // SAFETY: ends the process; nothing of the parent's may run twice.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid),
    }
}

fn finish(pid: i32) -> Result<(), String> {
    match waitpid(pid, 0) {
        Ok((_, End::Code(0))) => Ok(()),
        end => Err(format!("a measuring process ended: {end:?}")),
    }
}

/// The other process: disturbs again and again until its time is over.
fn disturb(
    stage: &Stage,
    crew: &Crew,
    disturbance: Disturbance,
    limit: Duration,
    control: &Shared,
) -> Result<(), String> {
    let mine = stage.address(0, 0);
    control.wait(STATE, READY);
    let end = Instant::now() + limit;
    let mut done = 0;
    while Instant::now() < end || (done < LEAST && disturbance != Disturbance::None) {
        match disturbance {
            Disturbance::None => std::thread::sleep(Duration::from_millis(1)),
            Disturbance::Punch => {
                stage.fill(PUNCHED, 1);
                crew.touch()?;
                during(control, || stage.punch(PUNCHED, BATCH));
            }
            Disturbance::Truncate => {
                stage.fill(CUT, 1);
                crew.touch()?;
                during(control, || stage.file.truncate((CUT * HUGE) as u64).expect("ftruncate"));
                stage.file.truncate(LENGTH).expect("ftruncate");
            }
            Disturbance::Mprotect => {
                touch_one(stage.address(0, PUNCHED + BATCH));
                during(control, || {
                    mprotect(mine, GIB, R).expect("mprotect");
                    mprotect(mine, GIB, RW).expect("mprotect");
                });
            }
            Disturbance::Fork => {
                let mut child = -1;
                during(control, || {
                    // SAFETY: this process has one thread.
                    child = unsafe { libc::fork() };
                    if child == 0 {
                        // SAFETY: ends the process.
                        unsafe { libc::_exit(0) }
                    }
                });
                finish(child)?;
            }
            Disturbance::Exit => {
                let hold = Shared::new();
                let child = start(|| {
                    touch_one(stage.address(0, PUNCHED + BATCH));
                    hold.add(0);
                    hold.wait(1, 1);
                    Ok(())
                })?;
                hold.wait(0, 1);
                let mut end = Ok(());
                during(control, || {
                    hold.set(1, 1);
                    end = finish(child);
                });
                end?;
            }
        }
        done += 1;
    }
    stage.fill(PUNCHED, BATCH);
    stage.fill(CUT, BATCH);
    Ok(())
}

fn during(control: &Shared, run: impl FnOnce()) {
    use std::sync::atomic::Ordering::SeqCst;
    control.word(STORM).fetch_add(1, SeqCst);
    run();
    control.word(STORM).fetch_add(1, SeqCst);
}

/// The bystander: accesses again and again, and prints the record.
fn watch(
    stage: &Stage,
    crew: &Crew,
    access: Access,
    disturbance: Disturbance,
    control: &Shared,
) -> Result<(), String> {
    // Two digits of a histogram's value are right, up to a minute.
    let mut histogram = Histogram::<u64>::new_with_max(60_000_000_000, 2).expect("the bounds are constants");
    let mut rng = Rng::new(1);
    let mine = stage.address(0, 0);
    if access == Access::Fresh {
        stage.map(1, GIB, GIB);
    }
    let mut faults_taken = 0;
    let mut fresh = 0;
    let mut once = |histogram: &mut Histogram<u64>| {
        let address = match access {
            Access::Present => {
                // Where the kernel keeps a table for this process, the access faults.
                madvise(mine, GIB, libc::MADV_DONTNEED).expect("madvise");
                let count = LOOKED_AT.end - LOOKED_AT.start;
                stage.address(0, LOOKED_AT.start + rng.below(count))
            }
            Access::Fresh if fresh == PAGES => return false,
            Access::Fresh => {
                fresh += 1;
                stage.address(1, fresh - 1)
            }
        };
        let storm = control.get(STORM);
        let (faults_before, _) = faults();
        let begin = Instant::now();
        match access {
            Access::Present => touch_one(address),
            Access::Fresh => store_one(address, 1),
        }
        let took = begin.elapsed();
        faults_taken += faults().0 - faults_before;
        let overlapped = storm & 1 == 1 || control.get(STORM) != storm;
        if overlapped || disturbance == Disturbance::None {
            histogram.saturating_record(took.as_nanos() as u64);
        }
        true
    };
    // All that is measured runs once before.
    once(&mut histogram);
    histogram.reset();
    let preempted = preemptions();
    control.set(STATE, READY);
    while control.get(STATE) != OVER && once(&mut histogram) {}
    let preempted = preemptions() - preempted;
    let times = Times {
        p50: histogram.value_at_quantile(0.5),
        p99: histogram.value_at_quantile(0.99),
        p999: histogram.value_at_quantile(0.999),
        max: histogram.max(),
    };
    // Four buckets for each doubling: what a plot can show.
    let buckets = histogram.iter_log(64, f64::exp2(0.25));
    let buckets = buckets.map(|bucket| (bucket.value_iterated_to(), bucket.count_since_last_iteration()));
    let histogram_out: Vec<(u64, u64)> = buckets.filter(|&(_, count)| count > 0).collect();
    stage.say(&Record::Bystander {
        access,
        disturbance: disturbance.name().to_string(),
        sharers: crew.count() as u32,
        disturbances: u64::from(control.get(STORM) / 2),
        accesses: histogram.len(),
        faults: faults_taken,
        preempted,
        times,
        histogram: histogram_out,
    });
    Ok(())
}
