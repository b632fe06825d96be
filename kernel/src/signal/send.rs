//! Sending: to a thread, a process, a group.

use alloc::sync::Arc;

use super::pending::Queued;
use super::state::State;
use super::{
    Action, DefaultAction, Pending, SIG_DFL, SIGCONT, SIGKILL, SIGSTOP, SigInfo, SigSet, default_of, stop,
    tell,
};
use crate::arch::{cpu, ipi};
use crate::errno::{Errno, Result};
use crate::namespaces::View;
use crate::process::tree::Event;
use crate::process::{Process, Thread, WaitStatus, orphans, tree};
use crate::sched;

/// Sends a signal to a process as a whole: a thread that does not block it takes it. Usable in interrupt handlers.
pub fn send_process(process: &Arc<Process>, info: impl Into<SigInfo>) {
    // Only users' real-time signals can find the queue full.
    let _ = queue_process(process, info);
}

/// Makes what [`queue_prepared`] sends: a signal for a process, from `sender`.
pub fn prepare(process: &Process, info: SigInfo, sender: &Process) -> Arc<Queued> {
    Queued::from(process, seen_by(process, info, Some(sender)), View::of(process).sees(sender))
}

/// As [`queue_process`], for those who hold the tree's lock, and drop what comes back without it.
pub fn queue_prepared(tree: &mut tree::Guard, process: &Arc<Process>, queued: Arc<Queued>) -> Result<Sent> {
    send(tree, process, None, queued)
}

/// Sends a signal to one thread. Usable in interrupt handlers.
pub fn send_thread(thread: &Arc<Thread>, info: impl Into<SigInfo>) {
    // Only users' real-time signals can find the queue full.
    let _ = queue_thread(thread, info);
}

/// As [`send_process`]; `EAGAIN` when too many real-time signals wait.
pub fn queue_process(process: &Arc<Process>, info: impl Into<SigInfo>) -> Result<()> {
    let queued = Queued::to(process, seen_by_current(process, info.into()));
    let mut tree = lock_for(queued.signal());
    let sent = send(&mut tree, process, None, queued);
    drop(tree);
    sent.map(drop)
}

/// As [`send_process`], for those who hold the tree's lock and took it to send.
pub fn send_process_locked(tree: &mut tree::Guard, process: &Arc<Process>, info: SigInfo) {
    let queued = tree.take_spare(info);
    // A full queue only concerns real-time signals of users; the kernel's own count for nobody.
    if let Ok(sent) = send(tree, process, None, queued) {
        tree.keep(sent);
    }
}

/// How many of the kernel's own signals a signal may cause: a stopped process that goes on tells its parent.
pub const fn caused_by(signal: u32) -> usize {
    (signal == SIGCONT) as usize
}

/// Takes the tree's lock to send this signal.
pub fn lock_for(signal: u32) -> tree::Guard {
    tree::lock_to_send(caused_by(signal))
}

/// As [`send_thread`]; `EAGAIN` when too many real-time signals wait.
pub fn queue_thread(thread: &Arc<Thread>, info: impl Into<SigInfo>) -> Result<()> {
    let queued = Queued::to(&thread.process, seen_by_current(&thread.process, info.into()));
    let mut tree = lock_for(queued.signal());
    let sent = send(&mut tree, &thread.process, Some(thread), queued);
    drop(tree);
    sent.map(drop)
}

/// Sends a timer's signal to a process, or to one of its threads. False if the signal is ignored.
pub fn send_of_timer(process: &Arc<Process>, thread: Option<&Arc<Thread>>, queued: &Arc<Queued>) -> bool {
    let mut tree = lock_for(queued.signal());
    let sent = send(&mut tree, process, thread, queued.clone());
    drop(tree);
    // A timer's signal finds no queue full.
    sent.is_ok_and(|sent| !sent.ignored)
}

/// Whether the current thread blocks or its process ignores the signal: the terminal asks before it stops a background process.
pub fn is_ignored_or_blocked(signal: u32) -> bool {
    let thread = crate::process::current();
    let action = thread.process.actions.lock().get(signal);
    thread.signals.mask().contains(signal) || action.handler == super::SIG_IGN
}

/// What came of a signal. The caller drops it after the tree's lock.
pub struct Sent {
    /// The process ignores the signal.
    ignored: bool,
    /// Signals that this one has removed.
    removed: Pending,
    /// The signal itself, when it is not pending.
    leftover: Option<Arc<Queued>>,
}

impl Sent {
    /// What is to be dropped: the signals that were removed, and the one that was sent if it is not pending.
    pub fn into_parts(self) -> (Pending, Option<Arc<Queued>>) {
        (self.removed, self.leftover)
    }
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
    let mut continued = false;
    let mut ignored = false;
    let outcome = {
        let mut state = process.signals.state.lock();
        // As Linux: who is on its way out is told nothing more.
        if process.ended_locked(tree).is_some() || state.ending.is_some() {
            return Ok(Sent { ignored, removed: dropped, leftover: Some(queued) });
        }
        if signal == SIGCONT {
            continued = resume(tree, process, &mut state, &mut dropped);
        } else if SigSet::STOPPING.contains(signal) {
            state.shared.remove(SigSet::of(&[SIGCONT]), &mut dropped);
            state.halted = state.halted.wrapping_add(1);
        }
        let action = process.actions.lock().get(signal);
        ignored = is_ignored(tree, process, thread, &queued, &action);
        let ends = action.handler == SIG_DFL && default_of(signal) == DefaultAction::Terminate;
        match ignored {
            true => Ok(Some(queued)),
            false => post(tree, process, thread, &mut state, queued, ends, &mut dropped),
        }
    };
    if continued {
        stop::tell_parent(tree, process, WaitStatus::Continued);
    }
    outcome.map(|leftover| Sent { ignored, removed: dropped, leftover })
}

/// Threads that the sender of a signal asks whether they take it, with interrupts off. The others are asked later.
const MOST_ASKED: usize = 64;

/// Queues the signal and wakes its thread. The signal comes back when one like it is pending. `ends`: who takes it has no handler, and the
/// process ends by it.
fn post(
    tree: &mut tree::Guard,
    process: &Arc<Process>,
    thread: Option<&Arc<Thread>>,
    state: &mut State,
    queued: Arc<Queued>,
    ends: bool,
    dropped: &mut Pending,
) -> Result<Option<Arc<Queued>>> {
    let signal = queued.signal();
    if queued.is_over_limit() {
        return Err(Errno::EAGAIN);
    }
    // Whoever takes the one that is pending finds this one too.
    let told = thread.is_none() && state.shared.set().contains(signal);
    let leftover = match thread {
        Some(thread) => {
            state.catch_up(&thread.signals, dropped);
            thread.signals.own.lock().add(queued)
        }
        None => state.shared.add(queued),
    };
    let ends = |state: &State, thread: &Thread| {
        ends && state.stop.is_none()
            && !thread.signals.mask().contains(signal)
            && !thread.trace.is_traced()
            && !process.is_init()
    };
    let killed = WaitStatus::Killed { signal: signal as u8, core: false };
    if signal == SIGKILL {
        end_all(tree, process, state, killed);
        return Ok(leftover);
    }
    match thread {
        // At once: sleeps that only a killed thread ends, end by it as well.
        Some(thread) if ends(state, thread) => end_all(tree, process, state, killed),
        Some(thread) if thread.signals.unblocks(signal) => notify(thread),
        Some(_) => {}
        None => {
            // A thread that has nothing to look at yet is preferred: several that wait shall take one each.
            let idle = takers(tree, process, signal).find(|thread| !thread.signals.pending());
            let taker = idle.or_else(|| takers(tree, process, signal).next());
            if taker.is_some_and(|thread| ends(state, thread)) {
                end_all(tree, process, state, killed);
            } else if let Some(thread) = taker {
                notify(&thread.to_arc());
            } else if !told && process.count_locked(tree) > MOST_ASKED {
                state.untold = state.untold.with(signal);
                tell::all(tree, process, state);
            }
        }
    }
    tree.tell(process, Event::Signal);
    Ok(leftover)
}

/// Those of the first few threads that take a signal.
fn takers<'a>(tree: &'a tree::Look, process: &'a Process, signal: u32) -> impl Iterator<Item = &'a Thread> {
    process.threads_locked(tree).take(MOST_ASKED).filter(move |thread| thread.signals.unblocks(signal))
}

/// Makes a thread look at its signals: ends its sleep, or interrupts the CPU that runs it in user mode.
pub(super) fn notify(thread: &Arc<Thread>) {
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
pub(crate) fn end_all(tree: &tree::Look, process: &Arc<Process>, state: &mut State, status: WaitStatus) {
    state.ending.get_or_insert(status);
    state.stop = None;
    orphans::note_stop(tree, process, false);
    tell::all(tree, process, state);
}

/// A new tracee's first stop: SIGSTOP is pending before it runs. For those who took the tree's lock to send.
pub(crate) fn add_first_stop(tree: &mut tree::Guard, thread: &Thread) {
    let queued = tree.take_spare(SigInfo::user(SIGSTOP, super::codes::SI_USER, 0, 0));
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

/// A thread's control group freezes: the thread comes to where it rests.
pub(crate) fn ask_freeze(thread: &Thread) {
    thread.signals.ask_freeze();
    if !sched::wake_for_signal(&thread.to_arc(), false) {
        kick(thread);
    }
}

/// Its control group goes on, and so does the thread.
pub(crate) fn thaw(thread: &Thread) {
    thread.signals.forget_freeze();
    sched::wake_stopped(&thread.to_arc());
}

/// Whether the signal has no effect at all, so that it is not even queued.
fn is_ignored(
    tree: &tree::Look,
    process: &Process,
    thread: Option<&Arc<Thread>>,
    queued: &Queued,
    action: &Action,
) -> bool {
    let signal = queued.signal();
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
    let by_current =
        || crate::process::try_current().is_some_and(|sender| View::of(process).sees(&sender.process));
    queued.info().is_from_user() && queued.is_from_within().unwrap_or_else(by_current)
}

/// What the receiver is told of the sender: one that it cannot see has the number 0.
fn seen_by(process: &Process, mut info: SigInfo, sender: Option<&Process>) -> SigInfo {
    if process.numbers.is_some()
        && info.has_sender()
        && sender.is_some_and(|sender| !View::of(process).sees(sender))
    {
        info.hide_sender();
    }
    info
}

fn seen_by_current(process: &Process, info: SigInfo) -> SigInfo {
    let current = crate::process::try_current();
    seen_by(process, info, current.as_ref().map(|sender| &*sender.process))
}

/// SIGCONT: no stop signal is pending any more, and stopped threads go on. True if the process had stopped.
fn resume(tree: &tree::Look, process: &Arc<Process>, state: &mut State, dropped: &mut Pending) -> bool {
    state.shared.remove(SigSet::STOPPING, dropped);
    state.continued = state.continued.wrapping_add(1);
    let stopped = state.stop.is_some();
    state.turn_to(None);
    orphans::note_stop(tree, process, false);
    tell::all(tree, process, state);
    stopped
}

/// Signals that sigaction(2) takes from pending sets in one hold of the locks.
const MOST_DISCARDED: usize = 64;

/// sigaction(2) made signals ignored: pending ones are thrown away, some at a time. The caller sees to it that they stay ignored meanwhile.
pub fn discard(process: &Arc<Process>, which: SigSet) {
    let mut dropped = Pending::new();
    loop {
        let mut most = MOST_DISCARDED;
        let done = process.signals.state.lock().shared.remove_some(which, &mut most, &mut dropped);
        core::mem::take(&mut dropped).drain();
        if done {
            break;
        }
    }
    let mut last = 0;
    loop {
        let done = {
            let tree = tree::look();
            let state = process.signals.state.lock();
            let (mut threads, mut signals) = (tell::MOST, MOST_DISCARDED);
            let mut left = process.threads_after(&tree, last);
            loop {
                let Some(thread) = left.next() else { break true };
                if threads == 0 {
                    break false;
                }
                threads -= 1;
                let removed = thread.signals.own.lock().remove_some(which, &mut signals, &mut dropped);
                state.recalculate(&thread.signals);
                if !removed {
                    break false;
                }
                last = thread.order();
            }
        };
        core::mem::take(&mut dropped).drain();
        if done {
            return;
        }
        sched::cond_resched();
    }
}

/// Shared signals that one thread has just blocked go to another that takes them.
pub(super) fn retarget(process: &Arc<Process>, signals: SigSet) {
    let tree = tree::look();
    let mut state = process.signals.state.lock();
    let mut left = signals.intersection(state.shared.set());
    let mut untold = SigSet::EMPTY;
    while !left.is_empty() {
        let signal = left.0.trailing_zeros() + 1;
        left = left.without(SigSet::of(&[signal]));
        match takers(&tree, process, signal).next() {
            Some(thread) => notify(&thread.to_arc()),
            None => untold = untold.with(signal),
        }
    }
    if !untold.is_empty() && process.count_locked(&tree) > MOST_ASKED {
        state.untold = state.untold.union(untold);
        tell::all(&tree, process, &mut state);
    }
}

/// Posts a signal to the current thread without asking whether it is ignored; even the first process gets it.
pub(super) fn force(thread: &Arc<Thread>, info: SigInfo) {
    let queued = Queued::new(info);
    let mut dropped = Pending::new();
    let mut tree = tree::lock();
    let mut state = thread.process.signals.state.lock();
    // Not limited: it is no real-time signal of a user. One that is pending already is as good.
    let leftover = post(&mut tree, &thread.process, Some(thread), &mut state, queued, false, &mut dropped);
    drop(state);
    drop(tree);
    drop((leftover, dropped));
}
