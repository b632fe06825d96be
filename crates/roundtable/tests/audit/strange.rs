//! Hosts that are not as one thinks: parts of /proc and /sys that are missing, closed or cut off, and names
//! that mean harm.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use roundtable::audit::record::{RecordOptions, record};
use roundtable::audit::report::Report;
use roundtable::audit::source::Source;
use roundtable::output::table::{Extent, text};

use crate::recordings::{audited, copy, folder, mapping_pids};

/// A program with 274.8 MiB on base pages in the recording, and what it is called there.
const WANTS: &str = "process-10";

const WIDE: Extent = Extent { top: 10, width: None };

fn shown(root: &Path) -> String {
    text(&audited(root), WIDE)
}

fn put(root: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A container has no /sys, and a /proc/meminfo made by somebody else.
#[test]
fn a_container_without_sys_and_without_figures_is_survived() {
    let host = copy("database");
    for folder in ["sys", "boot"] {
        fs::remove_dir_all(host.path().join(folder)).unwrap();
    }
    put(host.path(), "proc/meminfo", "MemTotal: 1000 kB\n");
    let report = audited(host.path());
    assert!(report.pools.is_empty() && !report.huge.is_empty());
    let said = shown(host.path());
    assert!(said.contains("there is no PageTables in /proc/meminfo"), "{said}");
    assert!(!said.contains("different moments"), "{said}");
    // What takes pages of a pool cannot be advised where no pool is known.
    assert!(report.advice.iter().all(|advice| advice.id != "huge-pages"), "{said}");
    for name in ["proc/meminfo", "proc/version", "proc/sys/kernel/osrelease", "proc/kpagecount"] {
        fs::remove_file(host.path().join(name)).unwrap();
        audited(host.path());
    }
}

/// smaps is closed to whoever may not trace, while maps is open.
#[test]
fn smaps_that_may_not_be_read_are_said() {
    let host = copy("database");
    let pids = mapping_pids(host.path());
    for pid in &pids {
        let smaps = host.path().join(format!("proc/{pid}/smaps"));
        fs::remove_file(&smaps).unwrap();
        symlink("/proc/sys/vm/compact_memory", smaps).unwrap();
    }
    let report = audited(host.path());
    assert_eq!((report.seen.unreadable, report.seen.vanished), (pids.len() as u64, 0));
    let said = shown(host.path());
    assert!(said.contains("Not seen: the mappings of 7 processes"), "{said}");
}

/// A process that ends while any of its files is read, or a reader that is cut off.
#[test]
fn files_cut_off_anywhere_give_an_answer() {
    let host = copy("database");
    let pid = mapping_pids(host.path())[0];
    for file in ["status", "maps", "pagemap.txt", "stat"] {
        let path = host.path().join(format!("proc/{pid}/{file}"));
        let text = fs::read(&path).unwrap();
        for length in (0..text.len()).step_by(1 + text.len() / 40) {
            fs::write(&path, &text[..length]).unwrap();
            let report = audited(host.path());
            assert!(report.seen.processes >= 23, "{file} of {length} bytes");
        }
        fs::write(&path, text).unwrap();
    }
}

/// Who may make a control group chooses its name.
#[test]
fn a_control_group_with_a_hostile_name_is_in_no_command_and_obeyed_by_no_terminal() {
    let host = copy("database");
    let name = "x\u{1b}[2J\u{202e}$(reboot);`id`.service";
    put(host.path(), "proc/self/mountinfo", "1 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    for pid in 1..=24 {
        let mut path = format!("0::/{name}\n").into_bytes();
        path.extend(b"4:\xff\xfe:/\xff\n");
        put(host.path(), &format!("proc/{pid}/cgroup"), path);
    }
    put(host.path(), &format!("sys/fs/cgroup/{name}/hugetlb.2MB.max"), "0\n");
    put(host.path(), &format!("sys/fs/cgroup/{name}/hugetlb.2MB.events"), "max 7\n");
    let said = shown(host.path());
    assert!(said.contains("may have no pages in use of 2 MiB at all, and was refused 7 times"), "{said}");
    assert!(said.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{said}");
    // A command stands in a line of its own, farther in.
    let commands: Vec<&str> = said.lines().filter(|line| line.starts_with("        ")).collect();
    assert!(!commands.is_empty() && commands.iter().all(|line| !line.contains("reboot")), "{commands:?}");
}

/// A path may have 4,000 bytes, and letters that look like the lines of a table.
#[test]
fn names_do_not_break_the_tables() {
    let host = copy("database");
    let name = format!("/dev/shm/{}", " │ postgres ┆ 99 GiB".repeat(200));
    for pid in 1..=24 {
        for file in ["maps", "smaps"] {
            let path = host.path().join(format!("proc/{pid}/{file}"));
            if let Ok(text) = fs::read_to_string(&path) {
                fs::write(path, text.replace("/dev/zero (deleted)", &name)).unwrap();
            }
        }
    }
    let said = shown(host.path());
    assert!(said.contains("postgres ? 99 GiB"), "{said}");
    let widest = said.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(widest < 400, "{widest} columns: {said}");
    assert!(!said.contains("┆ 99 GiB") && !said.contains("│ postgres ┆"), "{said}");
    // Whoever reads it by a program has all of it.
    assert!(serde_json::to_string(&audited(host.path())).unwrap().contains(&name));
}

/// A group outside of the reader's control group namespace has a way up in its path. Nothing is recorded there.
#[test]
fn a_recording_stays_in_its_folder() {
    let host = copy("database");
    put(host.path(), "proc/self/mountinfo", "1 1 0:1 / /a/b/cgroup rw - cgroup2 cgroup2 rw\n");
    put(host.path(), "proc/8/cgroup", "0::/../../evil\n");
    put(host.path(), "a/b/cgroup/cgroup.procs", "");
    put(host.path(), "a/evil/hugetlb.2MB.max", "5\n");
    let place = tempfile::tempdir().unwrap();
    let options = RecordOptions { folder: place.path().join("recording"), keep_names: true };
    record(&Source::recorded(host.path()), &options).unwrap();
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    assert!(options.folder.join("sys/fs/cgroup/evil/hugetlb.2MB.max").exists());
    let cgroup = fs::read_to_string(options.folder.join("proc/8/cgroup")).unwrap();
    assert!(!cgroup.contains(".."), "{cgroup}");
}

/// A recording has the answers to all three questions: what nobody maps, limits, and a server's settings,
/// without what is private.
#[test]
fn a_recording_of_a_situation_tells_the_same() {
    for name in ["left-files", "nothing-in-sight", "try", "kubernetes", "promised", "mariadb"] {
        let situation = folder("questions").join(name);
        let place = tempfile::tempdir().unwrap();
        for keep_names in [true, false] {
            let options = RecordOptions { folder: place.path().join(keep_names.to_string()), keep_names };
            record(&Source::recorded(&situation), &options).unwrap();
            let (one, other) = (audited(&situation), audited(&options.folder));
            let told = |report: &Report| {
                let advice: Vec<_> =
                    report.advice.iter().map(|one| (one.id, one.gain, one.frees, one.pages)).collect();
                let limits: Vec<_> = report.limits.iter().map(|one| (one.limit, one.failures)).collect();
                (advice, limits, report.pools.iter().map(|one| one.account.unexplained).sum::<u64>())
            };
            assert_eq!(told(&one), told(&other), "{name} {keep_names}");
            if keep_names {
                assert_eq!(text(&one, WIDE), text(&other, WIDE), "{name}");
            }
        }
    }
}

/// A container in Kubernetes that did not ask for huge pages: its limit is 0, and no pool helps it. The
/// advice begins with that.
#[test]
fn a_limit_of_nothing_is_raised_before_a_pool_grows_for_it() {
    let host = copy("database");
    put(host.path(), "proc/self/mountinfo", "1 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    let pod = "kubepods.slice/kubepods-pod1.slice/cri-containerd-12ab.scope";
    for pid in 1..=24 {
        put(host.path(), &format!("proc/{pid}/cgroup"), format!("0::/{pod}\n"));
    }
    let limit =
        |name: &str, bytes: &str| put(host.path(), &format!("sys/fs/cgroup/{pod}/hugetlb.2MB.{name}"), bytes);
    limit("max", "0\n");
    let steps = |root: &Path| {
        let report = audited(root);
        let all = report
            .advice
            .iter()
            .find(|advice| advice.id == "huge-pages" && advice.subject.programs.contains(WANTS));
        (all.unwrap_or_else(|| panic!("{:?}", report.advice)).steps.clone(), report.limits.len())
    };
    let (first, limits) = steps(host.path());
    assert!(first[0].what.contains("may have 0 B of these pages, and needs 276 MiB"), "{first:?}");
    assert!(first[0].what.contains("hugepages-2Mi"), "{first:?}");
    assert_eq!(first[0].commands, [format!("echo {} > /sys/fs/cgroup/{pod}/hugetlb.2MB.max", 276 << 20)]);
    assert_eq!(limits, 0, "nobody has met it yet");
    // That on promises is another, and both are raised.
    limit("rsvd.max", "2097152\n");
    let (both, _) = steps(host.path());
    assert!(both[1].what.contains("may have 2 MiB"), "{both:?}");
    // One that leaves enough is not spoken of.
    limit("max", "max\n");
    limit("rsvd.max", "1073741824\n");
    assert_eq!(steps(host.path()).0.len(), first.len() - 1);
}

/// A pool of a size that no program can name, files that are not numbers.
#[test]
fn rubbish_in_sys_is_survived() {
    let host = copy("database");
    for name in ["hugepages-xkB", "hugepages-0kB", "hugepages-18446744073709551615kB", "hugepages-64kB"] {
        for (file, text) in
            [("nr", "18446744073709551615\n"), ("free", "-1\n"), ("resv", "\n"), ("surplus", "x")]
        {
            put(host.path(), &format!("sys/kernel/mm/hugepages/{name}/{file}_hugepages"), text);
        }
    }
    shown(host.path());
}
