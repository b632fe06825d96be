//! What of a process goes by time: setitimer(2), timer_create(2), and the limit on CPU time.
//!
//! As with the timers of timer_create(2) nothing goes off twice for one signal: the interval timer of real time is armed again when
//! SIGALRM is taken, and those of CPU time go off once in a tick at most.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use alloc::sync::{Arc, Weak};

use super::cpu_timers::CpuTimers;
use super::posix_timers::PosixTimers;
use super::{SECOND, Timer, now};
use crate::process::limits::{self, Limit};
use crate::process::{Process, Thread};
use crate::signal::{self, SIGALRM, SIGKILL, SIGPROF, SIGVTALRM, SIGXCPU, SigInfo};
use crate::sync::{IrqLock, Once};

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

#[derive(Default)]
struct Real {
    /// Monotonic nanoseconds, 0 when off.
    deadline: u64,
    interval: u64,
    /// It waits for the deadline. If not, its signal has been sent and not been taken.
    armed: bool,
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

/// What a tick found to be due.
const VIRTUAL_DUE: u32 = 1;
const PROF_DUE: u32 = 2;

/// Timers of one CPU clock that go off at one tick; the next tick finds the others. As on Linux: the process shall get on between their
/// signals.
const MOST_AT_ONCE: usize = 20;

const NEVER: u64 = u64::MAX;

/// All of a process's timers.
pub struct ProcessTimers {
    process: Weak<Process>,
    real: IrqLock<Real>,
    real_timer: Once<Arc<Timer>>,
    counting: IrqLock<[Counting; 2]>,
    /// The bits above; each goes off once, however late its signal is sent.
    due: AtomicU32,
    /// CPU time of the process so far, in nanoseconds, but for what its threads have run since they were charged last: a tick at most.
    used: AtomicU64,
    /// The CPU time at which RLIMIT_CPU says something next.
    limit_at: AtomicU64,
    /// Timers that wait for this process's CPU clock.
    pub(super) cpu: CpuTimers,
    /// Those of timer_create(2).
    pub posix: PosixTimers,
}

impl ProcessTimers {
    /// None set; `limit` is the process's RLIMIT_CPU.
    pub fn new(process: Weak<Process>, limit: Limit) -> Self {
        let timers = Self {
            process,
            real: IrqLock::new(Real::default()),
            real_timer: Once::new(),
            counting: IrqLock::new([Counting::OFF, Counting::OFF]),
            due: AtomicU32::new(0),
            used: AtomicU64::new(0),
            limit_at: AtomicU64::new(NEVER),
            cpu: CpuTimers::new(),
            posix: PosixTimers::new(),
        };
        timers.limit_changed(limit);
        timers
    }

    /// getitimer(2).
    pub fn get(&self, which: Which) -> Setting {
        match which {
            Which::Real => {
                let real = self.real.lock();
                // A timer that is about to go off has a little left, never nothing; one that has gone off is off until its signal
                // is taken.
                let value = if real.armed { real.deadline.saturating_sub(now()).max(1000) } else { 0 };
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
        match which {
            Which::Real => {
                let timer = self.real_timer();
                let mut real = self.real.lock();
                let left = if real.armed { real.deadline.saturating_sub(now()).max(1000) } else { 0 };
                let old = Setting { value: left, interval: real.interval };
                let armed = new.value != 0;
                let deadline = if armed { now().saturating_add(new.value) } else { 0 };
                *real = Real { deadline, interval: new.interval, armed };
                if armed {
                    timer.arm(deadline);
                } else {
                    timer.cancel();
                }
                old
            }
            Which::Virtual | Which::Prof => self.counting.lock()[usize::from(which == Which::Prof)].set(new),
        }
    }

    fn real_timer(&self) -> &Arc<Timer> {
        self.real_timer.call_once(|| {
            let process = self.process.clone();
            Timer::new_deferred(move || {
                if let Some(process) = process.upgrade() {
                    process.timers.real_expired(&process);
                }
            })
        })
    }

    fn real_expired(&self, process: &Arc<Process>) {
        {
            let mut real = self.real.lock();
            if !real.armed {
                return;
            }
            if real.deadline > now() {
                // Set anew since, or early by this CPU's clock.
                self.real_timer().arm(real.deadline);
                return;
            }
            real.armed = false;
        }
        signal::send_process(process, SigInfo::kernel(SIGALRM));
    }

    /// SIGALRM is taken: the periodic timer of real time waits for its next time. What was missed is no signal.
    pub fn alarm_taken(&self) {
        let mut real = self.real.lock();
        if real.armed || real.interval == 0 || real.deadline == 0 {
            return;
        }
        let late = now().saturating_sub(real.deadline);
        let periods = (late / real.interval).saturating_add(1);
        real.deadline = real.deadline.saturating_add(periods.saturating_mul(real.interval));
        real.armed = true;
        self.real_timer().arm(real.deadline);
    }

    /// A thread of the process has run for so long.
    pub fn charge(&self, time: u64) {
        // Relaxed: a sum, compared with deadlines.
        self.used.fetch_add(time, Ordering::Relaxed);
    }

    /// A tick found a thread of this process, in the timer interrupt. True if something is due: see [`run_due`].
    pub fn tick(&self, user: bool, length: u64) -> bool {
        let expired = {
            let mut counting = self.counting.lock();
            let mut expired = 0;
            if user && counting[0].advance(length) {
                expired |= VIRTUAL_DUE;
            }
            if counting[1].advance(length) {
                expired |= PROF_DUE;
            }
            expired
        };
        if expired != 0 {
            self.due.fetch_or(expired, Ordering::SeqCst);
        }
        // Relaxed: the next tick sees what this one has missed.
        let used = self.used.load(Ordering::Relaxed);
        expired != 0 || used >= self.limit_at.load(Ordering::Relaxed) || self.cpu.is_due(used)
    }

    /// RLIMIT_CPU has changed.
    pub fn limit_changed(&self, limit: Limit) {
        // Relaxed: see `tick`.
        self.limit_at.store(limit.soft.saturating_mul(SECOND), Ordering::Relaxed);
    }

    /// RLIMIT_CPU: SIGXCPU each second beyond the soft limit, SIGKILL at the hard one.
    fn check_limit(&self, process: &Arc<Process>, used: u64) {
        let at = self.limit_at.load(Ordering::Relaxed);
        if used < at {
            return;
        }
        let Ok(limit) = process.limits.lock().get(limits::CPU) else { return };
        let (soft, hard) = (limit.soft.saturating_mul(SECOND), limit.hard.saturating_mul(SECOND));
        let next = if used >= hard { NEVER } else { hard.min((used / SECOND + 1) * SECOND).max(soft) };
        // Of several threads that are here at once one sends the signal. Relaxed: nothing else hangs on it.
        if self.limit_at.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        if used >= hard {
            signal::send_process(process, SigInfo::kernel(SIGKILL));
        } else if used >= soft {
            signal::send_process(process, SigInfo::kernel(SIGXCPU));
        }
    }

    /// execve(2): timers of timer_create(2) are gone, interval timers stay.
    pub fn exec(&self) {
        self.posix.clear();
    }

    /// The process has ended.
    pub fn process_ends(&self) {
        if let Some(timer) = self.real_timer.get() {
            let mut real = self.real.lock();
            *real = Real::default();
            timer.cancel();
        }
        self.posix.clear();
        self.cpu.end();
    }
}

/// A tick has found something due for the current thread or its process. On the way to user mode, with interrupts on.
pub fn run_due(thread: &Thread) {
    let process = &thread.process;
    let timers = &process.timers;
    let due = timers.due.swap(0, Ordering::SeqCst);
    if due & VIRTUAL_DUE != 0 {
        signal::send_process(process, SigInfo::kernel(SIGVTALRM));
    }
    if due & PROF_DUE != 0 {
        signal::send_process(process, SigInfo::kernel(SIGPROF));
    }
    let used = timers.used.load(Ordering::Relaxed);
    timers.check_limit(process, used);
    for (queue, time) in [(&timers.cpu, used), (&thread.cpu_timers, thread.sched.runtime())] {
        for _ in 0..MOST_AT_ONCE {
            let Some(timer) = queue.take_due(time) else { break };
            timer.cpu_time_reached(time);
        }
    }
}
