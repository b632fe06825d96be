//! Wait, wake, requeue.

use core::sync::atomic::Ordering;

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Bucket, InBucket, MATCH_ANY, TABLE, Waiter, bucket_of, key_of, next_ticket, with_value};
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::mm::{Key, uaccess};
use crate::process;
use crate::sched::{self, Sleep};
use crate::sync::{WaitError, perturb};

/// FUTEX_WAIT and FUTEX_WAIT_BITSET. The deadline is in monotonic nanoseconds.
pub fn wait(
    address: usize,
    shared: bool,
    expected: u32,
    deadline: Option<u64>,
    bitset: u32,
) -> Result<usize> {
    if bitset == 0 {
        return Err(Errno::EINVAL);
    }
    let waiter = Waiter::new(key_of(address, shared)?, bitset, false);
    join(&waiter, address, expected)?;
    perturb::point();
    let slept = sched::sleep(Sleep::Interruptible, deadline, || waiter.is_woken());
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
fn join(waiter: &Arc<Waiter>, address: usize, expected: u32) -> Result<()> {
    let index = waiter.bucket.load(Ordering::SeqCst);
    with_value(address, index, false, |bucket, value| {
        if value != expected {
            return Err(Errno::EAGAIN);
        }
        bucket.push_back(waiter.clone());
        Ok(())
    })
}

/// One of the words of futex_waitv(2).
pub struct WaitWord {
    pub address: usize,
    pub shared: bool,
    pub expected: u32,
}

/// futex_waitv(2): returns the index of a word whose waiters were woken.
pub fn waitv(words: &[WaitWord], deadline: Option<u64>) -> Result<usize> {
    let mut waiters: Vec<Arc<Waiter>> = fallible::with_capacity(words.len())?;
    let leave_all = |waiters: &[Arc<Waiter>]| {
        let mut woken = None;
        for (index, waiter) in waiters.iter().enumerate() {
            if !waiter.leave() {
                woken = woken.or(Some(index));
            }
        }
        woken
    };
    for word in words {
        let joined = key_of(word.address, word.shared).and_then(|key| {
            let waiter = Waiter::new(key, MATCH_ANY, false);
            join(&waiter, word.address, word.expected)?;
            Ok(waiter)
        });
        match joined {
            Ok(waiter) => waiters.push(waiter),
            Err(error) => return leave_all(&waiters).ok_or(error),
        }
    }
    let slept =
        sched::sleep(Sleep::Interruptible, deadline, || waiters.iter().any(|waiter| waiter.is_woken()));
    match (leave_all(&waiters), slept) {
        (Some(index), _) => Ok(index),
        (None, Err(WaitError::TimedOut)) => Err(Errno::ETIMEDOUT),
        (None, _) => Err(Errno::ERESTARTSYS),
    }
}

/// Waiters that are taken in one hold of a bucket's lock, which keeps interrupts off.
const BATCH: usize = 64;

/// Takes up to `count` waiters of a word out of the bucket, of those with a ticket below `before`. The list of them is
/// made of their own links: a wake allocates nothing.
fn take(bucket: &mut Bucket, key: &Key, count: usize, bitset: u32, before: u64) -> Bucket {
    let mut woken = Bucket::new(InBucket::NEW);
    let mut left = count;
    let mut cursor = bucket.front_mut();
    while left > 0 {
        let Some(waiter) = cursor.get() else { break };
        let wanted = waiter.waits_for(key) && !waiter.pi && waiter.bitset & bitset != 0;
        if wanted && waiter.ticket < before {
            let waiter = cursor.remove().expect("the cursor is at it");
            // Under the bucket's lock: from now on the waiter does not look for itself in the bucket.
            waiter.woken.store(true, Ordering::SeqCst);
            woken.push_back(waiter);
            left -= 1;
        } else {
            cursor.move_next();
        }
    }
    woken
}

/// Wakes all of a list; how many. Another thread that is due runs in between.
fn wake_threads(mut woken: Bucket) -> usize {
    perturb::point();
    let mut count = 0;
    while let Some(waiter) = woken.pop_front() {
        sched::wake(&waiter.thread);
        count += 1;
        sched::cond_resched();
    }
    count
}

/// Wakes up to `count` waiters of a word who wait already, a batch at a time; how many.
fn wake_word(key: &Key, count: usize, bitset: u32) -> usize {
    let before = next_ticket();
    let bucket = &TABLE[bucket_of(key)];
    let mut total = 0;
    loop {
        let most = BATCH.min(count - total);
        let batch = take(&mut bucket.lock(), key, most, bitset, before);
        let woken = wake_threads(batch);
        total += woken;
        if woken < BATCH {
            return total;
        }
    }
}

/// FUTEX_WAKE and FUTEX_WAKE_BITSET: returns how many were woken.
pub fn wake(address: usize, shared: bool, count: usize, bitset: u32) -> Result<usize> {
    if bitset == 0 {
        return Err(Errno::EINVAL);
    }
    Ok(wake_word(&key_of(address, shared)?, count, bitset))
}

/// FUTEX_REQUEUE and FUTEX_CMP_REQUEUE: wakes some, and lets others wait for the second word from now on. Returns how
/// many both were, or only the woken ones for the former.
pub fn requeue(
    address: usize,
    second: usize,
    shared: bool,
    wake_count: usize,
    requeue_count: usize,
    expected: Option<u32>,
) -> Result<usize> {
    let (from, to) = (key_of(address, shared)?, key_of(second, shared)?);
    let (from_index, to_index) = (bucket_of(&from), bucket_of(&to));
    // The second bucket is locked only when it is another one, and in the order of their numbers.
    loop {
        let first_lock = TABLE[from_index.min(to_index)].lock();
        let second_lock = (from_index != to_index).then(|| TABLE[from_index.max(to_index)].lock());
        if let Some(expected) = expected {
            match uaccess::load_u32_nofault(address) {
                Ok(value) if value == expected => {}
                Ok(_) => return Err(Errno::EAGAIN),
                Err(_) => {
                    drop(second_lock);
                    drop(first_lock);
                    uaccess::load_u32(address)?;
                    continue;
                }
            }
        }
        let (mut low, mut high) = (first_lock, second_lock);
        let source: &mut Bucket = match &mut high {
            Some(high) if from_index > to_index => high,
            _ => &mut low,
        };
        let woken = take(source, &from, wake_count, MATCH_ANY, u64::MAX);
        let mut moved = Bucket::new(InBucket::NEW);
        let mut count = 0;
        let mut cursor = source.front_mut();
        while count < requeue_count {
            let Some(waiter) = cursor.get() else { break };
            if waiter.waits_for(&from) && !waiter.pi {
                moved.push_back(cursor.remove().expect("the cursor is at it"));
                count += 1;
            } else {
                cursor.move_next();
            }
        }
        let target: &mut Bucket = match &mut high {
            Some(high) if to_index > from_index => high,
            _ => &mut low,
        };
        while let Some(waiter) = moved.pop_front() {
            // SAFETY: it was in the first bucket and comes to the second; both locks are held.
            unsafe { *waiter.key.get() = to };
            waiter.bucket.store(to_index, Ordering::SeqCst);
            target.push_back(waiter);
        }
        drop(high);
        drop(low);
        let woken = wake_threads(woken);
        return Ok(if expected.is_some() { woken + count } else { woken });
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
    let mut woken = wake_word(&key, count, MATCH_ANY);
    if compare(old as i32, compared as i32) {
        woken += wake_word(&second_key, second_count, MATCH_ANY);
    }
    Ok(woken)
}
