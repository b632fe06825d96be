//! A CPU with timers and one-shot hardware, whose every history up to a length is tried.

use std::collections::BTreeSet;

use super::alarm::{Alarm, NEVER};

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A timer is armed for so much later; 0 is at once.
    Arm(u64),
    /// The first timer is taken back.
    Cancel,
    /// The CPU begins to run a thread, or idles.
    Tick(bool),
    /// Time passes. Hardware that comes due interrupts.
    Pass(u64),
    /// The hardware interrupts before its time: two clocks disagree.
    Early,
}

/// All steps.
pub const STEPS: &[Step] = &[
    Step::Arm(0),
    Step::Arm(2),
    Step::Arm(5),
    Step::Cancel,
    Step::Tick(true),
    Step::Tick(false),
    Step::Pass(1),
    Step::Pass(3),
    Step::Early,
];

/// Timers that one interrupt takes.
const BATCH: usize = 1;
const TICK: u64 = 4;

/// A CPU with its queue of deadlines.
pub struct Machine {
    alarm: Alarm,
    now: u64,
    timers: BTreeSet<(u64, u64)>,
    made: u64,
    hardware: Option<u64>,
    ticking: bool,
    last_tick: u64,
}

impl Machine {
    pub fn new() -> Self {
        Self {
            alarm: Alarm::new(),
            now: 10,
            timers: BTreeSet::new(),
            made: 0,
            hardware: None,
            ticking: false,
            last_tick: 0,
        }
    }

    /// Makes it happen, and checks that whoever waits will be served.
    pub fn step(&mut self, step: Step) {
        let Self { alarm, hardware, now, .. } = self;
        let set = |at: u64| *hardware = Some(at);
        match step {
            Step::Arm(later) => {
                self.made += 1;
                self.timers.insert((*now + later, self.made));
                alarm.deadline_added(*now + later, set);
            }
            Step::Cancel => _ = self.timers.pop_first(),
            Step::Tick(wanted) => {
                if wanted && !self.ticking {
                    self.last_tick = *now;
                }
                self.ticking = wanted;
                alarm.tick_wanted(wanted, TICK, || *now, set);
            }
            Step::Pass(time) => {
                for _ in 0..time {
                    self.now += 1;
                    self.interrupt_if_due();
                }
            }
            Step::Early => {
                if self.hardware.take().is_some() {
                    self.interrupt();
                }
            }
        }
        self.interrupt_if_due();
        self.check();
    }

    fn interrupt_if_due(&mut self) {
        if self.hardware.is_some_and(|at| at <= self.now) {
            self.hardware = None;
            self.interrupt();
        }
    }

    /// As `timer_interrupt`; it takes one unit of time.
    fn interrupt(&mut self) {
        self.alarm.interrupt_begins();
        let begin = self.now;
        for _ in 0..BATCH {
            if self.timers.first().is_some_and(|(deadline, _)| *deadline <= begin) {
                self.timers.pop_first();
            }
        }
        if self.alarm.tick_is_due(begin, TICK) {
            self.last_tick = begin;
        }
        self.now += 1;
        let first = self.timers.first().map_or(NEVER, |(deadline, _)| *deadline);
        let hardware = &mut self.hardware;
        self.alarm.interrupt_ends(first, begin, self.now, |at| *hardware = Some(at));
    }

    fn check(&self) {
        let first = self.timers.first().map_or(NEVER, |(deadline, _)| *deadline);
        let tick = if self.ticking { self.last_tick + TICK } else { NEVER };
        let wanted = first.min(tick);
        if wanted == NEVER {
            return;
        }
        let at = self.hardware.expect("something waits, and the hardware is not set");
        // What is due already comes with the next interrupt, after a pause as long as the last one.
        assert!(at <= wanted.max(self.now + 1), "something is due at {wanted}, the hardware is set to {at}");
    }

    /// Time passes until nobody waits; fails if that does not come.
    pub fn finish(&mut self) {
        self.step(Step::Tick(false));
        for _ in 0..100 {
            if self.timers.is_empty() {
                return;
            }
            self.step(Step::Pass(1));
        }
        panic!("timers are left: {:?}", self.timers);
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}
