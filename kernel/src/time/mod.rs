//! Clocks, timers, and the interrupt that drives them.

pub mod clock;
pub mod process_timers;
mod timer;

pub use clock::{ClockId, now, realtime_now};
pub use timer::{Timer, tick_wanted, timer_interrupt};

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;
