//! An audit in Prometheus' text format, for node_exporter's textfile collector.
//!
//! Names follow Prometheus' conventions: base units, `_bytes` and `_total` where they belong, gauges for what
//! goes up and down. The file's labels are few and stable, so that a fleet's series do not multiply with its
//! processes; and only those files that have most have a name: anybody may make any number of them.

mod answers;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write;

use crate::audit::kernel_version::Status;
use crate::audit::report::{FileReport, PoolReport, Report};

type Labels = Vec<(&'static str, String)>;

/// One metric: all its samples stand together below its HELP and TYPE lines, as the format wants it.
struct Metric {
    name: &'static str,
    help: &'static str,
    samples: Vec<(Labels, f64)>,
}

/// The whole audit.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    for metric in metrics(report) {
        if metric.samples.is_empty() {
            continue;
        }
        let _ = writeln!(out, "# HELP {} {}", metric.name, metric.help);
        let _ = writeln!(out, "# TYPE {} gauge", metric.name);
        for (labels, value) in metric.samples {
            // An empty label is to Prometheus as one that is not there.
            let labels: Vec<String> = labels
                .iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
                .collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(out, "{}{labels} {value}", metric.name);
        }
    }
    out
}

/// So many files have labels of their own, those with the largest page tables; the rest are one, by the size of their pages.
const NAMED: usize = 50;
/// What they are called together.
const OTHERS: &str = "others";

/// Each file with its labels.
fn named(report: &Report) -> Vec<(Labels, &FileReport)> {
    let files: Vec<&FileReport> = report.huge.iter().chain(&report.base).collect();
    let mut order: Vec<usize> = (0..files.len()).collect();
    order.sort_by_key(|&index| Reverse(files[index].bytes.now));
    let others: HashSet<usize> = order.into_iter().skip(NAMED).collect();
    let label = |(index, file): (usize, &FileReport)| match others.contains(&index) {
        true => vec![("file", OTHERS.to_string()), ("page_size", file.page_size.to_string())],
        false => labels(file),
    };
    files.into_iter().enumerate().map(|(index, file)| (label((index, file)), file)).collect()
}

fn metrics(report: &Report) -> Vec<Metric> {
    let files = named(report);
    let of_file = |name, help, value: &dyn Fn(&FileReport) -> u64| Metric {
        name,
        help,
        samples: summed(files.iter().map(|(labels, file)| (labels.clone(), value(file)))),
    };
    let plain = |name, help, value: u64| Metric { name, help, samples: vec![(Vec::new(), value as f64)] };
    let kinds = ["now", "unshared", "huge_pages", "best_here", "file_owned", "file_owned_as_is"];
    let mut metrics = vec![
        of_file(
            "roundtable_file_size_bytes",
            "Bytes of a file from its start to the end of what is mapped.",
            &|file| file.size,
        ),
        of_file("roundtable_file_processes", "Processes that map a file.", &|file| file.processes),
        of_file("roundtable_file_mappings", "Mappings of a file.", &|file| file.mappings),
        Metric {
            name: "roundtable_file_page_table_bytes",
            help: "Page tables that only a file's mappings need: now, without sharing, on huge pages, \
                   at best on this kernel, and with tables owned by the file, on huge pages and on the pages that it has.",
            samples: summed(files.iter().flat_map(|(labels, file)| {
                let bytes = file.bytes;
                let owned = [bytes.best_owned, bytes.owned_as_is];
                let values = [[bytes.now, bytes.unshared], [bytes.huge, bytes.best_here], owned].concat();
                kinds
                    .into_iter()
                    .zip(values)
                    .map(move |(kind, value)| (with(labels.clone(), "state", kind), value))
            })),
        },
        Metric {
            name: "roundtable_file_slots",
            help: "Slots of one shared table each, of all mappings of a file, by what became of them.",
            samples: summed(files.iter().flat_map(|(labels, file)| {
                file.slots
                    .iter()
                    .map(move |(verdict, count)| (with(labels.clone(), "verdict", &name_of(verdict)), *count))
            })),
        },
        Metric {
            name: "roundtable_pool_pages",
            help: "Huge pages of a pool.",
            samples: report
                .pools
                .iter()
                .flat_map(|PoolReport { pool, need, .. }| {
                    let values = [
                        ("total", pool.total),
                        ("free", pool.free),
                        ("reserved", pool.reserved),
                        ("surplus", pool.surplus),
                        ("needed", need.nr_hugepages),
                    ];
                    values.map(|(state, value)| {
                        (
                            vec![("page_size", pool.page_size.to_string()), ("state", state.to_string())],
                            value as f64,
                        )
                    })
                })
                .collect(),
        },
        plain("roundtable_page_tables_bytes", "PageTables of /proc/meminfo.", report.check.page_tables),
        plain(
            "roundtable_vm_pte_bytes",
            "VmPTE of all processes together; shared tables count in each.",
            report.check.vm_pte_all,
        ),
        plain(
            "roundtable_shared_tables_counted_again_bytes",
            "What of VmPTE counts shared tables again.",
            report.check.counted_again,
        ),
        plain("roundtable_processes", "Processes with memory of their own.", report.seen.processes),
        plain(
            "roundtable_processes_unreadable",
            "Processes whose mappings may not be read.",
            report.seen.unreadable,
        ),
        plain(
            "roundtable_processes_mapping",
            "Processes that map huge or shared pages.",
            report.seen.mapping,
        ),
        plain(
            "roundtable_processes_looked_into",
            "Processes that were looked into.",
            report.seen.looked_into,
        ),
        Metric {
            name: "roundtable_kernel_info",
            help: "The kernel's release, and how its faults are fenced from tables that are taken away; always 1.",
            samples: vec![(
                vec![
                    ("release", report.kernel.release.clone()),
                    ("machine", report.kernel.machine.clone()),
                    ("protocol", name_of(&report.kernel.protocol)),
                ],
                1.0,
            )],
        },
        plain(
            "roundtable_kernel_shares_tables",
            "Whether this kernel shares page tables of huge pages.",
            report.kernel.shares.into(),
        ),
    ];
    metrics.extend(answers::metrics(report));
    metrics.push(Metric {
        name: "roundtable_kernel_known_bug",
        help: "1 for a known bug that the kernel's version carries, 0 for one that it does not; absent \
            where the version does not tell.",
        samples: report
            .kernel
            .findings
            .iter()
            .filter(|finding| finding.status != Status::Unknown)
            .map(|finding| {
                (
                    vec![("bug", finding.id.to_string())],
                    f64::from(u8::from(finding.status == Status::Present)),
                )
            })
            .collect(),
    });
    metrics
}

/// The name that a value has in the JSON output too.
fn name_of(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).ok();
    value.as_ref().and_then(|value| value.as_str()).unwrap_or_default().to_string()
}

/// The values of one series together: two files may have one stable name.
fn summed(samples: impl Iterator<Item = (Labels, u64)>) -> Vec<(Labels, f64)> {
    let mut sums: Vec<(Labels, f64)> = Vec::new();
    let mut places: HashMap<Labels, usize> = HashMap::new();
    for (labels, value) in samples {
        let place = *places.entry(labels.clone()).or_insert(sums.len());
        match sums.get_mut(place) {
            Some((_, sum)) => *sum += value as f64,
            None => sums.push((labels, value as f64)),
        }
    }
    sums
}

/// Labels that stay when a program is started again: no numbers of processes, files, devices and namespaces.
fn labels(file: &FileReport) -> Labels {
    vec![
        ("file", stable(&file.name)),
        ("program", some(&file.names)),
        ("unit", some(&file.units)),
        ("page_size", file.page_size.to_string()),
    ]
}

/// The first few of many names.
fn some(names: &BTreeSet<String>) -> String {
    const SOME: usize = 3;
    let some: Vec<&str> = names.iter().take(SOME).map(String::as_str).collect();
    some.join(",") + if names.len() > SOME { ",..." } else { "" }
}

/// A file's name without numbers that change each time: of a path the last part's digits become `*`, and those of a memfd;
/// a segment has its key only.
pub fn stable(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("SysV segment ") {
        let key = rest.split_once(' ').map_or("", |(_, key)| key);
        return format!("SysV segment {key}");
    }
    let (start, base) = match (name.strip_prefix("memfd "), name.rfind('/')) {
        (Some(base), _) => ("memfd ", base),
        (None, Some(end)) if name.starts_with('/') => name.split_at(end + 1),
        _ => return name.to_string(),
    };
    let mut out = start.to_string();
    for c in base.chars() {
        match c.is_ascii_digit() {
            true if out.ends_with('*') => {}
            true => out.push('*'),
            false => out.push(c),
        }
    }
    out
}

fn with(mut labels: Labels, name: &'static str, value: &str) -> Labels {
    labels.push((name, value.to_string()));
    labels
}

/// A label's value as the format has it.
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out
}
