//! The timers of timer_create(2).
//!
//! A timer that goes off sends its signal and rests. When the signal is taken, and not before, a periodic timer is armed for its next
//! time; the periods that passed meanwhile are counted at once and are the signal's overrun count. So a timer costs nobody more than
//! one expiration for each signal that its process takes, however short its interval is. A timer whose signal is ignored rests until
//! sigaction(2) says otherwise.
//!
//! The signal's memory belongs to the timer from its creation on, and the timer counts for RLIMIT_SIGPENDING of its user.
//!
//! Lock order: a process's list of timers, nothing below it; a timer's state, then the queue that it waits on. Signals are sent
//! without any of these locks.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use alloc::sync::{Arc, Weak};
use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeAtomicLink, intrusive_adapter};

use super::cpu_timers::CpuTimers;
use super::process_timers::Setting;
use super::{ClockId, Deadline, Timer, now};
use crate::errno::{Errno, Result};
use crate::process::accounts::{Counted, Share};
use crate::process::{Charge, Process, Thread, limits};
use crate::sched;
use crate::signal::{self, Queued, SigInfo};
use crate::sync::IrqLock;

/// What a timer does when it goes off.
pub enum Notify {
    Nothing,
    Signal { signal: u32, value: u64 },
    Thread { signal: u32, value: u64, thread: Weak<Thread> },
}

/// A timer of timer_create(2).
pub struct PosixTimer {
    by_id: RBTreeAtomicLink,
    id: i32,
    clock: ClockId,
    process: Weak<Process>,
    /// Its signal, and the thread that gets it if it is not for the process; no signal with SIGEV_NONE.
    signal: Option<Arc<Queued>>,
    thread: Option<Weak<Thread>>,
    state: IrqLock<State>,
    /// For the clocks that run by themselves.
    timer: Option<Arc<Timer>>,
    /// For CPU clocks: the place in the queue of the clock, whose lock guards both.
    pub(super) cpu_link: RBTreeAtomicLink,
    pub(super) cpu_deadline: UnsafeCell<u64>,
    _share: Share,
    _charge: Charge,
}

// SAFETY: `cpu_deadline` is guarded as its comment says; the rest is atomic, locked or immutable.
unsafe impl Sync for PosixTimer {}
// SAFETY: as above.
unsafe impl Send for PosixTimer {}

#[derive(Default)]
struct State {
    /// The next expiration, 0 when off: a time of the timer's clock, or a monotonic time for a relative setting of the real-time
    /// clock, which does not follow when that clock is set.
    deadline: u64,
    monotonic: bool,
    interval: u64,
    /// It waits for the deadline. If not, its signal is pending or ignored.
    armed: bool,
    ignored: bool,
    /// Expirations without a signal of their own since the last one.
    overruns: u64,
    /// What the signal that was taken last said.
    last_overruns: i32,
    deleted: bool,
}

/// The time of a timer's clock and the monotonic time.
#[derive(Clone, Copy)]
struct Times {
    clock: u64,
    monotonic: u64,
}

impl State {
    /// The time that the deadline is compared with.
    fn of(&self, times: Times) -> u64 {
        if self.monotonic { times.monotonic } else { times.clock }
    }

    /// Counts the periods that have passed, and moves the deadline behind `time`. Only for periodic timers.
    fn forward(&mut self, time: u64) {
        if let Some(late) = time.checked_sub(self.deadline)
            && let Some(periods) = late.checked_div(self.interval)
        {
            let periods = periods.saturating_add(1);
            self.overruns = self.overruns.saturating_add(periods);
            self.deadline = self.deadline.saturating_add(periods.saturating_mul(self.interval));
        }
    }
}

impl PosixTimer {
    fn cpu_queue(&self) -> Option<&CpuTimers> {
        match &self.clock {
            ClockId::ProcessCpu(process) => Some(&process.timers.cpu),
            ClockId::ThreadCpu(thread) => Some(&thread.cpu_timers),
            ClockId::Realtime | ClockId::Monotonic { .. } => None,
        }
    }

    /// The time now. Taken without locks: a process's CPU time is a sum over its threads.
    fn times(&self) -> Times {
        Times { clock: self.clock.now(), monotonic: now() }
    }

    /// Waits for the deadline, if the timer is on and does anything then.
    fn arm(self: &Arc<Self>, state: &mut State) {
        let wanted = state.deadline != 0 && self.signal.is_some() && !state.deleted;
        state.armed = wanted;
        state.ignored = false;
        match (self.cpu_queue(), &self.timer) {
            (Some(queue), _) if wanted => queue.arm(self, state.deadline),
            (Some(queue), _) => queue.cancel(self),
            (None, Some(timer)) if wanted => {
                let deadline = match self.clock.to_deadline(state.deadline) {
                    Ok(deadline) if !state.monotonic => deadline,
                    _ => Deadline::Monotonic(state.deadline),
                };
                timer.arm(deadline);
            }
            (None, Some(timer)) => _ = timer.cancel(),
            (None, None) => {}
        }
    }

    /// timer_gettime(2).
    pub fn get(&self) -> Setting {
        let times = self.times();
        let mut state = self.state.lock();
        let time = state.of(times);
        self.setting(&mut state, time)
    }

    fn setting(&self, state: &mut State, time: u64) -> Setting {
        if state.interval != 0 && !state.armed && state.deadline != 0 {
            // Its signal waits, or it has none: the periods until now are overruns.
            state.forward(time);
        }
        let left = state.deadline.saturating_sub(time);
        let value = match state.deadline {
            0 => 0,
            // Off once it has gone off, where nobody hears of that.
            _ if left == 0 && self.signal.is_none() => 0,
            _ => left.max(1),
        };
        Setting { value, interval: state.interval }
    }

    /// timer_settime(2): returns the old setting.
    pub fn set(self: &Arc<Self>, new: Setting, absolute: bool) -> Setting {
        let times = self.times();
        let mut state = self.state.lock();
        let time = state.of(times);
        let old = self.setting(&mut state, time);
        let monotonic = !absolute && matches!(self.clock, ClockId::Realtime);
        *state = State { interval: new.interval, monotonic, deleted: state.deleted, ..State::default() };
        state.deadline = match new.value {
            0 => 0,
            value if absolute => value,
            value => state.of(times).saturating_add(value),
        };
        self.arm(&mut state);
        old
    }

    /// timer_getoverrun(2).
    pub fn overrun(&self) -> i32 {
        self.state.lock().last_overruns
    }

    /// timer_delete(2), and the end of the process.
    fn delete(self: &Arc<Self>) {
        let mut state = self.state.lock();
        *state = State { deleted: true, ..State::default() };
        self.arm(&mut state);
    }

    /// It may be due: sends its signal. Called without locks.
    fn expired(self: &Arc<Self>, times: Times) {
        let Some(queued) = &self.signal else { return };
        {
            let mut state = self.state.lock();
            if !state.armed {
                return;
            }
            let time = state.of(times);
            if state.deadline > time {
                // Set anew since, or the clock was set back.
                self.arm(&mut state);
                return;
            }
            state.armed = false;
            if !queued.is_pending() {
                state.overruns = 0;
            }
            // This expiration is the signal's own, and no overrun, unless the last signal waits still.
            let own = u64::from(!queued.is_pending());
            if state.interval == 0 {
                state.deadline = 0;
                state.overruns = state.overruns.saturating_add(1 - own);
            } else {
                state.forward(time);
                state.overruns = state.overruns.saturating_sub(own);
            }
        }
        let sent = match (&self.thread, self.process.upgrade()) {
            (_, None) => return,
            (None, Some(process)) => signal::send_of_timer(&process, None, queued),
            (Some(thread), Some(process)) => match thread.upgrade() {
                Some(thread) => signal::send_of_timer(&process, Some(&thread), queued),
                // It has ended, and nobody else gets its signals.
                None => true,
            },
        };
        if !sent {
            self.rest();
        }
    }

    /// Its CPU clock has reached its deadline and stands at `time`. Called without locks.
    pub(super) fn cpu_time_reached(self: &Arc<Self>, time: u64) {
        self.expired(Times { clock: time, monotonic: 0 });
    }

    /// Its signal is ignored: nothing more is sent until sigaction(2) changes that.
    fn rest(self: &Arc<Self>) {
        let Some(process) = self.process.upgrade() else { return };
        process.timers.posix.some_rest.store(true, Ordering::SeqCst);
        {
            let mut state = self.state.lock();
            state.ignored = !state.armed && state.deadline != 0;
        }
        // A sigaction(2) that came before the mark did not find the timer.
        if let Some(queued) = &self.signal
            && !process.actions.lock().get(queued.signal()).ignores(queued.signal())
        {
            self.resume();
        }
    }

    /// Its signal is not ignored any more.
    fn resume(self: &Arc<Self>) {
        let times = self.times();
        let mut state = self.state.lock();
        if state.ignored {
            self.forward_and_arm(&mut state, times);
        }
    }

    fn forward_and_arm(self: &Arc<Self>, state: &mut State, times: Times) {
        if !state.armed && state.deadline != 0 {
            state.forward(state.of(times));
            self.arm(state);
        }
    }

    /// Its signal is taken: arms the next time, and says how often the timer went off besides.
    pub fn signal_taken(self: &Arc<Self>) -> i32 {
        let times = self.times();
        let mut state = self.state.lock();
        self.forward_and_arm(&mut state, times);
        state.last_overruns = state.overruns.min(i32::MAX as u64) as i32;
        state.overruns = 0;
        state.last_overruns
    }

    /// Its signal was thrown away: by sigaction(2), or by SIGCONT.
    pub fn signal_lost(self: &Arc<Self>) {
        let Some(process) = self.process.upgrade() else { return };
        let Some(queued) = &self.signal else { return };
        let action = process.actions.lock().get(queued.signal());
        if action.ignores(queued.signal()) {
            self.rest();
        } else {
            let times = self.times();
            self.forward_and_arm(&mut self.state.lock(), times);
        }
    }
}

intrusive_adapter!(ById = Arc<PosixTimer>: PosixTimer { by_id => RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for ById {
    type Key = i32;

    fn get_key(&self, timer: &'a PosixTimer) -> i32 {
        timer.id
    }
}

/// The timers of a process.
pub struct PosixTimers {
    list: IrqLock<List>,
    /// Whether one has ever rested because its signal was ignored.
    some_rest: AtomicBool,
}

struct List {
    timers: RBTree<ById>,
    /// Where the search for a free number begins.
    next_id: i32,
}

impl PosixTimers {
    pub const fn new() -> Self {
        Self {
            list: IrqLock::new(List { timers: RBTree::new(ById::NEW), next_id: 0 }),
            some_rest: AtomicBool::new(false),
        }
    }

    /// timer_create(2); `make` says what the timer with this number does. `EAGAIN` when the user has too many.
    pub fn create(
        &self,
        process: &Arc<Process>,
        clock: ClockId,
        make: impl FnOnce(i32) -> Result<Notify>,
    ) -> Result<i32> {
        let limit = process.limit(limits::SIGPENDING);
        let share =
            Share::take_within(process.uid_for_signals(), Counted::Signals, limit).ok_or(Errno::EAGAIN)?;
        const BYTES: usize = size_of::<PosixTimer>() + size_of::<Timer>() + size_of::<Queued>();
        // When the one whose CPU time it is has ended nobody else may know of him.
        let kept = match &clock {
            ClockId::ProcessCpu(other) if !Arc::ptr_eq(other, process) => size_of::<Process>(),
            ClockId::ThreadCpu(_) => size_of::<Thread>(),
            _ => 0,
        };
        let charge = process.charges.add(BYTES + kept);
        let id = self.reserve()?;
        let notify = make(id)?;
        let timer = Arc::new_cyclic(|this: &Weak<PosixTimer>| {
            let (signal, thread) = match notify {
                Notify::Nothing => (None, None),
                Notify::Signal { signal, value } => (Some((signal, value)), None),
                Notify::Thread { signal, value, thread } => (Some((signal, value)), Some(thread)),
            };
            let by_itself =
                matches!(clock, ClockId::Realtime | ClockId::Monotonic { .. }) && signal.is_some();
            let weak = this.clone();
            PosixTimer {
                by_id: RBTreeAtomicLink::new(),
                id,
                process: Arc::downgrade(process),
                signal: signal.map(|(signal, value)| {
                    Queued::of_timer(SigInfo::timer(signal, id, 0, value), this.clone())
                }),
                thread,
                state: IrqLock::new(State::default()),
                timer: by_itself.then(|| {
                    Timer::new_deferred(move || {
                        if let Some(this) = weak.upgrade() {
                            this.expired(this.times());
                        }
                    })
                }),
                cpu_link: RBTreeAtomicLink::new(),
                cpu_deadline: UnsafeCell::new(0),
                clock,
                _share: share,
                _charge: charge,
            }
        });
        let mut list = self.list.lock();
        if !list.timers.find(&id).is_null() {
            // All numbers were gone through meanwhile.
            return Err(Errno::EAGAIN);
        }
        list.timers.insert(timer);
        Ok(id)
    }

    /// A free number, which is not given again until all others were tried.
    fn reserve(&self) -> Result<i32> {
        let mut list = self.list.lock();
        // Numbers in use are seldom in the way: a limit on what is tried keeps a search short that would meet many.
        const TRIES: usize = 1024;
        for _ in 0..TRIES {
            let id = list.next_id;
            list.next_id = id.checked_add(1).unwrap_or(0);
            if list.timers.find(&id).is_null() {
                return Ok(id);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// The timer with this number; `EINVAL`.
    pub fn get(&self, id: i32) -> Result<Arc<PosixTimer>> {
        self.list.lock().timers.find(&id).clone_pointer().ok_or(Errno::EINVAL)
    }

    /// timer_delete(2).
    pub fn delete(&self, id: i32) -> Result<()> {
        let timer = self.list.lock().timers.find_mut(&id).remove().ok_or(Errno::EINVAL)?;
        timer.delete();
        Ok(())
    }

    /// Deletes all of them.
    pub fn clear(&self) {
        loop {
            let Some(timer) = self.list.lock().timers.front_mut().remove() else { return };
            timer.delete();
            drop(timer);
            sched::cond_resched();
        }
    }

    /// Arms those again that rest because this signal was ignored.
    pub fn resume(&self, signal: u32) {
        if !self.some_rest.load(Ordering::SeqCst) {
            return;
        }
        let mut from = Bound::Unbounded;
        let mut last;
        loop {
            let Some(timer) = self.list.lock().timers.lower_bound(from).clone_pointer() else { return };
            last = timer.id;
            if timer.signal.as_ref().is_some_and(|queued| queued.signal() == signal) {
                timer.resume();
            }
            drop(timer);
            sched::cond_resched();
            from = Bound::Excluded(&last);
        }
    }
}
