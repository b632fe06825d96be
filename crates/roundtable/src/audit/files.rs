//! Which device is what: hugetlbfs, shared memory, or something else.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::io::BufReader;
use std::sync::Mutex;

use procfs::process::Process;
use serde::{Deserialize, Serialize};

use super::collect::{self, Missing};
use super::maps::{Line, for_each_in_smaps};
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
    /// What a mapping's file is. Only a device that was not met before costs anything.
    pub fn kind(&self, source: &Source, process: &Process, line: &Line) -> Result<Kind, Missing> {
        // Both file systems live on devices without a driver.
        if line.device.0 != 0 || !line.has_file() || !may_be(line) {
            return Ok(Kind::Other);
        }
        if let Some(&kind) = self.known.lock().expect("no holder panics").get(&line.device) {
            return Ok(kind);
        }
        let absent = namespace(source, process.pid, "mnt").map(|namespace| (line.device, namespace));
        let is_absent = |absent| self.absent.lock().expect("no holder panics").contains(&absent);
        if absent.is_some_and(is_absent) {
            return Ok(Kind::Other);
        }
        match look(source, process, line)? {
            Found::Is(kind) => {
                self.known.lock().expect("no holder panics").insert(line.device, kind);
                Ok(kind)
            }
            Found::Nowhere => {
                self.absent.lock().expect("no holder panics").extend(absent);
                Ok(Kind::Other)
            }
            Found::Nothing => Ok(Kind::Other),
        }
    }
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

/// What a look at a mapping's device has shown.
enum Found {
    Is(Kind),
    /// It is mounted nowhere that the process could reach.
    Nowhere,
    /// The mapping is gone, or smaps was cut off: what is not known must not be remembered of the device.
    Nothing,
}

/// Asks the kernel about one mapping.
fn look(source: &Source, process: &Process, wanted: &Line) -> Result<Found, Missing> {
    let smaps = BufReader::new(source.counted(collect::open(source, process, "smaps")?));
    let mut page_size = None;
    for_each_in_smaps(smaps, |line, extra| {
        if line.start == wanted.start && line.device == wanted.device && extra.page_size > 0 {
            // Large pages alone do not tell: a character device of persistent memory has them as well.
            page_size = extra.flags.map(|flags| if flags.has(b"ht") { extra.page_size } else { 0 });
        }
        page_size.is_none()
    })
    .map_err(|_| Missing::Gone)?;
    Ok(match page_size {
        None => Found::Nothing,
        Some(0) if is_kernels_own(wanted.name) => Found::Is(Kind::SharedMemory),
        Some(0) => {
            // The process's own table of mounts: it may live in a container.
            let mut text = Vec::new();
            match collect::read(source, process, "mountinfo", &mut text) {
                Ok(()) => match file_system(&String::from_utf8_lossy(&text), wanted.device) {
                    Some("tmpfs") => Found::Is(Kind::SharedMemory),
                    Some(_) => Found::Is(Kind::Other),
                    None => Found::Nowhere,
                },
                Err(_) => Found::Nothing,
            }
        }
        Some(size) => Found::Is(Kind::Hugetlb(size)),
    })
}

/// Names that only the kernel's own tmpfs gives, which is mounted nowhere.
fn is_kernels_own(name: &[u8]) -> bool {
    [&b"/SYSV"[..], b"/memfd:", b"/dev/zero (deleted)"].iter().any(|start| name.starts_with(start))
}

/// The type of the file system on a device, by a table of mounts.
fn file_system(mountinfo: &str, device: (u32, u32)) -> Option<&str> {
    let device = format!("{}:{}", device.0, device.1);
    mounts(mountinfo).find(|mount| mount.device == device).map(|mount| mount.kind)
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
        assert_eq!(file_system(mounts, (0, 25)), Some("tmpfs"));
        assert_eq!(file_system(mounts, (0, 20)), Some("proc"));
        assert_eq!(file_system(mounts, (0, 2)), None);
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
