//! Condition variables for owned futexes: FUTEX_WAIT_REQUEUE_PI and FUTEX_CMP_REQUEUE_PI.
//!
//! A thread waits for one word, and says which other word it wants to own when it goes on. Who signals moves it there, or gives it
//! the word at once when nobody owns it. So a broadcast wakes nobody who could not go on.

use core::ops::Range;

use alloc::sync::Arc;

use super::bucket::{BATCH, Taken, Waiter, next_ticket};
use super::ops::{Pair, Word, join, wake_threads};
use super::pi::{OWNER_DIED, TID_MASK, WAITERS, exchange, inherit};
use super::{bucket_of, key_of};
use crate::errno::{Errno, Result};
use crate::mm::{Key, uaccess};
use crate::process::{self, Thread};
use crate::sched::{self, Sleep};
use crate::sync::WaitError;
use crate::time::Deadline;

/// FUTEX_WAIT_REQUEUE_PI: waits for the word at `address` to be signalled, and then to own the one at `second`. The deadline is
/// for both.
pub fn wait_requeue_pi(
    address: usize,
    second: usize,
    shared: bool,
    expected: u32,
    deadline: Option<Deadline>,
) -> Result<usize> {
    if address == second {
        return Err(Errno::EINVAL);
    }
    let (to, key) = (key_of(second, shared)?, key_of(address, shared)?);
    if key == to {
        return Err(Errno::EINVAL);
    }
    let waiter = Waiter::to_own(key, to);
    join(&waiter, address, expected)?;
    match sched::sleep_to(Sleep::Interruptible, deadline, || waiter.is_woken() || waiter.inherits()) {
        _ if waiter.inherits() => inherit(&waiter, second, &to),
        Ok(()) => Ok(0),
        // The word was given to it at the last moment.
        Err(_) if !waiter.leave() => Ok(0),
        Err(WaitError::TimedOut) => Err(Errno::ETIMEDOUT),
        // It was signalled, so it cannot begin anew: the program looks at its condition, and takes the lock itself.
        Err(WaitError::Interrupted) if waiter.is_moved() => Err(Errno::EAGAIN),
        Err(WaitError::Interrupted) => Err(Errno::ERESTARTNOINTR),
    }
}

/// FUTEX_CMP_REQUEUE_PI: the first who waits for `word` owns `second` if nobody does; he and up to `count` others wait to own it
/// else. Returns how many they are. As a plain requeue it takes several holds of the locks, with what that one keeps.
pub fn requeue_pi(word: Word, second: Word, count: usize, expected: u32) -> Result<usize> {
    if word.address == second.address {
        return Err(Errno::EINVAL);
    }
    let (from, to) = (word.key()?, second.key()?);
    if from == to {
        return Err(Errno::EINVAL);
    }
    let (from_index, to_index) = (bucket_of(&from), bucket_of(&to));
    let mut move_ = Move { from, to, address: second.address, to_index, limit: count + 1, total: 0 };
    let mut waiting = None;
    loop {
        let compared = waiting.is_none().then_some(expected);
        let mut pair = Pair::lock_to_requeue(from_index, to_index, word.address, compared)?;
        let tickets = waiting.get_or_insert_with(|| 0..next_ticket());
        // Both are let go of after the locks.
        let (mut woken, mut owner) = (Taken::new(), None);
        let step = move_.some(&mut pair, tickets, &mut woken, &mut owner);
        drop(pair);
        wake_threads(woken);
        drop(owner);
        match step {
            Ok(true) => return Ok(move_.total),
            Ok(false) => {}
            Err(Errno::EFAULT) => {
                // Adds nothing: the write makes the page writable, or fails for good.
                uaccess::update_u32(second.address, |value| value)?;
                if move_.total == 0 {
                    // Nothing has happened yet: the value counts at the moment when it does.
                    waiting = None;
                }
            }
            Err(error) => return Err(error),
        }
        if process::current().kill_pending() {
            return Err(Errno::EINTR);
        }
        sched::cond_resched();
    }
}

/// A requeue that is under way.
struct Move {
    from: Key,
    to: Key,
    /// Of the word that is to be owned.
    address: usize,
    to_index: usize,
    /// So many waiters at most.
    limit: usize,
    /// So many were moved or woken.
    total: usize,
}

impl Move {
    /// Moves some, in one hold of the locks. True when that is all.
    fn some(
        &mut self,
        pair: &mut Pair,
        tickets: &Range<u64>,
        woken: &mut Taken,
        owner_found: &mut Option<(u32, Arc<Thread>)>,
    ) -> Result<bool> {
        for _ in 0..BATCH {
            if self.total == self.limit {
                return Ok(true);
            }
            let Some(first) = pair.from().first(&self.from, tickets.end) else { return Ok(true) };
            if first.to_own != Some(self.to) {
                return Err(Errno::EINVAL);
            }
            let tid = first.thread.number();
            let value = uaccess::load_u32_nofault(self.address)?;
            let owner = value & TID_MASK;
            if owner == tid {
                return Err(Errno::EDEADLK);
            }
            let is_inherited = owner == 0 && pair.to().is_inherited(&self.to);
            if owner == 0 && !is_inherited {
                // Those who are yet to come make the owner ask the kernel when he lets go.
                let more = self.limit > 1 || pair.to().has_owner_to_be(&self.to);
                let new = tid | value & OWNER_DIED | if more { WAITERS } else { 0 };
                // Where the program has changed the word it is looked at again.
                if exchange(self.address, value, new)?
                    && let Some(waiter) = pair.from().take_first(&self.from, tickets.end)
                {
                    // Those who wait wait for another owner from now on, who goes on then.
                    pair.to().set_first_heir(&self.to, &waiter.thread);
                    waiter.set_woken();
                    woken.push(waiter);
                    self.total += 1;
                }
                continue;
            }
            let owner_thread = match owner_found {
                // Nobody asks: who takes it waits first.
                _ if is_inherited => None,
                Some((number, thread)) if *number == owner => Some(&*thread),
                // Another owner: in the next hold, so that nothing is let go of in this one.
                Some(_) => return Ok(false),
                None => {
                    let thread = process::find_thread(owner).ok_or(Errno::ESRCH)?;
                    Some(&owner_found.insert((owner, thread)).1)
                }
            };
            if value & WAITERS == 0 && !exchange(self.address, value, value | WAITERS)? {
                continue;
            }
            if let Some(waiter) = pair.from().take_first(&self.from, tickets.end) {
                let is_first = !pair.to().has_owner_to_be(&self.to);
                pair.to().add_moved(waiter.clone(), &self.to, self.to_index);
                if is_first && owner_thread.is_some_and(|owner| !pair.to().set_heir(&waiter, owner)) {
                    // It has just ended.
                    pair.to().inherit(&waiter);
                    woken.push(waiter);
                }
                self.total += 1;
            }
        }
        Ok(false)
    }
}
