//! Sleeping until a condition holds.

use core::panic::Location;

use super::sleep_state::Sleep;
use super::switch;
use crate::process;
use crate::sync::mutant::{self, Mutant};
use crate::sync::{WaitError, debug};
use crate::time::Deadline;

/// Sleeps until `ready`, without a deadline. With a mode that signals can end, check for them afterwards.
#[track_caller]
pub fn sleep_until(mode: Sleep, ready: impl FnMut() -> bool) {
    let _ = sleep(mode, None, ready);
}

/// Sleeps until `ready`, a signal that `mode` admits, or the deadline (monotonic nanoseconds). Whoever makes `ready` true
/// wakes the thread afterwards. `ready` must not sleep.
///
/// The thread wakes for other reasons, too: a timer of its last sleep that went off late, or a signal that another thread has taken
/// since. So all of it is looked at again each time.
#[track_caller]
pub fn sleep(mode: Sleep, deadline: Option<u64>, ready: impl FnMut() -> bool) -> Result<(), WaitError> {
    sleep_to(mode, deadline.map(Deadline::Monotonic), ready)
}

/// As [`sleep`], to a deadline of either clock.
#[track_caller]
pub fn sleep_to(
    mode: Sleep,
    deadline: Option<Deadline>,
    mut ready: impl FnMut() -> bool,
) -> Result<(), WaitError> {
    debug::assert_may_sleep();
    let thread = process::current();
    thread.sched.set_wait_place(Some(Location::caller()));
    let mut timer = None;
    let result = loop {
        if mutant::is(Mutant::AnnouncedLate) && ready() {
            break Ok(());
        }
        thread.sched.announce_sleep(mode);
        if !mutant::is(Mutant::AnnouncedLate) && ready() {
            break Ok(());
        }
        let interrupted = match mode {
            Sleep::Interruptible => thread.signal_pending(),
            Sleep::Killable | Sleep::Stopped | Sleep::Frozen => thread.kill_pending(),
            Sleep::Uninterruptible => false,
        };
        if interrupted {
            break Err(WaitError::Interrupted);
        }
        if let Some(deadline) = deadline {
            if deadline.has_passed() {
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
