//! The scheduler: which thread runs on which CPU, sleeping and waking.
//!
//! Each CPU has a queue of runnable threads in the order of their weighted run time. A CPU that runs dry takes from
//! others; a thread that wakes goes to an idle CPU if its affinity allows one. Only user mode is preempted: a timer or a reschedule interrupt sets a
//! flag, which is looked at on the way back to user mode and by [`cond_resched`].
//!
//! # Sleeping without lost wakes
//!
//! A thread announces that it is about to sleep (`Sleeping`), then looks at its condition, then commits
//! (`Parked`, in `schedule`, with interrupts off). [`wake`] turns `Sleeping` back into `Running` (the commit then fails
//! and the thread goes on), and a `Parked` thread into a queued one, after its CPU has finished switching away from it. All of these
//! are compare-and-exchange operations on one word, so that every wake after the announcement is seen.
//!
//! # A dead thread's stack
//!
//! The last switch of a thread runs on its own stack. `switch::finish`, on the next thread's stack, puts the dead one
//! on a list; [`reap`] frees stacks later, with interrupts on, and only once the CPU has let go of them.

mod entity;
mod idle;
mod policy;
mod queue;
mod switch;

pub use entity::{Entity, Parameters, Sleep};
pub use idle::{enter_idle, init_cpu, reap};
pub use policy::Policy;
pub use queue::{runnable, set_affinity, tick};
pub use switch::{TICK, exit_current, finish_switch_for_new_thread, resched_interrupt};

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::panic::Location;

use crate::arch::{cpu, interrupts};
use crate::process::{self, Thread};
use crate::sync::{WaitError, debug, grace};
use crate::time;

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
        Sleep::Killable | Sleep::Stopped => kill,
        Sleep::Uninterruptible => false,
    })
}

/// Wakes a thread that job control has stopped.
pub fn wake_stopped(thread: &Arc<Thread>) -> bool {
    queue::wake_if(thread, |sleep| sleep == Sleep::Stopped)
}

/// Sleeps until `ready`, without a deadline. With a mode that signals can end, check for them afterwards.
#[track_caller]
pub fn sleep_until(mode: Sleep, ready: impl FnMut() -> bool) {
    let _ = sleep(mode, None, ready);
}

/// Sleeps until `ready`, a signal that `mode` admits, or the deadline (monotonic nanoseconds). Whoever makes `ready` true
/// wakes the thread afterwards. `ready` must not sleep.
#[track_caller]
pub fn sleep(mode: Sleep, deadline: Option<u64>, mut ready: impl FnMut() -> bool) -> Result<(), WaitError> {
    debug::assert_may_sleep();
    let thread = process::current();
    thread.sched.set_wait_place(Some(Location::caller()));
    let mut timer = None;
    let result = loop {
        thread.sched.announce_sleep(mode);
        if ready() {
            break Ok(());
        }
        let interrupted = match mode {
            Sleep::Interruptible => thread.signal_pending(),
            Sleep::Killable | Sleep::Stopped => thread.kill_pending(),
            Sleep::Uninterruptible => false,
        };
        if interrupted {
            break Err(WaitError::Interrupted);
        }
        if let Some(deadline) = deadline {
            if time::now() >= deadline {
                break Err(WaitError::TimedOut);
            }
            // Each time: a timer that went off early, by another CPU's clock, has woken this thread and does not do so again.
            timer = Some(thread.arm_sleep_timer(deadline));
        }
        switch::block();
    };
    thread.sched.stay_awake();
    if let Some(timer) = timer {
        timer.cancel();
    }
    thread.sched.set_wait_place(None);
    result
}

/// Lets other runnable threads of this CPU go first.
pub fn yield_now() {
    debug::assert_may_sleep();
    switch::yield_cpu();
}

/// Switches to another thread if one is due. For loops in the kernel that may take long.
pub fn cond_resched() {
    if process::try_current().is_none() {
        return;
    }
    grace::quiescent();
    if queue::resched_wanted() {
        debug::assert_may_sleep();
        interrupts::without(switch::preempt);
    }
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
