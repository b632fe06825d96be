//! Wait, wake, requeue.

use core::ops::Range;
use core::sync::atomic::Ordering;

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::bucket::{Bucket, Taken, Waiter, next_ticket};
use super::{MATCH_ANY, TABLE, bucket_of, key_of, with_value};
use crate::errno::{Errno, Result};
use crate::memory::{fallible, reserve};
use crate::mm::{Key, uaccess};
use crate::process;
use crate::sched::{self, Sleep};
use crate::sync::{IrqLockGuard, WaitError, perturb};
use crate::time::Deadline;

/// FUTEX_WAIT and FUTEX_WAIT_BITSET.
pub fn wait(
    address: usize,
    shared: bool,
    expected: u32,
    deadline: Option<Deadline>,
    bitset: u32,
) -> Result<usize> {
    if bitset == 0 {
        return Err(Errno::EINVAL);
    }
    let waiter = Waiter::new(key_of(address, shared)?, bitset, false);
    join(&waiter, address, expected)?;
    perturb::point();
    let slept = sched::sleep_to(Sleep::Interruptible, deadline, || waiter.is_woken());
    match slept {
        Ok(()) => Ok(0),
        // Woken at the last moment: the wake was meant for this thread.
        Err(_) if !waiter.leave() => Ok(0),
        Err(WaitError::TimedOut) => Err(Errno::ETIMEDOUT),
        Err(WaitError::Interrupted) => {
            let Some(deadline) = deadline else { return Err(Errno::ERESTARTSYS) };
            process::current().set_restart(move |_| wait(address, shared, expected, Some(deadline), bitset));
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
    }
}

/// Puts the waiter in its bucket if the word has the expected value, else `EAGAIN`.
pub(super) fn join(waiter: &Arc<Waiter>, address: usize, expected: u32) -> Result<()> {
    let index = waiter.bucket.load(Ordering::SeqCst);
    with_value(address, index, false, |bucket, value| {
        if value != expected {
            return Err(Errno::EAGAIN);
        }
        bucket.add(waiter.clone());
        Ok(())
    })
}

/// A word, as calls name it.
#[derive(Clone, Copy)]
pub struct Word {
    pub address: usize,
    pub shared: bool,
}

impl Word {
    /// What identifies it.
    pub(super) fn key(self) -> Result<Key> {
        key_of(self.address, self.shared)
    }
}

/// One of the words of futex_waitv(2).
pub struct WaitWord {
    pub word: Word,
    pub expected: u32,
}

/// futex_waitv(2): returns the index of a word whose waiters were woken.
pub fn waitv(words: &[WaitWord], deadline: Option<Deadline>) -> Result<usize> {
    // Each thread may have many times its own size of them.
    let _charge = process::current().process.charges.add(size_of_val(words) + words.len() * Waiter::BYTES);
    let mut waiters: Vec<Arc<Waiter>> = fallible::with_capacity(words.len())?;
    let leave_all = |waiters: &[Arc<Waiter>]| {
        let mut woken = None;
        for (index, waiter) in waiters.iter().enumerate() {
            if !waiter.leave() {
                woken = woken.or(Some(index));
            }
            sched::cond_resched();
        }
        woken
    };
    for word in words {
        let joined = word.word.key().and_then(|key| {
            reserve::ask(Waiter::BYTES)?;
            let waiter = Waiter::new(key, MATCH_ANY, false);
            join(&waiter, word.word.address, word.expected)?;
            Ok(waiter)
        });
        match joined {
            Ok(waiter) => waiters.push(waiter),
            Err(error) => return leave_all(&waiters).ok_or(error),
        }
        sched::cond_resched();
    }
    let slept =
        sched::sleep_to(Sleep::Interruptible, deadline, || waiters.iter().any(|waiter| waiter.is_woken()));
    match (leave_all(&waiters), slept) {
        (Some(index), _) => Ok(index),
        (None, Err(WaitError::TimedOut)) => Err(Errno::ETIMEDOUT),
        (None, _) => Err(Errno::ERESTARTSYS),
    }
}

/// Wakes all of a list. Another thread that is due runs in between.
pub(super) fn wake_threads(mut woken: Taken) {
    perturb::point();
    while let Some(waiter) = woken.pop() {
        sched::wake(&waiter.thread);
        sched::cond_resched();
    }
}

/// Wakes up to `count` waiters of a word who wait already, some at a time; how many. `EINVAL` when it comes to one
/// who waits to own a word.
fn wake_word(key: &Key, count: usize, bitset: u32) -> Result<usize> {
    let mut tickets = 0..next_ticket();
    let bucket = &TABLE[bucket_of(key)];
    let mut total = 0;
    loop {
        let batch = bucket.lock().take_to_wake(key, &mut tickets, count - total, bitset);
        wake_threads(batch.taken);
        if batch.meets_owner_to_be {
            return Err(Errno::EINVAL);
        }
        total += batch.number;
        if total == count || tickets.is_empty() {
            return Ok(total);
        }
        sched::cond_resched();
    }
}

/// FUTEX_WAKE and FUTEX_WAKE_BITSET: returns how many were woken.
pub fn wake(address: usize, shared: bool, count: usize, bitset: u32) -> Result<usize> {
    if bitset == 0 {
        return Err(Errno::EINVAL);
    }
    wake_word(&key_of(address, shared)?, count, bitset)
}

/// The locks of two buckets, taken in the order of their numbers; one lock if they are the same.
pub(super) struct Pair {
    /// Let go of first: the other one has interrupts on again.
    high: Option<IrqLockGuard<'static, Bucket>>,
    low: IrqLockGuard<'static, Bucket>,
    from_is_high: bool,
}

impl Pair {
    pub(super) fn lock(from: usize, to: usize) -> Self {
        let low = TABLE[from.min(to)].lock();
        let high = (from != to).then(|| TABLE[from.max(to)].lock());
        Self { high, low, from_is_high: from > to }
    }

    /// As [`Pair::lock`], when the word at `address` has the value `expected`, if there is one: `EAGAIN` when it has another.
    pub(super) fn lock_to_requeue(
        from: usize,
        to: usize,
        address: usize,
        expected: Option<u32>,
    ) -> Result<Self> {
        loop {
            let pair = Self::lock(from, to);
            let Some(expected) = expected else { return Ok(pair) };
            match uaccess::load_u32_nofault(address) {
                Ok(value) if value == expected => return Ok(pair),
                Ok(_) => return Err(Errno::EAGAIN),
                Err(_) => {
                    drop(pair);
                    uaccess::load_u32(address)?;
                    if process::current().kill_pending() {
                        return Err(Errno::EINTR);
                    }
                }
            }
        }
    }

    fn bucket(&mut self, wants_high: bool) -> &mut Bucket {
        match &mut self.high {
            Some(high) if wants_high => high,
            _ => &mut self.low,
        }
    }

    pub(super) fn from(&mut self) -> &mut Bucket {
        self.bucket(self.from_is_high)
    }

    pub(super) fn to(&mut self) -> &mut Bucket {
        self.bucket(!self.from_is_high)
    }

    /// Lets up to `count` of the waiters for one word, with a ticket of `tickets`, wait for the other one, in the order
    /// in which they came. Gives how many, or `EINVAL` when it comes to one who waits to own a word.
    fn requeue(&mut self, from: &Key, to: &Key, count: usize, tickets: &mut Range<u64>) -> Result<usize> {
        let mut batch = self.from().take(from, tickets, count, MATCH_ANY);
        let (index, target) = (bucket_of(to), self.to());
        while let Some(waiter) = batch.taken.pop() {
            target.add_moved(waiter, to, index);
        }
        if batch.meets_owner_to_be { Err(Errno::EINVAL) } else { Ok(batch.number) }
    }
}

/// FUTEX_REQUEUE and FUTEX_CMP_REQUEUE: wakes some, and lets others wait for the second word from now on. Returns how
/// many both were, or only the woken ones for the former.
///
/// Linux does it in one hold of both locks. What it promises of that is kept, though it takes several holds here: the value is
/// compared once, in the first hold; who waits for the word then, is woken or waits for the second word when the call returns, up
/// to the two limits, in the order in which they came; who comes later, or waits for the second word already, is left alone. Who
/// wakes one of the words meanwhile finds a waiter at one of them, as if the call were made before or after.
pub fn requeue(
    word: Word,
    second: Word,
    wake_count: usize,
    requeue_count: usize,
    expected: Option<u32>,
) -> Result<usize> {
    let (from, to) = (word.key()?, second.key()?);
    let (from_index, to_index) = (bucket_of(&from), bucket_of(&to));
    let (mut woken, mut moved) = (0, 0);
    // Those that wait in the first hold, as far as they were not looked at.
    let mut waiting = None;
    loop {
        let compared = expected.filter(|_| waiting.is_none());
        let mut pair = Pair::lock_to_requeue(from_index, to_index, word.address, compared)?;
        let tickets = waiting.get_or_insert_with(|| 0..next_ticket());
        let batch = pair.from().take_to_wake(&from, tickets, wake_count - woken, MATCH_ANY);
        woken += batch.number;
        let step = if batch.meets_owner_to_be {
            Err(Errno::EINVAL)
        } else if woken == wake_count {
            pair.requeue(&from, &to, requeue_count - moved, tickets)
        } else {
            // Only who was not to be woken is moved.
            Ok(0)
        };
        drop(pair);
        wake_threads(batch.taken);
        moved += step?;
        if tickets.is_empty() || woken == wake_count && moved == requeue_count {
            return Ok(if expected.is_some() { woken + moved } else { woken });
        }
        sched::cond_resched();
    }
}

/// FUTEX_WAKE_OP: changes the second word, wakes waiters of the first, and of the second if its old value compares so.
pub fn wake_op(
    address: usize,
    second: usize,
    shared: bool,
    count: usize,
    second_count: usize,
    operation: u32,
) -> Result<usize> {
    let (key, second_key) = (key_of(address, shared)?, key_of(second, shared)?);
    let sign_extend = |bits: u32| ((bits << 20) as i32 >> 20) as u32;
    let mut operand = sign_extend(operation >> 12 & 0xfff);
    let compared = sign_extend(operation & 0xfff);
    const SHIFT_OPERAND: u32 = 8;
    let code = operation >> 28;
    if code & SHIFT_OPERAND != 0 {
        operand = 1 << (operand & 31);
    }
    let change: fn(u32, u32) -> u32 = match code & 7 {
        0 => |_, operand| operand,
        1 => |old, operand| old.wrapping_add(operand),
        2 => |old, operand| old | operand,
        3 => |old, operand| old & !operand,
        4 => |old, operand| old ^ operand,
        _ => return Err(Errno::ENOSYS),
    };
    let compare: fn(i32, i32) -> bool = match operation >> 24 & 0xf {
        0 => |a, b| a == b,
        1 => |a, b| a != b,
        2 => |a, b| a < b,
        3 => |a, b| a <= b,
        4 => |a, b| a > b,
        5 => |a, b| a >= b,
        _ => return Err(Errno::ENOSYS),
    };
    // The change is one atomic step; wakers come after it, each under its bucket's lock.
    let old = uaccess::update_u32(second, |old| change(old, operand))?;
    let mut woken = wake_word(&key, count, MATCH_ANY)?;
    if compare(old as i32, compared as i32) {
        woken += wake_word(&second_key, second_count, MATCH_ANY)?;
    }
    Ok(woken)
}
