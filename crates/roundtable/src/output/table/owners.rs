//! The first question: who has the page tables.

use std::fmt::Write;

use super::{Extent, aligned};
use crate::audit::answer::tables::{Owner, Rest};
use crate::audit::report::Report;
use crate::output::human;

/// Of programs so many are shown; of units and processes, which say the same in other words, fewer.
const PROGRAMS: usize = 8;
const OTHERS: usize = 5;

/// By program, unit and process, up to the host's own figure.
pub fn text(out: &mut String, report: &Report, extent: Extent) {
    let (tables, top) = (&report.page_tables, extent.top);
    let _ = match tables.total {
        // As in some containers: then there is nothing that the parts could add up to.
        0 => writeln!(
            out,
            "\nWho has the page tables, as far as processes tell (there is no PageTables in /proc/meminfo)"
        ),
        total => writeln!(out, "\nWho has the page tables: {} of them", human::bytes(total)),
    };
    let mut table = extent.table(&[
        "program",
        "page tables",
        "of private memory",
        "memory in place",
        "processes and units",
    ]);
    let (shown, rest) = cut(&tables.programs, tables.other_programs, PROGRAMS.min(top.max(1)));
    for owner in shown {
        table.add_row([
            names(owner),
            human::bytes(owner.bytes),
            human::bytes(owner.private),
            // A recording of an older version does not have it.
            if owner.resident > 0 { human::bytes(owner.resident) } else { "-".into() },
            format!("{}: {}", human::processes(owner.processes), owner.subject().describe()),
        ]);
    }
    let mut line = |name: &str, bytes: u64, what: String| {
        table.add_row([name.to_string(), human::bytes(bytes), String::new(), String::new(), what]);
    };
    if rest.count > 0 {
        line("others", rest.bytes, format!("{} more programs", human::count(rest.count)));
    }
    if tables.remainder > 0 {
        line(
            "remainder",
            tables.remainder,
            "top levels of processes, the kernel's own tables, processes that are not seen".into(),
        );
    }
    let _ = writeln!(out, "{}", aligned(table, 1));
    if tables.excess > 0 && tables.total > 0 {
        let _ = writeln!(
            out,
            "The processes' tables are {} more than the host's: the two were read at different moments.",
            human::bytes(tables.excess)
        );
    }
    let list = |out: &mut String, title: &str, owners: &[Owner], rest: Rest, name: fn(&Owner) -> String| {
        let (shown, rest) = cut(owners, rest, OTHERS.min(top.max(1)));
        if shown.is_empty() {
            return;
        }
        let mut all: Vec<String> =
            shown.iter().map(|owner| format!("{} {}", name(owner), human::bytes(owner.bytes))).collect();
        if rest.count > 0 {
            all.push(format!("{} more {}", human::count(rest.count), human::bytes(rest.bytes)));
        }
        let _ = writeln!(out, "By {title}: {}", all.join(", "));
    };
    list(out, "unit", &tables.units, tables.other_units, |owner| {
        owner.units.iter().map(|unit| human::printable(unit)).collect()
    });
    list(out, "process", &tables.processes, tables.other_processes, |owner| {
        format!("{} (pid {})", names(owner), owner.some_pids.first().copied().unwrap_or(0))
    });
}

fn names(owner: &Owner) -> String {
    owner.programs.iter().map(|name| human::printable(name)).collect::<Vec<_>>().join(", ")
}

fn cut(owners: &[Owner], mut rest: Rest, most: usize) -> (&[Owner], Rest) {
    let (shown, others) = owners.split_at(owners.len().min(most));
    rest.count += others.len() as u64;
    rest.bytes += others.iter().map(|owner| owner.bytes).sum::<u64>();
    (shown, rest)
}
