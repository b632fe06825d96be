//! The audit's tests on the host itself, as far as it has huge pages or can be given some; the others in Debian's Linux.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use roundtable::run::Parts;

use super::programs::TestProgram;
use super::report::Report;
use super::results::{Outcome, parse};
use crate::servers::Server;

const POOL: &str = "/proc/sys/vm/nr_hugepages";
/// Huge pages that the largest of these tests takes.
const NEEDED: u64 = 514;

/// Runs this program on the host. Gives the subtests that the host cannot run, with the reason said of each, or of all.
pub fn run_on_host(parts: &Parts, test: &TestProgram, report: &mut Report) -> Result<BTreeSet<String>> {
    if let Err(reason) = can_have_huge_pages() {
        report.print(&format!("     moved {} from the host to Debian's Linux: {reason:#}", test.name));
        return Ok(test.subtests.clone());
    }
    let mut command = Command::new(parts.programs.join(&test.name));
    command.env("ROUNDTABLE", parts.programs.join("roundtable")).stdin(Stdio::null());
    for (name, server) in [("postgres", Server::PostgreSql), ("mariadb", Server::MariaDb)] {
        if !test.subtests.iter().any(|subtest| subtest.starts_with(name)) {
            continue;
        }
        let name = name.to_uppercase();
        // Where it is not to be had, its tests are skipped and say why.
        match server.find_or_fetch() {
            Ok(root) => command.env(format!("ROUNDTABLE_{name}"), root),
            Err(error) => {
                command.env(format!("ROUNDTABLE_NO_{name}"), format!("{error:#}").replace('\n', " "))
            }
        };
    }
    if !test.whole {
        command.args(&test.subtests);
    }
    report.busy_with(&test.name);
    let output = command.output().with_context(|| test.name.clone())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let mut missing = test.subtests.clone();
    let mut moved = BTreeSet::new();
    for subtest in text.lines().filter_map(parse).filter(|subtest| missing.remove(&subtest.name)) {
        let name = format!("[host] {}::{}", test.name, subtest.name);
        match subtest.outcome {
            Outcome::Passed => report.pass(&name, None),
            Outcome::Skipped(reason) => {
                report.print(&format!("     moved {name} to Debian's Linux: {reason}"));
                moved.insert(subtest.name);
            }
            Outcome::Failed(reason) => report.fail(&name, &reason, &errors),
        }
    }
    for subtest in missing {
        let reason = format!("it did not report; {}", output.status);
        report.fail(&format!("[host] {}::{subtest}", test.name), &reason, &text);
    }
    Ok(moved)
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

impl TestProgram {
    /// What is left of it: nothing when no subtest is.
    pub fn only(&self, subtests: BTreeSet<String>) -> Option<TestProgram> {
        let whole = self.whole && subtests == self.subtests;
        (!subtests.is_empty()).then(|| TestProgram { name: self.name.clone(), subtests, whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_runs_by_name() {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
        let all = TestProgram { name: "test_a".into(), subtests: names(&["a", "b"]), whole: true };
        assert_eq!(all.only(names(&["a", "b"])), Some(all.clone()));
        let some = all.only(names(&["b"])).unwrap();
        assert!(!some.whole && some.subtests == names(&["b"]));
        assert_eq!(all.only(BTreeSet::new()), None);
    }
}
