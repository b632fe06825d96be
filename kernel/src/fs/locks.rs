//! Advisory locks: flock(2), and the record locks of fcntl(2).

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::errno::{Errno, Result};
use crate::memory::fallible::{self, TryVec};
use crate::memory::{self, Pressure};
use crate::sync::{SpinLock, WaitQueue};

/// Who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A process, by its descriptor table: the classic record lock.
    Table(u64),
    /// An open file: `F_OFD_SETLK`.
    OpenFile(u64),
}

/// A record lock.
#[derive(Clone, Copy, Debug)]
pub struct RecordLock {
    /// Who holds it.
    pub owner: Owner,
    /// Excludes all others, not only writers.
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Last byte; `u64::MAX` for up to the end however far that moves.
    pub end: u64,
    /// The process, for `F_GETLK`; -1 for the lock of an open file.
    pub pid: i32,
}

impl RecordLock {
    fn conflicts(&self, other: &RecordLock) -> bool {
        self.owner != other.owner
            && (self.exclusive || other.exclusive)
            && self.start <= other.end
            && other.start <= self.end
    }
}

#[derive(Default)]
struct Held {
    records: Vec<RecordLock>,
    /// The open files with a flock, and whether it is exclusive.
    whole: Vec<(u64, bool)>,
}

/// Why a lock was not taken.
enum Refused {
    By(Owner),
    NoRoom(Errno),
}

struct State {
    held: SpinLock<Held>,
    released: WaitQueue,
}

/// The advisory locks of one inode; empty ones cost a pointer.
pub struct LockTable {
    state: SpinLock<Option<Arc<State>>>,
    /// Set once a lock was ever taken: a close looks no further before.
    used: AtomicBool,
}

/// Waits of processes for record locks: who waits for whom. A cycle is a deadlock.
static WAITING: SpinLock<BTreeMap<Owner, Owner>> = SpinLock::new(BTreeMap::new());

impl Default for LockTable {
    fn default() -> Self {
        Self::new()
    }
}

impl LockTable {
    /// No locks.
    pub const fn new() -> Self {
        Self { state: SpinLock::new(None), used: AtomicBool::new(false) }
    }

    fn state(&self) -> Arc<State> {
        let mut state = self.state.lock();
        let fresh = || Arc::new(State { held: SpinLock::new(Held::default()), released: WaitQueue::new() });
        self.used.store(true, Ordering::Release);
        state.get_or_insert_with(fresh).clone()
    }

    fn existing(&self) -> Option<Arc<State>> {
        if !self.used.load(Ordering::Acquire) {
            return None;
        }
        self.state.lock().clone()
    }

    /// The first lock that keeps `wanted` from being taken.
    pub fn conflict(&self, wanted: &RecordLock) -> Option<RecordLock> {
        let state = self.existing()?;
        let held = state.held.lock();
        held.records.iter().find(|l| l.conflicts(wanted)).copied()
    }

    /// Takes `wanted`, in place of what its owner holds in the range. Without `wait`, `EAGAIN` when another
    /// holds a conflicting lock; with it, `EDEADLK` when waiting could never end.
    pub fn lock_record(&self, wanted: RecordLock, wait: bool) -> Result<()> {
        // A process may hold as many locks as it likes while there is memory.
        if memory::pressure() != Pressure::None {
            return Err(Errno::ENOLCK);
        }
        let state = self.state();
        let attempt = || {
            let mut held = state.held.lock();
            if let Some(blocker) = held.records.iter().find(|l| l.conflicts(&wanted)) {
                return Some(Err(Refused::By(blocker.owner)));
            }
            let weakened = match replace_range(&mut held.records, &wanted, true) {
                Ok(weakened) => weakened,
                Err(error) => return Some(Err(Refused::NoRoom(error))),
            };
            drop(held);
            if weakened {
                state.released.wake_all();
            }
            Some(Ok(()))
        };
        loop {
            let blocker = match attempt() {
                Some(Err(Refused::By(blocker))) => blocker,
                Some(Err(Refused::NoRoom(error))) => return Err(error),
                _ => return Ok(()),
            };
            if !wait {
                return Err(Errno::EAGAIN);
            }
            {
                let mut waiting = WAITING.lock();
                // Only classic locks are checked: an open file may be used by threads that do not wait.
                if matches!(wanted.owner, Owner::Table(_)) {
                    let mut at = blocker;
                    while let Some(next) = waiting.get(&at) {
                        if *next == wanted.owner {
                            return Err(Errno::EDEADLK);
                        }
                        at = *next;
                    }
                }
                waiting.insert(wanted.owner, blocker);
            }
            let result = state.released.wait_event(None, || {
                let held = state.held.lock();
                (!held.records.iter().any(|l| l.owner == blocker && l.conflicts(&wanted))).then_some(())
            });
            WAITING.lock().remove(&wanted.owner);
            result.map_err(|_| Errno::ERESTARTSYS)?;
        }
    }

    /// Gives up what `owner` holds from `start` to `end`.
    pub fn unlock_record(&self, owner: Owner, start: u64, end: u64) -> Result<()> {
        let Some(state) = self.existing() else { return Ok(()) };
        let range = RecordLock { owner, exclusive: false, start, end, pid: 0 };
        let changed = replace_range(&mut state.held.lock().records, &range, false)?;
        if changed {
            state.released.wake_all();
        }
        Ok(())
    }

    /// flock(2) for the open file `file`; one that it has is converted.
    pub fn lock_whole(&self, file: u64, exclusive: bool, wait: bool) -> Result<()> {
        let state = self.state();
        let attempt = || {
            let mut held = state.held.lock();
            if held.whole.iter().any(|(owner, other)| *owner != file && (exclusive || *other)) {
                return None;
            }
            held.whole.retain(|(owner, _)| *owner != file);
            Some(held.whole.try_push((file, exclusive)).map_err(|_| Errno::ENOLCK))
        };
        // As Linux: a conversion first gives up the old lock, so that two who convert do not wait for each
        // other.
        let had = state.held.lock().whole.iter().find(|(owner, _)| *owner == file).map(|(_, kind)| *kind);
        if had == Some(exclusive) {
            return Ok(());
        }
        if had.is_some() {
            self.unlock_whole(file);
        }
        if wait {
            state.released.wait_event(None, attempt).map_err(|_| Errno::ERESTARTSYS)?
        } else {
            attempt().ok_or(Errno::EAGAIN)?
        }
    }

    /// Gives up the flock of an open file.
    pub fn unlock_whole(&self, file: u64) {
        let Some(state) = self.existing() else { return };
        let mut held = state.held.lock();
        let before = held.whole.len();
        held.whole.retain(|(owner, _)| *owner != file);
        let changed = held.whole.len() != before;
        drop(held);
        if changed {
            state.released.wake_all();
        }
    }

    /// The last reference to an open file went.
    pub(super) fn file_released(&self, file: u64) {
        if self.used.load(Ordering::Acquire) {
            self.unlock_whole(file);
            // The whole file: nothing is left that could need room.
            let _ = self.unlock_record(Owner::OpenFile(file), 0, u64::MAX);
        }
    }

    /// A descriptor for the file was closed in that table.
    pub(super) fn table_closed(&self, table: u64) {
        if self.used.load(Ordering::Acquire) {
            // As above.
            let _ = self.unlock_record(Owner::Table(table), 0, u64::MAX);
        }
    }
}

/// Cuts `range` out of what its owner holds, and with `take` puts it in. True when others may have a chance
/// now. `ENOLCK` without memory for the pieces; not for the whole file, which leaves none.
fn replace_range(records: &mut Vec<RecordLock>, range: &RecordLock, take: bool) -> Result<bool> {
    let whole = range.start == 0 && range.end == u64::MAX;
    if take || !whole {
        // The new lock, and what is left behind it of one that reaches over both of its ends.
        fallible::reserve(records, 2).map_err(|_| Errno::ENOLCK)?;
    }
    let mut new = *range;
    let mut behind = None;
    let mut changed = false;
    records.retain_mut(|lock| {
        let adjacent = |a: u64, b: u64| a != u64::MAX && a + 1 == b;
        if lock.owner != range.owner {
            return true;
        }
        let same = take && lock.exclusive == range.exclusive;
        if lock.end < range.start || lock.start > range.end {
            // Neighbours of the same kind become one lock.
            if same && adjacent(lock.end, new.start) {
                new.start = lock.start;
            } else if same && adjacent(new.end, lock.start) {
                new.end = lock.end;
            } else {
                return true;
            }
            return false;
        }
        if same {
            new.start = new.start.min(lock.start);
            new.end = new.end.max(lock.end);
            return false;
        }
        changed = true;
        let (before, after) = (lock.start < range.start, lock.end > range.end);
        if after {
            behind = Some(RecordLock { start: range.end + 1, ..*lock });
        }
        if before {
            lock.end = range.start - 1;
        }
        before
    });
    records.extend(behind);
    if take {
        records.push(new);
    }
    records.sort_unstable_by_key(|l| (l.start, l.owner));
    Ok(changed)
}
