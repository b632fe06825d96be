//! What a step of a sequence is, and how the next one is drawn.

use roundtable_programs::huge::HUGE;
use roundtable_programs::mem::{NONE, NORESERVE, POPULATE, PRIVATE, R, RW, SHARED};
use roundtable_programs::rng::Rng;
use roundtable_programs::sys::PAGE;
use roundtable_programs::uffd;

/// The regions that mappings come into: 16 huge pages, and 1 GiB of which Linux shares the table.
pub const REGIONS: [(usize, usize); 2] = [(0x1000_0000_0000, 16), (0x1001_0000_0000, 512)];
/// Processes at once.
pub const ACTORS: usize = 4;
/// The files: on a plain mount, two; on one of 8 pages; on one with a reserve of 2; a memfd.
pub const FILES: usize = 5;
/// The file that is mapped as a whole into the second region.
pub const LARGE: usize = 1;

/// Pages of a region; those of `skew` begin a base page late, or end one late.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub region: usize,
    pub page: usize,
    pub count: usize,
    pub skew: (bool, bool),
}

impl Place {
    pub fn address(self) -> usize {
        REGIONS[self.region].0 + self.page * HUGE + usize::from(self.skew.0) * PAGE
    }

    pub fn length(self) -> usize {
        self.count * HUGE + usize::from(self.skew.1) * PAGE - usize::from(self.skew.0) * PAGE
    }

    /// All huge pages that it touches.
    pub fn whole(self) -> (usize, usize) {
        (REGIONS[self.region].0 + self.page * HUGE, (self.count + usize::from(self.skew.1)) * HUGE)
    }

    /// Never with an end that is late: Linux has cut areas when it finds that it cannot, and ours has not.
    fn draw(rng: &mut Rng) -> Place {
        let skew = (rng.chance(24), false);
        if rng.chance(4) {
            let page = [0, 1, 2, 255, 256, 510, 511][rng.below(7)];
            let count = if rng.chance(6) { 512 - page } else { 1 + rng.below(2) };
            return Place { region: 1, page, count: count.min(512 - page), skew };
        }
        let page = rng.below(16);
        Place { region: 0, page, count: 1 + rng.below(4.min(16 - page)), skew }
    }
}

/// What is mapped.
#[derive(Clone, Copy, Debug)]
pub enum What {
    File(usize),
    /// Anonymous, in huge pages.
    Huge,
    /// Anonymous, in base pages.
    Base,
}

/// A step; its process does it, or the world around it.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Map {
        at: Place,
        what: What,
        protection: i32,
        flags: i32,
        offset: usize,
    },
    Unmap {
        at: Place,
    },
    Protect {
        at: Place,
        protection: i32,
    },
    Move {
        from: Place,
        to: Place,
        flags: i32,
    },
    Load {
        at: Place,
    },
    Store {
        at: Place,
        value: u64,
    },
    Truncate {
        file: usize,
        length: usize,
    },
    Allocate {
        file: usize,
        mode: i32,
        offset: usize,
        length: usize,
    },
    Read {
        file: usize,
        page: usize,
    },
    Write {
        file: usize,
    },
    Seek {
        file: usize,
        page: usize,
        whence: i32,
    },
    Stat {
        file: usize,
    },
    Seal {
        file: usize,
        seals: i32,
    },
    Advise {
        at: Place,
        advice: i32,
    },
    Lock {
        at: Place,
        on: bool,
    },
    Sync {
        at: Place,
        flags: i32,
    },
    Fork {
        to: usize,
    },
    Exit,
    /// Never drawn: a child has said that it ends.
    Reap {
        pid: i32,
    },
    Register {
        at: Place,
        mode: u64,
    },
    Unregister {
        at: Place,
    },
    Copy {
        at: Place,
        value: u64,
        mode: u64,
    },
    Zero {
        at: Place,
    },
    WriteProtect {
        at: Place,
        on: bool,
    },
    Continue {
        at: Place,
    },
    Bind {
        at: Place,
        mode: usize,
        nodes: u64,
        flags: usize,
    },
    SetPolicy {
        mode: usize,
        nodes: u64,
    },
    Policy {
        at: Place,
    },
    Maps,
    Limit {
        reserved: bool,
        pages: Option<usize>,
    },
    Usage,
    Pool {
        pages: u64,
    },
    Overcommit {
        pages: u64,
    },
}

fn one<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.below(of.len())]
}

/// An offset or a length in bytes: whole pages, seldom a base page or a byte more.
fn bytes(rng: &mut Rng, pages: usize) -> usize {
    pages * HUGE + if rng.chance(12) { one(rng, &[PAGE, 1]) } else { 0 }
}

fn protection(rng: &mut Rng) -> i32 {
    one(rng, &[RW, RW, RW, RW, R, R, NONE])
}

impl Step {
    /// Draws the step with this number. `free` is a place for one more process; the first is not to end.
    pub fn draw(rng: &mut Rng, number: u64, actor: usize, free: Option<usize>) -> Step {
        let at = Place::draw(rng);
        let file = rng.below(FILES);
        match rng.below(100) {
            0..15 => Step::map(rng, at, file),
            15..19 => Step::Unmap { at },
            19..23 => Step::Protect { at, protection: protection(rng) },
            23..26 => {
                let flags = libc::MREMAP_MAYMOVE
                    | one(rng, &[0, libc::MREMAP_FIXED, libc::MREMAP_FIXED])
                    | if rng.chance(6) { libc::MREMAP_DONTUNMAP } else { 0 };
                let mut to = Place::draw(rng);
                to.count = if rng.chance(4) { to.count } else { at.count };
                Step::Move { from: at, to, flags }
            }
            26..36 => Step::Load { at },
            36..50 => Step::Store { at, value: number },
            50..53 => {
                let pages = rng.below(10);
                Step::Truncate { file, length: bytes(rng, pages) }
            }
            53..58 => {
                let mode = one(rng, &[0, 0, 1, 3, 3, 3, 3, 3, 2, 0x10, 0x8, 0x20]);
                let (offset, length) = (rng.below(10), rng.below(4));
                Step::Allocate { file, mode, offset: bytes(rng, offset), length: bytes(rng, length) }
            }
            58..60 => Step::Read { file, page: rng.below(10) },
            60 => match rng.below(3) {
                0 => Step::Write { file },
                1 => Step::Seal { file, seals: one(rng, &[2, 4, 8, 16]) },
                _ => Step::Seek { file, page: rng.below(10), whence: one(rng, &[3, 4]) },
            },
            61..63 => Step::Stat { file },
            63..70 => {
                use libc::*;
                const ADVICE: [i32; 21] = [
                    MADV_DONTNEED,
                    MADV_DONTNEED,
                    MADV_DONTNEED,
                    MADV_REMOVE,
                    MADV_REMOVE,
                    MADV_WILLNEED,
                    MADV_DONTFORK,
                    MADV_DOFORK,
                    MADV_POPULATE_READ,
                    MADV_POPULATE_WRITE,
                    MADV_FREE,
                    MADV_COLD,
                    MADV_PAGEOUT,
                    MADV_DONTDUMP,
                    MADV_DODUMP,
                    MADV_HUGEPAGE,
                    MADV_NOHUGEPAGE,
                    MADV_WIPEONFORK,
                    MADV_KEEPONFORK,
                    MADV_MERGEABLE,
                    MADV_RANDOM,
                ];
                Step::Advise { at, advice: one(rng, &ADVICE) }
            }
            70..72 => Step::Lock { at, on: !rng.chance(2) },
            72..74 => {
                Step::Sync { at, flags: one(rng, &[libc::MS_SYNC, libc::MS_ASYNC, libc::MS_INVALIDATE]) }
            }
            74..79 => match free {
                Some(to) => Step::Fork { to },
                None => Step::end(actor),
            },
            79..82 => Step::end(actor),
            82..90 => Step::of_userfault(rng, at, number),
            90..92 => {
                let (mode, nodes) = (rng.below(8), one(rng, &[0, 1, 1, 1, 2]));
                match rng.below(3) {
                    0 => Step::SetPolicy { mode, nodes },
                    1 => Step::Policy { at },
                    _ => Step::Bind { at, mode, nodes, flags: one(rng, &[0, 0, 1, 2, 3, 8]) },
                }
            }
            92..95 => Step::Maps,
            95..97 => Step::Limit {
                reserved: rng.chance(2),
                pages: one(rng, &[None, None, Some(0), Some(4), Some(8), Some(16)]),
            },
            97 => Step::Usage,
            98 => Step::Pool { pages: one(rng, &[24, 24, 16, 8, 32]) },
            _ => Step::Overcommit { pages: one(rng, &[0, 4, 8]) },
        }
    }

    fn end(actor: usize) -> Step {
        if actor == 0 { Step::Usage } else { Step::Exit }
    }

    fn map(rng: &mut Rng, mut at: Place, file: usize) -> Step {
        at.skew.1 = rng.chance(24);
        let what = match rng.below(10) {
            0..7 => What::File(file),
            7..9 => What::Huge,
            _ => What::Base,
        };
        let mut flags = if rng.chance(2) { SHARED } else { PRIVATE };
        flags |= if rng.chance(4) { NORESERVE } else { 0 };
        flags |= if rng.chance(12) { POPULATE } else { 0 };
        let pages = rng.below(8);
        let mut offset = bytes(rng, pages);
        let mut what = what;
        if at.region == 1 {
            // Most of it as a whole, for its table.
            if !rng.chance(4) {
                at = Place { page: 0, count: 512, ..at };
            }
            (what, offset) = (What::File(LARGE), at.page * HUGE);
            flags = (flags | NORESERVE) & !POPULATE;
        }
        Step::Map { at, what, protection: protection(rng), flags, offset }
    }

    fn of_userfault(rng: &mut Rng, at: Place, value: u64) -> Step {
        match rng.below(8) {
            0 | 1 => {
                Step::Register { at, mode: one(rng, &[uffd::MISSING, uffd::WP, uffd::MINOR, 3, 5, 7, 0]) }
            }
            2 => Step::Unregister { at },
            3 | 4 => Step::Copy { at, value, mode: one(rng, &[0, 0, 1, 2]) },
            5 => Step::Zero { at },
            6 => Step::WriteProtect { at, on: !rng.chance(3) },
            _ => Step::Continue { at },
        }
    }
}
