//! When something is due: a time of the clock that runs by itself, or of the one that can be set.

use super::clock::{now, realtime_offset};

/// A time, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// Since boot.
    Monotonic(u64),
    /// Since 1970. It comes nearer, or passes, when the clock is set forward.
    Realtime(u64),
}

impl Deadline {
    /// Whether it has come.
    pub fn has_passed(self) -> bool {
        now() >= self.as_monotonic()
    }

    /// As monotonic nanoseconds, if the clock is not set until then.
    pub fn as_monotonic(self) -> u64 {
        match self {
            Self::Monotonic(time) => time,
            Self::Realtime(time) => (time as i64).saturating_sub(realtime_offset()).max(0) as u64,
        }
    }
}

impl From<u64> for Deadline {
    fn from(monotonic: u64) -> Self {
        Self::Monotonic(monotonic)
    }
}
