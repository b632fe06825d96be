//! The scheduler: the kernel's own sleeping and waking, and a CPU for each thread.

#[path = "../../../kernel/src/sched/beacon.rs"]
pub(crate) mod beacon;
#[path = "../../../kernel/src/sched/sleep.rs"]
mod sleep;
#[path = "../../../kernel/src/sched/sleep_state.rs"]
pub(crate) mod sleep_state;

pub use sleep::{sleep, sleep_to, sleep_until};
pub use sleep_state::Sleep;

use alloc::sync::Arc;

use crate::process::Thread;
use sleep_state::Woken;

/// There is nobody to give way to: each thread has a CPU.
pub fn cond_resched() {}

/// As the kernel's.
pub fn wake(thread: &Arc<Thread>) -> bool {
    match thread.sched.sleep.wake_if(|_| true) {
        Woken::No => false,
        Woken::Awake => true,
        Woken::Queue => {
            thread.queue();
            true
        }
    }
}

/// The switch to another thread, of which there is none here: the CPU waits.
pub(crate) mod switch {
    use crate::process;

    /// As the kernel's.
    pub fn block() {
        let thread = process::current();
        if !thread.sched.sleep.park() {
            return;
        }
        // On the stack of the next thread.
        thread.sched.sleep.set_on_cpu(false);
        thread.wait_until_queued();
        thread.sched.sleep.set_on_cpu(true);
    }
}
