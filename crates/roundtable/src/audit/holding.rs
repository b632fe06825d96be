//! What holds huge pages besides the mappings of processes: files on mounts, open files, SysV segments.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, FileType, MemfdFlags, StatxFlags, fstat, major, memfd_create, minor, statfs, statx,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::collect::Census;
use super::deadline::Deadline;
use super::files::{self, FileId};
use super::group::Group;
use super::host::Host;
use super::maps;
use super::mounts::{self, unescaped};
use super::source::Source;
use super::trust;

/// `f_type` of hugetlbfs.
const MAGIC: i64 = 0x9584_58f6;
/// A hugetlbfs may have any number of files: no more than so many are looked at.
const FILES: usize = 100_000;
/// Open files of the whole host that are looked at.
const DESCRIPTORS: usize = 1_000_000;
/// Of these small looks so many are had before the deadline is asked for again.
const STRIDE: usize = 128;
/// From this bit of memfd_create's flags on stands the logarithm of a huge page's size.
const MFD_HUGE_SHIFT: u32 = 26;
/// `st_blocks` counts in these.
const BLOCK: u64 = 512;

/// A file's device, and its number there.
pub type Place = ((u32, u32), u64);

/// Where these files lie.
pub fn places(files: &HashSet<FileId>) -> HashSet<Place> {
    files.iter().map(|id| (id.device, id.inode)).collect()
}

/// A mount of hugetlbfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// Where it is, in its own mount namespace.
    pub path: String,
    /// Where this program finds it.
    #[serde(skip)]
    reached: PathBuf,
    device: (u32, u32),
    /// Bytes of its pages.
    pub page_size: u64,
    /// `size=`: no more bytes may be in its files.
    pub size: Option<u64>,
    /// `min_size=`: so many bytes are promised to it.
    pub min_size: u64,
    /// Pages that its files have.
    pub used_pages: u64,
    /// A process that sees it there, where this program does not: its path is not one of this program's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<i32>,
}

impl MountPoint {
    /// Major and minor number of its device.
    pub fn device(&self) -> (u32, u32) {
        self.device
    }
}

/// All mounts of hugetlbfs, of this and of every other mount namespace, each file system once.
pub fn mounts(source: &Source, census: &Census, deadline: &Deadline) -> Vec<MountPoint> {
    if let Some(held) = source.held() {
        return held.mounts.clone();
    }
    let mut seen = HashSet::new();
    // One process of each namespace; this program's own first.
    let mut of_each: Vec<String> = vec!["self".into()];
    for process in census.processes.iter().take_while(|_| !deadline.is_past()) {
        if let Some(namespace) = files::namespace(source, process.pid, "mnt")
            && seen.insert(namespace)
        {
            of_each.push(process.pid.to_string());
        }
    }
    let mut all: BTreeMap<(u32, u32), MountPoint> = BTreeMap::new();
    for process in of_each {
        let text = source.text(&format!("proc/{process}/mountinfo")).unwrap_or_default();
        for mount in mounts::mounts(&text).filter(|mount| mount.kind == "hugetlbfs") {
            let Some(device) = mount.device.split_once(':') else { continue };
            let (Ok(major), Ok(minor)) = (device.0.parse(), device.1.parse()) else { continue };
            let path = unescaped(mount.place);
            let reached = source.path(&format!("proc/{process}/root")).join(path.trim_start_matches('/'));
            all.entry((major, minor)).or_insert_with(|| {
                let option = |name: &str| {
                    let value =
                        mount.options.split(',').find_map(|one| one.strip_prefix(name)?.strip_prefix('='));
                    value.and_then(|value| value.parse::<crate::size::Size>().ok()).map(|size| size.0)
                };
                let page_size = option("pagesize").unwrap_or(0);
                MountPoint {
                    path,
                    reached,
                    device: (major, minor),
                    page_size,
                    size: option("size"),
                    min_size: option("min_size").unwrap_or(0),
                    used_pages: 0,
                    inside: process.parse().ok(),
                }
            });
        }
    }
    let mut all: Vec<MountPoint> = all.into_values().collect();
    for mount in &mut all {
        // It may lie below another mount, where its files are out of sight.
        let Ok(system) = statfs(&mount.reached) else { continue };
        if system.f_type == MAGIC {
            mount.page_size = system.f_bsize as u64;
            if mount.size.is_some() {
                mount.used_pages = system.f_blocks.saturating_sub(system.f_bfree);
            }
        }
    }
    all
}

/// A file on a mount that no process maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Its path.
    pub path: String,
    /// Its device.
    pub device: (u32, u32),
    /// Its number.
    pub inode: u64,
    /// Bytes of its pages.
    pub page_size: u64,
    /// How many it has.
    pub pages: u64,
    /// Seconds since it was changed last.
    pub age_seconds: Option<u64>,
    /// A process that sees it at this path, where this program does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<i32>,
    /// Whether others than root can let its path lead elsewhere.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_movable: bool,
}

impl Left {
    /// Where it lies.
    pub fn place(&self) -> Place {
        (self.device, self.inode)
    }
}

/// A folder of a mount.
struct Folder {
    /// Where this program finds it.
    reached: PathBuf,
    /// Where it is for those who see the mount.
    path: PathBuf,
    /// Whether others than root can put another into its place, or into that of one above.
    is_movable: bool,
}

/// The files of these mounts that are not among the mapped ones.
pub fn left_files(
    source: &Source,
    mounts: &[MountPoint],
    mapped: &HashSet<Place>,
    deadline: &Deadline,
) -> Vec<Left> {
    if let Some(held) = source.held() {
        return held.left.clone();
    }
    let mut left = Vec::new();
    let mut looked = 0;
    for mount in mounts.iter().filter(|mount| mount.page_size > 0) {
        let path = PathBuf::from(&mount.path);
        let is_movable = !path.parent().is_none_or(trust::are_closed);
        let mut folders = vec![Folder { reached: mount.reached.clone(), path, is_movable }];
        while let Some(folder) = folders.pop() {
            source.count(1, 0);
            let is_open =
                !std::fs::metadata(&folder.reached).is_ok_and(|metadata| trust::is_closed(&metadata));
            for entry in std::fs::read_dir(&folder.reached).into_iter().flatten().flatten() {
                looked += 1;
                if looked > FILES || looked % STRIDE == 0 && deadline.is_past() {
                    return left;
                }
                // Of the entry itself: a link leads elsewhere.
                let Ok(metadata) = entry.metadata() else { continue };
                if device(&metadata) != mount.device {
                    continue;
                }
                let path = folder.path.join(entry.file_name());
                if metadata.is_dir() {
                    let is_movable = folder.is_movable || is_open || metadata.uid() != 0;
                    folders.push(Folder { reached: entry.path(), path, is_movable });
                } else if metadata.is_file() && !mapped.contains(&(mount.device, metadata.ino())) {
                    left.push(Left {
                        path: path.to_string_lossy().into_owned(),
                        device: mount.device,
                        inode: metadata.ino(),
                        page_size: mount.page_size,
                        pages: metadata.blocks() * BLOCK / mount.page_size,
                        age_seconds: age(metadata.mtime()),
                        inside: mount.inside,
                        is_movable: folder.is_movable,
                    });
                }
            }
        }
    }
    left.sort_by(|a, b| a.path.cmp(&b.path));
    left
}

fn device(metadata: &Metadata) -> (u32, u32) {
    (major(metadata.dev()), minor(metadata.dev()))
}

fn age(seconds: i64) -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    now.checked_sub(u64::try_from(seconds).ok()?)
}

/// The devices of hugetlbfs with the bytes of their pages: of mounts, of mapped files, and the kernel's own for memfd, SysV
/// and anonymous memory. So no other file system has to be asked what it is: one whose server hangs would not answer.
pub fn devices(mounts: &[MountPoint], host: &Host) -> HashMap<(u32, u32), u64> {
    let of_mounts = mounts.iter().filter(|mount| mount.page_size > 0);
    let of_files = host.groups.iter().filter(|group| group.file.is_hugetlb);
    let own = host.pools.iter().filter(|_| !host.source.is_recording()).filter_map(|pool| {
        let size = MemfdFlags::from_bits_retain(pool.page_size.ilog2() << MFD_HUGE_SHIFT);
        let file = memfd_create(c"roundtable", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | size).ok()?;
        let device = fstat(file).ok()?.st_dev;
        Some(((major(device), minor(device)), pool.page_size))
    });
    let known = of_mounts.map(|mount| (mount.device, mount.page_size));
    known.chain(of_files.map(|group| (group.id.device, group.file.page_size))).chain(own).collect()
}

/// A file of huge pages that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its name in an operator's words.
    pub name: String,
    /// Its device.
    #[serde(default)]
    pub device: (u32, u32),
    /// Its number.
    #[serde(default)]
    pub inode: u64,
    /// Whether it is one of those that were known already.
    pub is_known: bool,
    /// Bytes of its pages.
    pub page_size: u64,
    /// How many it has.
    pub pages: u64,
    /// The processes that have it open, or that map it meanwhile.
    pub pids: Vec<i32>,
}

impl Descriptor {
    /// Where it lies.
    pub fn place(&self) -> Place {
        (self.device, self.inode)
    }
}

/// The files of huge pages that are in use beyond what the census has shown.
#[derive(Clone, Debug, Default)]
pub struct Uses {
    /// They.
    pub open: Vec<Descriptor>,
    /// Whether every process could be asked, and of all that it has open.
    pub is_whole: bool,
}

/// Looks for the files of huge pages that processes have open, and once more for mappings of those that seem to be left:
/// a program may have started since the census.
pub fn uses(host: &Host, mounts: &[MountPoint], mapped: &HashSet<Place>, left: &[Left]) -> Uses {
    let source = host.source;
    if let Some(held) = source.held() {
        return Uses { open: held.open.clone(), is_whole: true };
    }
    let mut search = Search {
        devices: devices(mounts, host),
        known: mapped.iter().copied().chain(left.iter().map(Left::place)).collect(),
        found: HashMap::new(),
        looked: 0,
        is_whole: true,
        deadline: &host.deadline,
    };
    let left: HashMap<Place, &Left> = left.iter().map(|file| (file.place(), file)).collect();
    let mut buffer = Vec::new();
    for pid in source.processes().unwrap_or_default() {
        if host.deadline.is_past() {
            search.is_whole = false;
            break;
        }
        // In this order: who maps a file had it open before.
        search.descriptors(source, pid);
        if !left.is_empty() {
            search.mappings(source, pid, &left, &mut buffer);
        }
    }
    let mut open: Vec<Descriptor> = search.found.into_values().collect();
    open.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.pids.cmp(&b.pids)));
    Uses { open, is_whole: search.is_whole }
}

/// Devices that most processes have open.
const COMMON: [&[u8]; 3] = [b"/dev/null", b"/dev/urandom", b"/dev/tty"];

struct Search<'a> {
    devices: HashMap<(u32, u32), u64>,
    known: HashSet<Place>,
    found: HashMap<Place, Descriptor>,
    looked: usize,
    is_whole: bool,
    deadline: &'a Deadline,
}

impl Search<'_> {
    /// Whether an error tells more than that the process has ended.
    fn is_missed(error: &std::io::Error) -> bool {
        let raw = error.raw_os_error();
        error.kind() != ErrorKind::NotFound && raw != Some(Errno::SRCH.raw_os_error())
    }

    fn descriptors(&mut self, source: &Source, pid: i32) {
        let entries = match std::fs::read_dir(source.path(&format!("proc/{pid}/fd"))) {
            Ok(entries) => entries,
            Err(error) => {
                self.is_whole &= !Self::is_missed(&error);
                return;
            }
        };
        for entry in entries.flatten() {
            self.looked += 1;
            if self.looked > DESCRIPTORS || self.looked.is_multiple_of(STRIDE) && self.deadline.is_past() {
                self.is_whole = false;
                return;
            }
            let Ok(link) = std::fs::read_link(entry.path()) else { continue };
            // Sockets, pipes and the like have no path.
            let name = link.as_os_str().as_encoded_bytes();
            if name.first() != Some(&b'/') || COMMON.contains(&name) || name.starts_with(b"/dev/pts/") {
                continue;
            }
            // What is known of it is enough: a server on the network is not asked.
            let (flags, fields) = (AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS);
            let Ok(status) = statx(CWD, entry.path(), flags, fields) else { continue };
            let device = (status.stx_dev_major, status.stx_dev_minor);
            let Some(&page_size) = self.devices.get(&device) else { continue };
            if FileType::from_raw_mode(status.stx_mode.into()).is_file() {
                let place = (device, status.stx_ino);
                self.add(place, name, page_size, status.stx_blocks * BLOCK / page_size, pid);
            }
        }
    }

    fn mappings(&mut self, source: &Source, pid: i32, left: &HashMap<Place, &Left>, buffer: &mut Vec<u8>) {
        let read = std::fs::File::open(source.path(&format!("proc/{pid}/maps")))
            .and_then(|maps| source.read_into(maps, buffer));
        if let Err(error) = read {
            self.is_whole &= !Self::is_missed(&error);
            return;
        }
        for line in maps::lines(buffer) {
            let place = (line.device, line.inode);
            if let Some(file) = left.get(&place) {
                self.add(place, line.name, file.page_size, file.pages, pid);
            }
        }
    }

    fn add(&mut self, place: Place, name: &[u8], page_size: u64, pages: u64, pid: i32) {
        let open = self.found.entry(place).or_insert_with(|| Descriptor {
            name: files::describe(name, place.1),
            device: place.0,
            inode: place.1,
            is_known: self.known.contains(&place),
            page_size,
            pages,
            pids: Vec::new(),
        });
        if open.pids.last() != Some(&pid) {
            open.pids.push(pid);
        }
    }
}

/// A SysV segment of this IPC namespace that nobody has attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its `shmid`.
    pub id: u64,
    /// Its name in an operator's words.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Those that are in memory.
    pub resident: u64,
    /// Seconds since it was attached, detached or changed last.
    pub age_seconds: Option<u64>,
}

/// Those segments that nobody has attached and no process maps.
pub fn segments(source: &Source, mapped: &HashSet<FileId>) -> Vec<Segment> {
    if let Some(held) = source.held() {
        return held.segments.clone();
    }
    let text = source.text("proc/sysvipc/shm").unwrap_or_default();
    let segments = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<i64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        // key shmid perms size cpid lpid nattch uid gid cuid cgid atime dtime ctime rss swap
        let [key, id, _, size, _, _, attached, _, _, _, _, last, detached, changed, resident, ..] =
            fields[..]
        else {
            return None;
        };
        let id = u64::try_from(id).ok()?;
        let is_mapped = mapped.iter().any(|file| file.namespace != 0 && file.inode == id);
        (attached == 0 && !is_mapped).then(|| Segment {
            id,
            name: format!("SysV segment {id} (key {:#010x})", key as u32),
            size: u64::try_from(size).unwrap_or(0),
            resident: u64::try_from(resident).unwrap_or(0),
            age_seconds: age(last.max(detached).max(changed)),
        })
    });
    segments.collect()
}

/// Pages of a mapped file: the kernel tells those of any mapping's file, named or not, to root.
pub fn file_pages(source: &Source, group: &Group) -> Option<u64> {
    if let Some(held) = source.held() {
        return held.files.iter().find(|(id, _)| *id == group.id).map(|(_, pages)| *pages);
    }
    for shape in &group.shapes {
        let pids = shape.witness.into_iter().chain(group.pids.iter().copied().take(4));
        for pid in pids {
            let path = source.path(&format!("proc/{pid}/map_files/{:x}-{:x}", shape.start, shape.end));
            if let Ok(metadata) = std::fs::metadata(path)
                && metadata.ino() == group.id.inode
            {
                return Some(metadata.blocks() * BLOCK / group.file.page_size);
            }
        }
    }
    None
}

/// Pages that one mapping at least has: a lower bound of those of the file.
pub fn most_pages(group: &Group) -> u64 {
    group.shapes.iter().map(|shape| shape.most_pages).max().unwrap_or(0)
}

/// Private copies in all processes. Those that a process has from its parent are the parent's as well, until
/// one of them writes: of mappings that are alike the largest is counted.
pub fn private_pages(group: &Group) -> u64 {
    group.shapes.iter().map(|shape| shape.most_private).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_that_nobody_has_attached_are_told() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("proc/sysvipc")).unwrap();
        let line = |id: u32, attached: u32| {
            format!("  {id}  {id}  600  209715200  10 11 {attached} 0 0 0 0 100 200 50 104857600 0\n")
        };
        let text = format!("key shmid ...\n{}{}x\n", line(7, 0), line(8, 2));
        std::fs::write(folder.path().join("proc/sysvipc/shm"), text).unwrap();
        let found = segments(&Source::recorded(folder.path()), &HashSet::new());
        let [segment] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((segment.id, segment.size, segment.resident), (7, 200 << 20, 100 << 20));
        assert_eq!(segment.name, "SysV segment 7 (key 0x00000007)");
    }
}
