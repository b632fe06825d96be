//! Signal state of threads and processes.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::frame::AltStack;
use super::{Pending, SigSet};
use crate::process::WaitStatus;
use crate::sync::{IrqLock, SpinLock};

/// A signal may be deliverable: look at the pending sets.
const PENDING: u32 = 1;
/// The thread is to end.
const KILLED: u32 = 2;
/// The thread is to take part in a stop.
const STOP: u32 = 4;
/// The thread is to enter a stop of its tracer's.
const TRAP: u32 = 8;
/// The thread is to stop with its process again, which was told to its parent before.
const STOP_AGAIN: u32 = 16;

/// A thread's part.
pub struct ThreadSignals {
    flags: AtomicU32,
    /// Blocked signals. The thread itself changes it, under its process's signal lock.
    mask: AtomicU64,
    /// The mask to put back once a handler was entered: rt_sigsuspend(2), ppoll(2). `saved_valid` says whether there is one.
    saved_mask: AtomicU64,
    saved_valid: AtomicU32,
    /// What sigtimedwait(2) waits for: taken as unblocked by senders.
    pub(crate) waited: AtomicU64,
    pub(super) own: IrqLock<Pending>,
    pub(crate) alt_stack: SpinLock<AltStack>,
}

impl ThreadSignals {
    pub fn new(mask: SigSet, alt_stack: AltStack) -> Self {
        Self {
            flags: AtomicU32::new(0),
            mask: AtomicU64::new(mask.0),
            saved_mask: AtomicU64::new(0),
            saved_valid: AtomicU32::new(0),
            waited: AtomicU64::new(0),
            own: IrqLock::new(Pending::new()),
            alt_stack: SpinLock::new(alt_stack),
        }
    }

    /// Drops the thread's own pending signals: it has ended, or is about to.
    pub(crate) fn drop_own(&self) {
        let own = core::mem::take(&mut *self.own.lock());
        own.drain();
    }

    /// Whether there is anything to do before user mode goes on, or a sleep should end.
    #[inline]
    pub fn pending(&self) -> bool {
        self.flags.load(Ordering::SeqCst) != 0
    }

    #[inline]
    pub fn killed(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & KILLED != 0
    }

    pub(crate) fn mark_killed(&self) {
        self.flags.fetch_or(KILLED, Ordering::SeqCst);
    }

    /// The thread is on its way out and cannot be killed once more: it must be able to sleep while it cleans up.
    pub(crate) fn clear_killed(&self) {
        self.flags.fetch_and(!(KILLED | TRAP | STOP_AGAIN), Ordering::SeqCst);
    }

    pub(super) fn mark_pending(&self) {
        self.flags.fetch_or(PENDING, Ordering::SeqCst);
    }

    pub(super) fn ask_stop(&self) {
        self.flags.fetch_or(STOP, Ordering::SeqCst);
    }

    /// Has it yet to take part in a stop?
    pub(super) fn is_asked_to_stop(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & STOP != 0
    }

    /// False if it was not asked.
    pub(super) fn take_stop(&self) -> bool {
        self.flags.fetch_and(!STOP, Ordering::SeqCst) & STOP != 0
    }

    pub(crate) fn ask_trap(&self) {
        self.flags.fetch_or(TRAP, Ordering::SeqCst);
    }

    /// Has it yet to enter a stop of its tracer's?
    pub(crate) fn is_asked_to_trap(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & TRAP != 0
    }

    /// False if it was not asked.
    pub(super) fn take_trap(&self) -> bool {
        self.flags.fetch_and(!TRAP, Ordering::SeqCst) & TRAP != 0
    }

    pub(crate) fn ask_stop_again(&self) {
        self.flags.fetch_or(STOP_AGAIN, Ordering::SeqCst);
    }

    /// False if it was not asked.
    pub(super) fn take_stop_again(&self) -> bool {
        self.flags.fetch_and(!STOP_AGAIN, Ordering::SeqCst) & STOP_AGAIN != 0
    }

    /// The blocked signals.
    pub fn mask(&self) -> SigSet {
        SigSet(self.mask.load(Ordering::SeqCst))
    }

    /// The thread's own pending signals.
    pub fn own_pending(&self) -> SigSet {
        self.own.lock().set()
    }

    pub(super) fn unblocks(&self, signal: u32) -> bool {
        !self.mask().contains(signal) || SigSet(self.waited.load(Ordering::SeqCst)).contains(signal)
    }

    pub(super) fn save_mask(&self, mask: SigSet) {
        self.saved_mask.store(mask.0, Ordering::SeqCst);
        self.saved_valid.store(1, Ordering::SeqCst);
    }

    /// The mask that comes back after the system call, if one waits; else the blocked signals.
    pub(crate) fn shown_mask(&self) -> SigSet {
        match self.saved_valid.load(Ordering::SeqCst) {
            0 => self.mask(),
            _ => SigSet(self.saved_mask.load(Ordering::SeqCst)),
        }
    }

    /// The mask that waited does not come back.
    pub(crate) fn forget_saved_mask(&self) {
        self.saved_valid.store(0, Ordering::SeqCst);
    }

    pub(super) fn take_saved_mask(&self) -> Option<SigSet> {
        let valid = self.saved_valid.swap(0, Ordering::SeqCst) != 0;
        valid.then(|| SigSet(self.saved_mask.load(Ordering::SeqCst)))
    }
}

/// A process's part, behind one lock.
pub struct ProcessSignals {
    pub(crate) state: IrqLock<State>,
}

/// What the lock guards; the masks and flags of the process's threads change under it too.
pub struct State {
    pub(super) shared: Pending,
    /// Set when the whole process is to end: no thread goes back to user mode then.
    pub(crate) ending: Option<WaitStatus>,
    /// The thread that execve(2) spares while it ends all others.
    pub(crate) exec: bool,
    /// The signal that stops the process, from when the stop begins until SIGCONT.
    pub(crate) stop: Option<u32>,
    /// Threads that still have to take part in the stop.
    pub(super) stop_left: usize,
}

impl ProcessSignals {
    pub fn new() -> Self {
        Self {
            state: IrqLock::new(State {
                shared: Pending::new(),
                ending: None,
                exec: false,
                stop: None,
                stop_left: 0,
            }),
        }
    }

    /// Drops the signals that are pending for the process as a whole: it has ended, or is about to.
    pub(crate) fn drop_shared(&self) {
        let shared = core::mem::take(&mut self.state.lock().shared);
        shared.drain();
    }

    /// The signals that are pending for the process as a whole.
    pub fn shared_pending(&self) -> SigSet {
        self.state.lock().shared.set()
    }
}

impl State {
    /// Sets the thread's flag to what its pending sets and its mask say.
    pub(super) fn recalculate(&self, thread: &ThreadSignals) {
        let all = self.shared.set().union(thread.own.lock().set());
        if all.without(thread.mask()).is_empty() {
            thread.flags.fetch_and(!PENDING, Ordering::SeqCst);
        } else {
            thread.flags.fetch_or(PENDING, Ordering::SeqCst);
        }
    }

    fn set_mask(&self, thread: &ThreadSignals, mask: SigSet) -> SigSet {
        let mask = mask.without(SigSet::UNBLOCKABLE);
        let old = thread.mask.swap(mask.0, Ordering::SeqCst);
        self.recalculate(thread);
        SigSet(old)
    }
}

impl crate::process::Thread {
    /// What a signal that waits says, of those for the thread or of those for its process: the one behind `skip` others.
    pub(crate) fn pending_at(&self, shared: bool, skip: usize) -> Option<super::SigInfo> {
        let state = self.process.signals.state.lock();
        match shared {
            true => state.shared.info_at(skip),
            false => self.signals.own.lock().info_at(skip),
        }
    }

    /// Changes the blocked signals of the current thread; returns the old mask. A signal for the process that this
    /// thread no longer takes is handed to another one.
    pub fn set_signal_mask(&self, mask: SigSet) -> SigSet {
        let state = self.process.signals.state.lock();
        let old = state.set_mask(&self.signals, mask);
        let newly_blocked = mask.without(old).intersection(state.shared.set());
        drop(state);
        if !newly_blocked.is_empty() {
            super::send::retarget(&self.process, newly_blocked);
        }
        old
    }

    /// For the time of a system call: like `set_signal_mask`, and the old mask comes back after it, or after the handler
    /// of a signal that ended it.
    pub fn set_temporary_mask(&self, mask: SigSet) {
        let old = self.set_signal_mask(mask);
        self.signals.save_mask(old);
    }

    /// The call was not ended by a signal: puts back the mask from before `set_temporary_mask`.
    pub fn restore_mask(&self) {
        if let Some(mask) = self.signals.take_saved_mask() {
            self.set_signal_mask(mask);
        }
    }
}
