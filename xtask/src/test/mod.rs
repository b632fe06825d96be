//! `cargo xtask test`: on the host, on the kernel in QEMU, and the same on Debian's Linux.

mod boots;
mod console;
mod host;
mod programs;
mod race;
mod report;
mod results;

use std::cell::Cell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use roundtable::guest::Signals;
use roundtable::run::Parts;

use crate::build::{self, BuildOptions};
use crate::{linux, output_folder, setup};
use boots::{Boot, Kernels, Work};
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

    /// Show the console of every guest while it runs
    #[arg(short, long)]
    pub verbose: bool,
}

impl TestOptions {
    /// Whether a test with this name was asked for.
    fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
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

/// What all guest tests share.
pub struct Bench {
    parts: Parts,
    signals: Signals,
    verbose: bool,
    /// When the time for all guests is used up.
    end: Option<Instant>,
    /// How many consoles were logged so far.
    logs: Cell<usize>,
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
        self.logs.set(self.logs.get() + 1);
        self.parts.scratch.join("logs").join(format!("{:02}-{boot}-{}.log", self.logs.get(), subject.name()))
    }

    /// Now and so much, or earlier when the time for all guests ends before.
    fn deadline(&self, limit: Duration) -> Instant {
        let deadline = Instant::now() + limit;
        self.end.map_or(deadline, |end| deadline.min(end))
    }

    fn is_out_of_time(&self) -> bool {
        self.end.is_some_and(|end| end <= Instant::now())
    }
}

fn checked_kernel() -> PathBuf {
    output_folder().join("kernel-checked.elf")
}

/// Runs the tests; 0 when all pass.
pub fn run(options: &TestOptions) -> Result<i32> {
    let mut report = Report::new();
    if !options.no_host {
        host::run(options, &mut report)?;
    }
    if !options.no_guest {
        guests(options, &mut report)?;
    }
    Ok(report.finish())
}

fn guests(options: &TestOptions, report: &mut Report) -> Result<()> {
    setup::qemu()?;
    let busybox = setup::busybox()?;
    let names = build::programs()?;
    let ours = !options.only_linux;
    if ours {
        build::kernel(&BuildOptions::checked(), &checked_kernel())?;
        build::kernel(&BuildOptions::default(), &output_folder().join("kernel.elf"))?;
    }
    let is_wanted = |boot: &Boot| options.wants(&format!("boots::{}", boot.name));
    if ours && boots::all().iter().any(|boot| boot.own == Some(Subject::Laboratory) && is_wanted(boot)) {
        build::laboratory()?;
    }
    if !options.no_linux {
        linux::fetch().context("or leave the comparison out with --no-linux")?;
    }
    let mut parts = Parts::in_folder(&output_folder());
    parts.busybox = Some(busybox);
    let logs = parts.scratch.join("logs");
    if logs.is_dir() {
        std::fs::remove_dir_all(&logs).with_context(|| logs.display().to_string())?;
    }
    let end = options.time_budget.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let bench =
        Bench { parts, signals: Signals::catch()?, verbose: options.verbose, end, logs: Cell::new(0) };
    let tests = programs::find(&bench.parts, &names, options)?;
    for boot in boots::all() {
        for subject in subjects(&boot, ours, !options.no_linux) {
            match &boot.work {
                Work::Programs(selection) => {
                    let chosen = selection.of(&tests);
                    programs::run(&bench, &boot, subject, chosen, report)?;
                }
                Work::Console(script) => {
                    let name = format!("boots::{}", boot.name);
                    if options.wants(&name) {
                        console::run(&bench, &boot, script, subject, &name, report)?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn subjects(boot: &Boot, ours: bool, linux: bool) -> Vec<Subject> {
    let own = boot.own.unwrap_or(match boot.work {
        Work::Programs(_) => Subject::Checked,
        // An outsider's archive boots what an outsider gets.
        Work::Console(_) => Subject::Shipped,
    });
    let mut subjects = Vec::new();
    if ours {
        subjects.push(own);
    }
    if linux && boot.kernels == Kernels::Both {
        subjects.push(Subject::Linux);
    }
    subjects
}
