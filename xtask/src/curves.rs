//! `cargo xtask bench --curves`: what operations cost against the number of things around them.
//!
//! The program `curves` counts them on our kernel, in a machine of one CPU whose clock counts instructions. The result is a table and a
//! plot for each of the things.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use guest_link::Ending;
use roundtable::bench::plots::{self, Axes, Line};
use roundtable::bench::{BenchOptions, Subject};
use roundtable::run::Parts;
use roundtable::signals::Signals;
use roundtable::size::Size;

use crate::soak::guest::{Boot, End};

/// How long the program may say nothing, and how long it may take, on a busy machine.
const SILENCE: Duration = Duration::from_secs(900);
const LIMIT: Duration = Duration::from_secs(3600);

/// A point: the thing, how many there are, the operation, what it costs.
struct Point {
    thing: String,
    number: u64,
    operation: String,
    cost: u64,
}

/// Counts on a kernel of ours.
pub fn run(options: &BenchOptions, subject: &Subject) -> Result<i32> {
    let parts = Parts::in_folder(&crate::output_folder());
    let boot = Boot {
        kernel: subject.kernel.clone(),
        cpus: 1,
        memory: Size::gibibytes(6),
        icount: true,
        parameters: subject.parameters.clone(),
        program: vec!["curves".to_string()],
        qemu: Vec::new(),
        files: Vec::new(),
        silence: SILENCE,
        limit: LIMIT,
    };
    let mut lines = Vec::new();
    let result = boot.run(&parts, &Signals::catch()?, &parts.scratch.join("logs/curves.log"), |line| {
        lines.push(line.to_string());
    })?;
    ensure!(result.end == End::Program(Ending::Code(0)), "the guest ended with {:?}", result.end);
    draw(options, &lines.join("\n"))
}

/// Draws what an earlier run of the program printed.
pub fn draw_from(options: &BenchOptions, printed: &Path) -> Result<i32> {
    draw(options, &std::fs::read_to_string(printed).with_context(|| printed.display().to_string())?)
}

fn draw(options: &BenchOptions, printed: &str) -> Result<i32> {
    let points = read(printed)?;
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    for thing in names(points.iter().map(|point| &point.thing)) {
        println!("{}", table(thing, &points));
        let Some(svg) = plot(thing, &points)? else { continue };
        let path = options.out.join(format!("curve-{}.svg", crate::profile::file_name(thing)));
        std::fs::write(&path, svg).with_context(|| path.display().to_string())?;
        println!("{}\n", path.display());
    }
    Ok(0)
}

fn read(printed: &str) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    for line in printed.lines().filter_map(|line| line.trim().strip_prefix("curve ")) {
        let [thing, number, operation, cost] = line.split('|').collect::<Vec<_>>()[..] else {
            bail!("the program printed {line:?}");
        };
        let (thing, operation) = (thing.to_string(), operation.to_string());
        points.push(Point { thing, number: number.parse()?, operation, cost: cost.parse()? });
    }
    ensure!(!points.is_empty(), "the program printed no point");
    Ok(points)
}

/// Each name once, in the order in which they came.
fn names<'p>(all: impl Iterator<Item = &'p String>) -> Vec<&'p str> {
    let mut names: Vec<&str> = Vec::new();
    for name in all {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

fn of<'p>(thing: &str, points: &'p [Point]) -> Vec<&'p Point> {
    points.iter().filter(|point| point.thing == thing).collect()
}

/// In Markdown: a column for each number.
fn table(thing: &str, points: &[Point]) -> String {
    let points = of(thing, points);
    let mut numbers: Vec<u64> = points.iter().map(|point| point.number).collect();
    numbers.dedup();
    let mut out = format!("| {thing} |");
    for number in &numbers {
        out +=
            &format!(" {} |", if thing.starts_with("bytes") { bytes(*number) } else { thousands(*number) });
    }
    out += &format!("\n| --- |{}\n", " ---: |".repeat(numbers.len()));
    for operation in names(points.iter().map(|point| &point.operation)) {
        let row = points.iter().filter(|point| point.operation == operation);
        let costs: String = row.map(|point| format!(" {} |", thousands(point.cost))).collect();
        out += &format!("| {operation} |{costs}\n");
    }
    out
}

fn plot(thing: &str, points: &[Point]) -> Result<Option<String>> {
    let points = of(thing, points);
    let is_bytes = thing.starts_with("bytes");
    let axes = Axes {
        title: &format!("instructions, by {thing}"),
        x: thing,
        y: "instructions",
        write_x: if is_bytes { |value| bytes(value as u64) } else { |value| thousands(value as u64) },
        write_y: |value| thousands(value as u64),
    };
    let line = |operation: &str| Line {
        name: operation.to_string(),
        points: points
            .iter()
            .filter(|point| point.operation == operation)
            .map(|point| (point.number as f64, point.cost as f64))
            .collect(),
    };
    let lines: Vec<Line> = names(points.iter().map(|point| &point.operation)).into_iter().map(line).collect();
    plots::log_log(&axes, &lines)
}

/// A number with a comma for each thousand.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number of bytes in the largest unit of which it is 1 or more.
fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (number.max(1).ilog2() / 10).min(4);
    format!("{} {}", number >> (10 * unit), UNITS[unit as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "# boot\ncurve sharers|1|mmap|4634\ncurve sharers|1|punch|2965\ncurve sharers|10000|mmap|4693\r\n\
        curve sharers|10000|punch|3031\ncurve bytes of the file|2097152|mmap|6804\n";

    #[test]
    fn points_become_tables_and_plots() {
        let points = read(PRINTED).unwrap();
        assert_eq!(
            table("sharers", &points),
            "| sharers | 1 | 10,000 |\n| --- | ---: | ---: |\n| mmap | 4,634 | 4,693 |\n| punch | 2,965 | 3,031 |\n"
        );
        assert!(table("bytes of the file", &points).starts_with("| bytes of the file | 2 MiB |\n"));
        let svg = plot("sharers", &points).unwrap().unwrap();
        assert!(svg.contains("instructions, by sharers") && svg.contains("punch"));
        assert!(read("nothing").is_err() && read("curve a|1|b\n").is_err());
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([2 << 20, 512 << 20, 4 << 40].map(bytes), ["2 MiB", "512 MiB", "4 TiB"]);
    }
}
