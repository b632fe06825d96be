//! Shared memory on base pages, file by file.

use std::fmt::Write;

use super::Extent;
use super::files::{choose, end, shown_name, who};
use crate::audit::report::{Bytes, Report};
use crate::output::human;

/// Their table.
pub fn text(out: &mut String, report: &Report, extent: Extent) {
    let _ = writeln!(out, "\nShared memory on base pages of {}", human::bytes(report.base_page));
    let chosen = choose(report, &report.base, extent.top);
    let mut table = extent.table(&[
        "file",
        "size",
        "tables now",
        "file-owned",
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
            human::bytes(file.bytes.owned_as_is),
            human::bytes(file.bytes.huge),
            human::bytes(file.bytes.best_here),
            human::bytes(file.bytes.best_owned),
            who(file),
        ]);
    }
    end(out, table, 1, &chosen);
    let sum = |of: fn(&Bytes) -> u64| human::bytes(report.base.iter().map(|file| of(&file.bytes)).sum());
    let _ = writeln!(
        out,
        "All of it: {} of page tables now; {} if they belonged to the files, pages as they are",
        sum(|bytes| bytes.now),
        sum(|bytes| bytes.owned_as_is)
    );
}
