//! A set of pending signals, with what their senders said.

use alloc::boxed::Box;
use intrusive_collections::{LinkedList, LinkedListLink, intrusive_adapter};

use super::{SIGRTMIN, SigInfo, SigSet};

/// A pending signal's information: made by the sender outside of all locks.
pub struct Queued {
    link: LinkedListLink,
    info: SigInfo,
}

// SAFETY: the link is used by the list that owns the box only.
unsafe impl Send for Queued {}

impl Queued {
    pub fn new(info: SigInfo) -> Box<Self> {
        Box::new(Self { link: LinkedListLink::new(), info })
    }

    pub fn signal(&self) -> u32 {
        self.info.signal as u32
    }

    pub fn info(&self) -> &SigInfo {
        &self.info
    }
}

intrusive_adapter!(QueuedAdapter = Box<Queued>: Queued { link => LinkedListLink });

/// Pending signals in the order in which they came. Of the standard signals one each, of the real-time ones all.
pub struct Pending {
    set: SigSet,
    queue: LinkedList<QueuedAdapter>,
    length: usize,
}

// SAFETY: it owns its nodes.
unsafe impl Send for Pending {}

impl Pending {
    pub const fn new() -> Self {
        Self { set: SigSet::EMPTY, queue: LinkedList::new(QueuedAdapter::NEW), length: 0 }
    }

    /// The signals that are pending.
    pub fn set(&self) -> SigSet {
        self.set
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Adds one; gives it back when a standard signal is pending already.
    pub fn add(&mut self, queued: Box<Queued>) -> Option<Box<Queued>> {
        let signal = queued.signal();
        if signal < SIGRTMIN && self.set.contains(signal) {
            return Some(queued);
        }
        self.set = self.set.with(signal);
        self.length += 1;
        self.queue.push_back(queued);
        None
    }

    /// Which signal of those in `wanted` comes first: synchronous ones, then by number.
    pub fn next(&self, wanted: SigSet) -> Option<u32> {
        let candidates = self.set.intersection(wanted);
        let synchronous = candidates.intersection(SigSet::SYNCHRONOUS);
        let from = if synchronous.is_empty() { candidates } else { synchronous };
        (!from.is_empty()).then(|| from.0.trailing_zeros() + 1)
    }

    /// Takes the oldest entry of a pending signal.
    pub fn take(&mut self, signal: u32) -> Option<Box<Queued>> {
        if !self.set.contains(signal) {
            return None;
        }
        let mut taken = None;
        let mut more = false;
        let mut cursor = self.queue.front_mut();
        while let Some(queued) = cursor.get() {
            if queued.signal() != signal {
                cursor.move_next();
            } else if taken.is_none() {
                taken = cursor.remove();
            } else {
                more = true;
                break;
            }
        }
        if !more {
            self.set = self.set.without(SigSet::of(&[signal]));
        }
        self.length -= usize::from(taken.is_some());
        taken
    }

    /// Moves all entries of the signals in `which` to `removed`, which is dropped without locks.
    pub fn remove(&mut self, which: SigSet, removed: &mut Pending) {
        let mut left = self.set.intersection(which);
        while !left.is_empty() {
            let signal = left.0.trailing_zeros() + 1;
            match self.take(signal) {
                Some(queued) => {
                    removed.length += 1;
                    removed.queue.push_back(queued);
                }
                None => left = left.without(SigSet::of(&[signal])),
            }
        }
    }
}

impl core::default::Default for Pending {
    fn default() -> Self {
        Self::new()
    }
}
