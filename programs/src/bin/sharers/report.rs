//! The table at the end of the demonstration.

use std::time::Duration;

use crate::verdict::TABLE_KB;
use crate::{Gathering, Snapshot};

pub struct Report {
    /// How the kernel shares, where it tells.
    pub protocol: Option<String>,
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

/// At most seven letters, so that two of them and two kernels fit into a line also where the host is busy.
fn micros(nanoseconds: u64) -> String {
    match nanoseconds {
        0..9_999_500 => format!("{:.0} us", nanoseconds as f64 / 1e3),
        _ => format!("{:.0} ms", nanoseconds as f64 / 1e6),
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// The value that `percent` of the sorted ones do not exceed.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    sorted[((sorted.len() * percent).div_ceil(100)).saturating_sub(1).min(sorted.len() - 1)]
}

fn row(name: &str, shared: &str, unshared: &str) {
    // A terminal's 80 columns.
    println!("  {name:<40} {shared:>18} {unshared:>18}");
}

impl Report {
    pub fn print(&self) {
        let (shared, unshared) = (&self.shared, &self.unshared);
        println!();
        println!("Each process has all of a file of {} mapped and has touched it.", size(self.length as u64));
        println!();
        row("", "sharing", "without sharing");
        row("processes", &shared.processes.to_string(), &unshared.processes.to_string());
        row("page tables of all processes", &kb(shared.tables_kb()), &kb(unshared.tables_kb()));
        let tables = |g: &Gathering| {
            let tables = pmd_tables(g);
            format!("{tables} ({})", kb(tables * TABLE_KB))
        };
        row("of these, PMD tables for the huge pages", &tables(shared), &tables(unshared));
        let faults = |g: &Gathering| {
            let faults = &g.measurements.faults;
            format!("{} / {}", percentile(faults, 50), percentile(faults, 100))
        };
        row("faults of a process (median / most)", &faults(shared), &faults(unshared));
        let times = |sorted: &[u64]| {
            format!("{} / {}", micros(percentile(sorted, 50)), micros(percentile(sorted, 99)))
        };
        let both = |of: fn(&Gathering) -> &[u64]| (times(of(shared)), times(of(unshared)));
        let (with, without) = both(|g| &g.measurements.attach_nanoseconds);
        row("time to attach: mmap (median / 99 %)", &with, &without);
        let (with, without) = both(|g| &g.measurements.touch_nanoseconds);
        row("CPU time to touch it all (median / 99 %)", &with, &without);
        let whole = |g: &Gathering| format!("{} / {}", seconds(g.start), seconds(g.end));
        row("all there after / gone after another", &whole(shared), &whole(unshared));
        println!();
        println!("  Page tables: the growth of PageTables in /proc/meminfo. All but the PMD tables");
        println!("  for the huge pages map the processes' own programs, stacks and records, which");
        println!("  nobody shares. PMD tables: what the kernel counts as shared, and what touching");
        println!("  added to PageTables.");
        println!();
        self.print_counters();
    }

    fn print_counters(&self) {
        let moments = [self.before, self.shared.touched, self.after];
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
        if self.before.sharing.is_some() {
            println!();
            println!(
                "  /sys/kernel/mm/hugepages/sharing (protocol {})",
                self.protocol.as_deref().unwrap_or("?")
            );
            let sharing = |s: &Snapshot| s.sharing.expect("it was there before");
            line("tables", &|s| sharing(s).tables.to_string());
            line("attachments", &|s| sharing(s).attachments.to_string());
            line("table_bytes", &|s| size(sharing(s).table_bytes));
            line("saved_bytes", &|s| size(sharing(s).saved_bytes));
        }
    }
}

/// PMD tables for the file: the shared ones, and the processes' own, which came with their first faults.
fn pmd_tables(gathering: &Gathering) -> u64 {
    let crowd = gathering.crowd();
    // Shared tables that came by a fault are in what touching added, too.
    (crowd.touched_kb / TABLE_KB).max(crowd.shared_tables)
}
