//! Stopping and going on: job control's part of signals.

use alloc::sync::Arc;

use super::send::send_process_locked;
use super::{SIGCHLD, SigInfo, flags, tell};
use crate::arch::trap::TrapFrame;
use crate::cgroup::freezer;
use crate::namespaces::View;
use crate::process::tree::Event;
use crate::process::{self, Process, Thread, WaitStatus, orphans, ptrace, tree};
use crate::sched::{self, Sleep};

/// How many SIGCONT a process has had so far.
pub(super) fn times_continued(process: &Process) -> u32 {
    process.signals.state.lock().continued
}

/// Begins to stop a process: every thread stops on its way to user mode, or where it sleeps. Nothing happens if it has had another SIGCONT
/// since there were `continued` of them, when the signal was taken: that one takes the signal back, though it is not pending any more.
pub(super) fn begin(process: &Arc<Process>, signal: u32, continued: u32) {
    let tree = tree::look();
    let mut state = process.signals.state.lock();
    if state.stop.is_some() || state.ending.is_some() || state.continued != continued {
        return;
    }
    state.turn_to(Some(signal));
    orphans::note_stop(&tree, process, true);
    tell::all(&tree, process, &mut state);
}

/// Stops the current thread if that was asked for; returns when the process goes on or is killed, or when the thread's tracer says so.
pub fn stop_if_asked(frame: &mut TrapFrame) {
    let thread = process::current();
    let process = &thread.process;
    let mut trap = thread.signals.take_trap();
    let again = thread.signals.take_stop_again();
    let asked = thread.signals.take_stop();
    if asked {
        took_part(process, &thread);
    }
    if !asked && !again && !trap {
        return;
    }
    loop {
        // The process may have gone on and stopped again before this thread came here.
        if thread.signals.take_stop() {
            took_part(process, &thread);
        }
        let signal = process.signals.state.lock().stop;
        if thread.kill_pending() {
            return;
        }
        if thread.trace.is_traced() && (trap || signal.is_some()) {
            ptrace::group_stop(frame, signal);
            // A process that goes on wakes a tracee that listens: its tracer hears of that before any signal is delivered.
            trap = thread.signals.take_trap();
            if !trap {
                return;
            }
            continue;
        }
        // The flag is cleared by SIGCONT under the same lock that guards `stop`.
        if signal.is_none() {
            return;
        }
        freezer::rest(&thread);
        sched::sleep_until(Sleep::Stopped, || {
            process.signals.state.lock().stop.is_none()
                || thread.kill_pending()
                || thread.signals.is_asked_to_stop()
                || thread.signals.is_asked_to_trap()
        });
        freezer::go_on(&thread);
        trap |= thread.signals.take_trap();
    }
}

/// Has the thread taken part in a stop of its process that still lasts? It may be a few instructions away from its sleep, but the
/// parent may have been told already.
pub fn has_stopped(thread: &Thread) -> bool {
    thread.process.signals.state.lock().stop.is_some() && !thread.signals.is_asked_to_stop()
}

/// A thread that ends takes part in a stop by that: it has just left its process's list.
pub(crate) fn leave_stop(tree: &mut tree::Guard, thread: &Thread) {
    if thread.signals.take_stop() {
        took_part_locked(tree, &thread.process, thread);
    }
}

/// A new thread of a process that stops or ends does so too. The tree's lock is held.
pub(crate) fn join_stop(process: &Process, thread: &Thread) {
    let mut state = process.signals.state.lock();
    state.teach(&thread.signals);
    if state.ending.is_some() {
        thread.signals.mark_killed();
    } else if state.stop.is_some() {
        state.ask_stop(&thread.signals);
    }
    // What waits for the process may be for this thread: the others perhaps block it.
    state.recalculate(&thread.signals);
}

/// One thread more has stopped; the last one tells the parent.
fn took_part(process: &Arc<Process>, thread: &Thread) {
    took_part_locked(&mut tree::lock_to_send(1), process, thread);
}

fn took_part_locked(tree: &mut tree::Guard, process: &Arc<Process>, thread: &Thread) {
    let complete = {
        let mut state = process.signals.state.lock();
        state.stop_taken();
        state.complete_stop()
    };
    if let Some(signal) = complete {
        tell_of_stop(tree, process, thread, signal);
    }
}

/// All threads have stopped; `last` is the last of them. A parent that traces that one hears of the stop as its tracer, and finds it as the
/// parent when it has let go.
pub(super) fn tell_of_stop(tree: &mut tree::Guard, process: &Arc<Process>, last: &Thread, signal: u32) {
    let status = WaitStatus::Stopped(signal as u8);
    if ptrace::is_of_parent(tree, last) {
        process.set_news(tree, status);
    } else {
        tell_parent(tree, process, status);
    }
}

/// Tells the parent that the process has stopped or goes on: SIGCHLD, unless it does not want that, and wait(2).
pub(super) fn tell_parent(tree: &mut tree::Guard, process: &Arc<Process>, status: WaitStatus) {
    process.set_news(tree, status);
    let Some(parent) = process.parent_locked(tree).cloned() else { return };
    let action = parent.actions.lock().get(SIGCHLD);
    if action.flags & flags::SA_NOCLDSTOP == 0 {
        let info = child_info(process, &parent, status);
        send_process_locked(tree, &parent, info);
    }
    tree.tell(&parent, Event::Child);
}

/// What SIGCHLD says about a child, in numbers of its parent's PID namespace.
pub(crate) fn child_info(process: &Process, parent: &Process, status: WaitStatus) -> SigInfo {
    const TICK: u64 = crate::time::SECOND / 100;
    let (code, value) = status.to_siginfo();
    // Relaxed: statistics. Of the threads that have ended: the others' times would need the lock that is held.
    let user = process.totals.ended_user.load(core::sync::atomic::Ordering::Relaxed);
    let system = process.totals.ended_system.load(core::sync::atomic::Ordering::Relaxed);
    let pid = View::of(parent).process(process);
    SigInfo::child(code, pid, process.uid_for_signals(), value, user / TICK, system / TICK)
}
