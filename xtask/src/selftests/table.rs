//! Two kernels beside each other: what is printed, and the table in the documentation.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::outcome::{Outcome, Outcomes};
use super::suite_of;

const BEGIN: &str = "<!-- begin of the table: cargo xtask selftests --write -->";
const END: &str = "<!-- end of the table -->";

/// All that ever ran.
#[derive(Default)]
pub struct Results {
    pub linux: Outcomes,
    /// With the protocol that is chosen when nobody asks for another.
    pub ours: Outcomes,
    pub vma_lock: Outcomes,
}

/// Programs of one suite: of how many, how many pass on Linux, here, and on both.
#[derive(Clone, Copy, Default)]
struct Sums {
    all: usize,
    linux: usize,
    ours: usize,
    both: usize,
}

impl Sums {
    fn add(&mut self, there: &Outcome, here: &Outcome) {
        self.all += 1;
        self.linux += usize::from(there.passed());
        self.ours += usize::from(here.passed());
        self.both += usize::from(there.passed() && here.passed());
    }
}

/// The page with what every program did. What was said of one that differs stays.
pub fn with_table(page: &str, results: &Results) -> Result<String> {
    let (head, rest) = page.split_once(BEGIN).context("the page has no place for the table")?;
    let (old, tail) = rest.split_once(END).context("the page has no end of the table")?;
    let said = |name: &str| {
        let row = old.lines().find_map(|line| line.strip_prefix(&format!("| {name} |")));
        row.and_then(|row| row.trim_end().strip_suffix('|')?.rsplit('|').next()).unwrap_or_default().trim()
    };
    let mut different =
        String::from("| program | Linux | here | under vma-lock | why |\n| --- | --- | --- | --- | --- |\n");
    let mut suites: BTreeMap<&str, (Sums, Vec<String>)> = BTreeMap::new();
    let mut total = Sums::default();
    for (name, there) in &results.linux {
        let Some(here) = results.ours.get(name) else { continue };
        let second = results.vma_lock.get(name);
        let (sums, alike) = suites.entry(suite_of(name)).or_default();
        sums.add(there, here);
        total.add(there, here);
        if there == here && second.is_none_or(|second| second == here) {
            let short = name.strip_prefix(suite_of(name)).unwrap_or(name).trim_start_matches('/');
            alike.push(format!("{short} ({})", there.shown()));
            continue;
        }
        let second = match second {
            None => String::new(),
            Some(second) if second == here => "same".to_string(),
            Some(second) => second.shown(),
        };
        let row = format!("| {name} | {} | {} | {second} | {} |", there.shown(), here.shown(), said(name));
        different.push_str(&format!("{row}\n"));
    }
    let Sums { all, linux, ours, both } = total;
    let sum = format!(
        "Of {all} programs {linux} pass on Linux and {ours} here, {both} of them on both. What differs:"
    );
    let mut equal = String::from(
        "| suite | programs | pass on Linux | here | on both | alike in every count |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for (suite, (Sums { all, linux, ours, both }, alike)) in &suites {
        equal.push_str(&format!("| {suite} | {all} | {linux} | {ours} | {both} | {} |\n", alike.join(", ")));
    }
    Ok(format!("{head}{BEGIN}\n{sum}\n\n{different}\n{equal}{END}{tail}"))
}

/// Prints what differs, and the sums; 1 when a program passes there and not here.
pub fn compare(results: &Results, wanted: impl Fn(&str) -> bool) -> i32 {
    println!("\n| program | Linux: passed/failed/skipped | here |\n| --- | --- | --- |");
    let missing = Outcome::lost();
    let (mut sums, mut worse) = (Sums::default(), 0);
    for (name, there) in results.linux.iter().filter(|(name, _)| wanted(name)) {
        let here = results.ours.get(name).unwrap_or(&missing);
        let second = results.vma_lock.get(name);
        sums.add(there, here);
        worse += usize::from(second.is_some_and(|second| there.passed() && !second.passed()));
        if there != here {
            println!("| {name} | {} | {} |", there.shown(), here.shown());
        }
        if let Some(second) = second.filter(|second| *second != here) {
            println!("| {name} under vma-lock | {} | {} |", there.shown(), second.shown());
        }
    }
    let Sums { all, linux, ours, both } = sums;
    let lost = linux - both;
    println!(
        "\n{all} programs: {linux} pass on Linux, {ours} here; {lost} pass there and not here, {worse} not under vma-lock"
    );
    i32::from(lost + worse > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(statuses: &[(&str, i32)]) -> Outcomes {
        let one =
            |(name, status): &(&str, i32)| (name.to_string(), Outcome { status: *status, tests: [1, 0, 0] });
        statuses.iter().map(one).collect()
    }

    #[test]
    fn what_passes_there_and_not_here_is_a_failure() {
        let both = |linux: i32, ours: &[(&str, i32)]| Results {
            linux: of(&[("mm/a", linux)]),
            ours: of(ours),
            vma_lock: Outcomes::new(),
        };
        assert_eq!(compare(&both(0, &[("mm/a", 1)]), |_| true), 1);
        assert_eq!(compare(&both(0, &[]), |_| true), 1);
        assert_eq!(compare(&both(1, &[("mm/a", 1)]), |_| true), 0);
        assert_eq!(compare(&both(0, &[]), |_| false), 0);
        let mut third = both(0, &[("mm/a", 0)]);
        assert_eq!(compare(&third, |_| true), 0);
        third.vma_lock = of(&[("mm/a", 1)]);
        assert_eq!(compare(&third, |_| true), 1);
    }

    #[test]
    fn the_table_keeps_what_was_said() {
        let results = Results {
            linux: of(&[("mm/a", 0), ("mm/b", 0), ("mm/c", 0)]),
            ours: of(&[("mm/a", 1), ("mm/b", 0), ("mm/c", 0)]),
            vma_lock: of(&[("mm/a", 1), ("mm/b", 0), ("mm/c", 1)]),
        };
        let page = format!("head\n{BEGIN}\n| mm/a | x | y | z | for a reason |\n{END}\ntail\n");
        let page = with_table(&page, &results).unwrap();
        assert!(
            page.contains("| mm/a | passed: 1/0/0 | failed (1): 1/0/0 | same | for a reason |\n"),
            "{page}"
        );
        assert!(page.contains("| mm/c | passed: 1/0/0 | passed: 1/0/0 | failed (1): 1/0/0 |  |\n"), "{page}");
        assert!(page.contains("Of 3 programs 3 pass on Linux and 2 here, 2 of them on both."), "{page}");
        assert!(page.contains("| mm | 3 | 3 | 2 | 2 | b (passed: 1/0/0) |"), "{page}");
        assert!(page.starts_with("head\n") && page.ends_with("tail\n"), "{page}");
    }
}
