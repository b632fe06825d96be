//! Advisory locks: flock(2), and the record locks of fcntl(2).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use super::records::Records;
use crate::errno::{Errno, Result};
use crate::memory::{self, Pressure};
use crate::process::{self, Pid};
use crate::sync::{Mutex, SpinLock, WaitQueue};

/// Who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A process, by its descriptor table: the classic record lock.
    Table(u64),
    /// An open file: `F_OFD_SETLK`.
    OpenFile(u64),
}

impl Owner {
    /// Below and above all others.
    pub(super) const FIRST: Self = Self::Table(0);
    pub(super) const LAST: Self = Self::OpenFile(u64::MAX);
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
    pub(super) fn conflicts(&self, other: &RecordLock) -> bool {
        self.owner != other.owner
            && (self.exclusive || other.exclusive)
            && self.start <= other.end
            && other.start <= self.end
    }
}

#[derive(Default)]
struct Held {
    records: Records,
    /// The open files with a flock.
    whole: BTreeSet<u64>,
    /// The one whose flock is exclusive: then it is the only one.
    exclusive: Option<u64>,
}

impl Held {
    /// The kind of an open file's flock: is it exclusive?
    fn whole_of(&self, file: u64) -> Option<bool> {
        self.whole.contains(&file).then_some(self.exclusive == Some(file))
    }

    /// Gives `file` a flock, if no other is in the way.
    fn take_whole(&mut self, file: u64, exclusive: bool) -> bool {
        let others = self.whole.len() > usize::from(self.whole.contains(&file));
        if others && (exclusive || self.exclusive.is_some()) {
            return false;
        }
        self.whole.insert(file);
        self.exclusive = exclusive.then_some(file);
        true
    }

    /// True when there was one.
    fn drop_whole(&mut self, file: u64) -> bool {
        if self.exclusive == Some(file) {
            self.exclusive = None;
        }
        self.whole.remove(&file)
    }
}

struct State {
    held: Mutex<Held>,
    released: WaitQueue,
}

/// The advisory locks of one inode; empty ones cost a pointer.
pub struct LockTable {
    state: SpinLock<Option<Arc<State>>>,
    /// Set once a lock was ever taken: a close looks no further before.
    used: AtomicBool,
}

/// Waits of processes for record locks: who waits for whom. A cycle is a deadlock, and is not let come about. So only waits that
/// were checked are here: none of open files.
/// Threads of one process wait each for itself.
static WAITING: Mutex<BTreeMap<(Owner, Pid), Owner>> = Mutex::new(BTreeMap::new());

/// Notes that a process is going to wait for `blocker`. `EDEADLK` when that waits for the process, itself or by way of others.
fn note_wait(owner: Owner, thread: Pid, blocker: Owner) -> Result<()> {
    /// Chains longer than this are not looked through: others wait for it.
    const LONGEST: usize = 100;
    let mut waiting = WAITING.lock();
    let mut at = blocker;
    for _ in 0..LONGEST {
        // As Linux: of a process whose threads wait for several the first is asked.
        match waiting.range((at, 0)..=(at, Pid::MAX)).next() {
            Some((_, next)) if *next == owner => return Err(Errno::EDEADLK),
            Some((_, next)) => at = *next,
            None => break,
        }
    }
    waiting.insert((owner, thread), blocker);
    Ok(())
}

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
        if let Some(state) = self.existing() {
            return state;
        }
        let fresh = Arc::new(State { held: Mutex::new(Held::default()), released: WaitQueue::new() });
        let mut state = self.state.lock();
        self.used.store(true, Ordering::Release);
        state.get_or_insert(fresh).clone()
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
        held.records.conflict(wanted)
    }

    /// The first lock of `wanted`'s owner in its range.
    pub fn own(&self, wanted: &RecordLock) -> Option<RecordLock> {
        let state = self.existing()?;
        let held = state.held.lock();
        held.records.own(wanted)
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
            if let Some(blocker) = held.records.conflict(&wanted) {
                return Some(Err(blocker.owner));
            }
            held.records.charge(wanted.owner, || process::current().process.charges.add(0));
            let weakened = held.records.replace(&wanted, true);
            drop(held);
            if weakened {
                state.released.wake_all();
            }
            Some(Ok(()))
        };
        loop {
            let blocker = match attempt() {
                Some(Err(blocker)) => blocker,
                _ => return Ok(()),
            };
            if !wait {
                return Err(Errno::EAGAIN);
            }
            // Only classic locks are checked: an open file may be used by threads that do not wait.
            let is_checked = matches!(wanted.owner, Owner::Table(_));
            if is_checked {
                note_wait(wanted.owner, process::current().tid(), blocker)?;
            }
            let result = state.released.wait_event(None, || {
                let held = state.held.lock();
                held.records.conflict(&wanted).is_none_or(|lock| lock.owner != blocker).then_some(())
            });
            if is_checked {
                WAITING.lock().remove(&(wanted.owner, process::current().tid()));
            }
            result.map_err(|_| Errno::ERESTARTSYS)?;
        }
    }

    /// Gives up what `owner` holds from `start` to `end`.
    pub fn unlock_record(&self, owner: Owner, start: u64, end: u64) {
        let Some(state) = self.existing() else { return };
        let range = RecordLock { owner, exclusive: false, start, end, pid: 0 };
        let changed = state.held.lock().records.replace(&range, false);
        if changed {
            state.released.wake_all();
        }
    }

    /// flock(2) for the open file `file`; one that it has is converted.
    pub fn lock_whole(&self, file: u64, exclusive: bool, wait: bool) -> Result<()> {
        let state = self.state();
        let attempt = || state.held.lock().take_whole(file, exclusive).then_some(());
        // As Linux: a conversion first gives up the old lock, so that two who convert do not wait for each
        // other.
        let had = state.held.lock().whole_of(file);
        if had == Some(exclusive) {
            return Ok(());
        }
        if had.is_some() {
            self.unlock_whole(file);
        }
        if wait {
            state.released.wait_event(None, attempt).map_err(|_| Errno::ERESTARTSYS)
        } else {
            attempt().ok_or(Errno::EAGAIN)
        }
    }

    /// Gives up the flock of an open file.
    pub fn unlock_whole(&self, file: u64) {
        let Some(state) = self.existing() else { return };
        let changed = state.held.lock().drop_whole(file);
        if changed {
            state.released.wake_all();
        }
    }

    /// The last reference to an open file went.
    pub(super) fn file_released(&self, file: u64) {
        if self.used.load(Ordering::Acquire) {
            self.unlock_whole(file);
            self.unlock_record(Owner::OpenFile(file), 0, u64::MAX);
        }
    }

    /// A descriptor for the file was closed in that table.
    pub(super) fn table_closed(&self, table: u64) {
        if self.used.load(Ordering::Acquire) {
            self.unlock_record(Owner::Table(table), 0, u64::MAX);
        }
    }
}
