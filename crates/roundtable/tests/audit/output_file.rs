//! `--output` replaces a file whole or not at all, and nothing but a file.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::exposition;
use crate::recordings::folder;

fn write(prefix: &str, root: &Path, output: &Path) -> Output {
    // The shell is there for its limits.
    Command::new("sh")
        .args(["-c", &format!("{prefix} exec \"$0\" audit --all --prometheus --root \"$1\" --output \"$2\"")])
        .arg(env!("CARGO_BIN_EXE_roundtable"))
        .arg(root)
        .arg(output)
        .output()
        .expect("sh starts")
}

/// A folder with an older output in it.
fn older() -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("roundtable.prom");
    fs::write(&path, "old\n").unwrap();
    (place, path)
}

/// The older output is there, and nothing else.
#[track_caller]
fn expect_older(place: &Path, path: &Path) {
    assert_eq!(fs::read_to_string(path).unwrap(), "old\n");
    assert_eq!(names(place), ["roundtable.prom"]);
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn what_was_there_stays_when_writing_fails() {
    let (place, path) = older();
    // A full disk, as far as a process can tell.
    let output = write("trap '' XFSZ; ulimit -f 0;", &folder("database"), &path);
    assert!(!output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("roundtable.prom"), "{errors}");
    expect_older(place.path(), &path);
}

#[test]
fn what_was_there_stays_when_there_is_nothing_to_read() {
    let (place, path) = older();
    assert!(!write("", &place.path().join("nowhere"), &path).status.success());
    expect_older(place.path(), &path);
}

#[test]
fn a_folder_in_the_way_is_an_error_and_nothing_is_left() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("roundtable.prom");
    fs::create_dir(&path).unwrap();
    assert!(!write("", &folder("database"), &path).status.success());
    assert_eq!(names(place.path()), ["roundtable.prom"]);
}

/// The collector reads while it is replaced, again and again, and never sees half of it.
#[test]
fn readers_see_the_old_or_the_new_one() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("roundtable.prom");
    assert!(write("", &folder("database"), &path).status.success());
    let first = fs::read_to_string(&path).unwrap();
    exposition::parse(&first).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for name in ["hostile", "database", "hostile"] {
                assert!(write("", &folder(name), &path).status.success());
            }
        });
        while !writer.is_finished() {
            exposition::parse(&fs::read_to_string(&path).unwrap()).unwrap();
        }
    });
    assert_ne!(fs::read_to_string(&path).unwrap(), first);
}

/// Without what each run has of its own: its time and how long it took.
fn without_clocks(text: &str) -> String {
    let clocks = ["roundtable_audit_timestamp_seconds ", "roundtable_audit_duration_seconds "];
    let stays = |line: &&str| !clocks.iter().any(|name| line.starts_with(name));
    text.split_inclusive('\n').filter(stays).collect()
}

/// What the audit prints without `--output`.
fn printed(root: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_roundtable"))
        .args(["audit", "--all", "--prometheus", "--root"])
        .arg(root)
        .output()
        .unwrap();
    without_clocks(&String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_fifo_and_a_socket_are_written_to_and_stay() {
    let place = tempfile::tempdir().unwrap();
    let (fifo, socket) = (place.path().join("fifo"), place.path().join("socket"));
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let listener = UnixListener::bind(&socket).unwrap();
    let expected = printed(&folder("hostile"));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read_to_string(&fifo).unwrap());
        assert!(write("", &folder("hostile"), &fifo).status.success());
        assert!(fifo.symlink_metadata().unwrap().file_type().is_fifo());
        assert_eq!(without_clocks(&reader.join().unwrap()), expected);
        let reader = scope.spawn(|| std::io::read_to_string(listener.accept().unwrap().0).unwrap());
        assert!(write("", &folder("hostile"), &socket).status.success());
        assert!(socket.symlink_metadata().unwrap().file_type().is_socket());
        assert_eq!(without_clocks(&reader.join().unwrap()), expected);
    });
}

/// A device of our own: a program that replaces it must not do so to the host's.
#[test]
fn a_device_is_written_to_and_stays() {
    let place = tempfile::tempdir().unwrap();
    for (name, minor, succeeds) in [("null", "3", true), ("full", "7", false)] {
        let device = place.path().join(name);
        if !Command::new("mknod").arg(&device).args(["c", "1", minor]).output().unwrap().status.success() {
            eprintln!("skipped: only root makes devices");
            return;
        }
        assert_eq!(write("", &folder("database"), &device).status.success(), succeeds, "{name}");
        assert!(device.symlink_metadata().unwrap().file_type().is_char_device(), "{name}");
    }
    assert_eq!(names(place.path()).len(), 2);
}

#[test]
fn a_dash_and_the_device_of_that_name_are_standard_output() {
    let place = tempfile::tempdir().unwrap();
    let expected = printed(&folder("database"));
    for (name, to_log) in [("-", false), ("/dev/stdout", false), ("/dev/stdout", true), ("/dev/fd/1", true)] {
        fs::write(place.path().join("log"), "before\n").unwrap();
        let exec = if to_log { "exec >>log;" } else { "" };
        let prefix = format!("cd '{}'; {exec}", place.path().display());
        let output = write(&prefix, &fs::canonicalize(folder("database")).unwrap(), Path::new(name));
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let log = fs::read_to_string(place.path().join("log")).unwrap();
        let shown = if to_log { log } else { String::from_utf8(output.stdout).unwrap() };
        let before = if to_log { "before\n" } else { "" };
        assert_eq!(without_clocks(&shown), format!("{before}{expected}"), "{name} {to_log}");
        assert_eq!(names(place.path()), ["log"]);
    }
}
