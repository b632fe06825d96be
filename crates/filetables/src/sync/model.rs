//! Atomics that a model checker schedules: loom or shuttle, chosen at run time.
//!
//! Both checkers run all threads of a model on one thread of the operating system, so the choice is that thread's.

use core::cell::Cell;
use core::sync::atomic::{self as core_atomic, Ordering};

/// Who schedules the threads of a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checker {
    /// Nobody: the operating system.
    Nobody,
    /// loom: all schedules within bounds, and all values that the memory order permits a load to see.
    Loom,
    /// shuttle: many schedules, each load sees the last store.
    Shuttle,
}

std::thread_local! {
    static CHECKER: Cell<Checker> = const { Cell::new(Checker::Nobody) };
}

impl Checker {
    /// The checker of this thread.
    #[must_use]
    pub fn current() -> Checker {
        CHECKER.get()
    }

    /// Makes what is created from now on belong to the checker.
    pub fn enter(self) {
        CHECKER.set(self);
    }
}

#[derive(Debug)]
enum Scheduled {
    Nothing,
    Loom(loom::sync::atomic::AtomicU64),
    Shuttle(shuttle::sync::atomic::AtomicU64),
}

/// A number that threads share.
#[derive(Debug)]
pub struct AtomicU64 {
    scheduled: Scheduled,
    /// The last value in modification order, for checkers that look at it from outside.
    last: core_atomic::AtomicU64,
}

impl AtomicU64 {
    /// An atomic of the current checker.
    #[must_use]
    pub fn new(value: u64) -> AtomicU64 {
        let scheduled = match Checker::current() {
            Checker::Nobody => Scheduled::Nothing,
            Checker::Loom => Scheduled::Loom(loom::sync::atomic::AtomicU64::new(value)),
            Checker::Shuttle => Scheduled::Shuttle(shuttle::sync::atomic::AtomicU64::new(value)),
        };
        AtomicU64 { scheduled, last: core_atomic::AtomicU64::new(value) }
    }

    /// The last value stored, without being a step of the model.
    #[must_use]
    pub fn peek(&self) -> u64 {
        self.last.load(Ordering::SeqCst)
    }

    /// As of `core`.
    pub fn load(&self, order: Ordering) -> u64 {
        match &self.scheduled {
            Scheduled::Nothing => self.last.load(order),
            Scheduled::Loom(atomic) => atomic.load(order),
            // It knows sequential consistency only.
            Scheduled::Shuttle(atomic) => atomic.load(Ordering::SeqCst),
        }
    }

    /// As of `core`.
    pub fn store(&self, value: u64, order: Ordering) {
        match &self.scheduled {
            Scheduled::Nothing => return self.last.store(value, order),
            Scheduled::Loom(atomic) => atomic.store(value, order),
            Scheduled::Shuttle(atomic) => atomic.store(value, Ordering::SeqCst),
        }
        self.last.store(value, Ordering::SeqCst);
    }

    /// As of `core`.
    pub fn swap(&self, value: u64, order: Ordering) -> u64 {
        let old = match &self.scheduled {
            Scheduled::Nothing => return self.last.swap(value, order),
            Scheduled::Loom(atomic) => atomic.swap(value, order),
            Scheduled::Shuttle(atomic) => atomic.swap(value, Ordering::SeqCst),
        };
        self.last.store(value, Ordering::SeqCst);
        old
    }

    /// As of `core`.
    ///
    /// # Errors
    ///
    /// The value that was there, when it was not `current`.
    pub fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        let result = match &self.scheduled {
            Scheduled::Nothing => return self.last.compare_exchange(current, new, success, failure),
            Scheduled::Loom(atomic) => atomic.compare_exchange(current, new, success, failure),
            Scheduled::Shuttle(atomic) => {
                atomic.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst)
            }
        };
        if result.is_ok() {
            self.last.store(new, Ordering::SeqCst);
        }
        result
    }

    /// As of `core`.
    pub fn fetch_add(&self, amount: u64, order: Ordering) -> u64 {
        let old = match &self.scheduled {
            Scheduled::Nothing => return self.last.fetch_add(amount, order),
            Scheduled::Loom(atomic) => atomic.fetch_add(amount, order),
            Scheduled::Shuttle(atomic) => atomic.fetch_add(amount, Ordering::SeqCst),
        };
        self.last.store(old.wrapping_add(amount), Ordering::SeqCst);
        old
    }

    /// As of `core`.
    pub fn fetch_sub(&self, amount: u64, order: Ordering) -> u64 {
        self.fetch_add(amount.wrapping_neg(), order)
    }
}

/// A flag that threads share.
#[derive(Debug)]
pub struct AtomicBool(AtomicU64);

impl AtomicBool {
    /// A flag of the current checker.
    #[must_use]
    pub fn new(value: bool) -> AtomicBool {
        AtomicBool(AtomicU64::new(value.into()))
    }

    /// As of `core`.
    pub fn load(&self, order: Ordering) -> bool {
        self.0.load(order) != 0
    }

    /// As of `core`.
    pub fn store(&self, value: bool, order: Ordering) {
        self.0.store(value.into(), order);
    }

    /// As of `core`.
    pub fn swap(&self, value: bool, order: Ordering) -> bool {
        self.0.swap(value.into(), order) != 0
    }
}

/// As of `core`.
pub fn fence(order: Ordering) {
    match Checker::current() {
        Checker::Nobody => core_atomic::fence(order),
        Checker::Loom => loom::sync::atomic::fence(order),
        Checker::Shuttle => shuttle::sync::atomic::fence(Ordering::SeqCst),
    }
}
