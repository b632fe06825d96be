//! `roundtable plan` from the outside.

use std::path::Path;
use std::process::{Command, Output};

use crate::recordings::folder;

fn plan(arguments: &str, root: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roundtable"));
    command.arg("plan").args(arguments.split_whitespace());
    if let Some(root) = root {
        command.arg("--check").arg("--root").arg(root);
    }
    command.output().expect("roundtable starts")
}

fn said(output: &Output) -> (String, String) {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).into()
}

/// The recorded pool has 1,180 pages, 473 of them free, 429 of those promised.
#[test]
fn a_plan_is_compared_with_a_host() {
    let root = folder("database");
    let enough = plan("--size 88MiB --processes 7 --page-size 2MiB", Some(&root));
    assert_eq!(enough.status.code(), Some(0), "{:?}", said(&enough));
    let short = plan("--size 100MiB --processes 7 --page-size 2MiB", Some(&root));
    let (text, _) = said(&short);
    assert_eq!(short.status.code(), Some(1), "{text}");
    assert!(text.contains("MISSING 50 pages of 2 MiB are needed, 44 are free and not promised"), "{text}");
    assert!(text.contains("set nr_hugepages to 1186, which takes 12 MiB more memory"), "{text}");
    let large = plan("--size 1Pi --processes 10,000", Some(&root));
    let (text, _) = said(&large);
    assert!(text.contains("MISSING the memory is 1 PiB"), "{text}");
}

#[test]
fn nonsense_is_refused_with_the_reason() {
    for (arguments, reason) in [
        ("--size 16384PiB --processes 1", "more than 16 EiB"),
        ("--size 100PiB --processes 1", "more than a process can map"),
        ("--size 1G --processes 0", "no process maps"),
        ("--size 1G --processes 4194305", "4,194,304 processes at the most"),
        ("--size 5Q --processes 1", "'Q' is no unit"),
        ("--from /no/such/file", "/no/such/file"),
        ("--from /dev/null", "no regular file"),
    ] {
        let output = plan(arguments, None);
        let (_, errors) = said(&output);
        assert!(!output.status.success() && errors.contains(reason), "{arguments}: {errors}");
    }
}
