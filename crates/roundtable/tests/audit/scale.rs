//! Many processes: the work for each stays the same, and the memory small. Times are in docs/operators.md.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::ptr::null_mut;
use std::time::Instant;

use roundtable::audit::deadline::Deadline;
use roundtable::audit::source::Source;
use roundtable::audit::{LookOptions, audit_until};
use roundtable::size::Size;

use crate::recordings::folder;

/// Kilobytes of address space that the audit may use, its program and the threads' stacks included.
const MEMORY: u64 = 256 << 10;

/// A host where one recorded process is there so many times.
pub fn of_processes(processes: u64) -> tempfile::TempDir {
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
    host
}

/// What was seen of such a host, audited wholly.
fn seen(processes: u64) -> serde_json::Value {
    let host = of_processes(processes);
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

/// A host with one process that has so many mappings, by a line of maps for each and what smaps says of it.
fn of_mappings(
    mappings: u32,
    line: impl Fn(u32) -> String,
    smaps_says: &str,
    mounts: String,
) -> tempfile::TempDir {
    let host = of_processes(2);
    let place = host.path().join("proc/3");
    fs::create_dir(&place).unwrap();
    let (mut maps, mut smaps) = (String::new(), String::new());
    for number in 0..mappings {
        let start = 0x7000_0000_0000_u64 + u64::from(number) * (8 << 20);
        let line = format!("{start:x}-{:x} rw-s 00000000 {}\n", start + (2 << 20), line(number));
        maps += &line;
        smaps += &(line + smaps_says);
    }
    for (name, text) in
        [("maps", maps), ("smaps", smaps), ("mountinfo", mounts), ("pagemap.txt", String::new())]
    {
        fs::write(place.join(name), text).unwrap();
    }
    fs::write(place.join("status"), "Name:\tmany\nVmPTE:\t 8 kB\n").unwrap();
    host
}

/// A file of each of so many file systems.
fn of_devices(devices: u32) -> tempfile::TempDir {
    let mount = |number| format!("1 1 0:{} / /mnt/{number} rw - tmpfs tmpfs rw\n", 1000 + number);
    let line = |number| format!("00:{:x} 2 /mnt/{number}/file", 1000 + number);
    let says = "KernelPageSize:        4 kB\nVmFlags: rd wr sh ms \n";
    of_mappings(devices, line, says, (0..devices).map(mount).collect())
}

/// So many files of huge pages, of which none has a page: they take no right.
fn of_huge_files(files: u32) -> tempfile::TempDir {
    let line = |number| format!("00:2f {} /memfd:{number} (deleted)", 5000 + number);
    of_mappings(
        files,
        line,
        "KernelPageSize:     2048 kB\nVmFlags: rd wr sh mr mw me ms ht nr \n",
        String::new(),
    )
}

/// Bytes read of a host with three processes, and how many of these there was no time for.
fn read(host: &tempfile::TempDir, deadline: Deadline) -> (u64, u64) {
    let source = Source::recorded(host.path());
    let options = LookOptions { seconds: 2, all: false, min_processes: 2, worth: Size(0), root: None };
    let report = audit_until(deadline, &source, &options, false).unwrap();
    assert_eq!(report.seen.processes + report.seen.skipped, 3);
    assert_eq!(report.seen.vanished, 0);
    (source.counts().1, report.seen.skipped)
}

/// Anybody may mount any number of file systems in a namespace of its own, and map something of each.
#[test]
fn many_file_systems_cost_one_look() {
    let many = of_devices(3000);
    let (few, _) = read(&of_devices(300), Deadline::never());
    let (all, skipped) = read(&many, Deadline::never());
    assert_eq!(skipped, 0);
    assert!(all < few * 12, "{few} bytes for 300, {all} for 3,000");
    // The end comes in the middle of it.
    let (late, skipped) = read(&many, Deadline::when_asked(8));
    assert!(late < all && skipped == 1, "{late} of {all} bytes, {skipped} skipped");
}

/// Whether pages are promised to each of them is asked of the process once.
#[test]
fn many_huge_files_cost_one_look() {
    let [few, many] = [300, 3000].map(|files| read(&of_huge_files(files), Deadline::never()).0);
    assert!(many < few * 12, "{few} bytes for 300, {many} for 3,000");
}

/// Prints what the figure in docs/operators.md is: a part of `cargo xtask soak`, or by itself
/// `cargo xtask soak 1m --only audit`.
#[test]
#[ignore = "10,000 processes: cargo xtask soak runs it"]
fn ten_thousand_real_processes() {
    const PROCESSES: u64 = 10_000;
    const BYTES: usize = 64 << 20;
    // SAFETY: a new mapping, which nothing else knows of, is written from end to end.
    unsafe {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let memory = libc::mmap(null_mut(), BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_ne!(memory, libc::MAP_FAILED);
        memory.cast::<u8>().write_bytes(1, BYTES);
    }
    let mut sleepers = Vec::new();
    for _ in 0..PROCESSES {
        // SAFETY: the child makes system calls only. It ends with this thread, however that ends.
        match unsafe { libc::fork() } {
            -1 => panic!("only {} processes: {}", sleepers.len(), std::io::Error::last_os_error()),
            // SAFETY: as said: two system calls.
            0 => unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    libc::pause();
                }
            },
            pid => sleepers.push(pid),
        }
    }
    let start = Instant::now();
    let output =
        Command::new(env!("CARGO_BIN_EXE_roundtable")).args(["audit", "--json"]).output().expect("it starts");
    let took = start.elapsed();
    // SAFETY: a rusage of zero bytes is valid, and the call fills it. The only child that was waited for is the audit.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    for pid in sleepers {
        // SAFETY: a child of ours, which is not waited for before.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, null_mut(), 0);
        }
    }
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let files = report["base"].as_array().unwrap();
    // The test itself has it mapped as well.
    assert!(files.iter().any(|file| file["processes"] == PROCESSES + 1), "{files:?}");
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    println!(
        "an audit of {PROCESSES} processes took {:.2} s: {:.2} s of CPU in the program, {:.2} s in the \
         kernel, at most {} kB of memory",
        took.as_secs_f64(),
        seconds(usage.ru_utime),
        seconds(usage.ru_stime),
        usage.ru_maxrss
    );
}
