//! The one place from which atomics and locks come.
//!
//! In a build with `--cfg roundtable_model` the atomics are those of a model checker. Nothing else names `core::sync` or
//! `alloc::sync`. The locks are the machine's, so the machine of a model brings locks that the checker schedules. `Arc` and
//! the counters ([`Tally`]) are not scheduled.

#[cfg(roundtable_model)]
pub mod model;

pub use alloc::sync::{Arc, Weak};
pub use core::sync::atomic::Ordering;
#[cfg(not(roundtable_model))]
pub use core::sync::atomic::{AtomicBool, AtomicU64, fence};

#[cfg(roundtable_model)]
pub use model::{AtomicBool, AtomicU64, fence};

use core::ops::Deref;

use crate::machine::Machine;

/// A number that is only added to and shown, or given out: a model checker need not try its orders.
pub type Tally = core::sync::atomic::AtomicU64;

/// A value that has its cache lines to itself: who writes it takes no line from who writes its neighbour.
#[derive(Default, Debug)]
#[repr(align(64))]
pub struct Padded<T>(pub T);

impl<T> Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A lock for short sections: the holder does not sleep, wait for another CPU, or allocate.
pub(crate) type Spin<M, T> = lock_api::Mutex<<M as Machine>::RawSpinLock, T>;
