//! The audit's tests on the host itself, where it has huge pages or can be given some.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use roundtable::run::Parts;

use super::programs::TestProgram;
use super::report::Report;
use super::results::{Outcome, parse};

const POOL: &str = "/proc/sys/vm/nr_hugepages";
/// Huge pages that the largest of these tests takes.
const NEEDED: u64 = 514;

/// Runs these programs on the host; `false`, with the reason said, where that cannot be done.
pub fn run_on_host(parts: &Parts, tests: &[&TestProgram], report: &mut Report) -> Result<bool> {
    if let Err(reason) = can_have_huge_pages() {
        report
            .print(&format!("the audit's tests cannot run on this host, only in Debian's Linux: {reason:#}"));
        return Ok(false);
    }
    for test in tests {
        let mut command = Command::new(parts.programs.join(&test.name));
        command.env("ROUNDTABLE", parts.programs.join("roundtable")).stdin(Stdio::null());
        if !test.whole {
            command.args(&test.subtests);
        }
        report.busy_with(&test.name);
        let output = command.output().with_context(|| test.name.clone())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut missing = test.subtests.clone();
        for subtest in text.lines().filter_map(parse).filter(|subtest| missing.remove(&subtest.name)) {
            let name = format!("[host] {}::{}", test.name, subtest.name);
            match subtest.outcome {
                Outcome::Passed => report.pass(&name, None),
                Outcome::Skipped(reason) => report.skip(&name, &reason),
                Outcome::Failed(reason) => {
                    report.fail(&name, &reason, &String::from_utf8_lossy(&output.stderr))
                }
            }
        }
        for subtest in missing {
            report.fail(
                &format!("[host] {}::{subtest}", test.name),
                &format!("it did not report; {}", output.status),
                &text,
            );
        }
    }
    Ok(true)
}

/// Asks the kernel for the pages, and gives them back.
fn can_have_huge_pages() -> Result<()> {
    let before = fs::read_to_string(POOL).context(POOL)?;
    let pages = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
    fs::write(POOL, NEEDED.max(pages(&before)).to_string())
        .with_context(|| format!("{POOL} (only root may)"))?;
    let has = fs::read_to_string(POOL).map(|text| pages(&text));
    fs::write(POOL, before)?;
    let has = has?;
    anyhow::ensure!(has >= NEEDED, "it has memory for {has} huge pages only, {NEEDED} are needed");
    Ok(())
}
