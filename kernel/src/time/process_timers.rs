//! Timers that belong to a process: setitimer(2), timer_create(2), and the limit on CPU time.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};

use super::{ClockId, SECOND, Timer, now};
use crate::errno::{Errno, Result};
use crate::process::{self, Process, Thread, limits};
use crate::signal::{self, SIGALRM, SIGKILL, SIGPROF, SIGVTALRM, SIGXCPU, SigInfo};
use crate::sync::{IrqLock, SpinLock};

/// The interval timers of setitimer(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Real,
    Virtual,
    Prof,
}

/// A value and an interval in nanoseconds, 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    pub value: u64,
    pub interval: u64,
}

struct Real {
    /// Monotonic nanoseconds, 0 when off.
    deadline: u64,
    interval: u64,
}

/// A timer that counts a process's CPU time in ticks.
struct Counting {
    left: u64,
    interval: u64,
}

impl Counting {
    const OFF: Self = Self { left: 0, interval: 0 };

    /// Uses up some time; true when it goes off.
    fn advance(&mut self, by: u64) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left = self.left.saturating_sub(by);
        if self.left > 0 {
            return false;
        }
        self.left = self.interval;
        true
    }

    fn set(&mut self, new: Setting) -> Setting {
        let old = Setting { value: self.left, interval: self.interval };
        *self = Self { left: new.value, interval: new.interval };
        old
    }
}

/// What a timer of timer_create(2) does when it goes off.
#[derive(Clone)]
pub enum Notify {
    Nothing,
    Signal { signal: u32, value: u64 },
    Thread { signal: u32, value: u64, thread: Weak<Thread> },
}

/// A timer of timer_create(2).
pub struct PosixTimer {
    pub id: i32,
    clock: ClockId,
    notify: Notify,
    process: Weak<Process>,
    state: IrqLock<PosixState>,
    /// Its signal waits to be delivered: expirations meanwhile count as overruns.
    queued: AtomicBool,
    timer: SpinLock<Option<Arc<Timer>>>,
}

#[derive(Default)]
struct PosixState {
    /// In the timer's clock; for CPU clocks compared at ticks. 0 when off.
    deadline: u64,
    interval: u64,
    overruns: u64,
    /// What the last delivered signal said.
    last_overruns: i32,
}

/// All of a process's timers.
pub struct ProcessTimers {
    process: Weak<Process>,
    real: IrqLock<Real>,
    real_timer: SpinLock<Option<Arc<Timer>>>,
    counting: IrqLock<[Counting; 2]>,
    /// Whether a tick has anything to look at.
    watched: AtomicBool,
    /// CPU time by ticks, for RLIMIT_CPU.
    ticked: AtomicU64,
    posix: IrqLock<BTreeMap<i32, Arc<PosixTimer>>>,
}

/// Most timers of timer_create(2) that a process may have.
const MOST_TIMERS: usize = 4096;

impl ProcessTimers {
    pub fn new(process: Weak<Process>) -> Self {
        Self {
            process,
            real: IrqLock::new(Real { deadline: 0, interval: 0 }),
            real_timer: SpinLock::new(None),
            counting: IrqLock::new([Counting::OFF, Counting::OFF]),
            watched: AtomicBool::new(false),
            ticked: AtomicU64::new(0),
            posix: IrqLock::new(BTreeMap::new()),
        }
    }

    /// getitimer(2).
    pub fn get(&self, which: Which) -> Setting {
        match which {
            Which::Real => {
                let real = self.real.lock();
                // A timer that is about to go off has a little left, never nothing.
                let value =
                    if real.deadline == 0 { 0 } else { real.deadline.saturating_sub(now()).max(1000) };
                Setting { value, interval: real.interval }
            }
            Which::Virtual | Which::Prof => {
                let counting = self.counting.lock();
                let timer = &counting[usize::from(which == Which::Prof)];
                Setting { value: timer.left, interval: timer.interval }
            }
        }
    }

    /// setitimer(2): returns the old setting.
    pub fn set(&self, which: Which, new: Setting) -> Setting {
        let old = self.get(which);
        match which {
            Which::Real => {
                let timer = self.real_timer();
                timer.cancel();
                let deadline = if new.value == 0 { 0 } else { now().saturating_add(new.value) };
                *self.real.lock() = Real { deadline, interval: new.interval };
                if deadline != 0 {
                    timer.arm(deadline);
                }
            }
            Which::Virtual | Which::Prof => {
                self.counting.lock()[usize::from(which == Which::Prof)].set(new);
                self.watched.store(true, Ordering::SeqCst);
            }
        }
        old
    }

    fn real_timer(&self) -> Arc<Timer> {
        if let Some(timer) = &*self.real_timer.lock() {
            return timer.clone();
        }
        let process = self.process.clone();
        let new = Timer::new_cyclic(|timer| {
            let timer = timer.clone();
            move || {
                if let (Some(process), Some(timer)) = (process.upgrade(), timer.upgrade()) {
                    process.timers.real_expired(&process, &timer);
                }
            }
        });
        self.real_timer.lock().get_or_insert(new).clone()
    }

    fn real_expired(&self, process: &Arc<Process>, timer: &Arc<Timer>) {
        let next = {
            let mut real = self.real.lock();
            if real.deadline == 0 || real.deadline > now() {
                // It was set anew while this expiration was under way.
                return;
            }
            real.deadline = match real.interval {
                0 => 0,
                interval => {
                    let missed = (now() - real.deadline) / interval;
                    real.deadline + (missed + 1) * interval
                }
            };
            real.deadline
        };
        signal::send_process(process, SigInfo::kernel(SIGALRM));
        if next != 0 {
            timer.arm(next);
        }
    }

    /// A tick of a thread of this process, in the timer interrupt.
    pub fn tick(&self, user: bool, length: u64) {
        let used = self.ticked.fetch_add(length, Ordering::SeqCst) + length;
        if !self.watched.load(Ordering::SeqCst) {
            return;
        }
        let Some(process) = self.process.upgrade() else { return };
        let (virtual_expired, prof_expired) = {
            let mut counting = self.counting.lock();
            (user && counting[0].advance(length), counting[1].advance(length))
        };
        if virtual_expired {
            signal::send_process(&process, SigInfo::kernel(SIGVTALRM));
        }
        if prof_expired {
            signal::send_process(&process, SigInfo::kernel(SIGPROF));
        }
        self.check_limit(&process, used, length);
        let timers = self.posix.lock();
        for timer in timers.values() {
            timer.check_cpu_clock();
        }
    }

    /// RLIMIT_CPU: SIGXCPU each second beyond the soft limit, SIGKILL at the hard one.
    fn check_limit(&self, process: &Arc<Process>, used: u64, length: u64) {
        let Some(limit) = process.limits.try_lock().and_then(|limits| limits.get(limits::CPU).ok()) else {
            return;
        };
        if limit.soft == limits::INFINITY {
            return;
        }
        if used >= limit.hard.saturating_mul(SECOND) {
            signal::send_process(process, SigInfo::kernel(SIGKILL));
        } else if used >= limit.soft.saturating_mul(SECOND) && used % SECOND < length {
            signal::send_process(process, SigInfo::kernel(SIGXCPU));
        }
    }

    /// RLIMIT_CPU has been set: ticks look at it from now on.
    pub fn watch(&self) {
        self.watched.store(true, Ordering::SeqCst);
    }

    /// timer_create(2).
    pub fn create(&self, clock: ClockId, make: impl FnOnce(i32) -> Result<Notify>) -> Result<i32> {
        let mut timers = self.posix.lock();
        if timers.len() >= MOST_TIMERS {
            return Err(Errno::EAGAIN);
        }
        let id = (0..).find(|id| !timers.contains_key(id)).expect("there are more numbers than timers");
        drop(timers);
        let notify = make(id)?;
        let timer = Arc::new(PosixTimer {
            id,
            clock,
            notify,
            process: self.process.clone(),
            state: IrqLock::new(PosixState::default()),
            queued: AtomicBool::new(false),
            timer: SpinLock::new(None),
        });
        timers = self.posix.lock();
        if timers.contains_key(&id) {
            // Another thread was faster: it tries again, with another number.
            return Err(Errno::EAGAIN);
        }
        timers.insert(id, timer);
        Ok(id)
    }

    /// The timer with this number; `EINVAL`.
    pub fn posix(&self, id: i32) -> Result<Arc<PosixTimer>> {
        self.posix.lock().get(&id).cloned().ok_or(Errno::EINVAL)
    }

    /// timer_delete(2).
    pub fn delete(&self, id: i32) -> Result<()> {
        let timer = self.posix.lock().remove(&id).ok_or(Errno::EINVAL)?;
        timer.stop();
        Ok(())
    }

    /// execve(2): timers of timer_create(2) are gone, interval timers stay.
    pub fn exec(&self) {
        let timers = core::mem::take(&mut *self.posix.lock());
        for timer in timers.values() {
            timer.stop();
        }
    }

    /// The process has ended.
    pub fn process_ends(&self) {
        let real = self.real_timer.lock().take();
        if let Some(real) = real {
            real.cancel();
        }
        self.exec();
    }
}

impl PosixTimer {
    fn stop(&self) {
        let timer = self.timer.lock().take();
        if let Some(timer) = timer {
            timer.cancel();
        }
        *self.state.lock() = PosixState::default();
    }

    fn is_cpu_clock(&self) -> bool {
        matches!(self.clock, ClockId::ProcessCpu(_) | ClockId::ThreadCpu(_))
    }

    /// timer_gettime(2).
    pub fn get(&self) -> Setting {
        let state = self.state.lock();
        let (deadline, interval) = (state.deadline, state.interval);
        drop(state);
        let value = if deadline == 0 { 0 } else { deadline.saturating_sub(self.clock.now()).max(1) };
        Setting { value, interval }
    }

    /// timer_settime(2): returns the old setting.
    pub fn set(self: &Arc<Self>, new: Setting, absolute: bool) -> Setting {
        let old = self.get();
        let deadline = match new.value {
            0 => 0,
            value if absolute => value,
            value => self.clock.now().saturating_add(value),
        };
        *self.state.lock() = PosixState { deadline, interval: new.interval, overruns: 0, last_overruns: 0 };
        if self.is_cpu_clock() {
            if let Some(process) = self.process.upgrade() {
                process.timers.watch();
            }
            return old;
        }
        let timer = {
            let mut slot = self.timer.lock();
            slot.get_or_insert_with(|| {
                let this = Arc::downgrade(self);
                Timer::new(move || {
                    if let Some(this) = this.upgrade() {
                        this.expired();
                    }
                })
            })
            .clone()
        };
        timer.cancel();
        if deadline != 0 {
            timer.arm(self.clock.to_deadline(deadline).unwrap_or(deadline));
        }
        old
    }

    /// timer_getoverrun(2).
    pub fn overrun(&self) -> i32 {
        self.state.lock().last_overruns
    }

    /// At a tick: CPU clocks have no hardware timer.
    fn check_cpu_clock(&self) {
        if self.is_cpu_clock() && self.state.lock().deadline != 0 {
            // A thread's own clock needs no lock; a process's is the sum over its threads.
            self.expired();
        }
    }

    /// It may be due: sends its signal, and arms the next time.
    fn expired(&self) {
        let time = self.clock.now();
        let next = {
            let mut state = self.state.lock();
            if state.deadline == 0 || state.deadline > time {
                return;
            }
            let mut expirations = 1;
            match (time - state.deadline).checked_div(state.interval) {
                // Once only.
                None => state.deadline = 0,
                Some(missed) => {
                    expirations += missed;
                    state.deadline += (missed + 1) * state.interval;
                }
            }
            if self.queued.load(Ordering::SeqCst) {
                state.overruns += expirations;
            } else {
                state.overruns = expirations - 1;
            }
            state.deadline
        };
        if !self.queued.swap(true, Ordering::SeqCst) {
            self.send();
        }
        if next != 0
            && !self.is_cpu_clock()
            && let Some(timer) = self.timer.try_lock().and_then(|timer| timer.clone())
        {
            timer.arm(self.clock.to_deadline(next).unwrap_or(next));
        }
    }

    fn send(&self) {
        match &self.notify {
            Notify::Nothing => self.queued.store(false, Ordering::SeqCst),
            Notify::Signal { signal, value } => {
                if let Some(process) = self.process.upgrade() {
                    signal::send_process(&process, SigInfo::timer(*signal, self.id, 0, *value));
                }
            }
            Notify::Thread { signal, value, thread } => match thread.upgrade() {
                Some(thread) => {
                    signal::send_thread(&thread, SigInfo::timer(*signal, self.id, 0, *value));
                }
                None => self.queued.store(false, Ordering::SeqCst),
            },
        }
    }

    /// Its signal is delivered now: says how often it went off besides.
    pub fn delivered(&self) -> i32 {
        self.queued.store(false, Ordering::SeqCst);
        let mut state = self.state.lock();
        state.last_overruns = state.overruns.min(i32::MAX as u64) as i32;
        state.overruns = 0;
        state.last_overruns
    }
}

/// A timer's signal is delivered to a thread of the process: fills in the overrun count.
pub fn delivered(process: &process::Process, info: &mut SigInfo) {
    let (id, _) = info.timer_id();
    if let Ok(timer) = process.timers.posix(id) {
        info.set_overrun(timer.delivered());
    }
}
