//! Timers that have gone off and whose functions are still to run: the users take turns.
//!
//! One thread runs the functions of all. Of one user's ten thousand timers that are due it runs one, and then one of the next user's: how
//! long a timer waits depends on how many users have some, and not on how many another user has.

use core::cell::UnsafeCell;

use alloc::sync::Arc;
use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeAtomicLink, intrusive_adapter};

use super::Timer;
use crate::process;

/// A timer's place among those that are due.
pub struct Place {
    link: RBTreeAtomicLink,
    /// The user who has made the timer.
    user: u32,
    /// Used under the lock around [`Due`].
    number: UnsafeCell<u64>,
}

// SAFETY: `number` is guarded as its comment says; the rest is atomic or immutable.
unsafe impl Sync for Place {}
// SAFETY: as above.
unsafe impl Send for Place {}

impl Place {
    /// Of a timer that the current thread makes.
    pub fn of_current() -> Self {
        Self::of(process::try_current().map_or(0, |thread| thread.process.uid_for_signals()))
    }

    pub fn of(user: u32) -> Self {
        Self { link: RBTreeAtomicLink::new(), user, number: UnsafeCell::new(0) }
    }
}

intrusive_adapter!(InTurn = Arc<Timer>: Timer { due.link => RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for InTurn {
    /// The user, and the order in which that one's went off.
    type Key = (u32, u64);

    fn get_key(&self, timer: &'a Timer) -> (u32, u64) {
        // SAFETY: the tree is inside the lock.
        (timer.due.user, unsafe { *timer.due.number.get() })
    }
}

/// All of them.
pub struct Due {
    timers: RBTree<InTurn>,
    next_number: u64,
    /// Whose turn was last.
    last_user: u32,
}

impl Due {
    pub const fn new() -> Self {
        Self { timers: RBTree::new(InTurn::NEW), next_number: 0, last_user: 0 }
    }

    /// Adds a timer. False if it is there already.
    pub fn push(&mut self, timer: Arc<Timer>) -> bool {
        if timer.due.link.is_linked() {
            return false;
        }
        // SAFETY: the timer is not in the tree, and `&mut self` is inside the lock.
        unsafe { *timer.due.number.get() = self.next_number };
        self.next_number += 1;
        self.timers.insert(timer);
        true
    }

    /// Takes the timer that has waited longest of the user whose turn it is.
    pub fn pop(&mut self) -> Option<Arc<Timer>> {
        let next = self.timers.lower_bound(Bound::Excluded(&(self.last_user, u64::MAX)));
        let first = if next.is_null() { self.timers.front() } else { next };
        let key = InTurn::NEW.get_key(first.get()?);
        self.last_user = key.0;
        self.timers.find_mut(&key).remove()
    }
}

/// A check at boot: one user's many timers do not hold up another's.
pub fn users_take_turns() {
    let mut due = Due::new();
    for user in [1, 1, 1, 1, 2, 1, 0, 1] {
        assert!(due.push(Timer::of_user(user)));
    }
    let turns = [(); 4].map(|()| due.pop().map(|timer| timer.due.user));
    assert_eq!(turns, [Some(1), Some(2), Some(0), Some(1)]);
    while due.pop().is_some() {}
}
