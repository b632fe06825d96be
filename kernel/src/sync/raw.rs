//! The sleeping locks as `lock_api` wants them.

use super::sleep::{READER, RawRwLock, WRITER};
use crate::arch::percpu;

/// Counts a lock that an attempt has got.
#[inline]
fn counted(taken: bool) -> bool {
    if taken {
        percpu::sleeping_lock_taken();
    }
    taken
}

// SAFETY: WRITER is set only when no READER is counted and the other way round; hand-over keeps that.
unsafe impl lock_api::RawRwLock for RawRwLock {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self::new();
    type GuardMarker = lock_api::GuardNoSend;

    #[inline]
    #[track_caller]
    fn lock_shared(&self) {
        // From now on, not from when it is got: see `memory::reserve`.
        percpu::sleeping_lock_taken();
        self.acquire(false);
    }

    #[inline]
    fn try_lock_shared(&self) -> bool {
        counted(self.try_acquire(false))
    }

    #[inline]
    unsafe fn unlock_shared(&self) {
        self.release(READER);
        percpu::sleeping_lock_released();
    }

    #[inline]
    #[track_caller]
    fn lock_exclusive(&self) {
        percpu::sleeping_lock_taken();
        self.acquire(true);
    }

    #[inline]
    fn try_lock_exclusive(&self) -> bool {
        counted(self.try_acquire(true))
    }

    #[inline]
    unsafe fn unlock_exclusive(&self) {
        self.release(WRITER);
        percpu::sleeping_lock_released();
    }

    fn is_locked(&self) -> bool {
        self.is_held()
    }
}

// SAFETY: a writer becomes one reader; both exclude other writers all the time.
unsafe impl lock_api::RawRwLockDowngrade for RawRwLock {
    unsafe fn downgrade(&self) {
        self.become_reader();
    }
}

/// The lock behind [`super::Mutex`]: a [`RawRwLock`] that only writers use.
pub struct RawMutex {
    inner: RawRwLock,
}

// SAFETY: there is one writer at a time.
unsafe impl lock_api::RawMutex for RawMutex {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self { inner: RawRwLock::new() };
    type GuardMarker = lock_api::GuardNoSend;

    #[inline]
    #[track_caller]
    fn lock(&self) {
        percpu::sleeping_lock_taken();
        self.inner.acquire(true);
    }

    #[inline]
    fn try_lock(&self) -> bool {
        counted(self.inner.try_acquire(true))
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.inner.release(WRITER);
        percpu::sleeping_lock_released();
    }

    fn is_locked(&self) -> bool {
        self.inner.is_held()
    }
}
