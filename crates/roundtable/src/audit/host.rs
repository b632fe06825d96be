//! One look at the host: the processes, what they map, the pools. All questions are answered from it.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::collect::{self, Census, Mapping, Missing, Process};
use super::deadline::Deadline;
use super::files::Devices;
use super::group::{self, Group};
use super::kernel_version::{self, Kernel};
use super::meminfo::Meminfo;
use super::pools::{self, Pool};
use super::probe::{self, Probe};
use super::source::Source;
use super::witness;
use crate::output::human;

/// What was seen of a host.
pub struct Host<'a> {
    /// Where it was read.
    pub source: &'a Source,
    /// The kernel.
    pub kernel: Kernel,
    /// /proc/meminfo.
    pub meminfo: Meminfo,
    /// The pools of huge pages, smallest pages first.
    pub pools: Vec<Pool>,
    /// The processes and their files.
    pub census: Census,
    /// What looking into processes has shown; `None` of those that there was no time for, or that may not be
    /// looked into.
    pub probes: HashMap<i32, Option<Probe>>,
    /// The files with their mappings.
    pub groups: Vec<Group>,
    /// Whom to ask in how many tables a page is.
    pub witness: witness::Kernel<'a>,
    /// When the look began.
    pub began: Instant,
    /// When it has to end.
    pub deadline: Deadline,
    /// The place of each process in the census.
    places: HashMap<i32, usize>,
}

impl<'a> Host<'a> {
    /// Looks at all processes, then into those that map huge or shared pages.
    pub fn look(source: &'a Source, deadline: Deadline, with_faults: bool) -> Result<Host<'a>> {
        let devices = Devices::default();
        let began = Instant::now();
        let mut census = collect::census(source, &devices, with_faults, &deadline)
            .with_context(|| source.path("proc").display().to_string())?;
        refuse_blindness(source, &census)?;
        let probes = look_into(source, &devices, &mut census, &deadline);
        let meminfo = Meminfo::read(source);
        let groups = group::groups(&census, &probes, source.geometry);
        let places =
            census.processes.iter().enumerate().map(|(place, process)| (process.pid, place)).collect();
        Ok(Host {
            source,
            kernel: kernel_version::running(source),
            pools: pools::read(source, &meminfo),
            meminfo,
            census,
            probes,
            groups,
            witness: witness::Kernel::new(source, deadline.clone()),
            began,
            deadline,
            places,
        })
    }

    /// A process that was seen.
    pub fn process(&self, pid: i32) -> Option<&Process> {
        self.census.processes.get(*self.places.get(&pid)?)
    }

    /// What looking into a process has shown.
    pub fn probe(&self, pid: i32) -> Option<&Probe> {
        self.probes.get(&pid)?.as_ref()
    }

    /// All processes that were looked into.
    pub fn probed(&self) -> impl Iterator<Item = &Probe> {
        self.probes.values().flatten()
    }
}

/// An audit that has seen no process says nothing of the host, and must not look as if all were well.
fn refuse_blindness(source: &Source, census: &Census) -> Result<()> {
    let proc = source.path("proc");
    if census.processes.is_empty() && census.skipped > 0 {
        bail!(
            "{}: there was no time to look at any of {}; --seconds gives more, --all as much as it takes",
            proc.display(),
            human::processes(census.skipped)
        );
    }
    if census.processes.is_empty() {
        bail!("{}: no process is in sight; is it a mounted /proc?", proc.display());
    }
    if !census.processes.iter().any(|process| process.readable) {
        bail!(
            "{}: none of {} may be read{}",
            proc.display(),
            human::processes(census.processes.len() as u64),
            if rustix::process::geteuid().is_root() { "" } else { "; run as root" }
        );
    }
    Ok(())
}

/// Looks into the processes that map huge or shared pages, those first that stand for many. Processes that have ended
/// meanwhile leave the census.
fn look_into(
    source: &Source,
    devices: &Devices,
    census: &mut Census,
    deadline: &Deadline,
) -> HashMap<i32, Option<Probe>> {
    let mut ranks: HashMap<_, usize> = HashMap::new();
    let mut order: Vec<(usize, i32)> = Vec::new();
    for process in census.processes.iter().filter(|process| !process.mappings.is_empty()) {
        let rank_of = |mapping: &Mapping, ranks: &mut HashMap<_, usize>| {
            let key = (mapping.file, mapping.start, mapping.end, mapping.offset, mapping.access);
            let rank = ranks.entry(key).or_default();
            *rank += 1;
            *rank
        };
        let rank = process.mappings.iter().map(|mapping| rank_of(mapping, &mut ranks)).min();
        order.push((rank.unwrap_or(1), process.pid));
    }
    order.sort_unstable();
    let files = collect::Files::new(std::mem::take(&mut census.files));
    let looks = collect::in_parallel(&order, deadline, |&(_, pid), buffer| {
        probe::probe(source, devices, &files, pid, deadline, buffer)
    });
    census.files = files.into_inner().expect("no holder panics");
    let mut probes = HashMap::new();
    let mut gone = BTreeSet::new();
    for ((_, pid), look) in order.into_iter().zip(looks) {
        match look {
            Some(Ok(probe)) => {
                probes.insert(pid, Some(probe));
            }
            Some(Err(Missing::Gone)) => {
                gone.insert(pid);
            }
            Some(Err(Missing::Denied | Missing::Late)) | None => {
                probes.insert(pid, None);
            }
        }
    }
    census.vanished += gone.len() as u64;
    census.processes.retain(|process| !gone.contains(&process.pid));
    probes
}
