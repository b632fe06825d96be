//! The one place from which the library takes atomics, `Arc` and its locks: those of [`filetables::sync`].

#[cfg(roundtable_model)]
pub use filetables::sync::model;
pub use filetables::sync::{Arc, AtomicU64, Ordering, Weak};
pub(crate) use filetables::sync::{AtomicBool, Flag, Tally};

use crate::machine::Machine;

/// A value that has its cache line alone, so that CPUs which use neighbours do not take it from each other. Two lines of 64 bytes where
/// the hardware has larger ones.
#[repr(align(64))]
#[derive(Default)]
pub(crate) struct Line<T>(pub(crate) T);

/// A lock for short leaf sections: the holder does not sleep, wait for another CPU, or allocate huge frames.
pub(crate) type Spin<M, T> = lock_api::Mutex<<M as filetables::Machine>::RawSpinLock, T>;
/// A held [`Spin`].
pub(crate) type SpinGuard<'l, M, T> = lock_api::MutexGuard<'l, <M as filetables::Machine>::RawSpinLock, T>;
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
