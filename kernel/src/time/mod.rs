//! Clocks, timers, and the interrupt that drives them.

mod alarm;
pub mod clock;
pub mod cpu_timers;
mod deadline;
mod due;
pub mod posix_timers;
pub mod process_timers;
mod timer;

pub use clock::{ClockId, now, realtime_now};
pub use deadline::Deadline;
pub use deadline::last_times;
pub use due::users_take_turns;
pub use timer::{Timer, init, tick_wanted, timer_interrupt};

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;
