//! Who has the page tables: by program, by unit and by process, private memory included, up to the host's own figure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::private;
use crate::audit::advice::program::{Program, of};
use crate::audit::advice::{Advice, Step, Subject, Worth, sources};
use crate::audit::collect::Process;
use crate::audit::host::Host;
use crate::audit::kernel_version::Version;
use crate::output::human;

/// So many of each kind are told.
const TOLD: usize = 20;
/// Of processes and units of one so many.
const FEW: usize = 8;

/// The page tables of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PageTables {
    /// `PageTables` of /proc/meminfo.
    pub total: u64,
    /// What of it the processes that were seen have: all their `VmPTE`, each shared table once.
    pub seen: u64,
    /// What is left: the top level of each process, the kernel's own tables, and processes that are not seen.
    pub remainder: u64,
    /// By how much the processes' figures are above the host's: they are of different moments.
    pub excess: u64,
    /// The programs with the largest.
    pub programs: Vec<Owner>,
    /// The units with the largest.
    pub units: Vec<Owner>,
    /// The processes with the largest.
    pub processes: Vec<Owner>,
    /// How many programs there are besides, and what they have.
    pub other_programs: Rest,
    /// The same of units; processes without a unit are in it.
    pub other_units: Rest,
    /// The same of processes.
    pub other_processes: Rest,
}

/// Those that are not told one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rest {
    /// How many.
    pub count: u64,
    /// Bytes of their page tables.
    pub bytes: u64,
}

/// Somebody with page tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Owner {
    /// The names of its programs, at most a few.
    pub programs: BTreeSet<String>,
    /// Its units, at most a few.
    pub units: BTreeSet<String>,
    /// How many processes.
    pub processes: u64,
    /// A few of them, those with the largest tables first.
    pub some_pids: Vec<i32>,
    /// Bytes of page tables; of a shared one its part.
    pub bytes: u64,
    /// What of it maps memory that is no file of huge or shared pages: heaps, stacks, programs, private mappings.
    pub private: u64,
    /// Bytes of memory that its processes have in place.
    pub resident: u64,
    /// What of it is anonymous: heaps and stacks.
    pub anonymous: u64,
}

impl Owner {
    /// Whom an advice is about.
    pub fn subject(&self) -> Subject {
        Subject {
            programs: self.programs.clone(),
            processes: self.processes,
            some_pids: self.some_pids.clone(),
            units: self.units.clone(),
            file: String::new(),
        }
    }

    fn add(&mut self, process: &Process, bytes: u64, private: u64) {
        let name = family(&process.name).to_string();
        add_some(&mut self.programs, &name);
        if !process.unit.is_empty() {
            add_some(&mut self.units, &process.unit);
        }
        self.processes += 1;
        if self.some_pids.len() < FEW {
            self.some_pids.push(process.pid);
        }
        self.bytes += bytes;
        self.private += private;
        self.resident += process.rss;
        self.anonymous += process.rss_anonymous;
    }
}

fn add_some(names: &mut BTreeSet<String>, name: &str) {
    if names.len() < FEW {
        names.insert(name.to_string());
    }
}

/// The name by which processes of one program are counted together: Oracle gives each of its processes one of its own.
pub fn family(name: &str) -> &str {
    match of(name, "") {
        Program::Oracle => "oracle",
        _ => name,
    }
}

/// Adds up; `counted_again` are bytes of shared tables that a process's VmPTE has, and others' as well.
pub fn answer(host: &Host, counted_again: &HashMap<i32, u64>) -> PageTables {
    let geometry = host.source.geometry;
    let mut parts: Vec<(&Process, u64, u64)> = host
        .census
        .processes
        .iter()
        .map(|process| {
            let again = counted_again.get(&process.pid).copied().unwrap_or(0);
            let bytes = process.vm_pte.saturating_sub(again);
            let files: u64 = host
                .probe(process.pid)
                .map_or(0, |probe| probe.mappings.iter().map(|one| one.exclusive.bytes(geometry)).sum());
            let private = match host.probe(process.pid) {
                // Not looked into: not known, so all is taken for the files'.
                None if !process.mappings.is_empty() => 0,
                _ => process.vm_pte.saturating_sub(files).min(bytes),
            };
            (process, bytes, private)
        })
        .collect();
    parts.sort_by_key(|&(process, bytes, _)| (Reverse(bytes), process.pid));
    let total = host.meminfo.get("PageTables").unwrap_or(0);
    let seen: u64 = parts.iter().map(|part| part.1).sum();
    let (programs, other_programs) = grouped(&parts, |process| family(&process.name).to_string());
    let (units, other_units) = grouped(&parts, |process| process.unit.clone());
    let (processes, other_processes) = grouped(&parts, |process| process.pid.to_string());
    PageTables {
        total,
        seen,
        remainder: total.saturating_sub(seen),
        excess: seen.saturating_sub(total),
        programs,
        units,
        processes,
        other_programs,
        other_units,
        other_processes,
    }
}

/// The largest groups, and the rest; who has no name is in the rest.
fn grouped(parts: &[(&Process, u64, u64)], name: impl Fn(&Process) -> String) -> (Vec<Owner>, Rest) {
    let mut owners: BTreeMap<String, Owner> = BTreeMap::new();
    for &(process, bytes, private) in parts {
        owners.entry(name(process)).or_default().add(process, bytes, private);
    }
    let mut rest = Rest::default();
    if let Some(nameless) = owners.remove("") {
        rest = Rest { count: nameless.processes, bytes: nameless.bytes };
    }
    let mut owners: Vec<Owner> = owners.into_values().collect();
    owners.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.some_pids.cmp(&b.some_pids)));
    for owner in owners.split_off(owners.len().min(TOLD)) {
        rest.count += 1;
        rest.bytes += owner.bytes;
    }
    (owners, rest)
}

/// The version from which on Linux frees a table of base pages with the last of its pages (CONFIG_PT_RECLAIM).
const RECLAIMS: Version = Version { major: 6, minor: 14, patch: 0 };

/// What is advised for programs with large tables of private memory.
pub fn advise(host: &Host, tables: &PageTables, worth: Worth) -> Vec<Advice> {
    tables
        .programs
        .iter()
        .filter_map(|owner| sparse(host, owner, worth).or_else(|| private::advise(host, owner, worth)))
        .collect()
}

/// Tables of memory that is not there any more, or was touched here and there only.
fn sparse(host: &Host, owner: &Owner, worth: Worth) -> Option<Advice> {
    let geometry = host.source.geometry;
    // Full tables for all that is there, and for each process as much as a small one needs.
    let dense = owner.resident / geometry.entries() + owner.processes * (64 << 10);
    let gain = owner.private.saturating_sub(dense);
    if gain <= dense || worth == Worth(0) || !worth.is_reached(gain, 0) {
        return None;
    }
    let frees = host.kernel.version.is_some_and(|version| version >= RECLAIMS);
    let what = if frees {
        "Let the program give back whole ranges with munmap or MADV_DONTNEED; this kernel then frees their \
         tables, where it is built with CONFIG_PT_RECLAIM."
    } else {
        "Let the program give back whole ranges with munmap: after MADV_DONTNEED and free() this kernel \
         keeps the tables (Linux 6.14 and later free them)."
    };
    Some(Advice {
        id: "sparse-memory",
        subject: owner.subject(),
        situation: format!(
            "{} of page tables for {} of memory in place: {} are what so much memory needs. The tables are \
             of memory that was given back, or of which a page here and there is used.",
            human::bytes(owner.private),
            human::bytes(owner.resident),
            human::bytes(dense)
        ),
        steps: vec![
            Step::by_hand("Start the program again: that frees all of them, until it has grown as before."),
            Step::by_hand(what),
        ],
        gain,
        cost: 0,
        frees: 0,
        pages: None,
        source: sources::TRANSPARENT,
    })
}
