//! Shared memory on base pages, file by file.

use std::fmt::Write;

use super::files::{choose, others, shown_name, who};
use super::{Extent, aligned};
use crate::audit::report::Report;
use crate::output::human;

/// Their table.
pub fn text(out: &mut String, report: &Report, extent: Extent) {
    let _ = writeln!(out, "\nShared memory on base pages of {}", human::bytes(report.base_page));
    let chosen = choose(report, &report.base, extent.top);
    let mut table = extent.table(&[
        "file",
        "size",
        "tables now",
        "on 2 MiB pages",
        "shared",
        "file-owned",
        "who maps it",
    ]);
    for file in &chosen.shown {
        table.add_row([
            shown_name(file),
            human::bytes(file.size),
            human::bytes(file.bytes.now),
            human::bytes(file.bytes.huge),
            human::bytes(file.bytes.best_here),
            human::bytes(file.bytes.best_owned),
            who(file),
        ]);
    }
    if !chosen.shown.is_empty() {
        let _ = writeln!(out, "{}", aligned(table, 1));
    }
    others(out, &chosen);
}
