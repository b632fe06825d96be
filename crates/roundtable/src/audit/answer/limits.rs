//! Limits that keep a program from pages that the pool has: control groups, mounts, nodes, surplus pages, locked memory.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use crate::audit::advice::Subject;
use crate::audit::collect::Process;
use crate::audit::holding::{self, MountPoint};
use crate::audit::host::Host;
use crate::audit::mounts::{mounts, unescaped};
use crate::audit::pools::Pool;
use crate::audit::source::Source;
use crate::output::human;

/// No more are told.
const TOLD: usize = 50;

/// A limit, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// Its kind: `cgroup`, `mount`, `node`, `overcommit`, `memlock`.
    pub kind: &'static str,
    /// Where it is set.
    pub place: String,
    /// What it is.
    pub limit: u64,
    /// What of it is in use.
    pub used: u64,
    /// How often it was met, where the kernel counts that.
    pub failures: u64,
    /// What it does, in a sentence.
    pub what: String,
    /// Whom it limits.
    pub subject: Subject,
}

/// The limits that are met, or nearly so.
pub fn answer(host: &Host) -> Vec<Limit> {
    let mut limits = Vec::new();
    if host.pools.iter().all(|pool| pool.total == 0 && pool.overcommit == 0) {
        return limits;
    }
    let groups = Groups::find(host.source);
    let mut units: BTreeMap<&str, Vec<&Process>> = BTreeMap::new();
    for process in &host.census.processes {
        units.entry(&process.unit).or_default().push(process);
    }
    let mut seen = HashSet::new();
    for processes in units.values() {
        let found = groups.of(host.source, processes[0].pid, &host.pools);
        for mut limit in found.into_iter().filter(is_felt) {
            if seen.insert(limit.place.clone()) {
                limit.subject = subject(processes);
                limits.push(limit);
            }
        }
    }
    limits
        .extend(holding::mounts(host.source, &host.census).iter().filter_map(|mount| of_mount(host, mount)));
    limits.extend(host.pools.iter().filter_map(overcommit));
    limits.extend(nodes(host));
    limits.truncate(TOLD);
    limits
}

/// Whether anybody has met a limit, or the next page will.
fn is_felt(limit: &Limit) -> bool {
    limit.failures > 0 || limit.used > 0 && limit.used * 10 >= limit.limit * 9
}

/// All limits of one process, met or not.
pub fn of_process(host: &Host, process: &Process) -> Vec<Limit> {
    let mut limits = Groups::find(host.source).of(host.source, process.pid, &host.pools);
    let text = host.source.text(&format!("proc/{}/limits", process.pid)).unwrap_or_default();
    let locked = text.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    if let Some(soft) = locked.and_then(|line| line.split_whitespace().next()?.parse().ok()) {
        limits.push(Limit {
            kind: "memlock",
            place: format!("/proc/{}/limits", process.pid),
            limit: soft,
            used: 0,
            failures: 0,
            what: format!(
                "it may lock {} (RLIMIT_MEMLOCK); SysV segments of huge pages need CAP_IPC_LOCK or the group of vm.hugetlb_shm_group, which is {}",
                human::bytes(soft),
                host.source.text("proc/sys/vm/hugetlb_shm_group").unwrap_or_default().trim()
            ),
            subject: subject(&[process]),
        });
    }
    limits.iter_mut().for_each(|limit| limit.subject = subject(&[process]));
    limits
}

fn subject(processes: &[&Process]) -> Subject {
    Subject {
        programs: processes.iter().map(|process| process.name.clone()).take(8).collect(),
        processes: processes.len() as u64,
        some_pids: processes.iter().map(|process| process.pid).take(8).collect(),
        units: processes
            .iter()
            .map(|process| process.unit.clone())
            .filter(|unit| !unit.is_empty())
            .take(8)
            .collect(),
        file: String::new(),
    }
}

/// Where control groups are mounted: those of the second version, and hugetlb's of the first.
struct Groups {
    second: Option<String>,
    first: Option<String>,
}

impl Groups {
    fn find(source: &Source) -> Groups {
        let text = source.text("proc/self/mountinfo").unwrap_or_default();
        let place = |wanted: &dyn Fn(&str, &str) -> bool| {
            let found = mounts(&text).find(|mount| wanted(mount.kind, mount.options));
            found.map(|mount| unescaped(mount.place).trim_start_matches('/').to_string())
        };
        Groups {
            second: place(&|kind, _| kind == "cgroup2"),
            first: place(&|kind, options| kind == "cgroup" && options.split(',').any(|one| one == "hugetlb")),
        }
    }

    /// The limits of a process's group and of those above it.
    fn of(&self, source: &Source, pid: i32, pools: &[Pool]) -> Vec<Limit> {
        let text = source.text(&format!("proc/{pid}/cgroup")).unwrap_or_default();
        let path = |wanted: &str| {
            text.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':');
                let kinds = fields.nth(1)?;
                kinds.split(',').any(|kind| kind == wanted).then(|| fields.next()).flatten()
            })
        };
        let mut limits = Vec::new();
        for (root, path, is_second) in [(&self.second, path(""), true), (&self.first, path("hugetlb"), false)]
        {
            let (Some(root), Some(path)) = (root, path) else { continue };
            let mut folder = path.trim_matches('/');
            loop {
                for pool in pools {
                    limits.extend(group_limits(source, root, folder, pool, is_second));
                }
                if folder.is_empty() {
                    break;
                }
                folder = folder.rsplit_once('/').map_or("", |(above, _)| above);
            }
        }
        limits
    }
}

/// The limits of one group on pages of one size: on those in use, and on promises.
fn group_limits(source: &Source, root: &str, folder: &str, pool: &Pool, is_second: bool) -> Vec<Limit> {
    let size = match pool.page_size {
        gigabytes if gigabytes >= 1 << 30 => format!("{}GB", gigabytes >> 30),
        megabytes if megabytes >= 1 << 20 => format!("{}MB", megabytes >> 20),
        bytes => format!("{}KB", bytes >> 10),
    };
    let start = if folder.is_empty() { root.to_string() } else { format!("{root}/{folder}") };
    let kinds = [("", "pages in use"), (".rsvd", "pages that are promised or in use")];
    let found = kinds.into_iter().filter_map(|(kind, of)| {
        let name = |second: &str, first: &str| {
            format!("{start}/hugetlb.{size}{kind}.{}", if is_second { second } else { first })
        };
        let number = |name: &str| source.text(name)?.trim().parse::<u64>().ok();
        let place = name("max", "limit_in_bytes");
        // "max" is no number, and the first version's is beyond all memory.
        let limit = number(&place).filter(|limit| *limit < 1 << 60)?;
        let used = number(&name("current", "usage_in_bytes")).unwrap_or(0);
        let events = || {
            let text = source.text(&format!("{start}/hugetlb.{size}.events"))?;
            text.lines().find_map(|line| line.strip_prefix("max ")?.trim().parse().ok())
        };
        let failures =
            if is_second { events().filter(|_| kind.is_empty()) } else { number(&name("", "failcnt")) };
        let failures = failures.unwrap_or(0);
        Some(Limit {
            kind: "cgroup",
            place: format!("/{place}"),
            limit,
            used,
            failures,
            what: format!(
                "its control group may have {} of {of} of {}, has {}, and was refused {} times: beyond it mmap ends with ENOMEM or a touch with SIGBUS, whatever the pool has",
                human::bytes(limit),
                human::bytes(pool.page_size),
                human::bytes(used),
                human::count(failures)
            ),
            subject: Subject::default(),
        })
    });
    found.collect()
}

fn of_mount(host: &Host, mount: &MountPoint) -> Option<Limit> {
    let limit = mount.size?;
    let used = mount.used_pages * mount.page_size;
    if used * 10 < limit * 9 {
        return None;
    }
    let device = mount.device();
    let groups = host.groups.iter().filter(|group| group.id.device == device);
    let pids: HashSet<i32> = groups.flat_map(|group| group.pids.iter().copied()).collect();
    let mut processes: Vec<&Process> = pids.into_iter().filter_map(|pid| host.process(pid)).collect();
    processes.sort_by_key(|process| process.pid);
    Some(Limit {
        kind: "mount",
        place: mount.path.clone(),
        limit,
        used,
        failures: 0,
        what: format!(
            "the mount's size= lets its files have {}, and they have {}: a touch beyond it ends with SIGBUS, whatever the pool has (mount -o remount,size=... raises it)",
            human::bytes(limit),
            human::bytes(used)
        ),
        subject: Subject { file: mount.path.clone(), ..subject(&processes) },
    })
}

fn overcommit(pool: &Pool) -> Option<Limit> {
    (pool.surplus > 0 && pool.surplus >= pool.overcommit).then(|| Limit {
        kind: "overcommit",
        place: pool.file("/sys/kernel/mm").replace("nr_hugepages", "nr_overcommit_hugepages"),
        limit: pool.overcommit * pool.page_size,
        used: pool.surplus * pool.page_size,
        failures: 0,
        what: format!(
            "{} surplus pages of {} are in use, all that nr_overcommit_hugepages allows: the next program finds the pool empty",
            human::count(pool.surplus),
            human::bytes(pool.page_size)
        ),
        subject: Subject { file: format!("pool of {} pages", human::bytes(pool.page_size)), ..Subject::default() },
    })
}

/// Processes that may use nodes only on which the pool is empty, where it has pages on others.
fn nodes(host: &Host) -> Vec<Limit> {
    let mut limits = Vec::new();
    for pool in host.pools.iter().filter(|pool| pool.nodes.len() > 1 && pool.free > 0) {
        let mut bound: BTreeMap<String, Vec<&Process>> = BTreeMap::new();
        for process in host.census.processes.iter().filter(|process| !process.mappings.is_empty()) {
            let status = host.source.text(&format!("proc/{}/status", process.pid)).unwrap_or_default();
            let Some(list) = status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:")) else {
                continue;
            };
            let allowed = numbers(list.trim());
            let free: u64 =
                pool.nodes.iter().filter(|node| allowed.contains(&node.node)).map(|node| node.free).sum();
            if free == 0 && pool.nodes.iter().any(|node| !allowed.contains(&node.node)) {
                bound.entry(list.trim().to_string()).or_default().push(process);
            }
        }
        limits.extend(bound.into_iter().map(|(list, processes)| Limit {
            kind: "node",
            place: format!("/proc/{}/status", processes[0].pid),
            limit: 0,
            used: 0,
            failures: 0,
            what: format!(
                "it may use the memory of node {list} only, where the pool of {} has no free page; {} are free on others",
                human::bytes(pool.page_size),
                human::count(pool.free)
            ),
            subject: subject(&processes),
        }));
    }
    limits
}

/// A list of the kernel's, such as `0-2,5`.
fn numbers(list: &str) -> HashSet<u32> {
    let mut all = HashSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            // No machine has more nodes.
            all.extend(first..=last.min(first.saturating_add(1024)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool { page_size: 2 << 20, total: 100, free: 50, ..Pool::default() }
    }

    #[test]
    fn groups_of_both_versions_and_those_above_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put(
            "proc/self/mountinfo",
            "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n31 1 0:27 / /cg/hugetlb rw - cgroup cgroup rw,hugetlb\n",
        );
        put("proc/7/cgroup", "4:hugetlb:/old\n0::/kubepods.slice/pod1.slice\n");
        put("sys/fs/cgroup/kubepods.slice/hugetlb.2MB.max", "max\n");
        put("sys/fs/cgroup/kubepods.slice/pod1.slice/hugetlb.2MB.max", "104857600\n");
        put("sys/fs/cgroup/kubepods.slice/pod1.slice/hugetlb.2MB.current", "104857600\n");
        put("sys/fs/cgroup/kubepods.slice/pod1.slice/hugetlb.2MB.events", "max 3\n");
        put("cg/hugetlb/old/hugetlb.2MB.limit_in_bytes", "9223372036854771712\n");
        put("cg/hugetlb/hugetlb.2MB.rsvd.limit_in_bytes", "4194304\n");
        put("cg/hugetlb/hugetlb.2MB.rsvd.failcnt", "9\n");
        let source = Source::recorded(folder.path());
        let limits = Groups::find(&source).of(&source, 7, &[pool()]);
        let told: Vec<_> =
            limits.iter().map(|one| (one.place.as_str(), one.limit, one.used, one.failures)).collect();
        assert_eq!(
            told,
            [
                ("/sys/fs/cgroup/kubepods.slice/pod1.slice/hugetlb.2MB.max", 100 << 20, 100 << 20, 3),
                ("/cg/hugetlb/hugetlb.2MB.rsvd.limit_in_bytes", 4 << 20, 0, 9),
            ]
        );
    }

    #[test]
    fn surplus_pages_have_a_limit() {
        let full = Pool { surplus: 5, overcommit: 5, ..pool() };
        assert!(overcommit(&full).is_some_and(|limit| limit.place.ends_with("nr_overcommit_hugepages")));
        assert!(overcommit(&Pool { surplus: 4, ..full }).is_none() && overcommit(&pool()).is_none());
    }

    #[test]
    fn lists_of_nodes_are_read() {
        assert_eq!(numbers("0-2,5"), HashSet::from([0, 1, 2, 5]));
        assert_eq!(numbers("x,4294967295-0,"), HashSet::new());
    }
}
