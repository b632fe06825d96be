//! The one place from which the library takes atomics, `Arc` and its locks.
//!
//! With the feature `model` the atomics are those of a model checker; nothing else in the crate names `core::sync` or
//! `alloc::sync`. The locks are the machine's, so a model's machine brings locks that the checker schedules. `Arc` and
//! the counters (`Tally`) are not scheduled.

#[cfg(feature = "model")]
pub mod model;

pub(crate) use alloc::sync::{Arc, Weak};
#[cfg(not(feature = "model"))]
pub(crate) use core::sync::atomic::AtomicBool;
#[cfg(not(feature = "model"))]
pub use core::sync::atomic::AtomicU64;
pub(crate) use core::sync::atomic::Ordering;

#[cfg(feature = "model")]
pub(crate) use model::AtomicBool;
#[cfg(feature = "model")]
pub use model::AtomicU64;

use crate::machine::Machine;

/// A number that is only added to and shown, or given out: a model checker need not try its orders.
pub(crate) type Tally = core::sync::atomic::AtomicU64;

/// A lock for short leaf sections: the holder does not sleep, wait for another CPU, or allocate huge frames.
pub(crate) type Spin<M, T> = lock_api::Mutex<<M as Machine>::RawSpinLock, T>;
/// A mutex whose waiters sleep.
pub(crate) type Mutex<M, T> = lock_api::Mutex<<M as Machine>::RawMutex, T>;
/// A held [`Mutex`].
pub(crate) type MutexGuard<'l, M, T> = lock_api::MutexGuard<'l, <M as Machine>::RawMutex, T>;
/// A reader/writer lock whose waiters sleep.
pub(crate) type RwLock<M, T> = lock_api::RwLock<<M as Machine>::RawRwLock, T>;
/// An [`RwLock`] held for reading.
pub(crate) type ReadGuard<'l, M, T> = lock_api::RwLockReadGuard<'l, <M as Machine>::RawRwLock, T>;
/// An [`RwLock`] held for writing.
pub(crate) type WriteGuard<'l, M, T> = lock_api::RwLockWriteGuard<'l, <M as Machine>::RawRwLock, T>;
