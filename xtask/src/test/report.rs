//! The lines that a test run prints, and its count.

use std::time::{Duration, Instant};

use console::style;
use indicatif::{ProgressBar, ProgressStyle};

/// What became of the tests so far.
pub struct Report {
    passed: u64,
    failed: u64,
    skipped: u64,
    failures: Vec<String>,
    /// What the time went to.
    times: Vec<(String, Duration)>,
    bar: ProgressBar,
}

/// How many of the longest parts are told, and how long one has to be for that.
const TOLD: usize = 24;
const WORTH_TELLING: Duration = Duration::from_secs(10);

impl Report {
    /// Nothing yet.
    pub fn new() -> Report {
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("     {spinner} {elapsed} {wide_msg}");
        bar.set_style(style.expect("the template is a constant"));
        Report::with(bar)
    }

    /// A report with nothing in it that prints above the same progress line.
    pub fn beside(&self) -> Report {
        Report::with(self.bar.clone())
    }

    fn with(bar: ProgressBar) -> Report {
        Report { passed: 0, failed: 0, skipped: 0, failures: Vec::new(), times: Vec::new(), bar }
    }

    /// Does a part of the run, and notes how long it took.
    pub fn timed<T>(&mut self, part: impl Into<String>, work: impl FnOnce(&mut Report) -> T) -> T {
        let start = Instant::now();
        let result = work(self);
        self.times.push((part.into(), start.elapsed()));
        result
    }

    /// Notes how long a part took that was timed elsewhere.
    pub fn took(&mut self, part: String, took: Duration) {
        self.times.push((part, took));
    }

    /// Adds what another one holds.
    pub fn take_over(&mut self, other: Report) {
        self.add(other.passed, other.failed, other.skipped);
        self.failures.extend(other.failures);
        self.times.extend(other.times);
    }

    /// Says what is going on, on a terminal only.
    pub fn busy_with(&self, what: &str) {
        self.bar.enable_steady_tick(Duration::from_millis(100));
        self.bar.set_message(what.to_string());
    }

    /// A test that passed.
    pub fn pass(&mut self, name: &str, took: Option<Duration>) {
        self.passed += 1;
        let took = took.map(|took| format!(" ({:.1} s)", took.as_secs_f64())).unwrap_or_default();
        self.print(&format!("{} {name}{took}", style("        ok").green()));
    }

    /// A test that cannot be run here, and why.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.skipped += 1;
        self.print(&format!("{} {name}: {reason}", style("   skipped").yellow()));
    }

    /// A test that failed, and what it printed.
    pub fn fail(&mut self, name: &str, reason: &str, output: &str) {
        self.failed += 1;
        self.failures.push(format!("{name}: {reason}"));
        let mut text = format!("{} {name}: {reason}", style("    FAILED").red().bold());
        for line in output.lines() {
            text.push_str("\n           | ");
            text.push_str(line);
        }
        // In one go: another guest's lines must not come between.
        self.print(&text);
    }

    /// Tests that another runner has counted and shown.
    pub fn add(&mut self, passed: u64, failed: u64, skipped: u64) {
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }

    /// Lines above the progress line, together.
    pub fn print(&self, lines: &str) {
        self.bar.suspend(|| println!("{lines}"));
    }

    /// How many passed, failed and were skipped.
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.passed, self.failed, self.skipped)
    }

    /// Prints where the time went, what failed and the count; gives the exit status.
    pub fn finish(mut self) -> i32 {
        self.bar.finish_and_clear();
        self.times.retain(|(_, took)| *took >= WORTH_TELLING);
        self.times.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
        if !self.times.is_empty() {
            println!("\nlongest parts:");
            for (part, took) in self.times.iter().take(TOLD) {
                println!("    {:>4} s  {part}", took.as_secs());
            }
        }
        if !self.failures.is_empty() {
            println!("\nfailed:");
            for failure in &self.failures {
                println!("    {failure}");
            }
        }
        let (passed, failed, skipped) = self.counts();
        println!("\n{}", summary(passed, failed, skipped));
        i32::from(failed > 0 || passed == 0)
    }
}

fn summary(passed: u64, failed: u64, skipped: u64) -> String {
    let skipped = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
    format!("{passed} passed, {failed} failed{skipped}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_a_line_that_machines_read() {
        assert_eq!(summary(12, 0, 0), "12 passed, 0 failed");
        assert_eq!(summary(12, 1, 3), "12 passed, 1 failed, 3 skipped");
    }

    #[test]
    fn a_run_without_a_test_is_no_success() {
        assert_eq!(Report::new().finish(), 1);
        let mut report = Report::new();
        report.pass("a", None);
        assert_eq!(report.finish(), 0);
        let mut report = Report::new();
        report.pass("a", None);
        report.fail("b", "wrong", "");
        assert_eq!(report.finish(), 1);
        let mut report = Report::new();
        report.pass("a", None);
        let mut beside = report.beside();
        beside.fail("b", "wrong", "");
        report.take_over(beside);
        assert_eq!(report.counts(), (1, 1, 0));
        assert_eq!(report.finish(), 1);
    }
}
