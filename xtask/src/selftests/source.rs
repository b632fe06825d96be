//! The self-tests' programs: which there are, fetched and built from Debian's package of Linux's source.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::step::Step;
use crate::{debian, output_folder};

const SOURCE: &str = "linux-source-6.12";
/// What some of the programs are linked with.
const LIBRARIES: [&str; 3] = ["libcap-dev", "libnuma-dev", "libpopt-dev"];
/// Folders below `tools/testing/selftests` whose programs test what is here. Others are about devices, networks, or what stays out.
const SUITES: [&str; 36] = [
    "breakpoints",
    "cachestat",
    "cgroup",
    "clone3",
    "core",
    "exec",
    "fchmodat2",
    "filelock",
    "filesystems",
    "filesystems/epoll",
    "filesystems/eventfd",
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
    "move_mount_set_group",
    "mqueue",
    "nsfs",
    "openat2",
    "pid_namespace",
    "pidfd",
    "proc",
    "ptrace",
    "rlimits",
    "seccomp",
    "sigaltstack",
    "syscall_user_dispatch",
    "timens",
    "timers",
    "tmpfs",
];
/// Of these, those that ask the compiler for checks which need shared libraries.
const SANITIZED: [&str; 2] = ["fchmodat2", "openat2"];
/// Programs that are run with these arguments, once for each; others without any.
pub const ARGUMENTS: [(&str, &str); 16] = [
    ("memfd/memfd_test", ""),
    ("memfd/memfd_test", "hugetlbfs"),
    ("mm/charge_reserved_hugetlb.sh", "-cgroup-v2"),
    ("mm/hugetlb_reparenting_test.sh", "-cgroup-v2"),
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
/// Scripts among them; others start the programs that are here anyway.
const SCRIPTS: [&str; 2] = ["charge_reserved_hugetlb.sh", "hugetlb_reparenting_test.sh"];
/// What scripts start. They are not in the table.
const HELPERS: [&str; 2] = ["write_hugetlb_memory.sh", "write_to_hugetlbfs"];
/// What would tell nothing: benchmarks and stress without an end, drivers that no kernel here has, what sets or
/// measures clocks for minutes, helpers of scripts, and what writes to every
/// file of `/proc`, sysrq's among them.
const LEFT_OUT: [&str; 36] = [
    "breakpoints/step_after_suspend_test",
    "cgroup/wait_inotify",
    "exec/execveat.symlink",
    "exec/load_address.0x1000",
    "exec/load_address.0x1000000",
    "exec/load_address.0x200000",
    "memfd/fuse_mnt",
    "memfd/fuse_test",
    "mm/compaction_test",
    "mm/gup_test",
    "mm/hmm-tests",
    "mm/khugepaged",
    "mm/ksm_tests",
    "mm/transhuge-stress",
    "mqueue/mq_perf_tests",
    "proc/read",
    "seccomp/seccomp_benchmark",
    "syscall_user_dispatch/sud_benchmark",
    "timers/adjtick",
    "timers/alarmtimer-suspend",
    "timers/change_skew",
    "timers/clocksource-switch",
    "timers/freq-step",
    "timers/inconsistency-check",
    "timers/leap-a-day",
    "timers/leapcrash",
    "timers/mqueue-lat",
    "timers/nsleep-lat",
    "timers/raw_skew",
    "timers/rtcpie",
    "timers/set-2038",
    "timers/set-tai",
    "timers/set-timer-lat",
    "timers/set-tz",
    "timers/skew_consistency",
    "timers/threadtest",
];
/// Unpacking and building take longer than a download.
const BUILD: Duration = Duration::from_secs(1800);

/// The programs' names, fetched and built where they are not there yet.
pub fn programs() -> Result<Vec<String>> {
    let folder = output_folder().join("selftests");
    let built = folder.join("programs");
    if !built.is_dir() {
        fetch(&folder)?;
    }
    let mut found = Vec::new();
    for suite in SUITES {
        for entry in fs::read_dir(built.join(suite)).into_iter().flatten().flatten() {
            // A suite may be in the folder of another.
            if entry.path().is_dir() {
                continue;
            }
            let name = format!("{suite}/{}", entry.file_name().to_string_lossy());
            if !LEFT_OUT.contains(&name.as_str()) && !is_helper(&entry.file_name()) {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn is_helper(name: &OsStr) -> bool {
    HELPERS.iter().any(|helper| name == *helper)
}

fn is_script(name: &OsStr) -> bool {
    SCRIPTS.iter().any(|script| name == *script)
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
    if SANITIZED.contains(&suite) {
        command.arg(format!("CFLAGS=-O2 {} {flags}", headers("usr/include")));
    }
    command
}

/// Copies the programs and scripts of a folder.
fn collect(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        let (path, about) = (entry.path(), entry.metadata()?);
        let name = entry.file_name();
        let executable = about.is_file() && about.permissions().mode() & 0o111 != 0;
        if executable && fs::read(&path)?.starts_with(b"\x7fELF") || is_script(&name) || is_helper(&name) {
            fs::copy(&path, to.join(&name))?;
            // Not every package's scripts are executable.
            fs::set_permissions(to.join(&name), fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}
