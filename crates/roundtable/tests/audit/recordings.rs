//! Recordings: as they are, damaged on purpose, and recorded again.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use roundtable::audit::record::{RecordOptions, record};
use roundtable::audit::report::Report;
use roundtable::audit::slots::{Evidence, Verdict};
use roundtable::audit::source::Source;
use roundtable::audit::{LookOptions, audit};
use roundtable::output::table::Extent;
use roundtable::size::Size;

/// A recording of this name.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(name)
}

/// An audit of a folder, without what depends on how the threads take turns.
pub fn audited(root: &Path) -> Report {
    let options = LookOptions { seconds: 1, all: true, min_processes: 2, worth: Size(1 << 20), root: None };
    let mut report = audit(&Source::recorded(root), &options, true).unwrap();
    (report.seen.reads, report.seen.bytes_read) = (0, 0);
    (report.seen.at_seconds, report.seen.milliseconds) = (0, 0);
    report
}

/// A copy to damage.
pub fn copy(name: &str) -> tempfile::TempDir {
    fn tree(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap().flatten() {
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&to).unwrap();
                tree(&from, &to);
            } else if entry.file_type().unwrap().is_symlink() {
                symlink(fs::read_link(from).unwrap(), to).unwrap();
            } else {
                fs::copy(from, to).unwrap();
            }
        }
    }
    let copy = tempfile::tempdir().unwrap();
    tree(&folder(name), copy.path());
    copy
}

/// The recording of a database on a host with two nodes of memory: of its pool, node 0 has most, and more in use.
pub fn with_nodes() -> tempfile::TempDir {
    let copy = copy("database");
    for (node, total, free) in [(0, 900, 300), (1, 280, 173)] {
        let node = copy.path().join(format!("sys/devices/system/node/node{node}"));
        let pool = node.join("hugepages/hugepages-2048kB");
        fs::create_dir_all(&pool).unwrap();
        fs::write(node.join("meminfo"), "Node 0 MemTotal: 8388608 kB\nNode 0 MemFree: 1048576 kB\n").unwrap();
        for (file, number) in [("nr", total), ("free", free), ("surplus", 0)] {
            fs::write(pool.join(format!("{file}_hugepages")), format!("{number}\n")).unwrap();
        }
    }
    // A unit, as systemd has it.
    let unit = "0::/system.slice/postgresql@15-main.service\n";
    fs::write(copy.path().join("proc/8/cgroup"), unit).unwrap();
    // Surplus pages, all that may come: a limit that is met.
    let pool = copy.path().join("sys/kernel/mm/hugepages/hugepages-1048576kB");
    for (file, number) in [("nr", 2), ("surplus", 2), ("nr_overcommit", 2)] {
        fs::write(pool.join(format!("{file}_hugepages")), format!("{number}\n")).unwrap();
    }
    copy
}

/// One figure for each pool, and one for each node: nobody loses a page, and all are promised what they want.
#[test]
fn a_pool_over_two_nodes_grows_on_both() {
    let report = audited(with_nodes().path());
    let pool = &report.pools[0];
    let parts: Vec<u64> = pool.need.nodes.iter().map(|node| node.nr_hugepages).collect();
    // 600 and 107 are in use; of 429 promised and 138 wanted the first has 300 to spare, and the second gets the rest.
    assert_eq!(parts, [900, 107 + 267]);
    assert_eq!(pool.need.nr_hugepages, pool.pool.in_use() + pool.pool.reserved + 138);
    assert_eq!(parts.iter().sum::<u64>(), pool.need.nr_hugepages);
    let again = tempfile::tempdir().unwrap();
    let options = RecordOptions { folder: again.path().join("again"), keep_names: true };
    record(&Source::recorded(with_nodes().path()), &options).unwrap();
    assert_eq!(audited(&options.folder).pools, report.pools, "a recording keeps the nodes");
}

fn json(report: &Report) -> serde_json::Value {
    serde_json::to_value(report).unwrap()
}

/// Processes that map huge pages.
pub fn mapping_pids(root: &Path) -> Vec<i32> {
    audited(root).huge.iter().flat_map(|file| file.some_pids.clone()).collect()
}

#[test]
fn processes_that_vanish_are_counted_and_no_error() {
    let whole = audited(&folder("database"));
    let copy = copy("database");
    let pids = mapping_pids(copy.path());
    let place = |index: usize| copy.path().join(format!("proc/{}", pids[index]));
    // Between the listing and the first look, ...
    fs::remove_dir_all(place(0)).unwrap();
    symlink("gone", place(0)).unwrap();
    // ... between status and maps, ...
    fs::remove_file(place(1).join("maps")).unwrap();
    // ... between the two looks, ...
    fs::remove_file(place(2).join("smaps")).unwrap();
    // ... and in the middle of the second.
    fs::remove_file(place(3).join("pagemap.txt")).unwrap();
    let report = audited(copy.path());
    assert_eq!(report.seen.vanished, 4);
    assert_eq!(report.seen.unreadable, 0);
    assert_eq!(report.seen.processes, whole.seen.processes - 4);
    let processes = |report: &Report| report.huge.iter().map(|file| file.processes).sum::<u64>();
    assert_eq!(processes(&report), processes(&whole) - 4);
}

/// Not all that map it alike have touched the slot that is shared: one that has must be asked.
#[test]
fn sharing_is_seen_where_some_have_touched_and_some_have_not() {
    let report = audited(&folder("database"));
    let slots = &report.huge[0].slots;
    assert_eq!((slots[&Verdict::Shared], slots[&Verdict::Untouched]), (3, 4));
    assert_eq!(report.huge[0].evidence, Evidence::Kpagecount);
}

#[test]
fn what_may_not_be_read_is_said() {
    let whole = audited(&folder("database"));
    let copy = copy("database");
    for pid in &mapping_pids(copy.path())[..2] {
        let maps = copy.path().join(format!("proc/{pid}/maps"));
        fs::remove_file(&maps).unwrap();
        // Refused to everybody, root included: it can only be written to.
        symlink("/proc/sys/vm/compact_memory", maps).unwrap();
    }
    fs::remove_file(copy.path().join("proc/kpagecount")).unwrap();
    let report = audited(copy.path());
    assert_eq!((report.seen.unreadable, report.seen.vanished), (2, 0));
    assert_eq!(report.seen.mapping, whole.seen.mapping - 2);
    assert_eq!(report.check.vm_pte_all, whole.check.vm_pte_all, "everybody may read that");
    let text = roundtable::output::table::text(&report, Extent { top: 10, width: None });
    assert!(text.contains("Not seen: the mappings of 2 processes"), "{text}");
}

/// A process that ends while the kernel writes its smaps, or a reader that was cut off.
#[test]
fn smaps_cut_off_anywhere_gives_an_answer() {
    let copy = copy("database");
    let pid = mapping_pids(copy.path())[0];
    let smaps = copy.path().join(format!("proc/{pid}/smaps"));
    let text = fs::read(&smaps).unwrap();
    let whole = audited(copy.path());
    let mut lost = 0;
    for length in (0..text.len()).step_by(7) {
        fs::write(&smaps, &text[..length]).unwrap();
        let report = audited(copy.path());
        // Where the page size is not told, another process tells it, or this one's mapping is not known to be
        // of interest.
        assert!((whole.seen.mapping - 1..=whole.seen.mapping).contains(&report.seen.mapping));
        assert_eq!((report.seen.vanished, report.seen.unreadable), (0, 0));
        assert_eq!(report.huge.len(), whole.huge.len());
        for file in &report.huge {
            let slots: u64 = file.slots.values().sum();
            assert_eq!(slots, 3 * file.mappings, "each slot has a verdict");
        }
        lost += u64::from(json(&report) != json(&whole));
    }
    assert!(lost > 0, "without its flags a mapping is not known to share");
}

/// Any file of a process may hold anything: bytes that are no text, half lines, numbers out of range.
#[test]
fn files_of_rubbish_are_survived() {
    let copy = copy("database");
    let pid = mapping_pids(copy.path())[0];
    let rubbish: [&[u8]; 5] = [
        b"",
        b"\xff\xfe\n\0",
        b"0-ffffffffffffffff rw-s ffffffffffffffff 00:0f 18446744073709551615 /x\n",
        b"VmPTE:\t99999999999999999999 kB\nVmFlags:\nKernelPageSize: kB\n",
        b"7f0000000000-7effffffffff rw-s 00000000 00:0f 1 /x\n1-2-3 rw-s 0 0 0\n-",
    ];
    for file in ["status", "stat", "maps", "smaps", "pagemap.txt", "mountinfo"] {
        let path = copy.path().join(format!("proc/{pid}")).join(file);
        let before = fs::read(&path).unwrap();
        for bytes in rubbish {
            fs::write(&path, bytes).unwrap();
            audited(copy.path());
        }
        fs::write(&path, before).unwrap();
    }
    for file in ["proc/meminfo", "proc/version", "proc/sys/kernel/osrelease"] {
        for bytes in rubbish {
            fs::write(copy.path().join(file), bytes).unwrap();
            audited(copy.path());
        }
    }
}

#[test]
fn a_recording_of_a_recording_tells_the_same() {
    for name in ["database", "hostile"] {
        let again = tempfile::tempdir().unwrap();
        let options = RecordOptions { folder: again.path().join("again"), keep_names: true };
        let source = Source::recorded(&folder(name));
        assert_eq!(record(&source, &options).unwrap(), audited(&folder(name)).seen.processes);
        assert_eq!(json(&audited(&options.folder)), json(&audited(&folder(name))), "{name}");
    }
}

#[test]
fn a_recording_without_names_has_none_and_tells_the_same_else() {
    let again = tempfile::tempdir().unwrap();
    let options = RecordOptions { folder: again.path().join("again"), keep_names: false };
    record(&Source::recorded(&folder("hostile")), &options).unwrap();
    let mut texts = Vec::new();
    let mut folders = vec![options.folder.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => texts.extend(fs::read(entry.path()).unwrap()),
                _ => {}
            }
        }
    }
    for secret in [&b"quote"[..], b"\xff\xfe", b"python"] {
        assert!(!texts.windows(secret.len()).any(|window| window == secret), "{secret:?}");
    }
    let shape = |report: &Report| {
        let files = report.huge.iter().chain(&report.base);
        let mut shape: HashMap<_, u64> = HashMap::new();
        files.for_each(|file| {
            *shape.entry((file.size, file.processes, file.bytes.now, file.slots.clone())).or_default() += 1
        });
        shape
    };
    assert_eq!(shape(&audited(&options.folder)), shape(&audited(&folder("hostile"))));
}
