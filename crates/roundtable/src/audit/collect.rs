//! Reads all processes: who they are, what their page tables weigh, and which files of huge or shared pages they map.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use procfs::ProcError;
use procfs::process::Process as Handle;

use super::deadline::Deadline;
use super::files::{self, Asked, Devices, FileId, Kind};
use super::maps::{self, Access, Line};
use super::recording;
use super::same_memory;
use super::source::Source;
use super::unit;

/// Shared mappings on base pages below this are no database's memory.
const SMALLEST: u64 = 2 << 20;

/// A process.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// The process that it is a child of.
    pub parent: i32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// What systemd or a container engine calls the group of processes that it is in; empty where there is none.
    pub unit: String,
    /// The control groups whose limits it has, as /proc tells them.
    pub groups: String,
    /// Bytes of its address space in use.
    pub vm_size: u64,
    /// Bytes of its page tables as the kernel counts them: a shared table counts in each process.
    pub vm_pte: u64,
    /// Bytes of its memory that are in place.
    pub rss: u64,
    /// What of it is anonymous.
    pub rss_anonymous: u64,
    /// Bytes of huge pages that its own faults have mapped.
    pub hugetlb: u64,
    /// Page faults since its start, if they were asked for.
    pub faults: u64,
    /// Whether its mappings may be read.
    pub readable: bool,
    /// Its mappings of hugetlbfs and of shared memory.
    pub mappings: Vec<Mapping>,
}

/// A mapping of a file of huge or shared pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
    /// Place in the file of the first byte.
    pub offset: u64,
    /// What may be done there.
    pub access: Access,
    /// The file.
    pub file: FileId,
}

impl Mapping {
    /// Whether a line of maps is of this mapping, unchanged.
    pub fn is_at(&self, line: &Line) -> bool {
        (self.start, self.end, self.offset, self.access) == (line.start, line.end, line.offset, line.access)
            && (self.file.device, self.file.inode) == (line.device, line.inode)
    }
}

/// A file that somebody maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its name as the kernel gives it.
    pub name: Vec<u8>,
    /// Bytes of a page.
    pub page_size: u64,
    /// Whether it lies on hugetlbfs.
    pub is_hugetlb: bool,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Census {
    /// All processes with memory of their own.
    pub processes: Vec<Process>,
    /// All files that they map.
    pub files: HashMap<FileId, File>,
    /// Processes that ended while they were read.
    pub vanished: u64,
    /// Processes that there was no time to look at.
    pub skipped: u64,
}

/// What the first look at a process gives.
enum Look {
    Seen(Process),
    /// A kernel thread or a zombie.
    Empty,
    Gone,
    /// There was no time for all of it.
    Late,
}

/// Reads all processes.
pub fn census(
    source: &Source,
    devices: &Devices,
    with_faults: bool,
    deadline: &Deadline,
) -> std::io::Result<Census> {
    let pids = source.processes()?;
    let files = Files::default();
    let all = Looks { source, devices, files: &files, deadline, with_faults };
    let looks = in_parallel(&pids, deadline, |&pid, buffer| all.look(pid, buffer));
    let mut census = Census { files: files.into_inner().expect("no holder panics"), ..Census::default() };
    for look in looks {
        let Some(look) = look else {
            census.skipped += 1;
            continue;
        };
        match look {
            Look::Seen(process) => census.processes.push(process),
            Look::Gone => census.vanished += 1,
            Look::Late => census.skipped += 1,
            Look::Empty => {}
        }
    }
    if !source.is_recording() {
        same_memory::leave_out(&mut census.processes, same_memory::have_one);
    }
    Ok(census)
}

/// The files that were met so far, in whatever process: each name is kept once.
pub type Files = Mutex<HashMap<FileId, File>>;

/// What the looks at all processes have in common.
struct Looks<'a> {
    source: &'a Source,
    devices: &'a Devices,
    files: &'a Files,
    deadline: &'a Deadline,
    with_faults: bool,
}

impl Looks<'_> {
    fn look(&self, pid: i32, buffer: &mut Vec<u8>) -> Look {
        let source = self.source;
        // With hidepid=1 another user's process is listed, and not even its status may be read.
        let hidden = || Look::Seen(Process { pid, ..Process::default() });
        let handle = match source.process(pid) {
            Ok(handle) => handle,
            Err(ProcError::PermissionDenied(_)) => return hidden(),
            Err(_) => return Look::Gone,
        };
        let mut process = match status(source, &handle, buffer) {
            Ok(Some(process)) => process,
            Ok(None) => return Look::Empty,
            Err(Missing::Denied) => return hidden(),
            Err(_) => return Look::Gone,
        };
        if self.with_faults {
            process.faults = faults(source, &handle, buffer).unwrap_or(0);
        }
        (process.unit, process.groups) = unit::of(source, &handle, buffer);
        match read(source, &handle, "maps", buffer) {
            Ok(()) => {
                process.readable = true;
                let mut asked = self.devices.of(source, &handle, self.deadline);
                let mut met = HashSet::new();
                for line in maps::lines(buffer) {
                    match interesting(&mut asked, source, &handle, &line, buffer) {
                        Ok(Some(found)) => {
                            found.keep(&line, &mut met, self.files);
                            process.mappings.push(found.mapping);
                        }
                        Ok(None) => {}
                        Err(Missing::Denied) => process.readable = false,
                        Err(Missing::Late) => return Look::Late,
                        Err(Missing::Gone) => return Look::Gone,
                    }
                }
            }
            Err(Missing::Denied) => {}
            Err(_) => return Look::Gone,
        }
        Look::Seen(process)
    }
}

/// A mapping of a file of huge or shared pages, and what is known of the file.
pub struct Found {
    /// The mapping.
    pub mapping: Mapping,
    /// Bytes of a page of the file.
    pub page_size: u64,
    /// Whether it lies on hugetlbfs.
    pub is_hugetlb: bool,
}

impl Found {
    /// Keeps the file, whose name stands in this line, if it was not met in this process or another.
    pub fn keep(&self, line: &Line, met: &mut HashSet<FileId>, files: &Files) {
        let file = self.mapping.file;
        if met.insert(file) {
            files.lock().expect("no holder panics").entry(file).or_insert_with(|| File {
                name: line.name.to_vec(),
                page_size: self.page_size,
                is_hugetlb: self.is_hugetlb,
            });
        }
    }
}

/// The mapping as one to look into, when its file is of huge or shared pages; `maps` are all lines of the process.
pub fn interesting(
    asked: &mut Asked,
    source: &Source,
    handle: &Handle,
    line: &Line,
    maps: &[u8],
) -> Result<Option<Found>, Missing> {
    let kind = asked.kind(line, maps)?;
    let (page_size, is_hugetlb) = match kind {
        Kind::Hugetlb(page_size) => (page_size, true),
        Kind::SharedMemory if line.access.shared && line.end - line.start >= SMALLEST => {
            (source.geometry.page(), false)
        }
        _ => return Ok(None),
    };
    let mut file = FileId { device: line.device, inode: line.inode, namespace: 0 };
    if line.name.starts_with(b"/SYSV") {
        // Not readable means not known: then segments of two namespaces with one number are taken for one, but for no
        // memfd, which may have the number too.
        file.namespace = files::namespace(source, handle.pid, "ipc").unwrap_or(u64::MAX);
    }
    let mapping =
        Mapping { start: line.start, end: line.end, offset: line.offset, access: line.access, file };
    Ok(Some(Found { mapping, page_size, is_hugetlb }))
}

/// Why a process's file cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It is another user's.
    Denied,
    /// The process has ended.
    Gone,
    /// There was no time for all of it.
    Late,
}

/// Opens one file of a process.
pub fn open(source: &Source, handle: &Handle, name: &str) -> Result<std::fs::File, Missing> {
    handle.open_relative(name).map_err(|error| match error {
        ProcError::PermissionDenied(_) => Missing::Denied,
        _ if source.is_recording() && handle.open_relative(recording::DENIED).is_ok() => Missing::Denied,
        _ => Missing::Gone,
    })
}

/// Reads one file of a process.
pub fn read(source: &Source, handle: &Handle, name: &str, buffer: &mut Vec<u8>) -> Result<(), Missing> {
    let file = open(source, handle, name)?;
    source.read_into(file, buffer).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => Missing::Denied,
        _ => Missing::Gone,
    })
}

/// Who a process is; `None` when it has no memory of its own. Read from bytes: its name need not be UTF-8.
pub fn status(source: &Source, handle: &Handle, buffer: &mut Vec<u8>) -> Result<Option<Process>, Missing> {
    read(source, handle, "status", buffer)?;
    let mut process = Process { pid: handle.pid, ..Process::default() };
    let mut has_memory = false;
    for line in buffer.split(|&byte| byte == b'\n') {
        let kilobytes = |value: &[u8]| {
            maps::number(value.trim_ascii().strip_suffix(b" kB").unwrap_or(value)).unwrap_or(0) << 10
        };
        if let Some(value) = line.strip_prefix(b"Name:") {
            process.name = String::from_utf8_lossy(value).trim().to_string();
        } else if let Some(value) = line.strip_prefix(b"PPid:") {
            process.parent = maps::number(value).and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
        } else if let Some(value) = line.strip_prefix(b"VmSize:") {
            process.vm_size = kilobytes(value);
        } else if let Some(value) = line.strip_prefix(b"VmPTE:") {
            process.vm_pte = kilobytes(value);
            has_memory = true;
        } else if let Some(value) = line.strip_prefix(b"VmRSS:") {
            process.rss = kilobytes(value);
        } else if let Some(value) = line.strip_prefix(b"RssAnon:") {
            process.rss_anonymous = kilobytes(value);
        } else if let Some(value) = line.strip_prefix(b"HugetlbPages:") {
            process.hugetlb = kilobytes(value);
        }
    }
    Ok(has_memory.then_some(process))
}

/// Minor and major faults of a process since its start.
pub fn faults(source: &Source, handle: &Handle, buffer: &mut Vec<u8>) -> Option<u64> {
    read(source, handle, "stat", buffer).ok()?;
    // The name in parentheses may have anything in it, parentheses and blanks too.
    let behind = buffer.iter().rposition(|&byte| byte == b')')? + 2;
    let fields: Vec<&[u8]> = buffer.get(behind..)?.split(|&byte| byte == b' ').collect();
    // Fields 10 and 12 of proc(5); the first one here is field 3.
    Some(maps::number(fields.get(7)?)? + maps::number(fields.get(9)?)?)
}

/// Calls `work` for all items on as many threads as there are CPUs, until the deadline: what was not begun by then is
/// `None`. Each thread has a buffer of its own, for files to be read into.
pub fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    deadline: &Deadline,
    work: impl Fn(&T, &mut Vec<u8>) -> R + Sync,
) -> Vec<Option<R>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len().max(1));
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buffer = Vec::new();
                let mut mine = Vec::new();
                while !deadline.is_past() {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    let Some(item) = items.get(index) else { break };
                    mine.push((index, work(item, &mut buffer)));
                }
                done.lock().expect("no holder panics").append(&mut mine);
            });
        }
    });
    let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
    for (index, result) in done.into_inner().expect("no holder panics") {
        results[index] = Some(result);
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once_and_results_keep_their_order() {
        let items: Vec<u32> = (0..1000).collect();
        let results = in_parallel(&items, &Deadline::never(), |&item, _| item * 2);
        assert!(results.into_iter().zip(&items).all(|(result, item)| result == Some(item * 2)));
        assert!(in_parallel(&Vec::<u32>::new(), &Deadline::never(), |&item, _| item).is_empty());
    }

    #[test]
    fn after_the_deadline_nothing_is_begun() {
        let past = Deadline::when_asked(0);
        assert!(in_parallel(&[1, 2, 3], &past, |&item, _| item).iter().all(Option::is_none));
        let items: Vec<u32> = (0..100).collect();
        let done = in_parallel(&items, &Deadline::when_asked(7), |&item, _| item);
        assert_eq!(done.iter().flatten().count(), 7);
    }
}
