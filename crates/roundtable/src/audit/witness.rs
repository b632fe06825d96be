//! Asks the kernel in how many page tables a page has an entry: /proc/kpagecount, for root.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::pagemap::Pagemap;
use super::recording::Ranges;
use super::slots::Witness;
use super::source::Source;

/// The running kernel, or a recorded one.
pub struct Kernel<'a> {
    source: &'a Source,
    counts: Option<File>,
}

impl<'a> Kernel<'a> {
    /// Opens what root may read.
    pub fn new(source: &'a Source) -> Kernel<'a> {
        Kernel { source, counts: File::open(source.path("proc/kpagecount")).ok() }
    }

    /// Whether there is anybody to ask.
    pub fn can_tell(&self) -> bool {
        self.counts.is_some()
    }
}

impl Witness for Kernel<'_> {
    fn mapcount(&self, pid: i32, start: u64, end: u64) -> Option<(u64, u64)> {
        let counts = self.counts.as_ref()?;
        let handle = self.source.process(pid).ok()?;
        if self.source.is_recording() {
            return Ranges::open(self.source, &handle).ok()?.mapcount(start, end);
        }
        let pagemap = Pagemap::open(self.source, &handle).ok()?;
        let huge = self.source.geometry.huge();
        let (address, frame) =
            (start..end).step_by(huge as usize).find_map(|at| Some((at, pagemap.frame(at)?)))?;
        let mut count = [0; 8];
        counts.read_exact_at(&mut count, frame * 8).ok()?;
        self.source.count(1, 8);
        Some((address, u64::from_ne_bytes(count)))
    }
}
