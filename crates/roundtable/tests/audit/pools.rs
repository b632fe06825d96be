//! Which pool a program takes from, and what has a say in how large it has to be.

use std::fs;
use std::path::Path;

use roundtable::audit::advice::Advice;
use roundtable::audit::report::Report;
use roundtable::audit::source::Source;
use roundtable::audit::{LookOptions, audit};
use roundtable::size::Size;

use crate::recordings::copy;

/// An audit with all advice, worth it or not.
fn audited(root: &Path) -> Report {
    let options = LookOptions { seconds: 1, all: true, min_processes: 2, worth: Size(0), root: None };
    audit(&Source::recorded(root), &options, false).unwrap()
}

fn of_the_server(report: &Report) -> &Advice {
    let is_it = |advice: &&Advice| advice.id == "huge-pages" && advice.subject.programs.contains("postgres");
    report.advice.iter().find(is_it).unwrap_or_else(|| panic!("{:?}", report.advice))
}

/// `default_hugepagesz=1G`: a server that names no size gets those, and `vm.nr_hugepages` is of them.
#[test]
fn a_server_that_names_no_size_takes_the_hosts_default() {
    let host = copy("questions/try");
    let pages = |report: &Report| of_the_server(report).pages.map(|pages| pages.size);
    assert_eq!(pages(&audited(host.path())), Some(2 << 20));
    let path = host.path().join("proc/meminfo");
    let meminfo = fs::read_to_string(&path).unwrap();
    let other = |line: &str| match line.starts_with("Hugepagesize:") {
        true => "Hugepagesize: 1048576 kB\n".to_string(),
        false => format!("{line}\n"),
    };
    fs::write(&path, meminfo.lines().map(other).collect::<String>()).unwrap();
    let pool = host.path().join("sys/kernel/mm/hugepages/hugepages-1048576kB");
    fs::create_dir_all(&pool).unwrap();
    for file in ["nr", "free", "resv", "surplus", "nr_overcommit"] {
        fs::write(pool.join(format!("{file}_hugepages")), "0\n").unwrap();
    }
    let report = audited(host.path());
    assert_eq!(pages(&report), Some(1 << 30));
    let grow = report.advice.iter().find(|advice| advice.id == "grow-pool").unwrap();
    let commands: Vec<&String> = grow.steps.iter().flat_map(|step| &step.commands).collect();
    let sets = |command: &&&String| command.contains("vm.nr_hugepages = 1'");
    assert!(grow.subject.file.contains("1 GiB") && commands.iter().any(|one| sets(&one)), "{grow:?}");
    // Who names the other size gets that.
    let auto = host.path().join("proc/2/root/var/lib/postgresql/15/main/postgresql.auto.conf");
    fs::write(auto, "huge_page_size = '2MB'\n").unwrap();
    assert_eq!(pages(&audited(host.path())), Some(2 << 20));
}

/// Anybody may map far more memory than there is, touch a byte of each huge page, and have it called page tables.
#[test]
fn memory_that_is_not_in_place_makes_no_pool_grow() {
    let host = copy("questions/try");
    let wanted = |report: &Report| -> u64 {
        report.pools.iter().flat_map(|pool| &pool.need.wanted).map(|want| want.pages).sum()
    };
    let before = audited(host.path());
    assert!(wanted(&before) > 100 && of_the_server(&before).pages.is_some());
    for entry in fs::read_dir(host.path().join("proc")).unwrap().flatten() {
        let path = entry.path().join("pagemap.txt");
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let first_page = |line: &str| {
            let (range, rest) = line.split_once(' ')?;
            let start = range.split_once('-')?.0;
            let end = u64::from_str_radix(start, 16).ok()? + 4096;
            Some(format!("{start}-{end:x} {rest}\n"))
        };
        fs::write(path, text.lines().filter_map(first_page).collect::<String>()).unwrap();
    }
    let report = audited(host.path());
    let advice = of_the_server(&report);
    assert_eq!((wanted(&report), advice.pages), (0, None));
    assert!(report.advice.iter().all(|advice| advice.id != "grow-pool"), "{:?}", report.advice);
    let said = format!("{:?}", advice.steps);
    assert!(said.contains("are known to be in place, so grow-pool does not count it"), "{said}");
}
