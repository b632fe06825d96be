//! The one place from which the library takes atomics, `Arc` and its locks.
//!
//! A model checker swaps its own types in here; nothing else in the crate names `core::sync` or `alloc::sync`.

pub(crate) use alloc::sync::Arc;
pub(crate) use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crate::machine::Machine;

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
