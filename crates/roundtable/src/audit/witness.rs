//! Asks the kernel in how many page tables a page has an entry: /proc/kpagecount, for root.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::collect;
use super::deadline::Deadline;
use super::files::FileId;
use super::maps;
use super::pagemap::Pagemap;
use super::recording::Ranges;
use super::slots::Witness;
use super::source::Source;

/// The running kernel, or a recorded one.
pub struct Kernel<'a> {
    source: &'a Source,
    counts: Option<File>,
    /// After this nothing is asked any more.
    deadline: Deadline,
    /// The process asked last: a file's slots are asked about one after the other.
    last: RefCell<Option<(i32, FileId, Asked<'a>)>>,
}

/// A process that is asked about a file.
struct Asked<'a> {
    /// Of the memory that the process had when it was opened: once that is gone, it has no pages any more.
    pagemap: Pagemap<'a>,
    /// The mappings of the file, by their first address and the one behind the last.
    mappings: Vec<(u64, u64)>,
}

impl<'a> Kernel<'a> {
    /// Opens what root may read.
    pub fn new(source: &'a Source, deadline: Deadline) -> Kernel<'a> {
        let counts = File::open(source.path("proc/kpagecount")).ok();
        Kernel { source, counts, deadline, last: RefCell::new(None) }
    }

    /// Whether there is anybody to ask.
    pub fn can_tell(&self) -> bool {
        self.counts.is_some()
    }

    /// Opens a process. Its mappings are read behind its pagemap, so that they are of that memory or of a
    /// later one: then no page is found, and a page of something else is never taken for the file's.
    fn open(&self, pid: i32, file: FileId) -> Option<Asked<'a>> {
        let handle = self.source.process(pid).ok()?;
        let pagemap = Pagemap::open(self.source, &handle).ok()?;
        let mut buffer = Vec::new();
        collect::read(self.source, &handle, "maps", &mut buffer).ok()?;
        let mappings = maps::lines(&buffer)
            .filter(|line| line.device == file.device && line.inode == file.inode)
            .map(|line| (line.start, line.end));
        Some(Asked { pagemap, mappings: mappings.collect() })
    }
}

impl Witness for Kernel<'_> {
    fn mapcount(&self, pid: i32, file: FileId, start: u64, end: u64) -> Option<(u64, u64)> {
        let counts = self.counts.as_ref()?;
        if self.deadline.is_past() {
            return None;
        }
        if self.source.is_recording() {
            let handle = self.source.process(pid).ok()?;
            return Ranges::open(self.source, &handle).ok()?.mapcount(start, end);
        }
        let mut last = self.last.borrow_mut();
        if last.as_ref().is_none_or(|(of, about, _)| (*of, *about) != (pid, file)) {
            *last = Some((pid, file, self.open(pid, file)?));
        }
        let (_, _, asked) = last.as_ref()?;
        if !asked.mappings.iter().any(|mapping| mapping.0 <= start && end <= mapping.1) {
            return None;
        }
        let huge = self.source.geometry.huge();
        let (address, frame) =
            (start..end).step_by(huge as usize).find_map(|at| Some((at, asked.pagemap.frame(at)?)))?;
        let mut count = [0; 8];
        counts.read_exact_at(&mut count, frame * 8).ok()?;
        self.source.count(1, 8);
        Some((address, u64::from_ne_bytes(count)))
    }
}
