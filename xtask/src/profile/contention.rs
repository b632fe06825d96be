//! `cargo xtask bench --contention`: which cache lines several CPUs write when all do the same to one file.
//!
//! The program `contention` runs in one machine of many CPUs, on as many of them as asked for. A plugin of QEMU's notes each store of the
//! kernel in the marked operations, by its physical address: processes have kernel stacks of their own at the same addresses. So everything counts: locks, page tables, counters,
//! reference counts, the allocator, and what shares a line with another's by chance.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest_link::Ending;
use guest_link::record::Operation;
use roundtable::bench::plots::{self, Axes, Line};
use roundtable::bench::{BenchOptions, Subject};
use roundtable::run::Parts;
use roundtable::signals::Signals;
use roundtable::size::Size;

use super::symbols::Symbols;
use super::write;
use crate::build;
use crate::soak::guest::{Boot, End};

/// Numbers of CPUs. Each is a thread of the emulator: of many more than the host has, those that hold a lock wait for those that spin for it.
const CPUS: [usize; 4] = [1, 2, 4, 8];
/// Clears a page that a fault brings: its lines are the page's, and move with it.
const CLEARS: &str = "memset";
const SILENCE: Duration = Duration::from_secs(600);
const LIMIT: Duration = Duration::from_secs(1800);
/// A line that is written in fewer operations, of a hundred, is an interrupt's that came in between.
const RARE: u64 = 10;

/// The operations, and what they are called: the faults are on pages that the file has, and on others.
const OPERATIONS: [(Operation, &str); 6] = [
    (Operation::Present, "present page"),
    (Operation::Fresh, "fresh page"),
    (Operation::Punch, "punch"),
    (Operation::Attach, "attach"),
    (Operation::Detach, "detach"),
    (Operation::Exit, "fork and exit"),
];

/// A cache line that several CPUs write in operations of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shared {
    cpus: u64,
    operations: u64,
    place: String,
}

/// Operations of one kind on so many CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Round {
    operations: u64,
    lines: Vec<Shared>,
}

impl Round {
    /// The lines that are written in more than rare operations.
    fn common(&self) -> impl Iterator<Item = &Shared> {
        self.lines.iter().filter(|line| line.operations * 100 >= self.operations * RARE)
    }

    /// How many lines that another CPU also writes an operation writes.
    fn each(&self) -> f64 {
        // A line that all CPUs of a few write is rare among all, and as dear to those.
        let writes: u64 = self.lines.iter().map(|line| line.operations).sum();
        writes as f64 / self.operations.max(1) as f64
    }
}

/// What the plugin wrote: by round, and the operation's number.
fn read(text: &str, symbols: &Symbols) -> Result<BTreeMap<(usize, usize), Round>> {
    let mut rounds: BTreeMap<(usize, usize), Round> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["round", round, number, count] => {
                let round = rounds.entry((round.parse()?, number.parse()?)).or_default();
                round.operations = count.parse()?;
                current = Some(round);
            }
            ["line", _, cpus, operations, place] => {
                let round = current.as_mut().context("a line before a round")?;
                let place = symbols.name(u64::from_str_radix(place, 16)?).to_string();
                if place == CLEARS {
                    continue;
                }
                round.lines.push(Shared { cpus: cpus.parse()?, operations: operations.parse()?, place });
            }
            _ => anyhow::bail!("the plugin wrote {line:?}"),
        }
    }
    Ok(rounds)
}

/// Counts on a kernel of ours, with so many CPUs at most.
fn count(subject: &Subject, cpus: &[usize]) -> Result<BTreeMap<(usize, usize), Round>> {
    let plugin = build::profile_plugin()?;
    let parts = Parts::in_folder(&crate::output_folder());
    let raw = tempfile::NamedTempFile::new_in(&parts.scratch)?;
    let words = cpus.iter().map(usize::to_string);
    let boot = Boot {
        kernel: subject.kernel.clone(),
        cpus: cpus.iter().max().map_or(1, |most| *most as u32),
        memory: Size::gibibytes(4),
        icount: false,
        parameters: subject.parameters.clone(),
        program: std::iter::once("contention".to_string()).chain(words).collect(),
        qemu: vec![
            "-plugin".into(),
            format!("{},out={},count=lines", plugin.display(), raw.path().display()).into(),
        ],
        files: Vec::new(),
        silence: SILENCE,
        limit: LIMIT,
    };
    let result =
        boot.run(&parts, &Signals::catch()?, &parts.scratch.join("logs/contention.log"), |line| {
            println!("{line}");
        })?;
    ensure!(result.end == End::Program(Ending::Code(0)), "the guest ended with {:?}", result.end);
    read(&std::fs::read_to_string(raw.path())?, &Symbols::of(&subject.kernel)?)
}

/// Counts, and prints tables.
pub fn run(options: &BenchOptions, subject: &Subject) -> Result<i32> {
    let rounds = count(subject, &CPUS)?;
    print!("{}", table(&rounds));
    let lines = OPERATIONS.map(|(operation, name)| Line {
        name: name.to_string(),
        points: CPUS
            .iter()
            .enumerate()
            .filter_map(|(round, cpus)| {
                Some((*cpus as f64, rounds.get(&(round, operation as usize))?.each()))
            })
            .collect(),
    });
    let axes = Axes {
        title: "Cache lines that an operation writes and other CPUs write, too",
        x: "CPUs",
        y: "lines",
        write_x: |value| format!("{value:.0}"),
        write_y: |value| format!("{value:.2}"),
    };
    if let Some(svg) = plots::log_log(&axes, &lines)? {
        let path = options.out.join("contention.svg");
        write(&path, &svg)?;
        println!("{}", path.display());
    }
    Ok(0)
}

fn table(rounds: &BTreeMap<(usize, usize), Round>) -> String {
    let mut out = String::from("\n| CPUs |");
    for cpus in CPUS {
        out += &format!(" {cpus} |");
    }
    out += &format!("\n| --- |{}\n", " ---: |".repeat(CPUS.len()));
    for (operation, name) in OPERATIONS {
        out += &format!("| {name} |");
        for round in 0..CPUS.len() {
            let cell = rounds.get(&(round, operation as usize)).map(|round| format!("{:.2}", round.each()));
            out += &format!(" {} |", cell.unwrap_or_default());
        }
        out.push('\n');
    }
    out += "\nWho writes them, on most CPUs:\n";
    for (operation, name) in OPERATIONS {
        let Some(round) = (0..CPUS.len()).rev().find_map(|round| rounds.get(&(round, operation as usize)))
        else {
            continue;
        };
        let mut places: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for line in round.common() {
            let (lines, writes) = places.entry(&line.place).or_default();
            *lines += 1;
            *writes += line.operations;
        }
        let mut places: Vec<_> = places.into_iter().collect();
        places.sort_by_key(|&(_, (_, writes))| std::cmp::Reverse(writes));
        for (place, (lines, writes)) in places {
            let share = writes as f64 / round.operations as f64;
            out += &format!("| {name} | {share:.2} | {lines} | `{place}` |\n");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_rounds() {
        let symbols = Symbols::from_list([(0x1000, "lock"), (0x2000, "tick")]);
        let text = "round 0 1 10\nline ff40 2 10 1008\nline ff80 4 5 1010\nline ffc0 2 1 2000\nround 1 1 4\n";
        let rounds = read(text, &symbols).unwrap();
        let round = &rounds[&(0, 1)];
        assert_eq!((round.operations, round.lines.len(), round.each()), (10, 3, 1.6));
        assert_eq!(
            round.common().map(|line| line.place.as_str()).collect::<Vec<_>>(),
            ["lock", "lock", "tick"]
        );
        assert_eq!(rounds[&(1, 1)].each(), 0.0);
        assert!(read("line 1 2 3 4\n", &symbols).is_err());
    }
}
