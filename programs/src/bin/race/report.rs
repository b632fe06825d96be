//! What is printed.

use std::time::Duration;

use crate::board::{Count, Finding, Kind};
use crate::cast::{Outcome, Plot};
use crate::stamp::describe;

/// How many findings of a cast are shown.
const SHOWN: usize = 6;

fn name(plot: &Plot) -> String {
    let Plot { way, shape, in_company, .. } = *plot;
    let beside = if in_company { " in company" } else { "" };
    format!("{} {}x{}{beside}", way.name(), shape.processes, shape.threads)
}

/// A line when a cast is over, and its findings.
pub fn progress(outcome: &Outcome, since_start: Duration) {
    println!(
        "race: {:>6.1} s  {:<32} {:>3} rounds {:>7} touches {:>6} acts  {} corruptions",
        since_start.as_secs_f32(),
        name(&outcome.plot),
        outcome.rounds,
        outcome.board.count(Count::Touches),
        outcome.board.count(Count::Acts),
        outcome.corruptions()
    );
    if let Some(first) = outcome.first {
        println!("race:     first seen after {:.2} s of this way", first.as_secs_f32());
    }
    for finding in outcome.board.findings().iter().take(SHOWN) {
        println!("race:     {}", tell(finding));
    }
}

pub fn tell(finding: &Finding) -> String {
    let Finding { kind, process, file, index, seen, expected } = *finding;
    let who = format!("process {process}");
    let place = format!("file {file} page {index}");
    let (seen_text, expected_text) = (describe(seen), describe(expected));
    let text = match kind {
        Kind::Foreign | Kind::Junk => format!("{who} looks at {place} and sees {seen_text}"),
        Kind::Stale => format!("{who} sees {seen_text} in {place}, where the file holds {expected_text}"),
        Kind::Lost => {
            format!("{who} stored {expected_text} into {place}, and the file holds {seen_text}")
        }
        Kind::Intruder => {
            format!("{who}, a bystander, sees {seen_text} for {expected_text} (entry {index})")
        }
        Kind::Dirty => format!("{who} got a fresh {place} that holds {seen_text}"),
        Kind::Permission => {
            format!("{who} reached {place} through a mapping that forbids it: {seen_text}")
        }
        Kind::Beyond => format!("{who} read {seen_text} behind the end of {place}"),
        Kind::Counters => format!("the pool's counters are off by {seen} pages"),
        Kind::Killed => format!("a process ended by {seen} (a signal, or a status)"),
        Kind::Hung => "somebody did not come back".to_string(),
    };
    format!("{}: {text}", kind.name())
}

/// The table at the end.
pub fn table(outcomes: &[Outcome]) {
    println!();
    println!(
        "  {:<32} {:>9} {:>9} {:>8} {:>8} {:>8} {:>9}  corruptions",
        "way", "touches", "refused", "acts", "faults", "churns", "compared"
    );
    for outcome in outcomes {
        let count = |count| outcome.board.count(count);
        println!(
            "  {:<32} {:>9} {:>9} {:>8} {:>8} {:>8} {:>9}  {}",
            name(&outcome.plot),
            count(Count::Touches),
            count(Count::Refused),
            count(Count::Acts),
            count(Count::Faults),
            count(Count::Churns),
            count(Count::Compared),
            kinds(outcome)
        );
    }
    println!();
}

fn kinds(outcome: &Outcome) -> String {
    let found: Vec<String> = Kind::ALL
        .into_iter()
        .map(|kind| (kind, outcome.board.found(kind)))
        .filter(|&(_, count)| count > 0)
        .map(|(kind, count)| format!("{} {count}", kind.name()))
        .collect();
    if found.is_empty() { "none".to_string() } else { found.join(", ") }
}
