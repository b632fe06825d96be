//! The messages in a queue, by arrival and by type.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use summary_tree::{Entry, SummaryTree};

use super::{BYTES, MESSAGES};
use crate::errno::{Errno, Result};
use crate::memory::{fallible, reserve};
use crate::sched;

/// A message.
pub struct Message {
    /// Its type, greater than 0.
    pub kind: i64,
    pub body: Vec<u8>,
}

impl Message {
    /// Bytes of it, without the type.
    pub fn len(&self) -> usize {
        self.body.len()
    }

    /// A copy.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self { kind: self.kind, body: fallible::copy_of(&self.body)? })
    }
}

/// Which message a receiver wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The first.
    Any,
    /// The first of this type.
    Equal(i64),
    /// The first of another type: `MSG_EXCEPT`.
    NotEqual(i64),
    /// The first of the lowest type, if that is at most this one.
    LowestTo(i64),
}

type InOrder = SummaryTree<u64, Option<Message>, ()>;
type ByType = SummaryTree<(i64, u64), (), ()>;

/// A message with its places in a queue. Who makes room lets in all that fit, thousands perhaps: that must not take memory.
pub struct Parcel {
    message: Message,
    in_order: Entry<u64, Option<Message>, ()>,
    by_type: Entry<(i64, u64), (), ()>,
}

impl Parcel {
    /// Takes the memory for the places.
    pub fn new(message: Message) -> Result<Self> {
        reserve::ask_lasting(message.len() + size_of::<Self>())?;
        Ok(Self {
            message,
            in_order: Entry::try_new(0, None).map_err(|_| Errno::ENOMEM)?,
            by_type: Entry::try_new((0, 0), ()).map_err(|_| Errno::ENOMEM)?,
        })
    }

    /// The message, to look at.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The message, which needs no place.
    pub fn into_message(self) -> Message {
        self.message
    }
}

/// The messages in a queue.
#[derive(Default)]
pub struct Messages {
    next: u64,
    in_order: InOrder,
    by_type: ByType,
    bytes: usize,
}

impl Messages {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.in_order.len()
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds one at the end.
    pub fn push(&mut self, parcel: Parcel) {
        let Parcel { message, mut in_order, mut by_type } = parcel;
        let number = self.next;
        self.next += 1;
        // Relaxed: statistics.
        MESSAGES.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(message.len() as u64, Ordering::Relaxed);
        self.bytes += message.len();
        by_type.change(|key, ()| *key = (message.kind, number));
        in_order.change(|key, value| {
            *key = number;
            *value = Some(message);
        });
        // Each number is new.
        let _ = self.by_type.insert_entry(by_type);
        let _ = self.in_order.insert_entry(in_order);
    }

    /// The number of the message that is selected.
    pub fn find(&self, selection: Selection) -> Option<u64> {
        match selection {
            Selection::Any => self.in_order.find_from(&0, |number, _| Some(*number)),
            Selection::Equal(kind) => {
                let first = self.by_type.find_from(&(kind, 0), |key, ()| Some(*key));
                first.filter(|(found, _)| *found == kind).map(|(_, number)| number)
            }
            // As many steps as there are messages of the type in front: the queue's limit at most.
            Selection::NotEqual(kind) => {
                let mut steps = Steps::default();
                self.in_order.find_from(&0, |number, message| {
                    steps.count();
                    message.as_ref().is_some_and(|message| message.kind != kind).then_some(*number)
                })
            }
            Selection::LowestTo(most) => {
                let first = self.by_type.find_from(&(i64::MIN, 0), |key, ()| Some(*key));
                first.filter(|(kind, _)| *kind <= most).map(|(_, number)| number)
            }
        }
    }

    /// The length of a message.
    pub fn len_of(&self, number: u64) -> usize {
        self.in_order.get(&number).and_then(Option::as_ref).map_or(0, Message::len)
    }

    /// Takes a message out.
    pub fn take(&mut self, number: u64) -> Option<Message> {
        let message = self.in_order.remove(&number)??;
        self.by_type.remove(&(message.kind, number));
        self.bytes -= message.len();
        forget(1, message.len());
        Some(message)
    }

    /// The message at a place, counted from 0 in the order of arrival.
    pub fn at(&self, place: usize) -> Option<&Message> {
        let mut left = place;
        let mut steps = Steps::default();
        let found = self.in_order.find_from(&0, |_, message| {
            steps.count();
            let found = left == 0;
            left = left.saturating_sub(1);
            found.then_some(message)
        });
        found.and_then(Option::as_ref)
    }
}

/// Messages that are looked at, in the sleeping lock of their queue: other threads run in between.
#[derive(Default)]
struct Steps(u32);

impl Steps {
    fn count(&mut self) {
        self.0 += 1;
        if self.0.is_multiple_of(64) {
            sched::cond_resched();
        }
    }
}

fn forget(count: usize, bytes: usize) {
    // Relaxed: statistics.
    MESSAGES.fetch_sub(count as u64, Ordering::Relaxed);
    BYTES.fetch_sub(bytes as u64, Ordering::Relaxed);
}

impl Drop for Messages {
    fn drop(&mut self) {
        while let Some(number) = self.find(Selection::Any) {
            drop(self.take(number));
            if number.is_multiple_of(16) {
                sched::cond_resched();
            }
        }
    }
}
