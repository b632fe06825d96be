//! Many processes: the work for each stays the same, and the memory small. Times are in docs/operators.md.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::recordings::folder;

/// Kilobytes of address space that the audit may use, its program and the threads' stacks included.
const MEMORY: u64 = 256 << 10;

/// A host where one recorded process is there so many times, audited wholly: what was seen.
fn seen(processes: u64) -> serde_json::Value {
    let host = tempfile::tempdir().unwrap();
    let recording = folder("database");
    fs::create_dir(host.path().join("proc")).unwrap();
    for name in ["sys", "boot", "proc/sys", "proc/version", "proc/meminfo", "proc/kpagecount"] {
        symlink(recording.join(name), host.path().join(name)).unwrap();
    }
    let backend =
        fs::read_dir(recording.join("proc")).unwrap().flatten().map(|entry| entry.path()).find(|path| {
            fs::read_to_string(path.join("maps")).is_ok_and(|maps| maps.contains("/anon_hugepage"))
        });
    let backend = backend.expect("a server's process");
    for pid in 1..=processes {
        symlink(&backend, host.path().join(format!("proc/{pid}"))).unwrap();
    }
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit -v {MEMORY}; exec \"$0\" audit --all --json --root \"$1\"")])
        .arg(env!("CARGO_BIN_EXE_roundtable"))
        .arg(host.path())
        .output()
        .expect("sh starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["huge"][0]["processes"], processes);
    report["seen"].clone()
}

#[test]
fn ten_times_the_processes_cost_ten_times_the_work() {
    let (few, many) = (seen(200), seen(2000));
    assert_eq!((&many["processes"], &many["looked_into"]), (&2000.into(), &2000.into()));
    let per_process = |seen: &serde_json::Value, what: &str| {
        seen[what].as_f64().unwrap() / seen["processes"].as_f64().unwrap()
    };
    // status and maps at the first look; maps, smaps, pagemap and status at the second.
    assert!(per_process(&many, "reads") < 10.0, "{many}");
    for what in ["reads", "bytes_read"] {
        assert!(per_process(&many, what) < per_process(&few, what) * 1.01, "{what}: {few} {many}");
    }
}
