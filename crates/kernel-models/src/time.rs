//! Timers: the kernel's own alarm.

#[path = "../../../kernel/src/time/alarm.rs"]
pub(crate) mod alarm;
pub mod machine;

/// A timer of a sleep.
pub struct Timer;

impl Timer {
    pub fn cancel(&self) -> bool {
        false
    }
}

/// No model's sleep has one.
#[derive(Clone, Copy)]
pub enum Deadline {
    Monotonic(u64),
}

impl Deadline {
    pub fn has_passed(self) -> bool {
        let Self::Monotonic(time) = self;
        time == 0
    }
}
