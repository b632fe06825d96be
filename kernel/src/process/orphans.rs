//! Orphaned process groups: no member has a parent in another group of the same session, so nobody could continue them when they stop.
//!
//! Whether a group is orphaned is asked whenever a member is to stop, or ends, or loses its parent, and a group has any number of members. So
//! those with such a parent are counted, and so are those that are stopped. A member's part changes with its group, its parent and its
//! parent's group; the last of these concerns any number of children, which are looked at a few in one hold.

use core::sync::atomic::{AtomicBool, Ordering};

use alloc::sync::Arc;

use super::tree::{self, Group, Look};
use super::{Pid, Process};
use crate::sched;

/// What a process counts for in its group. Changed under the tree's lock, so nothing here needs an order of its own: Relaxed.
#[derive(Default)]
pub(super) struct Part {
    /// Its parent could continue the group.
    tied: AtomicBool,
    stopped: AtomicBool,
}

/// Processes that are looked at in one hold.
const MOST: usize = 64;

/// Could the parent of the process continue the process's group?
fn is_tied(tree: &Look, process: &Process) -> bool {
    let relations = process.relations.get(tree);
    let (Some(group), Some(parent), None) = (&relations.group, &relations.parent, relations.ended) else {
        return false;
    };
    // Children of the first process count as children of nobody.
    parent.pid != 1
        && parent
            .relations
            .get(tree)
            .group
            .as_ref()
            .is_some_and(|other| !Arc::ptr_eq(other, group) && Arc::ptr_eq(&other.session, &group.session))
}

/// After a change of the process's group, its parent, or the parent's group, or the process's end.
pub(super) fn recount(tree: &Look, process: &Process) {
    let tied = is_tied(tree, process);
    if process.job.tied.swap(tied, Ordering::Relaxed) == tied {
        return;
    }
    let Some(group) = process.group_locked(tree) else { return };
    match tied {
        true => group.ties.fetch_add(1, Ordering::Relaxed),
        false => group.ties.fetch_sub(1, Ordering::Relaxed),
    };
}

/// A process enters a group.
pub(super) fn enter(tree: &Look, process: &Process, group: &Group) {
    if process.job.stopped.load(Ordering::Relaxed) && process.ended_locked(tree).is_none() {
        group.stopped.fetch_add(1, Ordering::Relaxed);
    }
    recount(tree, process);
}

/// A process is about to leave its group, or has ended: it counts for nothing there any more.
pub(super) fn leave(process: &Process, group: &Group, lives: bool) {
    if process.job.tied.swap(false, Ordering::Relaxed) {
        group.ties.fetch_sub(1, Ordering::Relaxed);
    }
    if lives && process.job.stopped.load(Ordering::Relaxed) {
        group.stopped.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A process stops, or goes on, or is to end.
pub(crate) fn note_stop(tree: &Look, process: &Process, stopped: bool) {
    if process.job.stopped.swap(stopped, Ordering::Relaxed) == stopped || process.ended_locked(tree).is_some()
    {
        return;
    }
    let Some(group) = process.group_locked(tree) else { return };
    match stopped {
        true => group.stopped.fetch_add(1, Ordering::Relaxed),
        false => group.stopped.fetch_sub(1, Ordering::Relaxed),
    };
}

/// A process is in another group now: that may concern the groups of its children. Called without locks.
pub(super) fn parent_moved(parent: &Arc<Process>) {
    let mut last = 0;
    loop {
        let tree = tree::look();
        if parent.relations.get(&tree).children.is_empty() {
            return;
        }
        for _ in 0..MOST {
            let Some(child) = tree.process_after(last) else { return };
            last = child.pid;
            if child.parent_locked(&tree).is_some_and(|of| Arc::ptr_eq(of, parent)) {
                recount(&tree, &child);
            }
        }
        drop(tree);
        sched::cond_resched();
    }
}

/// Whether nobody could continue the group's members.
pub(super) fn is_orphaned(_: &Look, group: &Group) -> bool {
    group.ties.load(Ordering::Relaxed) == 0
}

/// Whether the process's parent could continue its group.
pub(super) fn ties(_: &Look, process: &Process) -> bool {
    process.job.tied.load(Ordering::Relaxed)
}

/// Whether nobody but the parent of the process could.
pub(super) fn is_last_tie(tree: &Look, process: &Process, group: &Group) -> bool {
    ties(tree, process) && group.ties.load(Ordering::Relaxed) == 1
}

/// Whether a member is stopped.
pub(super) fn has_stopped(_: &Look, group: &Group) -> bool {
    group.stopped.load(Ordering::Relaxed) > 0
}

/// Whether the group with this number is orphaned, or does not exist.
pub fn is_group_orphaned(pgid: Pid) -> bool {
    let tree = tree::look();
    tree.group(pgid).is_none_or(|group| is_orphaned(&tree, &group))
}
