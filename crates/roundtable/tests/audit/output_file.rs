//! `--output` replaces a file whole or not at all.

use std::fs;
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
