//! The tests that run on the host: cargo-nextest where installed, else cargo test; and the models.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::TestOptions;
use super::report::Report;
use crate::contention;
use crate::debian::has_program;
use crate::toolchain::own_cargo;

/// All members but the kernel, which has no test that a host could run.
const SELECTION: [&str; 3] = ["--workspace", "--exclude", "roundtable-kernel"];

/// Runs them with the runner's own output, and takes over its count.
pub fn run(options: &TestOptions, report: &mut Report) -> Result<()> {
    let filter = options.filter.as_deref();
    if has_program("cargo-nextest") {
        let mut command = own_cargo("nextest");
        // A filter may well match no test of the host.
        command.arg("run").args(SELECTION).args(["--no-tests=pass", "--no-fail-fast"]).args(filter);
        one("host tests", command, report)?;
        // Nextest leaves the examples in the documentation out.
        let mut command = own_cargo("test");
        command.args(SELECTION).args(["--quiet", "--no-fail-fast", "--doc"]).args(filter);
        one("documentation tests", command, report)?;
    } else {
        let mut command = own_cargo("test");
        command.args(SELECTION).args(["--quiet", "--no-fail-fast"]).args(filter);
        one("host tests", command, report)?;
    }
    let mut command = models();
    command.arg("--").args(filter);
    one("models", command, report)?;
    let mut command = contention::cargo("test");
    command.args(["--test", "counts", "--"]).args(filter);
    one("lines that move between CPUs", command, report)
}

/// Runs the models, whose build is by itself: what they make of the library must not reach the others. Not quiet: the names of
/// the mutants and of the models that catch them are the table of what the models are worth.
pub fn models() -> Command {
    let mut command = own_cargo("test");
    command.env("RUSTFLAGS", "--cfg roundtable_model");
    command.args(["-p", "hugetlb-models", "--features", "run", "--profile", "models", "--test", "models"]);
    command
}

fn one(what: &str, command: Command, report: &mut Report) -> Result<()> {
    report.timed(format!("{what} and their build"), |report| watch(what, command, report))
}

fn watch(what: &str, mut command: Command, report: &mut Report) -> Result<()> {
    let mut count = Count::default();
    // Both streams in one pipe: nextest reports on standard error, cargo test on standard output.
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().context("cargo does not start")?;
    // The command holds the pipe's other end.
    drop(command);
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        let plain = console::strip_ansi_codes(&line);
        count.add_line(&plain);
        if !is_empty_suite(&plain) {
            report.print(&line);
        }
    }
    let status = child.wait()?;
    report.add(count.passed, count.failed, count.skipped);
    if !status.success() && count.failed == 0 {
        report.fail(what, &format!("cargo ended with {status}"), "");
    }
    Ok(())
}

/// Whether a line only says that a suite has no tests; most members have none in their documentation.
fn is_empty_suite(line: &str) -> bool {
    let line = line.trim();
    line.is_empty()
        || line == "running 0 tests"
        || line.starts_with("test result: ok. 0 passed; 0 failed; 0 ignored")
}

/// What a runner's closing lines say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Count {
    fn add_line(&mut self, line: &str) {
        // What a failed test printed is shown further in, with the counts of its own runner.
        let is_nextest = line.trim().starts_with("Summary [") && line.contains(" run: ");
        if !is_nextest && !line.starts_with("test result: ") {
            return;
        }
        // A filter of the runner's own leaves tests out that nobody asked for: they are not skipped ones.
        let words: Vec<_> = line.split([' ', ',', ';', '(', ')']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "timed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> (u64, u64, u64) {
        let mut count = Count::default();
        text.lines().for_each(|line| count.add_line(line));
        (count.passed, count.failed, count.skipped)
    }

    #[test]
    fn a_failed_tests_own_count_is_not_counted_again() {
        let text = "  stdout ───\n\n    test result: FAILED. 0 passed; 1 failed; 0 ignored\n     Summary [  1.9s] 2 tests run: 1 passed, 1 failed";
        assert_eq!(count(text), (1, 1, 0));
    }

    #[test]
    fn the_closing_line_of_nextest_is_understood() {
        let line = "     Summary [   0.230s] 26 tests run: 26 passed, 3 skipped";
        assert_eq!(count(line), (26, 0, 0));
        let line = "     Summary [  10.230s] 30 tests run: 25 passed (1 slow, 2 leaky), 4 failed, 1 timed out, 0 skipped";
        assert_eq!(count(line), (25, 5, 0));
    }

    #[test]
    fn the_closing_lines_of_cargo_test_are_summed() {
        let text = "test a ... ok\n\
            test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.1s\n";
        assert_eq!(count(text), (15, 2, 1));
    }
}
