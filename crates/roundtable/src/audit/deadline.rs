//! When an audit has to end: one bound for the whole run, which every part of it that grows with the host asks.
//!
//! What was begun is finished, so each part asks once for a piece of work that is small on any host.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The end of an audit; a copy is of the same.
#[derive(Clone, Debug)]
pub struct Deadline(Arc<End>);

#[derive(Debug)]
enum End {
    Never,
    At(Instant),
    /// Not a time, but so many times that it was asked: what tests count does not depend on how fast a machine is.
    Asked(AtomicU64),
}

impl Deadline {
    /// There is none.
    pub fn never() -> Deadline {
        Deadline(Arc::new(End::Never))
    }

    /// So long after a moment; never where the sum is beyond what a clock can show.
    pub fn after(began: Instant, time: Duration) -> Deadline {
        Deadline(Arc::new(began.checked_add(time).map_or(End::Never, End::At)))
    }

    /// When it was asked for so many times.
    pub fn when_asked(times: u64) -> Deadline {
        Deadline(Arc::new(End::Asked(AtomicU64::new(times))))
    }

    /// Whether nothing more is to be begun.
    pub fn is_past(&self) -> bool {
        match &*self.0 {
            End::Never => false,
            End::At(end) => Instant::now() >= *end,
            End::Asked(left) => {
                // Only the number counts; it orders nothing.
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_end_comes_and_stays() {
        assert!(!Deadline::never().is_past());
        let now = Instant::now();
        assert!(Deadline::after(now, Duration::ZERO).is_past());
        assert!(!Deadline::after(now, Duration::from_secs(3600)).is_past());
        // More seconds than any clock has: as good as none.
        assert!(!Deadline::after(now, Duration::from_secs(u64::MAX)).is_past());
        let twice = Deadline::when_asked(2);
        let copy = twice.clone();
        assert_eq!(
            [twice.is_past(), copy.is_past(), twice.is_past(), copy.is_past()],
            [false, false, true, true]
        );
    }
}
