//! `cargo xtask compare`: sequences of operations on huge pages, drawn from seeds, on Debian's kernel and on ours under each protocol.
//!
//! The program `seeds` runs in a guest of each and says for every seed a hash of all that came of its steps. Seeds that differ run once
//! more, and the first step that came out otherwise is shown. Two kinds of differences are Linux's: it loses count of promises in some
//! sequences, and with surplus pages it gives pages back that a mount's `min_size` has promised.

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

    /// All that was seen of some seeds.
    fn traces(
        &self,
        seeds: &[u64],
        options: &CompareOptions,
        signals: &Signals,
    ) -> Result<BTreeMap<u64, Vec<String>>> {
        let mut traces: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for seeds in seeds.chunks(TRACED) {
            let mut arguments = vec!["trace".to_string(), options.steps.to_string()];
            arguments.extend(seeds.iter().map(u64::to_string));
            let mut current = None;
            self.run(arguments, signals, |line| {
                if let Some(seed) = line.strip_prefix("trace ").and_then(|rest| rest.split(' ').next()) {
                    current = seed.parse().ok();
                } else if let Some(seed) = current {
                    traces.entry(seed).or_default().push(line.to_string());
                }
            })?;
        }
        Ok(traces)
    }
}

/// The seed, the hash and the promises left of a line of the program's.
fn of_seed(line: &str) -> Option<(u64, String, i64)> {
    let mut words = line.strip_prefix("seed ")?.split(' ');
    let (seed, hash, left) = (words.next()?, words.next()?, words.next()?);
    Some((seed.parse().ok()?, hash.to_string(), left.parse().ok()?))
}

/// The first line in which two traces differ, and both of it.
fn first_difference<'a>(linux: &'a [String], ours: &'a [String]) -> Option<(usize, &'a str, &'a str)> {
    let line = |trace: &'a [String], at: usize| trace.get(at).map_or("(nothing)", String::as_str);
    (0..linux.len().max(ours.len()))
        .map(|at| (at, line(linux, at), line(ours, at)))
        .find(|(_, linux, ours)| linux != ours)
}

/// A step with its result, and the pool behind the last bar: all pages, the free ones, the promised ones, the surplus.
fn split(line: &str) -> Option<(&str, [i64; 4])> {
    let (step, pool) = line.rsplit_once(" | ")?;
    let numbers: Option<Vec<i64>> = pool.split(' ').map(|number| number.parse().ok()).collect();
    Some((step, numbers?.try_into().ok()?))
}

/// Whether two lines differ in the promised pages alone.
fn in_promises_alone(linux: &str, ours: &str) -> bool {
    let (Some((step, pool)), Some((same_step, own))) = (split(linux), split(ours)) else { return false };
    step == same_step && pool[2] != own[2] && [pool[0], pool[1], pool[3]] == [own[0], own[1], own[3]]
}

/// Whether Linux has promised more pages than are free, and ours has not, behind a step with the same result: it has given surplus pages back
/// that a mount's `min_size` had promised.
fn in_surplus_that_was_promised(linux: &str, ours: &str) -> bool {
    let (Some((step, pool)), Some((same_step, own))) = (split(linux), split(ours)) else { return false };
    step == same_step && pool[1] < pool[2] && own[1] >= own[2] && pool[0] < own[0]
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
    for protocol in &options.protocols {
        let ours = Subject {
            name: protocol.clone(),
            kernel: kernel.clone(),
            parameters: vec![format!("hugetlb_sharing={protocol}")],
        };
        if !compare(&linux, &theirs, &ours, options, &signals)? {
            status = 1;
        }
    }
    Ok(status)
}

/// Compares a kernel of ours with Linux; says whether all differences are Linux's.
fn compare(
    linux: &Subject,
    theirs: &Seen,
    ours: &Subject,
    options: &CompareOptions,
    signals: &Signals,
) -> Result<bool> {
    let own = ours.hashes(options, signals)?;
    let left = own.values().filter(|(_, left)| *left != 0).count();
    let different: Vec<u64> =
        theirs.iter().filter(|(seed, seen)| own[seed].0 != seen.0).map(|(seed, _)| *seed).collect();
    let same = own.len() - different.len();
    let (of_linux, of_ours) =
        (linux.traces(&different, options, signals)?, ours.traces(&different, options, signals)?);
    let (mut lost, mut overdrawn, mut whole) = (0, 0, 0);
    for seed in &different {
        let (of_linux, of_ours) = (trace(&of_linux, *seed), trace(&of_ours, *seed));
        let Some((at, linux, ours)) = first_difference(of_linux, of_ours) else {
            println!("seed {seed}: alike the second time");
            continue;
        };
        if in_promises_alone(linux, ours) && theirs[seed].1 != 0 && own[seed].1 == 0 {
            lost += 1;
            continue;
        }
        if in_surplus_that_was_promised(linux, ours) {
            overdrawn += 1;
            continue;
        }
        println!("seed {seed}:");
        let first = if whole < options.whole { 0 } else { at.saturating_sub(1) };
        whole += 1;
        of_linux[first.min(of_linux.len())..at.min(of_linux.len())]
            .iter()
            .for_each(|line| println!("      {line}"));
        println!("    - {linux}\n    + {ours}");
    }
    let unexplained = different.len() - lost - overdrawn;
    println!(
        "{}: {same} seeds are alike; in {lost} Linux loses count of promises, in {overdrawn} it gives back what it has \
         promised; {unexplained} differ; promises are left behind after {left}",
        ours.name
    );
    Ok(unexplained == 0 && left == 0)
}

fn trace(traces: &BTreeMap<u64, Vec<String>>, seed: u64) -> &[String] {
    traces.get(&seed).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_a_line() {
        assert_eq!(of_seed("seed 7 00ff -2"), Some((7, "00ff".to_string(), -2)));
        assert_eq!(of_seed("seeds 7 00ff 0"), None);
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
        assert!(in_surplus_that_was_promised("1 0 a = 0 | 18 5 6 10", "1 0 a = 0 | 19 6 6 11"));
        assert!(!in_surplus_that_was_promised("1 0 a = 0 | 18 5 6 10", "1 0 a = 1 | 19 6 6 11"));
        assert!(!in_surplus_that_was_promised("1 0 a = 0 | 18 6 6 10", "1 0 a = 0 | 19 7 6 11"));
    }
}
