//! What wait(2) finds of tracees, and the end of those that their tracer waits for.

use alloc::sync::Arc;

use super::link::release;
use super::stop::{to_back, to_front};
use crate::namespaces::View;
use crate::process::tree::{Event, Guard, Look};
use crate::process::wait::{IdKind, MOST, WaitFlags, Waited};
use crate::process::{Process, Thread, Usage, WaitStatus};
use crate::signal::{self, SigInfo};

use core::sync::atomic::Ordering;

/// A tracee with news.
pub struct Found {
    thread: Arc<Thread>,
    status: WaitStatus,
}

/// What a part of the search has come to.
#[derive(Default)]
pub struct Step {
    /// There is a tracee of that kind from which something may come yet.
    pub any: bool,
    pub found: Option<Found>,
    /// Behind which tracee it goes on, if it does.
    pub last: Option<Arc<Thread>>,
}

/// Looks for news of the process's tracees, behind the tracee `after`.
///
/// Race: the lock was free since then. A tracee that has news meanwhile has woken the caller, who looks again; if `after` is no tracee any
/// more, the search begins anew. Tracees that move in the list may be passed over: the caller looks again before it takes that for "none".
pub fn look(
    tree: &Look,
    process: &Process,
    kind: IdKind<'_>,
    flags: WaitFlags,
    after: Option<&Thread>,
) -> Step {
    let is_own = |thread: &Thread| {
        let tracer = thread.trace.state.get(tree).tracer.as_ref();
        tracer.is_some_and(|tracer| core::ptr::eq(Arc::as_ptr(&tracer.process), process))
    };
    let one = match kind {
        IdKind::Pid(tid) => Some(tree.thread(tid)),
        IdKind::Process(of) => Some(of.relations.get(tree).leader.clone()),
        IdKind::Thread(thread) => Some(Some(thread.to_arc())),
        IdKind::All | IdKind::Group(_) => None,
    };
    match one {
        Some(thread) => {
            let Some(thread) = thread.filter(|thread| is_own(thread)) else { return Step::default() };
            let any = is_awaited(tree, &thread, flags);
            let found = news_of(tree, &thread, flags).map(|status| Found { thread, status });
            Step { any, found, last: None }
        }
        None => {
            let is_meant = |thread: &Thread| match kind {
                IdKind::Group(pgid) => {
                    let group = &thread.process.relations.get(tree).group;
                    group.as_ref().is_some_and(|group| group.pgid == pgid)
                }
                _ => true,
            };
            let tracees = &process.relations.get(tree).tracees;
            let mut cursor = match after.filter(|after| is_own(after)) {
                // SAFETY: a traced thread is on the list of its tracer's process.
                Some(after) => unsafe { tracees.cursor_from_ptr(after) },
                None => tracees.cursor(),
            };
            let mut last = None;
            for _ in 0..MOST {
                cursor.move_next();
                let Some(thread) = cursor.get() else { return Step::default() };
                last = Some(thread);
                if is_meant(thread) {
                    if let Some(status) = news_of(tree, thread, flags) {
                        let found = Some(Found { thread: thread.to_arc(), status });
                        return Step { any: true, found, last: None };
                    }
                    // Those with news come first, and ends that nobody asks for are among them.
                    if is_awaited(tree, thread, flags) {
                        return Step { any: true, found: None, last: None };
                    }
                }
            }
            Step { any: false, found: None, last: last.map(Thread::to_arc) }
        }
    }
}

/// Will there be anything of the tracee that the call waits for? One that has ended stops no more, and a first thread that has ended before
/// the others can go on with them.
fn is_awaited(tree: &Look, thread: &Thread, flags: WaitFlags) -> bool {
    if thread.trace.state.get(tree).ended.is_some() {
        return flags.exited;
    }
    thread.in_process.is_linked() || flags.exited || flags.continued
}

fn news_of(tree: &Look, thread: &Thread, flags: WaitFlags) -> Option<WaitStatus> {
    let state = thread.trace.state.get(tree);
    match state.ended {
        Some(status) => flags.exited.then_some(status),
        None if state.news && thread.trace.is_stopped() => state.stop.map(WaitStatus::Traced),
        None => None,
    }
}

/// Hands the news to who waits, and takes away a tracee that has ended.
pub fn finish(mut tree: Guard, found: Found, keep: bool, process: &Process) -> Waited {
    let Found { thread, status } = found;
    let uid = thread.process.uid_for_signals();
    let pid = View::of(process).thread(&thread);
    let ended = thread.trace.state.get(&tree).ended.is_some();
    let mut removed = None;
    if !keep && ended {
        removed = Some(release(&mut tree, &thread, process));
    } else if !keep {
        let state = thread.trace.state.get_mut(&mut tree);
        state.news = false;
        state.answer = 0;
        to_back(&mut tree, &thread);
    }
    drop(tree);
    let usage = if thread.is_leader() {
        Usage::of_process(&thread.process).with_children(&thread.process)
    } else {
        Usage::of_thread(&thread)
    };
    if removed.is_some() {
        crate::sched::wait_for_end(&thread);
        drop(thread);
        drop(removed);
        crate::sched::reap();
    }
    Waited { pid, uid, status, usage }
}

/// Does a tracer other than the parent still have to wait for the process, which has ended?
pub fn is_held(tree: &Look, process: &Process) -> bool {
    let leader = process.relations.get(tree).leader.as_ref();
    leader.is_some_and(|leader| leader.trace.state.get(tree).ended.is_some())
}

/// A thread that is not its process's first ends: if it is traced it stays for its tracer, which is told.
pub fn keep_thread(tree: &mut Guard, thread: &Thread, status: WaitStatus) -> bool {
    let Some(tracer) = thread.trace.state.get(tree).tracer.clone() else { return false };
    tell(tree, thread, &tracer, status);
    // The tracee refers to its tracer: this clone is not the last.
    true
}

/// The process has ended. If a process other than its parent traces its first thread, that one is told, and the parent later.
pub fn leader_ended(tree: &mut Guard, process: &Process, status: WaitStatus) -> bool {
    let Some(leader) = process.relations.get(tree).leader.clone() else { return false };
    let Some(tracer) = leader.trace.state.get(tree).tracer.clone() else { return false };
    let parent = process.relations.get(tree).parent.as_ref();
    if parent.is_some_and(|parent| Arc::ptr_eq(parent, &tracer.process)) {
        return false;
    }
    tell(tree, &leader, &tracer, status);
    // Both are still referred to by the tree.
    true
}

fn tell(tree: &mut Guard, thread: &Thread, tracer: &Arc<Thread>, status: WaitStatus) {
    let state = thread.trace.state.get_mut(tree);
    state.ended = Some(status);
    state.stop = None;
    to_front(tree, thread);
    let (code, value) = status.to_siginfo();
    let uid = thread.process.uid.load(Ordering::SeqCst);
    let info = SigInfo::child(code, View::of(&tracer.process).thread(thread), uid, value, 0, 0);
    signal::send_process_locked(tree, &tracer.process, info);
    tree.tell(&tracer.process, Event::Child);
}
