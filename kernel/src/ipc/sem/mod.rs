//! System V semaphores: semget(2), semop(2), semctl(2).

mod control;
mod operation;
mod undo;
mod waiting;

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use self::undo::Undo;
use self::waiting::Waiting;
use super::ids::{Limits, Object};
use super::permissions::Permissions;
use crate::errno::{Errno, Result};
use crate::memory::{fallible, reserve};
use crate::namespaces::ipc::{Home, here};
use crate::process::Pid;
use crate::sync::{Mutex, WaitError};

pub use control::{Status, list};
pub use operation::Operation;
pub use undo::UndoList;

/// Largest value of a semaphore, and largest adjustment at a process's end.
pub const MAX_VALUE: i32 = 32767;

/// `kernel.sem`: semaphores in a set, in the system, operations in a call, sets in the system.
pub struct Settings {
    pub in_set: AtomicU32,
    pub in_system: AtomicU32,
    pub operations: AtomicU32,
    pub sets: AtomicUsize,
}

/// The settings.
pub static SETTINGS: Settings = Settings {
    in_set: AtomicU32::new(32000),
    in_system: AtomicU32::new(1_024_000_000),
    operations: AtomicU32::new(500),
    sets: AtomicUsize::new(32000),
};

#[derive(Clone, Copy)]
struct Semaphore {
    value: u16,
    /// The process that changed it last.
    pid: Pid,
}

/// What the lock of a set guards.
struct State {
    permissions: Permissions,
    operated_at: i64,
    changed_at: i64,
    semaphores: Vec<Semaphore>,
    waiting: Waiting,
    /// What processes' ends undo, by the number of their list.
    undos: BTreeMap<u64, Undo>,
    /// Taken out of its namespace: whoever has found it before gets `EIDRM`.
    removed: bool,
}

/// A set of semaphores.
pub struct Set {
    id: i32,
    size: usize,
    home: Home,
    state: Mutex<State>,
}

impl Object for Set {
    fn id(&self) -> i32 {
        self.id
    }

    fn permissions(&self) -> Permissions {
        self.state.lock().permissions
    }

    fn weight(&self) -> u64 {
        self.size as u64
    }

    fn suits(&self, size: u64) -> Result<()> {
        if size > self.size as u64 { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

/// semget(2).
pub fn get(key: i32, count: i32, flags: u32) -> Result<i32> {
    // Relaxed, as all of these: settings of their own.
    let most = SETTINGS.in_set.load(Ordering::Relaxed);
    let count = u32::try_from(count).ok().filter(|count| *count <= most).ok_or(Errno::EINVAL)?;
    let limits = || Limits {
        objects: SETTINGS.sets.load(Ordering::Relaxed),
        weight: SETTINGS.in_system.load(Ordering::Relaxed).into(),
    };
    here().sets.get(key, count.into(), flags, limits, || {
        if count == 0 {
            return Err(Errno::EINVAL);
        }
        if here().sets.totals().2 + u64::from(count) > limits().weight {
            return Err(Errno::ENOSPC);
        }
        let size = count as usize;
        reserve::ask_lasting(size * size_of::<Semaphore>())?;
        let semaphores = fallible::filled(Semaphore { value: 0, pid: 0 }, size)?;
        let state = State {
            permissions: Permissions::new(key, flags),
            operated_at: 0,
            changed_at: super::now(),
            semaphores,
            waiting: Waiting::default(),
            undos: BTreeMap::new(),
            removed: false,
        };
        Ok((u64::from(count), move |id| Set { id, size, home: Home::current(), state: Mutex::new(state) }))
    })
}

/// semop(2), semtimedop(2): all operations or none. `deadline` is in monotonic nanoseconds.
pub fn operate(id: i32, operations: Vec<Operation>, deadline: Option<u64>) -> Result<()> {
    if operations.is_empty() || id < 0 {
        return Err(Errno::EINVAL);
    }
    let undone = operations.iter().any(Operation::is_undone);
    let set = here().sets.by_id(id)?;
    let changes = operations.iter().any(|operation| operation.change != 0);
    let check = |state: &State| -> Result<()> {
        if state.removed {
            return Err(Errno::EIDRM);
        }
        if operations.iter().any(|operation| usize::from(operation.semaphore) >= set.size) {
            return Err(Errno::EFBIG);
        }
        state.permissions.check(if changes { super::permissions::WRITE } else { super::permissions::READ })
    };
    // Who may not use the set leaves nothing in it, either.
    let undo = if undone {
        check(&set.state.lock())?;
        Some(undo::prepare(&set)?)
    } else {
        None
    };
    let mut state = set.state.lock();
    check(&state)?;
    let pid = super::current_pid();
    let blocked = match state.attempt(&operations, pid, undo) {
        Ok(None) => {
            state.operated_at = super::now();
            let changed = operations.iter().filter(|operation| operation.change != 0);
            state.settle(changed.map(|operation| operation.semaphore));
            return Ok(());
        }
        Ok(Some(blocked)) => blocked,
        Err(error) => return Err(error),
    };
    if operations[blocked.operation].is_nonblocking() {
        return Err(Errno::EAGAIN);
    }
    let sleeper = Arc::new(waiting::Sleeper::new(operations, pid, undo));
    let ticket = state.waiting.add(sleeper.clone(), blocked, waiting::Places::new()?)?;
    drop(state);
    sleeper.queue.wait_event(deadline, || sleeper.outcome()).unwrap_or_else(|error| {
        let mut state = set.state.lock();
        // Somebody may have completed it meanwhile.
        if let Some(outcome) = sleeper.outcome() {
            return outcome;
        }
        state.waiting.remove(ticket);
        Err(match error {
            WaitError::Interrupted => Errno::EINTR,
            WaitError::TimedOut => Errno::EAGAIN,
        })
    })
}

/// A result that is there once it is: 1 for not yet, 0 for success, else the error.
struct Outcome(AtomicI32);

impl Outcome {
    const fn none() -> Self {
        Self(AtomicI32::new(1))
    }

    fn get(&self) -> Option<Result<()>> {
        // Acquire pairs with the Release in `set`: who sees the result sees what was done.
        match self.0.load(Ordering::Acquire) {
            1 => None,
            0 => Some(Ok(())),
            error => Some(Err(Errno::new(-error))),
        }
    }

    fn set(&self, result: Result<()>) {
        let value = result.map_or_else(|error| -error.into_raw(), |()| 0);
        // Release: see `get`.
        self.0.store(value, Ordering::Release);
    }
}
