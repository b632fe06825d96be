//! The fuzzer in guests: rounds until the time is over, and what it finds made small.
//!
//! Its watcher also starts other people's programs, in the place of its own actors or beside them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use console::style;
use roundtable::run::Parts;
use roundtable::signals::Signals;
use roundtable::size::Size;

use super::finding::{Finding, Record};
use super::guest::{Boot, Seen};
use super::shrink::{Call, keep, shrink};
use super::{Part, SoakOptions};

/// How long one guest plays rounds: what accumulates has time to, and a machine that has gone wrong unseen is replaced.
const SHIFT: Duration = Duration::from_secs(180);
/// How long a console may say nothing: a round takes less, on a busy host too.
const SILENCE: Duration = Duration::from_secs(240);
/// Seeds of one guest do not meet those of the next.
const SEEDS: u64 = 1_000_000;
/// How often a round is played in one guest to see a finding again: who meets whom when differs from time to time.
const REPEATS: u32 = 4;

/// The machines that rounds are played on, in turn.
const MACHINES: [Kind; 3] = [
    Kind { name: "2 CPUs", cpus: 2, icount: false },
    Kind { name: "1 CPU that counts instructions", cpus: 1, icount: true },
    Kind { name: "4 CPUs", cpus: 4, icount: false },
];

#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    cpus: u32,
    icount: bool,
}

/// A round as the fuzzer tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Round {
    seed: u64,
    actors: u32,
    calls: u32,
    single: bool,
}

impl Round {
    /// From `fuzz: round 3, seed 4: 2 actors, 400 calls each, one at a time`.
    fn parse(line: &str) -> Option<Round> {
        let words = line.split_once("fuzz: round ")?.1;
        let (_, words) = words.split_once(", seed ")?;
        let (seed, words) = words.split_once(": ")?;
        let (actors, words) = words.split_once(" actors, ")?;
        let (calls, rest) = words.split_once(" calls each")?;
        Some(Round {
            seed: seed.parse().ok()?,
            actors: actors.parse().ok()?,
            calls: calls.parse().ok()?,
            single: rest.contains("one at a time"),
        })
    }

    fn words(&self) -> Vec<String> {
        let Round { seed, actors, calls, single } = self;
        let line = format!("--seed {seed} --actors {actors} --calls {calls} --repeat");
        let mut words: Vec<String> = line.split(' ').map(str::to_string).collect();
        words.extend(single.then(|| "--single".to_string()));
        words
    }

    fn all_calls(&self) -> Vec<Call> {
        (0..self.actors).flat_map(|actor| (0..self.calls).map(move |index| (actor, index))).collect()
    }
}

/// What runs in the guests besides the fuzzer's own calls.
#[derive(Clone, Debug, Default)]
pub struct Load {
    pub name: &'static str,
    /// Programs and their arguments, of which each guest has the next ones; `{}` in them stands for the seconds of a guest.
    pub beside: Vec<Vec<&'static str>>,
    /// Whether they are alone, without calls of the fuzzer's own.
    pub alone: bool,
    pub files: Vec<(String, PathBuf)>,
}

impl Load {
    /// Nothing else.
    pub fn fuzz() -> Load {
        Load { name: "fuzz", ..Load::default() }
    }

    fn words(&self, guest: u64, time: Duration) -> Vec<String> {
        let lines = self.beside.get(guest as usize % self.beside.len().max(1)).into_iter().flatten();
        let seconds = time.as_secs().to_string();
        let mut words: Vec<String> =
            lines.flat_map(|line| ["--beside".to_string(), line.replace("{}", &seconds)]).collect();
        if self.alone {
            words.extend(["--calls".to_string(), "0".to_string()]);
        }
        words
    }
}

/// What the guests of this part share.
struct Fuzzer<'a> {
    options: &'a SoakOptions,
    load: Load,
    kernel: PathBuf,
    parts: Parts,
    signals: Signals,
    findings: PathBuf,
}

/// Plays rounds for so long; a finding of each kind is made small once.
pub fn run(options: &SoakOptions, load: Load, kernel: PathBuf, parts: Parts, time: Duration) -> Result<Part> {
    let findings = parts.scratch.join("findings");
    let fuzzer = Fuzzer { options, load, kernel, parts, signals: Signals::catch()?, findings };
    let start = Instant::now();
    let mut found: Vec<Finding> = Vec::new();
    let (mut guests, mut rounds) = (0, 0);
    while guests == 0 || start.elapsed() < time {
        let machine = MACHINES[guests as usize % MACHINES.len()];
        let shift = SHIFT.min(time.saturating_sub(start.elapsed())).max(Duration::from_secs(5));
        let seed = options.seed.wrapping_add(guests * SEEDS);
        println!(
            "\n{} {} on {} from seed {seed}",
            style("       ==>").bold(),
            fuzzer.load.name,
            machine.name
        );
        let beside = fuzzer.load.words(guests, shift);
        guests += 1;
        let mut words =
            vec!["--seed".into(), seed.to_string(), "--seconds".into(), shift.as_secs().to_string()];
        words.extend(beside.iter().cloned());
        let mut last = None;
        let seen = fuzzer.boot(machine, &words, shift + SILENCE, |line| {
            if let Some(round) = Round::parse(line) {
                rounds += 1;
                last = Some(round);
            }
            if line.contains("fuzz: ") {
                println!("{line}");
            }
        })?;
        let Some(finding) = Finding::in_guest(&seen, machine.icount) else { continue };
        println!("{} {}", style("     FOUND").red().bold(), finding.text);
        let known = found.iter().any(|other| other.kind == finding.kind);
        found.push(finding.clone());
        if !known {
            fuzzer.settle(machine, &finding, &seen, last, &beside)?;
        }
    }
    let failure = (!found.is_empty()).then(|| {
        let texts: Vec<&str> = found.iter().map(|finding| finding.text.as_str()).collect();
        format!("{} (see {})", texts.join("; "), fuzzer.findings.display())
    });
    Ok(Part {
        name: format!("{}, {rounds} rounds in {guests} guests", fuzzer.load.name),
        took: start.elapsed(),
        failure,
    })
}

impl Fuzzer<'_> {
    fn boot(&self, machine: Kind, words: &[String], limit: Duration, line: impl FnMut(&str)) -> Result<Seen> {
        let mut program = vec!["fuzz".to_string()];
        program.extend(words.iter().cloned());
        if !self.options.without.is_empty() {
            program.extend(["--without".to_string(), self.options.without.join(",")]);
        }
        let boot = Boot {
            kernel: self.kernel.clone(),
            cpus: machine.cpus,
            memory: Size::gibibytes(1),
            icount: machine.icount,
            parameters: vec!["hugetlb_check=1".into()],
            program,
            qemu: Vec::new(),
            files: self.load.files.clone(),
            silence: SILENCE,
            limit,
        };
        boot.run(&self.parts, &self.signals, &self.parts.scratch.join("logs/fuzz.log"), line)
    }

    /// Keeps a finding, sees it again, and leaves out what it does not need.
    fn settle(
        &self,
        machine: Kind,
        finding: &Finding,
        seen: &Seen,
        round: Option<Round>,
        beside: &[String],
    ) -> Result<()> {
        let name: String =
            finding.kind.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).take(40).collect();
        let record = Record::create(&self.findings, name.trim_matches('-'))?;
        record.keep("console.log", &seen.text)?;
        let round = round.context("a finding before the first round")?;
        let command = |keep: &str| {
            let keep = if keep.is_empty() { String::new() } else { format!(" --keep '{keep}'") };
            let icount = if machine.icount { " --icount" } else { "" };
            format!(
                "cargo xtask run --checked --cpus {}{icount} -- fuzz {}{keep}\n",
                machine.cpus,
                round.words().join(" ")
            )
        };
        record.keep("again.txt", &command(""))?;
        if self.options.no_shrink || self.load.alone {
            return Ok(());
        }
        let mut boots = 0;
        let mut fails = |calls: &[Call]| -> Result<bool> {
            boots += 1;
            let again = self.again(machine, &round, calls, finding, beside)?;
            let word = if again { "it is seen again" } else { "it is not seen" };
            println!("{} {} calls: {word}", style("    shrink").dim(), calls.len());
            Ok(again)
        };
        let all = round.all_calls();
        if !fails(&all)? && !fails(&all)? {
            println!(
                "           it does not show again by its seed alone; see {}",
                record.folder().display()
            );
            return Ok(());
        }
        let least = shrink(all, fails)?;
        let kept = keep(&least);
        let mut words = round.words();
        words.extend([
            "--keep".into(),
            kept.clone(),
            "--trace".into(),
            "--rounds".into(),
            REPEATS.to_string(),
        ]);
        let seen = self.boot(machine, &words, SILENCE, |_| ())?;
        let trace: Vec<&str> = seen.text.lines().skip_while(|line| !line.contains("fuzz: round ")).collect();
        record.keep("again.txt", &command(&kept))?;
        record.keep("trace.txt", &trace.join("\n"))?;
        println!("{} {} calls in {boots} boots: {}", style("     least").bold(), least.len(), finding.text);
        trace.iter().take(60).for_each(|line| println!("    {line}"));
        println!("    {}    kept in {}", command(&kept), record.folder().display());
        Ok(())
    }

    /// Whether a part of a round shows the same finding.
    fn again(
        &self,
        machine: Kind,
        round: &Round,
        calls: &[Call],
        finding: &Finding,
        beside: &[String],
    ) -> Result<bool> {
        let mut words = round.words();
        words.extend(beside.iter().cloned());
        let times = if round.single || machine.icount { 1 } else { REPEATS };
        words.extend(["--rounds".into(), times.to_string()]);
        if calls.len() < (round.actors * round.calls) as usize {
            words.extend(["--keep".into(), keep(calls)]);
        }
        let seen = self.boot(machine, &words, SILENCE, |_| ())?;
        Ok(Finding::in_guest(&seen, machine.icount).is_some_and(|other| other.kind == finding.kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_read_from_its_line_and_named_again() {
        let line = "fuzz: round 3, seed 1000004: 2 actors, 400 calls each";
        let round = Round { seed: 1_000_004, actors: 2, calls: 400, single: false };
        assert_eq!(Round::parse(line), Some(round.clone()));
        assert_eq!(round.words().join(" "), "--seed 1000004 --actors 2 --calls 400 --repeat");
        let single = Round::parse(&format!("[1.0] {line}, one at a time")).expect("a round");
        assert!(single.single && single.words().contains(&"--single".to_string()));
        assert_eq!(Round::parse("fuzz: 3 rounds, 12 calls"), None);
    }
}
