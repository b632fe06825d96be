//! The memory that all processes of a run share: the step they are in, counters, what was found.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use roundtable_programs::mem::{ANON, Map, RW, SHARED};
use roundtable_programs::shared;

/// What everybody does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// Fault, disturb, churn.
    Run,
    /// Arrive and stand still.
    Pause,
    /// One process stores through its mappings.
    Write,
    /// Every process compares what its mappings show with what the files hold.
    Compare,
    /// Go home.
    Stop,
}

/// What is counted.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub enum Count {
    /// Loads and stores that faulting threads tried.
    Touches,
    /// Of these, how many ended in a signal: the page was protected, unmapped or behind the end of the file just then.
    Refused,
    /// What the way is named for, so many times.
    Acts,
    /// Address spaces and tables that the victims built and took down.
    Churns,
    /// Minor faults of all processes.
    Faults,
    /// Words compared while all stood still.
    Compared,
}

const COUNTS: usize = 6;

/// A kind of corruption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A page shows the stamp of another page or file.
    Foreign,
    /// A page shows what nobody has written.
    Junk,
    /// While all stand still a mapping shows something else than the file holds.
    Stale,
    /// A store through a mapping does not show up in the file.
    Lost,
    /// A process that has nothing to do with the files sees their data, or its own data destroyed.
    Intruder,
    /// A fresh page is not zero.
    Dirty,
    /// A store went through a read-only mapping, or a load through none.
    Permission,
    /// An access behind the end of the file went through.
    Beyond,
    /// Pool or memory counters did not return.
    Counters,
    /// A process was killed by a signal that nobody sent.
    Killed,
    /// Somebody did not come back from the kernel.
    Hung,
}

impl Kind {
    pub const ALL: [Kind; 11] = [
        Kind::Foreign,
        Kind::Junk,
        Kind::Stale,
        Kind::Lost,
        Kind::Intruder,
        Kind::Dirty,
        Kind::Permission,
        Kind::Beyond,
        Kind::Counters,
        Kind::Killed,
        Kind::Hung,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Foreign => "foreign",
            Kind::Junk => "junk",
            Kind::Stale => "stale",
            Kind::Lost => "lost",
            Kind::Intruder => "intruder",
            Kind::Dirty => "dirty",
            Kind::Permission => "permission",
            Kind::Beyond => "beyond",
            Kind::Counters => "counters",
            Kind::Killed => "killed",
            Kind::Hung => "hung",
        }
    }
}

/// One corruption, as it was seen.
#[derive(Clone, Copy, Debug)]
pub struct Finding {
    pub kind: Kind,
    /// Number of the process in its cast.
    pub process: u32,
    pub file: u32,
    pub index: u32,
    /// What was read, and what should have been there where that is one value.
    pub seen: u64,
    pub expected: u64,
}

/// How many findings are kept with their details; all are counted.
const KEPT: usize = 64;

#[repr(C)]
struct Slot {
    /// `1 + kind` once the rest is there.
    kind: AtomicU32,
    process: AtomicU32,
    file: AtomicU32,
    index: AtomicU32,
    seen: AtomicU64,
    expected: AtomicU64,
}

#[repr(C)]
struct Memory {
    /// A running number and the step.
    step: AtomicU32,
    /// Who arrived at a step other than `Run`, all steps together.
    arrived: AtomicU32,
    /// Whose turn it is in `Step::Write`.
    writer: AtomicU32,
    nonce: AtomicU32,
    counts: [AtomicU64; COUNTS],
    kinds: [AtomicU32; Kind::ALL.len()],
    taken: AtomicU32,
    slots: [Slot; KEPT],
}

/// The shared memory. All of its orderings are sequentially consistent: the measured thing is elsewhere.
pub struct Board {
    map: Map,
}

impl Board {
    pub fn new() -> Board {
        let length = size_of::<Memory>().next_multiple_of(4096);
        Board { map: Map::new(length, RW, SHARED | ANON, -1, 0).expect("shared memory") }
    }

    fn memory(&self) -> &Memory {
        // SAFETY: the mapping is as long, page-aligned, zeroed, and lives as long as `self`; all of it is atomics.
        unsafe { &*(self.map.address as *const Memory) }
    }

    /// The step, and the word to wait on for the next one.
    pub fn step(&self) -> (Step, u32) {
        let word = self.memory().step.load(Ordering::SeqCst);
        let step = match word & 7 {
            0 => Step::Run,
            1 => Step::Pause,
            2 => Step::Write,
            3 => Step::Compare,
            _ => Step::Stop,
        };
        (step, word)
    }

    pub fn running(&self) -> bool {
        self.step().0 == Step::Run
    }

    /// Goes on to a step; returns how many had arrived before it.
    pub fn begin(&self, step: Step) -> u32 {
        let memory = self.memory();
        let arrived = memory.arrived.load(Ordering::SeqCst);
        let number = (memory.step.load(Ordering::SeqCst) >> 3) + 1;
        memory.step.store(number << 3 | step as u32, Ordering::SeqCst);
        shared::wake(&memory.step, i32::MAX);
        arrived
    }

    /// Arrives at a step and waits for the next.
    pub fn arrive(&self, word: u32) {
        let memory = self.memory();
        memory.arrived.fetch_add(1, Ordering::SeqCst);
        shared::wake(&memory.arrived, 1);
        while memory.step.load(Ordering::SeqCst) == word {
            shared::wait(&memory.step, word, None);
        }
    }

    /// Waits until so many have arrived since `before`; calls `look` now and then, and ends when that says so.
    pub fn gather(&self, before: u32, actors: u32, limit: Duration, mut look: impl FnMut() -> bool) -> bool {
        let end = Instant::now() + limit;
        let arrived = &self.memory().arrived;
        loop {
            let now = arrived.load(Ordering::SeqCst);
            if now.wrapping_sub(before) >= actors {
                return true;
            }
            if Instant::now() > end || !look() {
                return false;
            }
            shared::wait(arrived, now, Some(Duration::from_millis(50)));
        }
    }

    pub fn set_writer(&self, process: u32) {
        self.memory().writer.store(process, Ordering::SeqCst);
    }

    pub fn writer(&self) -> u32 {
        self.memory().writer.load(Ordering::SeqCst)
    }

    /// A number that no other store of the run has.
    pub fn nonce(&self) -> u32 {
        self.memory().nonce.fetch_add(1, Ordering::SeqCst)
    }

    pub fn add(&self, count: Count, more: u64) {
        self.memory().counts[count as usize].fetch_add(more, Ordering::SeqCst);
    }

    pub fn count(&self, count: Count) -> u64 {
        self.memory().counts[count as usize].load(Ordering::SeqCst)
    }

    /// Reports a corruption. The first ones are printed at once: a kernel whose tables are corrupted may not live long.
    pub fn report(&self, finding: Finding) {
        let memory = self.memory();
        if !self.found_any() {
            // Before it is counted: who sees the count may end everybody. In one write; who cannot write cannot be helped.
            let line = format!("race: FOUND {}\n", crate::report::tell(&finding));
            let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
        }
        memory.kinds[finding.kind as usize].fetch_add(1, Ordering::SeqCst);
        let place = memory.taken.fetch_add(1, Ordering::SeqCst) as usize;
        let Some(slot) = memory.slots.get(place) else { return };
        slot.process.store(finding.process, Ordering::SeqCst);
        slot.file.store(finding.file, Ordering::SeqCst);
        slot.index.store(finding.index, Ordering::SeqCst);
        slot.seen.store(finding.seen, Ordering::SeqCst);
        slot.expected.store(finding.expected, Ordering::SeqCst);
        slot.kind.store(1 + finding.kind as u32, Ordering::SeqCst);
    }

    pub fn found(&self, kind: Kind) -> u32 {
        self.memory().kinds[kind as usize].load(Ordering::SeqCst)
    }

    pub fn found_any(&self) -> bool {
        self.memory().taken.load(Ordering::SeqCst) > 0
    }

    /// The findings whose details were kept.
    pub fn findings(&self) -> Vec<Finding> {
        let slots = self.memory().slots.iter();
        slots
            .filter_map(|slot| {
                let kind = slot.kind.load(Ordering::SeqCst).checked_sub(1)?;
                Some(Finding {
                    kind: Kind::ALL[kind as usize],
                    process: slot.process.load(Ordering::SeqCst),
                    file: slot.file.load(Ordering::SeqCst),
                    index: slot.index.load(Ordering::SeqCst),
                    seen: slot.seen.load(Ordering::SeqCst),
                    expected: slot.expected.load(Ordering::SeqCst),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_in_the_order_of_their_numbers() {
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number, "{}", kind.name());
        }
    }

    #[test]
    fn findings_come_out_as_they_went_in_and_all_are_counted() {
        let board = Board::new();
        let finding = Finding { kind: Kind::Lost, process: 1, file: 2, index: 3, seen: 4, expected: 5 };
        (0..100).for_each(|_| board.report(finding));
        assert_eq!(board.found(Kind::Lost), 100);
        let kept = board.findings();
        assert_eq!(kept.len(), KEPT);
        assert_eq!((kept[0].file, kept[0].index, kept[0].seen, kept[0].expected), (2, 3, 4, 5));
    }

    #[test]
    fn who_arrives_waits_for_the_next_step() {
        let board = Board::new();
        let before = board.begin(Step::Pause);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (step, word) = board.step();
                assert_eq!(step, Step::Pause);
                board.arrive(word);
                assert_eq!(board.step().0, Step::Run);
            });
            assert!(board.gather(before, 1, Duration::from_secs(20), || true));
            board.begin(Step::Run);
        });
    }
}
