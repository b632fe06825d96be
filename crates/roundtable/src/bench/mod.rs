//! The benchmark: each protocol on our kernel and Debian's Linux, in the same machine, in one run.
//!
//! Every subject is booted three times with the program `latency` as its job: with two CPUs for times and memory,
//! and twice with counted instructions, for the length of paths and for what operations cost. What it prints as records is collected, written as
//! JSON, and drawn as a table and as a page.

mod boot;
mod figures;
mod goals;
mod page;
pub mod plots;
mod table;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;
use guest_link::record::{Basic, Record};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::output;
use crate::run::Parts;
use crate::signals::Signals;
use boot::Boot;

/// What the benchmark measures, and how long.
#[derive(Args, Clone, Debug)]
pub struct BenchOptions {
    /// Few sharers and short times: to see whether all works
    #[arg(long)]
    pub quick: bool,

    /// What to measure: protocols of our kernel, and linux
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "unfenced,file-lock,vma-lock,file-tables,linux"
    )]
    pub protocols: Vec<String>,

    /// The largest number of processes that share a table [default: 10000, or 256 with --quick]
    #[arg(long, value_name = "N")]
    pub sharers: Option<u32>,

    /// The largest number of processes that map the file of 1 TiB [default: 256, or 16 with --quick]
    #[arg(long, value_name = "N")]
    pub tib_sharers: Option<u32>,

    /// Seconds for each case of a bystander [default: 1, or 0.3 with --quick]
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<f32>,

    /// Only what is counted in instructions: it takes minutes, and comes out the same on a busy host
    #[arg(long, conflicts_with = "profile")]
    pub instructions: bool,

    /// Where results.json and report.html go; the former grows with every subject
    #[arg(long, value_name = "FOLDER", default_value = "target/roundtable/bench")]
    pub out: PathBuf,

    /// Show where the instructions of the operations go instead, on our kernel with the first of the
    /// protocols: tables of the kernel's functions, and flame graphs
    #[arg(long)]
    pub profile: bool,

    /// Count instead which cache lines CPUs take from each other, for 1 to 64 simulated CPUs under each protocol: a table, and plots
    #[arg(long, conflicts_with_all = ["profile", "instructions"])]
    pub contention: bool,

    /// Count instead what operations cost in instructions against the number of things around them: tables, and plots
    #[arg(long, conflicts_with_all = ["profile", "instructions", "contention"])]
    pub curves: bool,

    /// Run PostgreSQL instead, by its preset, on our kernel and on Debian's Linux, with 10, 100 and 1,000 clients, huge
    /// pages on and off: a table, and plots. It takes a quarter of an hour and 10 GB of memory; with --quick minutes and 4 GB
    #[arg(long, conflicts_with_all = ["profile", "instructions", "contention", "curves"])]
    pub programs: bool,

    /// Put the table into docs/programs.md
    #[arg(long, requires = "programs")]
    pub write: bool,

    /// Draw the table and the page anew from an earlier run's results.json; with --curves from what the program printed,
    /// with --programs from programs.txt
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
}

/// A kernel to measure.
#[derive(Clone, Debug)]
pub struct Subject {
    /// As shown: the protocol, or `linux`.
    pub name: String,
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its kernel parameters.
    pub parameters: Vec<String>,
}

/// All results of a run.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub struct Results {
    /// Seconds since 1970 when the run began.
    pub began: u64,
    /// How long it took, in seconds.
    pub took: u64,
    /// The command line that made it.
    pub command: String,
    /// The host's processor.
    pub processor: String,
    /// QEMU's command line, with the paths left out.
    pub machine: String,
    /// One for each subject, in the order of the run.
    pub subjects: Vec<Measured>,
}

/// The results of one subject.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub struct Measured {
    /// The subject's name.
    pub name: String,
    /// What the program said.
    pub records: Vec<Record>,
    /// What it said of the costs of operations in the machine whose clock counts instructions.
    #[serde(default)]
    pub counted: Vec<Record>,
    /// What went wrong, with the end of the console.
    pub failures: Vec<String>,
}

/// Numbers of sharers up to a largest one.
fn steps(all: &[u32], most: u32) -> Vec<u32> {
    let mut steps: Vec<u32> = all.iter().copied().filter(|&step| step <= most).collect();
    if steps.last().is_none_or(|&last| last < most) {
        steps.push(most);
    }
    steps
}

fn joined(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// Sharers beside which operations are counted in instructions.
const COUNTED_SHARERS: [u32; 2] = [1, 256];

/// What a boot is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Times,
    Paths,
    Counts,
}

/// What the options come to for the program in the guest.
struct Plan {
    cost: Vec<u32>,
    bystander: Vec<u32>,
    tebibyte: Vec<u32>,
    seconds: f32,
    runs: u32,
    only_instructions: bool,
}

impl Plan {
    fn of(options: &BenchOptions) -> Plan {
        let (most, most_tib) = if options.quick { (256, 16) } else { (10_000, 256) };
        let most = options.sharers.unwrap_or(most);
        Plan {
            cost: steps(&[1, 16, 256, 1024, 4096, 10_000], most.max(1)),
            bystander: steps(&[0, 16, 256, 4096], most.min(4096)),
            tebibyte: steps(&[1, 16, 256], options.tib_sharers.unwrap_or(most_tib).max(1)),
            seconds: options.seconds.unwrap_or(if options.quick { 0.3 } else { 1.0 }).max(0.05),
            runs: if options.quick { 3 } else { 7 },
            only_instructions: options.instructions,
        }
    }

    fn arguments(&self) -> Vec<String> {
        let words = [
            ("--sharers", joined(&self.bystander)),
            ("--cost-sharers", joined(&self.cost)),
            ("--tib-sharers", joined(&self.tebibyte)),
            ("--seconds", self.seconds.to_string()),
            ("--runs", self.runs.to_string()),
        ];
        words.into_iter().flat_map(|(name, value)| [name.to_string(), value]).collect()
    }

    /// How many records a subject has when nothing goes wrong.
    fn records(&self) -> usize {
        const ATTACH: usize = 4;
        const COSTS_AND_TABLES: usize = 9;
        const BYSTANDERS: usize = 11;
        const PATHS: usize = 3 + Basic::ALL.len();
        // In instructions; each boot has a first and a last record besides.
        let counted = 2 * 2 + PATHS + COUNTED_SHARERS.len() * COSTS_AND_TABLES;
        if self.only_instructions {
            return counted;
        }
        let fixed = 2 + ATTACH + counted;
        fixed + self.cost.len() * COSTS_AND_TABLES + self.bystander.len() * BYSTANDERS + self.tebibyte.len()
    }

    /// How long the first boot may take on a slow machine.
    fn limit(&self) -> Duration {
        let cases = (self.bystander.len() * 11) as f32 * self.seconds;
        let processes: u32 = self.cost.iter().chain(&self.bystander).chain(&self.tebibyte).sum();
        Duration::from_secs_f32(300.0 + cases * 6.0 + processes as f32 * 0.06)
    }
}

/// Runs the benchmark; gives the exit status.
pub fn run(options: &BenchOptions, subjects: &[Subject], parts: &Parts) -> Result<i32> {
    let results = match &options.from {
        Some(path) => load(path)?,
        None => measure(options, subjects, parts)?,
    };
    let json = write(options, "results.json", &serde_json::to_string_pretty(&results)?)?;
    let drawn = page::draw(&results)?;
    let page = write(options, "report.html", &drawn.html)?;
    for (name, svg) in &drawn.plots {
        write(options, name, svg)?;
    }
    print!("{}", table::draw(&results));
    println!("\nAll results: {}\nWith plots:  {}", json.display(), page.display());
    // The protocol that corrupts memory may fail; that is what it is there for.
    let failed = results.subjects.iter().any(|one| one.name != "unfenced" && !one.failures.is_empty());
    Ok(i32::from(failed))
}

fn write(options: &BenchOptions, name: &str, text: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    let path = options.out.join(name);
    output::file::write(text, Some(&path))?;
    Ok(path)
}

fn load(path: &Path) -> Result<Results> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

fn measure(options: &BenchOptions, subjects: &[Subject], parts: &Parts) -> Result<Results> {
    if subjects.is_empty() {
        bail!("nothing to measure");
    }
    let plan = Plan::of(options);
    let signals = Signals::catch()?;
    let start = Instant::now();
    let bar = ProgressBar::new((plan.records() * subjects.len()) as u64);
    let style = ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {pos}/{len} {wide_msg}");
    bar.set_style(style.expect("the template is a constant").progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(250));
    let mut results = Results {
        began: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        took: 0,
        command: command_line(),
        processor: processor(),
        machine: String::new(),
        subjects: Vec::new(),
    };
    for (number, subject) in subjects.iter().enumerate() {
        let mut one = Measured {
            name: subject.name.clone(),
            records: Vec::new(),
            counted: Vec::new(),
            failures: Vec::new(),
        };
        let times = Boot::times(subject, plan.arguments(), plan.limit());
        let counts = Boot::counts(subject, &joined(&COUNTED_SHARERS));
        let boots = [(times, Kind::Times), (Boot::paths(subject), Kind::Paths), (counts, Kind::Counts)];
        for (boot, kind) in boots {
            if plan.only_instructions && kind == Kind::Times {
                continue;
            }
            if results.machine.is_empty() {
                results.machine = boot.machine_line();
            }
            let outcome = boot.run(parts, &signals, |record| {
                bar.inc(1);
                bar.set_message(format!("{}: {}", subject.name, figures::headline(record)));
                match kind {
                    Kind::Times | Kind::Paths => one.records.push(record.clone()),
                    Kind::Counts => one.counted.push(record.clone()),
                }
            })?;
            if let Some(failure) = outcome {
                bar.suspend(|| eprintln!("{}: {}", subject.name, failure.lines().next().unwrap_or_default()));
                one.failures.push(failure);
            }
        }
        bar.set_position((plan.records() * (number + 1)) as u64);
        results.subjects.push(one);
        results.took = start.elapsed().as_secs();
        // A run of half an hour that is ended keeps what it has.
        write(options, "results.json", &serde_json::to_string_pretty(&results)?)?;
    }
    bar.finish_and_clear();
    Ok(results)
}

/// How we were called, as a user would type it.
fn command_line() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("cargo xtask {}", arguments.join(" "))
}

/// The host's processor, and how many there are.
pub fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{count} CPUs of {}", field("model name").unwrap_or_else(|| "an unknown kind".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_end_at_the_largest() {
        assert_eq!(steps(&[1, 16, 256], 256), [1, 16, 256]);
        assert_eq!(steps(&[1, 16, 256], 100), [1, 16, 100]);
        assert_eq!(steps(&[0, 16], 0), [0]);
        assert_eq!(joined(&[1, 2]), "1,2");
    }
}
