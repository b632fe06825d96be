//! The table on the terminal.

use std::fmt::Write;

use super::goals::{figures, verdicts};
use super::{Measured, Results};

/// Draws it.
pub fn draw(results: &Results) -> String {
    let mut out = String::new();
    let linux = results.subjects.iter().find(|one| one.name == "linux");
    let _ = write!(out, "\n{:<48}", "");
    for one in &results.subjects {
        let _ = write!(out, " {:>18}", one.name);
    }
    let _ = writeln!(out, " {:>8}", "goal");
    for figure in figures(results) {
        let _ = write!(out, "{:<48}", figure.name);
        for one in &results.subjects {
            let cell = match figure.of(one) {
                None => "-".to_string(),
                Some(value) => {
                    let ratio = ratio(one, linux, value, |linux| figure.of(linux));
                    format!("{}{ratio}", figure.unit.write(value))
                }
            };
            let _ = write!(out, " {cell:>18}");
        }
        let goal = match figure.goal {
            None => String::new(),
            Some(0.0) => "0".to_string(),
            Some(goal) => format!("<= {goal}"),
        };
        let _ = writeln!(out, " {goal:>8}");
    }
    let _ = writeln!(
        out,
        "\nIn parentheses: divided by Linux's figure, which is what the goals are about. Costs are the \
         least of several runs.\n"
    );
    for verdict in verdicts(results) {
        let mark = if verdict.holds { "holds  " } else { "REFUTED" };
        let _ = writeln!(out, "{mark}  {}: {}", verdict.claim, verdict.figures);
    }
    for one in &results.subjects {
        for failure in &one.failures {
            let _ = writeln!(out, "\n{} failed: {failure}", one.name);
        }
    }
    out
}

fn ratio(
    one: &Measured,
    linux: Option<&Measured>,
    value: f64,
    read: impl Fn(&Measured) -> Option<f64>,
) -> String {
    let Some(linux) = linux.filter(|linux| linux.name != one.name) else { return String::new() };
    match read(linux) {
        Some(base) if base > 0.0 => format!(" ({:.2})", value / base),
        _ => String::new(),
    }
}
