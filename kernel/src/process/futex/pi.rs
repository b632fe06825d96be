//! Futexes that are owned: FUTEX_LOCK_PI and FUTEX_UNLOCK_PI.
//!
//! The word holds the owner's thread number. Who unlocks a word that has waiters writes the first waiter's number into it, so that
//! the lock is never free in between. There is no real-time priority to inherit for threads of the fair classes; owners of
//! real-time waiters are not boosted.

use alloc::sync::Arc;

use super::bucket::{Bucket, Waiter};
use super::{bucket_of, key_of, with_value};
use crate::errno::{Errno, Result};
use crate::mm::{Key, uaccess};
use crate::process;
use crate::sched::{self, Sleep};
use crate::sync::WaitError;
use crate::time::Deadline;

pub(super) const WAITERS: u32 = 0x8000_0000;
pub(super) const OWNER_DIED: u32 = 0x4000_0000;
pub(super) const TID_MASK: u32 = 0x3fff_ffff;

pub(super) fn exchange(address: usize, old: u32, new: u32) -> Result<bool> {
    uaccess::cmpxchg_u32_nofault(address, old, new).map(|found| found == old)
}

/// FUTEX_LOCK_PI, FUTEX_LOCK_PI2 and FUTEX_TRYLOCK_PI.
pub fn lock_pi(address: usize, shared: bool, deadline: Option<Deadline>, only_try: bool) -> Result<usize> {
    let key = key_of(address, shared)?;
    let thread = process::current();
    let tid = thread.number();
    let waiter = Waiter::new(key, super::MATCH_ANY, true);
    // Let go of after the bucket's lock: it may be the last reference.
    let mut found = None;
    let taken = with_value(address, bucket_of(&key), true, |bucket, value| {
        let mut value = value;
        loop {
            let owner = value & TID_MASK;
            if owner == tid {
                return Err(Errno::EDEADLK);
            }
            let is_free = owner == 0 && !bucket.is_inherited(&key);
            let new = if is_free {
                let waiters = if bucket.has_owner_to_be(&key) { WAITERS } else { 0 };
                tid | (value & OWNER_DIED) | waiters
            } else if only_try {
                return Err(Errno::EAGAIN);
            } else {
                value | WAITERS
            };
            if exchange(address, value, new)? {
                if is_free {
                    // Those who wait wait for another owner from now on.
                    bucket.set_first_heir(&key, &thread);
                    return Ok(true);
                }
                if bucket.has_owner_to_be(&key) {
                    // The first of them knows whose the word is, better than a number that may be another thread's by now.
                    bucket.add_owner_to_be(&waiter);
                    return Ok(false);
                }
                if found.is_none() {
                    found = process::find_thread(owner);
                }
                let Some(found) = &found else { return Err(Errno::ESRCH) };
                if bucket.set_heir(&waiter, found) {
                    bucket.add_owner_to_be(&waiter);
                    return Ok(false);
                }
                // It has ended. It may have let go of the word before that.
                let now = uaccess::load_u32_nofault(address)?;
                if now == new {
                    return Err(Errno::ESRCH);
                }
                value = now;
                continue;
            }
            value = uaccess::load_u32_nofault(address)?;
        }
    })?;
    drop(found);
    if taken {
        return Ok(0);
    }
    match sched::sleep_to(Sleep::Interruptible, deadline, || waiter.is_woken() || waiter.inherits()) {
        _ if waiter.inherits() => inherit(&waiter, address, &key),
        Ok(()) => Ok(0),
        Err(_) if !waiter.leave() => Ok(0),
        Err(WaitError::TimedOut) => Err(Errno::ETIMEDOUT),
        Err(WaitError::Interrupted) => Err(Errno::ERESTARTNOINTR),
    }
}

/// The owner of the word has ended, and the waiter is to have it. It writes that into the word, and leaves its bucket.
pub(super) fn inherit(waiter: &Waiter, address: usize, key: &Key) -> Result<usize> {
    let taken = with_value(address, bucket_of(key), true, |bucket, value| {
        // Somebody may have handed it over in the ordinary way: then it is the waiter's already.
        if waiter.is_woken() { Ok(None) } else { hand_over(bucket, key, address, value, OWNER_DIED) }
    });
    match taken {
        Ok(_) => Ok(0),
        // The next one takes it.
        Err(_) if !waiter.leave() => Ok(0),
        Err(error) => Err(error),
    }
}

/// FUTEX_UNLOCK_PI.
pub fn unlock_pi(address: usize, shared: bool) -> Result<usize> {
    let key = key_of(address, shared)?;
    let tid = process::current().number();
    let next = with_value(address, bucket_of(&key), true, |bucket, value| {
        if value & TID_MASK != tid {
            return Err(Errno::EPERM);
        }
        hand_over(bucket, &key, address, value, 0)
    })?;
    if let Some(next) = next {
        sched::wake(&next.thread);
    }
    Ok(0)
}

/// Gives the word to its first waiter, or frees it. `EFAULT` if the page must be brought in first.
pub(super) fn hand_over(
    bucket: &mut Bucket,
    key: &Key,
    address: usize,
    mut value: u32,
    mark: u32,
) -> Result<Option<Arc<Waiter>>> {
    let next = bucket.next_owner(key);
    loop {
        let new = next.map_or(mark, |(tid, more)| tid | mark | if more { WAITERS } else { 0 });
        if exchange(address, value, new)? {
            break;
        }
        value = uaccess::load_u32_nofault(address)?;
    }
    Ok(bucket.take_owner(key))
}

/// The owner of the word has died: the next waiter gets it, and is told by the mark.
pub(super) fn owner_died(address: usize, tid: u32) -> Result<()> {
    let key = key_of(address, true)?;
    let next = with_value(address, bucket_of(&key), true, |bucket, value| {
        if value & TID_MASK != tid {
            return Ok(None);
        }
        hand_over(bucket, &key, address, value, OWNER_DIED)
    })?;
    if let Some(next) = next {
        sched::wake(&next.thread);
    }
    Ok(())
}
