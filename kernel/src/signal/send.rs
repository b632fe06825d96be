//! Sending: to a thread, a process, a group.

use alloc::sync::Arc;

use super::pending::Queued;
use super::state::State;
use super::{Pending, SIG_DFL, SIGCONT, SIGKILL, SIGSTOP, SigInfo, SigSet, stop};
use crate::arch::{cpu, ipi};
use crate::errno::{Errno, Result};
use crate::namespaces::View;
use crate::process::{Pid, Process, Thread, WaitStatus, ptrace, tree};
use crate::sched;

/// Sends a signal to a process as a whole: a thread that does not block it takes it. Usable in interrupt handlers.
pub fn send_process(process: &Arc<Process>, info: impl Into<SigInfo>) {
    // Only users' real-time signals can find the queue full.
    let _ = queue_process(process, info);
}

/// As [`queue_process`], for those who hold the tree's lock.
pub fn queue_process_locked(tree: &mut tree::Guard, process: &Arc<Process>, info: SigInfo) -> Result<()> {
    send(tree, process, None, Queued::to(process, seen_by(process, info))).map(drop)
}

/// Sends a signal to one thread. Usable in interrupt handlers.
pub fn send_thread(thread: &Arc<Thread>, info: impl Into<SigInfo>) {
    // Only users' real-time signals can find the queue full.
    let _ = queue_thread(thread, info);
}

/// As [`send_process`]; `EAGAIN` when too many real-time signals wait.
pub fn queue_process(process: &Arc<Process>, info: impl Into<SigInfo>) -> Result<()> {
    let queued = Queued::to(process, seen_by(process, info.into()));
    let mut tree = tree::lock();
    let sent = send(&mut tree, process, None, queued);
    drop(tree);
    sent.map(drop)
}

/// As [`send_process`], for those who hold the tree's lock.
pub fn send_process_locked(tree: &mut tree::Guard, process: &Arc<Process>, info: SigInfo) {
    // A full queue only concerns real-time signals of users; the kernel's own are standard ones.
    let _ = send(tree, process, None, Queued::new(info));
}

/// As [`send_thread`]; `EAGAIN` when too many real-time signals wait.
pub fn queue_thread(thread: &Arc<Thread>, info: impl Into<SigInfo>) -> Result<()> {
    let queued = Queued::to(&thread.process, seen_by(&thread.process, info.into()));
    let mut tree = tree::lock();
    let sent = send(&mut tree, &thread.process, Some(thread), queued);
    drop(tree);
    sent.map(drop)
}

/// Sends a timer's signal to a process, or to one of its threads. False if the signal is ignored.
pub fn send_of_timer(process: &Arc<Process>, thread: Option<&Arc<Thread>>, queued: &Arc<Queued>) -> bool {
    let mut tree = tree::lock();
    let sent = send(&mut tree, process, thread, queued.clone());
    drop(tree);
    // A timer's signal finds no queue full.
    sent.is_ok_and(|sent| !sent.ignored)
}

/// Sends a signal to all members of a process group, if there is one of that number. Usable in interrupt handlers.
pub fn send_group(pgid: Pid, info: impl Into<SigInfo>) {
    let info = info.into();
    let mut tree = tree::lock();
    let Some(group) = tree.group(pgid) else { return };
    let mut next = tree::first_member(&tree, &group);
    while let Some(process) = next {
        next = tree::next_member(&tree, &group, &process);
        let _ = send(&mut tree, &process, None, Queued::new(info));
    }
}

/// Whether the current thread blocks or its process ignores the signal: the terminal asks before it stops a background process.
pub fn is_ignored_or_blocked(signal: u32) -> bool {
    let thread = crate::process::current();
    let action = thread.process.actions.lock().get(signal);
    thread.signals.mask().contains(signal) || action.handler == super::SIG_IGN
}

/// What came of a signal. The caller drops it after the tree's lock.
pub(super) struct Sent {
    /// The process ignores the signal.
    ignored: bool,
    /// Signals that this one has removed.
    _removed: Pending,
    /// The signal itself, when it is not pending.
    _leftover: Option<Arc<Queued>>,
}

/// Puts the signal on the right set and makes the right thread see it.
pub(super) fn send(
    tree: &mut tree::Guard,
    process: &Arc<Process>,
    thread: Option<&Arc<Thread>>,
    queued: Arc<Queued>,
) -> Result<Sent> {
    let signal = queued.signal();
    let mut dropped = Pending::new();
    // As Linux: who is on its way out is told nothing more.
    if process.ended_locked(tree).is_some() || process.signals.state.lock().ending.is_some() {
        return Ok(Sent { ignored: false, _removed: dropped, _leftover: Some(queued) });
    }
    let mut continued = false;
    let mut ignored = false;
    let outcome = {
        let mut state = process.signals.state.lock();
        if signal == SIGCONT {
            continued = resume(tree, process, &mut state, &mut dropped);
        } else if SigSet::STOPPING.contains(signal) {
            remove_everywhere(tree, process, &mut state, SigSet::of(&[SIGCONT]), &mut dropped);
        }
        ignored |= is_ignored(tree, process, thread, &queued);
        if ignored { Ok(Some(queued)) } else { post(tree, process, thread, &mut state, queued) }
    };
    if continued {
        stop::tell_parent(tree, process, WaitStatus::Continued);
    }
    outcome.map(|leftover| Sent { ignored, _removed: dropped, _leftover: leftover })
}

/// Threads that are asked whether they take a signal while one like it is pending: ten thousand threads that block it shall not be
/// asked for each of ten thousand timers.
const MOST_ASKED: usize = 64;

/// Queues the signal and wakes its thread. The signal comes back when one like it is pending.
fn post(
    tree: &tree::Guard,
    process: &Arc<Process>,
    thread: Option<&Arc<Thread>>,
    state: &mut State,
    queued: Arc<Queued>,
) -> Result<Option<Arc<Queued>>> {
    let signal = queued.signal();
    if queued.is_over_limit() {
        return Err(Errno::EAGAIN);
    }
    // Whoever takes the one that is pending finds this one too.
    let told = thread.is_none() && state.shared.set().contains(signal);
    let leftover = match thread {
        Some(thread) => thread.signals.own.lock().add(queued),
        None => state.shared.add(queued),
    };
    if signal == SIGKILL {
        end_all(tree, process, state, WaitStatus::Killed { signal: SIGKILL as u8, core: false });
        return Ok(leftover);
    }
    match thread {
        Some(thread) if thread.signals.unblocks(signal) => notify(thread),
        Some(_) => {}
        None => {
            // A thread that has nothing to look at yet is preferred: several that wait shall take one each.
            let most = if told { MOST_ASKED } else { usize::MAX };
            let takers = || process.threads_locked(tree).take(most).filter(|t| t.signals.unblocks(signal));
            let idle = takers().find(|thread| !thread.signals.pending());
            if let Some(thread) = idle.or_else(|| takers().next()) {
                notify(&thread.to_arc());
            }
        }
    }
    process.signals_changed.wake_all();
    Ok(leftover)
}

/// Makes a thread look at its signals: ends its sleep, or interrupts the CPU that runs it in user mode.
fn notify(thread: &Arc<Thread>) {
    thread.signals.mark_pending();
    if !sched::wake_for_signal(thread, false) {
        kick(thread);
    }
}

/// If the thread runs on another CPU, brings it into the kernel.
pub(crate) fn kick(thread: &Thread) {
    if let Some(on) = sched::running_on(thread)
        && on != cpu::id()
    {
        ipi::reschedule(on);
    }
}

/// Marks a process as ending, and all its threads to be killed.
pub(crate) fn end_all(tree: &tree::Guard, process: &Process, state: &mut State, status: WaitStatus) {
    state.ending.get_or_insert(status);
    state.stop = None;
    for thread in process.threads_locked(tree) {
        kill_thread(thread);
    }
}

/// A new tracee's first stop: SIGSTOP is pending before it runs.
pub(crate) fn add_first_stop(thread: &Thread) {
    let queued = Queued::new(SigInfo::user(SIGSTOP, super::codes::SI_USER, 0, 0));
    // It has none yet: nothing comes back.
    let _ = thread.signals.own.lock().add(queued);
    thread.signals.mark_pending();
}

/// Makes one thread end.
pub(crate) fn kill_thread(thread: &Thread) {
    thread.signals.mark_killed();
    if !sched::wake_for_signal(&thread.to_arc(), true) {
        kick(thread);
    }
}

/// Whether the signal has no effect at all, so that it is not even queued.
fn is_ignored(tree: &tree::Guard, process: &Process, thread: Option<&Arc<Thread>>, queued: &Queued) -> bool {
    let signal = queued.signal();
    let action = process.actions.lock().get(signal);
    // The first process of a namespace cannot be killed or stopped from within: what it does not handle does not reach it.
    let unkillable = process.is_init() && action.handler == SIG_DFL;
    if signal == SIGKILL || signal == SIGSTOP {
        return unkillable && (process.pid == 1 || is_from_within(process, queued));
    }
    // A tracer hears of every signal.
    let traced = match thread {
        Some(thread) => thread.trace.is_traced(),
        None => process.threads_locked(tree).next().is_some_and(|first| first.trace.is_traced()),
    };
    if traced {
        return false;
    }
    // A blocked signal waits: the action may change until it is unblocked.
    let blocked = match thread {
        Some(thread) => thread.signals.mask().contains(signal),
        None => process.threads_locked(tree).next().is_none_or(|first| first.signals.mask().contains(signal)),
    };
    !blocked && (unkillable || action.ignores(signal))
}

/// Is the sender of the signal in the process's PID namespace? The kernel itself is not.
fn is_from_within(process: &Process, queued: &Queued) -> bool {
    queued.info().is_from_user()
        && crate::process::try_current().is_some_and(|sender| View::of(process).sees(&sender.process))
}

/// What the receiver is told of the sender: one that it cannot see has the number 0.
fn seen_by(process: &Process, mut info: SigInfo) -> SigInfo {
    if process.numbers.is_some()
        && info.has_sender()
        && crate::process::try_current().is_some_and(|sender| !View::of(process).sees(&sender.process))
    {
        info.hide_sender();
    }
    info
}

/// SIGCONT: no stop signal is pending any more, and stopped threads go on. True if the process had stopped.
fn resume(tree: &tree::Guard, process: &Arc<Process>, state: &mut State, dropped: &mut Pending) -> bool {
    remove_everywhere(tree, process, state, SigSet::STOPPING, dropped);
    let stopped = state.stop.take().is_some();
    state.stop_left = 0;
    for thread in process.threads_locked(tree) {
        thread.signals.take_stop();
        thread.signals.take_stop_again();
        sched::wake_stopped(&thread.to_arc());
        ptrace::trap_of_group(tree, thread);
    }
    stopped
}

fn remove_everywhere(
    tree: &tree::Guard,
    process: &Process,
    state: &mut State,
    which: SigSet,
    dropped: &mut Pending,
) {
    state.shared.remove(which, dropped);
    for thread in process.threads_locked(tree) {
        thread.signals.own.lock().remove(which, dropped);
        state.recalculate(&thread.signals);
    }
}

/// sigaction(2) made a signal ignored: pending ones are thrown away.
pub fn discard(process: &Arc<Process>, which: SigSet) {
    let mut dropped = Pending::new();
    let tree = tree::lock();
    remove_everywhere(&tree, process, &mut process.signals.state.lock(), which, &mut dropped);
}

/// Shared signals that one thread has just blocked go to another that takes them.
pub(super) fn retarget(process: &Process, signals: SigSet) {
    let tree = tree::lock();
    let state = process.signals.state.lock();
    let mut left = signals.intersection(state.shared.set());
    while !left.is_empty() {
        let signal = left.0.trailing_zeros() + 1;
        left = left.without(SigSet::of(&[signal]));
        if let Some(thread) = process.threads_locked(&tree).find(|thread| thread.signals.unblocks(signal)) {
            notify(&thread.to_arc());
        }
    }
}

/// Posts a signal to the current thread without asking whether it is ignored; even the first process gets it.
pub(super) fn force(thread: &Arc<Thread>, info: SigInfo) {
    let queued = Queued::new(info);
    let tree = tree::lock();
    let mut state = thread.process.signals.state.lock();
    // Not limited: it is no real-time signal of a user. One that is pending already is as good.
    let _ = post(&tree, &thread.process, Some(thread), &mut state, queued);
}
