//! `cargo xtask selftests`: Linux's own self-tests on Debian's kernel and on ours, and where the two differ.
//!
//! They come from Debian's package of the source, are built by the host's gcc without shared libraries, and run in a guest of each kernel:
//! one boot for each folder, so that what goes wrong in one takes none of the others along. A program ends with 0 when all is well and
//! with 4 when it has tested nothing; most print a line for each of their tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::build::{self, BuildOptions};
use crate::step::Step;
use crate::{debian, linux, output_folder, setup};

/// Which kernels run them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum On {
    Ours,
    Linux,
    Both,
}

/// Which programs, and on which kernels.
#[derive(Args, Clone, Debug)]
pub struct SelftestOptions {
    /// Only programs with this in their name, such as memfd/ or mm/cow
    #[arg(long, value_name = "NAME", default_value = "")]
    pub only: String,

    /// Where they run. What ran on the other kernel the last time is compared with
    #[arg(short, long, value_enum, default_value_t = On::Both)]
    pub kernel: On,

    /// Seconds that one folder may take on one kernel
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub time_limit: u32,

    /// Write the table of those that differ, of all that ever ran on both, to docs/conformance.md
    #[arg(long)]
    pub write: bool,
}

/// Where the table is.
const PAGE: &str = "docs/conformance.md";
const BEGIN: &str = "<!-- begin of the table: cargo xtask selftests --write -->";
const END: &str = "<!-- end of the table -->";

const SOURCE: &str = "linux-source-6.12";
/// What some of the programs are linked with.
const LIBRARIES: [&str; 3] = ["libcap-dev", "libnuma-dev", "libpopt-dev"];
/// Folders below `tools/testing/selftests` whose programs test what is here. Others are about devices, networks, or what stays out.
const SUITES: [&str; 28] = [
    "breakpoints",
    "cachestat",
    "cgroup",
    "clone3",
    "core",
    "filelock",
    "filesystems/epoll",
    "filesystems/statmount",
    "futex/functional",
    "ipc",
    "kcmp",
    "membarrier",
    "memfd",
    "mincore",
    "mm",
    "mount",
    "mount_setattr",
    "mqueue",
    "nsfs",
    "pid_namespace",
    "pidfd",
    "proc",
    "ptrace",
    "rlimits",
    "seccomp",
    "sigaltstack",
    "timens",
    "tmpfs",
];
/// Programs that are run with these arguments, once for each; others without any.
const ARGUMENTS: [(&str, &str); 12] = [
    // One by one: some need transparent huge pages, and some take too long on Linux.
    ("mm/uffd-unit-tests", "-f register"),
    ("mm/uffd-unit-tests", "-f zeropage"),
    ("mm/uffd-unit-tests", "-f wp-"),
    ("mm/uffd-unit-tests", "-f minor"),
    ("mm/uffd-unit-tests", "-f sigbus"),
    ("mm/uffd-unit-tests", "-f events"),
    ("mm/uffd-unit-tests", "-f poison"),
    ("mm/uffd-stress", "anon 20 2"),
    ("mm/uffd-stress", "hugetlb 32 2"),
    ("mm/uffd-stress", "hugetlb-private 32 2"),
    ("mm/uffd-stress", "shmem 20 2"),
    ("mm/uffd-stress", "shmem-private 20 2"),
];
/// What would tell nothing: benchmarks and stress without an end, drivers that no kernel here has, helpers of scripts, and what writes to every
/// file of `/proc`, sysrq's among them.
const LEFT_OUT: [&str; 13] = [
    "breakpoints/step_after_suspend_test",
    "cgroup/wait_inotify",
    "memfd/fuse_test",
    "mm/compaction_test",
    "mm/gup_test",
    "mm/hmm-tests",
    "mm/ksm_tests",
    "mm/khugepaged",
    "mm/transhuge-stress",
    "mm/write_to_hugetlbfs",
    "mqueue/mq_perf_tests",
    "proc/read",
    "seccomp/seccomp_benchmark",
];
/// Seconds that one program may take.
const LIMIT: u32 = 90;
/// Unpacking and building take longer than a download.
const BUILD: Duration = Duration::from_secs(1800);

/// How one program ended on one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    status: i32,
    /// Its own tests: passed, failed, left out.
    tests: [usize; 3],
}

impl Outcome {
    fn shown(&self) -> String {
        let how = match self.status {
            0 => "passed".to_string(),
            4 => "skipped".to_string(),
            137 => "too long".to_string(),
            status => format!("failed ({status})"),
        };
        match self.tests {
            [0, 0, 0] => how,
            [passed, failed, skipped] => format!("{how}: {passed}/{failed}/{skipped}"),
        }
    }
}

/// Runs them; 1 when a program that passes on Linux does not on ours.
pub fn run(options: &SelftestOptions) -> Result<i32> {
    ensure!(debian::has_program("gcc"), "the self-tests are C programs: install gcc (apt-get install gcc)");
    ensure!(debian::has_program("make"), "the self-tests are built by make (apt-get install make)");
    setup::qemu()?;
    setup::host_libc()?;
    let programs = programs()?;
    let wanted: Vec<&str> =
        programs.iter().map(String::as_str).filter(|name| name.contains(&options.only)).collect();
    ensure!(!wanted.is_empty(), "no self-test has {} in its name", options.only);
    let logs = output_folder().join("logs");
    fs::create_dir_all(&logs)?;
    let mut kernels = Vec::new();
    if options.kernel != On::Ours {
        linux::fetch()?;
        kernels.push(("linux", "linux".to_string()));
    }
    if options.kernel != On::Linux {
        // With its assertions.
        let kernel = output_folder().join("kernel-checked.elf");
        build::kernel(&BuildOptions::checked(), &kernel)?;
        kernels.push(("roundtable", kernel.display().to_string()));
    }
    build::programs()?;
    let suites: BTreeSet<&str> = wanted.iter().map(|name| suite_of(name)).collect();
    for suite in &suites {
        let script = output_folder().join("selftests/run.sh");
        let of_suite = wanted.iter().copied().filter(|name| suite_of(name) == *suite);
        fs::write(&script, script_of(of_suite))?;
        for (name, kernel) in &kernels {
            boot(kernel, suite, &script, &log_of(&logs, name, suite), options)?;
        }
    }
    for (name, _) in &kernels {
        let mut all = results(name);
        for suite in &suites {
            all.extend(outcomes(&fs::read(log_of(&logs, name, suite))?));
        }
        fs::write(results_of(name), lines(&all))?;
    }
    let (linux, ours) = (results("linux"), results("roundtable"));
    let code = compare(&linux, &ours, &options.only);
    if options.write {
        let page = fs::read_to_string(PAGE).context(PAGE)?;
        fs::write(PAGE, with_table(&page, &linux, &ours)?)?;
    }
    Ok(code)
}

/// What all programs that ever ran on a kernel have done there: those of other runs are kept.
fn results_of(kernel: &str) -> PathBuf {
    output_folder().join(format!("selftests/results-{kernel}"))
}

fn results(kernel: &str) -> BTreeMap<String, Outcome> {
    let text = fs::read_to_string(results_of(kernel)).unwrap_or_default();
    text.lines().filter_map(of_line).collect()
}

/// A line for each program: its name, how it ended, its own tests.
fn lines(results: &BTreeMap<String, Outcome>) -> String {
    let line = |(name, outcome): (&String, &Outcome)| {
        let [passed, failed, skipped] = outcome.tests;
        format!("{name}\t{}\t{passed}\t{failed}\t{skipped}\n", outcome.status)
    };
    results.iter().map(line).collect()
}

fn of_line(line: &str) -> Option<(String, Outcome)> {
    let mut fields = line.split('\t');
    let name = fields.next()?.to_string();
    let status = fields.next()?.parse().ok()?;
    let mut test = || fields.next()?.parse().ok();
    Some((name, Outcome { status, tests: [test()?, test()?, test()?] }))
}

/// The page with the table of the programs that end otherwise here than there. What was said of one stays.
fn with_table(
    page: &str,
    linux: &BTreeMap<String, Outcome>,
    ours: &BTreeMap<String, Outcome>,
) -> Result<String> {
    let (head, rest) = page.split_once(BEGIN).context("the page has no place for the table")?;
    let (old, tail) = rest.split_once(END).context("the page has no end of the table")?;
    let said = |name: &str| {
        let row = old.lines().find_map(|line| line.strip_prefix(&format!("| {name} |")));
        row.and_then(|row| row.split('|').nth(2)).unwrap_or_default().trim()
    };
    let mut table = String::from("| program | Linux | here | why |\n| --- | --- | --- | --- |\n");
    let mut sums = [0usize; 4];
    for (name, there) in linux {
        let Some(here) = ours.get(name) else { continue };
        let passes = (there.status == 0, here.status == 0);
        sums[0] += 1;
        sums[1] += usize::from(passes.0);
        sums[2] += usize::from(passes.1);
        sums[3] += usize::from(passes == (true, true));
        if there != here {
            let row = format!("| {name} | {} | {} | {} |", there.shown(), here.shown(), said(name));
            table.push_str(&format!("{row}\n"));
        }
    }
    let [all, there, here, both] = sums;
    let sum = format!(
        "Of {all} programs {there} pass on Linux and {here} here, {both} of them on both. What differs:"
    );
    Ok(format!("{head}{BEGIN}\n{sum}\n\n{table}{END}{tail}"))
}

/// The folder of a program.
fn suite_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(suite, _)| suite)
}

fn log_of(logs: &Path, kernel: &str, suite: &str) -> PathBuf {
    logs.join(format!("selftests-{kernel}-{}.log", suite.replace('/', "-")))
}

/// The programs' names, fetched and built where they are not there yet.
fn programs() -> Result<Vec<String>> {
    let folder = output_folder().join("selftests");
    let built = folder.join("programs");
    if !built.is_dir() {
        fetch(&folder)?;
    }
    let mut found = Vec::new();
    for suite in SUITES {
        for entry in fs::read_dir(built.join(suite)).into_iter().flatten().flatten() {
            let name = format!("{suite}/{}", entry.file_name().to_string_lossy());
            if !LEFT_OUT.contains(&name.as_str()) {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn fetch(folder: &Path) -> Result<()> {
    let step = Step::new("fetch and build Linux's self-tests", "to run them; nothing is installed");
    fs::create_dir_all(folder)?;
    let scratch = tempfile::tempdir_in(folder)?;
    let (tree, extra) = (scratch.path().join("source"), scratch.path().join("extra"));
    for folder in [&tree, &extra] {
        fs::create_dir(folder)?;
    }
    for package in LIBRARIES.iter().chain(&[SOURCE]) {
        let place = scratch.path().join(package);
        fs::create_dir(&place)?;
        debian::download(package, &place, &step)?;
        let archive = fs::read_dir(&place)?.flatten().next().context("no package came")?.path();
        step.run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&extra), BUILD)?;
        fs::remove_dir_all(&place)?;
    }
    let mut unpack = Command::new("tar");
    unpack.arg("-xJf").arg(extra.join(format!("usr/src/{SOURCE}.tar.xz"))).arg("-C").arg(&tree);
    unpack.args(["--strip-components=1", "--wildcards"]);
    unpack.args(["drivers", "Documentation", "sound", "fs"].map(|name| format!("--exclude=*/{name}/*")));
    step.run(&mut unpack, BUILD)?;
    step.run(Command::new("make").args(["-s", "ARCH=x86", "headers"]).current_dir(&tree), BUILD)?;
    let built = scratch.path().join("programs");
    for suite in SUITES {
        // Not all of them can be built everywhere: what was built counts.
        let _ = step.run(&mut make(&tree, &extra, suite), BUILD);
        collect(&tree.join("tools/testing/selftests").join(suite), &built.join(suite))?;
    }
    ensure!(built.join("mm/mremap_test").is_file(), "the self-tests were not built");
    fs::rename(&built, folder.join("programs"))?;
    Ok(())
}

/// Builds one suite, without shared libraries.
fn make(tree: &Path, extra: &Path, suite: &str) -> Command {
    let headers = |path: &str| format!("-isystem {}", tree.join(path).display());
    let libraries = format!("-L{}", extra.join("usr/lib/x86_64-linux-gnu").display());
    let flags = format!("-w -static -I{} {libraries}", extra.join("usr/include").display());
    let mut command = Command::new("make");
    command.args(["-k", "-C"]).arg(tree.join("tools/testing/selftests").join(suite));
    command.arg("ARCH=x86_64").arg(format!("KHDR_INCLUDES={}", headers("usr/include")));
    command.arg(format!("TOOLS_INCLUDES={}", headers("tools/include/uapi")));
    command.arg(format!("USERCFLAGS={flags}")).arg(format!("USERLDFLAGS=-static {libraries}"));
    command.arg(format!("EXTRA_CFLAGS={flags}"));
    command
}

/// Copies the programs of a folder.
fn collect(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        let (path, about) = (entry.path(), entry.metadata()?);
        let executable = about.is_file() && about.permissions().mode() & 0o111 != 0;
        if executable && fs::read(&path)?.starts_with(b"\x7fELF") {
            fs::copy(&path, to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// What the guest's shell runs: each program, a line before it, and its end behind it.
fn script_of<'a>(programs: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::from(
        "mount -t cgroup2 none /sys/fs/cgroup\nmount -t tmpfs none /tmp\nmkdir /huge\nmount -t hugetlbfs none /huge\n",
    );
    for program in programs {
        let given: Vec<&str> =
            ARGUMENTS.iter().filter(|(name, _)| *name == program).map(|(_, arguments)| *arguments).collect();
        for arguments in if given.is_empty() { vec![""] } else { given } {
            let suite = suite_of(program);
            let name = program.rsplit('/').next().unwrap_or(program);
            let line = format!("{name} {arguments}");
            let line = line.trim_end();
            // Some leave the pool as they need it.
            text.push_str(&format!(
                "echo 64 > /proc/sys/vm/nr_hugepages\ncd /selftests/{suite}\necho '##BEGIN {suite}/{line}'\n\
                 timeout -s KILL {LIMIT} ./{line} < /dev/null > /tmp/out 2>&1\nended=$?\nhead -c 60000 /tmp/out\n\
                 echo\necho \"##END $ended\"\n"
            ));
        }
    }
    text
}

fn boot(kernel: &str, suite: &str, script: &Path, log: &Path, options: &SelftestOptions) -> Result<()> {
    println!("{} {suite} on {kernel}", console::style("       ==>").bold());
    let own = std::env::current_exe().context("the path of xtask")?;
    let mut command = Command::new(own);
    command.args(["run", "--kernel", kernel, "--verbose", "--cpus", "2", "--memory", "2G", "--time-limit"]);
    command.arg(options.time_limit.to_string());
    let file = |from: &PathBuf, to: &str| format!("{}:{to}", from.display());
    command.arg("--file").arg(file(&output_folder().join("selftests/programs"), "/selftests"));
    command.arg("--file").arg(file(&script.to_path_buf(), "/run.sh"));
    command.args(["--", "busybox", "sh", "/run.sh"]);
    let output = File::create(log)?;
    command.stdout(output.try_clone()?).stderr(output);
    // What it says of itself counts for nothing: the log says which programs have ended.
    command.status().context("xtask does not start")?;
    Ok(())
}

/// How each program ended, from what a guest printed.
fn outcomes(log: &[u8]) -> BTreeMap<String, Outcome> {
    let text = String::from_utf8_lossy(log);
    let mut found = BTreeMap::new();
    let mut now: Option<(String, Outcome)> = None;
    for line in text.lines().map(|line| line.trim_end_matches('\r')) {
        if let Some(name) = line.strip_prefix("##BEGIN ") {
            // One before that has not ended took the machine down.
            if let Some((name, outcome)) = now.replace((name.to_string(), Outcome::default())) {
                found.insert(name, Outcome { status: -1, ..outcome });
            }
        } else if let Some(status) = line.strip_prefix("##END ") {
            if let Some((name, outcome)) = now.take() {
                found.insert(name, Outcome { status: status.trim().parse().unwrap_or(-1), ..outcome });
            }
        } else if let Some((_, outcome)) = &mut now {
            let skipped = line.contains("# SKIP");
            match line.trim_start().split(' ').next() {
                Some("ok") if skipped => outcome.tests[2] += 1,
                Some("ok") => outcome.tests[0] += 1,
                Some("not") if line.trim_start().starts_with("not ok") => outcome.tests[1] += 1,
                _ => {}
            }
        }
    }
    if let Some((name, outcome)) = now {
        found.insert(name, Outcome { status: -1, ..outcome });
    }
    found
}

/// Prints the table of those that differ, and the sums.
fn compare(linux: &BTreeMap<String, Outcome>, ours: &BTreeMap<String, Outcome>, filter: &str) -> i32 {
    println!("\n| program | Linux: passed/failed/skipped | here |\n| --- | --- | --- |");
    let missing = Outcome { status: -1, tests: [0; 3] };
    let mut sums = [0usize; 4];
    for (name, there) in linux.iter().filter(|(name, _)| name.contains(filter)) {
        let here = ours.get(name).unwrap_or(&missing);
        sums[0] += 1;
        sums[1] += usize::from(there.status == 0);
        sums[2] += usize::from(here.status == 0);
        let lost = there.status == 0 && here.status != 0;
        sums[3] += usize::from(lost);
        if there != here {
            println!("| {name} | {} | {} |", there.shown(), here.shown());
        }
    }
    let [all, there, here, lost] = sums;
    println!("\n{all} programs: {there} pass on Linux, {here} here; {lost} pass there and not here");
    i32::from(lost > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_tells_how_programs_ended() {
        let log = b"boot\n##BEGIN mm/a\r\nok 1 x\nnot ok 2 y\nok 3 z # SKIP no\n# ok 4\n##END 1\n##BEGIN mm/b 3\n##END 0\n##BEGIN mm/c\npanic\n";
        let found = outcomes(log);
        assert_eq!(found["mm/a"], Outcome { status: 1, tests: [1, 1, 1] });
        assert_eq!(found["mm/b 3"], Outcome { status: 0, tests: [0; 3] });
        assert_eq!(found["mm/c"].status, -1);
        assert_eq!(found["mm/a"].shown(), "failed (1): 1/1/1");
    }

    #[test]
    fn what_passes_there_and_not_here_is_a_failure() {
        let of = |status: i32| BTreeMap::from([("mm/a".to_string(), Outcome { status, tests: [0; 3] })]);
        assert_eq!(compare(&of(0), &of(1), ""), 1);
        assert_eq!(compare(&of(0), &BTreeMap::new(), ""), 1);
        assert_eq!(compare(&of(1), &of(1), ""), 0);
        assert_eq!(compare(&of(0), &of(1), "memfd"), 0);
    }

    #[test]
    fn results_are_kept_as_lines() {
        let all = BTreeMap::from([
            ("mm/a b".to_string(), Outcome { status: -1, tests: [1, 2, 3] }),
            ("mm/c".to_string(), Outcome::default()),
        ]);
        assert_eq!(lines(&all).lines().filter_map(of_line).collect::<BTreeMap<_, _>>(), all);
        assert_eq!(of_line("mm/a\t1"), None);
    }

    #[test]
    fn the_table_keeps_what_was_said() {
        let of = |status: i32| Outcome { status, tests: [1, 0, 0] };
        let linux = BTreeMap::from([("mm/a".to_string(), of(0)), ("mm/b".to_string(), of(0))]);
        let ours = BTreeMap::from([("mm/a".to_string(), of(1)), ("mm/b".to_string(), of(0))]);
        let page = format!("head\n{BEGIN}\n| mm/a | x | y | for a reason |\n{END}\ntail\n");
        let page = with_table(&page, &linux, &ours).unwrap();
        assert!(page.contains("| mm/a | passed: 1/0/0 | failed (1): 1/0/0 | for a reason |\n"), "{page}");
        assert!(page.contains("Of 2 programs 2 pass on Linux and 1 here, 1 of them on both."), "{page}");
        assert!(
            page.starts_with("head\n") && page.ends_with("tail\n") && !page.contains("| mm/b |"),
            "{page}"
        );
    }

    #[test]
    fn the_script_runs_what_was_asked_for() {
        let script = script_of(["mm/uffd-stress", "filesystems/epoll/epoll_wakeup_test"].into_iter());
        assert!(script.contains("./uffd-stress shmem 20 2 <"));
        assert!(
            script.contains("cd /selftests/filesystems/epoll\n") && script.contains("./epoll_wakeup_test <")
        );
        assert_eq!(script.matches("##BEGIN").count(), 6);
    }
}
