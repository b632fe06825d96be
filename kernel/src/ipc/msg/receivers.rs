//! Who waits for a message, found by the types that would do.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;

use summary_tree::{Summary, SummaryTree};

use super::Wanted;
use super::messages::{Message, Selection};
use crate::errno::Result;
use crate::process::Pid;
use crate::sync::{SpinLock, WaitQueue};

/// A call that waits for a message.
pub struct Receiver {
    wanted: Wanted,
    pub pid: Pid,
    outcome: SpinLock<Option<Result<Message>>>,
    pub queue: WaitQueue,
}

impl Receiver {
    /// One that waits.
    pub fn new(wanted: Wanted, pid: Pid) -> Self {
        Self { wanted, pid, outcome: SpinLock::new(None), queue: WaitQueue::new() }
    }

    /// Does the message not fit?
    pub fn too_small_for(&self, message: &Message) -> bool {
        !self.wanted.cut && message.len() > self.wanted.size
    }

    /// Ends the wait.
    pub fn complete(&self, result: Result<Message>) {
        *self.outcome.lock() = Some(result);
        self.queue.wake_all();
    }

    /// The call's result, once it is there.
    pub fn take_outcome(&self) -> Option<Result<Message>> {
        self.outcome.lock().take()
    }
}

/// The largest limit in a part of the tree.
struct Largest(i64);

impl Summary<u64, i64> for Largest {
    fn of(_: &u64, limit: &i64) -> Self {
        Self(*limit)
    }

    fn join(&mut self, other: &Self) {
        self.0 = self.0.max(other.0);
    }
}

/// All calls that wait for a message of one queue.
#[derive(Default)]
pub struct Receivers {
    next_ticket: u64,
    receivers: BTreeMap<u64, Arc<Receiver>>,
    /// The tickets of those who take any message; of a type; of another type; up to a type.
    any: BTreeSet<u64>,
    equal: BTreeSet<(i64, u64)>,
    not_equal: BTreeMap<u64, i64>,
    up_to: SummaryTree<u64, i64, Largest>,
}

impl Receivers {
    /// Adds a call at the end; its ticket is returned.
    pub fn add(&mut self, receiver: Arc<Receiver>) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        match receiver.wanted.selection {
            Selection::Any => _ = self.any.insert(ticket),
            Selection::Equal(kind) => _ = self.equal.insert((kind, ticket)),
            Selection::NotEqual(kind) => _ = self.not_equal.insert(ticket, kind),
            Selection::LowestTo(most) => _ = self.up_to.insert(ticket, most),
        }
        self.receivers.insert(ticket, receiver);
        ticket
    }

    /// Takes a call out.
    pub fn remove(&mut self, ticket: u64) -> Option<Arc<Receiver>> {
        let receiver = self.receivers.remove(&ticket)?;
        match receiver.wanted.selection {
            Selection::Any => _ = self.any.remove(&ticket),
            Selection::Equal(kind) => _ = self.equal.remove(&(kind, ticket)),
            Selection::NotEqual(_) => _ = self.not_equal.remove(&ticket),
            Selection::LowestTo(_) => _ = self.up_to.remove(&ticket),
        }
        Some(receiver)
    }

    /// Takes the first call out that a message of this type is for.
    pub fn take_for(&mut self, kind: i64) -> Option<Arc<Receiver>> {
        let any = self.any.first().copied();
        let equal = self.equal.range((kind, 0)..=(kind, u64::MAX)).next().map(|(_, ticket)| *ticket);
        let not_equal = self.not_equal.iter().find(|(_, other)| **other != kind).map(|(ticket, _)| *ticket);
        let fits = |ticket: &u64, most: &i64| (kind <= *most).then_some(*ticket);
        let up_to = self.up_to.find_first(&u64::MAX, |largest| kind <= largest.0, fits);
        let first = [any, equal, not_equal, up_to].into_iter().flatten().min()?;
        self.remove(first)
    }

    /// Takes all calls out.
    pub fn take_all(&mut self) -> impl Iterator<Item = Arc<Receiver>> + use<> {
        core::mem::take(self).receivers.into_values()
    }
}
