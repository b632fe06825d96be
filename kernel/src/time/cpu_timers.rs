//! Timers that wait for a CPU clock, of a process or of a thread.
//!
//! The hardware does not count a process's CPU time, so each tick compares the earliest deadline with the clock: one comparison, no
//! lock. When it is reached the thread that the tick found handles what is due on its way to user mode, with interrupts on and at its
//! own expense.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::sync::Arc;
use intrusive_collections::{KeyAdapter, RBTree, RBTreeAtomicLink, intrusive_adapter};

use super::posix_timers::PosixTimer;
use crate::sched;
use crate::sync::IrqLock;

intrusive_adapter!(ByCpuTime = Arc<PosixTimer>: PosixTimer { cpu_link => RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for ByCpuTime {
    /// The address tells apart timers with the same deadline.
    type Key = (u64, usize);

    fn get_key(&self, timer: &'a PosixTimer) -> (u64, usize) {
        // SAFETY: the tree is inside the queue's lock, which guards the deadline of those in it.
        (unsafe { *timer.cpu_deadline.get() }, core::ptr::from_ref(timer).addr())
    }
}

const NEVER: u64 = u64::MAX;

/// The timers of one CPU clock.
pub struct CpuTimers {
    timers: IrqLock<RBTree<ByCpuTime>>,
    /// The first deadline, or `NEVER`. Changed under the lock.
    first: AtomicU64,
}

impl CpuTimers {
    pub const fn new() -> Self {
        Self { timers: IrqLock::new(RBTree::new(ByCpuTime::NEW)), first: AtomicU64::new(NEVER) }
    }

    /// Whether a timer is due at this time of the clock. Takes no lock.
    pub fn is_due(&self, time: u64) -> bool {
        // Relaxed: the next tick sees what this one has missed.
        self.first.load(Ordering::Relaxed) <= time
    }

    /// Makes the timer wait for `deadline`, and for nothing else. The caller holds the lock of the timer's state.
    pub(super) fn arm(&self, timer: &Arc<PosixTimer>, deadline: u64) {
        let mut timers = self.timers.lock();
        let removed = remove(&mut timers, timer);
        // SAFETY: the timer is on no queue: it has one clock, whose queue this is.
        unsafe { *timer.cpu_deadline.get() = deadline };
        timers.insert(timer.clone());
        self.note_first(&timers);
        drop(timers);
        drop(removed);
    }

    /// Takes the timer back. The caller holds the lock of the timer's state.
    pub(super) fn cancel(&self, timer: &PosixTimer) {
        let mut timers = self.timers.lock();
        let removed = remove(&mut timers, timer);
        self.note_first(&timers);
        drop(timers);
        drop(removed);
    }

    /// Takes a timer that is due at this time of the clock.
    pub(super) fn take_due(&self, time: u64) -> Option<Arc<PosixTimer>> {
        let mut timers = self.timers.lock();
        let mut first = timers.front_mut();
        // SAFETY: under the queue's lock.
        first.get().filter(|first| unsafe { *first.cpu_deadline.get() } <= time)?;
        let taken = first.remove();
        self.note_first(&timers);
        taken
    }

    /// The clock stands still for ever: its process or thread has ended.
    pub fn end(&self) {
        // Others may have many here, too.
        while self.take_due(NEVER).is_some() {
            sched::cond_resched();
        }
    }

    fn note_first(&self, timers: &RBTree<ByCpuTime>) {
        // SAFETY: under the queue's lock.
        let first = timers.front().get().map_or(NEVER, |first| unsafe { *first.cpu_deadline.get() });
        // Relaxed: see `is_due`.
        self.first.store(first, Ordering::Relaxed);
    }
}

fn remove(timers: &mut RBTree<ByCpuTime>, timer: &PosixTimer) -> Option<Arc<PosixTimer>> {
    // SAFETY: a timer that is linked is on the queue of its clock, whose lock is held.
    timer.cpu_link.is_linked().then(|| unsafe { timers.cursor_mut_from_ptr(timer).remove() }).flatten()
}
