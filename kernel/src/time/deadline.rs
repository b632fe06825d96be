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
            // What no signed number holds never comes.
            Self::Realtime(time) => i64::try_from(time)
                .map_or(u64::MAX, |time| time.saturating_sub(realtime_offset()).max(0) as u64),
        }
    }
}

impl From<u64> for Deadline {
    fn from(monotonic: u64) -> Self {
        Self::Monotonic(monotonic)
    }
}

/// A check at boot: sums of a time and an interval that no signed number holds are not due at once.
pub fn last_times() {
    let far = now() + (1 << 50);
    for time in [u64::MAX, 1 << 63, i64::MAX as u64] {
        assert!(Deadline::Realtime(time).as_monotonic() > far, "{time:#x}");
    }
}
