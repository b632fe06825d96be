//! The file that is measured on, and a process's mapping of it.

use std::time::{Duration, Instant};

use guest_link::record::Record;
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB, HUGE};
use roundtable_programs::mem::{FIXED, Map, NORESERVE, RW, SHARED, mmap, munmap};
use roundtable_programs::shared::Shared;

/// The pages of the first slot, all of them present: it is what processes share.
pub const PAGES: usize = 512;
/// What is punched: 64 MiB from here on.
pub const PUNCHED: usize = 0;
/// What is cut off: 64 MiB from here to the slot's end.
pub const CUT: usize = PAGES - BATCH;
/// Pages in 64 MiB.
pub const BATCH: usize = 32;
/// The file's length: the shared slot, and one without pages for whoever wants to fault fresh ones in.
pub const LENGTH: u64 = 2 * GIB as u64;

pub struct Stage {
    pub file: Fd,
    /// Address space for three slots; the first has the mapping that children inherit.
    pub home: Map,
    /// How many records were printed, by all processes.
    records: Shared,
}

impl Stage {
    /// With an empty file.
    pub fn new() -> Result<Stage, String> {
        let file = huge::file();
        file.truncate(LENGTH).map_err(|error| format!("ftruncate: {}", error.desc()))?;
        let stage = Stage { file, home: Map::reserve(3 * GIB, GIB), records: Shared::new() };
        stage.map(0, 0, GIB);
        Ok(stage)
    }

    pub fn address(&self, slot: usize, index: usize) -> usize {
        self.home.address + slot * GIB + index * HUGE
    }

    /// Maps a part of the file into a slot.
    pub fn map(&self, slot: usize, offset: usize, length: usize) {
        let flags = SHARED | FIXED | NORESERVE;
        mmap(self.address(slot, 0), length, RW, flags, self.file.raw(), offset as i64).expect("mmap");
    }

    pub fn unmap(&self, slot: usize) {
        munmap(self.address(slot, 0), GIB).expect("munmap");
    }

    /// Makes pages present, without touching them.
    pub fn fill(&self, first: usize, pages: usize) {
        self.file.fallocate(0, (first * HUGE) as u64, (pages * HUGE) as u64).expect("fallocate");
    }

    pub fn punch(&self, first: usize, pages: usize) {
        self.file.punch((first * HUGE) as u64, (pages * HUGE) as u64).expect("punch");
    }

    /// Prints a record. The line goes out in one write, so that those of several processes do not mix.
    pub fn say(&self, record: &Record) {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        out.write_all(record.line().as_bytes()).and_then(|()| out.flush()).expect("standard output");
        self.records.add(0);
    }

    pub fn note(&self, text: &str) {
        self.say(&Record::Note { text: text.to_string() });
    }

    /// The last record.
    pub fn end(&self) {
        self.say(&Record::End { records: self.records.get(0) });
    }
}

/// Loads one word of each page.
#[inline(never)]
pub fn touch(address: usize, pages: usize) {
    for page in 0..pages {
        touch_one(address + page * HUGE);
    }
}

#[inline]
pub fn touch_one(address: usize) {
    // SAFETY: callers have mapped the page.
    unsafe { (address as *const u64).read_volatile() };
}

#[inline]
pub fn store_one(address: usize, word: u64) {
    // SAFETY: callers have mapped the page, and nothing else lives there.
    unsafe { (address as *mut u64).write_volatile(word) };
}

/// How long something took.
pub fn time(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

/// The median and the least, in nanoseconds.
pub fn summary(mut times: Vec<Duration>) -> (u64, u64) {
    times.sort_unstable();
    (times[times.len() / 2].as_nanos() as u64, times[0].as_nanos() as u64)
}
