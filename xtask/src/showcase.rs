//! `cargo xtask bench --programs`: PostgreSQL with many clients on both kernels in one run, beside what is to hold.
//!
//! What runs is the preset `postgres`, in a larger machine: the table is that of `cargo xtask run --beside-linux -- postgres`.

use std::fmt::Write;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use roundtable::bench::plots::{self, Axes, Line};
use roundtable::bench::{BenchOptions, processor};
use roundtable::figures::{self, Figures};
use roundtable::options::{Kernel, RunOptions};
use roundtable::preset::Preset;
use roundtable::run::{self, Parts};

use crate::build::{self, BuildOptions};
use crate::{linux, output_folder, profile, root, setup};

/// What is run, as a user would type it behind `cargo xtask run`. The servers' memory is such that a process's page tables for it
/// are more than those of all else that it has.
const FULL: &str = "--memory 10G --huge-2m 600 -e SHARED_BUFFERS=1GB -e SCALE=8 -e TRANSACTIONS=20000 -e \"CLIENTS=10 100 1000\" -- postgres";
/// The same with `--quick`: the preset as it is.
const QUICK: &str = "-- postgres";
/// What one kernel may take, in seconds: processors are emulated, and the host may be busy.
const LIMIT: u64 = 3 * 60 * 60;
/// On a busy host Linux's check of the emulated timer fails, which is not what is asked.
const PARAMETER: &str = "no_timer_check";

/// Where the table goes, and the lines between which it is.
const PAGE: &str = "docs/programs.md";
const BEGIN: &str = "<!-- begin of the table: cargo xtask bench --programs --write -->";
const END: &str = "<!-- end of the table: cargo xtask bench --programs --write -->";
/// Where the figures are kept, below the folder of the benchmark's results.
const KEPT: &str = "programs.txt";
/// What stands before the figures of each kernel there.
const KERNEL: &str = "kernel: ";

/// A figure divided by Linux's.
#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, ratio: f64) -> bool {
        match self {
            Bound::AtLeast(bound) => ratio >= bound,
            Bound::AtMost(bound) => ratio <= bound,
        }
    }

    fn shown(self) -> String {
        match self {
            Bound::AtLeast(bound) => format!("at least {bound:.2}"),
            Bound::AtMost(bound) => format!("at most {bound:.2}"),
        }
    }
}

/// What is to hold with the most clients: a figure of the preset, with huge pages and without.
const BOUNDS: [(&str, Bound, Bound); 4] = [
    ("TPS", Bound::AtLeast(1.0), Bound::AtLeast(1.0)),
    ("connect, median", Bound::AtMost(0.5), Bound::AtMost(0.5)),
    ("connect, 99 %", Bound::AtMost(0.5), Bound::AtMost(0.5)),
    ("page tables of a client after the query", Bound::AtMost(1.0 / 3.0), Bound::AtMost(0.1)),
];
/// What is drawn against the number of clients.
const DRAWN: [&str; 5] = [
    "TPS",
    "connect, median",
    "connect, 99 %",
    "page tables of a client after the query",
    "memory of a client after the query",
];

/// The figures of each kernel, ours before Linux's.
type Runs = Vec<(&'static str, Figures)>;

/// Runs the preset on both kernels, or reads what an earlier run has kept.
pub fn run(options: &BenchOptions) -> Result<i32> {
    let line = if options.quick { QUICK } else { FULL };
    let (status, how, runs) = match &options.from {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let (how, runs) = read(&text)?;
            (0, how, runs)
        }
        None => measure(line)?,
    };
    if options.from.is_none() {
        keep(options, KEPT, &kept(&how, &runs))?;
    }
    let (table, bounds) = (figures::table(&runs), bounds(&runs));
    println!("\n{how}\n\n{table}\n\n{bounds}");
    let mut page = format!(
        "<!DOCTYPE html><html lang=\"en\"><meta charset=\"utf-8\"><title>PostgreSQL on both kernels</title>\
         <h1>PostgreSQL on both kernels</h1><p>{how}</p><pre>{bounds}\n{table}</pre>"
    );
    for figure in DRAWN {
        let Some(svg) = plot(figure, &runs)? else { continue };
        keep(options, &format!("programs-{}.svg", profile::file_name(figure)), &svg)?;
        page += &svg;
    }
    keep(options, "programs.html", &format!("{page}</html>\n"))?;
    println!("With plots: {}", options.out.join("programs.html").display());
    if options.write {
        ensure!(status == 0, "the run failed: nothing is written into {PAGE}");
        let path = root().join(PAGE);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        fs::write(&path, with_table(&text, &format!("{how}\n\n{bounds}\n{table}\n"))?)
            .with_context(|| path.display().to_string())?;
    }
    Ok(status)
}

/// Gives the exit status, how it was measured, and what.
fn measure(line: &str) -> Result<(i32, String, Runs)> {
    setup::qemu()?;
    setup::host_libc()?;
    linux::fetch()?;
    build::programs()?;
    let parts = Parts { presets: root().join("presets"), ..Parts::in_folder(&output_folder()) };
    build::kernel(&BuildOptions::default(), &parts.kernel)?;
    let mut given = parsed(line)?;
    given.time_limit = Some(LIMIT);
    given.parameters.push(PARAMETER.to_string());
    let preset = Preset::find(&given, &parts.presets)?.context("the preset is not there")?;
    eprintln!("xtask: cargo xtask run --beside-linux {line}");
    let start = Instant::now();
    let (status, runs) = run::run_preset_on(&[Kernel::Roundtable, Kernel::Linux], &preset, &given, &parts)?;
    let minutes = start.elapsed().as_secs().div_ceil(60);
    let how = format!("`cargo xtask run --beside-linux {line}` in {minutes} minutes on {}.", processor());
    Ok((status, how, runs))
}

/// The options of a run, from a line for the shell.
fn parsed(line: &str) -> Result<RunOptions> {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunOptions,
    }
    // In quotes is what has blanks; no line of ours has more of a shell's language.
    let mut words = vec!["run".to_string()];
    for (index, part) in line.split('"').enumerate() {
        match index % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_string)),
            _ => words.push(part.to_string()),
        }
    }
    Ok(Line::try_parse_from(words)?.run)
}

/// Writes a file into the folder of the results.
fn keep(options: &BenchOptions, name: &str, text: &str) -> Result<()> {
    fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    let path = options.out.join(name);
    fs::write(&path, text).with_context(|| path.display().to_string())
}

/// The text that `read` reads.
fn kept(how: &str, runs: &Runs) -> String {
    let mut text = format!("{how}\n");
    for (name, figures) in runs {
        // Writing to a string does not fail.
        let _ = write!(text, "{KERNEL}{name}\n{figures}");
    }
    text
}

fn read(text: &str) -> Result<(String, Runs)> {
    let (how, rest) = text.split_once('\n').context("the file is empty")?;
    let mut runs = Runs::new();
    for part in rest.split(KERNEL).skip(1) {
        let (name, figures) = part.split_once('\n').unwrap_or((part, ""));
        let name = if name == "Linux" { "Linux" } else { "Roundtable" };
        runs.push((name, Figures::find(figures)));
    }
    ensure!(runs.len() == 2, "there are not two kernels' figures in it");
    Ok((how.to_string(), runs))
}

fn row(clients: u32, huge: &str) -> String {
    format!("{clients} clients, huge pages {huge}")
}

/// Numbers of clients that there are figures of, on any of the kernels.
fn clients(runs: &Runs) -> Vec<u32> {
    let known = |number: &u32| {
        ["on", "off"]
            .iter()
            .any(|huge| runs.iter().any(|(_, all)| all.value(&row(*number, huge), "TPS").is_some()))
    };
    [10, 100, 1000].into_iter().filter(known).collect()
}

/// What is to hold with the most clients, and whether it does; in Markdown.
fn bounds(runs: &Runs) -> String {
    let most = clients(runs).into_iter().max().unwrap_or_default();
    let mut out = format!(
        "| {most} clients | huge pages | divided by Linux's | is to be | |\n| --- | --- | ---: | --- | --- |\n"
    );
    for (figure, on, off) in BOUNDS {
        for (huge, bound) in [("on", on), ("off", off)] {
            let value = |run: usize| runs.get(run).and_then(|(_, all)| all.value(&row(most, huge), figure));
            let ratio = value(0).zip(value(1)).and_then(|(ours, linux)| figures::ratio(ours, linux));
            let (shown, verdict) = match ratio {
                None => ("-".to_string(), "not measured"),
                Some(ratio) if bound.holds(ratio) => (format!("{ratio:.2}"), "holds"),
                Some(ratio) => (format!("{ratio:.2}"), "missed"),
            };
            let _ = writeln!(out, "| {figure} | {huge} | {shown} | {} | {verdict} |", bound.shown());
        }
    }
    out
}

/// A figure against the number of clients: a line for each kernel with huge pages and without.
fn plot(figure: &str, runs: &Runs) -> Result<Option<String>> {
    let numbers = clients(runs);
    let unit = runs
        .iter()
        .find_map(|(_, all)| Some(figures::number(all.value(&row(*numbers.first()?, "on"), figure)?)?.1));
    let axes = Axes {
        title: figure,
        x: "clients",
        y: unit.filter(|unit| !unit.is_empty()).unwrap_or(figure),
        write_x: |value| format!("{value:.0}"),
        write_y: |value| format!("{value}"),
    };
    let point = |all: &Figures, number: u32, huge: &str| {
        Some((f64::from(number), figures::number(all.value(&row(number, huge), figure)?)?.0))
    };
    let mut lines = Vec::new();
    for (name, all) in runs {
        for huge in ["on", "off"] {
            let points = numbers.iter().filter_map(|number| point(all, *number, huge)).collect();
            lines.push(Line { name: format!("{name}, {huge}"), points });
        }
    }
    plots::log_log(&axes, &lines)
}

/// The page with what was measured in its place.
fn with_table(page: &str, table: &str) -> Result<String> {
    let (head, rest) = page.split_once(BEGIN).context("the page has no place for the table")?;
    let (_, tail) = rest.split_once(END).context("the page has no end of the table")?;
    Ok(format!("{head}{BEGIN}\n{table}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs() -> Runs {
        let of = |tps: &str, tables: &str| {
            let mut text = String::new();
            for clients in [10, 1000] {
                for huge in ["on", "off"] {
                    let row = row(clients, huge);
                    let _ = writeln!(text, "figure: {row} | TPS | {tps}");
                    let _ =
                        writeln!(text, "figure: {row} | page tables of a client after the query | {tables}");
                }
            }
            Figures::find(&text)
        };
        vec![("Roundtable", of("1200.5", "120.0 KiB")), ("Linux", of("1000.0", "600.0 KiB"))]
    }

    #[test]
    fn what_is_to_hold_is_told_of_the_most_clients() {
        let text = bounds(&runs());
        assert!(text.starts_with("| 1000 clients |"), "{text}");
        assert!(text.contains("| TPS | on | 1.20 | at least 1.00 | holds |\n"), "{text}");
        assert!(
            text.contains("| page tables of a client after the query | on | 0.20 | at most 0.33 | holds |\n"),
            "{text}"
        );
        assert!(
            text.contains(
                "| page tables of a client after the query | off | 0.20 | at most 0.10 | missed |\n"
            ),
            "{text}"
        );
        assert!(text.contains("| connect, median | on | - | at most 0.50 | not measured |\n"), "{text}");
    }

    #[test]
    fn what_was_kept_is_read_again() {
        assert_eq!(read(&kept("a run", &runs())).unwrap(), ("a run".to_string(), runs()));
        assert!(read("a run\nkernel: Linux\n").is_err() && read("").is_err());
        let svg = plot("TPS", &runs()).unwrap().unwrap();
        assert!(svg.contains("Roundtable, off") && svg.contains("Linux, on"));
        assert!(plot("connect, median", &runs()).unwrap().is_none());
    }

    #[test]
    fn the_page_has_a_place_for_the_table() {
        let text = fs::read_to_string(root().join(PAGE)).unwrap();
        let page = with_table(&text, "the table\n").unwrap();
        assert!(page.contains(&format!("{BEGIN}\nthe table\n{END}")));
        assert_eq!(with_table(&page, "").unwrap().len() + "the table\n".len(), page.len());
    }

    #[test]
    fn the_preset_is_run_with_what_it_knows() {
        for line in [FULL, QUICK] {
            let given = parsed(line).unwrap();
            let preset = Preset::find(&given, &root().join("presets")).unwrap().unwrap();
            for variable in &given.environment {
                let name = variable.split('=').next().unwrap();
                assert!(preset.environment.contains_key(name), "{name}");
            }
            let steps: String = preset.steps.iter().map(|step| step.run.as_str()).collect();
            assert!(steps.contains("row=\"$clients clients, huge pages $huge\""));
        }
        assert!(parsed(FULL).unwrap().environment.contains(&"CLIENTS=10 100 1000".to_string()));
    }
}
