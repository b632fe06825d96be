//! Watching for threads that hang, and showing all threads on request.
//!
//! Kernel parameters: `hung_task_timeout=SECONDS` (120; 0 is off) reports threads that a signal cannot end and that have slept for so long;
//! `hung_task_panic=1` makes a panic of it. `dump_threads=SECONDS` writes all threads to the log again and again: for a test that hangs.

use super::list;
use crate::boot::cmdline;
use crate::sched::{self, Sleep};
use crate::time::{self, SECOND};

fn seconds(name: &str, default: u64) -> u64 {
    cmdline::get(name).and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Starts the watching threads that the command line asks for.
pub fn init() {
    let timeout = seconds("hung_task_timeout", 120) * SECOND;
    if timeout > 0 {
        let panics = seconds("hung_task_panic", 0) != 0;
        sched::spawn_kernel_thread("khungtaskd", move || watch(timeout, panics));
    }
    let period = seconds("dump_threads", 0) * SECOND;
    if period > 0 {
        sched::spawn_kernel_thread("dump", move || {
            loop {
                pause(period);
                list::dump();
            }
        });
    }
}

fn pause(duration: u64) {
    // The deadline is what ends this sleep.
    let _ = sched::sleep(Sleep::Uninterruptible, Some(time::now() + duration), || false);
}

fn watch(timeout: u64, panics: bool) {
    loop {
        pause(timeout / 2);
        let now = time::now();
        let mut hung = false;
        for thread in super::processes().flat_map(|process| super::threads_of(&process).unwrap_or_default()) {
            sched::cond_resched();
            // Others wait for as long as a user pleases: a vfork(2) parent for its child, a fault for a userfaultfd's reader.
            let stuck = matches!(thread.sched.sleeping(), Some(Sleep::Uninterruptible));
            // The first process of a PID namespace ends last, and a member may be a zombie for as long as its parent pleases.
            let numbers = thread.process.numbers.as_ref();
            let stuck = stuck && !(thread.memory.is_ending() && numbers.is_some_and(|n| n.own() == 1));
            let Some((place, since)) = thread.sched.wait_place() else { continue };
            if !stuck || now.saturating_sub(since) < timeout {
                continue;
            }
            hung = true;
            let blocked = (now - since) / SECOND;
            log::error!("{} ({}) is blocked for {blocked} seconds at {place}", thread.tid(), thread.name());
        }
        if hung {
            list::dump();
            assert!(!panics, "hung_task: blocked tasks");
        }
    }
}
