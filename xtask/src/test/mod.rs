//! `cargo xtask test`: on the host, on the kernel in QEMU, and the same on Debian's Linux.

mod audit;
pub mod boots;
mod console;
pub mod conversations;
mod emulator;
mod host;
mod host_folder;
mod machines;
mod newcomer;
mod peer;
mod programs;
mod race;
pub mod report;
mod results;
mod screens;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use roundtable::run::Parts;
use roundtable::signals::Signals;

use crate::build::{self, BuildOptions};
use crate::{hosts, linux, output_folder, setup, toolchain};
use boots::{Boot, Kernels, Selection, Work};
use programs::TestProgram;
use report::Report;

/// Which tests to run.
#[derive(Args, Clone, Debug)]
pub struct TestOptions {
    /// Only tests with this in their name, such as boots::shell or test_mmap::fixed
    #[arg(short, long, value_name = "NAME")]
    pub filter: Option<String>,

    /// Do not run the tests of the host
    #[arg(long)]
    pub no_host: bool,

    /// Do not run the tests that boot a kernel
    #[arg(long)]
    pub no_guest: bool,

    /// Run the guest tests on Debian's Linux too; the default
    #[arg(long, overrides_with = "no_linux")]
    pub linux_too: bool,

    /// Do not run the guest tests on Debian's Linux
    #[arg(long)]
    pub no_linux: bool,

    /// Run the guest tests on Debian's Linux only, to see whether a test is right about it
    #[arg(long, conflicts_with_all = ["no_linux", "linux_too"])]
    pub only_linux: bool,

    /// Do not start another guest after so many seconds; what is left then has failed
    #[arg(long, value_name = "SECONDS")]
    pub time_budget: Option<u64>,

    /// Boot one guest at a time; else one of each kernel runs where the host's memory holds both
    #[arg(long)]
    pub one_by_one: bool,

    /// Give the guests that run test programs so many CPUs, in place of their own number
    #[arg(long, value_name = "N")]
    pub cpus: Option<std::num::NonZeroU32>,

    /// Show the console of every guest while it runs
    #[arg(short, long)]
    pub verbose: bool,
}

impl TestOptions {
    /// Whether a test with this name was asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }

    /// Whether a subtest of this program may have been asked for: only what names another program is sure not to.
    fn may_want(&self, program: &str) -> bool {
        let Some(filter) = self.filter.as_deref().filter(|filter| filter.starts_with("test_")) else {
            return true;
        };
        program.contains(filter) || filter.starts_with(&format!("{program}:"))
    }
}

/// A kernel under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Ours, with its debug assertions.
    Checked,
    /// Ours, as it is shipped.
    Shipped,
    /// Ours, as fast as that, with the protocol that corrupts memory and nothing that would notice.
    Laboratory,
    /// Debian's.
    Linux,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Subject::Checked | Subject::Shipped | Subject::Laboratory => "roundtable",
            Subject::Linux => "linux",
        }
    }
}

/// What all guest tests on one kernel share.
pub struct Bench {
    parts: Parts,
    signals: Signals,
    verbose: bool,
    /// When the time for all guests is used up.
    end: Option<Instant>,
    /// How many consoles were logged so far, by all.
    logs: Arc<AtomicUsize>,
}

impl Bench {
    fn kernel(&self, subject: Subject) -> Result<PathBuf> {
        Ok(match subject {
            Subject::Checked => checked_kernel(),
            Subject::Shipped => self.parts.kernel.clone(),
            Subject::Laboratory => build::laboratory_output(),
            Subject::Linux => self.parts.linux.clone().context("Debian's kernel is not there")?,
        })
    }

    /// Where the next console's log goes. A boot may be repeated, so the name has a number.
    fn log(&self, boot: &str, subject: Subject) -> PathBuf {
        let number = self.logs.fetch_add(1, Ordering::SeqCst) + 1;
        self.parts.scratch.join("logs").join(format!("{number:02}-{boot}-{}.log", subject.name()))
    }

    /// Now and so much, or earlier when the time for all guests ends before.
    fn deadline(&self, limit: Duration) -> Instant {
        let deadline = Instant::now() + limit;
        self.end.map_or(deadline, |end| deadline.min(end))
    }

    fn is_out_of_time(&self) -> bool {
        self.end.is_some_and(|end| end <= Instant::now())
    }

    /// Does a test that starts its own machine, if it is asked for. `work` gives the reason when it cannot be done here; the first line of
    /// its error is why it failed, and the rest what was printed.
    fn test(
        &self,
        name: &str,
        subject: Subject,
        options: &TestOptions,
        report: &mut Report,
        work: impl FnOnce() -> Result<Option<String>>,
    ) {
        if !options.wants(name) {
            return;
        }
        let name = format!("[{}] {name}", subject.name());
        if self.is_out_of_time() {
            report.fail(&name, "not run: the time budget is used up", "");
            return;
        }
        report.busy_with(&name);
        let start = Instant::now();
        match work() {
            Ok(None) => report.pass(&name, Some(start.elapsed())),
            Ok(Some(reason)) => report.skip(&name, &reason),
            Err(error) => {
                let text = format!("{error:#}");
                let (reason, output) = text.split_once('\n').unwrap_or((&text, ""));
                report.fail(&name, reason, output);
            }
        }
    }
}

fn checked_kernel() -> PathBuf {
    output_folder().join("kernel-checked.elf")
}

/// Breaks the library in each way that it knows and shows which model catches it; 0 when all are caught.
pub fn mutants() -> Result<i32> {
    let status = host::models().env("HUGETLB_MUTANTS", "table").status().context("cargo does not start")?;
    Ok(i32::from(!status.success()))
}

/// Runs the tests; 0 when all pass.
pub fn run(options: &TestOptions) -> Result<i32> {
    let mut report = Report::new();
    if !options.no_host {
        host::run(options, &mut report)?;
    }
    if !options.no_guest {
        guests(options, &mut report)?;
        if !options.only_linux {
            hosts::test(options, &mut report);
        }
    }
    Ok(report.finish())
}

fn guests(options: &TestOptions, report: &mut Report) -> Result<()> {
    setup::qemu()?;
    let busybox = setup::busybox()?;
    let ours = !options.only_linux;
    let mut boots = boots::all();
    if let Some(cpus) = options.cpus {
        boots
            .iter_mut()
            .filter(|boot| matches!(boot.work, Work::Programs(_)))
            .for_each(|boot| boot.cpus = cpus.get());
    }
    // Which subtests there are is known when the programs are built; a conversation is known by its name.
    let may_run = |boot: &Boot| match &boot.work {
        Work::Programs(Selection::Rest) => true,
        Work::Programs(selection) => selection.names().iter().any(|program| options.may_want(program)),
        Work::Console(_) => options.wants(&format!("boots::{}", boot.name)),
    };
    let needs = |subject| boots.iter().any(|boot| own_subject(boot) == subject && may_run(boot));
    let kernels =
        [Subject::Checked, Subject::Shipped, Subject::Laboratory].into_iter().filter(|own| needs(*own));
    let kernels: Vec<Subject> = kernels.collect();
    if !options.no_linux {
        linux::fetch().context("or leave the comparison out with --no-linux")?;
    }
    let names = report.timed("builds", |_| {
        let mut names = if ours { build_all(&kernels)? } else { build::programs()? };
        build::helpers_of_tests(&mut names)?;
        Ok::<_, anyhow::Error>(names)
    })?;
    let mut parts = Parts::in_folder(&output_folder());
    parts.busybox = Some(busybox);
    let logs = parts.scratch.join("logs");
    if logs.is_dir() {
        std::fs::remove_dir_all(&logs).with_context(|| logs.display().to_string())?;
    }
    boots::check_names(&boots, &names)?;
    let mut tests = programs::find(&parts, &names, options)?;
    // The host's own turn is before any guest's: its tests change the pool of huge pages.
    for boot in boots.iter().filter(|boot| boot.kernels == Kernels::Linux) {
        tests = leave_to_linux(boot, &parts, tests, options, report)?;
    }
    let end = options.time_budget.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let logs = Arc::new(AtomicUsize::new(0));
    let bench = || -> Result<Bench> {
        // Signals of its own, as one is taken only once.
        let signals = Signals::catch()?;
        Ok(Bench { parts: parts.clone(), signals, verbose: options.verbose, end, logs: logs.clone() })
    };
    // Both kernels one after the other, or one of them.
    let lane = |ours: bool, linux: bool, report: &mut Report| -> Result<()> {
        let bench = bench()?;
        for boot in &boots {
            for subject in subjects(boot, ours, linux) {
                let part = format!("{} on {}", boot.name, subject.name());
                report.timed(part, |report| run_boot(&bench, boot, subject, &tests, options, report))?;
            }
        }
        for (subject, wanted) in [(Subject::Shipped, ours), (Subject::Linux, linux)] {
            if wanted {
                screens::run(&bench, subject, options, report)?;
                let part = format!("newcomer on {}", subject.name());
                report.timed(part, |report| newcomer::run(&bench, subject, options, report));
            }
        }
        Ok(())
    };
    if !ours || options.no_linux || options.one_by_one || !memory_holds_two() {
        return lane(ours, !options.no_linux, report);
    }
    // A guest waits much: two of them finish sooner than one after the other, on two CPUs as well.
    let mut linux_report = report.beside();
    let (own, linux) = thread::scope(|scope| {
        let linux = scope.spawn(|| lane(false, true, &mut linux_report));
        let own = lane(true, false, report);
        (own, linux.join().expect("a panic ends the program"))
    });
    report.take_over(linux_report);
    own.and(linux)
}

/// Builds the programs and kernels of ours, side by side: each ends with one crate that keeps one CPU busy.
/// Gives the programs' names.
fn build_all(kernels: &[Subject]) -> Result<BTreeSet<String>> {
    // Here, so that what has to be installed is installed one after the other.
    setup::host_libc()?;
    toolchain::find_or_install()?;
    thread::scope(|scope| {
        let programs = scope.spawn(build::programs);
        let kernels = kernels.iter().try_for_each(|subject| match subject {
            Subject::Checked => build::kernel(&BuildOptions::checked(), &checked_kernel()),
            Subject::Shipped => build::kernel(&BuildOptions::default(), &output_folder().join("kernel.elf")),
            Subject::Laboratory => build::laboratory(),
            Subject::Linux => Ok(()),
        });
        let names = programs.join().expect("a panic ends the program");
        kernels.and(names)
    })
}

/// Whether two guests find room; the largest use 4 GiB each, and QEMU itself needs some.
fn memory_holds_two() -> bool {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = available.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.is_none_or(|kilobytes| kilobytes >= 10 << 20)
}

fn run_boot(
    bench: &Bench,
    boot: &Boot,
    subject: Subject,
    tests: &[TestProgram],
    options: &TestOptions,
    report: &mut Report,
) -> Result<()> {
    match &boot.work {
        Work::Programs(selection) => programs::run(bench, boot, subject, selection.of(tests), report),
        Work::Console(script) => {
            let name = format!("boots::{}", boot.name);
            if options.wants(&name) {
                console::run(bench, boot, script, subject, &name, report)?;
            }
            Ok(())
        }
    }
}

/// Runs the tests of a tool for Linux hosts on this one; gives all tests without those that are done with by
/// that.
fn leave_to_linux(
    boot: &Boot,
    parts: &Parts,
    tests: Vec<TestProgram>,
    options: &TestOptions,
    report: &mut Report,
) -> Result<Vec<TestProgram>> {
    let Work::Programs(selection) = &boot.work else { return Ok(tests) };
    let chosen: Vec<TestProgram> = selection.of(&tests).into_iter().cloned().collect();
    let mut left = Vec::new();
    for test in tests {
        if !chosen.contains(&test) {
            left.push(test);
            continue;
        }
        let on_host = !options.no_host && !options.only_linux;
        let moved = if on_host { audit::run_on_host(parts, &test, report)? } else { test.subtests.clone() };
        if options.no_linux {
            for subtest in moved {
                let name = format!("{}::{subtest}", test.name);
                report.skip(&name, "the host cannot run it, or was not to, and neither was Debian's Linux");
            }
        } else {
            left.extend(test.only(moved));
        }
    }
    Ok(left)
}

/// The kernel of ours that a boot is for.
fn own_subject(boot: &Boot) -> Subject {
    boot.own.unwrap_or(match boot.work {
        Work::Programs(_) => Subject::Checked,
        // An outsider's archive boots what an outsider gets.
        Work::Console(_) => Subject::Shipped,
    })
}

fn subjects(boot: &Boot, ours: bool, linux: bool) -> Vec<Subject> {
    let mut subjects = Vec::new();
    if ours && boot.kernels != Kernels::Linux {
        subjects.push(own_subject(boot));
    }
    if linux && boot.kernels != Kernels::Ours {
        subjects.push(Subject::Linux);
    }
    subjects
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: TestOptions,
    }

    #[test]
    fn a_filter_that_names_a_program_leaves_the_others_out() {
        let may_want =
            |filter: &str, program| Line::parse_from(["test", "--filter", filter]).options.may_want(program);
        for filter in ["test_many", "test_man", "test_many::areas", "areas", "many", "::areas"] {
            assert!(may_want(filter, "test_many"), "{filter}");
        }
        for filter in ["test_mm", "test_mm::areas", "test_many_more", "test_manx::areas"] {
            assert!(!may_want(filter, "test_many"), "{filter}");
        }
        assert!(Line::parse_from(["test"]).options.may_want("test_many"));
    }
}
