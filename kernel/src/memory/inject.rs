//! Allocations that fail on purpose: the nth of a thread, for tests.
//!
//! As Linux's `/proc/self/fail-nth` does it. Writing n makes the nth allocation from then on fail that the thread makes and that can fail; reading gives
//! what is left to go, 0 when it has failed (or nothing was asked for). Only checked kernels have it.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::process;

/// Whether allocations can fail on purpose at all.
pub const IS_BUILT_IN: bool = cfg!(debug_assertions);

/// A thread's wish.
#[derive(Default)]
pub struct Countdown(AtomicU32);

impl Countdown {
    /// The `nth` allocation from now on fails; 0 for none.
    pub fn set(&self, nth: u32) {
        self.0.store(nth, Ordering::SeqCst);
    }

    /// How many allocations are left, the one that fails included.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Does this allocation fail on purpose?
#[inline]
pub fn fails() -> bool {
    if !IS_BUILT_IN {
        return false;
    }
    let Some(thread) = process::try_current() else { return false };
    let left = thread.memory.countdown.get();
    if left == 0 {
        return false;
    }
    thread.memory.countdown.set(left - 1);
    left == 1
}
