//! The demonstration with base pages: many processes share a file on tmpfs, or other memory.

use roundtable_programs::mem::Map;
use roundtable_programs::procfs;
use roundtable_programs::sys::pid;

use super::memory::{Kind, Memory};
use super::options::Options;
use super::sharer::stamp_pages;
use super::{Gathering, Snapshot, gather, report, settle};

/// What the file's tables may take in all, in kB: 1 GiB has 513 tables.
const TABLES_PER_GIB: u64 = 4096;
/// What tables of its own each process may have besides those that its parent has for program, heap and stack, in kB: its root, and a
/// table of each level below for the records.
const OWN_TABLES: u64 = 16;

pub fn run(options: &Options) -> Result<(), String> {
    let (length, step) = (options.bytes, options.step);
    let steps = length / step;
    // Two pages of a longer step are there.
    let pages = steps * (step / 4096).min(2);
    let title = options.source.title();
    let mut memory =
        Memory::new(options.source, length).map_err(|error| format!("{title}: {}", error.desc()))?;
    {
        let map: Map = memory.writable(length).map_err(|error| format!("{title}: {}", error.desc()))?;
        stamp_pages(&map, steps, step);
    }
    let mode = std::fs::read_to_string("/sys/kernel/mm/file_tables/mode").ok();
    let mode = mode.as_deref().map(str::trim);
    let how = mode.map(|mode| format!(" (file_tables={mode})")).unwrap_or_default();
    println!("One {title} of {} ({pages} pages).", report::size(length as u64));
    println!("{} processes have it mapped, then touch all of it{how}:", options.processes);
    let before = Snapshot::take();
    let shared = gather(&mut memory, steps, step, Kind::Shared, options.processes)?;
    settle(before.tables_kb);
    println!("{} do so at addresses where no table can be shared:", options.unshared);
    let unshared = gather(&mut memory, steps, step, Kind::Apart, options.unshared)?;
    println!();
    println!("{:<44} {:>16} {:>16}", "", "shared", "apart");
    row("processes", &shared, &unshared, |crowd| crowd.processes.to_string());
    row("page tables of all, kB", &shared, &unshared, |crowd| crowd.tables_kb().to_string());
    row("page tables for each process, kB", &shared, &unshared, |crowd| {
        format!("{:.1}", crowd.tables_kb() as f64 / crowd.processes as f64)
    });
    row("faults of each process: median", &shared, &unshared, |crowd| middle(&crowd.measurements.faults));
    row("faults of each process: most", &shared, &unshared, |crowd| {
        most(&crowd.measurements.faults).to_string()
    });
    row("time to map it, us: median", &shared, &unshared, |crowd| {
        micros(&crowd.measurements.attach_nanoseconds)
    });
    row("CPU time to touch it, us: median", &shared, &unshared, |crowd| {
        micros(&crowd.measurements.touch_nanoseconds)
    });
    if mode != Some("all") {
        return Ok(());
    }
    let faults = most(&shared.measurements.faults);
    let gibibytes = length.div_ceil(1 << 30) as u64;
    let own = procfs::status(pid(), "VmPTE") + OWN_TABLES;
    let allowed = gibibytes * TABLES_PER_GIB + options.processes as u64 * own;
    match () {
        () if faults > 0 => Err(format!("a process had {faults} faults on pages that were there")),
        () if shared.tables_kb() > allowed => {
            Err(format!("{} kB of page tables, {allowed} at most", shared.tables_kb()))
        }
        () => Ok(()),
    }
}

fn row(title: &str, shared: &Gathering, unshared: &Gathering, figure: impl Fn(&Gathering) -> String) {
    println!("{title:<44} {:>16} {:>16}", figure(shared), figure(unshared));
}

fn most(sorted: &[u64]) -> u64 {
    sorted.last().copied().unwrap_or(0)
}

fn middle(sorted: &[u64]) -> String {
    sorted[sorted.len() / 2].to_string()
}

fn micros(sorted: &[u64]) -> String {
    format!("{:.0}", sorted[sorted.len() / 2] as f64 / 1e3)
}
