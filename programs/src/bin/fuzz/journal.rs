//! What actors tell the watcher, in memory that they share with it, and the trace.

use std::fmt;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};

use roundtable_programs::mem::{ANON, Map, RW, SHARED};

use crate::plan::MOST_ACTORS;

/// Where traces go: beyond the actors' limit on descriptors, so that none of their calls comes to it.
pub const TRACE: i32 = 100;

/// One actor's notes. A wild store may change them: they are hints.
pub struct Notes {
    /// The call that comes next: who died goes on there.
    pub next: AtomicU32,
    /// Counts all calls of the actor, its children and threads.
    pub calls: AtomicU32,
    pub failed: AtomicU32,
    /// The actor's first process, which leads a group.
    pub process: AtomicI32,
}

/// How often a call of the grammar was made, and failed.
pub struct Tally {
    pub made: AtomicU32,
    pub failed: AtomicU32,
}

/// More than the grammar has calls.
const TALLIES: usize = 400;

struct Journal {
    notes: [Notes; MOST_ACTORS as usize],
    tallies: [Tally; TALLIES],
}

static JOURNAL: AtomicPtr<Journal> = AtomicPtr::new(std::ptr::null_mut());

/// Makes the memory. A program that an actor executes has none.
pub fn create() {
    let map = Map::new(size_of::<Journal>(), RW, SHARED | ANON, -1, 0).expect("memory for the journal");
    JOURNAL.store(map.address as *mut _, SeqCst);
    std::mem::forget(map);
}

fn journal() -> Option<&'static Journal> {
    // SAFETY: the mapping is never taken down by this program's own logic; an actor that unmaps it by a call dies by a signal, and is
    // started again. Zeros are valid notes.
    unsafe { JOURNAL.load(SeqCst).as_ref() }
}

pub fn notes(actor: u32) -> Option<&'static Notes> {
    journal()?.notes.get(actor as usize)
}

/// The tally of a call, by its place in the grammar.
pub fn tally(call: usize) -> Option<&'static Tally> {
    journal()?.tallies.get(call)
}

/// Counts a call.
pub fn count(actor: u32, call: usize, succeeded: bool) {
    if let Some(tally) = tally(call) {
        // Relaxed: counters only.
        tally.made.fetch_add(1, Relaxed);
        tally.failed.fetch_add(u32::from(!succeeded), Relaxed);
    }
    if let Some(notes) = notes(actor) {
        // Relaxed: counters only.
        notes.calls.fetch_add(1, Relaxed);
        notes.failed.fetch_add(u32::from(!succeeded), Relaxed);
    }
}

/// The first process of an actor; 0 when there is none.
pub fn process(actor: u32) -> i32 {
    // Relaxed: a hint.
    notes(actor).map_or(0, |notes| notes.process.load(Relaxed))
}

/// A line made without allocating.
pub struct Line {
    bytes: [u8; 256],
    used: usize,
}

impl Line {
    pub const fn new() -> Line {
        Line { bytes: [0; 256], used: 0 }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    pub fn print(&self) {
        // SAFETY: the bytes live through the call.
        let _ = unsafe { syscalls::syscall!(syscalls::Sysno::write, TRACE, self.bytes.as_ptr(), self.used) };
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = text.len().min(self.bytes.len() - self.used);
        self.bytes[self.used..][..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.used += fits;
        Ok(())
    }
}
