//! Which device is what: hugetlbfs, shared memory, or something else.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::io::BufReader;
use std::sync::Mutex;

use procfs::process::Process;
use serde::{Deserialize, Serialize};

use super::collect::{self, Missing};
use super::deadline::Deadline;
use super::maps::{self, Line, for_each_in_smaps};
use super::mounts::mounts;
use super::source::Source;

/// What lies on a device, as far as the audit cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// hugetlbfs: mounted, or the kernel's own for memfd, SysV and anonymous memory. Bytes of a page.
    Hugetlb(u64),
    /// tmpfs: mounted, or the kernel's own for memfd, SysV and anonymous shared memory.
    SharedMemory,
    /// Anything else.
    Other,
}

/// A file, the same in all processes that map it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Number on the device; a SysV segment's `shmid`.
    pub inode: u64,
    /// The IPC namespace of a SysV segment: each counts its segments from 0, on one device.
    pub namespace: u64,
}

/// What is known of devices so far. Page size and kind are the device's, so one look for each is enough.
#[derive(Debug, Default)]
pub struct Devices {
    known: Mutex<HashMap<(u32, u32), Kind>>,
    /// Devices that are mounted nowhere in a mount namespace, with its number: in another they may be. (A subvolume of
    /// btrfs is in none, and there may be many processes that map its files.)
    absent: Mutex<HashSet<((u32, u32), u64)>>,
}

impl Devices {
    /// Those of a process's mappings.
    pub fn of<'a>(&'a self, source: &'a Source, process: &'a Process, deadline: &'a Deadline) -> Asked<'a> {
        Asked { devices: self, source, process, deadline, namespace: None, is_asked: false }
    }
}

/// What the devices of one process's mappings are. The kernel is asked once for all that were not met before: anybody may
/// map a file of each of very many file systems.
pub struct Asked<'a> {
    devices: &'a Devices,
    source: &'a Source,
    process: &'a Process,
    deadline: &'a Deadline,
    /// The number of its mount namespace, if that may be read; once it was needed.
    namespace: Option<Option<u64>>,
    is_asked: bool,
}

impl Asked<'_> {
    /// What the file of a mapping is; `maps` are all lines of the process.
    pub fn kind(&mut self, line: &Line, maps: &[u8]) -> Result<Kind, Missing> {
        if !is_of_interest(line) {
            return Ok(Kind::Other);
        }
        if let Some(kind) = self.known(line.device) {
            return Ok(kind);
        }
        if !std::mem::replace(&mut self.is_asked, true) {
            self.ask(maps)?;
        }
        // A mapping that is gone, or was cut off in smaps: that is not remembered of the device.
        Ok(self.known(line.device).unwrap_or(Kind::Other))
    }

    fn known(&mut self, device: (u32, u32)) -> Option<Kind> {
        if let Some(&kind) = self.devices.known.lock().expect("no holder panics").get(&device) {
            return Some(kind);
        }
        let absent = (device, self.namespace()?);
        self.devices.absent.lock().expect("no holder panics").contains(&absent).then_some(Kind::Other)
    }

    fn namespace(&mut self) -> Option<u64> {
        let (source, pid) = (self.source, self.process.pid);
        *self.namespace.get_or_insert_with(|| namespace(source, pid, "mnt"))
    }

    /// Asks the kernel about all devices that are not known.
    fn ask(&mut self, maps: &[u8]) -> Result<(), Missing> {
        let devices: HashSet<(u32, u32)> =
            maps::lines(maps).filter(is_of_interest).map(|line| line.device).collect();
        let mut wanted: HashSet<_> =
            devices.into_iter().filter(|&device| self.known(device).is_none()).collect();
        let smaps = BufReader::new(self.source.counted(collect::open(self.source, self.process, "smaps")?));
        let (mut mounted, mut looked, mut is_late) = (HashSet::new(), 0, false);
        let mut known = HashMap::new();
        for_each_in_smaps(smaps, |line, extra| {
            looked += 1;
            is_late = looked % STRIDE == 0 && self.deadline.is_past();
            // Large pages alone do not tell: a character device of persistent memory has them as well.
            let flags = extra.flags.filter(|_| extra.page_size > 0 && is_of_interest(line));
            if let Some(flags) = flags
                && wanted.remove(&line.device)
            {
                if flags.has(b"ht") {
                    known.insert(line.device, Kind::Hugetlb(extra.page_size));
                } else if is_kernels_own(line.name) {
                    known.insert(line.device, Kind::SharedMemory);
                } else {
                    mounted.insert(line.device);
                }
            }
            !is_late && !wanted.is_empty()
        })
        .map_err(|_| Missing::Gone)?;
        // The process's own table of mounts: it may live in a container.
        let mut text = Vec::new();
        if !mounted.is_empty() && collect::read(self.source, self.process, "mountinfo", &mut text).is_ok() {
            let text = String::from_utf8_lossy(&text);
            let kinds = file_systems(&text);
            let namespace = self.namespace();
            let mut absent = self.devices.absent.lock().expect("no holder panics");
            for device in mounted {
                match kinds.get(&device) {
                    Some(&"tmpfs") => drop(known.insert(device, Kind::SharedMemory)),
                    Some(_) => drop(known.insert(device, Kind::Other)),
                    None => absent.extend(namespace.map(|namespace| (device, namespace))),
                }
            }
        }
        self.devices.known.lock().expect("no holder panics").extend(known);
        if is_late { Err(Missing::Late) } else { Ok(()) }
    }
}

/// So many mappings are looked at before the deadline is asked for again.
const STRIDE: usize = 128;

/// Whether a mapping's file can lie on one of the two file systems, which live on devices without a driver.
fn is_of_interest(line: &Line) -> bool {
    line.device.0 == 0 && line.has_file() && may_be(line)
}

/// The smallest huge page of any architecture: arm64's contiguous base pages.
const SMALLEST_HUGE: u64 = 64 << 10;

/// Whether a mapping could be of huge pages, or of shared memory: most of a process's mappings, of libraries,
/// could not.
fn may_be(line: &Line) -> bool {
    line.access.shared || (line.start | line.end).is_multiple_of(SMALLEST_HUGE)
}

/// The number of a process's namespace; `None` where that may not be read.
pub fn namespace(source: &Source, process: impl Display, name: &str) -> Option<u64> {
    let link = std::fs::read_link(source.path(&format!("proc/{process}/ns/{name}"))).ok()?;
    link.to_str()?.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

/// Names that only the kernel's own tmpfs gives, which is mounted nowhere.
fn is_kernels_own(name: &[u8]) -> bool {
    [&b"/SYSV"[..], b"/memfd:", b"/dev/zero (deleted)"].iter().any(|start| name.starts_with(start))
}

/// The types of the file systems on all devices, by a table of mounts.
fn file_systems(mountinfo: &str) -> HashMap<(u32, u32), &str> {
    let mut kinds = HashMap::new();
    for mount in mounts(mountinfo) {
        let device = mount.device.split_once(':');
        if let Some((Ok(major), Ok(minor))) = device.map(|(major, minor)| (major.parse(), minor.parse())) {
            kinds.entry((major, minor)).or_insert(mount.kind);
        }
    }
    kinds
}

/// A file in an operator's words.
pub fn describe(name: &[u8], inode: u64) -> String {
    let name = String::from_utf8_lossy(name);
    let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
    if let Some(name) = name.strip_prefix("/memfd:") {
        format!("memfd {name}")
    } else if let Some(key) = name.strip_prefix("/SYSV") {
        format!("SysV segment {inode} (key 0x{key})")
    } else if name == "/anon_hugepage" || name == "/dev/zero" {
        "anonymous memory".to_string()
    } else {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_tell_the_file_system() {
        let mounts = "22 1 0:20 / /proc rw - proc proc rw\n\
            23 1 0:25 / /dev/shm rw,nosuid shared:4 master:1 - tmpfs tmpfs rw\n24 1 254:0 / / rw - ext4 /dev/root rw\n";
        let kinds = file_systems(mounts);
        assert_eq!(
            [(0, 25), (0, 20), (0, 2)].map(|device| kinds.get(&device)),
            [Some(&"tmpfs"), Some(&"proc"), None]
        );
    }

    #[test]
    fn files_are_called_by_what_operators_know() {
        assert_eq!(describe(b"/memfd:sga (deleted)", 5), "memfd sga");
        assert_eq!(describe(b"/SYSV0000002a (deleted)", 0), "SysV segment 0 (key 0x0000002a)");
        assert_eq!(describe(b"/anon_hugepage (deleted)", 9), "anonymous memory");
        assert_eq!(describe(b"/dev/hugepages/sga", 9), "/dev/hugepages/sga");
        assert_eq!(describe(b"/dev/shm/PostgreSQL.1 (deleted)", 9), "/dev/shm/PostgreSQL.1");
    }
}
