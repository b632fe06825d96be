//! The ways to take a table away from under a fault, and what a thread does over and over in each of them.

use roundtable_programs::child::waitpid;
use roundtable_programs::fault;
use roundtable_programs::mem::{self, NONE, R, RW};
use roundtable_programs::rng::Rng;

use crate::actor::Actor;
use crate::board::Kind;
use crate::scale::{page_size, places, slot_size};
use crate::stamp::{ANCHOR, LAST_QUARTER, USED, stamp};
use crate::view::View;

/// The file that sits where the last quarter of a mapping was unmapped.
pub const SITTER: usize = 100;
/// What a truncation leaves of a file: its first two quarters.
fn truncated() -> u64 {
    (256 * page_size()) as u64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Punch,
    Truncate,
    DontNeed,
    Mprotect,
    Munmap,
    PartialMunmap,
    Mremap,
    Fork,
    Exit,
}

impl Way {
    pub const ALL: [Way; 9] = [
        Way::Punch,
        Way::Truncate,
        Way::DontNeed,
        Way::Mprotect,
        Way::Munmap,
        Way::PartialMunmap,
        Way::Mremap,
        Way::Fork,
        Way::Exit,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Way::Punch => "punch",
            Way::Truncate => "truncate",
            Way::DontNeed => "dontneed",
            Way::Mprotect => "mprotect",
            Way::Munmap => "munmap",
            Way::PartialMunmap => "partial-munmap",
            Way::Mremap => "mremap",
            Way::Fork => "fork",
            Way::Exit => "exit",
        }
    }

    pub fn from_name(name: &str) -> Option<Way> {
        Way::ALL.into_iter().find(|way| way.name() == name)
    }

    /// Whether it can be done to an attached region: forgetting what is inside would be everybody's loss, and is refused.
    pub fn goes_in_regions(self) -> bool {
        self != Way::DontNeed
    }

    /// Whether every process does it. A truncation knows that its file is short only when nobody else makes it long, and in a region the
    /// mappings are everybody's.
    pub fn is_done_by(self, process: u32, in_regions: bool) -> bool {
        let changes_all = match self {
            Way::Truncate => true,
            Way::Mprotect | Way::Munmap | Way::PartialMunmap => in_regions,
            _ => false,
        };
        !changes_all || process == 0
    }

    /// Whether an address in the last quarter of a slot may belong to the sitter.
    pub fn has_sitter(self) -> bool {
        self == Way::PartialMunmap
    }

    /// Does it once. What only this thread changes is verified on the way.
    pub fn act(self, actor: &Actor, rng: &mut Rng) {
        let view = &actor.views[rng.below(actor.views.len())];
        match self {
            Way::Punch => punch(actor, view, rng),
            Way::Truncate => truncate(actor, view, rng),
            Way::DontNeed => {
                let (start, length) = part(rng);
                let _ = mem::madvise(view.start() + start, length, libc::MADV_DONTNEED);
            }
            Way::Mprotect => protect(actor, view, rng),
            Way::Munmap => unmap(actor, view, rng),
            Way::PartialMunmap => unmap_last_quarter(actor, view, rng),
            Way::Mremap => remap(actor, view, rng),
            Way::Fork => fork(actor, rng),
            Way::Exit => exit(actor, rng),
        }
    }
}

/// A part of a slot as offset and length: all of it, or its last quarter.
fn part(rng: &mut Rng) -> (usize, usize) {
    if rng.chance(2) {
        (0, slot_size())
    } else {
        (LAST_QUARTER * page_size(), slot_size() - LAST_QUARTER * page_size())
    }
}

fn any_used(rng: &mut Rng) -> usize {
    USED[rng.below(USED.len())]
}

fn punch(actor: &Actor, view: &View, rng: &mut Rng) {
    let index = any_used(rng);
    let length = 1 + rng.below(4);
    let result = actor.file(view).punch((index * page_size()) as u64, (length * page_size()) as u64);
    actor.expect(result.is_ok(), "punch");
}

/// What the company of a cast does: it is the youngest sharer of a table when it punches a hole elsewhere, and leaves.
///
/// Where a punch takes the table away from one mapping after the other, all but the last lose it, and the last takes it
/// along. A fault that had found the table then stores into a frame that may be anybody's.
pub fn come_and_go(actor: &Actor, rng: &mut Rng) {
    let view = &actor.views[rng.below(actor.views.len())];
    actor.expect(view.leave_and_come().is_ok(), "munmap and mmap");
    match fault::load(view.address(ANCHOR, 0)) {
        Ok(0) => {}
        Ok(word) => actor.find(Kind::Foreign, view.file, ANCHOR, word, 0),
        // The pool may be empty for a moment.
        Err(_) => {}
    }
    let index = any_used(rng) as u64;
    actor.expect(actor.file(view).punch(index * page_size() as u64, page_size() as u64).is_ok(), "punch");
}

fn truncate(actor: &Actor, view: &View, rng: &mut Rng) {
    let file = actor.file(view);
    actor.expect(file.truncate(truncated()).is_ok(), "ftruncate");
    for _ in 0..2 {
        let index = USED[USED.len() - 1 - rng.below(4)];
        // The company maps the file anew, which makes it as long as the mapping.
        if let Ok(word) = fault::load(view.address(index, 0))
            && !actor.plot.in_company
        {
            actor.find(Kind::Beyond, view.file, index, word, 0);
        }
    }
    actor.expect(file.truncate(slot_size() as u64).is_ok(), "ftruncate");
}

fn protect(actor: &Actor, view: &View, rng: &mut Rng) {
    let (offset, length) = part(rng);
    let protection = if rng.chance(2) { R } else { NONE };
    actor.expect(view.protect(offset, length, protection).is_ok(), "mprotect");
    for _ in 0..2 {
        // The last quarter is protected in either case.
        let index = USED[USED.len() - 1 - rng.below(4)];
        let address = view.address(index, 0);
        if protection == NONE
            && let Ok(word) = fault::load(address)
        {
            actor.find(Kind::Permission, view.file, index, word, 0);
        }
        let word = stamp(view.file, index, actor.board.nonce());
        if fault::store(address, word).is_ok() {
            actor.find(Kind::Permission, view.file, index, word, 0);
        }
    }
    actor.expect(view.protect(offset, length, RW).is_ok(), "mprotect");
}

/// Nothing is mapped at the view's addresses now, so nothing may be seen there.
fn expect_nothing(actor: &Actor, view: &View, start: usize, rng: &mut Rng) {
    for _ in 0..2 {
        let index = USED[USED.len() - 1 - rng.below(4)];
        if let Ok(word) = fault::load(start + index * page_size()) {
            actor.find(Kind::Permission, view.file, index, word, 0);
        }
    }
}

fn unmap(actor: &Actor, view: &View, rng: &mut Rng) {
    actor.expect(view.unmap(0, slot_size()).is_ok(), "munmap");
    expect_nothing(actor, view, view.start(), rng);
    actor.expect(view.map(0, slot_size()).is_ok(), "mmap");
}

fn unmap_last_quarter(actor: &Actor, view: &View, rng: &mut Rng) {
    let offset = LAST_QUARTER * page_size();
    actor.expect(view.unmap(offset, slot_size() - offset).is_ok(), "munmap");
    expect_nothing(actor, view, view.start(), rng);
    actor.expect(view.seat(actor.sitter, offset, slot_size() - offset).is_ok(), "mmap");
    for index in USED.into_iter().filter(|&index| index >= LAST_QUARTER) {
        let expected = stamp(SITTER, index, 0);
        match fault::load(view.start() + index * page_size() + places()[rng.below(places().len())]) {
            Ok(word) if word == expected => {}
            Ok(word) => actor.find(Kind::Intruder, SITTER, index, word, expected),
            Err(refused) => actor.find(Kind::Intruder, SITTER, index, refused.signal as u64, expected),
        }
    }
    actor.expect(view.map(offset, slot_size() - offset).is_ok(), "mmap");
}

fn remap(actor: &Actor, view: &View, rng: &mut Rng) {
    let from = view.move_away();
    actor.expect(from.is_ok(), "mremap");
    let Ok(from) = from else { return };
    expect_nothing(actor, view, from, rng);
    actor.expect(view.keep(from).is_ok(), "mmap");
}

/// Starts a process that goes on with `child`, which must allocate no memory: other threads may hold the allocator's lock.
fn start(actor: &Actor, child: impl FnOnce()) -> Option<i32> {
    // SAFETY: the child touches memory and ends.
    match unsafe { libc::fork() } {
        -1 => {
            actor.expect(false, "fork");
            None
        }
        0 => {
            child();
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) }
        }
        pid => Some(pid),
    }
}

/// Waits for a child; it may have been killed by `killer` only.
fn finish(actor: &Actor, pid: i32, killer: i32) {
    use roundtable_programs::child::End;
    match waitpid(pid, 0) {
        Ok((_, End::Code(0))) => {}
        Ok((_, End::Signal(signal))) if signal == killer => {}
        Ok((_, End::Signal(signal))) => actor.find(Kind::Killed, 0, 0, signal as u64, 0),
        _ => actor.expect(false, "waitpid"),
    }
}

fn fork(actor: &Actor, rng: &mut Rng) {
    let mut rng = rng.clone();
    let child = start(actor, || {
        for _ in 0..3 {
            actor.touch(&mut rng);
        }
    });
    if let Some(pid) = child {
        finish(actor, pid, 0);
    }
}

/// Two sharers that end while they fault: one of them as it likes, the other at any point.
fn exit(actor: &Actor, rng: &mut Rng) {
    let (mut one, mut two) = (rng.clone(), Rng::new(rng.draw()));
    let short = start(actor, || {
        for _ in 0..4 {
            actor.touch(&mut one);
        }
    });
    let long = start(actor, || {
        while actor.board.running() {
            actor.touch(&mut two);
        }
    });
    if let Some(pid) = short {
        finish(actor, pid, 0);
    }
    if let Some(pid) = long {
        // SAFETY: takes integers; the child was not waited for.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        finish(actor, pid, libc::SIGKILL);
    }
}
