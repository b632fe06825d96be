//! `cargo xtask selftests`: Linux's own self-tests on Debian's kernel and on ours, and where the two differ.
//!
//! They come from Debian's package of the source, are built by the host's gcc without shared libraries, and run in a guest of each kernel.
//! A program ends with 0 when all is well and with 4 when it has tested nothing; most print a line for each of their tests.
//!
//! A folder of them, a suite, has a boot of its own. When a program takes the machine along, or the boot's time is over, the next boot
//! goes on behind it. Results are kept after each boot, so a run that was broken off goes on with `--resume`.

mod outcome;
mod source;
mod table;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::build::{self, BuildOptions};
use crate::{debian, linux, output_folder, setup};
use outcome::{Outcome, Outcomes};
use source::ARGUMENTS;
use table::Results;

/// Where they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ground {
    /// Debian's kernel
    Linux,
    /// Ours
    Ours,
    /// Ours, with `hugetlb_sharing=vma-lock`; suites about memory only
    VmaLock,
}

impl Ground {
    fn name(self) -> &'static str {
        match self {
            Ground::Linux => "linux",
            Ground::Ours => "roundtable",
            Ground::VmaLock => "vma-lock",
        }
    }

    fn runs(self, suite: &str) -> bool {
        self != Ground::VmaLock || MEMORY.contains(&suite)
    }
}

/// Which programs, and on which kernels.
#[derive(Args, Clone, Debug)]
pub struct SelftestOptions {
    /// Only programs with one of these in their name, such as memfd/ or mm/cow
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,

    /// Where they run. What ran elsewhere the last time is compared with
    #[arg(
        short, long, value_enum, value_delimiter = ',', default_values_t = [Ground::Linux, Ground::Ours, Ground::VmaLock]
    )]
    pub kernel: Vec<Ground>,

    /// Leave out what has run there before: go on with a run that was broken off
    #[arg(long)]
    pub resume: bool,

    /// Seconds that one boot may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub time_limit: u32,

    /// Write the table, of all that ever ran, to docs/conformance.md
    #[arg(long)]
    pub write: bool,
}

impl SelftestOptions {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }
}

/// Where the table is.
const PAGE: &str = "docs/conformance.md";
/// What the guests printed: not where `cargo xtask test` begins anew.
const LOGS: &str = "selftests/logs";
/// Suites that a protocol of sharing may change.
const MEMORY: [&str; 2] = ["memfd", "mm"];
/// Seconds that one program may take.
const LIMIT: u32 = 90;
/// How a run ends whose time is over.
const TIME_IS_OVER: i32 = 124;

/// Runs them; 1 when a program that passes on Linux does not on ours.
pub fn run(options: &SelftestOptions) -> Result<i32> {
    ensure!(debian::has_program("gcc"), "the self-tests are C programs: install gcc (apt-get install gcc)");
    ensure!(debian::has_program("make"), "the self-tests are built by make (apt-get install make)");
    setup::qemu()?;
    setup::host_libc()?;
    let wanted: Vec<String> =
        source::programs()?.iter().flat_map(|name| calls(name)).filter(|name| options.wants(name)).collect();
    ensure!(!wanted.is_empty(), "no self-test has {} in its name", options.only.join(" or "));
    fs::create_dir_all(output_folder().join(LOGS))?;
    if options.kernel.contains(&Ground::Linux) {
        linux::fetch()?;
    }
    // With its assertions.
    let checked = output_folder().join("kernel-checked.elf");
    if options.kernel.iter().any(|ground| *ground != Ground::Linux) {
        build::kernel(&BuildOptions::checked(), &checked)?;
    }
    build::programs()?;
    let suites: BTreeSet<&str> = wanted.iter().map(|name| suite_of(name)).collect();
    for suite in suites {
        for ground in options.kernel.iter().filter(|ground| ground.runs(suite)) {
            let of_suite = wanted.iter().map(String::as_str).filter(|name| suite_of(name) == suite);
            run_suite(*ground, suite, of_suite.collect(), &checked, options)?;
        }
        if options.write {
            let page = fs::read_to_string(PAGE).context(PAGE)?;
            fs::write(PAGE, table::with_table(&page, &kept())?)?;
        }
    }
    Ok(table::compare(&kept(), |name| options.wants(name)))
}

/// Runs the programs of one suite on one kernel, in as many boots as it takes.
fn run_suite(
    ground: Ground,
    suite: &str,
    mut left: Vec<&str>,
    checked: &Path,
    options: &SelftestOptions,
) -> Result<()> {
    let mut known = results(ground);
    if options.resume {
        left.retain(|name| !known.contains_key(*name));
    }
    let name = format!("{}-{}.log", ground.name(), suite.replace('/', "-"));
    let log = output_folder().join(LOGS).join(name);
    if !left.is_empty() {
        File::create(&log)?;
    }
    while let Some(first) = left.first().copied() {
        println!(
            "{} {suite} on {}: {} programs",
            console::style("       ==>").bold(),
            ground.name(),
            left.len()
        );
        let (status, printed) = boot(ground, suite, checked, &left, options.time_limit)?;
        OpenOptions::new().append(true).open(&log)?.write_all(&printed)?;
        let (found, open) = outcome::of_log(&printed);
        ensure!(!found.is_empty() || open.is_some(), "{} ran nothing: {}", ground.name(), log.display());
        left.retain(|name| !found.contains_key(*name));
        known.extend(found);
        // Where time was over, the boot's and not the program's may have been too short.
        if let Some(open) = open.filter(|open| status != TIME_IS_OVER || open == first) {
            left.retain(|name| *name != open);
            known.insert(open, Outcome::lost());
        }
        fs::write(results_of(ground), outcome::lines(&known))?;
    }
    Ok(())
}

/// What all programs that ever ran on a kernel have done there: those of other runs are kept.
fn results_of(ground: Ground) -> PathBuf {
    output_folder().join(format!("selftests/results-{}", ground.name()))
}

fn results(ground: Ground) -> Outcomes {
    outcome::of_lines(&fs::read_to_string(results_of(ground)).unwrap_or_default())
}

fn kept() -> Results {
    Results { linux: results(Ground::Linux), ours: results(Ground::Ours), vma_lock: results(Ground::VmaLock) }
}

/// The folder of a program, or of a call of it.
fn suite_of(name: &str) -> &str {
    let program = name.split(' ').next().unwrap_or(name);
    program.rsplit_once('/').map_or("", |(suite, _)| suite)
}

/// A program with each of the arguments that it is run with.
fn calls(program: &str) -> Vec<String> {
    let given: Vec<String> = ARGUMENTS
        .iter()
        .filter(|(name, _)| *name == program)
        .map(|(_, arguments)| format!("{program} {arguments}").trim_end().to_string())
        .collect();
    if given.is_empty() { vec![program.to_string()] } else { given }
}

/// What the guest's shell runs: each program, a line before it, and its end behind it.
fn script_of(calls: &[&str]) -> String {
    let mut text = String::from(
        // A script looks for a program by name, which busybox has under another.
        "mount -t cgroup2 none /sys/fs/cgroup\nmount -t tmpfs none /tmp\nmkdir /huge\nmount -t hugetlbfs none /huge\n\
         printf '#!/bin/sh\\nexec pidof \"$@\"\\n' > /bin/pgrep\nchmod +x /bin/pgrep\n",
    );
    for call in calls {
        let suite = suite_of(call);
        let line = call.strip_prefix(suite).unwrap_or(call).trim_start_matches('/');
        // Some leave the pool as they need it.
        text.push_str(&format!(
            "echo 64 > /proc/sys/vm/nr_hugepages\ncd /selftests/{suite}\necho '##BEGIN {call}'\n\
             timeout -s KILL {LIMIT} ./{line} < /dev/null > /tmp/out 2>&1\nended=$?\nhead -c 60000 /tmp/out\n\
             echo\necho \"##END $ended\"\n"
        ));
    }
    text
}

/// Boots a kernel that runs these; how the run ended, and all that it printed.
fn boot(
    ground: Ground,
    suite: &str,
    checked: &Path,
    calls: &[&str],
    time_limit: u32,
) -> Result<(i32, Vec<u8>)> {
    let script = output_folder().join(format!("selftests/{}.sh", ground.name()));
    fs::write(&script, script_of(calls))?;
    let printed = output_folder().join(format!("selftests/{}.log", ground.name()));
    let own = std::env::current_exe().context("the path of xtask")?;
    let mut command = Command::new(own);
    command.args(["run", "--verbose", "--cpus", "2", "--memory", "2G", "--kernel"]);
    match ground {
        Ground::Linux => command.arg("linux"),
        Ground::Ours | Ground::VmaLock => command.arg(checked),
    };
    if ground == Ground::VmaLock {
        command.args(["--append", "hugetlb_sharing=vma-lock"]);
    }
    command.arg("--time-limit").arg(time_limit.to_string());
    let file = |from: &Path, to: &str| format!("{}:{to}", from.display());
    let programs = output_folder().join("selftests/programs").join(suite);
    command.arg("--file").arg(file(&programs, &format!("/selftests/{suite}")));
    command.args(["--file", "/bin/bash"]);
    command.arg("--file").arg(file(&script, "/run.sh"));
    command.args(["--", "busybox", "sh", "/run.sh"]);
    let output = File::create(&printed)?;
    command.stdout(output.try_clone()?).stderr(output);
    // Its status says no more than whether time was over: the log says which programs have ended.
    let status = command.status().context("xtask does not start")?;
    Ok((status.code().unwrap_or(-1), fs::read(&printed)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_runs_what_was_asked_for() {
        let mut all = calls("mm/uffd-stress");
        assert_eq!(all.len(), 5);
        all.extend(calls("filesystems/epoll/epoll_wakeup_test"));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let script = script_of(&all);
        assert!(script.contains("./uffd-stress shmem 20 2 <"));
        assert!(
            script.contains("cd /selftests/filesystems/epoll\n") && script.contains("./epoll_wakeup_test <")
        );
        assert_eq!(script.matches("##BEGIN").count(), 6);
    }

    #[test]
    fn a_suite_is_known_by_a_calls_program() {
        assert_eq!(suite_of("futex/functional/futex_wait -v /a/b"), "futex/functional");
        assert_eq!(calls("mm/cow"), ["mm/cow"]);
    }
}
