//! Arguments and environment of a program that is being loaded: any number of strings, as short as one likes.

use alloc::vec::Vec;

use crate::errno::Result;
use crate::memory::fallible::{self, TryVec};
use crate::process::Charge;
use crate::sched;

/// Strings between two chances for others to run.
const AT_ONCE: usize = 256;
/// What a string takes in a list beside its bytes. A list that grows has room for twice as many.
const HEADER: usize = 2 * size_of::<Vec<u8>>();
/// The heap's objects have multiples of this size.
const GRANULE: usize = 16;

/// A list of strings. Until the program is in place they count for the process by this alone.
pub struct StringList {
    /// In the place of the first of the others, once there are such.
    front: Vec<Vec<u8>>,
    strings: Vec<Vec<u8>>,
    charge: Charge,
}

impl StringList {
    /// An empty one, that counts where `charge` says.
    pub fn new(charge: Charge) -> Self {
        Self { front: Vec::new(), strings: Vec::new(), charge }
    }

    /// Adds one at the end.
    pub fn push(&mut self, string: Vec<u8>) -> Result<()> {
        self.charge.grow(HEADER + string.capacity().next_multiple_of(GRANULE));
        self.strings.try_push(string)
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.front.len() + self.strings.len() - self.skipped()
    }

    /// How many at the begin of `strings` count no more.
    fn skipped(&self) -> usize {
        usize::from(!self.front.is_empty() && !self.strings.is_empty())
    }

    /// A few strings in the place of the first one.
    pub fn replace_first(&mut self, mut by: Vec<Vec<u8>>) -> Result<()> {
        let rest = self.front.get_mut(1..).unwrap_or_default();
        fallible::reserve(&mut by, rest.len())?;
        by.extend(rest.iter_mut().map(core::mem::take));
        self.front = by;
        Ok(())
    }

    /// All of them. Others may run in between.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let strings = self.front.iter().chain(&self.strings[self.skipped()..]);
        giving_way(strings.map(Vec::as_slice))
    }
}

impl Drop for StringList {
    fn drop(&mut self) {
        while !self.strings.is_empty() {
            self.strings.truncate(self.strings.len().saturating_sub(AT_ONCE));
            sched::cond_resched();
        }
    }
}

/// The same items. Others may run in between.
pub fn giving_way<T>(items: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    items.enumerate().map(|(index, item)| {
        if index % AT_ONCE == AT_ONCE - 1 {
            sched::cond_resched();
        }
        item
    })
}
