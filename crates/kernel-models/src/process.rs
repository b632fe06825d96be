//! Threads, as far as they sleep and wake. Each has a CPU of its own.

use core::ops::Deref;
use core::panic::Location;

use alloc::sync::Arc;
use loom::sync::{Condvar, Mutex};

use crate::sched::sleep_state::{Sleep, SleepState};
use crate::sync::primitive::{AtomicBool, Ordering};
use crate::time::{Deadline, Timer};

/// The scheduler's part.
pub struct Entity {
    pub(crate) sleep: SleepState,
}

impl Entity {
    pub fn announce_sleep(&self, mode: Sleep) {
        self.sleep.announce(mode);
    }

    pub fn stay_awake(&self) {
        self.sleep.stay_awake();
    }

    pub fn set_wait_place(&self, _: Option<&'static Location<'static>>) {}
}

/// A thread.
pub struct Thread {
    pub(crate) sched: Entity,
    queued: Mutex<bool>,
    changed: Condvar,
    signal: AtomicBool,
}

impl Thread {
    fn new() -> Arc<Self> {
        let thread = Arc::new(Thread {
            sched: Entity { sleep: SleepState::new() },
            queued: Mutex::new(false),
            changed: Condvar::new(),
            signal: AtomicBool::new(false),
        });
        thread.sched.sleep.set_on_cpu(true);
        thread
    }

    pub fn signal_pending(&self) -> bool {
        self.signal.load(Ordering::SeqCst)
    }

    pub fn kill_pending(&self) -> bool {
        self.signal_pending()
    }

    /// Sends the thread a signal: the flag first, then the wake.
    pub fn send_signal(self: &Arc<Self>) {
        self.signal.store(true, Ordering::SeqCst);
        crate::sched::wake(self);
    }

    pub fn arm_sleep_timer(&self, _: Deadline) -> Timer {
        unreachable!("no model sleeps with a deadline")
    }

    /// A CPU may run the thread.
    pub(crate) fn queue(&self) {
        assert!(!self.sched.sleep.is_on_cpu(), "a thread is queued while a CPU uses its stack");
        let mut queued = self.queued.lock().unwrap();
        assert!(!*queued, "a thread is queued twice");
        *queued = true;
        self.changed.notify_one();
    }

    /// The CPU waits until the thread may run.
    pub(crate) fn wait_until_queued(&self) {
        let mut queued = self.queued.lock().unwrap();
        while !*queued {
            queued = self.changed.wait(queued).unwrap();
        }
        *queued = false;
    }
}

loom::thread_local! {
    static CURRENT: Arc<Thread> = Thread::new();
}

/// The thread that runs.
pub struct Current(Arc<Thread>);

impl Deref for Current {
    type Target = Thread;

    fn deref(&self) -> &Thread {
        &self.0
    }
}

impl Current {
    pub fn to_arc(&self) -> Arc<Thread> {
        self.0.clone()
    }
}

/// The thread that runs.
pub fn current() -> Current {
    Current(CURRENT.with(Arc::clone))
}

/// The thread that runs.
pub fn try_current() -> Option<Current> {
    Some(current())
}
