//! Timers of every kind, behind one type.

use std::ptr::null_mut;

use nix::errno::Errno;

use crate::sys::check;

/// What a timer is, and what it does when it goes off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// timer_create(2) with this clock; a signal to the process.
    Signal(i32),
    /// The same; a signal to the calling thread.
    Thread(i32),
    /// The same; nothing happens.
    Silent(i32),
    /// timerfd_create(2) with this clock.
    Descriptor(i32),
    /// setitimer(2).
    Interval(i32),
}

/// All of them.
pub const KINDS: &[Kind] = &[
    Kind::Signal(libc::CLOCK_MONOTONIC),
    Kind::Signal(libc::CLOCK_REALTIME),
    Kind::Signal(libc::CLOCK_PROCESS_CPUTIME_ID),
    Kind::Signal(libc::CLOCK_THREAD_CPUTIME_ID),
    Kind::Thread(libc::CLOCK_MONOTONIC),
    Kind::Thread(libc::CLOCK_THREAD_CPUTIME_ID),
    Kind::Silent(libc::CLOCK_MONOTONIC),
    Kind::Descriptor(libc::CLOCK_MONOTONIC),
    Kind::Descriptor(libc::CLOCK_REALTIME),
    Kind::Interval(libc::ITIMER_REAL),
    Kind::Interval(libc::ITIMER_VIRTUAL),
    Kind::Interval(libc::ITIMER_PROF),
];

/// A timer. It is not deleted when this is dropped.
#[derive(Clone, Copy, Debug)]
pub enum Timer {
    Posix(libc::timer_t),
    Descriptor(i32),
    Interval(i32),
}

fn timespec(nanoseconds: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as i64,
        tv_nsec: (nanoseconds % 1_000_000_000) as i64,
    }
}

fn nanoseconds(time: libc::timespec) -> u64 {
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The current thread's number.
pub fn tid() -> i32 {
    // SAFETY: takes nothing.
    unsafe { libc::gettid() }
}

impl Timer {
    /// Makes one, not set; its signal is `signal` with the number `value`, where it has any.
    pub fn new(kind: Kind, signal: i32, value: usize) -> Result<Timer, Errno> {
        let (clock, notify) = match kind {
            Kind::Signal(clock) => (clock, libc::SIGEV_SIGNAL),
            Kind::Thread(clock) => (clock, libc::SIGEV_THREAD_ID),
            Kind::Silent(clock) => (clock, libc::SIGEV_NONE),
            Kind::Descriptor(clock) => {
                // SAFETY: takes integers.
                let fd = check(unsafe { libc::timerfd_create(clock, libc::TFD_NONBLOCK) })?;
                return Ok(Timer::Descriptor(fd as i32));
            }
            Kind::Interval(which) => return Ok(Timer::Interval(which)),
        };
        // SAFETY: all structures live through the calls, and are valid when zero.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = notify;
            event.sigev_signo = signal;
            event.sigev_value.sival_ptr = value as *mut libc::c_void;
            event.sigev_notify_thread_id = tid();
            let mut id = std::mem::zeroed();
            check(libc::timer_create(clock, &mut event, &mut id))?;
            Ok(Timer::Posix(id))
        }
    }

    /// Sets it, in nanoseconds from now; setitimer(2) knows microseconds only.
    pub fn set(self, value: u64, interval: u64) -> Result<(), Errno> {
        self.change(value, interval, 0)
    }

    /// Sets it to a time of its clock.
    pub fn set_absolute(self, value: u64, interval: u64) -> Result<(), Errno> {
        self.change(value, interval, libc::TIMER_ABSTIME)
    }

    fn change(self, value: u64, interval: u64, flags: i32) -> Result<(), Errno> {
        let setting = libc::itimerspec { it_interval: timespec(interval), it_value: timespec(value) };
        // SAFETY: all structures live through the calls.
        check(unsafe {
            match self {
                Timer::Posix(id) => libc::timer_settime(id, flags, &setting, null_mut()),
                Timer::Descriptor(fd) => libc::timerfd_settime(fd, flags, &setting, null_mut()),
                Timer::Interval(which) => {
                    let micro = |time: libc::timespec| libc::timeval {
                        tv_sec: time.tv_sec,
                        tv_usec: (time.tv_nsec + 999) / 1000,
                    };
                    let setting = libc::itimerval {
                        it_interval: micro(setting.it_interval),
                        it_value: micro(setting.it_value),
                    };
                    libc::setitimer(which, &setting, null_mut())
                }
            }
        })
        .map(drop)
    }

    /// What is left, and the interval, in nanoseconds.
    pub fn get(self) -> (u64, u64) {
        // SAFETY: all structures live through the calls, and are valid when zero.
        unsafe {
            let mut setting: libc::itimerspec = std::mem::zeroed();
            match self {
                Timer::Posix(id) => check(libc::timer_gettime(id, &mut setting)),
                Timer::Descriptor(fd) => check(libc::timerfd_gettime(fd, &mut setting)),
                Timer::Interval(which) => {
                    let mut found: libc::itimerval = std::mem::zeroed();
                    let result = check(libc::getitimer(which, &mut found));
                    let nano = |time: libc::timeval| libc::timespec {
                        tv_sec: time.tv_sec,
                        tv_nsec: time.tv_usec * 1000,
                    };
                    setting = libc::itimerspec {
                        it_value: nano(found.it_value),
                        it_interval: nano(found.it_interval),
                    };
                    result
                }
            }
            .expect("the timer's setting");
            (nanoseconds(setting.it_value), nanoseconds(setting.it_interval))
        }
    }
}

/// The monotonic clock, in nanoseconds.
pub fn now() -> u64 {
    let mut time = timespec(0);
    // SAFETY: the time lives through the call.
    check(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) }).expect("clock_gettime");
    nanoseconds(time)
}

/// Sleeps to a time of the monotonic clock.
pub fn sleep_until(time: u64) {
    // SAFETY: the time lives through the call.
    let result = unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &timespec(time), null_mut())
    };
    assert_eq!(result, 0);
}

/// A signal that was waited for: its number, its value, and the overruns that it tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Came {
    pub signal: i32,
    pub value: usize,
    pub overruns: i32,
}

/// Takes one of the signals, which are blocked, within so many nanoseconds.
pub fn take(signals: &[i32], nanoseconds: u64) -> Result<Came, Errno> {
    let set = crate::signals::set_of(signals);
    // SAFETY: all structures live through the call; a timer's siginfo has these fields.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let signal = check(libc::sigtimedwait(&set, &mut info, &timespec(nanoseconds)))?;
        // `si_overrun` is the second word of the union, for which libc has no name of its own.
        let words: [i32; 8] = std::mem::transmute_copy(&info);
        Ok(Came { signal: signal as i32, value: info.si_value().sival_ptr as usize, overruns: words[5] })
    }
}
