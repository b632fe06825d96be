//! The messages in a queue, by arrival and by type.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::{BYTES, MESSAGES};
use crate::errno::Result;
use crate::memory::fallible;

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

/// The messages in a queue.
#[derive(Default)]
pub struct Messages {
    next: u64,
    in_order: BTreeMap<u64, Message>,
    by_type: BTreeSet<(i64, u64)>,
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
    pub fn push(&mut self, message: Message) {
        // Relaxed: statistics.
        MESSAGES.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(message.len() as u64, Ordering::Relaxed);
        self.bytes += message.len();
        self.by_type.insert((message.kind, self.next));
        self.in_order.insert(self.next, message);
        self.next += 1;
    }

    /// The number of the message that is selected.
    pub fn find(&self, selection: Selection) -> Option<u64> {
        match selection {
            Selection::Any => self.in_order.keys().next().copied(),
            Selection::Equal(kind) => {
                self.by_type.range((kind, 0)..=(kind, u64::MAX)).next().map(|(_, number)| *number)
            }
            // As many steps as there are messages of the type in front: the queue's limit at most.
            Selection::NotEqual(kind) => {
                self.in_order.iter().find(|(_, message)| message.kind != kind).map(|(number, _)| *number)
            }
            Selection::LowestTo(most) => {
                self.by_type.first().filter(|(kind, _)| *kind <= most).map(|(_, number)| *number)
            }
        }
    }

    /// The length of a message.
    pub fn len_of(&self, number: u64) -> usize {
        self.in_order.get(&number).map_or(0, Message::len)
    }

    /// Takes a message out.
    pub fn take(&mut self, number: u64) -> Option<Message> {
        let message = self.in_order.remove(&number)?;
        self.by_type.remove(&(message.kind, number));
        self.bytes -= message.len();
        forget(1, message.len());
        Some(message)
    }

    /// The message at a place, counted from 0 in the order of arrival.
    pub fn at(&self, place: usize) -> Option<&Message> {
        self.in_order.values().nth(place)
    }
}

fn forget(count: usize, bytes: usize) {
    // Relaxed: statistics.
    MESSAGES.fetch_sub(count as u64, Ordering::Relaxed);
    BYTES.fetch_sub(bytes as u64, Ordering::Relaxed);
}

impl Drop for Messages {
    fn drop(&mut self) {
        forget(self.len(), self.bytes);
    }
}
