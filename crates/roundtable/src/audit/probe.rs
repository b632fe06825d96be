//! Looks into one process: which of its pages are there, which tables they need, and with which flags it maps files.

use std::collections::HashSet;
use std::io::BufReader;

use procfs::process::Process as Handle;

use super::collect::{self, Census, Files, Mapping, Missing};
use super::deadline::Deadline;
use super::files::{Devices, FileId};
use super::geometry::Tables;
use super::maps::{self, Access, Flags, Line, for_each_in_smaps};
use super::pagemap::{Pagemap, Range};
use super::source::Source;
use super::tables::Counter;

/// What the look has shown.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The process.
    pub pid: i32,
    /// All its page tables, by its pages; a shared one counts as its own.
    pub tables: Tables,
    /// Bytes of its page tables as the kernel counts them, at that moment.
    pub vm_pte: u64,
    /// Whether it has mapped all its huge pages by faults of its own.
    pub filled_itself: bool,
    /// Its mappings of hugetlbfs and of shared memory.
    pub mappings: Vec<Probed>,
}

/// One mapping.
#[derive(Clone, Debug)]
pub struct Probed {
    /// Where and what.
    pub mapping: Mapping,
    /// Its VmFlags; `None` where no slot could be shared anyway.
    pub flags: Option<Flags>,
    /// For each slot that the mapping touches, from the lowest address: whether it has a page there.
    pub populated: Vec<bool>,
    /// Pages that are there, of the file's size.
    pub pages: u64,
    /// Those of them that are copies of the process's own, and not the file's.
    pub private_pages: u64,
    /// Tables that nothing but this mapping needs.
    pub exclusive: Tables,
}

/// A mapping with what the walk needs to know.
struct Watched {
    start: u64,
    end: u64,
    /// The level of the tables that hold its entries.
    leaf: usize,
    /// Its place among those that are watched.
    watched: Option<usize>,
}

/// What is known of a mapping's file.
struct FileKind {
    page_size: u64,
    is_hugetlb: bool,
}

/// Looks into a process; the files that it maps are kept among `files`.
pub fn probe(
    source: &Source,
    devices: &Devices,
    files: &Files,
    pid: i32,
    deadline: &Deadline,
    buffer: &mut Vec<u8>,
) -> Result<Probe, Missing> {
    let handle = source.process(pid).map_err(|_| Missing::Gone)?;
    let mut before = image(source, &handle, buffer);
    for _ in 0..PROGRAMS {
        let found = look(source, devices, files, &handle, deadline, buffer)?;
        let after = image(source, &handle, buffer);
        if before == after {
            return Ok(found);
        }
        // It has started another program meanwhile: what was read is of two.
        before = after;
    }
    Err(Missing::Gone)
}

/// A mapping of any kind, with the tables that it alone needs.
#[derive(Clone, Debug)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
    /// Its file, or a name in brackets, or nothing.
    pub name: String,
    /// What may be done there.
    pub access: Access,
    /// Bytes of it that are in place.
    pub populated: u64,
    /// Tables that nothing but this mapping needs.
    pub exclusive: Tables,
}

/// All mappings of a process, with what each costs.
pub fn areas(source: &Source, census: &Census, pid: i32, deadline: &Deadline) -> Result<Vec<Area>, Missing> {
    let handle = source.process(pid).map_err(|_| Missing::Gone)?;
    let geometry = source.geometry;
    let mut buffer = Vec::new();
    collect::read(source, &handle, "maps", &mut buffer)?;
    let (mut areas, mut leaves) = (Vec::new(), Vec::new());
    for line in maps::lines(&buffer).filter(|line| line.start >> 63 == 0) {
        let page_size = page_size_of(census, &line).unwrap_or(geometry.page());
        leaves.push(geometry.leaf_level(page_size));
        areas.push(Area {
            start: line.start,
            end: line.end,
            name: String::from_utf8_lossy(line.name).into_owned(),
            access: line.access,
            populated: 0,
            exclusive: Tables::default(),
        });
    }
    let mut pagemap = Pagemap::open(source, &handle)?;
    let mut counter = Counter::new(geometry, areas.len());
    let ranges: Vec<(u64, u64)> = areas.iter().map(|area| (area.start, area.end)).collect();
    let mut at = 0;
    let walked = pagemap.populated(&ranges, deadline, |range| {
        while at < ranges.len() && ranges[at].1 <= range.start {
            at += 1;
        }
        for (index, area) in ranges.iter().enumerate().skip(at).take_while(|(_, area)| area.0 < range.end) {
            let (start, end) = (range.start.max(area.0), range.end.min(area.1));
            let leaf = if leaves[index] == 0 && range.huge && range.file { 1 } else { leaves[index] };
            counter.add(start, end, leaf, Some(index));
            areas[index].populated += end.saturating_sub(start);
        }
    });
    walked?;
    let (_, exclusive) = counter.finish();
    for (area, exclusive) in areas.iter_mut().zip(exclusive) {
        area.exclusive = exclusive;
    }
    Ok(areas)
}

/// Bytes of a page of a mapping's file, of one that the census knows.
fn page_size_of(census: &Census, line: &Line) -> Option<u64> {
    let is_it = |id: &FileId| (id.device, id.inode) == (line.device, line.inode);
    let file = if line.name.starts_with(b"/SYSV") {
        census.files.iter().find(|(id, _)| is_it(id)).map(|(_, file)| file)
    } else {
        census.files.get(&FileId { device: line.device, inode: line.inode, namespace: 0 })
    };
    file.map(|file| file.page_size)
}

/// A process that starts another program each time it is looked into has none to be counted.
const PROGRAMS: usize = 4;

/// What tells a process's program from the one that it runs next: its auxiliary vector, with the random places in it.
/// Empty where it cannot be read: of a process that is gone, or a recorded one.
fn image(source: &Source, handle: &Handle, buffer: &mut Vec<u8>) -> Vec<u8> {
    collect::read(source, handle, "auxv", buffer).map_or_else(|_| Vec::new(), |()| buffer.clone())
}

fn look(
    source: &Source,
    devices: &Devices,
    kept: &Files,
    handle: &Handle,
    deadline: &Deadline,
    buffer: &mut Vec<u8>,
) -> Result<Probe, Missing> {
    let pid = handle.pid;
    let geometry = source.geometry;
    collect::read(source, handle, "maps", buffer)?;
    let (mut areas, mut mappings, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
    let mut asked = devices.of(source, handle, deadline);
    let mut met = HashSet::new();
    for line in maps::lines(buffer) {
        // The vsyscall page lies in the kernel's half.
        if line.start >> 63 != 0 {
            continue;
        }
        let found = collect::interesting(&mut asked, source, handle, &line, buffer)?;
        let page_size = found.as_ref().map_or(geometry.page(), |found| found.page_size);
        let watched = found.is_some().then_some(mappings.len());
        areas.push(Watched {
            start: line.start,
            end: line.end,
            leaf: geometry.leaf_level(page_size),
            watched,
        });
        if let Some(found) = found {
            found.keep(&line, &mut met, kept);
            kinds.push(FileKind { page_size: found.page_size, is_hugetlb: found.is_hugetlb });
            let mapping = found.mapping;
            let slots = (mapping.end - 1) / geometry.slot() - mapping.start / geometry.slot() + 1;
            mappings.push(Probed {
                mapping,
                flags: None,
                populated: vec![false; slots as usize],
                pages: 0,
                private_pages: 0,
                exclusive: Tables::default(),
            });
        }
    }
    let gone = add_flags(source, handle, &mut mappings, &kinds)?;
    let mut pagemap = Pagemap::open(source, handle)?;
    let mut counter = Counter::new(geometry, mappings.len());
    let ranges: Vec<(u64, u64)> = areas.iter().map(|area| (area.start, area.end)).collect();
    let mut at = 0;
    let walked = pagemap.populated(&ranges, deadline, |range| {
        // Ranges and areas are both in order; a range may go over the border of two areas.
        while at < areas.len() && areas[at].end <= range.start {
            at += 1;
        }
        for area in areas[at..].iter().take_while(|area| area.start < range.end) {
            let part = Range { start: range.start.max(area.start), end: range.end.min(area.end), ..range };
            // A transparent huge page of a file needs no table of base pages; an anonymous one keeps one in reserve.
            let leaf = if area.leaf == 0 && range.huge && range.file { 1 } else { area.leaf };
            counter.add(part.start, part.end, leaf, area.watched);
            if let Some(index) = area.watched {
                let probed = &mut mappings[index];
                let pages = (part.end - part.start) / kinds[index].page_size.max(1);
                probed.pages += pages;
                probed.private_pages += if range.file { 0 } else { pages };
                let first = probed.mapping.start / geometry.slot();
                for slot in part.start / geometry.slot()..=(part.end - 1) / geometry.slot() {
                    probed.populated[(slot - first) as usize] = true;
                }
            }
        }
    });
    walked?;
    let (tables, exclusive) = counter.finish();
    let mut huge_bytes = 0;
    for ((probed, exclusive), file) in mappings.iter_mut().zip(exclusive).zip(&kinds) {
        probed.exclusive = exclusive;
        huge_bytes += if file.is_hugetlb { probed.pages * file.page_size } else { 0 };
    }
    let status = collect::status(source, handle, buffer)?.ok_or(Missing::Gone)?;
    let filled_itself = huge_bytes > 0 && status.hugetlb >= huge_bytes;
    for index in gone.into_iter().rev() {
        mappings.remove(index);
    }
    Ok(Probe { pid, tables, vm_pte: status.vm_pte, filled_itself, mappings })
}

/// Reads the flags of the mappings that could share a table, and no further: smaps is costly. Gives, in order, those
/// that were unmapped meanwhile.
fn add_flags(
    source: &Source,
    handle: &Handle,
    mappings: &mut [Probed],
    kinds: &[FileKind],
) -> Result<Vec<usize>, Missing> {
    let geometry = source.geometry;
    let mut wanted: Vec<usize> = Vec::new();
    for (index, (probed, file)) in mappings.iter().zip(kinds).enumerate() {
        let mapping = &probed.mapping;
        let first = mapping.start.next_multiple_of(geometry.slot());
        let could_share = file.is_hugetlb
            && file.page_size == geometry.huge()
            && mapping.access.shared
            && first + geometry.slot() <= mapping.end;
        if could_share {
            wanted.push(index);
        }
    }
    if wanted.is_empty() {
        return Ok(wanted);
    }
    let smaps = collect::open(source, handle, "smaps")?;
    let read = for_each_in_smaps(BufReader::with_capacity(1 << 16, source.counted(smaps)), |line, extra| {
        let found = wanted.iter().position(|&index| mappings[index].mapping.is_at(line));
        if let Some(found) = found {
            mappings[wanted.remove(found)].flags = extra.flags;
        }
        !wanted.is_empty()
    });
    read.map_err(|_| Missing::Gone)?;
    Ok(wanted)
}
