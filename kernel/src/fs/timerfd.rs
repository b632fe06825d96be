//! timerfd_create(2): timers that are read.

use alloc::sync::{Arc, Weak};
use core::fmt::Write;

use linux_raw_sys::general as abi;

use super::anonymous::Kind;
use super::file::{File, FileOps};
use super::iobuf::Sink;
use super::poll::Events;
use crate::errno::{Errno, Result};
use crate::memory::fallible::Text;
use crate::mm::uaccess::read_user;
use crate::namespaces;
use crate::sync::{IrqLock, WaitQueue};
use crate::time::{self, Timer};

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
    /// When it goes off, monotonic nanoseconds.
    deadline: Option<u64>,
    interval: u64,
    /// How often it went off since the last read.
    ticks: u64,
    /// As timerfd_settime(2) got them, for `/proc`.
    flags: u32,
}

/// A timer behind a descriptor.
pub struct TimerFd {
    /// The number of its clock.
    clock: i32,
    state: IrqLock<State>,
    timer: Arc<Timer>,
    expired: WaitQueue,
}

/// A new timer, not set. `clock` is checked.
pub fn create(clock: i32, flags: u32) -> Arc<File> {
    let ops = Arc::new_cyclic(|this: &Weak<TimerFd>| {
        let this = this.clone();
        TimerFd {
            clock,
            state: IrqLock::new(State::default()),
            timer: Timer::new_deferred(move || {
                if let Some(this) = this.upgrade() {
                    this.went_off();
                }
            }),
            expired: WaitQueue::new(),
        }
    });
    File::anonymous(Kind::Anonymous, "[timerfd]", ops, abi::O_RDWR | flags & abi::O_NONBLOCK)
}

impl State {
    /// Counts what has come due. A periodic timer counts all its periods at once: it need not interrupt for each.
    fn update(&mut self, now: u64) {
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

    fn setting(&self, now: u64) -> Setting {
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
            state.update(time::now());
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
            Some(deadline) => self.timer.arm(deadline),
            None => _ = self.timer.cancel(),
        }
    }

    /// timerfd_settime(2): returns the old setting. `absolute`: the value is a time of the timer's clock.
    pub fn set(&self, new: Setting, flags: u32) -> Setting {
        let absolute = flags & abi::TFD_TIMER_ABSTIME != 0;
        let now = time::now();
        let mut state = self.state.lock();
        state.update(now);
        let old = state.setting(now);
        state.ticks = 0;
        state.interval = new.interval;
        state.flags = flags;
        state.deadline = (new.value > 0).then(|| match (absolute, self.clock as u32) {
            (false, _) => now.saturating_add(new.value),
            // A time of the wall clock that is past the begin of the machine's time is due at once.
            (true, abi::CLOCK_REALTIME | abi::CLOCK_REALTIME_ALARM) => {
                new.value.saturating_add_signed(time::clock::realtime_offset().saturating_neg())
            }
            (true, _) => {
                new.value.saturating_add_signed(namespaces::time::offset(self.clock).saturating_neg())
            }
        });
        self.arm(&state);
        old
    }

    /// timerfd_gettime(2).
    pub fn get(&self) -> Setting {
        let now = time::now();
        let mut state = self.state.lock();
        state.update(now);
        state.setting(now)
    }

    fn take(&self) -> Option<u64> {
        let mut state = self.state.lock();
        state.update(time::now());
        if state.ticks == 0 {
            return None;
        }
        self.arm(&state);
        Some(core::mem::take(&mut state.ticks))
    }
}

impl Drop for TimerFd {
    fn drop(&mut self) {
        self.timer.cancel();
    }
}

impl FileOps for TimerFd {
    fn read_at(&self, file: &File, _: u64, sink: &mut Sink) -> Result<usize> {
        if sink.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        let ticks = match self.take() {
            Some(ticks) => ticks,
            None if file.nonblocking() => return Err(Errno::EAGAIN),
            None => self.expired.wait_event(None, || self.take())?,
        };
        sink.write_all(&ticks.to_ne_bytes())?;
        Ok(8)
    }

    fn poll(&self, _: &File) -> Events {
        let mut state = self.state.lock();
        state.update(time::now());
        if state.ticks > 0 { Events::IN } else { Events::empty() }
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
