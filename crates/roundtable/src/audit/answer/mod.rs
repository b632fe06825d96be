//! The answers to an operator's questions, from one look at the host.

pub mod files;
pub mod holders;
pub mod limits;
pub mod private;
pub mod tables;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use super::advice::{Worth, pool};
use super::host::Host;
use super::report::{Check, PoolReport, Report, SCHEMA, Seen};
use super::sight;

/// All answers.
pub fn report(host: &Host, min_processes: usize, worth: Worth) -> Report {
    let source = host.source;
    let seen = seen(host);
    let mut advice = Vec::new();
    let files = files::answer(host, min_processes, worth, &mut advice);
    let page_tables = tables::answer(host, &files.counted_again);
    advice.extend(tables::advise(host, &page_tables, worth));
    let accounts = holders::answer(host, seen.is_whole());
    let pools: Vec<PoolReport> = host
        .pools
        .iter()
        .zip(accounts)
        .map(|(pool, account)| PoolReport { need: pool::need(pool, &advice), pool: pool.clone(), account })
        .collect();
    advice.extend(pools.iter().flat_map(|one| holders::advise(&one.pool, &one.account)));
    let available = host.meminfo.get("MemAvailable");
    advice.extend(pools.iter().filter_map(|one| pool::advise(&one.pool, &one.need, available)));
    limits::raise(host, &mut advice);
    // What a step needs comes before it: pages that nobody uses, then the pool, then those that take from it.
    advice.sort_by_key(|advice| (advice.frees == 0, advice.id != "grow-pool", Reverse(advice.gain)));
    let mut report = Report {
        schema: SCHEMA,
        base_page: source.geometry.page(),
        slot: source.geometry.slot(),
        kernel: host.kernel.clone(),
        pools,
        seen,
        check: Check {
            page_tables: host.meminfo.get("PageTables").unwrap_or(0),
            vm_pte_all: host.census.processes.iter().map(|process| process.vm_pte).sum(),
            estimate: host.probed().map(|probe| probe.tables.bytes(source.geometry)).sum(),
            vm_pte: host.probed().map(|probe| probe.vm_pte).sum(),
            counted_again: files.counted_again.values().sum(),
        },
        page_tables,
        limits: limits::answer(host),
        huge: files.huge,
        base: files.base,
        advice,
    };
    let mut of_this_name: HashMap<String, u64> = HashMap::new();
    for file in report.huge.iter().chain(&report.base) {
        *of_this_name.entry(file.name.clone()).or_default() += 1;
    }
    for list in [&mut report.huge, &mut report.base] {
        list.iter_mut().for_each(|file| file.is_ambiguous = of_this_name[&file.name] > 1);
        list.sort_by(|a, b| {
            b.bytes.now.cmp(&a.bytes.now).then_with(|| (&a.name, a.inode).cmp(&(&b.name, b.inode)))
        });
    }
    (report.seen.reads, report.seen.bytes_read) = source.counts();
    report.seen.milliseconds = host.began.elapsed().as_millis() as u64;
    report
}

fn seen(host: &Host) -> Seen {
    let census = &host.census;
    Seen {
        processes: census.processes.len() as u64,
        unreadable: census.processes.iter().filter(|process| !process.readable).count() as u64,
        vanished: census.vanished,
        mapping: census.processes.iter().filter(|process| !process.mappings.is_empty()).count() as u64,
        looked_into: host.probed().count() as u64,
        kpagecount: host.witness.can_tell(),
        in_container: sight::is_in_a_container(host.source),
        others_hidden: sight::are_others_hidden(host.source),
        is_root: rustix::process::geteuid().is_root(),
        skipped: census.skipped,
        at_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        ..Seen::default()
    }
}
