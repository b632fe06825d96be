//! Who waits in a set of semaphores, found by what would let him go on.
//!
//! A call is blocked by one operation, which needs a certain value of its semaphore. Until the semaphore has it the call cannot go on, so the
//! call is kept under this requirement alone. When another operation blocks it later, it moves.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use summary_tree::{Summary, SummaryTree};

use super::{Operation, Outcome};
use crate::errno::Result;
use crate::process::Pid;
use crate::sync::WaitQueue;

/// What the value of a semaphore must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    AtLeast(i32),
    Equal(i32),
}

/// Why a call cannot go on.
#[derive(Clone, Copy, Debug)]
pub struct Blocked {
    /// The index of the operation that waits.
    pub operation: usize,
    pub semaphore: u16,
    pub requirement: Requirement,
}

/// A call that waits.
pub struct Sleeper {
    pub operations: Vec<Operation>,
    pub pid: Pid,
    /// The number of the process's list of what its end undoes.
    pub undo: Option<u64>,
    outcome: Outcome,
    pub queue: WaitQueue,
}

impl Sleeper {
    /// One that waits.
    pub fn new(operations: Vec<Operation>, pid: Pid, undo: Option<u64>) -> Self {
        Self { operations, pid, undo, outcome: Outcome::none(), queue: WaitQueue::new() }
    }

    /// The call's result, once it is done.
    pub fn outcome(&self) -> Option<Result<()>> {
        self.outcome.get()
    }

    /// Ends the wait.
    pub fn complete(&self, result: Result<()>) {
        self.outcome.set(result);
        self.queue.wake_all();
    }
}

/// A call that may be able to go on. In the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// False for one that waits for a certain value.
    rises: bool,
    pub ticket: u64,
    pub semaphore: u16,
}

/// The smallest need in a part of the tree.
struct Least(i32);

impl Summary<u64, i32> for Least {
    fn of(_: &u64, need: &i32) -> Self {
        Self(*need)
    }

    fn join(&mut self, other: &Self) {
        self.0 = self.0.min(other.0);
    }
}

/// The calls that one semaphore blocks.
#[derive(Default)]
struct OfSemaphore {
    /// The call that is to be tried, once the semaphore has changed.
    due: Option<Candidate>,
    /// The values needed, by the tickets of the calls.
    rising: SummaryTree<u64, i32, Least>,
    /// Value and ticket.
    equal: BTreeSet<(i32, u64)>,
}

/// The first call in a part of the tree that is to be tried.
struct FirstDue(Option<Candidate>);

impl Summary<u32, OfSemaphore> for FirstDue {
    fn of(_: &u32, waiting: &OfSemaphore) -> Self {
        Self(waiting.due)
    }

    fn join(&mut self, other: &Self) {
        self.0 = [self.0, other.0].into_iter().flatten().min();
    }
}

/// All calls that wait in a set.
#[derive(Default)]
pub struct Waiting {
    next_ticket: u64,
    sleepers: BTreeMap<u64, (Arc<Sleeper>, Blocked)>,
    /// By the semaphores' numbers, those only that block a call.
    semaphores: SummaryTree<u32, OfSemaphore, FirstDue>,
}

impl Waiting {
    /// Adds a call at the end; its ticket is returned.
    pub fn add(&mut self, sleeper: Arc<Sleeper>, blocked: Blocked) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.link(ticket, blocked);
        self.sleepers.insert(ticket, (sleeper, blocked));
        ticket
    }

    /// Takes a call out.
    pub fn remove(&mut self, ticket: u64) {
        if let Some((_, blocked)) = self.sleepers.remove(&ticket) {
            self.unlink(ticket, blocked);
        }
    }

    /// The call waits for something else now.
    pub fn move_to(&mut self, ticket: u64, blocked: Blocked) {
        let Some((_, kept)) = self.sleepers.get_mut(&ticket) else { return };
        let old = core::mem::replace(kept, blocked);
        self.unlink(ticket, old);
        self.link(ticket, blocked);
    }

    /// The call with a ticket.
    pub fn sleeper(&self, ticket: u64) -> Option<Arc<Sleeper>> {
        self.sleepers.get(&ticket).map(|(sleeper, _)| sleeper.clone())
    }

    /// Takes all calls out.
    pub fn take_all(&mut self) -> impl Iterator<Item = Arc<Sleeper>> + use<> {
        self.semaphores = SummaryTree::new();
        core::mem::take(&mut self.sleepers).into_values().map(|(sleeper, _)| sleeper)
    }

    /// The semaphore has this value now: its first call that may be able to go on is to be tried.
    pub fn mark(&mut self, semaphore: u16, value: i32) {
        let due = self.candidate(semaphore, value);
        self.semaphores.update(&semaphore.into(), |waiting| waiting.due = due);
    }

    /// The first call that is to be tried.
    pub fn first_due(&self) -> Option<Candidate> {
        self.semaphores.summary()?.0
    }

    /// The first call that a semaphore with this value does not block.
    pub fn candidate(&self, semaphore: u16, value: i32) -> Option<Candidate> {
        let waiting = self.semaphores.get(&semaphore.into())?;
        if let Some((_, ticket)) = waiting.equal.range((value, 0)..=(value, u64::MAX)).next() {
            return Some(Candidate { rises: false, ticket: *ticket, semaphore });
        }
        let fits = |ticket: &u64, need: &i32| (*need <= value).then_some(*ticket);
        let ticket = waiting.rising.find_first(&u64::MAX, |least| least.0 <= value, fits)?;
        Some(Candidate { rises: true, ticket, semaphore })
    }

    /// How many calls wait until the semaphore grows, and until it is zero.
    pub fn counts(&self, semaphore: u16) -> (usize, usize) {
        let waiting = self.semaphores.get(&semaphore.into());
        waiting.map_or((0, 0), |waiting| (waiting.rising.len(), waiting.equal.len()))
    }

    fn link(&mut self, ticket: u64, blocked: Blocked) {
        let number = blocked.semaphore.into();
        let add = |waiting: &mut OfSemaphore| match blocked.requirement {
            Requirement::AtLeast(need) => _ = waiting.rising.insert(ticket, need),
            Requirement::Equal(value) => _ = waiting.equal.insert((value, ticket)),
        };
        if !self.semaphores.update(&number, add) {
            let mut waiting = OfSemaphore::default();
            add(&mut waiting);
            self.semaphores.insert(number, waiting);
        }
    }

    fn unlink(&mut self, ticket: u64, blocked: Blocked) {
        let number = blocked.semaphore.into();
        let mut empty = false;
        self.semaphores.update(&number, |waiting| {
            match blocked.requirement {
                Requirement::AtLeast(_) => _ = waiting.rising.remove(&ticket),
                Requirement::Equal(value) => _ = waiting.equal.remove(&(value, ticket)),
            }
            empty = waiting.rising.is_empty() && waiting.equal.is_empty();
        });
        if empty {
            self.semaphores.remove(&number);
        }
    }
}
