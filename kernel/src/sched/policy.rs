//! Scheduling policies and nice values.

use syscalls::Errno;

/// The policies of sched(7) that exist here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Policy {
    Other = 0,
    Fifo = 1,
    RoundRobin = 2,
    Batch = 3,
    Idle = 5,
}

impl Policy {
    /// From the number of sched_setscheduler(2).
    pub fn from_number(number: i32) -> Result<Self, Errno> {
        Ok(match number {
            0 => Self::Other,
            1 => Self::Fifo,
            2 => Self::RoundRobin,
            3 => Self::Batch,
            5 => Self::Idle,
            _ => return Err(Errno::EINVAL),
        })
    }

    /// Whether static priorities apply.
    pub fn is_realtime(self) -> bool {
        matches!(self, Self::Fifo | Self::RoundRobin)
    }

    /// 0 runs before 1. The idle policy is of the same class as the ordinary one, with next to no weight: who has it may hold a lock that
    /// others need, in the kernel as in user space, and must get on however busy its CPU is.
    pub(super) fn class(self) -> u8 {
        match self {
            Self::Fifo | Self::RoundRobin => 0,
            Self::Other | Self::Batch | Self::Idle => 1,
        }
    }

    /// The share of the CPU with this nice value: see [`weight_of_nice`].
    pub(super) fn weight(self, nice: i32) -> u32 {
        if self == Self::Idle { IDLE_WEIGHT } else { weight_of_nice(nice) }
    }
}

/// Weight of nice 0.
pub(super) const NICE_0_WEIGHT: u32 = 1024;
/// Weight of the idle policy, as on Linux: a fifth of that of nice 19.
const IDLE_WEIGHT: u32 = 3;

/// Share of the CPU that a nice value means, with 1,024 for nice 0: each step is a factor of 1.25, as on Linux.
pub const fn weight_of_nice(nice: i32) -> u32 {
    // Fixed point with 20 more bits, so that nice 19 does not lose its precision.
    let mut weight = (NICE_0_WEIGHT as u64) << 20;
    let mut step = 0;
    while step < nice.unsigned_abs() {
        weight = if nice < 0 { weight * 5 / 4 } else { weight * 4 / 5 };
        step += 1;
    }
    ((weight + (1 << 19)) >> 20) as u32
}

const _: () = assert!(weight_of_nice(0) == 1024 && weight_of_nice(1) == 819 && weight_of_nice(19) == 15);
