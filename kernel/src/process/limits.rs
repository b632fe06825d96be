//! Resource limits: getrlimit(2).

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::errno::{Errno, Result};
use crate::memory;

#[allow(missing_docs)]
pub const CPU: usize = 0;
#[allow(missing_docs)]
pub const STACK: usize = 3;
#[allow(missing_docs)]
pub const CORE: usize = 4;
#[allow(missing_docs)]
pub const NPROC: usize = 6;
#[allow(missing_docs)]
pub const NOFILE: usize = 7;
#[allow(missing_docs)]
pub const MEMLOCK: usize = 8;
#[allow(missing_docs)]
pub const SIGPENDING: usize = 11;
#[allow(missing_docs)]
pub const MSGQUEUE: usize = 12;
#[allow(missing_docs)]
pub const NICE: usize = 13;
#[allow(missing_docs)]
pub const RTPRIO: usize = 14;

/// How many there are.
pub const COUNT: usize = 16;
/// No limit.
pub const INFINITY: u64 = u64::MAX;
/// `fs.nr_open`: most descriptors that RLIMIT_NOFILE may allow.
pub static NR_OPEN: AtomicUsize = AtomicUsize::new(1 << 20);

/// What that is now.
pub fn nr_open() -> usize {
    // Relaxed: a setting of its own.
    NR_OPEN.load(Ordering::Relaxed)
}

/// `struct rlimit64`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

/// The limits of one process.
#[derive(Clone, Copy)]
pub struct Limits([Limit; COUNT]);

impl Limits {
    /// Those of the first process.
    pub fn initial() -> Self {
        let both = |value| Limit { soft: value, hard: value };
        let threads = super::max_threads() as u64 / 2;
        let mut limits = [both(INFINITY); COUNT];
        limits[STACK] = Limit { soft: 8 << 20, hard: INFINITY };
        limits[CORE] = Limit { soft: 0, hard: INFINITY };
        limits[NPROC] = both(threads);
        limits[NOFILE] = Limit { soft: 1024, hard: 4096 };
        limits[MEMLOCK] = both(8 << 20);
        limits[SIGPENDING] = both(threads);
        limits[MSGQUEUE] = both(819_200);
        limits[NICE] = both(0);
        limits[RTPRIO] = both(0);
        Self(limits)
    }

    /// The value that counts.
    pub fn soft(&self, resource: usize) -> u64 {
        self.0[resource].soft
    }

    /// Both values of one of the resources above.
    pub fn of(&self, resource: usize) -> Limit {
        self.0[resource]
    }

    /// Both values; `EINVAL` for what is no resource.
    pub fn get(&self, resource: usize) -> Result<Limit> {
        self.0.get(resource).copied().ok_or(Errno::EINVAL)
    }

    /// Sets both values; `privileged` may raise the hard one.
    pub fn set(&mut self, resource: usize, new: Limit, privileged: bool) -> Result<()> {
        let old = self.0.get_mut(resource).ok_or(Errno::EINVAL)?;
        if new.soft > new.hard {
            return Err(Errno::EINVAL);
        }
        if resource == NOFILE && new.hard > nr_open() as u64 {
            return Err(Errno::EPERM);
        }
        if new.hard > old.hard && !privileged {
            return Err(Errno::EPERM);
        }
        *old = new;
        Ok(())
    }
}

/// How many threads the machine may have: their stacks fill an eighth of memory at most, as Linux computes it.
pub(super) fn max_threads_for_memory() -> usize {
    let total = memory::stats().total as usize;
    (total / (8 * 16 * 1024)).clamp(128, super::tree::PID_MAX as usize - 1)
}
