//! `roundtable plan` from the outside.

use std::path::Path;
use std::process::{Command, Output};

use crate::recordings::{copy, folder};

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

/// A host that was set up for a server: the pool has the memory, so base pages have not enough, and there is no pool of
/// the other size.
#[test]
fn a_host_passes_by_what_the_configuration_asks_for() {
    let host = copy("database");
    let put = |name: &str, text: String| std::fs::write(host.path().join(name), text).unwrap();
    let meminfo = |size: u64| {
        put(
            "proc/meminfo",
            format!(
                "MemTotal: 16777216 kB\nMemFree: 1048576 kB\nMemAvailable: 2097152 kB\nHugepagesize: {size} kB\n"
            ),
        );
    };
    let pool = |pages: u64, size: u64| {
        for (kind, number) in [("nr", pages), ("free", pages), ("resv", 0), ("surplus", 0)] {
            put(
                &format!("sys/kernel/mm/hugepages/hugepages-{size}kB/{kind}_hugepages"),
                format!("{number}\n"),
            );
        }
    };
    let conf = host.path().join("postgresql.conf");
    let status = |settings: &str, arguments: &str| {
        std::fs::write(&conf, format!("shared_buffers = 8GB\nmax_connections = 500\n{settings}\n")).unwrap();
        let output = plan(&format!("--from {} {arguments}", conf.display()), Some(host.path()));
        (output.status.code().unwrap(), said(&output).0)
    };
    meminfo(2048);
    pool(5000, 2048);
    pool(0, 1_048_576);
    for settings in ["huge_pages = on", "", "huge_pages = on\nhuge_page_size = 2MB"] {
        let (code, text) = status(settings, "");
        assert_eq!(code, 0, "{text}");
        assert!(
            !text.contains("MISSING") && text.contains("  no      9 pages of 1 GiB are needed"),
            "{text}"
        );
        assert!(text.contains("vm.nr_hugepages = 4210 for pages of 2 MiB"), "{text}");
    }
    // What is missing there is what is asked for.
    for (settings, arguments) in [
        ("huge_pages = off", ""),
        ("shared_memory_type = sysv", ""),
        ("huge_page_size = 1GB", ""),
        ("", "--page-size 1GiB"),
        ("", "--page-size 4KiB"),
    ] {
        let (code, text) = status(settings, arguments);
        assert_eq!((code, text.matches("MISSING").count()), (1, 1), "{settings} {arguments}: {text}");
    }
    pool(4000, 2048);
    assert_eq!(status("huge_pages = on", "").0, 1);
    // Who names no size gets the host's default.
    meminfo(1_048_576);
    pool(5000, 2048);
    let (code, text) = status("huge_pages = on", "");
    assert!(code == 1 && text.contains("MISSING 9 pages of 1 GiB"), "{text}");
    assert!(text.contains("echo 4210 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"), "{text}");
    assert_eq!(status("huge_page_size = 2MB", "").0, 0);
    // Without a configuration one way is enough.
    let code =
        |size: &str| plan(&format!("--size {size} --processes 10"), Some(host.path())).status.code().unwrap();
    assert_eq!([code("8GiB"), code("1GiB"), code("12GiB")], [0, 0, 1]);
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

/// What people and PostgreSQL write; what it comes to stands in the first line.
#[test]
fn sizes_are_taken_as_people_write_them() {
    for (arguments, expected) in [
        ("--size 1Gi --processes 2", "1 GiB of shared memory, mapped by 2 processes"),
        ("--size 1.5TiB --processes 10,000", "1.5 TiB of shared memory, mapped by 10,000 processes"),
        ("--size 10,000 --processes 1", "9.8 KiB of shared memory, mapped by 1 process"),
    ] {
        let output = plan(arguments, None);
        let (text, errors) = said(&output);
        assert!(output.status.success() && text.starts_with(expected), "{arguments}: {text}{errors}");
    }
}

/// A data folder of PostgreSQL's: its file has a byte of Latin-1 and numbers as C writes them, and ALTER
/// SYSTEM has the last word.
#[test]
fn a_data_folder_is_taken_as_postgresql_takes_it() {
    let folder = tempfile::tempdir().unwrap();
    let conf = b"# f\xfcr alle\nshared_buffers = 1e6kB\nmax_connections = 0x64\nmax_wal_senders = \
        1e1\nmax_worker_processes = 8.4\n";
    std::fs::write(folder.path().join("postgresql.conf"), conf).unwrap();
    let processes = |path: &Path| {
        let output = plan(&format!("--json --from {}", path.display()), None);
        let (text, errors) = said(&output);
        assert!(output.status.success(), "{errors}");
        let plan: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(plan["size"].as_u64().unwrap() > 1_024_000_000, "{plan}");
        plan["processes"].as_u64().unwrap()
    };
    let at_first = processes(folder.path());
    assert_eq!(at_first, processes(&folder.path().join("postgresql.conf")));
    assert_eq!(at_first, 100 + 8 + 10 + 4 + 6);
    let auto = folder.path().join("postgresql.auto.conf");
    std::fs::write(&auto, "max_connections = '300.4'\n").unwrap();
    assert_eq!(processes(folder.path()), at_first + 200);
    std::fs::write(&auto, "max_connections = 'many'\n").unwrap();
    let output = plan(&format!("--from {}", folder.path().display()), None);
    let (_, errors) = said(&output);
    assert!(errors.contains("max_connections = many") && errors.contains("number"), "{errors}");
    assert_eq!(output.status.code(), Some(3));
}
