//! What a CPU's timer hardware is set to.
//!
//! # The guarantee
//!
//! While a timer waits in the CPU's queue, the CPU will take a timer interrupt at its deadline or before.
//!
//! # Why it holds
//!
//! `armed` is a time at or before which the hardware interrupts, `NEVER` for not at all. Only the CPU itself uses it, with interrupts
//! off, so that its own interrupt is the only one that could come in between:
//!
//! * A new deadline before `armed` sets the hardware. A later one is found by the interrupt that comes at `armed`.
//! * An interrupt sets `armed` to `NEVER` first: what the hardware was set to has happened. At its end it sets the hardware to the
//!   queue's first deadline, or to the tick if that is earlier; also when nothing was due, since the interrupt came early.
//! * Hardware that is set to a time that has passed interrupts at once ([`crate::arch::timer::arm`]).
//! * A timer that is taken back, and a tick that is not wanted any more, leave the hardware as it is. That interrupt finds nothing.

use crate::sync::mutant::{self, Mutant};
use crate::sync::perturb;
use crate::sync::primitive::{AtomicU64, Ordering, constructor};

/// No time.
pub(super) const NEVER: u64 = u64::MAX;

/// The longest pause between two interrupts while timers are due, in nanoseconds: an emulator may have stood still in between.
const MOST_PAUSE: u64 = 100_000;

/// One CPU's. Its methods are called on that CPU with interrupts off; `set` sets the hardware.
pub(super) struct Alarm {
    // Relaxed throughout: one CPU uses them, and its interrupts see its own stores.
    armed: AtomicU64,
    /// When the next tick is due; `NEVER` on an idle CPU.
    tick_at: AtomicU64,
}

impl Alarm {
    constructor! {
        pub fn new() -> Self {
            Self { armed: AtomicU64::new(NEVER), tick_at: AtomicU64::new(NEVER) }
        }
    }

    fn arm(&self, deadline: u64, set: impl FnOnce(u64)) {
        if deadline < self.armed.load(Ordering::Relaxed) {
            self.armed.store(deadline, Ordering::Relaxed);
            perturb::point();
            set(deadline);
        }
    }

    /// A timer with this deadline is in the queue now.
    pub fn deadline_added(&self, deadline: u64, set: impl FnOnce(u64)) {
        perturb::point();
        if !mutant::is(Mutant::EarlierNotSet) || self.armed.load(Ordering::Relaxed) == NEVER {
            self.arm(deadline, set);
        }
    }

    /// Starts or stops the tick, which comes every `period`.
    pub fn tick_wanted(&self, wanted: bool, period: u64, now: impl FnOnce() -> u64, set: impl FnOnce(u64)) {
        let ticking = self.tick_at.load(Ordering::Relaxed) != NEVER;
        if wanted && !ticking {
            let at = now() + period;
            self.tick_at.store(at, Ordering::Relaxed);
            self.arm(at, set);
        } else if !wanted && ticking {
            // The hardware goes off once more for nothing and is set right then: cheaper than setting it at each switch.
            self.tick_at.store(NEVER, Ordering::Relaxed);
        }
    }

    /// An interrupt begins.
    pub fn interrupt_begins(&self) {
        if !mutant::is(Mutant::StaysArmed) {
            self.armed.store(NEVER, Ordering::Relaxed);
        }
        perturb::point();
    }

    /// Whether the tick is due; then the next one is a period from `now`.
    pub fn tick_is_due(&self, now: u64, period: u64) -> bool {
        let due = self.tick_at.load(Ordering::Relaxed) <= now;
        if due {
            self.tick_at.store(now + period, Ordering::Relaxed);
        }
        due
    }

    /// An interrupt that took from `begin` to `end` is over; `first` is the first deadline that is left. If that has passed, the next
    /// interrupt comes after a pause as long as this one took.
    pub fn interrupt_ends(&self, first: u64, begin: u64, end: u64, set: impl FnOnce(u64)) {
        if mutant::is(Mutant::EarlyIsForgotten) && first > end {
            return;
        }
        let first = if first <= end { end + (end - begin).min(MOST_PAUSE) } else { first };
        let next = first.min(self.tick_at.load(Ordering::Relaxed));
        perturb::point();
        self.arm(next, set);
    }
}
