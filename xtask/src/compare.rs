//! `cargo xtask compare`: sequences of operations on huge pages, drawn from seeds, on Debian's kernel and on ours under each protocol.
//!
//! The program `seeds` runs in a guest of each and says for every seed a hash of all that came of its steps. Seeds that differ run once
//! more, and the first step that came out otherwise is shown. Some differences are Linux's: it loses count of promises in some sequences,
//! with surplus pages it gives pages back that are promised, and it keeps wrong accounts of a mount's `min_size`. Seeds that differ run
//! without a `min_size`, too: then all of the sequence has to be alike to its end, or to differ by one of the first two.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use guest_link::Ending;
use indicatif::{ProgressBar, ProgressStyle};
use roundtable::run::Parts;
use roundtable::signals::Signals;
use roundtable::size::Size;

use crate::build::{self, BuildOptions};
use crate::soak::guest::{Boot, End};
use crate::{linux, output_folder, setup};

/// What to compare.
#[derive(Args, Clone, Debug)]
pub struct CompareOptions {
    /// How many seeds
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub seeds: u64,

    /// The first of them
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub first: u64,

    /// Steps of each sequence
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub steps: u64,

    /// Protocols of our kernel
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "file-tables,vma-lock,file-lock"
    )]
    pub protocols: Vec<String>,

    /// Show the whole of this many sequences that differ, not the step alone
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub whole: usize,

    /// Take the kernel and the programs as they were built last
    #[arg(long)]
    pub no_build: bool,
}

const SILENCE: Duration = Duration::from_secs(600);
const LIMIT: Duration = Duration::from_secs(7200);
/// Seeds of a machine: a console is kept whole.
const TRACED: usize = 50;

/// What a kernel said of the seeds: a hash of each, and the promises that were left behind.
type Seen = BTreeMap<u64, (String, i64)>;

/// All that a kernel said of a seed, and the promises that were left behind.
#[derive(Default)]
struct Trace {
    lines: Vec<String>,
    left: i64,
}

type Traces = BTreeMap<u64, Trace>;

/// A kernel that runs the sequences.
struct Subject {
    name: String,
    kernel: PathBuf,
    parameters: Vec<String>,
}

impl Subject {
    /// Runs the program; each of its lines goes to `line`.
    fn run(&self, arguments: Vec<String>, signals: &Signals, line: impl FnMut(&str)) -> Result<()> {
        let parts = Parts::in_folder(&output_folder());
        let log = parts.scratch.join("logs").join(format!("compare-{}.log", self.name));
        let boot = Boot {
            kernel: self.kernel.clone(),
            cpus: 2,
            memory: Size::gibibytes(2),
            icount: false,
            parameters: self.parameters.clone(),
            program: std::iter::once("seeds".to_string()).chain(arguments).collect(),
            qemu: Vec::new(),
            files: Vec::new(),
            silence: SILENCE,
            limit: LIMIT,
        };
        let result = boot.run(&parts, signals, &log, line)?;
        ensure!(
            result.end == End::Program(Ending::Code(0)),
            "{}: the guest ended with {:?}; its console: {}",
            self.name,
            result.end,
            log.display()
        );
        Ok(())
    }

    /// The hashes of all seeds.
    fn hashes(&self, options: &CompareOptions, signals: &Signals) -> Result<Seen> {
        let bar = ProgressBar::new(options.seeds);
        bar.set_style(ProgressStyle::with_template("{prefix:>12} {wide_bar} {pos}/{len}")?);
        bar.set_prefix(self.name.clone());
        let mut seen = Seen::new();
        let numbers = [options.first, options.seeds, options.steps];
        self.run(numbers.map(|number| number.to_string()).to_vec(), signals, |line| {
            if let Some((seed, hash, left)) = of_seed(line) {
                seen.insert(seed, (hash, left));
                bar.inc(1);
            }
        })?;
        bar.finish_and_clear();
        ensure!(seen.len() as u64 == options.seeds, "{}: {} seeds have run", self.name, seen.len());
        Ok(seen)
    }

    /// All that was seen of some seeds; `even` without a `min_size`.
    fn traces(
        &self,
        seeds: &[u64],
        even: bool,
        options: &CompareOptions,
        signals: &Signals,
    ) -> Result<Traces> {
        let mut traces = Traces::new();
        for seeds in seeds.chunks(TRACED) {
            let mut arguments: Vec<String> = even.then(|| "even".to_string()).into_iter().collect();
            arguments.extend(["trace".to_string(), options.steps.to_string()]);
            arguments.extend(seeds.iter().map(u64::to_string));
            let mut current = None;
            self.run(arguments, signals, |line| {
                if let Some((seed, left)) = of_trace(line) {
                    traces.insert(seed, Trace { lines: Vec::new(), left });
                    current = Some(seed);
                } else if let Some(trace) = current.and_then(|seed| traces.get_mut(&seed)) {
                    trace.lines.push(line.to_string());
                    // The console goes on after the last one.
                    if line.starts_with("end | ") {
                        current = None;
                    }
                }
            })?;
        }
        for seed in seeds {
            ensure!(traces.contains_key(seed), "{}: seed {seed} has no trace", self.name);
        }
        Ok(traces)
    }
}

/// The seed and the promises left of the line before a trace.
fn of_trace(line: &str) -> Option<(u64, i64)> {
    let (seed, left) = line.strip_prefix("trace ")?.split_once(' ')?;
    Some((seed.parse().ok()?, left.parse().ok()?))
}

/// The seed, the hash and the promises left of a line of the program's.
fn of_seed(line: &str) -> Option<(u64, String, i64)> {
    let mut words = line.strip_prefix("seed ")?.split(' ');
    let (seed, hash, left) = (words.next()?, words.next()?, words.next()?);
    Some((seed.parse().ok()?, hash.to_string(), left.parse().ok()?))
}

/// The first line in which two traces differ, and both of it. What Linux charges a group too much is passed over.
fn first_difference<'a>(linux: &'a [String], ours: &'a [String]) -> Option<(usize, &'a str, &'a str)> {
    let line = |trace: &'a [String], at: usize| trace.get(at).map_or("(nothing)", String::as_str);
    (0..linux.len().max(ours.len()))
        .map(|at| (at, line(linux, at), line(ours, at)))
        .find(|(_, linux, ours)| linux != ours && !in_charges_alone(linux, ours))
}

/// A step with its result, and the pool behind the last bar: all pages, the free ones, the promised ones, the surplus.
fn split(line: &str) -> Option<(&str, [i64; 4])> {
    let (step, pool) = line.rsplit_once(" | ")?;
    let numbers: Option<Vec<i64>> = pool.split(' ').map(|number| number.parse().ok()).collect();
    Some((step, numbers?.try_into().ok()?))
}

/// Whether two lines differ in the promised pages alone, and in as many surplus pages that were kept for them.
fn in_promises_alone(linux: &str, ours: &str) -> bool {
    let (Some((step, pool)), Some((same_step, own))) = (split(linux), split(ours)) else { return false };
    let [total, free, promised, surplus] = [0, 1, 2, 3].map(|at| pool[at] - own[at]);
    step == same_step && promised != 0 && [[0; 3], [promised; 3]].contains(&[total, free, surplus])
}

/// What a step that reads a group's files has said: the charge for promises, and the rest with a mark in its place.
fn usage(line: &str) -> Option<(u64, String)> {
    let (step, result) = line.split_once(" Usage = ")?;
    let (used, rest) = result.split_once(", ")?;
    let (promised, rest) = rest.split_once(", ")?;
    Some((promised.parse().ok()?, format!("{step} {used} {rest}")))
}

/// Whether two lines differ in a group's charge for promises alone, of which Linux's is too high.
fn in_charges_alone(linux: &str, ours: &str) -> bool {
    let (Some((charge, rest)), Some((own, same))) = (usage(linux), usage(ours)) else { return false };
    rest == same && charge > own
}

/// Whether Linux has promised more pages than are free, and ours has not, behind a step with the same result: it has given surplus pages
/// back that a mount's `min_size` had promised.
fn in_surplus_that_was_promised(linux: &str, ours: &str) -> bool {
    let (Some((step, pool)), Some((same_step, own))) = (split(linux), split(ours)) else { return false };
    step == same_step && pool[1] < pool[2] && own[1] >= own[2] && pool[0] < own[0]
}

/// What of Linux's makes a difference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Reason {
    /// Promises that are never given back.
    Lost,
    /// Surplus pages that were promised and are given back.
    Overdrawn,
    /// What a mount's `min_size` has left to promise.
    Minimum,
    /// What a group is charged for promises that are no more.
    Charges,
}

impl Reason {
    fn text(self) -> &'static str {
        match self {
            Reason::Lost => "Linux loses count of promises",
            Reason::Overdrawn => "it gives back what it has promised",
            Reason::Minimum => "it keeps wrong accounts of a mount's minimum",
            Reason::Charges => "it charges a group for promises that are no more, and all else is alike",
        }
    }
}

/// Whether the first difference of two traces is one of the two that need no look at anything else.
fn plain_reason(linux: &Trace, ours: &Trace) -> Option<Reason> {
    let (_, theirs, own) = first_difference(&linux.lines, &ours.lines)?;
    if in_promises_alone(theirs, own) && linux.left != 0 && ours.left == 0 {
        Some(Reason::Lost)
    } else if in_surplus_that_was_promised(theirs, own) {
        Some(Reason::Overdrawn)
    } else {
        None
    }
}

/// Why two traces differ, if it is Linux's doing. The same sequences without a `min_size` must be alike to the end, or differ by that, too.
fn reason([linux, ours]: [&Trace; 2], [even_linux, even_ours]: [&Trace; 2]) -> Option<Reason> {
    if first_difference(&even_linux.lines, &even_ours.lines).is_some()
        && plain_reason(even_linux, even_ours).is_none()
    {
        return None;
    }
    plain_reason(linux, ours).or_else(|| {
        let Some((at, ..)) = first_difference(&linux.lines, &ours.lines) else {
            return (linux.lines != ours.lines).then_some(Reason::Charges);
        };
        let behind = linux.lines.len().min(at + 1);
        linux.lines[..behind].iter().any(|line| miscounts_minimum(line)).then_some(Reason::Minimum)
    })
}

const MAP_PRIVATE: u64 = 2;

/// The number that follows a word.
fn number_behind(text: &str, word: &str) -> Option<u64> {
    let (_, rest) = text.split_once(word)?;
    rest.split(|byte: char| !byte.is_ascii_digit()).next()?.parse().ok()
}

/// Whether Linux has wrong accounts of the mount with a `min_size` from such a step on. When it finds no page, or cannot promise one, it
/// gives the mount back what the pool never had. Private mappings that have promised nothing, or are a child's, do not take what the mount
/// has promised, but the mount's account says so. A page that the mount keeps leaves the pool all the same when that has surplus pages.
fn miscounts_minimum(line: &str) -> bool {
    let is_of_mount = line.contains("file: 3,") || line.contains("what: File(3)");
    let is_without_pages = [" = ENOMEM |", " = ENOSPC |"].iter().any(|result| line.contains(result));
    let flags = line.split_once("what: File(3)").and_then(|(_, rest)| number_behind(rest, "flags: "));
    let is_private = flags.is_some_and(|flags| flags & MAP_PRIVATE != 0);
    let has_surplus = split(line).is_some_and(|(_, [.., surplus])| surplus > 0);
    is_of_mount && is_without_pages || is_private || has_surplus
}

/// Runs all; 0 when nothing differs that is not Linux's.
pub fn run(options: &CompareOptions) -> Result<i32> {
    setup::qemu()?;
    linux::fetch()?;
    let kernel = output_folder().join("kernel.elf");
    if !options.no_build {
        build::programs()?;
        build::kernel(&BuildOptions::default(), &kernel)?;
    }
    let signals = Signals::catch()?;
    let parts = Parts::in_folder(&output_folder());
    let linux = parts.linux.context("Debian's kernel is not there")?;
    let linux = Subject { name: "linux".into(), kernel: linux, parameters: vec!["loglevel=1".into()] };
    let theirs = linux.hashes(options, &signals)?;
    let leaks = theirs.values().filter(|(_, left)| *left != 0).count();
    println!(
        "linux: {} seeds of {} steps; promises are left behind after {leaks}",
        options.seeds, options.steps
    );
    let mut status = 0;
    let mut known = [Traces::new(), Traces::new()];
    for protocol in &options.protocols {
        let ours = Subject {
            name: protocol.clone(),
            kernel: kernel.clone(),
            parameters: vec![format!("hugetlb_sharing={protocol}")],
        };
        if !compare(&linux, &theirs, &mut known, &ours, options, &signals)? {
            status = 1;
        }
    }
    Ok(status)
}

/// Compares a kernel of ours with Linux; says whether all differences are Linux's. `known` are traces of Linux's, with a `min_size` and
/// without.
fn compare(
    linux: &Subject,
    theirs: &Seen,
    known: &mut [Traces; 2],
    ours: &Subject,
    options: &CompareOptions,
    signals: &Signals,
) -> Result<bool> {
    let own = ours.hashes(options, signals)?;
    let left = own.values().filter(|(_, left)| *left != 0).count();
    let different: Vec<u64> =
        theirs.iter().filter(|(seed, seen)| own[seed].0 != seen.0).map(|(seed, _)| *seed).collect();
    let same = own.len() - different.len();
    for (known, even) in known.iter_mut().zip([false, true]) {
        let missing: Vec<u64> = different.iter().copied().filter(|seed| !known.contains_key(seed)).collect();
        known.extend(linux.traces(&missing, even, options, signals)?);
    }
    let plain = [&known[0], &ours.traces(&different, false, options, signals)?];
    let even = [&known[1], &ours.traces(&different, true, options, signals)?];
    let (mut reasons, mut unexplained) = (BTreeMap::<Reason, Vec<u64>>::new(), 0);
    for seed in &different {
        let (plain, even) = (plain.map(|all| &all[seed]), even.map(|all| &all[seed]));
        if let Some(reason) = reason(plain, even) {
            reasons.entry(reason).or_default().push(*seed);
            continue;
        }
        let is_whole = unexplained < options.whole;
        unexplained += 1;
        println!("seed {seed}:");
        if !show_difference(plain, is_whole) {
            println!("    alike the second time");
        }
        if plain_reason(plain[0], plain[1]).is_some() || even[0].lines != even[1].lines {
            println!("    without a minimum:");
            show_difference(even, false);
        }
    }
    println!(
        "{}: {same} seeds are alike; {unexplained} differ; promises are left behind after {left}",
        ours.name
    );
    for (reason, seeds) in &reasons {
        println!("    in {} {}: {seeds:?}", seeds.len(), reason.text());
    }
    Ok(unexplained == 0 && left == 0)
}

/// Shows where two traces begin to differ, and the step before or all of them; false when they do not.
fn show_difference([linux, ours]: [&Trace; 2], is_whole: bool) -> bool {
    let Some((at, theirs, own)) = first_difference(&linux.lines, &ours.lines) else { return false };
    let first = if is_whole { 0 } else { at.saturating_sub(1) };
    let before = linux.lines.iter().take(at).skip(first);
    before.for_each(|line| println!("      {line}"));
    println!("    - {theirs}\n    + {own}");
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_a_line() {
        assert_eq!(of_seed("seed 7 00ff -2"), Some((7, "00ff".to_string(), -2)));
        assert_eq!(of_seed("seeds 7 00ff 0"), None);
        assert_eq!(of_trace("trace 7 -2"), Some((7, -2)));
        assert_eq!(of_trace("7 0 Maps = "), None);
    }

    #[test]
    fn the_first_difference_is_found() {
        let lines = |text: &str| text.split(' ').map(str::to_string).collect::<Vec<_>>();
        let (a, b, c) = (lines("x y z"), lines("x w z"), lines("x y"));
        assert_eq!(first_difference(&a, &b), Some((1, "y", "w")));
        assert_eq!(first_difference(&a, &c), Some((2, "z", "(nothing)")));
        assert_eq!(first_difference(&a, &a), None);
    }

    #[test]
    fn promises_are_told_from_the_rest() {
        assert!(in_promises_alone("1 0 a = 0 | 24 20 3 0", "1 0 a = 0 | 24 20 2 0"));
        assert!(!in_promises_alone("1 0 a = 0 | 24 20 3 0", "1 0 a = 0 | 24 19 2 0"));
        assert!(!in_promises_alone("1 0 a = 0 | 24 20 3 0", "1 0 a = 1 | 24 20 2 0"));
        assert!(!in_promises_alone("1 0 a = 0 | 24 20 3 0", "1 0 a = 0 | 24 20 3 0"));
        assert!(in_promises_alone("1 0 a = 0 | 18 10 10 2", "1 0 a = 0 | 17 9 9 1"));
        assert!(!in_promises_alone("1 0 a = 0 | 18 10 10 2", "1 0 a = 0 | 17 8 9 1"));
        assert!(in_surplus_that_was_promised("1 0 a = 0 | 18 5 6 10", "1 0 a = 0 | 19 6 6 11"));
        assert!(!in_surplus_that_was_promised("1 0 a = 0 | 18 5 6 10", "1 0 a = 1 | 19 6 6 11"));
        assert!(!in_surplus_that_was_promised("1 0 a = 0 | 18 6 6 10", "1 0 a = 0 | 19 7 6 11"));
    }

    #[test]
    fn a_charge_that_stays_is_told_from_the_rest() {
        let line = |charge: u64, used: u64| format!("8 0 Usage = {used}, {charge}, max false | 16 10 7 0");
        assert!(in_charges_alone(&line(4, 2), &line(2, 2)));
        assert!(!in_charges_alone(&line(2, 2), &line(4, 2)));
        assert!(!in_charges_alone(&line(4, 2), &line(2, 4)));
        assert!(first_difference(&[line(4, 2)], &[line(2, 2)]).is_none());
    }

    #[test]
    fn a_minimum_is_to_blame_only_where_all_else_is_alike() {
        let trace =
            |lines: &[&str]| Trace { lines: lines.iter().map(|line| line.to_string()).collect(), left: 0 };
        let refused = "1 0 Map { what: File(3), flags: 1 } = ENOMEM | 24 24 2 0";
        let (linux, ours) =
            (trace(&[refused, "2 0 a = 0 | 24 20 3 0"]), trace(&[refused, "2 0 a = 0 | 24 21 4 0"]));
        let (same, other) = (trace(&["2 0 a = 0 | 24 20 3 0"]), trace(&["2 0 a = 1 | 24 20 3 0"]));
        assert_eq!(reason([&linux, &ours], [&same, &same]), Some(Reason::Minimum));
        assert_eq!(reason([&linux, &ours], [&same, &other]), None);
        let (linux, ours) = (
            trace(&linux.lines[1..].iter().map(String::as_str).collect::<Vec<_>>()),
            trace(&["2 0 a = 0 | 24 21 4 0"]),
        );
        assert_eq!(reason([&linux, &ours], [&same, &same]), None);
    }
}
