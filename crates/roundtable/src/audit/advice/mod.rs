//! What to do about what was seen, as data: the situation, the steps in their order, what they cost and gain.
//!
//! The same advice becomes a paragraph for people, JSON, and metrics. Nothing is advised that costs more than
//! it is worth: see [`Worth`].

pub mod base_pages;
pub mod pool;
pub mod postgres;
pub mod program;
pub mod sharing;
pub mod sources;

use std::collections::BTreeSet;

use serde::Serialize;

use crate::output::human;

/// Of names and processes no more than so many are shown.
const SHOWN: usize = 3;

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// The name of its kind, which does not change.
    pub id: &'static str,
    /// Whom it is about.
    pub subject: Subject,
    /// What was seen, in a sentence.
    pub situation: String,
    /// What to do, in this order.
    pub steps: Vec<Step>,
    /// Bytes of page tables that it saves.
    pub gain: u64,
    /// Bytes of memory that it takes, beyond what the subject has now.
    pub cost: u64,
    /// Bytes of huge pages that it gives back to their pool.
    pub frees: u64,
    /// Huge pages that it takes from a pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages: Option<Pages>,
    /// Where that is documented.
    pub source: &'static str,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// In a sentence.
    pub what: String,
    /// For a root shell, as they are; none where only the operator knows them.
    pub commands: Vec<String>,
}

/// Huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// Bytes of a page.
    pub size: u64,
    /// How many.
    pub count: u64,
}

/// Whom an advice is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Subject {
    /// The programs, by their names.
    pub programs: BTreeSet<String>,
    /// How many processes.
    pub processes: u64,
    /// A few of them.
    pub some_pids: Vec<i32>,
    /// Their units: what systemd or a container engine calls them.
    pub units: BTreeSet<String>,
    /// The file, in an operator's words; empty where it is about no file.
    pub file: String,
}

impl Subject {
    /// In a few words: programs, units and processes, or else the file.
    pub fn describe(&self) -> String {
        if self.programs.is_empty() {
            return human::printable(&self.file);
        }
        let list = |names: &BTreeSet<String>| {
            let some: Vec<String> = names.iter().take(SHOWN).map(|name| human::printable(name)).collect();
            some.join(", ") + if names.len() > SHOWN { ", ..." } else { "" }
        };
        let mut pids: Vec<String> = self.some_pids.iter().take(SHOWN).map(i32::to_string).collect();
        if self.processes > pids.len() as u64 {
            pids.push("...".into());
        }
        let mut inner = Vec::new();
        if !self.units.is_empty() {
            inner.push(list(&self.units));
        }
        if !pids.is_empty() {
            inner.push(format!("{} {}", if self.processes == 1 { "pid" } else { "pids" }, pids.join(" ")));
        }
        let inner = if inner.is_empty() { String::new() } else { format!(" ({})", inner.join("; ")) };
        list(&self.programs) + &inner
    }
}

/// A longer text is in no command: nobody reads what it does.
const LONGEST_PLAIN: usize = 255;

/// Whether a text can stand in a command for a shell as it is.
pub fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= LONGEST_PLAIN
        && !text.starts_with('-')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-@:+=".contains(c))
}

impl Step {
    /// A step that no command can do.
    pub fn by_hand(what: impl Into<String>) -> Step {
        Step { what: what.into(), commands: Vec::new() }
    }

    /// A step that is done with these commands.
    pub fn run<const N: usize>(what: impl Into<String>, commands: [String; N]) -> Step {
        Step { what: what.into(), commands: commands.into() }
    }
}

/// From which gain on an advice is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worth(pub u64);

/// An advice that pins memory has to save at least one of so many bytes of it.
const COST_PER_GAIN: u64 = 200;

impl Worth {
    /// Whether a gain is worth its cost. From a gain of 0 on everything is.
    pub fn is_reached(self, gain: u64, cost: u64) -> bool {
        self.0 == 0 || gain >= self.0 && gain.saturating_mul(COST_PER_GAIN) >= cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_more_than_it_saves_is_not_worth_it() {
        let worth = Worth(1 << 20);
        assert!(worth.is_reached(2 << 20, 0) && worth.is_reached(2 << 20, 400 << 20));
        assert!(!worth.is_reached(1 << 19, 0), "too little");
        assert!(!worth.is_reached(2 << 20, 1 << 30), "1 GiB for 2 MiB");
        assert!(Worth(0).is_reached(0, 1 << 40));
    }
}
