//! timerfd_create(2): timers that are read.

use alloc::sync::{Arc, Weak};
use core::fmt::Write;

use intrusive_collections::{LinkedList, LinkedListAtomicLink, intrusive_adapter};
use linux_raw_sys::general as abi;

use super::anonymous::Kind;
use super::file::{File, FileOps};
use super::iobuf::Sink;
use super::poll::Events;
use crate::errno::{Errno, Result};
use crate::memory::fallible::Text;
use crate::mm::uaccess::read_user;
use crate::namespaces;
use crate::sched;
use crate::sync::{IrqLock, SpinLock, WaitQueue};
use crate::time::{self, Deadline, Timer};

/// A timer's setting: nanoseconds until it goes off (0: never), and between two times (0: once).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// Until the next time, or the time of the clock itself for an absolute setting.
    pub value: u64,
    /// The period.
    pub interval: u64,
}

#[derive(Default)]
struct State {
    /// When it goes off: nanoseconds of the real-time clock for an absolute time of that, else monotonic ones.
    deadline: Option<u64>,
    realtime: bool,
    interval: u64,
    /// How often it went off since the last read.
    ticks: u64,
    /// As timerfd_settime(2) got them, for `/proc`.
    flags: u32,
    /// With TFD_TIMER_CANCEL_ON_SET how often the clock had been set when that was last told.
    told: Option<u64>,
}

/// A timer behind a descriptor.
pub struct TimerFd {
    /// The number of its clock.
    clock: i32,
    state: IrqLock<State>,
    timer: Arc<Timer>,
    expired: WaitQueue,
    /// For a clock that can be set.
    on_set: Option<Arc<OnSet>>,
}

/// A timer's place among those that hear when the clock is set.
struct OnSet {
    link: LinkedListAtomicLink,
    timer: Weak<TimerFd>,
}

intrusive_adapter!(Listed = Arc<OnSet>: OnSet { link => LinkedListAtomicLink });

/// Timers with TFD_TIMER_CANCEL_ON_SET. Its lock comes before a timer's.
static CANCELLED_ON_SET: SpinLock<OnSetList> =
    SpinLock::new(OnSetList { list: LinkedList::new(Listed::NEW), count: 0 });

struct OnSetList {
    list: LinkedList<Listed>,
    count: usize,
}

impl OnSetList {
    /// Puts a timer on the list if it is wanted there, or else takes it off. What was on the list is dropped without the lock.
    fn update(&mut self, on_set: &Arc<OnSet>, is_wanted: impl Fn() -> bool) -> Option<Arc<OnSet>> {
        match (on_set.link.is_linked(), is_wanted()) {
            (false, true) => {
                self.list.push_back(on_set.clone());
                self.count += 1;
                None
            }
            (true, false) => {
                self.count -= 1;
                // SAFETY: it is linked, and only ever on this list.
                unsafe { self.list.cursor_mut_from_ptr(Arc::as_ptr(on_set)).remove() }
            }
            _ => None,
        }
    }
}

/// The real-time clock was set: wakes who waits for a timer that is cancelled by that.
pub fn clock_was_set() {
    // Each comes to the front once, whoever leaves meanwhile; those that come are behind, and know the new time.
    let count = CANCELLED_ON_SET.lock().count;
    for _ in 0..count {
        let mut all = CANCELLED_ON_SET.lock();
        let Some(first) = all.list.pop_front() else { return };
        all.list.push_back(first.clone());
        drop(all);
        if let Some(timer) = first.timer.upgrade() {
            timer.expired.wake_all();
        }
        drop(first);
        sched::cond_resched();
    }
}

/// A new timer, not set. `clock` is checked.
pub fn create(clock: i32, flags: u32) -> Arc<File> {
    let ops = Arc::new_cyclic(|this: &Weak<TimerFd>| {
        let this = this.clone();
        let on_set = is_realtime(clock)
            .then(|| Arc::new(OnSet { link: LinkedListAtomicLink::new(), timer: this.clone() }));
        TimerFd {
            clock,
            state: IrqLock::new(State::default()),
            timer: Timer::new_deferred(move || {
                if let Some(this) = this.upgrade() {
                    this.went_off();
                }
            }),
            expired: WaitQueue::new(),
            on_set,
        }
    });
    File::anonymous(Kind::Anonymous, "[timerfd]", ops, abi::O_RDWR | flags & abi::O_NONBLOCK)
}

fn is_realtime(clock: i32) -> bool {
    matches!(clock as u32, abi::CLOCK_REALTIME | abi::CLOCK_REALTIME_ALARM)
}

impl State {
    /// Now, as the deadline counts.
    fn now(&self) -> u64 {
        if self.realtime { time::realtime_now() } else { time::now() }
    }

    /// The clock was set since that was last told: true once, and what has gone off does not count any more.
    fn take_cancelled(&mut self) -> bool {
        let cancelled = self.is_cancelled();
        if cancelled {
            self.told = Some(time::clock::times_set());
            self.ticks = 0;
        }
        cancelled
    }

    fn is_cancelled(&self) -> bool {
        self.told.is_some_and(|told| told != time::clock::times_set())
    }

    /// Counts what has come due. A periodic timer counts all its periods at once: it need not interrupt for each.
    fn update(&mut self) {
        let now = self.now();
        let Some(deadline) = self.deadline.filter(|d| *d <= now) else { return };
        if let Some(periods) = (now - deadline).checked_div(self.interval) {
            let periods = periods.saturating_add(1);
            self.ticks = self.ticks.saturating_add(periods);
            self.deadline = Some(deadline.saturating_add(periods.saturating_mul(self.interval)));
        } else {
            self.ticks = self.ticks.saturating_add(1);
            self.deadline = None;
        }
    }

    fn setting(&self) -> Setting {
        let now = self.now();
        // A timer that is due and not counted yet has next to no time left, but it is not off.
        let value = self.deadline.map_or(0, |d| d.saturating_sub(now).max(1));
        Setting { value, interval: self.interval }
    }
}

impl TimerFd {
    /// Called after the deadline. A periodic timer is armed again when it is read, not before.
    fn went_off(&self) {
        {
            let mut state = self.state.lock();
            state.update();
            if state.ticks == 0 {
                // Set anew since, or early by this CPU's clock.
                self.arm(&state);
                return;
            }
        }
        self.expired.wake_all();
    }

    /// Makes the timer wait for the deadline, if there is one. Under the state's lock: of two settings at once the later one counts for
    /// both.
    fn arm(&self, state: &State) {
        match state.deadline {
            Some(deadline) if state.realtime => self.timer.arm(Deadline::Realtime(deadline)),
            Some(deadline) => self.timer.arm(deadline),
            None => _ = self.timer.cancel(),
        }
    }

    /// timerfd_settime(2): returns the old setting. With TFD_TIMER_ABSTIME the value is a time of the timer's clock. `ECANCELED`, with the
    /// timer set, when the last setting was cancelled by a change of the clock and nobody was told.
    pub fn set(&self, new: Setting, flags: u32) -> Result<Setting> {
        let absolute = flags & abi::TFD_TIMER_ABSTIME != 0;
        let realtime = absolute && is_realtime(self.clock);
        let cancels = realtime && flags & abi::TFD_TIMER_CANCEL_ON_SET != 0;
        let mut state = self.state.lock();
        state.update();
        let old = state.setting();
        let cancelled = state.take_cancelled();
        state.ticks = 0;
        state.interval = new.interval;
        state.flags = flags;
        state.realtime = realtime;
        state.told = cancels.then(time::clock::times_set);
        state.deadline = (new.value > 0).then(|| match (absolute, realtime) {
            (false, _) => time::now().saturating_add(new.value),
            (true, true) => new.value,
            (true, false) => {
                new.value.saturating_add_signed(namespaces::time::offset(self.clock).saturating_neg())
            }
        });
        self.arm(&state);
        drop(state);
        self.list();
        if cancels && cancelled && new.value > 0 { Err(Errno::ECANCELED) } else { Ok(old) }
    }

    /// Joins or leaves those that hear when the clock is set, as the last setting wants it.
    fn list(&self) {
        let Some(on_set) = &self.on_set else { return };
        let is_told = || self.state.lock().told.is_some();
        let removed = CANCELLED_ON_SET.lock().update(on_set, is_told);
        drop(removed);
        // The clock may have been set after the setting, and before the timer was on the list.
        if self.state.lock().is_cancelled() {
            self.expired.wake_all();
        }
    }

    /// timerfd_gettime(2).
    pub fn get(&self) -> Setting {
        let mut state = self.state.lock();
        state.update();
        state.setting()
    }

    /// How often it went off; `ECANCELED` once after the clock was set, if it is to be told of that.
    fn take(&self) -> Option<Result<u64>> {
        let mut state = self.state.lock();
        state.update();
        if state.take_cancelled() {
            self.arm(&state);
            return Some(Err(Errno::ECANCELED));
        }
        if state.ticks == 0 {
            return None;
        }
        self.arm(&state);
        Some(Ok(core::mem::take(&mut state.ticks)))
    }
}

impl Drop for TimerFd {
    fn drop(&mut self) {
        self.timer.cancel();
        if let Some(on_set) = &self.on_set {
            let removed = CANCELLED_ON_SET.lock().update(on_set, || false);
            drop(removed);
        }
    }
}

impl FileOps for TimerFd {
    fn read_at(&self, file: &File, _: u64, sink: &mut Sink) -> Result<usize> {
        if sink.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        let ticks = match self.take() {
            Some(ticks) => ticks?,
            None if file.nonblocking() => return Err(Errno::EAGAIN),
            None => self.expired.wait_event(None, || self.take())??,
        };
        sink.write_all(&ticks.to_ne_bytes())?;
        Ok(8)
    }

    fn poll(&self, _: &File) -> Events {
        let mut state = self.state.lock();
        state.update();
        if state.ticks > 0 || state.is_cancelled() { Events::IN } else { Events::empty() }
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.expired);
    }

    fn pollable(&self) -> bool {
        true
    }

    fn ioctl(&self, _: &File, command: u32, argument: usize) -> Result<usize> {
        if command != linux_raw_sys::ioctl::TFD_IOC_SET_TICKS {
            return Err(Errno::ENOTTY);
        }
        let ticks: u64 = read_user(argument)?;
        if ticks == 0 {
            return Err(Errno::EINVAL);
        }
        self.state.lock().ticks = ticks;
        self.expired.wake_all();
        Ok(0)
    }

    fn describe(&self, _: &File, out: &mut Text) {
        let setting = self.get();
        let (ticks, flags) = {
            let state = self.state.lock();
            (state.ticks, state.flags)
        };
        let pair = |ns: u64| (ns / time::SECOND, ns % time::SECOND);
        let ((value, value_ns), (interval, interval_ns)) = (pair(setting.value), pair(setting.interval));
        // Writing to a string does not fail.
        let _ = write!(
            out,
            "clockid: {}\nticks: {ticks}\nsettime flags: 0{flags:o}\nit_value: ({value}, {value_ns})\n\
             it_interval: ({interval}, {interval_ns})\n",
            self.clock,
        );
    }
}
