//! The lock types that the library asks for, from OSTD's preemption guard and wait queues.

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use lock_api::{GuardNoSend, RawMutex, RawRwLock};
use ostd::sync::WaitQueue;
use ostd::task::{DisabledPreemptGuard, disable_preempt};

/// A fair spin lock: who comes first is served first. Its holder is in OSTD's atomic mode, so sleeping with it held panics.
/// Interrupts stay on: a CPU that waits here still answers a shootdown.
pub struct RawSpin {
    next: AtomicU32,
    serving: AtomicU32,
    preemption: UnsafeCell<Option<DisabledPreemptGuard>>,
}

// SAFETY: Only the holder touches `preemption`, on the CPU that it is pinned to by that guard.
unsafe impl Sync for RawSpin {}
// SAFETY: As above; a lock that is moved is not held.
unsafe impl Send for RawSpin {}

impl RawSpin {
    fn enter(&self, guard: DisabledPreemptGuard) {
        // SAFETY: The lock was just taken.
        unsafe { *self.preemption.get() = Some(guard) };
    }
}

// SAFETY: A ticket is served once, and the next one only after `unlock`.
unsafe impl RawMutex for RawSpin {
    #[expect(clippy::declare_interior_mutable_const, reason = "how lock_api makes a lock")]
    const INIT: RawSpin =
        RawSpin { next: AtomicU32::new(0), serving: AtomicU32::new(0), preemption: UnsafeCell::new(None) };
    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        let guard = disable_preempt();
        // Relaxed: tickets only have to differ.
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        // Acquire: with the release of the holder before.
        while self.serving.load(Ordering::Acquire) != ticket {
            spin_loop();
        }
        self.enter(guard);
    }

    fn try_lock(&self) -> bool {
        let guard = disable_preempt();
        let ticket = self.serving.load(Ordering::Acquire);
        let next = ticket.wrapping_add(1);
        // Acquire: as in `lock`.
        let taken = self.next.compare_exchange(ticket, next, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if taken {
            self.enter(guard);
        }
        taken
    }

    unsafe fn unlock(&self) {
        // SAFETY: The caller holds the lock.
        let guard = unsafe { (*self.preemption.get()).take() };
        let next = self.serving.load(Ordering::Relaxed).wrapping_add(1);
        self.serving.store(next, Ordering::Release);
        drop(guard);
    }
}

/// A mutex whose waiters sleep.
pub struct RawSleep {
    held: AtomicBool,
    waiting: WaitQueue,
}

// SAFETY: `held` changes from false to true by one task at a time.
unsafe impl RawMutex for RawSleep {
    #[expect(clippy::declare_interior_mutable_const, reason = "how lock_api makes a lock")]
    const INIT: RawSleep = RawSleep { held: AtomicBool::new(false), waiting: WaitQueue::new() };
    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        self.waiting.wait_until(|| self.try_lock().then_some(()));
    }

    fn try_lock(&self) -> bool {
        // Acquire: with the release of the holder before.
        self.held.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    unsafe fn unlock(&self) {
        self.held.store(false, Ordering::Release);
        self.waiting.wake_one();
    }
}

/// A reader/writer lock whose waiters sleep. A writer that waits keeps new readers out, so it does not starve.
pub struct RawSleepRw {
    /// The readers, or [`WRITER`].
    state: AtomicUsize,
    writers: AtomicUsize,
    waiting: WaitQueue,
}

const WRITER: usize = usize::MAX;

// SAFETY: `state` changes to `WRITER` from 0 only, and counts readers else.
unsafe impl RawRwLock for RawSleepRw {
    #[expect(clippy::declare_interior_mutable_const, reason = "how lock_api makes a lock")]
    const INIT: RawSleepRw =
        RawSleepRw { state: AtomicUsize::new(0), writers: AtomicUsize::new(0), waiting: WaitQueue::new() };
    type GuardMarker = GuardNoSend;

    fn lock_shared(&self) {
        self.waiting.wait_until(|| self.try_lock_shared().then_some(()));
    }

    fn try_lock_shared(&self) -> bool {
        if self.writers.load(Ordering::Relaxed) != 0 {
            return false;
        }
        let one_more = |readers: usize| (readers != WRITER).then(|| readers + 1);
        // Acquire: with the release of the writer before.
        self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, one_more).is_ok()
    }

    unsafe fn unlock_shared(&self) {
        // Release: the writer that comes next sees what this reader has done.
        if self.state.fetch_sub(1, Ordering::Release) == 1 {
            self.waiting.wake_all();
        }
    }

    fn lock_exclusive(&self) {
        if self.try_lock_exclusive() {
            return;
        }
        self.writers.fetch_add(1, Ordering::Relaxed);
        self.waiting.wait_until(|| self.try_lock_exclusive().then_some(()));
        self.writers.fetch_sub(1, Ordering::Relaxed);
    }

    fn try_lock_exclusive(&self) -> bool {
        // Acquire: with the releases of those before.
        self.state.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    unsafe fn unlock_exclusive(&self) {
        self.state.store(0, Ordering::Release);
        self.waiting.wake_all();
    }
}
