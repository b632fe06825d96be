//! The files one by one, those on huge pages first; those on base pages have a table of their own.

use std::fmt::Write;

use comfy_table::Table;

use super::{Extent, aligned, base_pages, rest};
use crate::audit::report::{FileReport, Report};
use crate::audit::slots::{Evidence, Verdict};
use crate::output::human;

/// Page tables of a file below this have no bearing, unless something is advised about it.
const BEARING: u64 = 64 << 10;

/// Files that are shown, and what the others come to.
pub(super) struct Chosen<'a> {
    pub(super) shown: Vec<&'a FileReport>,
    /// Beyond `top`.
    cut: usize,
    /// Without bearing.
    small: usize,
    small_bytes: u64,
}

pub(super) fn choose<'a>(report: &Report, files: &'a [FileReport], top: usize) -> Chosen<'a> {
    let is_advised = |file: &FileReport| {
        report
            .advice
            .iter()
            .any(|advice| advice.subject.file == file.name && advice.subject.some_pids == file.some_pids)
    };
    let matters = |file: &&FileReport| top == usize::MAX || file.bytes.now >= BEARING || is_advised(file);
    let (mut shown, small): (Vec<_>, Vec<_>) = files.iter().partition(matters);
    let cut = shown.len().saturating_sub(top);
    shown.truncate(top);
    Chosen { shown, cut, small: small.len(), small_bytes: small.iter().map(|file| file.bytes.now).sum() }
}

/// The table of those that are shown, with so many columns of text in front, and a line of those that are not.
pub(super) fn end(out: &mut String, table: Table, texts: usize, chosen: &Chosen) {
    if !chosen.shown.is_empty() {
        let _ = writeln!(out, "{}", aligned(table, texts));
    }
    rest(out, chosen.cut);
    if chosen.small > 0 {
        let _ = writeln!(
            out,
            "{} {} without bearing, {} of page tables in all (--all shows them)",
            human::count(chosen.small as u64),
            if chosen.small == 1 { "file" } else { "files" },
            human::bytes(chosen.small_bytes)
        );
    }
}

/// Those on huge pages, then those on base pages.
pub fn text(out: &mut String, report: &Report, extent: Extent) {
    if report.huge.is_empty() {
        out.push_str("\nNo process maps huge pages (of hugetlbfs) as far as can be seen.\n");
    } else {
        huge(out, report, extent);
    }
    if !report.base.is_empty() {
        base_pages::text(out, report, extent);
    }
}

fn huge(out: &mut String, report: &Report, extent: Extent) {
    let unit = human::bytes(report.slot);
    out.push_str("\nFiles on huge pages\n");
    let chosen = choose(report, &report.huge, extent.top);
    let mut table = extent.table(&[
        "file",
        "page",
        "size",
        &format!("{unit} slots shared"),
        "not shared",
        "tables now",
        "best here",
        "file-owned",
        "who maps it",
    ]);
    for file in &chosen.shown {
        table.add_row([
            shown_name(file),
            human::bytes(file.page_size),
            human::bytes(file.size),
            human::count(file.shared_slots()),
            human::count(not_shared(file)),
            human::bytes(file.bytes.now),
            human::bytes(file.bytes.best_here),
            human::bytes(file.bytes.best_owned),
            who(file),
        ]);
    }
    end(out, table, 1, &chosen);
    for file in &chosen.shown {
        details(out, file, &unit);
    }
}

pub(super) fn who(file: &FileReport) -> String {
    format!("{}: {}", human::processes(file.processes), file.subject().describe())
}

fn not_shared(file: &FileReport) -> u64 {
    // Nobody could share those, whatever was done.
    let never =
        [Verdict::Shared, Verdict::FileOwned, Verdict::Untouched, Verdict::Alone, Verdict::GiganticPage];
    let could =
        |verdict: &Verdict| !never.contains(verdict) && (*verdict != Verdict::Private || file.processes > 1);
    file.slots.iter().filter(|(verdict, _)| could(verdict)).map(|(_, count)| count).sum()
}

/// A verdict in an operator's words.
pub fn describe(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Shared => "shared",
        Verdict::Untouched => "not touched yet: no table",
        Verdict::FirstOfSeveral => "first of several: shared as soon as the next one touches it",
        Verdict::Alone => "nobody else maps this part",
        Verdict::NoPartner => "nobody else maps this part in a way that can share",
        Verdict::Private => "private mapping (MAP_PRIVATE)",
        Verdict::TooShort => "the mapping does not fill the slot",
        Verdict::NotCongruent => "address not congruent with the others'",
        Verdict::ProtectionDiffers => "protection differs from the others'",
        Verdict::FlagsDiffer => "VM flags differ from the others'",
        Verdict::UserfaultfdWriteProtect => "userfaultfd waits for write-protect faults",
        Verdict::UserfaultfdMinor => "userfaultfd waits for minor faults",
        Verdict::GiganticPage => "1 GiB pages: no table needed",
        Verdict::OtherPageSize => "a page size whose tables Linux does not share",
        Verdict::OwnTable => "a table of its own from before",
        Verdict::KernelCannot => "this kernel shares no tables",
        Verdict::FileOwned => "in a table that belongs to the file",
    }
}

fn details(out: &mut String, file: &FileReport, unit: &str) {
    let _ = writeln!(
        out,
        "\n{}: {} of {} in {}: {}",
        shown_name(file),
        human::bytes(file.size),
        human::bytes(file.page_size),
        human::processes(file.processes),
        file.names.iter().map(|name| human::printable(name)).collect::<Vec<_>>().join(", ")
    );
    for (verdict, count) in &file.slots {
        let _ = writeln!(out, "  {:>9} {}", human::count(*count), describe(*verdict));
    }
    let backed = match file.evidence {
        Evidence::Kpagecount => "checked with the kernel's page counts",
        Evidence::HugetlbPages => "by the kernel's rules and each process's HugetlbPages",
        Evidence::Rules => "by the kernel's rules",
    };
    let saved = file.bytes.unshared.saturating_sub(file.bytes.now);
    let _ = writeln!(
        out,
        "  slots are of {unit}, counted for each mapping; {backed}; sharing saves {} now",
        human::bytes(saved)
    );
    if file.looked_into < file.mappings {
        let _ = writeln!(
            out,
            "  {} of {} mappings looked into",
            human::count(file.looked_into),
            human::count(file.mappings)
        );
    }
}

pub(super) fn shown_name(file: &FileReport) -> String {
    let mut name = human::printable(&file.name);
    if name == "anonymous memory" {
        name = format!("anonymous memory {}", file.inode);
    } else if file.is_ambiguous && file.ipc_namespace != 0 {
        name = format!("{name} of IPC namespace {}", file.ipc_namespace);
    } else if file.is_ambiguous {
        name = format!("{name} (inode {} of {})", file.inode, file.device);
    }
    name
}
