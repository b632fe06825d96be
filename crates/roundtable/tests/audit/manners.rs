//! Exit statuses, completions, the manual page, and what is said when nothing can be seen.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::recordings::{copy, folder};

fn roundtable(arguments: &[&str], root: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roundtable"));
    command.args(arguments);
    if let Some(root) = root {
        command.arg("--root").arg(root);
    }
    command.output().expect("roundtable starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn thresholds_decide_the_exit_status() {
    let root = folder("database");
    for (arguments, status) in [
        (&["--fail-on", "tables=1G"][..], 0),
        (&["--fail-on", "tables=1M"], 2),
        (&["--warn-on", "tables=1M"], 1),
        (&["--warn-on", "saving=1K", "--fail-on", "saving=1T"], 1),
        (&["--warn-on", "saving=1K", "--fail-on", "saving=1K"], 2),
        // 473 are free, 429 of them promised.
        (&["--fail-on", "pool-free=43"], 0),
        (&["--fail-on", "pool-free=44"], 2),
        (&["--fail-on", "unseen=1"], 0),
        (&["--fail-on", "tables"], 3),
        (&["--no-such-option"], 3),
    ] {
        let output = roundtable(&[&["audit", "--all"], arguments].concat(), Some(&root));
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output.stderr));
    }
}

/// A host that shows not all of it, and one that nobody has made a pool on.
#[test]
fn thresholds_know_what_is_out_of_sight() {
    let host = copy("database");
    let status =
        |what: &str| roundtable(&["audit", "--all", "--fail-on", what], Some(host.path())).status.code();
    let ns = host.path().join("proc/self/ns");
    fs::create_dir_all(&ns).unwrap();
    assert_eq!(status("unseen=1"), Some(0));
    std::os::unix::fs::symlink("pid:[4026539999]", ns.join("pid")).unwrap();
    assert_eq!((status("unseen=1"), status("unseen=2")), (Some(2), Some(0)));
    assert_eq!(status("pool-free=100"), Some(2));
    let pool = host.path().join("sys/kernel/mm/hugepages/hugepages-2048kB");
    for file in ["nr", "free", "resv", "surplus", "nr_overcommit"] {
        fs::write(pool.join(format!("{file}_hugepages")), "0\n").unwrap();
    }
    assert_eq!(status("pool-free=100"), Some(0));
}

/// A job's own status may be 2.
#[test]
fn a_run_that_cannot_begin_has_a_status_of_its_own() {
    let place = tempfile::tempdir().unwrap();
    let parts = place.path().to_str().unwrap();
    for (arguments, said) in [
        (&["run", "--no-such-option"][..], "--no-such-option"),
        (&["run", "--parts", parts, "--", "true"], "cargo xtask build"),
        (&["run", "--parts", parts, "--kernel", "linux", "--", "true"], "cargo xtask setup"),
        (&["run", "--parts", parts, "--list"], "cargo xtask build"),
        (&["run", "--parts", "/no/such/folder", "--list"], "ROUNDTABLE_PARTS"),
    ] {
        let output = roundtable(arguments, None);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {errors}");
        assert!(errors.contains(said), "{arguments:?}: {errors}");
    }
    assert_eq!(roundtable(&["run", "--help"], None).status.code(), Some(0));
}

/// A folder without processes, and one whose processes are all gone or closed, are no hosts on which all is well.
#[test]
fn blindness_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir_all(place.path().join("proc")).unwrap();
    let output = roundtable(&["audit"], Some(place.path()));
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("no process is in sight"), "{}", text(&output.stderr));
    let process = place.path().join("proc/5");
    fs::create_dir_all(&process).unwrap();
    fs::write(process.join("status"), "Name:\tx\nVmPTE:\t 40 kB\n").unwrap();
    fs::write(process.join("denied"), "").unwrap();
    let output = roundtable(&["audit"], Some(place.path()));
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("none of 1 process may be read"), "{}", text(&output.stderr));
}

#[test]
fn shells_and_man_get_what_they_read() {
    for shell in ["bash", "zsh", "fish"] {
        let output = roundtable(&["completions", shell], None);
        assert!(output.status.success() && text(&output.stdout).contains("fail-on"), "{shell}");
    }
    let page = roundtable(&["manual", "audit"], None);
    assert!(
        text(&page.stdout).contains(".TH") && text(&page.stdout).contains("fail\\-on"),
        "{}",
        text(&page.stdout)
    );
    assert!(roundtable(&["manual"], None).status.success());
    assert_eq!(roundtable(&["manual", "nothing"], None).status.code(), Some(3));
    for command in ["audit", "watch", "record", "plan", "explain", "completions", "manual"] {
        let help = roundtable(&[command, "--help"], None);
        assert!(text(&help.stdout).contains("Examples:"), "{command}");
    }
}

#[test]
fn one_process_is_explained() {
    let output = roundtable(&["explain", "8", "--all", "--worth", "0"], Some(&folder("database")));
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for part in [
        "process-8 (pid 8)",
        "Mappings that cost page tables",
        "It maps anonymous memory, 274.8 MiB on pages of 4 KiB, with 7 processes in all",
        "What to do, in this order",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    assert_eq!(roundtable(&["explain", "999"], Some(&folder("database"))).status.code(), Some(3));
}

#[test]
fn a_process_that_may_not_be_read_is_explained_honestly() {
    let host = copy("database");
    let maps = host.path().join("proc/8/maps");
    fs::remove_file(&maps).unwrap();
    // Refused to everybody, root included: it can only be written to.
    std::os::unix::fs::symlink("/proc/sys/vm/compact_memory", maps).unwrap();
    let output = roundtable(&["explain", "8", "--all"], Some(host.path()));
    let said = text(&output.stdout);
    assert!(said.contains("Not seen: its mappings, which"), "{said}");
    // Root is not told to become root, and nobody that nothing is wrong with what was not seen.
    let is_root = rustix::process::geteuid().is_root();
    assert_eq!(said.contains("run as root"), !is_root, "{said}");
    assert!(!said.contains("Nothing that is worth doing"), "{said}");
}
