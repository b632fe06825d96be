//! Who waits for room in a queue, with the message that is to be sent.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use summary_tree::{Summary, SummaryTree};

use super::messages::Parcel;
use crate::errno::Result;
use crate::process::Pid;
use crate::sync::{SpinLock, WaitQueue};

/// A call that waits for room.
pub struct Sender {
    parcel: SpinLock<Option<Parcel>>,
    len: usize,
    pub pid: Pid,
    outcome: SpinLock<Option<Result<()>>>,
    pub queue: WaitQueue,
}

impl Sender {
    /// One that waits.
    pub fn new(parcel: Parcel, pid: Pid) -> Self {
        let len = parcel.message().len();
        let parcel = SpinLock::new(Some(parcel));
        Self { parcel, len, pid, outcome: SpinLock::new(None), queue: WaitQueue::new() }
    }

    /// What is to be sent.
    pub fn take_parcel(&self) -> Option<Parcel> {
        self.parcel.lock().take()
    }

    /// Ends the wait.
    pub fn complete(&self, result: Result<()>) {
        *self.outcome.lock() = Some(result);
        self.queue.wake_all();
    }

    /// The call's result, once it is there.
    pub fn outcome(&self) -> Option<Result<()>> {
        *self.outcome.lock()
    }
}

/// The smallest message in a part of the tree.
struct Smallest(usize);

impl Summary<u64, usize> for Smallest {
    fn of(_: &u64, len: &usize) -> Self {
        Self(*len)
    }

    fn join(&mut self, other: &Self) {
        self.0 = self.0.min(other.0);
    }
}

/// All calls that wait for room in one queue.
#[derive(Default)]
pub struct Senders {
    next_ticket: u64,
    senders: BTreeMap<u64, Arc<Sender>>,
    /// The lengths of the messages, by the tickets of the calls.
    lengths: SummaryTree<u64, usize, Smallest>,
}

impl Senders {
    /// Adds a call at the end; its ticket is returned.
    pub fn add(&mut self, sender: Arc<Sender>) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.lengths.insert(ticket, sender.len);
        self.senders.insert(ticket, sender);
        ticket
    }

    /// Takes a call out.
    pub fn remove(&mut self, ticket: u64) -> Option<Arc<Sender>> {
        self.lengths.remove(&ticket);
        self.senders.remove(&ticket)
    }

    /// Takes the first call out whose message fits into `room` bytes.
    pub fn take_first(&mut self, room: usize) -> Option<Arc<Sender>> {
        let fits = |ticket: &u64, len: &usize| (*len <= room).then_some(*ticket);
        let first = self.lengths.find_first(&u64::MAX, |smallest| smallest.0 <= room, fits)?;
        self.remove(first)
    }

    /// Takes all calls out.
    pub fn take_all(&mut self) -> impl Iterator<Item = Arc<Sender>> + use<> {
        core::mem::take(self).senders.into_values()
    }
}
