//! Debug builds count held spin locks and catch sleeping where it is not allowed.

use crate::arch::{interrupts, percpu};

/// A spin lock is about to be taken on this CPU.
#[inline]
pub fn spin_acquired() {
    if cfg!(debug_assertions) {
        percpu::preempt_disable();
    }
}

/// A spin lock was released on this CPU.
#[inline]
pub fn spin_released() {
    if cfg!(debug_assertions) {
        percpu::preempt_enable();
    }
}

/// Panics, in debug builds, when the caller must not sleep: with a spin lock held or interrupts off.
#[inline]
#[track_caller]
pub fn assert_may_sleep() {
    if cfg!(debug_assertions) && crate::process::try_current().is_some() {
        assert!(percpu::preempt_count() == 0, "sleeps with {} spin locks held", percpu::preempt_count());
        assert!(interrupts::are_enabled(), "sleeps with interrupts off");
    }
}
