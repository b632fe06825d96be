//! An audit as tables for people: the three questions first, then the files one by one, then what to do.

mod advice;
mod base_pages;
mod files;
mod owners;
mod pools;

use std::fmt::Write;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use super::human;
use crate::audit::kernel_version::Status;
use crate::audit::report::Report;
pub use advice::advices;
pub use files::describe;

/// How much is shown.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Of each kind of thing so many. With `usize::MAX` what has no bearing is shown as well.
    pub top: usize,
    /// Columns that a table may take; `None` for as many as it likes, where nobody reads it on a terminal.
    pub width: Option<u16>,
}

/// The whole audit.
pub fn text(report: &Report, extent: Extent) -> String {
    let mut out = String::new();
    kernel(&mut out, report);
    unseen(&mut out, report);
    owners::text(&mut out, report, extent);
    pools::text(&mut out, report, extent);
    limits(&mut out, report);
    files::text(&mut out, report, extent);
    check(&mut out, report, extent);
    advice::text(&mut out, report);
    out
}

fn kernel(out: &mut String, report: &Report) {
    let kernel = &report.kernel;
    let version = kernel
        .version
        .map(|version| version.to_string())
        .filter(|version| !kernel.release.starts_with(version));
    let base = version.map(|version| format!(", made from {version}")).unwrap_or_default();
    let _ = writeln!(
        out,
        "Linux {} ({}{base}): {}{} ({}).",
        kernel.release,
        kernel.machine,
        kernel.protocol.describe(),
        if kernel.vendor_fixes && kernel.shares { ", as far as the version tells" } else { "" },
        kernel.reason
    );
    let of = |status| kernel.findings.iter().filter(move |finding| finding.status == status);
    for finding in of(Status::Present) {
        let _ = writeln!(out, "  has {}: {}", finding.id, finding.what);
    }
    let unknown: Vec<&str> = of(Status::Unknown).map(|finding| finding.id).collect();
    if !unknown.is_empty() {
        let why = if kernel.vendor_fixes {
            "its vendor takes fixes over without a new version"
        } else {
            "not known of this branch"
        };
        let _ = writeln!(out, "  the version does not tell of {} ({why})", unknown.join(", "));
    }
}

fn unseen(out: &mut String, report: &Report) {
    let seen = &report.seen;
    let readable = seen.processes.saturating_sub(seen.unreadable);
    let _ = write!(
        out,
        "{} with memory of their own; of {} that may be read {} map huge or shared pages",
        human::processes(seen.processes),
        human::count(readable),
        human::count(seen.mapping)
    );
    let _ = match seen.looked_into {
        all if all == seen.mapping => writeln!(out, ", all of these looked into."),
        some => writeln!(
            out,
            ", {} of them looked into in the time given (--seconds, --all): the others are taken to be as \
             those alike are.",
            human::count(some)
        ),
    };
    if seen.skipped > 0 {
        let _ = writeln!(
            out,
            "Not seen: {} that there was no time for; --seconds gives more, --all as much as it takes.",
            human::processes(seen.skipped)
        );
    }
    if seen.in_container {
        out.push_str(
            "Not seen: processes outside this container (PID namespace); run it on the host to see them.\n",
        );
    }
    if seen.others_hidden {
        out.push_str(
            "Not seen: other users' processes (/proc is mounted with hidepid); run as root to see them.\n",
        );
    } else if seen.unreadable > 0 {
        let _ = writeln!(
            out,
            "Not seen: the mappings of {}, {}.",
            human::processes(seen.unreadable),
            unreadable(seen.is_root)
        );
    }
    if !seen.kpagecount && !report.huge.is_empty() {
        out.push_str(
            "Not seen: how many tables have a page (/proc/kpagecount is root's); sharing is told \
            by rules and counters.\n",
        );
    }
    if seen.vanished > 0 {
        let _ = writeln!(out, "{} ended meanwhile.", human::processes(seen.vanished));
    }
}

/// Why mappings may not be read, and what helps, as the end of a sentence.
pub fn unreadable(is_root: bool) -> &'static str {
    if is_root {
        "which not even root may read here: this root is a user namespace's, or a security module forbids it \
         (CAP_SYS_PTRACE is needed)"
    } else {
        "which only root and their owners may read; run as root to see them"
    }
}

/// The third question, why something does not start or dies, as far as limits answer it.
fn limits(out: &mut String, report: &Report) {
    if report.limits.is_empty() {
        return;
    }
    out.push_str("\nLimits that are met\n");
    for limit in &report.limits {
        let _ = writeln!(
            out,
            "  {}: {} ({})",
            limit.subject.describe(),
            limit.what,
            human::printable_path(&limit.place)
        );
    }
}

fn check(out: &mut String, report: &Report, extent: Extent) {
    let check = &report.check;
    out.push_str("\nBeside the kernel's own figures\n");
    let mut table = extent.table(&["page tables", "estimate", "kernel", "difference"]);
    table.add_row([
        "of the processes looked into (VmPTE)".to_string(),
        human::bytes(check.estimate),
        human::bytes(check.vm_pte),
        human::difference(check.estimate, check.vm_pte),
    ]);
    table.add_row([
        "of all: VmPTE less shared ones counted again (PageTables)".to_string(),
        human::bytes(check.expected_page_tables()),
        human::bytes(check.page_tables),
        human::difference(check.expected_page_tables(), check.page_tables),
    ]);
    let _ = writeln!(out, "{}", aligned(table, 0));
}

fn rest(out: &mut String, more: usize) {
    if more > 0 {
        let _ = writeln!(out, "and {} more (--top shows more)", human::count(more as u64));
    }
}

impl Extent {
    fn table(self, header: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(header);
        match self.width {
            None => table.set_content_arrangement(ContentArrangement::Disabled),
            Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
        };
        table
    }
}

/// Numbers to the right, the first column to the left, and so the last ones where they are words.
fn aligned(mut table: Table, words: usize) -> Table {
    let count = table.column_count();
    for (index, column) in table.column_iter_mut().enumerate() {
        let is_word = index == 0 || index + words >= count;
        column.set_cell_alignment(if is_word { CellAlignment::Left } else { CellAlignment::Right });
    }
    table
}
