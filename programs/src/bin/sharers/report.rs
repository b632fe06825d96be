//! The table at the end of the demonstration.

use std::time::Duration;

use crate::{Gathering, Snapshot};

pub struct Report {
    pub processes: usize,
    /// The file's, in bytes.
    pub length: usize,
    pub before: Snapshot,
    pub unshared: Gathering,
    pub shared: Gathering,
    pub after: Snapshot,
}

/// A size for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() == 0.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

fn kb(kb: u64) -> String {
    size(kb << 10)
}

fn micros(nanoseconds: u64) -> String {
    format!("{:.0} us", nanoseconds as f64 / 1e3)
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// The value that `percent` of the sorted ones do not exceed.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    sorted[((sorted.len() * percent).div_ceil(100)).saturating_sub(1).min(sorted.len() - 1)]
}

fn row(name: &str, shared: &str, unshared: &str) {
    println!("  {name:<44} {shared:>22} {unshared:>22}");
}

impl Report {
    pub fn print(&self) {
        let (shared, unshared) = (&self.shared, &self.unshared);
        println!();
        println!(
            "{} processes, each with all of a file of {} mapped",
            self.processes,
            size(self.length as u64)
        );
        println!();
        row("", "sharing", "without sharing");
        row("page tables of all processes", &kb(shared.tables_kb), &self.unshared_tables());
        let each = |gathering: &Gathering| size((gathering.tables_kb << 10) / gathering.processes as u64);
        row("page tables for each process", &each(shared), &each(unshared));
        row("VmPTE of a process (median)", &kb(shared.vmpte_kb), &kb(unshared.vmpte_kb));
        let faults = |g: &Gathering| {
            format!("{} / {} / {}", g.faults[0], percentile(&g.faults, 50), percentile(&g.faults, 100))
        };
        row("faults to touch all (min / median / max)", &faults(shared), &faults(unshared));
        let times = |g: &Gathering| {
            format!("{} / {}", micros(percentile(&g.times, 50)), micros(percentile(&g.times, 99)))
        };
        row("map, touch and verify all (median / 99 %)", &times(shared), &times(unshared));
        println!();
        println!(
            "  Page tables are the growth of PageTables in /proc/meminfo while all processes were there."
        );
        println!(
            "  Without sharing: measured with {} processes that map privately{}.",
            unshared.processes,
            if unshared.processes < self.processes { ", extrapolated where marked with ~" } else { "" }
        );
        println!("  VmPTE was read from /proc of {} and {} processes.", shared.vmpte_of, unshared.vmpte_of);
        println!(
            "  All processes were there after {}, and gone after another {}.",
            seconds(shared.start),
            seconds(shared.end)
        );
        println!();
        self.print_counters();
    }

    fn unshared_tables(&self) -> String {
        let sample = self.unshared.processes as u64;
        let all = self.unshared.tables_kb * self.processes as u64 / sample;
        if sample == self.processes as u64 { kb(all) } else { format!("~{}", kb(all)) }
    }

    fn print_counters(&self) {
        let moments = [self.before, self.shared.during, self.after];
        println!("  {:<22} {:>14} {:>14} {:>14}", "", "before", "during", "after");
        let line = |name: &str, of: &dyn Fn(&Snapshot) -> String| {
            let [before, during, after] = moments.each_ref().map(of);
            println!("  {name:<22} {before:>14} {during:>14} {after:>14}");
        };
        line("HugePages_Total", &|s| s.pool.total.to_string());
        line("HugePages_Free", &|s| s.pool.free.to_string());
        line("HugePages_Rsvd", &|s| s.pool.reserved.to_string());
        line("HugePages_Surp", &|s| s.pool.surplus.to_string());
        line("PageTables", &|s| kb(s.tables_kb));
        line("MemFree", &|s| kb(s.free_kb));
    }
}
