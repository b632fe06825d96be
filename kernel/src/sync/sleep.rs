//! Raw sleeping locks: one queue of waiters, overtaken only for a short while.
//!
//! The state word answers the uncontended cases with one atomic operation. Whoever cannot have the lock at once joins the
//! queue and sets `QUEUED`. The holder that leaves last wakes the head of the queue, which then tries again: a running thread may be
//! faster and take the lock in between, so that a lock that many want is not handed from sleeper to sleeper at the price of a
//! switch each time. A head that has been overtaken twice sets `HANDOFF`: from then on nobody takes the lock past the queue, and the holder
//! that leaves last gives it to the head: to one writer, or to readers up to the next writer. These may be thousands, and the queue's lock keeps
//! interrupts off, so that only some get it at a time. `HANDOFF` then stays, and the last of those gives it to the next ones. So neither
//! readers nor writers starve.

use core::cell::UnsafeCell;
use core::ptr::NonNull;

use alloc::sync::Arc;

use super::mutant::{self, Mutant};
use super::primitive::{AT_ONCE, AtomicBool, AtomicUsize, Ordering, SPINS, constructor, spin_loop};
use super::{IrqLock, debug, perturb};
use crate::process::{self, Thread};
use crate::sched::{self, Sleep};

/// The lock's writer.
pub(super) const WRITER: usize = 1;
const QUEUED: usize = 2;
const HANDOFF: usize = 4;
/// One of its readers.
pub(super) const READER: usize = 8;
/// What says nothing of holders.
const FLAGS: usize = QUEUED | HANDOFF;

/// How often the head of the queue is overtaken before the lock is handed to it.
const OVERTAKEN: u32 = 2;

/// A waiting thread, on its own stack. It is linked and unlinked under the queue's lock.
struct Waiter {
    next: UnsafeCell<Option<NonNull<Waiter>>>,
    writer: bool,
    /// The lock is free, or was a moment ago: try again.
    retry: AtomicBool,
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

    fn is_head(&self, waiter: &Waiter) -> bool {
        self.head == Some(NonNull::from(waiter))
    }

    fn unlink_head(&mut self) {
        if let Some(head) = self.head {
            // SAFETY: as in `push`.
            self.head = unsafe { *head.as_ref().next.get() };
            if self.head.is_none() {
                self.tail = None;
            }
        }
    }

    /// Takes a waiter out, wherever it is.
    fn unlink(&mut self, waiter: &Waiter) {
        let node = NonNull::from(waiter);
        let mut before: Option<NonNull<Waiter>> = None;
        let mut at = self.head;
        while let Some(here) = at {
            // SAFETY: as in `push`.
            let next = unsafe { *here.as_ref().next.get() };
            if here == node {
                match before {
                    // SAFETY: as in `push`.
                    Some(before) => unsafe { *before.as_ref().next.get() = next },
                    None => self.head = next,
                }
                if next.is_none() {
                    self.tail = before;
                }
                return;
            }
            (before, at) = (at, next);
        }
    }

    /// Tells the head to try again. The thread is still to be woken.
    fn nudge_head(&self) -> Option<Arc<Thread>> {
        // SAFETY: as in `push`.
        let head = unsafe { self.head?.as_ref() };
        head.retry.store(true, Ordering::SeqCst);
        Some(head.thread.clone())
    }

    /// Unlinks the head and tells it that it has the lock. The thread is still to be woken.
    fn grant_head(&mut self) -> Option<Arc<Thread>> {
        let head = self.head?;
        self.unlink_head();
        // SAFETY: as in `push`; after `granted` is set the waiter may be gone, so all else is read before.
        unsafe {
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
    constructor! {
        pub fn new() -> Self {
            Self { state: AtomicUsize::new(0), queue: IrqLock::new(Queue { head: None, tail: None }) }
        }
    }

    /// Takes the lock if it is free for this kind of user; not past a queue that waits for a hand-over.
    #[inline]
    pub fn try_acquire(&self, writer: bool) -> bool {
        // Relaxed loads: the compare-and-exchange decides. Acquire on success pairs with the releasing holder.
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let blocked = if writer { state & !QUEUED != 0 } else { state & (WRITER | HANDOFF) != 0 };
            if blocked {
                return false;
            }
            let next = if writer { state | WRITER } else { state + READER };
            match self.state.compare_exchange_weak(state, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
    }

    #[cold]
    #[track_caller]
    fn acquire_slow(&self, writer: bool, mode: Sleep) -> bool {
        for _ in 0..SPINS {
            spin_loop();
            if self.try_acquire(writer) {
                return true;
            }
        }
        let Some(thread) = process::try_current() else {
            // Bring-up, before there are threads: the lock is held by another CPU for a moment.
            while !self.try_acquire(writer) {
                spin_loop();
            }
            return true;
        };
        let waiter = Waiter {
            next: UnsafeCell::new(None),
            writer,
            retry: AtomicBool::new(true),
            granted: AtomicBool::new(false),
            thread: thread.to_arc(),
        };
        {
            let mut queue = self.queue.lock();
            queue.push(&waiter);
            self.state.fetch_or(QUEUED, Ordering::SeqCst);
        }
        let mut overtaken = 0;
        loop {
            let slept = sched::sleep(mode, None, || {
                waiter.granted.load(Ordering::SeqCst) || waiter.retry.load(Ordering::SeqCst)
            });
            if self.try_as_head(&waiter, &mut overtaken) {
                return true;
            }
            if slept.is_err() {
                return self.give_up(&waiter);
            }
        }
    }

    /// A signal ends the wait: true if the waiter was given the lock meanwhile.
    fn give_up(&self, waiter: &Waiter) -> bool {
        let mut queue = self.queue.lock();
        // Acquire pairs with `grant_head`.
        if waiter.granted.load(Ordering::Acquire) {
            return true;
        }
        queue.unlink(waiter);
        self.queue_changed(&queue);
        // It may have been told that the lock is free, or have kept readers behind it from joining those who read.
        if !mutant::is(Mutant::LeavesQuietly) {
            self.tell_head(&mut queue);
        }
        false
    }

    /// A waiter that was told to try again: true if it has the lock now, and is no longer queued.
    fn try_as_head(&self, waiter: &Waiter, overtaken: &mut u32) -> bool {
        let mut queue = self.queue.lock();
        // Acquire pairs with `grant_head`.
        if waiter.granted.load(Ordering::Acquire) {
            return true;
        }
        // Before the attempt: a holder that leaves after it waits for the queue's lock and then sets it again.
        if !mutant::is(Mutant::RetryClearedLate) {
            waiter.retry.store(false, Ordering::SeqCst);
        }
        perturb::point();
        if !queue.is_head(waiter) {
            return false;
        }
        if self.try_acquire(waiter.writer) {
            queue.unlink_head();
            self.queue_changed(&queue);
            // Readers come in company.
            if !waiter.writer && queue.head_is_writer() == Some(false) {
                wake(queue.nudge_head());
            }
            return true;
        }
        if mutant::is(Mutant::RetryClearedLate) {
            drop(queue);
            waiter.retry.store(false, Ordering::SeqCst);
            return false;
        }
        *overtaken += 1;
        if *overtaken > OVERTAKEN {
            self.state.fetch_or(HANDOFF, Ordering::SeqCst);
            // The holder may have left just before it could see that.
            self.hand_over(&mut queue);
            return waiter.granted.load(Ordering::Acquire);
        }
        false
    }

    /// Nobody waits any more: the flags go.
    fn queue_changed(&self, queue: &Queue) {
        if queue.head.is_none() {
            self.state.fetch_and(!FLAGS, Ordering::SeqCst);
        }
    }

    /// With `HANDOFF` set: gives the lock to some at the head of the queue who can have it now, and wakes them.
    fn hand_over(&self, queue: &mut Queue) {
        let mut given = 0;
        while let Some(writer) = queue.head_is_writer() {
            // HANDOFF is set, so that only holders that leave change the state beside this.
            let state = self.state.load(Ordering::SeqCst);
            let busy = if writer { state & !FLAGS != 0 } else { state & WRITER != 0 };
            if busy {
                break;
            }
            if given == AT_ONCE {
                // The next ones could have it, too. Nobody overtakes them until the last of these leaves.
                return;
            }
            self.state.fetch_add(if writer { WRITER } else { READER }, Ordering::SeqCst);
            wake(queue.grant_head());
            given += 1;
        }
        if given > 0 {
            self.state.fetch_and(!HANDOFF, Ordering::SeqCst);
        }
        self.queue_changed(queue);
    }

    /// A holder has left, or a writer has become a reader, and somebody waits.
    #[cold]
    fn next(&self) {
        self.tell_head(&mut self.queue.lock());
    }

    /// The head of the queue, if there is one, may have the lock now.
    fn tell_head(&self, queue: &mut Queue) {
        if self.state.load(Ordering::SeqCst) & HANDOFF != 0 {
            self.hand_over(queue);
        } else {
            wake(queue.nudge_head());
        }
    }

    /// Takes the lock, and sleeps until it can be had.
    #[inline]
    #[track_caller]
    pub fn acquire(&self, writer: bool) {
        debug::assert_may_sleep();
        if !self.try_acquire(writer) {
            self.acquire_slow(writer, Sleep::Uninterruptible);
        }
    }

    /// As `acquire`, unless a signal that `mode` admits comes first: then false.
    #[track_caller]
    pub fn acquire_unless(&self, writer: bool, mode: Sleep) -> bool {
        debug::assert_may_sleep();
        self.try_acquire(writer) || self.acquire_slow(writer, mode)
    }

    /// Gives the lock back. `holder` is what the caller is: [`READER`] or [`WRITER`].
    #[inline]
    pub fn release(&self, holder: usize) {
        // Release: the next holder sees what this one wrote.
        let left = self.state.fetch_sub(holder, Ordering::Release) - holder;
        perturb::point();
        if mutant::is(Mutant::ReleaseTellsNobody) {
            return;
        }
        if left & QUEUED != 0 && left & !FLAGS == 0 {
            self.next();
        }
    }

    /// Whether anybody has it.
    pub fn is_held(&self) -> bool {
        // Relaxed: the answer is stale at once anyway.
        self.state.load(Ordering::Relaxed) & !FLAGS != 0
    }

    /// The writer becomes a reader.
    pub fn become_reader(&self) {
        // Release: readers see what the writer wrote. Adding READER - WRITER is one step: never free in between.
        let before = self.state.fetch_add(READER - WRITER, Ordering::Release);
        if before & QUEUED != 0 {
            self.next();
        }
    }
}

fn wake(thread: Option<Arc<Thread>>) {
    if let Some(thread) = thread {
        sched::wake(&thread);
    }
}
