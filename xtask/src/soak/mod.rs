//! `cargo xtask soak TIME`: the long forms of the tests that look for races and for what no test thinks of.
//!
//! A quarter of the time goes to the simulated machine on the host: random operations against the oracle, and threads
//! as CPUs. A quarter goes to the fuzzer of system calls, and a quarter to Debian's trinity and stress-ng, first alone and then
//! beside the fuzzer. An eighth goes to guests in which each allocation fails once, and to others in which programs use up the kernel's
//! memory. The rest goes to the program `race` in guests, in equal parts under each protocol that has a cure, on base pages, and on
//! files in regions of either. Last, the protocol without one has to be found out, 10,000 processes map a file of 1 TiB, what one of
//! 100,000 things costs is counted, and 10,000 processes of the host are audited.
//! `--only` gives all of the time to one of these.

mod finding;
mod fuzz;
pub mod guest;
mod outsiders;
mod shrink;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Parser, ValueEnum};
use console::style;
use roundtable::options::RunOptions;
use roundtable::run::Parts;

use crate::build::{self, BuildOptions};
use crate::toolchain::own_cargo;
use crate::{output_folder, setup};
use fuzz::Load;

/// How long, and what.
#[derive(Args, Clone, Debug)]
pub struct SoakOptions {
    /// How long, such as 90s, 10m or 2h, builds left out
    #[arg(value_name = "TIME", value_parser = humantime::parse_duration)]
    pub time: Duration,

    /// Protocols to race under
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "file-lock,vma-lock,file-tables"
    )]
    pub protocols: Vec<String>,

    /// Where the program's random numbers start
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Only this part
    #[arg(long, value_name = "PART")]
    pub only: Option<Which>,

    /// Calls that the fuzzer shall not make, by its names for them
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub without: Vec<String>,

    /// Take the kernel and the programs as they were built last
    #[arg(long)]
    pub no_build: bool,

    /// Keep what the fuzzer finds as it is, and go on
    #[arg(long)]
    pub no_shrink: bool,
}

/// A part of a soak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// The library on the simulated machine
    Simulated,
    /// Random system calls
    Fuzz,
    /// Debian's trinity and stress-ng
    Outsiders,
    /// Random system calls, trinity and stress-ng at once
    Mixed,
    /// Allocations that fail, and memory that runs out
    Memory,
    /// The race between faults and whoever takes tables away
    Race,
    /// What one of 100,000 things costs, in instructions; it takes the time that it takes
    Many,
    /// The audit of 10,000 processes of this host; it takes the time that it takes
    Audit,
}

/// What a part came to.
struct Part {
    name: String,
    took: Duration,
    /// What was wrong.
    failure: Option<String>,
}

/// Random cases of each property in one go of the host's tests.
const CASES: &str = "2048";
/// Seconds in which the protocol without a cure has to be found out.
const UNFENCED: u64 = 30;
/// How much longer than its own time a guest may take.
const GRACE: u64 = 300;

/// Runs all parts; 0 when all are well.
pub fn run(options: &SoakOptions) -> Result<i32> {
    let wants = |which| options.only.is_none_or(|only| only == which);
    if options.only == Some(Which::Audit) {
        return Ok(summary(&[audit()?]));
    }
    setup::qemu()?;
    setup::host_libc()?;
    // With its assertions, and with the protocol that corrupts memory.
    let checked = output_folder().join("kernel-checked.elf");
    if !options.no_build {
        build::programs()?;
        build::kernel(&BuildOptions::checked(), &checked)?;
    }
    if wants(Which::Race) && !options.no_build {
        // That one as fast as it can be: an assertion would stop the kernel before the program has seen anything.
        build::laboratory()?;
    }
    let parts = || Parts::in_folder(&output_folder());
    let share =
        |quarters: u32| if options.only.is_some() { options.time } else { options.time / 4 * quarters };
    let mut done = Vec::new();
    if wants(Which::Simulated) {
        done.push(simulated(share(4))?);
    }
    if wants(Which::Fuzz) {
        done.push(fuzz::run(options, Load::fuzz(), checked.clone(), parts(), share(4))?);
    }
    if wants(Which::Outsiders) {
        done.push(fuzz::run(options, outsiders::alone()?, checked.clone(), parts(), share(8))?);
    }
    if wants(Which::Mixed) {
        done.push(fuzz::run(options, outsiders::mixed()?, checked.clone(), parts(), share(8))?);
    }
    if wants(Which::Memory) {
        done.push(memory(&checked, share(8))?);
    }
    if wants(Which::Race) {
        let protocols = options.protocols.iter().map(|protocol| (protocol.as_str(), &[][..]));
        let others = OTHER_GROUNDS
            .into_iter()
            .filter(|(protocol, _)| options.protocols.iter().any(|one| one == protocol));
        let turns: Vec<_> = protocols.chain(others).collect();
        let seconds = (share(8) / turns.len().max(1) as u32).as_secs().max(1);
        for (protocol, ground) in turns {
            let seed = ["--seed".into(), options.seed.to_string()];
            let words = ["--seconds".to_string(), seconds.to_string()].into_iter().chain(seed);
            let words: Vec<String> = words.chain(ground.iter().map(|word| word.to_string())).collect();
            done.push(race(protocol, &checked, &words, seconds, 0)?);
        }
        let words = ["--seconds".to_string(), UNFENCED.to_string(), "--until-found".into()];
        done.push(race("unfenced", &build::laboratory_output(), &words, UNFENCED, 1)?);
        done.push(terabyte()?);
    }
    if wants(Which::Many) {
        let kernel = output_folder().join("kernel.elf");
        if !options.no_build {
            build::kernel(&BuildOptions::default(), &kernel)?;
        }
        done.push(many(&kernel)?);
    }
    if wants(Which::Audit) {
        done.push(audit()?);
    }
    Ok(summary(&done))
}

/// Runs the host's tests again and again.
fn simulated(time: Duration) -> Result<Part> {
    let mut host_tests = host_tests()?;
    let start = Instant::now();
    let mut goes = 0;
    let mut failure = None;
    while failure.is_none() && (goes == 0 || start.elapsed() < time) {
        goes += 1;
        let status = host_tests.status().context("cargo does not start")?;
        failure = (!status.success()).then(|| format!("go {goes} ended with {status}"));
    }
    Ok(Part { name: format!("simulated machine, {goes} times"), took: start.elapsed(), failure })
}

/// The host's tests, built.
fn host_tests() -> Result<Command> {
    let command = |words: &[&str]| {
        let mut command = own_cargo("test");
        command.args(["--package", "hugetlb-sim", "--profile", "checked", "--quiet"]).args(words);
        command
    };
    let status = command(&["--no-run"]).status().context("cargo does not start")?;
    anyhow::ensure!(status.success(), "the tests of the simulated machine do not build");
    let mut run = command(&[]);
    run.env("PROPTEST_CASES", CASES);
    Ok(run)
}

#[derive(Parser)]
struct Guest {
    #[command(flatten)]
    run: RunOptions,
}

/// What else is raced on, under the protocol that it is for: base pages, and files in regions.
const OTHER_GROUNDS: [(&str, &[&str]); 3] = [
    ("file-tables", &["--base-pages"]),
    ("file-tables", &["--regions"]),
    ("file-tables", &["--regions", "--base-pages"]),
];

/// Runs `race` in a guest, its output on the terminal.
fn race(
    protocol: &str,
    kernel: &std::path::Path,
    words: &[String],
    seconds: u64,
    expected: i32,
) -> Result<Part> {
    let ground = words.iter().filter(|word| ["--base-pages", "--regions"].contains(&word.as_str()));
    let name = ground.fold(format!("race under {protocol}"), |name, word| format!("{name} {word}"));
    println!("\n{} {name}", style("       ==>").bold());
    let parameter = format!("hugetlb_sharing={protocol}");
    let limit = (seconds + GRACE).to_string();
    let options = ["--append", &parameter, "--time-limit", &limit, "--memory", "1G"];
    let program: Vec<&str> = std::iter::once("race").chain(words.iter().map(String::as_str)).collect();
    let (status, took) = guest(kernel, &options, &program)?;
    let failure = match (status == expected, expected) {
        (true, _) => None,
        (false, 0) => Some(format!("it ended with {status}")),
        (false, _) => Some(format!("the corruption was not found (it ended with {status})")),
    };
    Ok(Part { name, took, failure })
}

/// Programs that have every allocation fail, and that make things until memory is gone, in turn.
fn memory(kernel: &std::path::Path, time: Duration) -> Result<Part> {
    const PROGRAMS: [(&str, &str); 4] = [
        ("test_fail_nth", "1G"),
        ("test_exhaustion", "256M"),
        ("test_exhaustion_processes", "256M"),
        ("test_oom", "512M"),
    ];
    let start = Instant::now();
    let mut guests = 0;
    let mut failure = None;
    while failure.is_none() && (guests == 0 || start.elapsed() < time) {
        let (program, memory) = PROGRAMS[guests % PROGRAMS.len()];
        println!("\n{} {program} in {memory}", style("       ==>").bold());
        let limit = (4 * GRACE).to_string();
        let (status, _) =
            guest(kernel, &["--time-limit", &limit, "--memory", memory], &[program, "--patient"])?;
        failure = (status != 0).then(|| format!("{program} ended with {status}"));
        guests += 1;
    }
    Ok(Part { name: format!("memory, {guests} guests"), took: start.elapsed(), failure })
}

/// The case that tables of their own would cost 39 GiB. It takes more memory than each test may.
fn terabyte() -> Result<Part> {
    println!("\n{} 10,000 processes with 1 TiB", style("       ==>").bold());
    let limit = GRACE.to_string();
    let options = ["--time-limit", &limit, "--memory", "8G"];
    let (status, took) =
        guest(&build::laboratory_output(), &options, &["test_terabyte", "--patient", "ten_thousand"])?;
    let failure = (status != 0).then(|| format!("it ended with {status}"));
    Ok(Part { name: "10,000 processes with 1 TiB".to_string(), took, failure })
}

/// The test that compares what one of few things costs with what one of many does, with ten times as many as among the tests.
fn many(kernel: &std::path::Path) -> Result<Part> {
    println!("\n{} up to 100,000 of each thing", style("       ==>").bold());
    let limit = (2 * GRACE).to_string();
    let machine = ["--icount", "--cpus", "1", "--memory", "3G", "--append", "counting_clock=10"];
    let options = [&machine[..], &["--time-limit", &limit]].concat();
    let (status, took) = guest(kernel, &options, &["test_many", "--patient"])?;
    let failure = (status != 0).then(|| format!("it ended with {status}"));
    Ok(Part { name: "up to 100,000 of each thing".to_string(), took, failure })
}

/// `roundtable audit` of 10,000 processes of this host. It prints what docs/operators.md says of it.
fn audit() -> Result<Part> {
    println!("\n{} an audit of 10,000 processes", style("       ==>").bold());
    let mut command = own_cargo("test");
    command.args(["--release", "--quiet", "--package", "roundtable", "--test", "audit"]);
    command.args(["--", "--ignored", "--exact", "--nocapture", "scale::ten_thousand_real_processes"]);
    let start = Instant::now();
    let status = command.status().context("cargo does not start")?;
    let failure = (!status.success()).then(|| format!("it ended with {status}"));
    Ok(Part { name: "audit of 10,000 processes".to_string(), took: start.elapsed(), failure })
}

/// Runs a program in a guest; its status, and how long it took.
fn guest(kernel: &std::path::Path, options: &[&str], program: &[&str]) -> Result<(i32, Duration)> {
    let line = ["run"].iter().chain(options).chain(&["--"]).chain(program);
    let guest = Guest::try_parse_from(line).context("the options of a run")?;
    let parts = Parts { kernel: kernel.to_path_buf(), ..Parts::in_folder(&output_folder()) };
    let start = Instant::now();
    let status = roundtable::run::run(&guest.run, &parts)?;
    Ok((status, start.elapsed()))
}

fn summary(parts: &[Part]) -> i32 {
    println!();
    for part in parts {
        let took = part.took.as_secs();
        match &part.failure {
            None => println!("{} {} ({took} s)", style("        ok").green(), part.name),
            Some(failure) => {
                println!("{} {} ({took} s): {failure}", style("    FAILED").red().bold(), part.name);
            }
        }
    }
    let failed = parts.iter().filter(|part| part.failure.is_some()).count();
    println!("\n{} passed, {failed} failed", parts.len() - failed);
    i32::from(failed > 0)
}
