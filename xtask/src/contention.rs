//! `cargo xtask bench --contention`: which cache lines CPUs take from each other, counted on simulated CPUs.
//!
//! The crate `hugetlb-contention` is built once more, with a compiler that calls a function before each load and store.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use roundtable::bench::BenchOptions;
use roundtable::bench::plots::{self, Axes, Line};

use crate::toolchain::own_cargo;

/// Where the build has no flags of its own, the flags would hold for build scripts, too.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Calls before each load and store, which we answer ourselves; nothing is linked to that is built without.
const FLAGS: &str =
    "-Zsanitizer=thread -Zexternal-clangrt -Cunsafe-allow-abi-mismatch=sanitizer --cfg roundtable_counted";
/// What stands for none on an axis without zero.
const NONE: f64 = 0.1;

/// Cargo, for the counting build.
pub fn cargo(subcommand: &str) -> Command {
    let mut command = own_cargo(subcommand);
    // A sanitizer without its runtime is what a stable compiler refuses; our code has no such wishes.
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", FLAGS);
    command.args(["--quiet", "--package", "hugetlb-contention", "--profile", "models", "--target", TARGET]);
    command.arg("--target-dir").arg(crate::root().join("target/contention"));
    command
}

/// Counts of one protocol, operation and number of CPUs.
struct Count {
    hot: u64,
    moves: f64,
    interrupts: f64,
}

/// By operation, protocol and CPUs, each in the order in which they came.
#[derive(Default)]
struct Counts {
    operations: Vec<String>,
    protocols: Vec<String>,
    cpus: BTreeSet<u32>,
    counts: BTreeMap<(String, String, u32), Count>,
}

/// Counts, prints the table and draws the plots.
pub fn run(options: &BenchOptions) -> Result<i32> {
    let output = cargo("run").stderr(Stdio::inherit()).output().context("cargo does not start")?;
    ensure!(output.status.success(), "the count ended with {}", output.status);
    let counts = Counts::read(&String::from_utf8_lossy(&output.stdout))?;
    print!("{}", counts.table());
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    for operation in &counts.operations {
        let Some(svg) = counts.plot(operation)? else { continue };
        let path = options.out.join(format!("contention-{}.svg", crate::profile::file_name(operation)));
        std::fs::write(&path, svg).with_context(|| path.display().to_string())?;
        println!("{}", path.display());
    }
    Ok(0)
}

impl Counts {
    fn read(text: &str) -> Result<Counts> {
        let mut counts = Counts::default();
        for line in text.lines().filter_map(|line| line.strip_prefix("contention ")) {
            let fields: Vec<&str> = line.split('|').collect();
            let [protocol, operation, cpus, hot, moves, _, interrupts] = fields[..] else {
                anyhow::bail!("the count printed {line:?}");
            };
            let cpus = cpus.parse()?;
            for (list, name) in [(&mut counts.operations, operation), (&mut counts.protocols, protocol)] {
                if !list.iter().any(|known| known == name) {
                    list.push(name.to_string());
                }
            }
            counts.cpus.insert(cpus);
            let count = Count { hot: hot.parse()?, moves: moves.parse()?, interrupts: interrupts.parse()? };
            counts.counts.insert((operation.to_string(), protocol.to_string(), cpus), count);
        }
        ensure!(!counts.counts.is_empty(), "nothing was counted");
        Ok(counts)
    }

    fn get(&self, operation: &str, protocol: &str, cpus: u32) -> Option<&Count> {
        self.counts.get(&(operation.to_string(), protocol.to_string(), cpus))
    }

    /// In Markdown.
    fn table(&self) -> String {
        let cpus: Vec<u32> = self.cpus.iter().copied().filter(|cpus| *cpus > 1).collect();
        let heads: String = cpus.iter().map(|cpus| format!(" {cpus} |")).collect();
        let rules: String = cpus.iter().map(|_| " ---: |").collect();
        let mut out = format!(
            "| operation, lines taken from other CPUs | protocol |{heads} lines that several store to |"
        );
        out += &format!(" CPUs interrupted |\n| --- | --- |{rules} ---: | ---: |\n");
        for operation in &self.operations {
            for protocol in &self.protocols {
                let counts = cpus.iter().filter_map(|cpus| self.get(operation, protocol, *cpus));
                let moves: String = counts.map(|count| format!(" {:.1} |", count.moves)).collect();
                let Some(last) = cpus.last().and_then(|cpus| self.get(operation, protocol, *cpus)) else {
                    continue;
                };
                out +=
                    &format!("| {operation} | {protocol} |{moves} {} | {:.0} |\n", last.hot, last.interrupts);
            }
        }
        out
    }

    fn plot(&self, operation: &str) -> Result<Option<String>> {
        let axes = Axes {
            title: &format!("{operation}: lines taken from other CPUs, each time"),
            x: "CPUs that do it",
            y: "lines",
            write_x: |value| format!("{value:.0}"),
            write_y: |value| if value <= NONE { "none".into() } else { format!("{value}") },
        };
        let point = |protocol: &str, cpus: u32| {
            let count = self.get(operation, protocol, cpus)?;
            Some((f64::from(cpus), count.moves.max(NONE)))
        };
        let line = |protocol: &String| Line {
            name: protocol.clone(),
            points: self.cpus.iter().filter_map(|cpus| point(protocol, *cpus)).collect(),
        };
        plots::log_log(&axes, &self.protocols.iter().map(line).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "contention a|touch, far|1|0|0.000|0.000|0.000\ncontention a|touch, far|64|3|2.500|1.000|63.000\nline 3 f\n\
        contention b|touch, far|1|0|0.000|0.000|0.000\ncontention b|touch, far|64|0|0.000|0.000|0.000\n";

    #[test]
    fn counts_become_a_table_and_a_plot() {
        let counts = Counts::read(PRINTED).unwrap();
        let table = counts.table();
        assert!(table.contains("| protocol | 64 |"), "{table}");
        assert!(
            table.ends_with("| touch, far | a | 2.5 | 3 | 63 |\n| touch, far | b | 0.0 | 0 | 0 |\n"),
            "{table}"
        );
        let svg = counts.plot("touch, far").unwrap().unwrap();
        assert!(svg.contains("touch, far") && svg.contains("none"), "{svg}");
        assert!(Counts::read("").is_err());
        assert!(Counts::read("contention a|b\n").is_err());
    }
}
