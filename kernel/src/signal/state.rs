//! Signal state of threads and processes.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::frame::AltStack;
use super::tell::Walk;
use super::{Pending, Place, SIGCONT, SigSet};
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
/// The thread is to rest before it goes on in user mode: its control group freezes.
const FREEZE: u32 = 32;

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
    /// What the thread knows of its process: see [`State`]. Changed under its lock.
    turn: AtomicU32,
    continued: AtomicU32,
    halted: AtomicU32,
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
            turn: AtomicU32::new(0),
            continued: AtomicU32::new(0),
            halted: AtomicU32::new(0),
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
        self.flags.fetch_and(!(KILLED | TRAP | STOP_AGAIN | FREEZE), Ordering::SeqCst);
    }

    pub(super) fn mark_pending(&self) {
        self.flags.fetch_or(PENDING, Ordering::SeqCst);
    }

    /// False if it was asked before.
    fn ask_stop(&self) -> bool {
        self.flags.fetch_or(STOP, Ordering::SeqCst) & STOP == 0
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

    pub(super) fn ask_freeze(&self) {
        self.flags.fetch_or(FREEZE, Ordering::SeqCst);
    }

    pub(super) fn forget_freeze(&self) {
        self.flags.fetch_and(!FREEZE, Ordering::SeqCst);
    }

    /// Is it to rest until its control group goes on?
    pub(crate) fn is_asked_to_freeze(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & FREEZE != 0
    }

    /// Has it to take part in a stop, of its process or of its tracer's?
    pub(crate) fn is_asked_for_stops(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & (STOP | STOP_AGAIN | TRAP) != 0
    }

    /// The blocked signals.
    pub fn mask(&self) -> SigSet {
        SigSet(self.mask.load(Ordering::SeqCst))
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
    /// Threads that were asked to take part in a stop and have not done so yet.
    stop_left: usize,
    /// The parent was told that all have stopped.
    stop_told: bool,
    /// How many stops have begun and ended: a thread that knows another number is yet to be told of the last one.
    pub(super) turn: u32,
    /// How many SIGCONT were sent, and how many signals that stop. Each removes those of the other kind from all sets: from a thread's own when
    /// that is looked at next.
    pub(super) continued: u32,
    pub(super) halted: u32,
    /// Signals for the process that may be for a thread which was not asked yet.
    pub(super) untold: SigSet,
    pub(super) walk: Walk,
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
                stop_told: false,
                turn: 0,
                continued: 0,
                halted: 0,
                untold: SigSet::EMPTY,
                walk: Walk::default(),
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
    /// A stop begins, or ends.
    pub(super) fn turn_to(&mut self, stop: Option<u32>) {
        self.stop = stop;
        self.stop_told = false;
        self.turn = self.turn.wrapping_add(1);
    }

    /// True if the thread did not know yet how the last stop began or ended. Now it does.
    pub(super) fn shows_turn_to(&self, thread: &ThreadSignals) -> bool {
        // Relaxed, here and below: under the lock.
        thread.turn.swap(self.turn, Ordering::Relaxed) != self.turn
    }

    pub(super) fn ask_stop(&mut self, thread: &ThreadSignals) {
        if thread.ask_stop() {
            self.stop_left += 1;
        }
    }

    pub(super) fn take_stop(&mut self, thread: &ThreadSignals) {
        if thread.take_stop() {
            self.stop_taken();
        }
    }

    /// A thread that was asked takes part in a stop, or need not any more.
    pub(super) fn stop_taken(&mut self) {
        debug_assert!(self.stop_left > 0, "a thread stops that was not asked");
        self.stop_left = self.stop_left.saturating_sub(1);
    }

    /// The signal of a stop in which all threads take part by now, if the parent was not told yet. It is then.
    pub(super) fn complete_stop(&mut self) -> Option<u32> {
        let signal =
            self.stop.filter(|_| self.stop_left == 0 && !self.stop_told && !self.walk.is_under_way())?;
        self.stop_told = true;
        Some(signal)
    }

    /// Which of its own signals were removed since the thread's set was used.
    fn outdated(&self, thread: &ThreadSignals) -> SigSet {
        let mut outdated = SigSet::EMPTY;
        if thread.continued.load(Ordering::Relaxed) != self.continued {
            outdated = outdated.union(SigSet::STOPPING);
        }
        if thread.halted.load(Ordering::Relaxed) != self.halted {
            outdated = outdated.union(SigSet::of(&[SIGCONT]));
        }
        outdated
    }

    /// Removes from the thread's own signals those that SIGCONT and signals that stop have removed. Before the set is used.
    pub(super) fn catch_up(&self, thread: &ThreadSignals, dropped: &mut Pending) {
        let outdated = self.outdated(thread);
        if !outdated.is_empty() {
            thread.own.lock().remove(outdated, dropped);
            self.is_new(thread);
        }
    }

    /// The thread's own set has nothing that is outdated.
    fn is_new(&self, thread: &ThreadSignals) {
        thread.continued.store(self.continued, Ordering::Relaxed);
        thread.halted.store(self.halted, Ordering::Relaxed);
    }

    /// A thread that comes knows all of it.
    pub(super) fn teach(&self, thread: &ThreadSignals) {
        self.is_new(thread);
        self.shows_turn_to(thread);
    }

    /// The thread's own pending signals.
    fn own_pending(&self, thread: &ThreadSignals) -> SigSet {
        thread.own.lock().set().without(self.outdated(thread))
    }

    /// Sets the thread's flag to what its pending sets and its mask say.
    pub(super) fn recalculate(&self, thread: &ThreadSignals) {
        let all = self.shared.set().union(self.own_pending(thread));
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
    /// The thread's own pending signals.
    pub fn own_pending(&self) -> SigSet {
        self.process.signals.state.lock().own_pending(&self.signals)
    }

    /// What a signal that waits says, of those for the thread or of those for its process: see [`Pending::entry_behind`].
    pub(crate) fn pending_behind(
        &self,
        shared: bool,
        place: Option<Place>,
        skip: usize,
    ) -> Option<(Place, super::SigInfo)> {
        let state = self.process.signals.state.lock();
        match shared {
            true => state.shared.entry_behind(place, skip),
            false => self.signals.own.lock().entry_behind(place, skip),
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
