//! The figures that a job prints, as a table: of one kernel, or of ours beside Linux.

use std::fmt;

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};

/// What a line with a figure begins with.
const START: &str = "figure: ";

/// A row's name, a figure's name and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Figure {
    key: (String, String),
    value: String,
}

/// The figures of one run, in the order in which they were printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures(Vec<Figure>);

impl Figures {
    /// The figures in a console's text: the lines `figure: ROW | NAME | VALUE`.
    pub fn find(text: &str) -> Figures {
        let read = |line: &str| {
            let (row, rest) = line.trim_end().strip_prefix(START)?.split_once(" | ")?;
            let (name, value) = rest.split_once(" | ")?;
            let key = (row.trim().to_string(), name.trim().to_string());
            Some(Figure { key, value: value.trim().to_string() })
        };
        Figures(text.lines().filter_map(read).collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The figure with this name in a row.
    pub fn value(&self, row: &str, name: &str) -> Option<&str> {
        self.get(&(row.to_string(), name.to_string()))
    }

    fn get(&self, key: &(String, String)) -> Option<&str> {
        Some(&self.0.iter().find(|figure| figure.key == *key)?.value)
    }
}

/// As the job printed them.
impl fmt::Display for Figures {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut figures = self.0.iter();
        figures.try_for_each(|Figure { key, value }| writeln!(out, "{START}{} | {} | {value}", key.0, key.1))
    }
}

/// A table of what was found on each kernel. With two kernels the last column is the first's figure divided
/// by the second's.
pub fn table(runs: &[(&str, Figures)]) -> String {
    let mut keys: Vec<&(String, String)> = Vec::new();
    for figure in runs.iter().flat_map(|(_, figures)| &figures.0) {
        if !keys.contains(&&figure.key) {
            keys.push(&figure.key);
        }
    }
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    let mut header = vec!["run", "figure"];
    header.extend(runs.iter().map(|(name, _)| *name));
    let pair = (runs.len() == 2).then(|| (&runs[0].1, &runs[1].1));
    if pair.is_some() {
        header.push("ratio");
    }
    table.set_header(header);
    for key in keys {
        let mut row = vec![key.0.clone(), key.1.clone()];
        row.extend(runs.iter().map(|(_, figures)| figures.get(key).unwrap_or("-").to_string()));
        if let Some((first, second)) = pair {
            let ratio = first.get(key).zip(second.get(key)).and_then(|(a, b)| ratio(a, b));
            row.push(ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")));
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// A value's number and its unit.
pub fn number(text: &str) -> Option<(f64, &str)> {
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    Some((number.replace(',', "").parse().ok()?, unit))
}

/// The quotient of two numbers of the same unit.
pub fn ratio(first: &str, second: &str) -> Option<f64> {
    let ((first, unit), (second, other)) = (number(first)?, number(second)?);
    (unit == other && second != 0.0).then(|| first / second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_among_other_lines() {
        let text = "== a step\nfigure: 10 clients | TPS | 512.5 \r\nfigure: broken\nno figure: a | b | c\n";
        let figures = Figures::find(text);
        assert_eq!(figures.get(&("10 clients".into(), "TPS".into())), Some("512.5"));
        assert_eq!(figures.0.len(), 1);
        assert_eq!(Figures::find(&figures.to_string()), figures);
        assert!(Figures::find("nothing").is_empty());
    }

    #[test]
    fn two_kernels_are_held_side_by_side() {
        let ours = Figures::find("figure: a | time | 5 ms\nfigure: a | works | yes\n");
        let linux =
            Figures::find("figure: a | time | 20 ms\nfigure: a | works | yes\nfigure: b | time | 1 s\n");
        let text = table(&[("ours", ours.clone()), ("Linux", linux)]);
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect();
        assert_eq!(rows[0], ["run", "figure", "ours", "Linux", "ratio"]);
        assert_eq!(rows[2], ["a", "time", "5 ms", "20 ms", "0.25"]);
        assert_eq!(rows[3], ["a", "works", "yes", "yes", ""]);
        assert_eq!(rows[4], ["b", "time", "-", "1 s", ""]);
        assert!(!table(&[("ours", ours)]).contains("ratio"));
    }

    #[test]
    fn only_numbers_of_one_unit_have_a_ratio() {
        assert_eq!(ratio("1,000 KiB", "500 KiB"), Some(2.0));
        for (first, second) in [("1 s", "1 ms"), ("1", "0"), ("yes", "yes")] {
            assert_eq!(ratio(first, second), None);
        }
    }
}
