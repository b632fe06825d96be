//! Memory for signals that the kernel itself sends while the tree's lock is held: set aside before the lock is taken.
//!
//! Under a spin lock nothing is allocated. So whoever may have to send under the tree's lock says so when it takes it
//! ([`crate::process::tree::lock_to_send`]), for how many signals at most, and then finds an entry for each. What was not needed stays
//! for the next one.

use core::array;

use alloc::sync::Arc;

use super::SigInfo;
use super::pending::Queued;

/// The most that may be asked for: a child whose parent ends may want to hear of it by each signal there is.
pub const MOST: usize = 96;
/// How many are made at once when there are not enough.
const BATCH: usize = 8;

/// Entries that wait for a use. The tree's lock guards them.
pub struct Spares {
    entries: [Option<Arc<Queued>>; MOST + BATCH],
    count: usize,
}

/// Entries that were just made.
pub struct Fresh([Option<Arc<Queued>>; BATCH]);

impl Spares {
    pub const fn new() -> Self {
        Self { entries: [const { None }; MOST + BATCH], count: 0 }
    }

    /// Makes entries, without locks.
    pub fn make() -> Fresh {
        Fresh(array::from_fn(|_| Some(Queued::new(SigInfo::kernel(0)))))
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds what there is room for; the others come back.
    #[must_use]
    pub fn add(&mut self, mut fresh: Fresh) -> Fresh {
        for queued in &mut fresh.0 {
            let Some(slot) = self.entries.get_mut(self.count) else { break };
            *slot = queued.take();
            self.count += 1;
        }
        fresh
    }

    /// An entry that says this.
    pub fn take(&mut self, info: SigInfo) -> Option<Arc<Queued>> {
        let last = self.count.checked_sub(1)?;
        let mut queued = self.entries[last].take()?;
        self.count = last;
        Arc::get_mut(&mut queued)?.set_info(info);
        Some(queued)
    }

    /// Keeps one that was not pending for long: it comes back if there is no place for it, or if somebody else has it.
    pub fn put(&mut self, mut queued: Arc<Queued>) -> Option<Arc<Queued>> {
        if self.count == MOST + BATCH || !Arc::get_mut(&mut queued).is_some_and(|queued| queued.is_plain()) {
            return Some(queued);
        }
        self.entries[self.count] = Some(queued);
        self.count += 1;
        None
    }
}
