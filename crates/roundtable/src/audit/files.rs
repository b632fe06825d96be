//! Which device is what: hugetlbfs, shared memory, or something else.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::sync::Mutex;

use procfs::process::Process;

use super::collect::{self, Missing};
use super::maps::{Line, for_each_in_smaps};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
}

impl Devices {
    /// What a mapping's file is. Only a device that was not met before costs anything.
    pub fn kind(&self, source: &Source, process: &Process, line: &Line) -> Result<Kind, Missing> {
        // Both file systems live on devices without a driver.
        if line.device.0 != 0 || !line.has_file() {
            return Ok(Kind::Other);
        }
        if let Some(&kind) = self.known.lock().expect("no holder panics").get(&line.device) {
            return Ok(kind);
        }
        let Some(kind) = look(source, process, line)? else { return Ok(Kind::Other) };
        self.known.lock().expect("no holder panics").insert(line.device, kind);
        Ok(kind)
    }
}

/// Asks the kernel about one mapping; `None` when the mapping is gone.
fn look(source: &Source, process: &Process, wanted: &Line) -> Result<Option<Kind>, Missing> {
    let smaps = BufReader::new(source.counted(collect::open(source, process, "smaps")?));
    let mut page_size = None;
    for_each_in_smaps(smaps, |line, extra| {
        // 0 where smaps was cut off: what is not known must not be remembered of the device.
        if line.start == wanted.start && line.device == wanted.device && extra.page_size > 0 {
            page_size = Some(extra.page_size);
        }
        page_size.is_none()
    })
    .map_err(|_| Missing::Gone)?;
    Ok(page_size.map(|size| match size {
        size if size > source.geometry.page() => Kind::Hugetlb(size),
        _ if is_kernels_own(wanted.name) => Kind::SharedMemory,
        _ => {
            // The process's own table of mounts: it may live in a container.
            let device = format!("{}:{}", wanted.device.0, wanted.device.1);
            let mounts = collect::open(source, process, "mountinfo");
            let is_tmpfs = mounts.is_ok_and(|file| is_tmpfs(source, file, &device));
            if is_tmpfs { Kind::SharedMemory } else { Kind::Other }
        }
    }))
}

/// Names that only the kernel's own tmpfs gives, which is mounted nowhere.
fn is_kernels_own(name: &[u8]) -> bool {
    [&b"/SYSV"[..], b"/memfd:", b"/dev/zero (deleted)"].iter().any(|start| name.starts_with(start))
}

fn is_tmpfs(source: &Source, mountinfo: File, device: &str) -> bool {
    let mut text = Vec::new();
    if source.read_into(mountinfo, &mut text).is_err() {
        return false;
    }
    let text = String::from_utf8_lossy(&text);
    text.lines().any(|line| {
        // The number of optional fields in the middle varies; a dash ends them.
        let Some((left, right)) = line.split_once(" - ") else { return false };
        left.split(' ').nth(2) == Some(device) && right.split(' ').next() == Some("tmpfs")
    })
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
    fn files_are_called_by_what_operators_know() {
        assert_eq!(describe(b"/memfd:sga (deleted)", 5), "memfd sga");
        assert_eq!(describe(b"/SYSV0000002a (deleted)", 0), "SysV segment 0 (key 0x0000002a)");
        assert_eq!(describe(b"/anon_hugepage (deleted)", 9), "anonymous memory");
        assert_eq!(describe(b"/dev/hugepages/sga", 9), "/dev/hugepages/sga");
        assert_eq!(describe(b"/dev/shm/PostgreSQL.1 (deleted)", 9), "/dev/shm/PostgreSQL.1");
    }
}
