//! Raw spinning locks: with and without interrupts off.

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::instructions::interrupts;

use core::panic::Location;

use super::debug;
use super::lockdep::{self, Class, Kind};

/// The raw lock behind [`super::SpinLock`].
pub struct RawSpinLock {
    locked: AtomicBool,
    class: Class,
}

impl RawSpinLock {
    /// A lock that is free.
    pub const fn new(class: Class) -> Self {
        Self { locked: AtomicBool::new(false), class }
    }

    #[inline]
    fn try_take(&self) -> bool {
        // Counted before the lock is taken, so that an interrupt between the two does not see a held lock uncounted.
        debug::spin_acquired();
        // Acquire pairs with the Release in `unlock`: the critical sections are ordered.
        let taken = !self.locked.swap(true, Ordering::Acquire);
        if !taken {
            debug::spin_released();
        }
        taken
    }

    #[inline]
    fn give_back(&self) {
        // Release: the next holder sees what this one wrote.
        self.locked.store(false, Ordering::Release);
        debug::spin_released();
    }
}

// SAFETY: the swap to `true` succeeds for one caller at a time, until `unlock` stores `false`.
unsafe impl lock_api::RawMutex for RawSpinLock {
    // An interior-mutable constant is how lock_api gets a fresh lock.
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self::new(Class::UNKNOWN);
    type GuardMarker = lock_api::GuardNoSend;

    #[inline]
    #[track_caller]
    fn lock(&self) {
        let site = Location::caller();
        lockdep::before(&self.class, self, site);
        while !self.try_take() {
            // Relaxed: only a hint when to try again; `try_take` orders.
            while self.locked.load(Ordering::Relaxed) {
                spin_loop();
            }
        }
        lockdep::taken(&self.class, self, Kind::Spin, site);
    }

    #[inline]
    #[track_caller]
    fn try_lock(&self) -> bool {
        let taken = self.try_take();
        if taken {
            lockdep::taken(&self.class, self, Kind::Spin, Location::caller());
        }
        taken
    }

    #[inline]
    unsafe fn unlock(&self) {
        lockdep::released(self);
        self.give_back();
    }

    fn is_locked(&self) -> bool {
        // Relaxed: the answer is stale at once anyway.
        self.locked.load(Ordering::Relaxed)
    }
}

/// The raw lock behind [`super::IrqLock`].
pub struct RawIrqLock {
    inner: RawSpinLock,
    /// Whether interrupts were on when the holder took the lock. Only the holder uses it.
    enabled: UnsafeCell<bool>,
}

impl RawIrqLock {
    /// A lock that is free.
    pub const fn new(class: Class) -> Self {
        Self { inner: RawSpinLock::new(class), enabled: UnsafeCell::new(false) }
    }

    #[inline]
    fn try_take(&self) -> bool {
        let enabled = interrupts::are_enabled();
        interrupts::disable();
        let taken = self.inner.try_take();
        if taken {
            // SAFETY: this CPU holds the lock.
            unsafe { *self.enabled.get() = enabled };
        } else if enabled {
            interrupts::enable();
        }
        taken
    }
}

// SAFETY: `enabled` is used by the holder of `inner` only.
unsafe impl Sync for RawIrqLock {}
// SAFETY: it is plain data while nobody holds the lock.
unsafe impl Send for RawIrqLock {}

// SAFETY: exclusion is that of `inner`.
unsafe impl lock_api::RawMutex for RawIrqLock {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self::new(Class::UNKNOWN);
    type GuardMarker = lock_api::GuardNoSend;

    #[inline]
    #[track_caller]
    fn lock(&self) {
        let site = Location::caller();
        lockdep::before(&self.inner.class, self, site);
        // Interrupts come back on between tries: a CPU that waits here answers shootdowns.
        while !self.try_take() {
            while lock_api::RawMutex::is_locked(&self.inner) {
                spin_loop();
            }
        }
        lockdep::taken(&self.inner.class, self, Kind::Irq, site);
    }

    #[inline]
    #[track_caller]
    fn try_lock(&self) -> bool {
        let taken = self.try_take();
        if taken {
            lockdep::taken(&self.inner.class, self, Kind::Irq, Location::caller());
        }
        taken
    }

    #[inline]
    unsafe fn unlock(&self) {
        // SAFETY: this CPU holds the lock until the line below; it reads the flag first.
        let enabled = unsafe { *self.enabled.get() };
        lockdep::released(self);
        self.inner.give_back();
        if enabled {
            interrupts::enable();
        }
    }

    fn is_locked(&self) -> bool {
        lock_api::RawMutex::is_locked(&self.inner)
    }
}
