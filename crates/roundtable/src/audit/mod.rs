//! `roundtable audit`: who shares page tables on this Linux host, who could, and what it saves.
//!
//! It reads /proc and /sys and nothing else; it never stops, traces or changes a process. First it looks at every process
//! briefly (status and maps), then into those that map huge or shared pages (pagemap, and smaps as far as needed), as
//! many as the time allows: of mappings that are alike at least one is looked into, and the others are taken to be the same.

pub mod collect;
pub mod cost;
pub mod coverage;
pub mod cures;
pub mod files;
pub mod geometry;
pub mod group;
pub mod kernel_version;
pub mod maps;
pub mod mounts;
pub mod pagemap;
pub mod probe;
pub mod record;
pub mod recording;
pub mod report;
pub mod same_memory;
pub mod sight;
pub mod slots;
pub mod source;
pub mod tables;
pub mod witness;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use procfs::FromRead;

use self::collect::{Census, Missing};
use self::files::Devices;
use self::group::Group;
use self::kernel_version::{Kernel, Protocol};
use self::probe::Probe;
use self::report::{Bytes, Check, FileReport, OfProcesses, Pool, Report, SCHEMA, Seen};
use self::slots::Witness;
use self::source::Source;
use crate::output;

/// Shared memory on base pages from this size on is worth a line.
pub const LARGE: u64 = 64 << 20;

/// How to audit.
#[derive(Args, Clone, Debug)]
pub struct AuditOptions {
    /// Write JSON instead of a table
    #[arg(long, conflicts_with = "prometheus")]
    pub json: bool,

    /// Write Prometheus' text format, for node_exporter's textfile collector
    #[arg(long)]
    pub prometheus: bool,

    /// Write to this file, which is replaced in one go; to a device, FIFO or socket; or with - to standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Files shown, those with the largest page tables first
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,

    /// How far to look.
    #[command(flatten)]
    pub look: LookOptions,
}

/// How far to look.
#[derive(Args, Clone, Debug)]
pub struct LookOptions {
    /// Seconds for looking into processes; what is not looked into by then is taken to be as those alike are
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    pub seconds: u64,

    /// Look into all processes, however long it takes
    #[arg(long, conflicts_with = "seconds")]
    pub all: bool,

    /// Shared memory on base pages counts when at least so many processes map it
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub min_processes: usize,

    /// Look at a recording that `roundtable record` has made, instead of this host
    #[arg(long, value_name = "FOLDER")]
    pub root: Option<PathBuf>,
}

impl LookOptions {
    /// Where to read.
    pub fn source(&self) -> Source {
        self.root.as_deref().map_or_else(Source::host, Source::recorded)
    }
}

/// Audits and writes the result; the exit status.
pub fn run(options: &AuditOptions) -> Result<i32> {
    let source = options.look.source();
    let report = audit(&source, &options.look, false)?;
    let text = if options.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else if options.prometheus {
        output::prometheus::text(&report)
    } else {
        output::table::text(&report, options.top)
    };
    output::file::write(&text, options.output.as_deref())?;
    Ok(0)
}

/// Audits once.
pub fn audit(source: &Source, options: &LookOptions, with_faults: bool) -> Result<Report> {
    let devices = Devices::default();
    let mut census = collect::census(source, &devices, with_faults)
        .with_context(|| source.path("proc").display().to_string())?;
    let deadline = (!options.all).then(|| Instant::now() + Duration::from_secs(options.seconds));
    let probes = look_into(source, &devices, &mut census, deadline);
    let kernel = kernel_version::running(source);
    let witness = witness::Kernel::new(source);
    let mut report = Report {
        schema: SCHEMA,
        base_page: source.geometry.page(),
        slot: source.geometry.slot(),
        pools: pools(source),
        seen: Seen {
            processes: census.processes.len() as u64,
            unreadable: census.processes.iter().filter(|process| !process.readable).count() as u64,
            vanished: census.vanished,
            mapping: census.processes.iter().filter(|process| !process.mappings.is_empty()).count() as u64,
            looked_into: probes.values().flatten().count() as u64,
            kpagecount: witness.can_tell(),
            in_container: sight::is_in_a_container(source),
            others_hidden: sight::are_others_hidden(source),
            ..Seen::default()
        },
        check: Check {
            page_tables: page_tables(source),
            vm_pte_all: census.processes.iter().map(|process| process.vm_pte).sum(),
            estimate: probes.values().flatten().map(|probe| probe.tables.bytes(source.geometry)).sum(),
            vm_pte: probes.values().flatten().map(|probe| probe.vm_pte).sum(),
            counted_again: 0,
        },
        kernel,
        huge: Vec::new(),
        base: Vec::new(),
    };
    let faults: HashMap<i32, u64> =
        census.processes.iter().map(|process| (process.pid, process.faults)).collect();
    let names: HashMap<i32, &str> =
        census.processes.iter().map(|process| (process.pid, process.name.as_str())).collect();
    for group in group::groups(&census, &probes, source.geometry) {
        if group.file.is_hugetlb {
            let file = huge(source, &group, &report.kernel, &witness, &mut report.check, &names, &faults);
            report.huge.push(FileReport { of_processes: of_processes(&group, &probes, source), ..file });
        } else if group.size >= LARGE && group.pids.len() >= options.min_processes {
            let file = base(source, &group, &report.kernel, &names, &faults);
            report.base.push(FileReport { of_processes: of_processes(&group, &probes, source), ..file });
        }
    }
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
    Ok(report)
}

/// Looks into the processes that map huge or shared pages, those first that stand for many. Processes that have ended
/// meanwhile leave the census.
fn look_into(
    source: &Source,
    devices: &Devices,
    census: &mut Census,
    deadline: Option<Instant>,
) -> HashMap<i32, Option<Probe>> {
    let mut ranks: HashMap<_, usize> = HashMap::new();
    let mut order: Vec<(usize, i32)> = Vec::new();
    for process in census.processes.iter().filter(|process| !process.mappings.is_empty()) {
        let rank_of = |mapping: &collect::Mapping, ranks: &mut HashMap<_, usize>| {
            let key = (mapping.file, mapping.start, mapping.end, mapping.offset, mapping.access);
            let rank = ranks.entry(key).or_default();
            *rank += 1;
            *rank
        };
        let rank = process.mappings.iter().map(|mapping| rank_of(mapping, &mut ranks)).min();
        order.push((rank.unwrap_or(1), process.pid));
    }
    order.sort_unstable();
    let looks = collect::in_parallel(&order, deadline, |&(_, pid), buffer| {
        probe::probe(source, devices, pid, buffer)
    });
    let mut probes = HashMap::new();
    let mut gone = BTreeSet::new();
    for ((_, pid), look) in order.into_iter().zip(looks) {
        match look {
            Some(Ok((probe, files))) => {
                census.files.extend(files);
                probes.insert(pid, Some(probe));
            }
            Some(Err(Missing::Gone)) => {
                gone.insert(pid);
            }
            Some(Err(Missing::Denied)) | None => {
                probes.insert(pid, None);
            }
        }
    }
    census.vanished += gone.len() as u64;
    census.processes.retain(|process| !gone.contains(&process.pid));
    probes
}

fn huge(
    source: &Source,
    group: &Group,
    kernel: &Kernel,
    witness: &dyn Witness,
    check: &mut Check,
    names: &HashMap<i32, &str>,
    faults: &HashMap<i32, u64>,
) -> FileReport {
    let geometry = source.geometry;
    let analysis = match kernel.protocol {
        Protocol::FileTables => slots::analyse_owned(group, geometry),
        _ => slots::analyse(group, geometry, kernel.shares, witness),
    };
    let cost = cost::cost(group, &analysis, geometry, kernel.shares);
    check.counted_again +=
        (analysis.sharable_uses - analysis.sharable_tables.min(analysis.sharable_uses)) * geometry.page();
    let cures = cures::for_huge(group, &analysis, &cost, kernel, geometry);
    FileReport {
        slots: analysis.verdicts,
        evidence: analysis.evidence,
        differing_flags: analysis.differing,
        cures,
        ..file_report(group, source, cost, names, faults)
    }
}

fn base(
    source: &Source,
    group: &Group,
    kernel: &Kernel,
    names: &HashMap<i32, &str>,
    faults: &HashMap<i32, u64>,
) -> FileReport {
    let geometry = source.geometry;
    let nothing = slots::Analysis {
        verdicts: BTreeMap::new(),
        differing: BTreeSet::new(),
        sharable_tables: 0,
        sharable_uses: 0,
        evidence: slots::Evidence::Rules,
        owned: false,
    };
    let cost = cost::cost(group, &nothing, geometry, kernel.shares);
    let report = file_report(group, source, cost, names, faults);
    let cures = cures::for_base(group, &cost, geometry, report.names.contains("postgres"));
    FileReport { cures, ..report }
}

fn file_report(
    group: &Group,
    source: &Source,
    cost: cost::Cost,
    names: &HashMap<i32, &str>,
    faults: &HashMap<i32, u64>,
) -> FileReport {
    let geometry = source.geometry;
    let all_names: BTreeSet<String> =
        group.pids.iter().filter_map(|pid| names.get(pid)).map(|name| name.to_string()).collect();
    let faults_by_pid: Vec<(i32, u64)> =
        group.pids.iter().map(|pid| (*pid, faults.get(pid).copied().unwrap_or(0))).collect();
    FileReport {
        name: files::describe(&group.file.name, group.id.inode),
        device: format!("{}:{}", group.id.device.0, group.id.device.1),
        inode: group.id.inode,
        // Not known is nothing that could be shown.
        ipc_namespace: Some(group.id.namespace).filter(|namespace| *namespace != u64::MAX).unwrap_or(0),
        is_ambiguous: false,
        page_size: group.file.page_size,
        size: group.size,
        processes: group.pids.len() as u64,
        some_pids: group.pids.iter().copied().take(8).collect(),
        names: all_names.into_iter().take(8).collect(),
        mappings: group.shapes.iter().map(|shape| shape.members).sum(),
        looked_into: group
            .shapes
            .iter()
            .map(|shape| if shape.witness.is_some() { shape.probed } else { 0 })
            .sum(),
        of_processes: OfProcesses::default(),
        slots: BTreeMap::new(),
        evidence: slots::Evidence::Rules,
        differing_flags: BTreeSet::new(),
        bytes: Bytes {
            now: cost.now.bytes(geometry),
            unshared: cost.unshared.bytes(geometry),
            huge: cost.huge.bytes(geometry),
            best_here: cost.best_here.bytes(geometry),
            best_owned: cost.best_owned.bytes(geometry),
        },
        tables: cost,
        cures: Vec::new(),
        faults: faults_by_pid.iter().map(|(_, faults)| faults).sum(),
        faults_by_pid,
    }
}

/// All page tables of a file's processes, of those that were looked into.
fn of_processes(group: &Group, probes: &HashMap<i32, Option<Probe>>, source: &Source) -> OfProcesses {
    let mut all = OfProcesses::default();
    for probe in group.pids.iter().filter_map(|pid| probes.get(pid)?.as_ref()) {
        all.processes += 1;
        all.estimate += probe.tables.bytes(source.geometry);
        all.vm_pte += probe.vm_pte;
    }
    all
}

/// `PageTables` of /proc/meminfo, in bytes.
fn page_tables(source: &Source) -> u64 {
    let file = std::fs::File::open(source.path("proc/meminfo")).ok();
    let meminfo = file.and_then(|file| procfs::Meminfo::from_read(source.counted(file)).ok());
    meminfo.and_then(|meminfo| meminfo.page_tables).unwrap_or(0)
}

/// The pools of huge pages, smallest pages first.
fn pools(source: &Source) -> Vec<Pool> {
    let Ok(entries) = std::fs::read_dir(source.path("sys/kernel/mm/hugepages")) else { return Vec::new() };
    let mut pools: Vec<Pool> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let number = |file: &str| {
                let text = source.text(&format!("sys/kernel/mm/hugepages/{name}/{file}"));
                text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
            };
            Some(Pool {
                page_size: kilobytes << 10,
                total: number("nr_hugepages"),
                free: number("free_hugepages"),
                reserved: number("resv_hugepages"),
                surplus: number("surplus_hugepages"),
            })
        })
        .collect();
    pools.sort_by_key(|pool| pool.page_size);
    pools
}
