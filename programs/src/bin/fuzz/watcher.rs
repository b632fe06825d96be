//! The root process that plays rounds, one after the other.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use roundtable_programs::huge;
use roundtable_programs::procfs;

use crate::accounts::{self, Accounts};
use crate::bystander::Bystander;
use crate::journal;
use crate::options::Options;
use crate::plan::{MOST_ACTORS, Plan};
use crate::round;

/// Huge pages of the pool, and how many more there may be.
const POOL: u64 = 40;
const SURPLUS: u64 = 6;

/// Plays the rounds; gives what was found.
pub fn run(options: &Options) -> Result<Option<String>, String> {
    let persistent = procfs::number("/proc/sys/vm/nr_hugepages");
    huge::set_overcommit(SURPLUS);
    let pool = huge::set_pool(POOL);
    if pool != POOL {
        return Err(format!("a pool of {POOL} huge pages is wanted, and {pool} there are"));
    }
    let write =
        |path: &str, value: i64| procfs::write(path, value).map_err(|error| format!("{path}: {error}"));
    write("/proc/sys/vm/hugetlb_shm_group", round::USER.into())?;
    // The instrument is not what is tested; the bystander is.
    write("/proc/self/oom_score_adj", -1000)?;
    journal::create();
    round::set_up()?;
    let mut present = accounts::processes();
    let mut bystander = Bystander::start();
    present.push(bystander.pid());
    // SAFETY: takes integers. The trace goes where standard output goes.
    unsafe { libc::dup2(1, journal::TRACE) };
    let found = rounds(options, &mut bystander, &present);
    if options.tally {
        tally();
    }
    bystander.end();
    huge::set_overcommit(0);
    huge::set_pool(persistent);
    found
}

/// `present` are the processes that were there before, and the bystander.
fn rounds(options: &Options, bystander: &mut Bystander, present: &[i32]) -> Result<Option<String>, String> {
    let start = Instant::now();
    bystander.ask(b'e', round::ANSWER)?;
    // One without a call first: what is made once and kept is no leak.
    let empty = Plan { calls: 0, actors: MOST_ACTORS, ..options.plan.clone() };
    round::play(&empty, &[], limit(&empty), bystander)?
        .map_or(Ok(()), |finding| Err(format!("without a call: {finding}")))?;
    accounts::wait_for_none_but(present)?;
    let accounts = Accounts::take();
    let (mut calls, mut failed) = (0, 0);
    for number in 0.. {
        let over = match (options.rounds, options.time) {
            (Some(rounds), _) if number >= rounds => true,
            (_, Some(time)) => start.elapsed() >= time,
            (None, None) => number >= 1,
            _ => false,
        };
        if over {
            println!(
                "fuzz: {number} rounds, {calls} calls, {} % of them succeeded; the bystander's longest answer took {} ms",
                (calls - failed) * 100 / calls.max(1),
                bystander.longest.as_millis()
            );
            return Ok(None);
        }
        let plan = decide(&options.plan, if options.repeat { 0 } else { number });
        let (actors, single) = (plan.actors, if plan.single { ", one at a time" } else { "" });
        println!(
            "fuzz: round {number}, seed {}: {actors} actors, {} calls each{single}",
            plan.seed, plan.calls
        );
        let time = match options.time {
            // Without calls of its own a round is what runs beside them.
            Some(time) if plan.calls == 0 => time.saturating_sub(start.elapsed()),
            _ => limit(&plan),
        };
        let finding = round::play(&plan, &options.beside, time, bystander)?;
        for notes in (0..actors).filter_map(journal::notes) {
            // Relaxed: nobody else is left who writes.
            calls += u64::from(notes.calls.load(Relaxed));
            failed += u64::from(notes.failed.load(Relaxed));
        }
        let finding = finding.or_else(|| accounts.difference().map(|text| format!("leak: {text}")));
        if let Some(finding) = finding {
            return Ok(Some(format!("{finding} (seed {}, {} s)", plan.seed, start.elapsed().as_secs())));
        }
    }
    Ok(None)
}

/// How often each call was made, and how often it succeeded.
fn tally() {
    for (place, name) in crate::grammar::names().enumerate() {
        let Some(tally) = journal::tally(place) else { continue };
        // Relaxed: nobody else is left who writes.
        let [made, failed] = [&tally.made, &tally.failed].map(|count| count.load(Relaxed));
        println!("fuzz: {name:20} {made:8} made {:8} succeeded", made.saturating_sub(failed));
    }
}

/// What a round is, as far as the command line leaves it open.
fn decide(wanted: &Plan, number: u64) -> Plan {
    let mut plan = Plan { seed: wanted.seed.wrapping_add(number), ..wanted.clone() };
    let mut rng = plan.round_rng();
    let (actors, single) = (1 + rng.below(4) as u32, rng.chance(6));
    if plan.actors == 0 {
        plan.actors = actors;
        // Only where neither was asked for, so that what is named on the command line is what is played.
        plan.single |= single;
    }
    if plan.single {
        plan.actors = 1;
    }
    plan
}

/// How long a round of so many calls may take before its processes are ended.
fn limit(plan: &Plan) -> Duration {
    Duration::from_secs(10) + Duration::from_millis(20) * plan.calls
}
