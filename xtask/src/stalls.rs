//! `cargo xtask stalls`: how long a call upon many of a thing keeps others waiting, on our kernel and on Debian's.
//!
//! The program `stalls` runs on both, in machines of one CPU whose clock counts instructions. Our kernel is built as it is shipped, and
//! counts how long spin locks are held (the feature `lock-times`). The result is the table of docs/robustness.md.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use guest_link::Ending;
use roundtable::run::Parts;
use roundtable::signals::Signals;
use roundtable::size::Size;

use crate::build::{self, BuildOptions};
use crate::soak::guest::{Boot, End};
use crate::{linux, output_folder, setup};

/// What to look at.
#[derive(Args, Clone, Debug)]
pub struct StallOptions {
    /// Things to make many of, such as mappings or threads; all by default
    #[arg(value_name = "THING")]
    pub things: Vec<String>,

    /// Leave Debian's Linux out
    #[arg(long)]
    pub no_linux: bool,
}

/// How long the program may say nothing, and how long it may take.
const SILENCE: Duration = Duration::from_secs(600);
const LIMIT: Duration = Duration::from_secs(3600);

/// The worst that a call did, in instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Worst {
    stall: u64,
    hold: u64,
    stretch: u64,
}

/// A thing, and a call upon many of it.
type Call = (String, String);

/// What was seen of each call, by the number of things; the calls are in the order in which they were made.
#[derive(Default)]
struct Seen {
    order: Vec<Call>,
    worst: BTreeMap<Call, Vec<Worst>>,
}

impl Seen {
    /// Takes a line of the program's; says no to others.
    fn add(&mut self, line: &str) -> Option<()> {
        let mut words = line.strip_prefix("stall ")?.split('|');
        let thing = words.next()?.to_string();
        let _count: u64 = words.next()?.parse().ok()?;
        let call = (thing, words.next()?.to_string());
        let stall = words.next()?.parse().ok()?;
        let hold = words.next()?.parse().ok()?;
        let stretch = words.nth(1)?.parse().ok()?;
        if !self.order.contains(&call) {
            self.order.push(call.clone());
        }
        self.worst.entry(call).or_default().push(Worst { stall, hold, stretch });
        Some(())
    }

    /// A figure of a call for each number of things, in thousands.
    fn cell(&self, call: &Call, figure: impl Fn(&Worst) -> u64) -> String {
        let worst = self.worst.get(call).map_or(&[][..], Vec::as_slice);
        worst.iter().map(|worst| figure(worst).div_ceil(1000).to_string()).collect::<Vec<_>>().join(" / ")
    }
}

/// Runs the program on both kernels and prints the table.
pub fn run(options: &StallOptions) -> Result<i32> {
    setup::qemu()?;
    build::programs()?;
    let kernel = output_folder().join("kernel-times.elf");
    let features = Some("lock-times".to_string());
    build::kernel(&BuildOptions { features, ..BuildOptions::default() }, &kernel)?;
    let signals = Signals::catch()?;
    let ours = boot(options, &kernel, "stalls-roundtable.log", &signals)?;
    let linux = if options.no_linux {
        Seen::default()
    } else {
        linux::fetch()?;
        let parts = Parts::in_folder(&output_folder());
        let kernel = parts.linux.context("Debian's kernel is not there")?;
        boot(options, &kernel, "stalls-linux.log", &signals)?
    };
    println!("\n| thing | call | spin lock held | no look at the scheduler | stall | Linux: stall |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for call in &ours.order {
        let (thing, name) = call;
        let hold = ours.cell(call, |worst| worst.hold);
        let stretch = ours.cell(call, |worst| worst.stretch);
        let stall = ours.cell(call, |worst| worst.stall);
        println!(
            "| {thing} | {name} | {hold} | {stretch} | {stall} | {} |",
            linux.cell(call, |worst| worst.stall)
        );
    }
    Ok(0)
}

fn boot(options: &StallOptions, kernel: &Path, log: &str, signals: &Signals) -> Result<Seen> {
    let parts = Parts::in_folder(&output_folder());
    let log: PathBuf = parts.scratch.join("logs").join(log);
    let boot = Boot {
        kernel: kernel.to_path_buf(),
        cpus: 1,
        memory: Size::gibibytes(4),
        icount: true,
        parameters: Vec::new(),
        program: std::iter::once("stalls")
            .map(str::to_string)
            .chain(options.things.iter().cloned())
            .collect(),
        qemu: Vec::new(),
        files: Vec::new(),
        silence: SILENCE,
        limit: LIMIT,
    };
    let mut seen = Seen::default();
    let result = boot.run(&parts, signals, &log, |line| {
        println!("{line}");
        seen.add(line);
    })?;
    ensure!(result.end == End::Program(Ending::Code(0)), "the guest ended with {:?}", result.end);
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_cells() {
        let mut seen = Seen::default();
        assert_eq!(seen.add("# a remark"), None);
        assert_eq!(seen.add("stall pages|1|fork|1000|20|a.rs:1:2|3001|clone"), Some(()));
        assert_eq!(seen.add("stall pages|1000|fork|2500|0||0|"), Some(()));
        let call = ("pages".to_string(), "fork".to_string());
        assert_eq!(seen.order, std::slice::from_ref(&call));
        assert_eq!(seen.cell(&call, |worst| worst.stall), "1 / 3");
        assert_eq!(seen.cell(&call, |worst| worst.stretch), "4 / 0");
        assert_eq!(seen.cell(&("pages".to_string(), "exit".to_string()), |worst| worst.hold), "");
    }
}
