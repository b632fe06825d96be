//! `cargo xtask bench --curves`: what operations cost against the number of things around them, in instructions.
//!
//! The program `curves` runs on our kernel, in a machine of one CPU whose clock counts instructions. The result is a table, and a plot for
//! each kind of thing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use guest_link::Ending;
use roundtable::bench::plots::{self, Axes, Line};
use roundtable::bench::{BenchOptions, Subject};
use roundtable::run::Parts;
use roundtable::signals::Signals;
use roundtable::size::Size;

use crate::output_folder;
use crate::profile::write;
use crate::soak::guest::{Boot, End};

const SILENCE: Duration = Duration::from_secs(900);
const LIMIT: Duration = Duration::from_secs(3600);

/// Points by thing and operation: how many things, and the cost.
#[derive(Default)]
struct Curves(BTreeMap<String, BTreeMap<String, Vec<(u64, u64)>>>);

impl Curves {
    /// Takes a line of the program's; says no to others.
    fn add(&mut self, line: &str) -> Option<()> {
        let mut words = line.strip_prefix("curve ")?.split('|');
        let (thing, number, operation) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
        let cost = words.next()?.parse().ok()?;
        let operations = self.0.entry(thing.to_string()).or_default();
        operations.entry(operation.to_string()).or_default().push((number, cost));
        Some(())
    }

    fn table(&self) -> String {
        let mut out = String::new();
        for (thing, operations) in &self.0 {
            let numbers = operations.values().next().map_or(&[][..], Vec::as_slice);
            out += &format!("\n| {thing} |");
            numbers.iter().for_each(|(number, _)| out += &format!(" {number} |"));
            out += &format!("\n| --- |{}\n", " ---: |".repeat(numbers.len()));
            for (operation, points) in operations {
                out += &format!("| {operation} |");
                points.iter().for_each(|(_, cost)| out += &format!(" {cost} |"));
                out.push('\n');
            }
        }
        out
    }
}

/// Measures, prints the tables and draws.
pub fn run(options: &BenchOptions, subject: &Subject) -> Result<i32> {
    let parts = Parts::in_folder(&output_folder());
    let boot = Boot {
        kernel: subject.kernel.clone(),
        cpus: 1,
        memory: Size::gibibytes(4),
        icount: true,
        parameters: subject.parameters.clone(),
        program: vec!["curves".to_string()],
        qemu: Vec::new(),
        files: Vec::new(),
        silence: SILENCE,
        limit: LIMIT,
    };
    let mut curves = Curves::default();
    let result = boot.run(&parts, &Signals::catch()?, &parts.scratch.join("logs/curves.log"), |line| {
        println!("{line}");
        curves.add(line);
    })?;
    ensure!(result.end == End::Program(Ending::Code(0)), "the guest ended with {:?}", result.end);
    print!("{}", curves.table());
    for (thing, operations) in &curves.0 {
        let lines: Vec<Line> = operations
            .iter()
            .map(|(operation, points)| Line {
                name: operation.split(' ').next().unwrap_or_default().to_string(),
                points: points.iter().map(|(number, cost)| (*number as f64, *cost as f64)).collect(),
            })
            .collect();
        let axes = Axes {
            title: &format!("Instructions against {thing}"),
            x: thing,
            y: "instructions",
            write_x: |value| format!("{value:.0}"),
            write_y: |value| format!("{value:.0}"),
        };
        if let Some(svg) = plots::log_log(&axes, &lines)? {
            let path = options.out.join(format!("curve-{}.svg", thing.replace(' ', "-")));
            write(&path, &svg)?;
            println!("{}", path.display());
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_a_table() {
        let mut curves = Curves::default();
        assert_eq!(curves.add("# a remark"), None);
        for line in ["curve sharers|1|punch|700", "curve sharers|100|punch|710"] {
            assert_eq!(curves.add(line), Some(()));
        }
        assert_eq!(curves.table(), "\n| sharers | 1 | 100 |\n| --- | ---: | ---: |\n| punch | 700 | 710 |\n");
    }
}
