//! The lines in which a test program reports its subtests.
//!
//! A line is `ok NAME`, `not ok NAME: reason` or `skip NAME: reason`; everything else is output.

/// What a subtest came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// One subtest's line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subtest {
    pub name: String,
    pub outcome: Outcome,
}

/// Reads one line of a test program's output.
pub fn parse(line: &str) -> Option<Subtest> {
    let line = line.trim_end();
    let with_reason = |rest: &str| {
        let (name, reason) = rest.split_once(": ").unwrap_or((rest.trim_end_matches(':'), "no reason given"));
        is_name(name).then(|| (name.to_string(), reason.to_string()))
    };
    if let Some(rest) = line.strip_prefix("not ok ") {
        let (name, reason) = with_reason(rest)?;
        return Some(Subtest { name, outcome: Outcome::Failed(reason) });
    }
    if let Some(rest) = line.strip_prefix("skip ") {
        let (name, reason) = with_reason(rest)?;
        return Some(Subtest { name, outcome: Outcome::Skipped(reason) });
    }
    let name = line.strip_prefix("ok ")?;
    is_name(name).then(|| Subtest { name: name.to_string(), outcome: Outcome::Passed })
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-:./".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(line: &str) -> Option<Outcome> {
        parse(line).map(|subtest| {
            assert_eq!(subtest.name, "fork_copies");
            subtest.outcome
        })
    }

    #[test]
    fn the_three_kinds_of_line_are_told_apart() {
        assert_eq!(outcome("ok fork_copies\r"), Some(Outcome::Passed));
        let reason = "left: 1, right: 2".to_string();
        assert_eq!(outcome("not ok fork_copies: left: 1, right: 2"), Some(Outcome::Failed(reason)));
        let reason = "no 1 GiB pages".to_string();
        assert_eq!(outcome("skip fork_copies: no 1 GiB pages"), Some(Outcome::Skipped(reason)));
        assert!(matches!(outcome("not ok fork_copies"), Some(Outcome::Failed(_))));
    }

    #[test]
    fn other_output_is_no_result() {
        for line in
            ["", "okay", "ok", "ok ", "ok so this is prose", "it is not ok x: y", "skip this one please"]
        {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }
}
