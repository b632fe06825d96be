//! What a guest's end tells: nothing, or a finding of some kind, and where findings are kept.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use guest_link::Ending;

use super::guest::{End, Seen};

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Alike for two findings that likely have one cause.
    pub kind: String,
    /// One line.
    pub text: String,
}

impl Finding {
    /// What is wrong with a guest whose program tells of findings by lines with `FINDING`.
    ///
    /// The time of a machine that counts instructions (`icount`) is its own: the program's seconds take a busy host longer than the machine has,
    /// and nothing is wrong as long as it goes on.
    pub fn in_guest(seen: &Seen, icount: bool) -> Option<Finding> {
        let found = |kind: String, text: &str| Some(Finding { kind, text: text.trim().to_string() });
        let mut lines = seen.text.lines();
        if let Some(line) = lines.by_ref().find(|line| line.contains("Kernel panic")) {
            let words = line.split_once(": ").map_or(line, |(_, words)| words);
            let place =
                lines.next().map(str::trim).filter(|next| next.starts_with("at ")).unwrap_or_default();
            return found(format!("panic {place} {}", without_numbers(words)), &format!("{line} {place}"));
        }
        if let Some(text) =
            seen.text.lines().find_map(|line| line.split_once("FINDING ")).map(|(_, text)| text)
        {
            let kind = text.split([':', ' ']).next().unwrap_or_default();
            return found(kind.to_string(), text);
        }
        match &seen.end {
            End::Program(Ending::Code(0)) => None,
            End::Program(Ending::Code(2)) => found("the fuzzer cannot run".into(), last_line(&seen.text)),
            End::Program(ending) => {
                found(format!("watcher {ending}"), &format!("the watcher ended with {ending}"))
            }
            End::Machine => found("went down".into(), "the machine went down without a word"),
            End::Hung => found("hang".into(), "the machine hangs"),
            End::Limit if icount => None,
            End::Limit => found("slow".into(), "the program did not end in its time"),
        }
    }
}

fn last_line(text: &str) -> &str {
    text.lines().rev().find(|line| line.contains("fuzz: ")).unwrap_or_default()
}

/// Numbers and addresses differ from run to run.
fn without_numbers(text: &str) -> String {
    let keep = |word: &&str| !word.contains(|c: char| c.is_ascii_digit());
    text.split_whitespace().filter(keep).take(8).collect::<Vec<_>>().join(" ")
}

/// A folder for a finding: its console, and how it is seen again.
pub struct Record {
    folder: PathBuf,
}

impl Record {
    /// A new folder below `findings`.
    pub fn create(findings: &Path, name: &str) -> Result<Record> {
        let number = fs::read_dir(findings).map_or(0, Iterator::count) + 1;
        let folder = findings.join(format!("{number:02}-{name}"));
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Record { folder })
    }

    pub fn keep(&self, file: &str, text: &str) -> Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(end: End, text: &str) -> Option<Finding> {
        Finding::in_guest(&Seen { end, text: text.to_string() }, false)
    }

    fn kind(end: End, text: &str) -> String {
        seen(end, text).expect("a finding").kind
    }

    #[test]
    fn a_panic_is_known_by_its_place_and_words_and_not_by_its_numbers() {
        let text = |cpu, number| {
            format!(
                "fuzz: round 3\n\nKernel panic - CPU {cpu}: page {number:#x} is used twice\n  at kernel/src/a.rs:5:7\n"
            )
        };
        assert_eq!(kind(End::Machine, &text(0, 77)), kind(End::Machine, &text(1, 99)));
        assert_eq!(kind(End::Machine, &text(0, 77)), "panic at kernel/src/a.rs:5:7 page is used twice");
    }

    #[test]
    fn what_the_watcher_finds_is_known_by_its_first_word() {
        let end = End::Program(Ending::Code(1));
        assert_eq!(kind(end.clone(), "fuzz: FINDING leak: files was 3 and is 4 (seed 5)\n"), "leak");
        assert_eq!(kind(end, ""), format!("watcher {}", Ending::Code(1)));
    }

    #[test]
    fn a_program_that_ends_well_has_found_nothing_and_one_that_does_not_end_has() {
        assert_eq!(seen(End::Program(Ending::Code(0)), "fuzz: nothing found\n"), None);
        assert_eq!(kind(End::Hung, "fuzz: round 1\n"), "hang");
        assert_eq!(kind(End::Machine, "fuzz: round 1\n"), "went down");
        assert_eq!(kind(End::Limit, "fuzz: round 1\n"), "slow");
    }

    #[test]
    fn the_seconds_of_a_machine_that_counts_instructions_are_not_the_hosts() {
        let seen = |end, text: &str| Finding::in_guest(&Seen { end, text: text.to_string() }, true);
        assert_eq!(seen(End::Limit, "fuzz: round 1\n"), None);
        assert!(seen(End::Limit, "fuzz: FINDING leak: files was 3 and is 4 (seed 5)\n").is_some());
        assert!(seen(End::Hung, "fuzz: round 1\n").is_some());
    }
}
