//! Which files of huge and shared pages there are, what their page tables cost, and what to do about it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::audit::LARGE;
use crate::audit::advice::postgres::Case;
use crate::audit::advice::program::Program;
use crate::audit::advice::{Advice, Worth, base_pages, sharing};
use crate::audit::cost::{Cost, cost};
use crate::audit::files::describe;
use crate::audit::group::Group;
use crate::audit::holding;
use crate::audit::host::Host;
use crate::audit::kernel_version::Protocol;
use crate::audit::pools;
use crate::audit::postgres::server;
use crate::audit::report::{Bytes, FileReport, OfProcesses};
use crate::audit::slots::{self, Analysis, Evidence};

/// Of the processes, names and units of a file no more than so many are told.
const TOLD: usize = 8;

/// The files.
pub struct Files {
    /// Those on huge pages.
    pub huge: Vec<FileReport>,
    /// Large ones on base pages that several processes map.
    pub base: Vec<FileReport>,
    /// Bytes of shared tables that VmPTE counts again, by process.
    pub counted_again: HashMap<i32, u64>,
}

/// Judges all files; what is advised for them comes behind `advice`.
pub fn answer(host: &Host, min_processes: usize, worth: Worth, advice: &mut Vec<Advice>) -> Files {
    let mut files = Files { huge: Vec::new(), base: Vec::new(), counted_again: HashMap::new() };
    for group in &host.groups {
        if group.file.is_hugetlb {
            let (file, analysis) = huge(host, group);
            let again = analysis.sharable_uses - analysis.sharable_tables.min(analysis.sharable_uses);
            files.count_again(group, again * host.source.geometry.page());
            advice.extend(sharing::advise(
                group,
                &analysis,
                &file.tables,
                &host.kernel,
                host.source.geometry,
                &file.subject(),
                worth,
            ));
            files.huge.push(file);
        } else if group.size >= LARGE && group.pids.len() >= min_processes {
            let file = base(host, group);
            let program = file.subject().program();
            let pool = pools::taken(&host.pools, program.names_its_size(), host.source.geometry.huge());
            // One process may map only a part of what is there.
            let pages = holding::file_pages(host.source, group).unwrap_or_else(|| holding::most_pages(group));
            let server = match program {
                // Anybody may have many files, and processes with a server's name.
                Program::PostgreSql if !host.deadline.is_past() => {
                    first_process(host, group).and_then(|pid| server(host.source, pid))
                }
                _ => None,
            };
            advice.extend(pool.and_then(|pool| {
                let case = Case {
                    file: &file,
                    server: server.as_ref(),
                    pools: &host.pools,
                    pool,
                    resident: pages * group.file.page_size,
                };
                base_pages::advise(&case, worth)
            }));
            files.base.push(file);
        }
    }
    files
}

impl Files {
    /// Spreads what is counted again over the processes that count it.
    fn count_again(&mut self, group: &Group, mut bytes: u64) {
        for (index, pid) in group.pids.iter().enumerate() {
            let part = bytes / (group.pids.len() - index) as u64;
            bytes -= part;
            *self.counted_again.entry(*pid).or_default() += part;
        }
    }
}

/// Of the processes that map a file the one that the others are children of.
fn first_process(host: &Host, group: &Group) -> Option<i32> {
    let parents: BTreeSet<i32> =
        group.pids.iter().filter_map(|pid| Some(host.process(*pid)?.parent)).collect();
    group.pids.iter().copied().find(|pid| parents.contains(pid)).or_else(|| group.pids.first().copied())
}

fn huge(host: &Host, group: &Group) -> (FileReport, Analysis) {
    let geometry = host.source.geometry;
    let shares = host.kernel.shares;
    let analysis = match host.kernel.protocol {
        Protocol::FileTables => slots::analyse_owned(group, geometry),
        _ => slots::analyse(group, geometry, shares, &host.witness),
    };
    let file = FileReport {
        slots: analysis.verdicts.clone(),
        evidence: analysis.evidence,
        differing_flags: analysis.differing.clone(),
        ..file(host, group, cost(group, &analysis, geometry, shares))
    };
    (file, analysis)
}

fn base(host: &Host, group: &Group) -> FileReport {
    let nothing = Analysis {
        verdicts: BTreeMap::new(),
        differing: BTreeSet::new(),
        sharable_tables: 0,
        sharable_uses: 0,
        evidence: Evidence::Rules,
        owned: false,
    };
    file(host, group, cost(group, &nothing, host.source.geometry, host.kernel.shares))
}

fn file(host: &Host, group: &Group, cost: Cost) -> FileReport {
    let geometry = host.source.geometry;
    let processes = || group.pids.iter().filter_map(|pid| host.process(*pid));
    let some = |names: BTreeSet<&String>| names.into_iter().take(TOLD).cloned().collect();
    let faults_by_pid: Vec<(i32, u64)> = processes().map(|process| (process.pid, process.faults)).collect();
    FileReport {
        name: describe(&group.file.name, group.id.inode),
        device: format!("{}:{}", group.id.device.0, group.id.device.1),
        inode: group.id.inode,
        // Not known is nothing that could be shown.
        ipc_namespace: Some(group.id.namespace).filter(|namespace| *namespace != u64::MAX).unwrap_or(0),
        is_ambiguous: false,
        page_size: group.file.page_size,
        size: group.size,
        processes: group.pids.len() as u64,
        some_pids: group.pids.iter().copied().take(TOLD).collect(),
        names: some(processes().map(|process| &process.name).collect()),
        units: some(processes().map(|process| &process.unit).filter(|unit| !unit.is_empty()).collect()),
        mappings: group.shapes.iter().map(|shape| shape.members).sum(),
        looked_into: group
            .shapes
            .iter()
            .map(|shape| if shape.witness.is_some() { shape.probed } else { 0 })
            .sum(),
        of_processes: of_processes(host, group),
        slots: BTreeMap::new(),
        evidence: Evidence::Rules,
        differing_flags: BTreeSet::new(),
        bytes: Bytes {
            now: cost.now.bytes(geometry),
            unshared: cost.unshared.bytes(geometry),
            huge: cost.huge.bytes(geometry),
            best_here: cost.best_here.bytes(geometry),
            best_owned: cost.best_owned.bytes(geometry),
            owned_as_is: cost.owned_as_is.bytes(geometry),
        },
        tables: cost,
        faults: faults_by_pid.iter().map(|(_, faults)| faults).sum(),
        faults_by_pid,
    }
}

/// All page tables of a file's processes, of those that were looked into.
fn of_processes(host: &Host, group: &Group) -> OfProcesses {
    let mut all = OfProcesses::default();
    for probe in group.pids.iter().filter_map(|pid| host.probe(*pid)) {
        all.processes += 1;
        all.estimate += probe.tables.bytes(host.source.geometry);
        all.vm_pte += probe.vm_pte;
    }
    all
}
