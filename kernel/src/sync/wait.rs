//! Wait queues: threads sleep until a condition holds, watchers are told of each wake.
//!
//! The guarantee: whoever changes the condition and then wakes the queue is never missed. A waiter joins the queue first and
//! evaluates the condition after that, and both sides go through the queue's lock: either the waker finds the waiter, or the waiter
//! sees what the waker wrote. A condition may itself sleep.

use alloc::sync::Arc;
use core::cell::UnsafeCell;
use core::ptr::NonNull;

use super::mutant::{self, Mutant};
use super::primitive::{AtomicBool, AtomicUsize, Ordering, constructor, fence};
use super::watchers::{Place, Watchers};
use super::{IrqLock, debug, perturb};
use crate::errno::Errno;
use crate::process::{self, Thread};
use crate::sched::{self, Sleep};
use crate::time::Deadline;

/// Somebody who wants to hear of wakes without sleeping in the queue: poll, epoll.
pub trait Watcher: Send + Sync {
    /// The queue was woken. Called with interrupts off and with the queue's lock held: sets flags, wakes threads, nothing else.
    fn notify(&self);
}

/// Why a wait ended without its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// A signal is pending. The caller chooses between `EINTR` and one of the restart codes.
    Interrupted,
    /// The deadline has passed.
    TimedOut,
}

/// For waits that restart after a signal handler with SA_RESTART, and whose deadline means `ETIMEDOUT`.
impl From<WaitError> for Errno {
    fn from(error: WaitError) -> Errno {
        match error {
            WaitError::Interrupted => Errno::ERESTARTSYS,
            WaitError::TimedOut => Errno::ETIMEDOUT,
        }
    }
}

/// A waiting thread, on its own stack; linked under the queue's lock.
struct Waiter {
    prev: UnsafeCell<Option<NonNull<Waiter>>>,
    next: UnsafeCell<Option<NonNull<Waiter>>>,
    queued: UnsafeCell<bool>,
    /// Position in the order of arrival: `wake_all` stops at those who came after it began.
    ticket: UnsafeCell<usize>,
    woken: AtomicBool,
    thread: Arc<Thread>,
}

struct Waiters {
    head: Option<NonNull<Waiter>>,
    tail: Option<NonNull<Waiter>>,
    next_ticket: usize,
    watchers: Watchers,
}

// SAFETY: the waiters are used under the lock around this list only, and unlink themselves before they leave their stack.
unsafe impl Send for Waiters {}

impl Waiters {
    /// # Safety
    /// The waiter is not queued, and stays where it is until it was unlinked.
    unsafe fn push(&mut self, waiter: &Waiter) {
        let node = NonNull::from(waiter);
        // SAFETY: the queue's lock is held (`&mut self`), and queued waiters are alive.
        unsafe {
            *waiter.prev.get() = self.tail;
            *waiter.next.get() = None;
            *waiter.queued.get() = true;
            *waiter.ticket.get() = self.next_ticket;
            match self.tail {
                Some(tail) => *tail.as_ref().next.get() = Some(node),
                None => self.head = Some(node),
            }
        }
        self.next_ticket += 1;
        self.tail = Some(node);
    }

    /// Unlinks the waiter if it is queued.
    fn unlink(&mut self, waiter: &Waiter) {
        // SAFETY: as in `push`.
        unsafe {
            if !*waiter.queued.get() {
                return;
            }
            *waiter.queued.get() = false;
            let (prev, next) = (*waiter.prev.get(), *waiter.next.get());
            match prev {
                Some(prev) => *prev.as_ref().next.get() = next,
                None => self.head = next,
            }
            match next {
                Some(next) => *next.as_ref().prev.get() = prev,
                None => self.tail = prev,
            }
        }
    }

    /// Unlinks the head, if it came before `limit`, and marks it woken. The thread is still to be woken.
    fn pop(&mut self, limit: usize) -> Option<Arc<Thread>> {
        let head = self.head?;
        // SAFETY: as in `push`. Once `woken` is set and the lock is released the waiter may be gone.
        unsafe {
            let waiter = head.as_ref();
            if *waiter.ticket.get() >= limit {
                return None;
            }
            self.unlink(waiter);
            let thread = waiter.thread.clone();
            waiter.woken.store(true, Ordering::SeqCst);
            Some(thread)
        }
    }
}

/// Threads that wait for something, and watchers.
pub struct WaitQueue {
    /// How many waiters and watchers there are: a wake of an empty queue takes no lock.
    users: AtomicUsize,
    waiters: IrqLock<Waiters>,
}

impl WaitQueue {
    constructor! {
        /// An empty queue. Its lock is of the class of all queues that are made at that place.
        #[track_caller]
        pub fn new() -> Self {
            let waiters = Waiters { head: None, tail: None, next_ticket: 0, watchers: Watchers::new() };
            Self { users: AtomicUsize::new(0), waiters: IrqLock::new(waiters) }
        }
    }

    /// Whether nobody waits or watches, as a wake sees it: who comes later looks at the condition by itself.
    pub fn is_unused(&self) -> bool {
        fence(Ordering::SeqCst);
        self.users.load(Ordering::SeqCst) == 0
    }

    /// Waits until the condition gives a value. No signal ends this wait: for things that are sure to happen soon.
    pub fn wait_until<T>(&self, condition: impl FnMut() -> Option<T>) -> T {
        match self.wait(Sleep::Uninterruptible, None, condition) {
            Ok(value) => value,
            Err(_) => unreachable!("neither signals nor a deadline end this wait"),
        }
    }

    /// Waits until the condition gives a value, a signal is pending, or the deadline (monotonic nanoseconds) has passed.
    /// The condition has the last word: it is evaluated once more before an error is returned.
    pub fn wait_event<T>(
        &self,
        deadline: Option<u64>,
        condition: impl FnMut() -> Option<T>,
    ) -> Result<T, WaitError> {
        self.wait_event_to(deadline.map(Deadline::Monotonic), condition)
    }

    /// As [`Self::wait_event`], to a deadline of either clock.
    pub fn wait_event_to<T>(
        &self,
        deadline: Option<Deadline>,
        condition: impl FnMut() -> Option<T>,
    ) -> Result<T, WaitError> {
        self.wait(Sleep::Interruptible, deadline, condition)
    }

    /// Like [`Self::wait_event`], but only a signal that kills the thread ends it.
    pub fn wait_killable<T>(
        &self,
        deadline: Option<u64>,
        condition: impl FnMut() -> Option<T>,
    ) -> Result<T, WaitError> {
        self.wait(Sleep::Killable, deadline.map(Deadline::Monotonic), condition)
    }

    fn wait<T>(
        &self,
        mode: Sleep,
        deadline: Option<Deadline>,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Result<T, WaitError> {
        debug::assert_may_sleep();
        if let Some(value) = condition() {
            return Ok(value);
        }
        let waiter = Waiter {
            prev: UnsafeCell::new(None),
            next: UnsafeCell::new(None),
            queued: UnsafeCell::new(false),
            ticket: UnsafeCell::new(0),
            woken: AtomicBool::new(false),
            thread: process::current().to_arc(),
        };
        if !mutant::is(Mutant::CountedLate) {
            self.users.fetch_add(1, Ordering::SeqCst);
        }
        let result = loop {
            if mutant::is(Mutant::JoinedLate)
                && let Some(value) = condition()
            {
                break Ok(value);
            }
            {
                let mut waiters = self.waiters.lock();
                waiter.woken.store(false, Ordering::SeqCst);
                // SAFETY: `unlink` below runs before the waiter leaves this frame.
                unsafe {
                    if !*waiter.queued.get() {
                        waiters.push(&waiter);
                    }
                }
            }
            // Pairs with the fence in `wake`: either the waker counts this user, or the condition sees its change.
            fence(Ordering::SeqCst);
            perturb::point();
            if !mutant::is(Mutant::JoinedLate)
                && let Some(value) = condition()
            {
                break Ok(value);
            }
            if mutant::is(Mutant::CountedLate) {
                self.users.fetch_add(1, Ordering::SeqCst);
            }
            perturb::point();
            let slept = sched::sleep_to(mode, deadline, || waiter.woken.load(Ordering::SeqCst));
            if let Err(error) = slept {
                // A wake may have come between the look at the flag and here. It must not be lost: it was perhaps
                // meant for one waiter only. The condition decides, and if it does not hold the wake is passed on.
                self.waiters.lock().unlink(&waiter);
                if let Some(value) = condition() {
                    break Ok(value);
                }
                if waiter.woken.load(Ordering::SeqCst) {
                    self.wake_one();
                }
                break Err(error);
            }
        };
        self.waiters.lock().unlink(&waiter);
        // Race: a wake-up that took this waiter out of the queue after it had looked, and found what it waits for, was not for that. It was
        // perhaps meant for one waiter only, and goes on to the next.
        if result.is_ok() && waiter.woken.load(Ordering::SeqCst) && !mutant::is(Mutant::WakeKept) {
            self.wake_one();
        }
        self.users.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Wakes the waiter that came first, and all watchers. Usable in interrupt handlers.
    pub fn wake_one(&self) {
        self.wake(1);
    }

    /// Wakes all waiters and watchers. Usable in interrupt handlers.
    pub fn wake_all(&self) {
        self.wake(usize::MAX);
    }

    fn wake(&self, count: usize) {
        if !mutant::is(Mutant::UsersWithoutFence) {
            // Pairs with the fence in `wait`.
            fence(Ordering::SeqCst);
        }
        perturb::point();
        if self.users.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut waiters = self.waiters.lock();
        // Strangers may watch: a hundred thousand of them must not keep a CPU from answering. One that is added or taken off in between
        // is told or not; it looks for itself when it has been added.
        let mut after = 0;
        while let Some(told) = waiters.watchers.notify_some(after) {
            after = told;
            drop(waiters);
            perturb::point();
            waiters = self.waiters.lock();
        }
        let limit = waiters.next_ticket;
        let mut left = count;
        while left > 0 {
            let Some(thread) = waiters.pop(limit) else { break };
            // Interrupts come on between two wakes: ten thousand waiters must not keep a CPU from answering.
            drop(waiters);
            perturb::point();
            sched::wake(&thread);
            drop(thread);
            left -= 1;
            waiters = self.waiters.lock();
        }
    }

    /// Bytes that a watcher's place takes.
    pub const BYTES_OF_WATCHER: usize = size_of::<Place>();

    /// Adds a watcher, which is told of every wake from now on.
    pub fn add_watcher(&self, watcher: Arc<dyn Watcher>) -> Result<(), Errno> {
        // Allocation stays outside the lock.
        let place = Place::new(watcher)?;
        let mut waiters = self.waiters.lock();
        waiters.watchers.add(place);
        // Under the lock: a wake that comes before the count has nothing to tell that the caller's next look does not see.
        self.users.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Removes a watcher that was added (the first entry of the same object). It may be told once more by a wake that runs now.
    pub fn remove_watcher(&self, watcher: &Arc<dyn Watcher>) {
        let removed = self.waiters.lock().watchers.remove(watcher);
        if removed.is_some() {
            self.users.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}
