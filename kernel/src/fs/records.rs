//! Record locks of one file: who holds which bytes, found by owner and by place.

use alloc::collections::BTreeMap;

use summary_tree::{Summary, SummaryTree};

use super::locks::{Owner, RecordLock};
use crate::process::Charge;
use crate::sched;

/// The last bytes of some locks: of all, and of those that exclude everybody.
struct LastByte {
    any: Option<u64>,
    exclusive: Option<u64>,
}

impl Summary<(u64, Owner), RecordLock> for LastByte {
    fn of(_: &(u64, Owner), lock: &RecordLock) -> Self {
        Self { any: Some(lock.end), exclusive: lock.exclusive.then_some(lock.end) }
    }

    fn join(&mut self, other: &Self) {
        self.any = self.any.max(other.any);
        self.exclusive = self.exclusive.max(other.exclusive);
    }
}

/// The record locks that are held. An owner's do not overlap each other, and touch only where they differ in kind.
#[derive(Default)]
pub struct Records {
    /// The last byte of each, by owner and first byte.
    owned: BTreeMap<(Owner, u64), u64>,
    /// All of them, by first byte.
    placed: SummaryTree<(u64, Owner), RecordLock, LastByte>,
    /// What each owner's locks take, for the process that took the first of them.
    charges: BTreeMap<Owner, Charge>,
}

/// A lock with its places in both trees.
const LOCK_BYTES: usize = size_of::<RecordLock>() + 192;

impl Records {
    /// The first lock that keeps `wanted` from being taken.
    pub fn conflict(&self, wanted: &RecordLock) -> Option<RecordLock> {
        let reaches = |last: &LastByte| {
            let last = if wanted.exclusive { last.any } else { last.exclusive };
            last.is_some_and(|last| last >= wanted.start)
        };
        let conflicts = |_: &_, lock: &RecordLock| lock.conflicts(wanted).then_some(*lock);
        // The owner that is the lowest: all that begin with `wanted`'s last byte are in.
        match wanted.end.checked_add(1) {
            Some(end) => self.placed.find_first(&(end, Owner::FIRST), reaches, conflicts),
            None => self.placed.find_first(&(u64::MAX, Owner::LAST), reaches, conflicts),
        }
    }

    fn add(&mut self, lock: RecordLock) {
        if let Some(charge) = self.charges.get_mut(&lock.owner) {
            charge.grow(LOCK_BYTES);
        }
        self.owned.insert((lock.owner, lock.start), lock.end);
        self.placed.insert((lock.start, lock.owner), lock);
    }

    fn take(&mut self, owner: Owner, start: u64) -> Option<RecordLock> {
        let lock = self.placed.remove(&(start, owner))?;
        self.owned.remove(&(owner, start));
        if let Some(charge) = self.charges.get_mut(&owner) {
            charge.shrink(LOCK_BYTES);
        }
        Some(lock)
    }

    /// From its first lock on what an owner has counts for a process.
    pub fn charge(&mut self, owner: Owner, charge: impl FnOnce() -> Charge) {
        self.charges.entry(owner).or_insert_with(charge);
    }

    /// Lets go of the count for an owner that has no lock.
    fn end_charge(&mut self, owner: Owner) {
        if self.charges.get(&owner).is_some_and(|charge| charge.bytes() == 0) {
            self.charges.remove(&owner);
        }
    }

    /// The first lock of `wanted`'s owner that has a byte of its range.
    pub fn own(&self, wanted: &RecordLock) -> Option<RecordLock> {
        let owner = wanted.owner;
        let covers = |(_, last): &(&(Owner, u64), &u64)| **last >= wanted.start;
        let before = self.owned.range((owner, 0)..=(owner, wanted.start)).next_back().filter(covers);
        let (key, _) =
            before.or_else(|| self.owned.range((owner, wanted.start)..=(owner, wanted.end)).next())?;
        self.placed.get(&(key.1, owner)).copied()
    }

    /// The owner's last lock that begins at `end` or before and has a byte from `start` on.
    fn last_of(&self, owner: Owner, start: u64, end: u64) -> Option<u64> {
        let (key, last) = self.owned.range((owner, 0)..=(owner, end)).next_back()?;
        (*last >= start).then_some(key.1)
    }

    /// Cuts `range` out of what its owner holds, and with `take` puts it in. True when others may have a chance now.
    pub fn replace(&mut self, range: &RecordLock, take: bool) -> bool {
        let owner = range.owner;
        let mut new = *range;
        let mut changed = false;
        // With the neighbours: those of the same kind become one lock with it.
        let (from, to) = (range.start.saturating_sub(1), range.end.saturating_add(1));
        let mut below = to;
        while let Some(start) = self.last_of(owner, from, below) {
            let Some(lock) = self.take(owner, start) else { break };
            // Whoever closes the file may have many.
            sched::cond_resched();
            let apart = lock.end < range.start || lock.start > range.end;
            if take && lock.exclusive == range.exclusive {
                new.start = new.start.min(lock.start);
                new.end = new.end.max(lock.end);
            } else if apart {
                self.add(lock);
            } else {
                changed = true;
                if lock.start < range.start {
                    self.add(RecordLock { end: range.start - 1, ..lock });
                }
                if lock.end > range.end {
                    self.add(RecordLock { start: range.end + 1, ..lock });
                }
            }
            match start.checked_sub(1) {
                Some(before) if before >= from => below = before,
                _ => break,
            }
        }
        if take {
            self.add(new);
        } else {
            self.end_charge(owner);
        }
        changed
    }
}
