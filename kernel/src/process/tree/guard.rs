//! The tree's lock, and what shows that it is held.
//!
//! The lock keeps interrupts off, because signals to groups come from interrupt handlers too (a timer, the terminal's ^C). Nothing is
//! allocated or freed under it: what leaves the tree is handed out and dropped after the lock.
//!
//! Who only looks takes it by [`look`]. A [`Guard`] is a [`Look`] that may change the tree; it keeps what signals have removed and whom they
//! woke until the lock is free. A function that needs the lock asks for `&Look` or `&mut Guard`.
//!
//! Lock order: tree, then a process's signals, then a thread's; run queues are innermost.

use core::cell::UnsafeCell;
use core::ops::Deref;

use alloc::sync::Arc;
use smallvec::SmallVec;

use super::{TREE, Tree};
use crate::process::Process;
use crate::signal::{Pending, Queued, Sent, SigInfo, Spares, spares};
use crate::sync::IrqLockGuard;

/// The tree's lock, held to look at something.
pub(crate) struct Look(IrqLockGuard<'static, Tree>);

/// The tree's lock, held to change something or to send signals.
pub(crate) struct Guard {
    look: Look,
    /// Signals that were sent under the lock have removed these. Behind the lock: they are dropped without it.
    dropped: Pending,
    /// How many more signals may be sent.
    sends: usize,
    events: Events,
}

/// Queues of processes that are to be woken once the lock is free: any number of threads and watchers may wait in each.
struct Events(SmallVec<[(Arc<Process>, Event); MOST_EVENTS]>);

const MOST_EVENTS: usize = 6;

/// Whom an event of a process concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Those who wait for its children.
    Child,
    /// Those who watch its signals.
    Signal,
}

impl Event {
    fn wake(self, process: &Process) {
        match self {
            Self::Child => process.child_events.wake_all(),
            Self::Signal => process.signals_changed.wake_all(),
        }
    }
}

impl Events {
    #[cold]
    fn wake(&mut self) {
        for (process, event) in self.0.drain(..) {
            event.wake(&process);
        }
    }
}

impl Drop for Events {
    #[inline]
    fn drop(&mut self) {
        if !self.0.is_empty() {
            self.wake();
        }
    }
}

/// Takes the tree's lock to look at something: nothing is set up for what is sent or woken.
#[inline]
#[track_caller]
pub(crate) fn look() -> Look {
    Look(TREE.lock())
}

/// Takes the tree's lock.
#[inline]
#[track_caller]
pub(crate) fn lock() -> Guard {
    look().into_guard(0)
}

/// Takes the tree's lock, under which the kernel will send up to `sends` signals of its own.
#[inline]
#[track_caller]
pub(crate) fn lock_to_send(sends: usize) -> Guard {
    debug_assert!(sends <= spares::MOST);
    let look = look();
    let look = if look.0.spares.count() >= sends { look } else { set_aside(look, sends) };
    look.into_guard(sends)
}

/// Sets aside what signals need. The lock is given back meanwhile.
#[cold]
#[track_caller]
fn set_aside(mut held: Look, sends: usize) -> Look {
    while held.0.spares.count() < sends {
        drop(held);
        let fresh = Spares::make();
        held = look();
        let left = held.0.spares.add(fresh);
        drop(held);
        drop(left);
        held = look();
    }
    held
}

impl Look {
    #[inline]
    fn into_guard(self, sends: usize) -> Guard {
        Guard { look: self, dropped: Pending::new(), sends, events: Events(SmallVec::new()) }
    }
}

impl Deref for Look {
    type Target = Tree;

    #[inline]
    fn deref(&self) -> &Tree {
        &self.0
    }
}

impl Deref for Guard {
    type Target = Look;

    #[inline]
    fn deref(&self) -> &Look {
        &self.look
    }
}

impl Guard {
    /// The tree, to be changed.
    #[inline]
    pub(super) fn tree(&mut self) -> &mut Tree {
        &mut self.look.0
    }

    /// Wakes those whom an event concerns, as soon as the lock is free.
    pub fn tell(&mut self, process: &Arc<Process>, event: Event) {
        let queue = match event {
            Event::Child => &process.child_events,
            Event::Signal => &process.signals_changed,
        };
        if queue.is_unused() {
            return;
        }
        let is_same = |of: &(Arc<Process>, Event)| of.1 == event && Arc::ptr_eq(&of.0, process);
        if self.events.0.iter().any(is_same) {
            return;
        }
        if self.events.0.len() < MOST_EVENTS {
            self.events.0.push((process.clone(), event));
        } else {
            // More than a hold is to have: at once, then.
            event.wake(process);
        }
    }

    /// How many signals may yet be sent under the lock.
    pub fn sends(&self) -> usize {
        self.sends
    }

    /// An entry for a signal of the kernel's own.
    pub fn take_spare(&mut self, info: SigInfo) -> Arc<Queued> {
        debug_assert!(self.sends > 0, "a signal is sent that nothing was set aside for");
        self.sends = self.sends.saturating_sub(1);
        self.tree().spares.take(info).unwrap_or_else(|| Queued::new(info))
    }

    /// Keeps what came of a signal until the lock is free.
    pub fn keep(&mut self, sent: Sent) {
        let (removed, leftover) = sent.into_parts();
        self.dropped.absorb(removed);
        if let Some(queued) = leftover.and_then(|queued| self.tree().spares.put(queued)) {
            self.dropped.keep(queued);
        }
    }
}

/// Data in a process or group that is guarded by the tree's lock: one who shows that the lock is held gets at it.
pub(crate) struct TreeCell<T>(UnsafeCell<T>);

// SAFETY: access needs the guard of the one lock; `&mut` access needs `&mut` of the guard.
unsafe impl<T: Send> Sync for TreeCell<T> {}

impl<T> TreeCell<T> {
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    #[inline]
    pub fn get<'a>(&'a self, _: &'a Look) -> &'a T {
        // SAFETY: the lock is held, and nobody has `&mut` of the guard meanwhile.
        unsafe { &*self.0.get() }
    }

    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub fn get_mut<'a>(&'a self, _: &'a mut Guard) -> &'a mut T {
        // SAFETY: the lock is held, and the guard is borrowed for as long as the result.
        unsafe { &mut *self.0.get() }
    }
}
