//! The lock types: those of `lock_api`, which know their class.

use core::ops::{Deref, DerefMut};

use super::lockdep::Class;
use super::{MutexGuard, RawIrqLock, RawMutex, RawRwLock, RawSpinLock};
use crate::sched::Sleep;

macro_rules! lock {
    ($(#[$attribute:meta])* $name:ident, $kind:ident, $raw:ident) => {
        $(#[$attribute])*
        pub struct $name<T>(lock_api::$kind<$raw, T>);

        impl<T> $name<T> {
            /// A lock of the class of all that are made here.
            #[track_caller]
            pub const fn new(value: T) -> Self {
                Self(lock_api::$kind::from_raw($raw::new(Class::of_caller()), value))
            }
        }

        impl<T> Deref for $name<T> {
            type Target = lock_api::$kind<$raw, T>;

            #[inline]
            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }

        impl<T> DerefMut for $name<T> {
            #[inline]
            fn deref_mut(&mut self) -> &mut Self::Target {
                &mut self.0
            }
        }

        impl<T: Default> Default for $name<T> {
            #[track_caller]
            fn default() -> Self {
                Self::new(T::default())
            }
        }
    };
}

lock! {
    /// A lock that spins and leaves interrupts as they are.
    SpinLock, Mutex, RawSpinLock
}
lock! {
    /// A lock that spins and keeps interrupts off while it is held: for data that interrupt handlers use.
    IrqLock, Mutex, RawIrqLock
}
lock! {
    /// A lock that sleeps, first come first served.
    Mutex, Mutex, RawMutex
}
lock! {
    /// A lock that sleeps and lets readers share, first come first served: neither side starves.
    RwLock, RwLock, RawRwLock
}

impl<T> SpinLock<T> {
    /// A lock over a map or a list that grows while the lock is held, by allocations of a page at most. There is memory for these at any time
    /// ([`crate::memory::reserve`]), so that what they cost is a short time under the lock. Under other spin locks nothing is allocated.
    #[track_caller]
    pub const fn growing(value: T) -> Self {
        Self(lock_api::Mutex::from_raw(RawSpinLock::new(Class::of_caller_that_grows()), value))
    }
}

/// For locks that are held for long, or for as long as somebody likes.
impl<T> Mutex<T> {
    /// Takes the lock, unless a signal comes first.
    #[track_caller]
    pub fn lock_interruptible(&self) -> Option<MutexGuard<'_, T>> {
        self.lock_unless(Sleep::Interruptible)
    }

    /// Takes the lock, unless a signal that kills the thread comes first.
    #[track_caller]
    pub fn lock_killable(&self) -> Option<MutexGuard<'_, T>> {
        self.lock_unless(Sleep::Killable)
    }

    #[track_caller]
    fn lock_unless(&self, mode: Sleep) -> Option<MutexGuard<'_, T>> {
        // SAFETY: the lock is only taken here, and the guard that is made then gives it back.
        unsafe { self.0.raw().lock_unless(mode).then(|| self.0.make_guard_unchecked()) }
    }
}
