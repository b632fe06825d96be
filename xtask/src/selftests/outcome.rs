//! How programs ended, as a guest prints it and as it is kept between runs.

use std::collections::BTreeMap;

/// The outcomes of one kernel by program; arguments are part of the name.
pub type Outcomes = BTreeMap<String, Outcome>;

/// How one program ended on one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub status: i32,
    /// Its own tests: passed, failed, left out.
    pub tests: [usize; 3],
}

/// The status of a program that has taken the machine along.
const LOST: i32 = -1;

impl Outcome {
    pub fn lost() -> Outcome {
        Outcome { status: LOST, ..Outcome::default() }
    }

    pub fn passed(&self) -> bool {
        self.status == 0
    }

    pub fn shown(&self) -> String {
        let how = match self.status {
            0 => "passed".to_string(),
            4 => "skipped".to_string(),
            137 => "too long".to_string(),
            LOST => "machine lost".to_string(),
            status => format!("failed ({status})"),
        };
        match self.tests {
            [0, 0, 0] => how,
            [passed, failed, skipped] => format!("{how}: {passed}/{failed}/{skipped}"),
        }
    }
}

/// A line for each program: its name, how it ended, its own tests.
pub fn lines(results: &Outcomes) -> String {
    let line = |(name, outcome): (&String, &Outcome)| {
        let [passed, failed, skipped] = outcome.tests;
        format!("{name}\t{}\t{passed}\t{failed}\t{skipped}\n", outcome.status)
    };
    results.iter().map(line).collect()
}

/// What [`lines`] has written.
pub fn of_lines(text: &str) -> Outcomes {
    text.lines().filter_map(of_line).collect()
}

fn of_line(line: &str) -> Option<(String, Outcome)> {
    let mut fields = line.split('\t');
    let name = fields.next()?.to_string();
    let status = fields.next()?.parse().ok()?;
    let mut test = || fields.next()?.parse().ok();
    Some((name, Outcome { status, tests: [test()?, test()?, test()?] }))
}

/// How each program ended, from what one boot printed; and the one that had begun and did not end.
pub fn of_log(log: &[u8]) -> (Outcomes, Option<String>) {
    let text = String::from_utf8_lossy(log);
    let mut found = BTreeMap::new();
    let mut now: Option<(String, [usize; 3])> = None;
    for line in text.lines().map(|line| line.trim_end_matches('\r')) {
        if let Some(name) = line.strip_prefix("##BEGIN ") {
            now = Some((name.to_string(), [0; 3]));
        } else if let Some(status) = line.strip_prefix("##END ") {
            if let Some((name, tests)) = now.take() {
                found.insert(name, Outcome { status: status.trim().parse().unwrap_or(LOST), tests });
            }
        } else if let Some((_, tests)) = &mut now {
            let skipped = line.contains("# SKIP");
            let line = line.trim_start();
            match line.split(' ').next() {
                Some("ok") if skipped => tests[2] += 1,
                Some("ok") => tests[0] += 1,
                Some("not") if line.starts_with("not ok") => tests[1] += 1,
                _ => {}
            }
        }
    }
    (found, now.map(|(name, _)| name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_tells_how_programs_ended() {
        let log = b"boot\n##BEGIN mm/a\r\nok 1 x\nnot ok 2 y\nok 3 z # SKIP no\n# ok 4\n##END 1\n##BEGIN mm/b 3\n##END 0\n##BEGIN mm/c\npanic\n";
        let (found, open) = of_log(log);
        assert_eq!(found["mm/a"], Outcome { status: 1, tests: [1, 1, 1] });
        assert_eq!(found["mm/b 3"], Outcome { status: 0, tests: [0; 3] });
        assert_eq!(found["mm/a"].shown(), "failed (1): 1/1/1");
        assert_eq!((found.len(), open.as_deref()), (2, Some("mm/c")));
    }

    #[test]
    fn results_are_kept_as_lines() {
        let all = BTreeMap::from([
            ("mm/a b".to_string(), Outcome { status: -1, tests: [1, 2, 3] }),
            ("mm/c".to_string(), Outcome::default()),
        ]);
        assert_eq!(of_lines(&lines(&all)), all);
        assert_eq!(of_line("mm/a\t1"), None);
    }
}
