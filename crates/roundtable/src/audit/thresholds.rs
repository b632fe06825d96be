//! Thresholds for cron and for checks in Nagios' way: what is reached decides the exit status.

use std::str::FromStr;

use super::answer::holders::Hold;
use super::report::Report;
use crate::output::human;
use crate::size::{Size, thousands};

/// The exit status when a threshold of `--warn-on` is reached.
pub const WARNING: i32 = 1;
/// The exit status when a threshold of `--fail-on` is reached.
pub const CRITICAL: i32 = 2;
/// The exit status when nothing can be told: an error, or a wrong option.
pub const UNKNOWN: i32 = 3;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    /// Bytes of all page tables.
    Tables,
    /// Bytes of page tables that advice saves.
    Saving,
    /// Bytes of huge pages that nobody uses.
    Left,
    /// Huge pages in use that nothing explains.
    Unexplained,
    /// Huge pages of the default size that anybody can still have, where there is a pool: reached from above.
    PoolFree,
    /// Limits that are met.
    Limits,
    /// Processes that are out of sight.
    Unseen,
}

const MEASURES: [(&str, Measure); 7] = [
    ("tables", Measure::Tables),
    ("saving", Measure::Saving),
    ("left", Measure::Left),
    ("unexplained", Measure::Unexplained),
    ("pool-free", Measure::PoolFree),
    ("limits", Measure::Limits),
    ("unseen", Measure::Unseen),
];

/// A measure and the value from which on it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    name: &'static str,
    measure: Measure,
    value: u64,
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Threshold, String> {
        let names = MEASURES.map(|(name, _)| name).join(", ");
        let (name, value) = text.split_once('=').ok_or(format!("it is WHAT=VALUE, with one of {names}"))?;
        let known = MEASURES.into_iter().find(|(known, _)| *known == name);
        let (name, measure) = known.ok_or(format!("'{name}' is not known; there are {names}"))?;
        let value = match measure {
            Measure::Tables | Measure::Saving | Measure::Left => value.parse::<Size>().map(|size| size.0),
            _ => thousands(value),
        };
        Ok(Threshold { name, measure, value: value.map_err(|error| error.to_string())? })
    }
}

impl Threshold {
    /// What there is, when that reaches the threshold.
    pub fn reached(&self, report: &Report) -> Option<String> {
        let accounts = || report.pools.iter().map(|one| (&one.pool, &one.account));
        let value = match self.measure {
            Measure::Tables => report.check.page_tables,
            Measure::Saving => report.advice.iter().map(|advice| advice.gain).sum(),
            Measure::Left => accounts()
                .flat_map(|(pool, account)| {
                    let unused = account
                        .holders
                        .iter()
                        .filter(|holder| matches!(holder.hold, Hold::File | Hold::Segment));
                    unused.map(|holder| holder.pages * pool.page_size)
                })
                .sum(),
            Measure::Unexplained => accounts().map(|(_, account)| account.unexplained).sum(),
            Measure::PoolFree => {
                let default = report.pools.iter().find(|one| one.pool.is_default);
                default.map_or(0, |one| one.pool.available())
            }
            Measure::Limits => report.limits.len() as u64,
            Measure::Unseen => {
                let seen = &report.seen;
                // How many a container or hidepid keeps out of sight nobody tells.
                (seen.unreadable + seen.skipped).max(u64::from(!seen.is_whole()))
            }
        };
        // Where nobody has made a pool none is missing.
        let has_pool = accounts().any(|(pool, _)| pool.is_default && pool.total + pool.overcommit > 0);
        let is_reached = match self.measure {
            Measure::PoolFree => has_pool && value <= self.value,
            _ => value >= self.value.max(1),
        };
        let shown = match self.measure {
            Measure::Tables | Measure::Saving | Measure::Left => human::bytes(value),
            _ => human::count(value),
        };
        is_reached.then(|| format!("{} is {shown}", self.name))
    }
}

/// The exit status, and a line for each threshold that is reached.
pub fn judge(report: &Report, warnings: &[Threshold], criticals: &[Threshold]) -> (i32, Vec<String>) {
    let mut lines = Vec::new();
    let mut status = 0;
    for (word, level, thresholds) in [("warning", WARNING, warnings), ("critical", CRITICAL, criticals)] {
        for what in thresholds.iter().filter_map(|threshold| threshold.reached(report)) {
            lines.push(format!("{word}: {what}"));
            status = level;
        }
    }
    (status, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read_with_their_units() {
        let parse = |text: &str| text.parse::<Threshold>();
        assert_eq!(parse("tables=10Gi").unwrap().value, 10 << 30);
        assert_eq!(parse("pool-free=1,000").unwrap().value, 1000);
        for text in ["", "tables", "tables=", "tables=x", "limits=1G", "memory=1G"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
