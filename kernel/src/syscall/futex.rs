//! System calls: futexes.

use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::mm::check_may_access;
use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::mm::uaccess::{read_user, write_user};
use crate::process;
use crate::process::futex::{self, MATCH_ANY, WaitWord, Word};
use crate::time::clock::Timespec;
use crate::time::{self, ClockId, Deadline};

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::futex, futex_call),
    (Sysno::futex_waitv, futex_waitv),
    (Sysno::futex_wake, futex_wake),
    (Sysno::futex_wait, futex_wait),
    (Sysno::futex_requeue, futex_requeue),
    (Sysno::set_robust_list, set_robust_list),
    (Sysno::get_robust_list, get_robust_list),
];

/// The deadline of a call whose fourth argument is a time.
fn deadline(args: &Args, realtime: bool, absolute: bool) -> Result<Option<Deadline>> {
    if args.a[3] == 0 {
        return Ok(None);
    }
    let time = read_user::<Timespec>(args.a[3])?.to_ns()?;
    let clock = if realtime { ClockId::Realtime } else { ClockId::monotonic() };
    let relative = || Deadline::Monotonic(time::now().saturating_add(time));
    Ok(Some(if absolute { clock.to_deadline(time)? } else { relative() }))
}

/// A count as C passes it: negative ones count as one, for waking.
fn count(value: usize) -> usize {
    (value as i32).max(1) as usize
}

/// A count of requeue, which must not be negative.
fn requeue_counts(args: &Args) -> Result<(usize, usize)> {
    let (wake, requeue) = (args.int(2), args.int(3));
    if wake < 0 || requeue < 0 {
        return Err(Errno::EINVAL);
    }
    Ok((wake as usize, requeue as usize))
}

fn futex_call(args: &mut Args) -> Result<usize> {
    let operation = args.uint(1);
    let shared = operation & abi::FUTEX_PRIVATE_FLAG == 0;
    let realtime = operation & abi::FUTEX_CLOCK_REALTIME != 0;
    let command = operation & !(abi::FUTEX_PRIVATE_FLAG | abi::FUTEX_CLOCK_REALTIME);
    let (address, value, second, third) = (args.a[0], args.uint(2), args.a[4], args.uint(5));
    // A time that FUTEX_WAIT takes is relative, and so of no clock.
    let takes_clock =
        matches!(command, abi::FUTEX_WAIT_BITSET | abi::FUTEX_WAIT_REQUEUE_PI | abi::FUTEX_LOCK_PI2);
    if realtime && !takes_clock {
        return Err(Errno::ENOSYS);
    }
    let words = (Word { address, shared }, Word { address: second, shared });
    match command {
        abi::FUTEX_WAIT => futex::wait(address, shared, value, deadline(args, realtime, false)?, MATCH_ANY),
        abi::FUTEX_WAIT_BITSET => futex::wait(address, shared, value, deadline(args, realtime, true)?, third),
        abi::FUTEX_WAKE => futex::wake(address, shared, count(args.a[2]), MATCH_ANY),
        abi::FUTEX_WAKE_BITSET => futex::wake(address, shared, count(args.a[2]), third),
        abi::FUTEX_REQUEUE => {
            let (wake, requeue) = requeue_counts(args)?;
            futex::requeue(words.0, words.1, wake, requeue, None)
        }
        abi::FUTEX_CMP_REQUEUE => {
            let (wake, requeue) = requeue_counts(args)?;
            futex::requeue(words.0, words.1, wake, requeue, Some(third))
        }
        abi::FUTEX_WAIT_REQUEUE_PI => {
            futex::wait_requeue_pi(address, second, shared, value, deadline(args, realtime, true)?)
        }
        abi::FUTEX_CMP_REQUEUE_PI => match requeue_counts(args)? {
            // More than one who owns the word would be none too many to wake.
            (1, requeue) => futex::requeue_pi(words.0, words.1, requeue, third),
            _ => Err(Errno::EINVAL),
        },
        abi::FUTEX_WAKE_OP => {
            futex::wake_op(address, second, shared, count(args.a[2]), count(args.a[3]), third)
        }
        abi::FUTEX_LOCK_PI => futex::lock_pi(address, shared, deadline(args, true, true)?, false),
        abi::FUTEX_LOCK_PI2 => futex::lock_pi(address, shared, deadline(args, realtime, true)?, false),
        abi::FUTEX_TRYLOCK_PI => futex::lock_pi(address, shared, None, true),
        abi::FUTEX_UNLOCK_PI => futex::unlock_pi(address, shared),
        _ => Err(Errno::ENOSYS),
    }
}

/// `struct futex_waitv`.
#[repr(C)]
#[derive(Clone, Copy)]
struct WaitV {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

/// FUTEX2_SIZE_U32: the only size that there is so far.
const SIZE_U32: u32 = 2;
/// FUTEX2_PRIVATE.
const PRIVATE: u32 = 128;

/// Whether the flags of a word say that others may share it.
fn is_shared(flags: u32) -> Result<bool> {
    if flags & !PRIVATE == SIZE_U32 { Ok(flags & PRIVATE == 0) } else { Err(Errno::EINVAL) }
}

/// A value or a mask of the word's size.
fn of_word(value: u64) -> Result<u32> {
    u32::try_from(value).map_err(|_| Errno::EINVAL)
}

/// The word at `index` of an array of them.
fn read_word(array: usize, index: usize) -> Result<WaitWord> {
    let at = array.checked_add(index * size_of::<WaitV>()).ok_or(Errno::EFAULT)?;
    let word: WaitV = read_user(at)?;
    if word.reserved != 0 {
        return Err(Errno::EINVAL);
    }
    let shared = is_shared(word.flags)?;
    let expected = of_word(word.value)?;
    Ok(WaitWord { word: Word { address: word.address as usize, shared }, expected })
}

/// A moment on a clock that is named.
fn deadline_by(time: usize, clock: i32) -> Result<Option<Deadline>> {
    if time == 0 {
        return Ok(None);
    }
    let clock = match clock {
        0 => ClockId::Realtime,
        1 => ClockId::monotonic(),
        _ => return Err(Errno::EINVAL),
    };
    Ok(Some(clock.to_deadline(read_user::<Timespec>(time)?.to_ns()?)?))
}

fn futex_waitv(args: &mut Args) -> Result<usize> {
    const MOST: usize = 128;
    let count = args.uint(1) as usize;
    if args.uint(2) != 0 || count == 0 || count > MOST {
        return Err(Errno::EINVAL);
    }
    let deadline = deadline_by(args.a[3], args.int(4))?;
    let mut words = fallible::with_capacity(count)?;
    for index in 0..count {
        words.push(read_word(args.a[0], index)?);
    }
    futex::waitv(&words, deadline)
}

fn futex_wake(args: &mut Args) -> Result<usize> {
    let [address, mask, number, ..] = args.a;
    let shared = is_shared(args.uint(3))?;
    let mask = of_word(mask as u64)?;
    // Unlike the older call it wakes nobody when it is told so.
    let number = if number as i32 == 0 { 0 } else { count(number) };
    futex::wake(address, shared, number, mask)
}

fn futex_wait(args: &mut Args) -> Result<usize> {
    let [address, value, mask, _, time, _] = args.a;
    let shared = is_shared(args.uint(3))?;
    let (value, mask) = (of_word(value as u64)?, of_word(mask as u64)?);
    futex::wait(address, shared, value, deadline_by(time, args.int(5))?, mask)
}

fn futex_requeue(args: &mut Args) -> Result<usize> {
    if args.uint(1) != 0 || args.a[0] == 0 {
        return Err(Errno::EINVAL);
    }
    let (from, to) = (read_word(args.a[0], 0)?, read_word(args.a[0], 1)?);
    let (wake, requeue) = requeue_counts(args)?;
    futex::requeue(from.word, to.word, wake, requeue, Some(from.expected))
}

fn set_robust_list(args: &mut Args) -> Result<usize> {
    if args.a[1] != futex::HEAD_SIZE {
        return Err(Errno::EINVAL);
    }
    process::current().robust_list.store(args.a[0], Ordering::SeqCst);
    Ok(0)
}

fn get_robust_list(args: &mut Args) -> Result<usize> {
    let current = process::current();
    let thread = match args.int(0) {
        0 => current.to_arc(),
        tid => process::find_thread(tid as u32).ok_or(Errno::ESRCH)?,
    };
    check_may_access(&thread.process)?;
    write_user(args.a[2], &futex::HEAD_SIZE)?;
    write_user(args.a[1], &thread.robust_list.load(Ordering::SeqCst))?;
    Ok(0)
}
