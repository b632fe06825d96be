//! What the machine has, before and after a round.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use roundtable_programs::procfs::{self, fields};
use roundtable_programs::sys::{is_linux, settles};
use roundtable_programs::{mshare, ordinary, sharing};

/// Counters that have to return, and by how much they may miss, in their own units.
///
/// Ours gives all back, but the general heap may keep a page here and there. Linux keeps pages of what it has freed in its slabs and
/// per-CPU lists, and is known to lose count of reservations of huge pages.
fn tolerances() -> Vec<(&'static str, u64)> {
    let linux = is_linux();
    let memory = if linux { 64 << 10 } else { 4 << 10 };
    let mut list = vec![
        ("HugePages_Total", 0),
        ("HugePages_Free", 0),
        ("HugePages_Surp", 0),
        ("MemFree", memory),
        ("PageTables", 256),
        ("Shmem", if linux { 1024 } else { 0 }),
        ("KernelStack", if linux { 2048 } else { 64 }),
        ("AnonPages", 512),
        ("Mlocked", 0),
        ("files", if linux { 64 } else { 0 }),
        ("processes", 0),
        ("mounts", 0),
        ("segments", 0),
    ];
    if !linux {
        list.extend([
            ("HugePages_Rsvd", 0),
            ("tables", 0),
            ("attachments", 0),
            ("1G free", 0),
            ("1G reserved", 0),
            ("regions", 0),
            ("region attachments", 0),
            ("region pages", 0),
            ("file tables", 0),
            ("file attachments", 0),
        ]);
    }
    list
}

#[derive(Clone, Debug)]
pub struct Accounts {
    counters: BTreeMap<String, u64>,
    /// The processes by number and name, to say which one has come or gone.
    processes: String,
}

impl Accounts {
    pub fn take() -> Accounts {
        let mut all = fields("/proc/meminfo");
        let lines = |path: &str| fs::read_to_string(path).map_or(0, |text| text.lines().count() as u64);
        let file = fs::read_to_string("/proc/sys/fs/file-nr").unwrap_or_default();
        let open = file.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
        all.insert("files".into(), open);
        let processes = processes();
        all.insert("processes".into(), processes.len() as u64);
        all.insert("mounts".into(), lines("/proc/mounts"));
        all.insert("segments".into(), lines("/proc/sysvipc/shm"));
        if sharing::protocol().is_some() {
            all.insert("tables".into(), sharing::counter("tables"));
            all.insert("attachments".into(), sharing::counter("attachments"));
        }
        if fs::metadata("/sys/kernel/mm/mshare").is_ok() {
            all.insert("regions".into(), mshare::count("regions"));
            all.insert("region attachments".into(), mshare::count("attachments"));
            all.insert("region pages".into(), mshare::count("pages"));
        }
        if ordinary::has_tables() {
            all.insert("file tables".into(), ordinary::counter("tables"));
            all.insert("file attachments".into(), ordinary::counter("attachments"));
        }
        let gigantic = "/sys/kernel/mm/hugepages/hugepages-1048576kB";
        if fs::metadata(gigantic).is_ok() {
            all.insert("1G free".into(), procfs::number(&format!("{gigantic}/free_hugepages")));
            all.insert("1G reserved".into(), procfs::number(&format!("{gigantic}/resv_hugepages")));
        }
        Accounts { counters: all, processes: names(&processes) }
    }

    /// What has not returned, after a moment in which the kernel frees what it has to.
    pub fn difference(&self) -> Option<String> {
        let tolerances = tolerances();
        let missing = || {
            let now = Accounts::take();
            let get = |accounts: &Accounts, name: &str| accounts.counters.get(name).copied().unwrap_or(0);
            let wrong = tolerances.iter().filter(|(name, tolerance)| {
                let (before, after) = (get(self, name), get(&now, name));
                // More free memory than before is no loss.
                before.abs_diff(after) > *tolerance && (*name != "MemFree" || after < before)
            });
            wrong
                .map(|(name, _)| match *name {
                    "processes" => format!("processes were {} and are {}", self.processes, now.processes),
                    _ => format!("{name} was {} and is {}", get(self, name), get(&now, name)),
                })
                .collect::<Vec<_>>()
        };
        // Sockets in messages that wait in each other are looked for when one is closed.
        drop(UnixStream::pair());
        settles(Duration::from_secs(5), || missing().is_empty());
        if missing().iter().any(|text| text.starts_with("MemFree")) {
            // What may be dropped is no leak.
            let _ = procfs::write("/proc/sys/vm/drop_caches", 3);
        }
        let missing = missing();
        (!missing.is_empty()).then(|| missing.join(", "))
    }
}

/// Waits until only these processes run a program; says what others there are. What they hold and give back later would look like
/// something of a round's.
pub fn wait_for_none_but(expected: &[i32]) -> Result<(), String> {
    let others = || {
        let mut others = processes();
        others.retain(|pid| !expected.contains(pid));
        others
    };
    if settles(Duration::from_secs(5), || others().is_empty()) {
        return Ok(());
    }
    Err(format!("there are processes before the first round: {}", names(&others())))
}

/// The processes' numbers and names.
fn names(pids: &[i32]) -> String {
    let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    pids.iter().map(|pid| format!("{pid} {}", name(pid).trim())).collect::<Vec<_>>().join(", ")
}

/// Processes that run a program: their numbers.
pub fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok()).collect()
}

/// The processes of a user, with what each is doing; zombies that their parent has not waited for are none.
pub fn of_user(user: u32) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut found = Vec::new();
    for pid in numbers {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().split_whitespace().next().unwrap_or_default().to_string()
        };
        if field("Uid:") == user.to_string() {
            let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
            found.push(format!("{pid} state {} call {}", field("State:"), call.trim()));
        }
    }
    found
}
