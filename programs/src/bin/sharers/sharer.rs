//! One of the many processes: it maps the file, waits, touches every page, and waits for its end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use nix::errno::Errno;
use roundtable_programs::huge::stamp;
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW, SHARED};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{check, cpu_time, faults};

use crate::memory::{Kind, Memory};

/// Index of the counter of processes that have mapped the file.
pub const ATTACHED: usize = 0;
/// Index of the counter of those that have touched all of it.
pub const TOUCHED: usize = 8;
/// Index of the word that tells how far they may go: 1 to touch, 2 to end.
pub const GO: usize = 16;

/// Writes each page's stamp at its start and its end.
pub fn stamp_pages(map: &Map, pages: usize, size: usize) {
    for page in 0..pages {
        map.set_u64(page * size, stamp(1, page));
        map.set_u64((page + 1) * size - 8, !stamp(1, page));
    }
}

/// Reads them all; the first page that is wrong.
#[inline(never)]
fn wrong_page(map: &Map, pages: usize, size: usize, seal: fn(usize) -> u64) -> Option<usize> {
    (0..pages).find(|&page| {
        let (first, last) = (map.get_u64(page * size), map.get_u64(page * size + map.length.min(size) - 8));
        first != seal(page) || last != !seal(page)
    })
}

/// The words of each process, which it writes and the parent reads.
pub struct Crew {
    records: Map,
    count: usize,
    /// Bytes of the file's pages.
    page_size: usize,
}

const RECORD: usize = 64;
const ATTACH_FAULTS: usize = 0;
const TOUCH_FAULTS: usize = 8;
const ATTACH_NANOSECONDS: usize = 16;
const TOUCH_NANOSECONDS: usize = 24;
/// 0 not done, 1 all right, else the wrong page plus 2.
const VERDICT: usize = 32;

/// What the processes measured; each list sorted.
pub struct Measurements {
    /// While mapping and while touching, both together.
    pub faults: Vec<u64>,
    pub touch_faults: Vec<u64>,
    pub attach_nanoseconds: Vec<u64>,
    /// Of CPU time: all touch at once, and wait for the CPU most of the time.
    pub touch_nanoseconds: Vec<u64>,
}

impl Crew {
    pub fn new(count: usize, page_size: usize) -> Crew {
        let length = (count * RECORD).next_multiple_of(4096);
        Crew { records: Map::new(length, RW, SHARED | ANON, -1, 0).expect("records"), count, page_size }
    }

    fn word(&self, index: usize, field: usize) -> &AtomicU64 {
        let address = self.records.address + index * RECORD + field;
        // SAFETY: inside the mapping, aligned, and the mapping lives as long as `self`.
        unsafe { AtomicU64::from_ptr(address as *mut u64) }
    }

    /// Forks a process. In it this does not return.
    pub fn start(
        &self,
        index: usize,
        memory: &Memory,
        pages: usize,
        kind: Kind,
        control: &Shared,
    ) -> Result<i32, Errno> {
        // SAFETY: this process has one thread, and the child only makes system calls and touches memory.
        match check(unsafe { libc::fork() })? {
            0 => self.live(index, memory, pages, kind, control),
            pid => Ok(pid as i32),
        }
    }

    fn live(&self, index: usize, memory: &Memory, pages: usize, kind: Kind, control: &Shared) -> ! {
        // Code, stack and these words are faulted in before, so that what is counted is the file's.
        self.word(index, VERDICT).store(0, Ordering::SeqCst);
        control.get(ATTACHED);
        warm_up();
        let (faults_before, _) = faults();
        let start = Instant::now();
        let map = memory.attach(pages * self.page_size, kind);
        let attach = start.elapsed();
        let (faults_attached, _) = faults();
        self.word(index, ATTACH_NANOSECONDS).store(attach.as_nanos() as u64, Ordering::SeqCst);
        self.word(index, ATTACH_FAULTS).store(faults_attached - faults_before, Ordering::SeqCst);
        control.add(ATTACHED);
        control.wait_without_limit(GO, 1);
        let (faults_before, _) = faults();
        let start = cpu_time();
        let size = self.page_size;
        let wrong = map.as_ref().map(|map| wrong_page(map, pages, size, |page| stamp(1, page)));
        let touch = cpu_time() - start;
        let (faults_touched, _) = faults();
        let verdict = match wrong {
            Ok(None) => 1,
            Ok(Some(page)) => page as u64 + 2,
            Err(error) => {
                eprintln!("sharers: mmap: {}", error.desc());
                u64::MAX
            }
        };
        self.word(index, TOUCH_NANOSECONDS).store(touch, Ordering::SeqCst);
        self.word(index, TOUCH_FAULTS).store(faults_touched - faults_before, Ordering::SeqCst);
        self.word(index, VERDICT).store(verdict, Ordering::SeqCst);
        control.add(TOUCHED);
        control.wait_without_limit(GO, 2);
        // SAFETY: ends the process; the parent's values must not be dropped here.
        unsafe { libc::_exit(i32::from(verdict != 1)) }
    }

    /// Whether all processes saw the right data.
    pub fn verify(&self) -> Result<(), String> {
        for index in 0..self.count {
            match self.word(index, VERDICT).load(Ordering::SeqCst) {
                1 => {}
                0 => return Err(format!("process {} did not report", index + 1)),
                u64::MAX => return Err(format!("process {} could not map the file", index + 1)),
                page => return Err(format!("process {} saw wrong data in page {}", index + 1, page - 2)),
            }
        }
        Ok(())
    }

    pub fn measurements(&self) -> Measurements {
        let sorted = |fields: &[usize]| {
            let word = |index, field: &usize| self.word(index, *field).load(Ordering::SeqCst);
            let sum = |index| fields.iter().map(|field| word(index, field)).sum();
            let mut all: Vec<u64> = (0..self.count).map(sum).collect();
            all.sort_unstable();
            all
        };
        Measurements {
            faults: sorted(&[ATTACH_FAULTS, TOUCH_FAULTS]),
            touch_faults: sorted(&[TOUCH_FAULTS]),
            attach_nanoseconds: sorted(&[ATTACH_NANOSECONDS]),
            touch_nanoseconds: sorted(&[TOUCH_NANOSECONDS]),
        }
    }
}

/// Runs all that is measured once, on a page of its own.
fn warm_up() {
    let start = Instant::now();
    // Beside the records, whose tables are there.
    if let Ok(map) = Map::new(4096, RW, PRIVATE | ANON, -1, 0) {
        map.set_u64(4096 - 8, !0);
        assert_eq!(wrong_page(&map, 1, 4096, |_| 0), None);
    }
    let _ = (start.elapsed(), cpu_time(), faults());
}
