//! `roundtable explain PID`: everything about one process on one screen.

use std::fmt::Write;

use anyhow::{Result, bail};
use clap::Args;

use super::LookOptions;
use super::advice::{Advice, Worth};
use super::answer::limits::{self, Limit};
use super::answer::{self, holders::Holder};
use super::collect::Process;
use super::deadline::Deadline;
use super::geometry::Tables;
use super::host::Host;
use super::probe::{self, Area};
use super::report::{FileReport, Report};
use crate::output::table::{describe, unreadable};
use crate::output::{file, human};

/// Which process.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  roundtable explain 4711\n  roundtable explain $(pgrep -o postgres)")]
pub struct ExplainOptions {
    /// The process
    pub pid: i32,

    /// How far to look at the others
    #[command(flatten)]
    pub look: LookOptions,
}

/// Mappings shown, those with the largest tables first.
const SHOWN: usize = 10;

/// Explains and writes it; the exit status.
pub fn run(options: &ExplainOptions) -> Result<i32> {
    let source = options.look.source();
    let host = Host::look(&source, options.look.deadline(), false)?;
    let Some(process) = host.process(options.pid) else {
        bail!("there is no process {} with memory of its own in sight", options.pid);
    };
    let report = answer::report(&host, 1, Worth(options.look.worth.0));
    let areas = probe::areas(&source, &host.census, process.pid, &Deadline::never()).unwrap_or_default();
    let limits = limits::of_process(&host, process);
    file::write(&text(process, &report, &areas, &limits, &host), None)?;
    Ok(0)
}

fn text(process: &Process, report: &Report, areas: &[Area], limits: &[Limit], host: &Host) -> String {
    let mut out = String::new();
    let unit = if process.unit.is_empty() { "no unit".into() } else { human::printable(&process.unit) };
    let _ = writeln!(
        out,
        "{} (pid {}), {unit}: {} of page tables for {} of memory in place; {} of huge pages by its own faults",
        human::printable(&process.name),
        process.pid,
        human::bytes(process.vm_pte),
        human::bytes(process.rss),
        human::bytes(process.hugetlb)
    );
    if !process.readable {
        let why = unreadable(report.seen.is_root);
        let _ = writeln!(out, "Only this is known of it. Not seen: its mappings, {why}.");
    }
    tables(&mut out, areas, host);
    let is_mine = |pids: &[i32]| pids.contains(&process.pid);
    let maps = |file: &&FileReport| file.faults_by_pid.iter().any(|(pid, _)| *pid == process.pid);
    for file in report.huge.iter().chain(&report.base).filter(maps) {
        shares(&mut out, file);
    }
    let holders: Vec<&Holder> = report
        .pools
        .iter()
        .flat_map(|pool| &pool.account.holders)
        .filter(|holder| is_mine(&holder.subject.some_pids))
        .collect();
    if !holders.is_empty() {
        out.push_str("\nHuge pages and promises that it has, alone or with others\n");
    }
    for holder in holders {
        let _ = writeln!(
            out,
            "  {}: {} pages, {} promised, {}",
            human::printable(&holder.subject.file),
            human::count(holder.pages),
            human::count(holder.promised),
            human::processes(holder.subject.processes)
        );
    }
    if !limits.is_empty() {
        out.push_str("\nIts limits\n");
    }
    for limit in limits {
        let _ = writeln!(out, "  {} ({})", limit.what, human::printable_path(&limit.place));
    }
    let advice: Vec<&Advice> = report
        .advice
        .iter()
        .filter(|advice| {
            let programs = &advice.subject.programs;
            is_mine(&advice.subject.some_pids) || programs.contains(&process.name) || advice.id == "grow-pool"
        })
        .collect();
    crate::output::table::advices(&mut out, &advice);
    if advice.is_empty() && process.readable {
        out.push_str("\nNothing that is worth doing is known for it (--worth 0 shows all).\n");
    }
    out
}

/// What of its memory costs page tables.
fn tables(out: &mut String, areas: &[Area], host: &Host) {
    let geometry = host.source.geometry;
    let mut areas: Vec<&Area> = areas.iter().filter(|area| area.exclusive != Tables::default()).collect();
    areas.sort_by_key(|area| (std::cmp::Reverse(area.exclusive.count()), area.start));
    if areas.is_empty() {
        return;
    }
    out.push_str("\nMappings that cost page tables: tables of their own, pages in place, where, what\n");
    for area in areas.iter().take(SHOWN) {
        let _ = writeln!(
            out,
            "  {:>9} {:>9}  {:#x}-{:#x} {}",
            human::bytes(area.exclusive.bytes(geometry)),
            human::bytes(area.populated),
            area.start,
            area.end,
            if area.name.is_empty() { "private memory".into() } else { human::printable(&area.name) }
        );
    }
    if areas.len() > SHOWN {
        let rest: u64 = areas[SHOWN..].iter().map(|area| area.exclusive.bytes(geometry)).sum();
        let _ = writeln!(
            out,
            "  {:>9} of {} more",
            human::bytes(rest),
            human::count((areas.len() - SHOWN) as u64)
        );
    }
}

fn shares(out: &mut String, file: &FileReport) {
    let _ = writeln!(
        out,
        "\nIt maps {}, {} on pages of {}, with {} in all: {}",
        human::printable(&file.name),
        human::bytes(file.size),
        human::bytes(file.page_size),
        human::processes(file.processes),
        file.subject().describe()
    );
    let _ = writeln!(
        out,
        "  all of their tables for it: {} now, {} without sharing, {} at best here",
        human::bytes(file.bytes.now),
        human::bytes(file.bytes.unshared),
        human::bytes(file.bytes.best_here)
    );
    for (verdict, count) in &file.slots {
        let _ = writeln!(out, "  {:>9} {}", human::count(*count), describe(*verdict));
    }
}
