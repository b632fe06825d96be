//! wait4(2) and waitid(2).

use core::sync::atomic::Ordering;

use alloc::sync::Arc;

use super::account::Usage;
use super::process::WaitStatus;
use super::thread::Leaving;
use super::{Pid, Process, Thread, ptrace, tree};
use crate::errno::{Errno, Result};
use crate::namespaces::View;
use crate::sched;
use crate::signal::SIGCHLD;
use crate::sync::WaitError;

/// Which children are meant, in the kernel's own numbers.
#[derive(Clone, Copy)]
pub enum IdKind<'a> {
    All,
    Pid(Pid),
    Group(Pid),
    /// This process, whoever may have its number.
    Process(&'a Arc<Process>),
    /// This thread, which is not its process's first: a tracee.
    Thread(&'a Thread),
}

/// How to wait.
#[derive(Clone, Copy, Debug, Default)]
pub struct WaitFlags {
    pub no_hang: bool,
    pub exited: bool,
    pub stopped: bool,
    pub continued: bool,
    /// Leave the child in its state: WNOWAIT.
    pub keep: bool,
    /// Children whose end does not send SIGCHLD: only those (__WCLONE), or those too (__WALL).
    pub clones_only: bool,
    pub clones_too: bool,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Waited {
    pub pid: Pid,
    pub uid: u32,
    pub status: WaitStatus,
    pub usage: Usage,
}

/// Waits for a child; `None` with `no_hang` when there is none ready. `ECHILD` when there is no such child at all.
pub fn wait(kind: IdKind<'_>, flags: WaitFlags) -> Result<Option<Waited>> {
    let process = super::current().process.clone();
    let waited = process.child_events.wait_event(None, || match look(&process, kind, flags) {
        Ok(Some(waited)) => Some(Ok(Some(waited))),
        Ok(None) if flags.no_hang => Some(Ok(None)),
        Ok(None) => None,
        Err(error) => Some(Err(error)),
    });
    match waited {
        Ok(result) => result,
        Err(WaitError::Interrupted | WaitError::TimedOut) => Err(Errno::ERESTARTSYS),
    }
}

/// Children, processes or tracees that are looked at in one hold.
pub(super) const MOST: usize = 64;

/// Looks once through the children.
///
/// Those that have ended come first, so that most calls end with the first child. The others, whose stops may be wanted too, may be any
/// number. Behind the first few the search goes by the numbers of all processes, some in one hold: a child that has changed meanwhile has
/// woken the caller, who looks again.
fn look(process: &Arc<Process>, kind: IdKind<'_>, flags: WaitFlags) -> Result<Option<Waited>> {
    // A tracee that has ended goes to its parent now.
    let mut tree = tree::lock_to_send(1);
    let mut any = false;
    let mut found = None;
    let one = match kind {
        IdKind::Pid(pid) => Some(tree.process(pid)),
        IdKind::Process(child) => Some(Some(child.clone())),
        IdKind::Thread(_) => Some(None),
        IdKind::All | IdKind::Group(_) => None,
    };
    if let Some(child) = one {
        let child = child.filter(|child| is_child(&tree, child, process));
        if let Some(child) = child.filter(|child| is_meant(&tree, child, kind, flags)) {
            any = is_awaited(&tree, &child, flags);
            found = status_of(&tree, &child, flags).map(|status| (child, status));
        }
    } else {
        // Without an interest in stops, the first that has not ended ends the search.
        let only_ended = !flags.stopped && !flags.continued;
        let mut left = MOST;
        for child in process.relations.get(&tree).children.iter() {
            let ended = child.relations.get(&tree).ended.is_some();
            if only_ended && !ended && any || left == 0 {
                break;
            }
            left -= 1;
            if !is_meant(&tree, child, kind, flags) {
                continue;
            }
            any |= is_awaited(&tree, child, flags);
            if let Some(status) = status_of(&tree, child, flags) {
                found = Some((to_arc(child), status));
                break;
            }
        }
        if left == 0 && found.is_none() {
            let mut last = Some(0);
            while let Some(from) = last {
                drop(tree);
                sched::cond_resched();
                // Who does not wait hears of all: the end of a PID namespace would take this for "nobody left".
                if !flags.no_hang && super::current().kill_pending() {
                    return Err(Errno::ERESTARTSYS);
                }
                tree = tree::lock_to_send(1);
                let step = look_by_numbers(&tree, process, from, kind, flags);
                any |= step.any;
                (found, last) = (step.found, step.last);
            }
        }
    }
    // Dropped behind the lock: it may be the last reference.
    let mut after: Option<Arc<Thread>> = None;
    if found.is_none() {
        let mut moved = process.relations.get(&tree).tracees_moved;
        loop {
            let step = ptrace::look(&tree, process, kind, flags, after.as_deref());
            any |= step.any;
            if let Some(news) = step.found {
                return Ok(Some(ptrace::finish(tree, news, flags.keep, process)));
            }
            if step.last.is_none() {
                let now = process.relations.get(&tree).tracees_moved;
                if any || after.is_none() || now == moved {
                    break;
                }
                // One that moved while the lock was free may be the one that is waited for.
                moved = now;
            }
            drop(tree);
            after = step.last;
            sched::cond_resched();
            if super::current().kill_pending() {
                return Err(Errno::ERESTARTSYS);
            }
            tree = tree::lock_to_send(1);
        }
    }
    finish(tree, found, any, flags, process)
}

fn to_arc(process: &Process) -> Arc<Process> {
    // SAFETY: processes are only ever made by `Arc::new_cyclic`, and the tree's reference keeps this one.
    unsafe {
        Arc::increment_strong_count(process);
        Arc::from_raw(process)
    }
}

/// What a part of the search by numbers has come to.
struct Step {
    any: bool,
    found: Option<(Arc<Process>, WaitStatus)>,
    /// Where it goes on, if it does.
    last: Option<Pid>,
}

/// Looks at the next few processes, for children.
fn look_by_numbers(
    tree: &tree::Look,
    parent: &Arc<Process>,
    mut last: Pid,
    kind: IdKind<'_>,
    flags: WaitFlags,
) -> Step {
    let mut any = false;
    for _ in 0..MOST {
        let Some(process) = tree.process_after(last) else { return Step { any, found: None, last: None } };
        last = process.pid;
        if !is_child(tree, &process, parent) || !is_meant(tree, &process, kind, flags) {
            continue;
        }
        any |= is_awaited(tree, &process, flags);
        if let Some(status) = status_of(tree, &process, flags) {
            return Step { any, found: Some((process, status)), last: None };
        }
    }
    Step { any, found: None, last: Some(last) }
}

fn is_child(tree: &tree::Look, process: &Process, parent: &Arc<Process>) -> bool {
    process.parent_locked(tree).is_some_and(|of| Arc::ptr_eq(of, parent))
}

fn is_meant(tree: &tree::Look, child: &Process, kind: IdKind<'_>, flags: WaitFlags) -> bool {
    let relations = child.relations.get(tree);
    let of_kind = match kind {
        IdKind::All => true,
        IdKind::Pid(pid) => child.pid == pid,
        IdKind::Process(meant) => core::ptr::eq(Arc::as_ptr(meant), child),
        IdKind::Thread(_) => false,
        IdKind::Group(pgid) => relations.group.as_ref().is_some_and(|group| group.pgid == pgid),
    };
    let is_clone = relations.exit_signal != SIGCHLD;
    of_kind && (flags.clones_too || is_clone == flags.clones_only || is_traced_by_parent(tree, child))
}

/// A parent that traces its child waits for it as its tracer does: whatever the signal of its end, and for its stops as a tracee alone.
fn is_traced_by_parent(tree: &tree::Look, child: &Process) -> bool {
    let leader = child.relations.get(tree).leader.as_ref();
    leader.is_some_and(|leader| ptrace::is_of_parent(tree, leader))
}

/// Will there be anything of the child that the call waits for? Of one that has ended only its end: at once, or when its tracer has heard.
fn is_awaited(tree: &tree::Look, child: &Process, flags: WaitFlags) -> bool {
    child.relations.get(tree).ended.is_none() || flags.exited || ptrace::is_held(tree, child)
}

fn status_of(tree: &tree::Look, child: &Process, flags: WaitFlags) -> Option<WaitStatus> {
    let relations = child.relations.get(tree);
    if relations.ended.is_some() {
        return relations.ended.filter(|_| flags.exited && !ptrace::is_held(tree, child));
    }
    relations.news.filter(|news| match news {
        WaitStatus::Stopped(_) => flags.stopped && !is_traced_by_parent(tree, child),
        _ => flags.continued,
    })
}

fn finish(
    mut tree: tree::Guard,
    found: Option<(Arc<Process>, WaitStatus)>,
    any: bool,
    flags: WaitFlags,
    process: &Process,
) -> Result<Option<Waited>> {
    let Some((child, status)) = found else {
        return if any { Ok(None) } else { Err(Errno::ECHILD) };
    };
    let ended = child.relations.get(&tree).ended.is_some();
    let mut removed = None;
    let leader = child.relations.get(&tree).leader.clone();
    if !flags.keep {
        if ended {
            removed = Some(remove(&mut tree, &child));
        } else {
            child.relations.get_mut(&mut tree).news = None;
        }
    }
    drop(tree);
    let usage = Usage::of_process(&child).with_children(&child);
    if removed.is_some() {
        usage.add_to_children_of(process);
        if let Some(leader) = leader {
            // It told of its end on its own stack.
            sched::wait_for_end(&leader);
        }
        drop(removed);
        // Who polls it hears that nothing is left.
        child.ended.wake_all();
        sched::reap();
    }
    Ok(Some(Waited {
        pid: View::of(process).process(&child),
        uid: child.uid.load(Ordering::SeqCst),
        status,
        usage,
    }))
}

/// Takes a process that has ended out of the tree; what goes is dropped by the caller, without the lock.
pub(super) fn remove(tree: &mut tree::Guard, process: &Process) -> [tree::Removed; 3] {
    let by_parent = tree.disown(process);
    let by_group = tree.leave_group(process);
    let mut by_number = tree::Removed::default();
    // The process and its first thread refer to each other until here.
    if let Some(leader) = process.relations.get_mut(tree).leader.take() {
        let [tracer, tracee, ..] = ptrace::unlink_reaped(tree, &leader)._threads;
        let registered = tree.remove_thread(&leader);
        process.cgroup.remove_task();
        by_number._threads = [Some(Leaving(leader)), registered.map(Leaving), tracer, tracee];
    }
    [by_parent, by_group, by_number]
}
