//! The scheduler: which thread runs on which CPU, sleeping and waking.
//!
//! Each CPU has a queue of runnable threads in the order of their weighted run time. A CPU that runs dry takes from
//! others; a thread that wakes goes to an idle CPU if its affinity allows one. Only user mode is preempted: a timer or a reschedule interrupt sets a
//! flag, which is looked at on the way back to user mode and by [`cond_resched`].
//!
//! # Nothing waits for ever
//!
//! A wake is not lost: [`sleep_state`]. A queued thread's CPU does not halt: [`beacon`]. A sleep with a deadline ends: `time::alarm`. The
//! arguments are in those modules, and models of them in the crate `kernel-models`, which builds the same files.
//!
//! # A dead thread's stack
//!
//! The last switch of a thread runs on its own stack. `switch::finish`, on the next thread's stack, puts the dead one
//! on a list; [`reap`] frees stacks later, with interrupts on, and only once the CPU has let go of them.

mod beacon;
mod entity;
mod idle;
mod policy;
mod queue;
mod sleep;
mod sleep_state;
mod sorting;
mod switch;

pub use entity::{Entity, Parameters};
pub use idle::{enter_idle, init_cpu, reap, reap_some};
pub use policy::Policy;
pub use queue::{runnable, set_affinity, set_parameters, tick};
pub use sleep::{sleep, sleep_to, sleep_until};
pub use sleep_state::Sleep;
pub use sorting::sort_by_key;
pub use switch::{TICK, exit_current, finish_switch_for_new_thread, resched_interrupt};

use alloc::boxed::Box;
use alloc::sync::Arc;

use crate::arch::{cpu, interrupts};
use crate::memory::reserve;
use crate::process::{self, Thread};
use crate::sync::lockdep::stretch;
use crate::sync::{debug, grace};

/// The slice of SCHED_RR, in nanoseconds.
pub const RR_INTERVAL: u64 = 100_000_000;

/// Makes a sleeping thread runnable, whatever it waits for. False if it was not asleep. Usable in interrupt handlers.
pub fn wake(thread: &Arc<Thread>) -> bool {
    queue::wake_if(thread, |_| true)
}

/// Wakes a thread whose sleep a signal may end; `kill` for a signal that kills.
pub fn wake_for_signal(thread: &Arc<Thread>, kill: bool) -> bool {
    queue::wake_if(thread, |sleep| match sleep {
        Sleep::Interruptible => true,
        Sleep::Killable | Sleep::Stopped | Sleep::Frozen => kill,
        Sleep::Uninterruptible => false,
    })
}

/// Wakes a thread that job control has stopped, or that rests with its control group.
pub fn wake_stopped(thread: &Arc<Thread>) -> bool {
    queue::wake_if(thread, |sleep| matches!(sleep, Sleep::Stopped | Sleep::Frozen))
}

/// Lets other runnable threads of this CPU go first.
pub fn yield_now() {
    debug::assert_may_sleep();
    switch::yield_cpu();
    reserve::enter();
}

/// Switches to another thread if one is due. For loops in the kernel that may take long.
#[cfg_attr(any(feature = "lockdep", feature = "lock-times"), track_caller)]
pub fn cond_resched() {
    if process::try_current().is_none() {
        return;
    }
    grace::quiescent();
    stretch::end();
    if queue::resched_wanted() {
        debug::assert_may_sleep();
        interrupts::without(switch::preempt);
        reserve::enter();
    }
}

/// Whether another thread is due on this CPU. Interrupts are off.
#[inline]
pub fn is_resched_wanted() -> bool {
    queue::resched_wanted()
}

/// On the way to user mode, with interrupts off: switches if another thread is due.
pub fn resched_if_wanted() -> bool {
    let wanted = queue::resched_wanted();
    if wanted {
        switch::preempt();
    }
    wanted
}

/// Starts a thread of the kernel's own, on any CPU.
pub fn spawn_kernel_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Arc<Thread> {
    let thread = process::new_kernel_thread(name, Box::new(body));
    start(&thread);
    thread
}

/// Puts a new thread on the run queue for the first time. From here until its end the scheduler holds a reference.
pub fn start(thread: &Arc<Thread>) {
    thread.sched.adopt(thread);
    queue::enqueue_new(thread);
}

/// Waits until `thread`, which is about to end, has left its stack. It may have to run for that, perhaps on this CPU, so this sleeps.
pub fn wait_for_end(thread: &Thread) {
    switch::DEAD_WAIT.wait_until(|| (thread.sched.is_dead() && !thread.sched.is_on_cpu()).then_some(()));
}

/// Whether the thread runs on a CPU now, and on which; for statistics.
pub fn running_on(thread: &Thread) -> Option<cpu::CpuId> {
    thread.sched.is_on_cpu().then(|| thread.sched.cpu())
}
