//! Readers of /proc.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::sys::settles;

/// A file of `Name: value [kB]` lines; values in the file's own unit.
pub fn fields(path: &str) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_string(), value.split_whitespace().next()?.parse().ok()?))
        })
        .collect()
}

/// /proc/meminfo; sizes in kB, huge pages in pages.
pub struct Meminfo(BTreeMap<String, u64>);

impl Meminfo {
    pub fn read() -> Meminfo {
        Meminfo(fields("/proc/meminfo"))
    }

    #[track_caller]
    pub fn get(&self, name: &str) -> u64 {
        *self.0.get(name).unwrap_or_else(|| panic!("/proc/meminfo has no {name}"))
    }
}

/// A number of /proc/PID/status, sizes in kB.
#[track_caller]
pub fn status(pid: i32, name: &str) -> u64 {
    let path = format!("/proc/{pid}/status");
    *fields(&path).get(name).unwrap_or_else(|| panic!("{path} has no {name}"))
}

/// A line of /proc/PID/status, as it is written.
#[track_caller]
pub fn status_text(pid: i32, name: &str) -> String {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t").map(str::to_string));
    line.unwrap_or_else(|| panic!("{path} has no {name}"))
}

/// How many processes there are.
pub fn process_count() -> usize {
    fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
        .count()
}

/// The state letter of /proc/PID/stat.
pub fn state(pid: i32) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ")?.1.chars().next()
}

/// A child of a process with one thread that has forked.
pub fn child_of(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Waits until a process sleeps: for who shall wake it, and not be there before it waits.
#[track_caller]
pub fn wait_for_sleep(pid: i32) {
    let asleep = settles(Duration::from_secs(20), || state(pid) == Some('S'));
    assert!(asleep, "process {pid} never sleeps; it is {:?}", state(pid));
}

/// Waits until so many threads of this process sleep, whether a signal would wake them or not, the caller not among them.
#[track_caller]
pub fn wait_for_sleepers(count: usize) {
    let asleep = || {
        let tasks = fs::read_dir("/proc/self/task").expect("tasks").flatten();
        let states = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
        states
            .filter(|text| text.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['S', 'D'])))
            .count()
    };
    assert!(settles(Duration::from_secs(60), || asleep() >= count), "{} of {count} threads sleep", asleep());
}

/// Writes a sysctl or sysfs file.
pub fn write(path: &str, value: impl std::fmt::Display) -> std::io::Result<()> {
    fs::write(path, value.to_string())
}

/// Reads a file that holds one number.
#[track_caller]
pub fn number(path: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.trim().parse().unwrap_or_else(|_| panic!("{path} says {text:?}"))
}

/// Are program, mappings and stack of a process near each other? That is our own business, and `layout=far` has Linux's places.
pub fn has_near_layout() -> bool {
    let line = fs::read_to_string("/proc/cmdline").expect("/proc/cmdline");
    let is_ours = fs::exists("/sys/kernel/mm/hugepages/sharing").unwrap_or(false);
    is_ours && !line.split_whitespace().any(|word| word == "layout=far")
}
