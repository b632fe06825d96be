//! The sleeping locks as `lock_api` wants them, with their class.

use core::panic::Location;

use super::lockdep::{self, Class, Kind};
use super::sleep::{self, READER, WRITER};
use crate::arch::percpu;
use crate::sched::Sleep;

/// The lock behind [`super::RwLock`].
pub struct RawRwLock {
    inner: sleep::RawRwLock,
    class: Class,
}

impl RawRwLock {
    /// A lock that is free.
    pub const fn new(class: Class) -> Self {
        Self { inner: sleep::RawRwLock::new(), class }
    }

    #[inline]
    #[track_caller]
    fn acquire(&self, writer: bool) {
        let site = Location::caller();
        lockdep::before(&self.class, self, site);
        // From now on, not from when it is got: see `memory::reserve`.
        percpu::sleeping_lock_taken();
        self.inner.acquire(writer);
        lockdep::taken(&self.class, self, Kind::Sleep, site);
    }

    #[track_caller]
    fn acquire_unless(&self, writer: bool, mode: Sleep) -> bool {
        let site = Location::caller();
        lockdep::before(&self.class, self, site);
        percpu::sleeping_lock_taken();
        let taken = self.inner.acquire_unless(writer, mode);
        if taken {
            lockdep::taken(&self.class, self, Kind::Sleep, site);
        } else {
            percpu::sleeping_lock_released();
        }
        taken
    }

    #[inline]
    #[track_caller]
    fn try_acquire(&self, writer: bool) -> bool {
        let taken = self.inner.try_acquire(writer);
        if taken {
            percpu::sleeping_lock_taken();
            lockdep::taken(&self.class, self, Kind::Sleep, Location::caller());
        }
        taken
    }

    #[inline]
    fn release(&self, holder: usize) {
        lockdep::released(self);
        self.inner.release(holder);
        percpu::sleeping_lock_released();
    }
}

// SAFETY: the inner lock counts a writer only when there is no reader, and the other way round; hand-over keeps that.
unsafe impl lock_api::RawRwLock for RawRwLock {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self::new(Class::UNKNOWN);
    type GuardMarker = lock_api::GuardNoSend;

    #[inline]
    #[track_caller]
    fn lock_shared(&self) {
        self.acquire(false);
    }

    #[inline]
    #[track_caller]
    fn try_lock_shared(&self) -> bool {
        self.try_acquire(false)
    }

    #[inline]
    unsafe fn unlock_shared(&self) {
        self.release(READER);
    }

    #[inline]
    #[track_caller]
    fn lock_exclusive(&self) {
        self.acquire(true);
    }

    #[inline]
    #[track_caller]
    fn try_lock_exclusive(&self) -> bool {
        self.try_acquire(true)
    }

    #[inline]
    unsafe fn unlock_exclusive(&self) {
        self.release(WRITER);
    }

    fn is_locked(&self) -> bool {
        self.inner.is_held()
    }
}

// SAFETY: a writer becomes one reader; both exclude other writers all the time.
unsafe impl lock_api::RawRwLockDowngrade for RawRwLock {
    unsafe fn downgrade(&self) {
        self.inner.become_reader();
    }
}

/// The lock behind [`super::Mutex`]: a [`RawRwLock`] that only writers use.
pub struct RawMutex {
    inner: RawRwLock,
}

impl RawMutex {
    /// A lock that is free.
    pub const fn new(class: Class) -> Self {
        Self { inner: RawRwLock::new(class) }
    }

    /// Takes the lock, unless a signal that `mode` admits comes first: then false.
    #[track_caller]
    pub(super) fn lock_unless(&self, mode: Sleep) -> bool {
        self.inner.acquire_unless(true, mode)
    }
}

// SAFETY: there is one writer at a time.
unsafe impl lock_api::RawMutex for RawMutex {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self::new(Class::UNKNOWN);
    type GuardMarker = lock_api::GuardNoSend;

    #[inline]
    #[track_caller]
    fn lock(&self) {
        self.inner.acquire(true);
    }

    #[inline]
    #[track_caller]
    fn try_lock(&self) -> bool {
        self.inner.try_acquire(true)
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.inner.release(WRITER);
    }

    fn is_locked(&self) -> bool {
        self.inner.inner.is_held()
    }
}
