//! Limits that keep a program from pages that the pool has: control groups, mounts, nodes, surplus pages,
//! locked memory.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use crate::audit::advice::{Advice, Step, Subject, is_plain};
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
    let mut alike: BTreeMap<&str, Vec<&Process>> = BTreeMap::new();
    for process in &host.census.processes {
        alike.entry(&process.groups).or_default().push(process);
    }
    let mut seen = HashSet::new();
    for processes in alike.values().take_while(|_| !host.deadline.is_past()) {
        let found = groups.of(host.source, processes[0].pid, &host.pools);
        for mut limit in found.into_iter().filter(is_felt) {
            if seen.insert(limit.place.clone()) {
                limit.subject = subject(processes);
                limits.push(limit);
            }
        }
    }
    limits.extend(
        holding::mounts(host.source, &host.census, &host.deadline)
            .iter()
            .filter_map(|mount| of_mount(host, mount)),
    );
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
                "it may lock {} (RLIMIT_MEMLOCK); SysV segments of huge pages need CAP_IPC_LOCK or the \
                 group of vm.hugetlb_shm_group, which is {}",
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
pub struct Groups {
    second: Option<String>,
    first: Option<String>,
}

impl Groups {
    /// Finds them in this program's own table of mounts.
    pub fn find(source: &Source) -> Groups {
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

    /// The folders of a process's group and of those above it, the deepest first; behind each whether it is
    /// of the second version.
    pub fn folders(&self, source: &Source, pid: i32) -> Vec<Folder<'_>> {
        let text = source.text(&format!("proc/{pid}/cgroup")).unwrap_or_default();
        let path = |wanted: &str| {
            text.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':');
                let kinds = fields.nth(1)?;
                kinds.split(',').any(|kind| kind == wanted).then(|| fields.next()).flatten()
            })
        };
        let mut folders = Vec::new();
        for (root, path, is_second) in [(&self.second, path(""), true), (&self.first, path("hugetlb"), false)]
        {
            let (Some(root), Some(path)) = (root, path) else { continue };
            let mut group = path.trim_matches('/');
            loop {
                folders.push(Folder { root, group: group.to_string(), is_second });
                if group.is_empty() {
                    break;
                }
                group = group.rsplit_once('/').map_or("", |(above, _)| above);
            }
        }
        folders
    }

    /// The limits of a process's group and of those above it.
    fn of(&self, source: &Source, pid: i32, pools: &[Pool]) -> Vec<Limit> {
        let folders = self.folders(source, pid);
        let limits = |folder: &Folder| {
            pools.iter().flat_map(|pool| group_limits(source, folder, pool)).collect::<Vec<_>>()
        };
        folders.iter().flat_map(limits).collect()
    }
}

/// The folder of a control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder<'a> {
    /// Where the tree is mounted.
    pub root: &'a str,
    /// The group's path in the tree; empty for its root.
    pub group: String,
    /// Whether the tree is of the second version.
    pub is_second: bool,
}

/// Limits are on pages in use, and on these with promises.
const KINDS: [(&str, &str); 2] = [("", "pages in use"), (".rsvd", "pages that are promised or in use")];

impl Folder<'_> {
    fn path(&self) -> String {
        if self.group.is_empty() { self.root.to_string() } else { format!("{}/{}", self.root, self.group) }
    }

    /// The files of a limit on a size of pages: the limit, what is used, and how often it was met.
    fn files(&self, page_size: u64, kind: &str) -> [String; 3] {
        let size = match page_size {
            gigabytes if gigabytes >= 1 << 30 => format!("{}GB", gigabytes >> 30),
            megabytes if megabytes >= 1 << 20 => format!("{}MB", megabytes >> 20),
            bytes => format!("{}KB", bytes >> 10),
        };
        match self.is_second {
            // It counts both kinds together.
            true => [
                format!("hugetlb.{size}{kind}.max"),
                format!("hugetlb.{size}{kind}.current"),
                format!("hugetlb.{size}.events"),
            ],
            false => ["limit_in_bytes", "usage_in_bytes", "failcnt"]
                .map(|name| format!("hugetlb.{size}{kind}.{name}")),
        }
    }

    /// The files of those limits that are set, with what is in them, for a recording.
    pub fn recorded(&self, source: &Source, pools: &[Pool]) -> Vec<(String, String)> {
        let text = |name: &String| source.text(&format!("{}/{name}", self.path()));
        let mut all = Vec::new();
        for (pool, kind) in pools.iter().flat_map(|pool| KINDS.map(|(kind, _)| (pool, kind))) {
            let files = self.files(pool.page_size, kind);
            if text(&files[0]).and_then(|text| limit(&text)).is_some() {
                all.extend(files.into_iter().filter_map(|name| text(&name).map(|text| (name, text))));
            }
        }
        all
    }
}

/// A limit's bytes. "max" is no number, and that of the first version is beyond all memory.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit < 1 << 60)
}

/// The limits of one group on pages of one size: on those in use, and on promises.
fn group_limits(source: &Source, folder: &Folder, pool: &Pool) -> Vec<Limit> {
    let size = human::bytes(pool.page_size);
    let found = KINDS.into_iter().filter_map(|(kind, of)| {
        let [place, used, failures] =
            folder.files(pool.page_size, kind).map(|name| format!("{}/{name}", folder.path()));
        let limit = limit(&source.text(&place)?)?;
        let used = source.text(&used).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let failures = source.text(&failures).unwrap_or_default();
        let failures = match folder.is_second {
            true if !kind.is_empty() => None,
            true => failures.lines().find_map(|line| line.strip_prefix("max ")?.trim().parse().ok()),
            false => failures.trim().parse().ok(),
        };
        let failures: u64 = failures.unwrap_or(0);
        let refused = match failures {
            0 => String::new(),
            1 => ", and was refused once".into(),
            times => format!(", and was refused {} times", human::count(times)),
        };
        let may = match limit {
            0 => format!("may have no {of} of {size} at all{refused}"),
            _ => format!(
                "may have {} of {of} of {size}, has {}{refused}",
                human::bytes(limit),
                human::bytes(used)
            ),
        };
        Some(Limit {
            kind: "cgroup",
            place: format!("/{place}"),
            limit,
            used,
            failures,
            what: format!(
                "its control group {may}: beyond it mmap ends with ENOMEM or a touch with SIGBUS, whatever the pool has"
            ),
            subject: Subject::default(),
        })
    });
    found.collect()
}

/// For advice to put a program on huge pages: before anything else, the limits of its control groups that
/// would not let it.
pub fn raise(host: &Host, advices: &mut [Advice]) {
    let wants = advices.iter_mut().filter(|advice| advice.id == "huge-pages" && advice.pages.is_some());
    let groups = Groups::find(host.source);
    for advice in wants.take_while(|_| !host.deadline.is_past()) {
        let (Some(pages), Some(&pid)) = (advice.pages, advice.subject.some_pids.first()) else { continue };
        let wanted = pages.size * pages.count;
        let pools: Vec<Pool> =
            host.pools.iter().filter(|pool| pool.page_size == pages.size).cloned().collect();
        let short = groups
            .of(host.source, pid, &pools)
            .into_iter()
            .filter(|one| one.limit - one.used.min(one.limit) < wanted);
        let steps = short.map(|one| {
            let bytes = one.used + wanted;
            let what = format!(
                "Its control group may have {} of these pages, and needs {}: raise the limit. In Kubernetes \
                 that is hugepages-{}i in the container's resources; written here it lasts until the group \
                 is made anew.",
                human::bytes(one.limit),
                human::bytes(bytes),
                human::bytes(pages.size).replace(' ', "").replace("iB", "")
            );
            match is_plain(&one.place) {
                true => Step::run(what, [format!("echo {bytes} > {}", one.place)]),
                false => Step::by_hand(format!("{what} ({})", human::printable_path(&one.place))),
            }
        });
        let steps: Vec<Step> = steps.collect();
        advice.steps.splice(0..0, steps);
    }
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
            "the mount's size= lets its files have {}, and they have {}: a touch beyond it ends with \
             SIGBUS, whatever the pool has (mount -o remount,size=... raises it)",
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
            "{} surplus pages of {} are in use, all that nr_overcommit_hugepages allows: the next program \
             finds the pool empty",
            human::count(pool.surplus),
            human::bytes(pool.page_size)
        ),
        subject: Subject {
            file: format!("pool of {} pages", human::bytes(pool.page_size)),
            ..Subject::default()
        },
    })
}

/// Processes that may use nodes only on which the pool is empty, where it has pages on others.
fn nodes(host: &Host) -> Vec<Limit> {
    let mut limits = Vec::new();
    for pool in host.pools.iter().filter(|pool| pool.nodes.len() > 1 && pool.free > 0) {
        let mut bound: BTreeMap<String, Vec<&Process>> = BTreeMap::new();
        let mapping = host.census.processes.iter().filter(|process| !process.mappings.is_empty());
        for process in mapping.take_while(|_| !host.deadline.is_past()) {
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
                "it may use the memory of node {list} only, where the pool of {} has no free page; {} are \
                 free on others",
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
            "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n31 1 0:27 / /cg/hugetlb rw - cgroup cgroup \
             rw,hugetlb\n",
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
