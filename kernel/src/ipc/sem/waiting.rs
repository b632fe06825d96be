//! Who waits in a set of semaphores, found by what would let him go on.
//!
//! A call is blocked by one operation, which needs a certain value of its semaphore. Until the semaphore has it the call cannot go on, so the
//! call is kept under this requirement alone. When another operation blocks it later, it moves. One change may move all calls that wait: so
//! each brings what any of its places takes, and moving takes no memory.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use summary_tree::{Entry, Summary, SummaryTree};

use super::{Operation, Outcome};
use crate::errno::{Errno, Result};
use crate::memory::{fallible, reserve};
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

impl Summary<(i32, u64), i32> for Least {
    fn of(_: &(i32, u64), need: &i32) -> Self {
        Self(*need)
    }

    fn join(&mut self, other: &Self) {
        self.0 = self.0.min(other.0);
    }
}

/// Calls with the values that they need: by these and their tickets, or by their tickets alone, behind a 0.
type Calls = SummaryTree<(i32, u64), i32, Least>;
type Call = Entry<(i32, u64), i32, Least>;

/// The calls that one semaphore blocks.
#[derive(Default)]
struct OfSemaphore {
    /// The call that is to be tried, once the semaphore has changed.
    due: Option<Candidate>,
    /// Those that wait until it has so much, in the order in which they came.
    rising: Calls,
    /// Those that wait for a value, by it.
    equal: Calls,
}

impl OfSemaphore {
    fn is_empty(&self) -> bool {
        self.rising.is_empty() && self.equal.is_empty()
    }
}

type BlockedHere = Entry<u32, OfSemaphore, FirstDue>;

/// What a call takes that waits, wherever it does.
pub struct Places {
    call: Call,
    semaphore: BlockedHere,
}

impl Places {
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        /// Both entries, and a call's place among all.
        const BYTES: usize = 512;
        reserve::ask(BYTES)?;
        Ok(Self {
            call: Entry::try_new((0, 0), 0).map_err(|_| Errno::ENOMEM)?,
            semaphore: Entry::try_new(0, OfSemaphore::default()).map_err(|_| Errno::ENOMEM)?,
        })
    }
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
    /// For semaphores that block none yet: with those in the tree there are as many as there are calls.
    spare: Vec<BlockedHere>,
}

impl Waiting {
    /// Adds a call at the end; its ticket is returned. `ENOMEM`.
    pub fn add(&mut self, sleeper: Arc<Sleeper>, blocked: Blocked, places: Places) -> Result<u64> {
        let Places { call, semaphore } = places;
        let missing = self.sleepers.len() + 1 - self.spare.len();
        fallible::reserve(&mut self.spare, missing)?;
        self.spare.push(semaphore);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.link(ticket, blocked, call);
        self.sleepers.insert(ticket, (sleeper, blocked));
        Ok(ticket)
    }

    /// Takes a call out.
    pub fn remove(&mut self, ticket: u64) {
        let Some((_, blocked)) = self.sleepers.remove(&ticket) else { return };
        drop(self.unlink(ticket, blocked));
        // It takes along what it brought, or one like it.
        drop(self.spare.pop());
        if self.sleepers.is_empty() {
            self.spare = Vec::new();
        }
    }

    /// The call waits for something else now.
    pub fn move_to(&mut self, ticket: u64, blocked: Blocked) {
        let Some((_, kept)) = self.sleepers.get_mut(&ticket) else { return };
        let old = core::mem::replace(kept, blocked);
        if let Some(call) = self.unlink(ticket, old) {
            self.link(ticket, blocked, call);
        }
    }

    /// The call with a ticket.
    pub fn sleeper(&self, ticket: u64) -> Option<Arc<Sleeper>> {
        self.sleepers.get(&ticket).map(|(sleeper, _)| sleeper.clone())
    }

    /// Takes all calls out.
    pub fn take_all(&mut self) -> impl Iterator<Item = Arc<Sleeper>> + use<> {
        self.semaphores = SummaryTree::new();
        self.spare = Vec::new();
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
        let equal = waiting.equal.find_from(&(value, 0), |key, _| Some(*key));
        if let Some((_, ticket)) = equal.filter(|(wanted, _)| *wanted == value) {
            return Some(Candidate { rises: false, ticket, semaphore });
        }
        let fits = |(_, ticket): &(i32, u64), need: &i32| (*need <= value).then_some(*ticket);
        let ticket = waiting.rising.find_first(&(0, u64::MAX), |least| least.0 <= value, fits)?;
        Some(Candidate { rises: true, ticket, semaphore })
    }

    /// How many calls wait until the semaphore grows, and until it is zero.
    pub fn counts(&self, semaphore: u16) -> (usize, usize) {
        let waiting = self.semaphores.get(&semaphore.into());
        waiting.map_or((0, 0), |waiting| (waiting.rising.len(), waiting.equal.len()))
    }

    fn link(&mut self, ticket: u64, blocked: Blocked, mut call: Call) {
        let number = blocked.semaphore.into();
        let (rises, key, need) = match blocked.requirement {
            Requirement::AtLeast(need) => (true, (0, ticket), need),
            Requirement::Equal(value) => (false, (value, ticket), value),
        };
        call.change(|at, value| {
            *at = key;
            *value = need;
        });
        let mut call = Some(call);
        let mut add = |waiting: &mut OfSemaphore| {
            let calls = if rises { &mut waiting.rising } else { &mut waiting.equal };
            if let Some(call) = call.take() {
                // Each ticket is there once.
                let _ = calls.insert_entry(call);
            }
        };
        if !self.semaphores.update(&number, &mut add)
            && let Some(mut first) = self.spare.pop()
        {
            first.change(|key, waiting| {
                *key = number;
                waiting.due = None;
                add(waiting);
            });
            // It was looked for, and is not there.
            let _ = self.semaphores.insert_entry(first);
        }
    }

    fn unlink(&mut self, ticket: u64, blocked: Blocked) -> Option<Call> {
        let number = blocked.semaphore.into();
        let (mut call, mut empty) = (None, false);
        self.semaphores.update(&number, |waiting| {
            call = match blocked.requirement {
                Requirement::AtLeast(_) => waiting.rising.remove_entry(&(0, ticket)),
                Requirement::Equal(value) => waiting.equal.remove_entry(&(value, ticket)),
            };
            empty = waiting.is_empty();
        });
        if empty {
            // There is room: see `add`.
            self.spare.extend(self.semaphores.remove_entry(&number));
        }
        call
    }
}
