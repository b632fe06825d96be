//! Leaves out what a failure does not need: delta debugging.

use std::fmt::Write;

use anyhow::Result;

/// One call of a round: its actor and index.
pub type Call = (u32, u32);

/// Gives a part of `calls` that still fails, of which nothing more can be left out, one chunk at a time. `fails` may not be sure each
/// time: what it says no to stays.
pub fn shrink(calls: Vec<Call>, mut fails: impl FnMut(&[Call]) -> Result<bool>) -> Result<Vec<Call>> {
    let mut calls = calls;
    // A whole actor at once, as often it is one of several.
    let mut actors: Vec<u32> = calls.iter().map(|&(actor, _)| actor).collect();
    actors.dedup();
    for actor in actors {
        let rest: Vec<Call> = calls.iter().copied().filter(|&(other, _)| other != actor).collect();
        if !rest.is_empty() && fails(&rest)? {
            calls = rest;
        }
    }
    let mut size = calls.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        let mut shorter = false;
        while start < calls.len() && calls.len() > 1 {
            let end = (start + size).min(calls.len());
            let rest: Vec<Call> = calls[..start].iter().chain(&calls[end..]).copied().collect();
            if !rest.is_empty() && fails(&rest)? {
                calls = rest;
                shorter = true;
            } else {
                start = end;
            }
        }
        // At the smallest size again until nothing falls away any more: a call may have been needed only by one that is gone.
        if size > 1 {
            size /= 2;
        } else if !shorter {
            break;
        }
    }
    Ok(calls)
}

/// As the fuzzer's `--keep` has it.
pub fn keep(calls: &[Call]) -> String {
    let mut out = String::new();
    let mut last: Option<Call> = None;
    let mut at = 0;
    while let Some(&(actor, from)) = calls.get(at) {
        let mut to = from;
        while calls.get(at + 1) == Some(&(actor, to + 1)) {
            (at, to) = (at + 1, to + 1);
        }
        at += 1;
        let _ = match last.replace((actor, to)) {
            Some((same, _)) if same == actor => write!(out, ","),
            Some(_) => write!(out, ";{actor}:"),
            None => write!(out, "{actor}:"),
        };
        let _ = if from == to { write!(out, "{from}") } else { write!(out, "{from}-{to}") };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Call> {
        (0..3).flat_map(|actor| (0..100).map(move |index| (actor, index))).collect()
    }

    #[test]
    fn only_what_is_needed_stays() {
        let needed = [(1, 5), (1, 77), (2, 0)];
        let mut asked = 0;
        let left = shrink(all(), |calls| {
            asked += 1;
            Ok(needed.iter().all(|call| calls.contains(call)))
        });
        assert_eq!(left.unwrap(), needed);
        assert!(asked < 100, "{asked} boots");
    }

    #[test]
    fn a_call_that_was_needed_by_another_only_goes_too() {
        // With (1, 50) there has to be (1, 3) before it, else neither is needed.
        let left = shrink(all(), |calls| {
            let has = |call| calls.contains(&call);
            Ok(has((1, 70)) && (has((1, 3)) || !has((1, 50))))
        });
        assert_eq!(left.unwrap(), [(1, 70)]);
    }

    #[test]
    fn what_always_fails_ends_with_one_call() {
        assert_eq!(shrink(all(), |_| Ok(true)).unwrap().len(), 1);
    }

    #[test]
    fn ranges_are_written_as_the_fuzzer_reads_them() {
        assert_eq!(keep(&[(0, 3), (0, 4), (0, 5), (0, 9), (2, 44)]), "0:3-5,9;2:44");
        assert_eq!(keep(&[]), "");
    }
}
