//! Robust futexes: a thread that ends while it owns some tells the next owners so.

use core::sync::atomic::Ordering;

use super::pi::{self, OWNER_DIED, TID_MASK, WAITERS};
use super::{MATCH_ANY, ops};
use crate::errno::Result;
use crate::mm::uaccess::{self, read_user};
use crate::process::Thread;

/// `struct robust_list_head`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Head {
    first: u64,
    offset: i64,
    pending: u64,
}

/// The size that set_robust_list(2) must be told.
pub const HEAD_SIZE: usize = size_of::<Head>();
/// Where the walk gives up: user space may have made a circle.
const MOST: usize = 2048;

/// Walks the list that set_robust_list(2) registered. Errors end the walk: the memory is the program's own affair.
pub fn exit_robust_list(thread: &Thread) {
    let head = thread.robust_list.swap(0, Ordering::SeqCst);
    if head != 0 {
        let _ = walk(thread, head);
    }
}

fn walk(thread: &Thread, address: usize) -> Result<()> {
    let head: Head = read_user(address)?;
    let tid = thread.number();
    let split = |entry: u64| (entry & !1, entry & 1 != 0);
    let (pending, pending_pi) = split(head.pending);
    let (mut entry, mut is_pi) = split(head.first);
    let mut left = MOST;
    while entry as usize != address && left > 0 {
        // Read before the word is given away: its next owner may change the list.
        let next: Result<u64> = read_user(entry as usize);
        if entry != pending {
            died(entry.wrapping_add_signed(head.offset) as usize, tid, is_pi, false)?;
        }
        (entry, is_pi) = split(next?);
        left -= 1;
        crate::sched::cond_resched();
    }
    if pending != 0 {
        died(pending.wrapping_add_signed(head.offset) as usize, tid, pending_pi, true)?;
    }
    Ok(())
}

/// Marks one word, if the thread owns it, and wakes a waiter.
fn died(address: usize, tid: u32, is_pi: bool, pending: bool) -> Result<()> {
    if !address.is_multiple_of(4) {
        return Ok(());
    }
    if is_pi {
        return pi::owner_died(address, tid);
    }
    let mut value = uaccess::load_u32(address)?;
    loop {
        if value & TID_MASK != tid {
            // It was unlocking when it died: the word is free, but the wake may not have happened.
            if pending && value & TID_MASK == 0 {
                wake(address);
            }
            return Ok(());
        }
        let found = uaccess::cmpxchg_u32(address, value, value & WAITERS | OWNER_DIED)?;
        if found == value {
            break;
        }
        value = found;
    }
    if value & WAITERS != 0 {
        wake(address);
    }
    Ok(())
}

/// Wakes a waiter. That there are none of the right kind does not end the walk.
fn wake(address: usize) {
    let _ = ops::wake(address, true, 1, MATCH_ANY);
}
