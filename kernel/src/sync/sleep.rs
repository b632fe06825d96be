//! Raw sleeping locks: one queue of waiters, served in order.
//!
//! The state word answers the uncontended cases with one atomic operation. Whoever cannot have the lock at once
//! sets `QUEUED` and joins the queue; from then on every acquisition goes through the queue, and the holder that leaves last hands
//! the lock to the head of the queue: to one writer, or to all readers up to the next writer. Nobody overtakes the queue, so neither
//! readers nor writers starve.

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use alloc::sync::Arc;

use super::{IrqLock, debug};
use crate::process::{self, Thread};
use crate::sched::{self, Sleep};

const WRITER: usize = 1;
const QUEUED: usize = 2;
const READER: usize = 4;

/// How often a waiter looks again before it goes to sleep: most critical sections are shorter than two switches.
const SPINS: u32 = 64;

/// A waiting thread, on its own stack. It is linked and unlinked under the queue's lock.
struct Waiter {
    next: UnsafeCell<Option<NonNull<Waiter>>>,
    writer: bool,
    granted: AtomicBool,
    thread: Arc<Thread>,
}

struct Queue {
    head: Option<NonNull<Waiter>>,
    tail: Option<NonNull<Waiter>>,
}

// SAFETY: the pointers are used under the lock around the queue only, and a waiter stays on its stack until it is granted.
unsafe impl Send for Queue {}

impl Queue {
    fn push(&mut self, waiter: &Waiter) {
        let node = NonNull::from(waiter);
        match self.tail {
            // SAFETY: a queued waiter is alive: it leaves its function only after it was unlinked and granted.
            Some(tail) => unsafe { *tail.as_ref().next.get() = Some(node) },
            None => self.head = Some(node),
        }
        self.tail = Some(node);
    }

    fn head_is_writer(&self) -> Option<bool> {
        // SAFETY: as in `push`.
        self.head.map(|head| unsafe { head.as_ref().writer })
    }

    /// Unlinks the head and tells it that it has the lock. The thread is still to be woken.
    fn grant_head(&mut self) -> Option<Arc<Thread>> {
        let head = self.head?;
        // SAFETY: as in `push`; after `granted` is set the waiter may be gone, so all else is read before.
        unsafe {
            self.head = *head.as_ref().next.get();
            if self.head.is_none() {
                self.tail = None;
            }
            let thread = head.as_ref().thread.clone();
            // Release pairs with the Acquire in `wait`: the new holder sees what the last one wrote.
            head.as_ref().granted.store(true, Ordering::Release);
            Some(thread)
        }
    }
}

/// The lock behind [`super::RwLock`].
pub struct RawRwLock {
    state: AtomicUsize,
    queue: IrqLock<Queue>,
}

impl RawRwLock {
    const fn new() -> Self {
        Self { state: AtomicUsize::new(0), queue: IrqLock::new(Queue { head: None, tail: None }) }
    }

    /// Takes the lock if it is free for this kind of user and nobody waits (or `barging` under the queue's lock).
    #[inline]
    fn try_acquire(&self, writer: bool) -> bool {
        // Relaxed loads: the compare-and-exchange decides. Acquire on success pairs with the releasing holder.
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let blocked = if writer { state != 0 } else { state & (WRITER | QUEUED) != 0 };
            if blocked {
                return false;
            }
            let next = if writer { WRITER } else { state + READER };
            match self.state.compare_exchange_weak(state, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
    }

    #[cold]
    fn acquire_slow(&self, writer: bool) {
        for _ in 0..SPINS {
            spin_loop();
            if self.try_acquire(writer) {
                return;
            }
        }
        let Some(thread) = process::try_current() else {
            // Bring-up, before there are threads: the lock is held by another CPU for a moment.
            while !self.try_acquire(writer) {
                spin_loop();
            }
            return;
        };
        let waiter = Waiter {
            next: UnsafeCell::new(None),
            writer,
            granted: AtomicBool::new(false),
            thread: thread.to_arc(),
        };
        {
            let mut queue = self.queue.lock();
            // From here on nobody takes the lock but through the queue, whose lock is held: the state can only lose
            // holders, and the one who leaves last waits for the queue's lock.
            self.state.fetch_or(QUEUED, Ordering::SeqCst);
            queue.push(&waiter);
            self.hand_over(&mut queue);
        }
        // Acquire pairs with `grant_head`.
        sched::sleep_until(Sleep::Uninterruptible, || waiter.granted.load(Ordering::Acquire));
    }

    /// Gives the lock to those at the head of the queue who can have it now, and wakes them.
    fn hand_over(&self, queue: &mut Queue) {
        while let Some(writer) = queue.head_is_writer() {
            // QUEUED is set, so that only holders that leave change the state beside this.
            let state = self.state.load(Ordering::SeqCst);
            let busy = if writer { state & !QUEUED != 0 } else { state & WRITER != 0 };
            if busy {
                break;
            }
            self.state.fetch_add(if writer { WRITER } else { READER }, Ordering::SeqCst);
            if let Some(thread) = queue.grant_head() {
                sched::wake(&thread);
            }
        }
        if queue.head.is_none() {
            self.state.fetch_and(!QUEUED, Ordering::SeqCst);
        }
    }

    #[inline]
    fn release(&self, holder: usize) {
        // Release: the next holder sees what this one wrote.
        let left = self.state.fetch_sub(holder, Ordering::Release) - holder;
        if left == QUEUED {
            // The last holder has gone and somebody waits. Another CPU may have handed over meanwhile: `hand_over` looks again.
            self.hand_over(&mut self.queue.lock());
        }
    }
}

// SAFETY: WRITER is set only when no READER is counted and the other way round; hand-over keeps that.
unsafe impl lock_api::RawRwLock for RawRwLock {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self::new();
    type GuardMarker = lock_api::GuardNoSend;

    #[inline]
    fn lock_shared(&self) {
        debug::assert_may_sleep();
        if !self.try_acquire(false) {
            self.acquire_slow(false);
        }
    }

    #[inline]
    fn try_lock_shared(&self) -> bool {
        self.try_acquire(false)
    }

    #[inline]
    unsafe fn unlock_shared(&self) {
        self.release(READER);
    }

    #[inline]
    fn lock_exclusive(&self) {
        debug::assert_may_sleep();
        if !self.try_acquire(true) {
            self.acquire_slow(true);
        }
    }

    #[inline]
    fn try_lock_exclusive(&self) -> bool {
        self.try_acquire(true)
    }

    #[inline]
    unsafe fn unlock_exclusive(&self) {
        self.release(WRITER);
    }

    fn is_locked(&self) -> bool {
        // Relaxed: the answer is stale at once anyway.
        self.state.load(Ordering::Relaxed) & !QUEUED != 0
    }
}

// SAFETY: a writer becomes one reader; both exclude other writers all the time.
unsafe impl lock_api::RawRwLockDowngrade for RawRwLock {
    unsafe fn downgrade(&self) {
        // Release: readers see what the writer wrote. Adding READER - WRITER is one step: never free in between.
        let before = self.state.fetch_add(READER - WRITER, Ordering::Release);
        if before & QUEUED != 0 {
            self.hand_over(&mut self.queue.lock());
        }
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
    fn lock(&self) {
        lock_api::RawRwLock::lock_exclusive(&self.inner);
    }

    #[inline]
    fn try_lock(&self) -> bool {
        self.inner.try_acquire(true)
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.inner.release(WRITER);
    }

    fn is_locked(&self) -> bool {
        lock_api::RawRwLock::is_locked(&self.inner)
    }
}
