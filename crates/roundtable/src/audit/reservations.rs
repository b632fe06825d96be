//! What of a pool is promised to the mappings of its files.

use std::collections::{HashMap, HashSet};
use std::io::BufReader;

use super::collect;
use super::deadline::Deadline;
use super::group::{Group, Shape};
use super::maps::for_each_in_smaps;
use super::source::Source;

/// So many mappings are looked at before the deadline is asked for again.
const STRIDE: usize = 128;

/// A mapping's first address and its file's number.
type Place = (u64, u64);

/// Which mappings reserve pages. A process is asked once for all of its mappings: anybody may have very many, each of a file
/// of its own, without a right and without a page.
pub struct Reservations<'a> {
    source: &'a Source,
    deadline: &'a Deadline,
    /// Of each process that was asked those that were mapped with MAP_NORESERVE.
    without: HashMap<i32, HashSet<Place>>,
}

impl<'a> Reservations<'a> {
    /// Nobody was asked yet.
    pub fn new(source: &'a Source, deadline: &'a Deadline) -> Reservations<'a> {
        Reservations { source, deadline, without: HashMap::new() }
    }

    /// Pages that are promised to a file's mappings at the most: what is mapped and not there yet, unless it was
    /// mapped with MAP_NORESERVE.
    pub fn promises(&mut self, group: &Group, shared: u64, private: u64) -> u64 {
        let page = group.file.page_size;
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut own = 0;
        for shape in &group.shapes {
            if !self.deadline.is_past() && !self.reserves(group, shape) {
                continue;
            }
            if shape.access.shared {
                ranges.push((shape.offset, shape.offset + (shape.end - shape.start)));
            } else {
                own = own.max((shape.end - shape.start) / page);
            }
        }
        ranges.sort_unstable();
        let (mut pages, mut at) = (0, 0);
        for (start, end) in ranges {
            pages += end.saturating_sub(start.max(at)) / page;
            at = at.max(end);
        }
        pages.saturating_sub(shared) + own.saturating_sub(private)
    }

    fn reserves(&mut self, group: &Group, shape: &Shape) -> bool {
        if shape.has_flags {
            return !shape.all_flags.has(b"nr");
        }
        // Nobody needed its flags so far.
        let Some(pid) = shape.witness.or_else(|| group.pids.first().copied()) else { return true };
        let (source, deadline) = (self.source, self.deadline);
        let without = self.without.entry(pid).or_insert_with(|| without(source, pid, deadline));
        !without.contains(&(shape.start, group.id.inode))
    }
}

/// The mappings of a process that reserve nothing, as far as it may be asked and there is time.
fn without(source: &Source, pid: i32, deadline: &Deadline) -> HashSet<Place> {
    let mut found = HashSet::new();
    let Ok(handle) = source.process(pid) else { return found };
    let Ok(smaps) = collect::open(source, &handle, "smaps") else { return found };
    let mut looked = 0;
    let _ = for_each_in_smaps(BufReader::new(source.counted(smaps)), |line, extra| {
        if line.has_file() && extra.flags.is_some_and(|flags| flags.has(b"nr")) {
            found.insert((line.start, line.inode));
        }
        looked += 1;
        looked % STRIDE != 0 || !deadline.is_past()
    });
    found
}
