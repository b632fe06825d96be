//! The second question: who has the huge pages.

use std::fmt::Write;

use super::{Extent, aligned, rest};
use crate::audit::answer::holders::{Hold, Holder};
use crate::audit::report::{PoolReport, Report};
use crate::output::human;

/// Each pool, and who holds its pages and its promises.
pub fn text(out: &mut String, report: &Report, extent: Extent) {
    let has_any = |one: &&PoolReport| one.pool.total > 0 || !one.need.wanted.is_empty();
    let used: Vec<&PoolReport> = report.pools.iter().filter(has_any).collect();
    if used.is_empty() {
        return;
    }
    out.push_str("\nWho has the huge pages\n");
    let mut table = extent.table(&[
        "pool",
        "total",
        "in use",
        "free",
        "promised",
        "free for anybody",
        "surplus",
        "needed",
    ]);
    for PoolReport { pool, need, .. } in &used {
        table.add_row([
            human::bytes(pool.page_size),
            human::count(pool.total),
            human::count(pool.in_use()),
            human::count(pool.free),
            human::count(pool.reserved),
            human::count(pool.available()),
            human::count(pool.surplus),
            human::count(need.nr_hugepages),
        ]);
    }
    let _ = writeln!(out, "{}", aligned(table, 0));
    // Whoever looks at the free pages alone takes them for free.
    for pool in used.iter().map(|one| &one.pool).filter(|pool| pool.reserved * 2 > pool.free) {
        let _ = writeln!(
            out,
            "Of {} free pages of {} {} are promised: the next program can have {}.",
            human::count(pool.free),
            human::bytes(pool.page_size),
            human::count(pool.reserved),
            human::count(pool.available())
        );
    }
    for one in used {
        account(out, one, extent);
    }
}

fn account(out: &mut String, one: &PoolReport, extent: Extent) {
    let account = &one.account;
    if account.holders.is_empty() && account.unexplained == 0 && account.unexplained_promises == 0 {
        return;
    }
    let mut table = extent.table(&[
        &format!("who has {} pages", human::bytes(one.pool.page_size)),
        "pages",
        "promised",
        "how",
        "who",
    ]);
    for holder in account.holders.iter().take(extent.top) {
        table.add_row([
            human::printable(&holder.subject.file),
            human::count(holder.pages),
            human::count(holder.promised),
            how(holder),
            who(holder),
        ]);
    }
    if account.unexplained > 0 || account.unexplained_promises > 0 {
        table.add_row([
            "not explained".to_string(),
            human::count(account.unexplained),
            human::count(account.unexplained_promises),
            "not seen".to_string(),
            "another IPC namespace, a device, a process that may not be read".to_string(),
        ]);
    }
    let _ = writeln!(out, "{}", aligned(table, 2));
    rest(out, account.holders.len().saturating_sub(extent.top) + account.other_holders as usize);
    if account.holders.iter().any(|holder| holder.hold == Hold::Unseen) {
        out.push_str(
            "Whether files that nobody in sight has are left behind is not known: not every process was seen. As root, \
             on the host and with --all they are.\n",
        );
    }
}

fn who(holder: &Holder) -> String {
    match holder.hold {
        Hold::Unseen => "not known".into(),
        _ if holder.subject.programs.is_empty() => "nobody".into(),
        _ => holder.subject.describe(),
    }
}

fn how(holder: &Holder) -> String {
    let age =
        holder.age_seconds.map_or(String::new(), |age| format!(", changed {} ago", human::duration(age)));
    let inside = holder.left.as_ref().and_then(|file| file.inside);
    let inside = inside.map_or(String::new(), |pid| format!(", on a mount that pid {pid} sees"));
    match holder.hold {
        Hold::Mapped => "mapped".into(),
        Hold::Private => "private copies".into(),
        Hold::OpenFile => format!("a file that is open and not mapped{inside}{age}"),
        Hold::File => format!("a file that nobody maps{inside}{age}"),
        Hold::Unseen => format!("a file that nobody in sight has{inside}{age}"),
        Hold::Descriptor => "an open file without a name".into(),
        Hold::Segment => format!("a segment that nobody has attached{age}"),
        Hold::Mount => "promised to a mount (min_size)".into(),
    }
}
