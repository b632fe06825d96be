//! The clocks of clock_gettime(2).

use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use alloc::sync::Arc;

use linux_raw_sys::general as abi;

use super::{Deadline, SECOND};
use crate::arch;
use crate::errno::{Errno, Result};
use crate::namespaces;
use crate::process::{self, Process, Thread};

/// Nanoseconds since boot: the time of deadlines and timers.
#[inline]
pub fn now() -> u64 {
    arch::clock::now_ns()
}

/// Real time minus monotonic time, in nanoseconds.
static REALTIME_OFFSET: AtomicI64 = AtomicI64::new(0);

/// Takes the wall-clock time at boot from the hardware clock.
pub fn init() {
    set_realtime_offset(arch::clock::wall_at_boot_ns() as i64);
}

/// Real time minus monotonic time, in nanoseconds: the vDSO's data page has it too.
pub fn realtime_offset() -> i64 {
    REALTIME_OFFSET.load(Ordering::SeqCst)
}

fn set_realtime_offset(offset: i64) {
    REALTIME_OFFSET.store(offset, Ordering::SeqCst);
    crate::mm::vdso::set_realtime_offset(offset);
}

/// Nanoseconds since 1970.
pub fn realtime_now() -> u64 {
    now().wrapping_add_signed(realtime_offset())
}

/// How often the real-time clock was set.
static TIMES_SET: AtomicU64 = AtomicU64::new(0);

/// How often the real-time clock was set. Who sees a new number sees the new time.
pub fn times_set() -> u64 {
    TIMES_SET.load(Ordering::SeqCst)
}

/// Sets the real-time clock. What waits for a time of it that has come is due.
pub fn set_realtime(nanoseconds: u64) {
    set_realtime_offset(nanoseconds.wrapping_sub(now()) as i64);
    TIMES_SET.fetch_add(1, Ordering::SeqCst);
    super::timer::clock_was_set();
    crate::fs::timerfd::clock_was_set();
}

/// Which clock a call means.
#[derive(Clone)]
pub enum ClockId {
    Realtime,
    /// Ahead of the kernel's by so many nanoseconds, in a time namespace.
    Monotonic {
        ahead: i64,
    },
    ProcessCpu(Arc<Process>),
    ThreadCpu(Arc<Thread>),
}

/// What part of the CPU time a CPU clock counts.
impl ClockId {
    /// From the number of clock_gettime(2). The coarse, raw, boot-time, TAI and alarm clocks are the plain ones here: there is no
    /// suspend, no leap second, no rate correction.
    pub fn from_number(number: i32) -> Result<Self> {
        Ok(match number {
            0 | 5 | 8 | 11 => Self::Realtime,
            1 | 4 | 6 | 7 | 9 => Self::Monotonic { ahead: namespaces::time::offset(number) },
            2 => Self::ProcessCpu(process::current().process.clone()),
            3 => Self::ThreadCpu(process::current().to_arc()),
            number if number < 0 => Self::cpu_clock(number)?,
            _ => return Err(Errno::EINVAL),
        })
    }

    /// Whether one may sleep by the clock of this number: `EOPNOTSUPP`, and `EPERM` for one that would wake the machine.
    pub fn check_sleep(number: i32) -> Result<()> {
        const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
        if number == CLOCK_THREAD_CPUTIME_ID { Err(Errno::EOPNOTSUPP) } else { Self::check_timer(number) }
    }

    /// Whether it may have timers, as above.
    pub fn check_timer(number: i32) -> Result<()> {
        match number {
            // The raw and the coarse ones.
            4..=6 => Err(Errno::EOPNOTSUPP),
            8 | 9 => process::current().credentials().require(abi::CAP_WAKE_ALARM),
            _ => Ok(()),
        }
    }

    /// A process's or thread's CPU clock: `~id << 3 | per-thread << 2 | kind`, as clock_getcpuclockid(3) makes it.
    fn cpu_clock(number: i32) -> Result<Self> {
        const PER_THREAD: i32 = 4;
        const KIND: i32 = 3;
        if number & KIND == KIND {
            // A clock device's file descriptor: there are none.
            return Err(Errno::EINVAL);
        }
        let id = !(number >> 3) as u32;
        let current = process::current();
        if number & PER_THREAD != 0 {
            let thread =
                if id == 0 { current.to_arc() } else { process::find_thread(id).ok_or(Errno::EINVAL)? };
            // A thread of another process is nobody's business.
            if !Arc::ptr_eq(&thread.process, &current.process) {
                return Err(Errno::EINVAL);
            }
            Ok(Self::ThreadCpu(thread))
        } else if id == 0 {
            Ok(Self::ProcessCpu(current.process.clone()))
        } else {
            Ok(Self::ProcessCpu(process::find(id).ok_or(Errno::EINVAL)?))
        }
    }

    /// CLOCK_MONOTONIC.
    pub fn monotonic() -> Self {
        Self::Monotonic { ahead: namespaces::time::offset(1) }
    }

    /// The clock's time in nanoseconds.
    pub fn now(&self) -> u64 {
        match self {
            Self::Realtime => realtime_now(),
            Self::Monotonic { ahead } => now().saturating_add_signed(*ahead),
            Self::ProcessCpu(process) => {
                let (user, system) = process.cpu_times();
                user + system
            }
            Self::ThreadCpu(thread) => thread.sched.runtime(),
        }
    }

    /// A time of this clock as a deadline, for the clocks that run by themselves.
    pub fn to_deadline(&self, time: u64) -> Result<Deadline> {
        match self {
            Self::Realtime => Ok(Deadline::Realtime(time)),
            Self::Monotonic { ahead } => {
                Ok(Deadline::Monotonic(time.saturating_add_signed(ahead.saturating_neg())))
            }
            Self::ProcessCpu(_) | Self::ThreadCpu(_) => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Resolution in nanoseconds.
    pub fn resolution(number: i32) -> u64 {
        // The coarse clocks say the length of a tick.
        if number == 5 || number == 6 { crate::sched::TICK } else { 1 }
    }
}

/// A `struct timespec` of user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Timespec {
    pub seconds: i64,
    pub nanoseconds: i64,
}

impl Timespec {
    /// From nanoseconds.
    pub fn from_ns(nanoseconds: u64) -> Self {
        Self { seconds: (nanoseconds / SECOND) as i64, nanoseconds: (nanoseconds % SECOND) as i64 }
    }

    /// In nanoseconds, saturated; `EINVAL` for what is no time.
    pub fn to_ns(self) -> Result<u64> {
        if self.seconds < 0 || !(0..SECOND as i64).contains(&self.nanoseconds) {
            return Err(Errno::EINVAL);
        }
        // Half of the range, so that sums of two times do not overflow.
        const MOST: u64 = i64::MAX as u64;
        Ok((self.seconds as u64).saturating_mul(SECOND).saturating_add(self.nanoseconds as u64).min(MOST))
    }
}

/// A `struct timeval` of user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeval {
    pub seconds: i64,
    pub microseconds: i64,
}

impl Timeval {
    /// From nanoseconds, rounded down.
    pub fn from_ns(nanoseconds: u64) -> Self {
        Self { seconds: (nanoseconds / SECOND) as i64, microseconds: (nanoseconds % SECOND / 1000) as i64 }
    }

    /// In nanoseconds; `EINVAL` for what is no time.
    pub fn to_ns(self) -> Result<u64> {
        if !(0..1_000_000).contains(&self.microseconds) {
            return Err(Errno::EINVAL);
        }
        Timespec { seconds: self.seconds, nanoseconds: self.microseconds * 1000 }.to_ns()
    }
}
