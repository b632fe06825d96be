//! Record locks of one file: who holds which bytes, found by owner and by place.

use alloc::collections::BTreeMap;

use summary_tree::{Summary, SummaryTree};

use super::locks::{Owner, RecordLock};
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
}

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
        self.owned.insert((lock.owner, lock.start), lock.end);
        self.placed.insert((lock.start, lock.owner), lock);
    }

    fn take(&mut self, owner: Owner, start: u64) -> Option<RecordLock> {
        self.owned.remove(&(owner, start));
        self.placed.remove(&(start, owner))
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
        }
        changed
    }
}
