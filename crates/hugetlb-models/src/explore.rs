//! Who schedules a model, and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hugetlb::sync::model::Checker;
use shuttle::scheduler::{PctScheduler, RandomScheduler};

/// A way to go through the schedules of a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Explorer {
    /// loom: all schedules with at most so many preemptions.
    Loom(usize),
    /// shuttle: so many random schedules.
    Random(usize),
    /// shuttle: so many schedules with few changes of priority, which find rare orders.
    Pct(usize),
}

/// Stack of a model's thread, in bytes: a panic's message needs more than the checkers' defaults.
const STACK: usize = 256 << 10;

/// The same schedules in every run: a failure comes back.
const SEED: u64 = 20;

impl Explorer {
    /// Runs the model until it fails or all schedules have been tried; returns how many there were.
    pub fn explore(self, model: impl Fn() + Send + Sync + 'static) -> usize {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let model = move || {
            counted.fetch_add(1, Ordering::SeqCst);
            model();
        };
        match self {
            Explorer::Loom(preemptions) => {
                let mut builder = loom::model::Builder::new();
                builder.preemption_bound = Some(preemptions);
                builder.max_branches = 10_000;
                Checker::Loom.enter();
                builder.check(model);
            }
            Explorer::Random(schedules) => shuttle(RandomScheduler::new_from_seed(SEED, schedules), model),
            Explorer::Pct(schedules) => shuttle(PctScheduler::new_from_seed(SEED, 3, schedules), model),
        }
        Checker::Nobody.enter();
        count.load(Ordering::SeqCst)
    }
}

fn shuttle(
    scheduler: impl shuttle::scheduler::Scheduler + 'static,
    model: impl Fn() + Send + Sync + 'static,
) {
    let mut config = shuttle::Config::new();
    config.stack_size = STACK;
    Checker::Shuttle.enter();
    shuttle::Runner::new(scheduler, config).run(model);
}

/// Starts a thread of the model; the result waits for its end.
pub fn spawn(step: impl FnOnce() + Send + 'static) -> Box<dyn FnOnce()> {
    match Checker::current() {
        Checker::Loom => {
            let thread = loom::thread::Builder::new().stack_size(STACK).spawn(step).unwrap();
            Box::new(move || thread.join().unwrap())
        }
        Checker::Shuttle => {
            let thread = shuttle::thread::spawn(step);
            Box::new(move || thread.join().unwrap())
        }
        Checker::Nobody => panic!("a thread of a model outside of it"),
    }
}
