//! An audit as tables for people.

mod advice;

use std::fmt::Write;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use super::human;
use crate::audit::kernel_version::Status;
use crate::audit::report::{FileReport, PoolReport, Report};
use crate::audit::slots::{Evidence, Verdict};

/// The whole audit; of each kind of file so many.
pub fn text(report: &Report, top: usize) -> String {
    let mut out = String::new();
    kernel(&mut out, report);
    unseen(&mut out, report);
    let unit = human::bytes(report.slot);
    if report.huge.is_empty() {
        out.push_str("\nNo process maps huge pages (of hugetlbfs) as far as can be seen.\n");
    } else {
        out.push_str("\nOn huge pages\n");
        let mut table = new_table(&[
            "file",
            "page",
            "size",
            "processes",
            &format!("{unit} slots shared"),
            "not shared",
            "tables now",
            "best here",
            "file-owned",
        ]);
        for file in report.huge.iter().take(top) {
            table.add_row([
                shown_name(file),
                human::bytes(file.page_size),
                human::bytes(file.size),
                human::count(file.processes),
                human::count(file.shared_slots()),
                human::count(not_shared(file)),
                human::bytes(file.bytes.now),
                human::bytes(file.bytes.best_here),
                human::bytes(file.bytes.best_owned),
            ]);
        }
        let _ = writeln!(out, "{}", aligned(table));
        rest(&mut out, report.huge.len(), top);
        for file in report.huge.iter().take(top) {
            details(&mut out, file, &unit);
        }
    }
    if !report.base.is_empty() {
        let _ = writeln!(
            out,
            "\nOn base pages of {}, and better off on huge ones",
            human::bytes(report.base_page)
        );
        let mut table =
            new_table(&["file", "size", "processes", "tables now", "on 2 MiB pages", "shared", "file-owned"]);
        for file in report.base.iter().take(top) {
            table.add_row([
                shown_name(file),
                human::bytes(file.size),
                human::count(file.processes),
                human::bytes(file.bytes.now),
                human::bytes(file.bytes.huge),
                human::bytes(file.bytes.best_here),
                human::bytes(file.bytes.best_owned),
            ]);
        }
        let _ = writeln!(out, "{}", aligned(table));
        rest(&mut out, report.base.len(), top);
    }
    pools(&mut out, report);
    check(&mut out, report);
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
    let _ = write!(
        out,
        "{} with memory of their own, {} with huge or shared pages",
        human::processes(seen.processes),
        human::count(seen.mapping)
    );
    let _ = match seen.looked_into {
        all if all == seen.mapping => writeln!(out, ", all of them looked into."),
        some => writeln!(
            out,
            ", {} of them looked into: the others are taken to be as those alike are.",
            human::count(some)
        ),
    };
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
            "Not seen: the mappings of {} of other users; run as root to see them.",
            human::processes(seen.unreadable)
        );
    }
    if !seen.kpagecount && !report.huge.is_empty() {
        out.push_str("Not seen: how many tables have a page (/proc/kpagecount is root's); sharing is told by rules and counters.\n");
    }
    if seen.vanished > 0 {
        let _ = writeln!(out, "{} ended meanwhile.", human::processes(seen.vanished));
    }
}

fn not_shared(file: &FileReport) -> u64 {
    let other = [Verdict::Shared, Verdict::FileOwned, Verdict::Untouched];
    file.slots.iter().filter(|(verdict, _)| !other.contains(verdict)).map(|(_, count)| count).sum()
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

fn pools(out: &mut String, report: &Report) {
    let used: Vec<_> =
        report.pools.iter().filter(|one| one.pool.total > 0 || !one.need.wanted.is_empty()).collect();
    if used.is_empty() {
        return;
    }
    out.push_str("\nPools of huge pages\n");
    let mut table = new_table(&["page", "total", "free", "reserved", "surplus", "needed"]);
    for PoolReport { pool, need } in used {
        table.add_row([
            human::bytes(pool.page_size),
            human::count(pool.total),
            human::count(pool.free),
            human::count(pool.reserved),
            human::count(pool.surplus),
            human::count(need.nr_hugepages),
        ]);
    }
    let _ = writeln!(out, "{}", aligned(table));
}

fn check(out: &mut String, report: &Report) {
    let check = &report.check;
    out.push_str("\nBeside the kernel's own figures\n");
    let mut table = new_table(&["page tables", "estimate", "kernel", "difference"]);
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
    let _ = writeln!(out, "{}", aligned(table));
}

fn shown_name(file: &FileReport) -> String {
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

fn rest(out: &mut String, all: usize, top: usize) {
    if all > top {
        let _ = writeln!(out, "and {} more (--top shows more)", human::count((all - top) as u64));
    }
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table
}

/// Numbers to the right, the first column to the left.
fn aligned(mut table: Table) -> Table {
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_cell_alignment(if index == 0 { CellAlignment::Left } else { CellAlignment::Right });
    }
    table
}
