//! `cgroup.freeze`: groups whose processes rest.
//!
//! A thread rests where nothing that it is told has an effect before it goes on: on its way to user mode, because its group is to freeze;
//! in a stop; while a vfork(2) child has its memory. A process rests when all of its threads do. A group is frozen when it is to freeze,
//! all of its processes rest and all groups below are frozen. Each counts what is one step below it, under the process tree's lock: so a
//! thread that comes to rest looks at its process, at its group, and at the groups above as far as they change.
//!
//! A thread is asked by a flag among its signals', which ends its sleep as a signal does. The flag stays until the group goes on. New
//! threads and processes find out when they are linked. A kill ends a rest as it ends any other sleep.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::core_files;
use super::group::Group;
use super::hierarchy::{CHANGES, next_below};
use super::member::{Changed, Told};
use crate::errno::{Errno, Result};
use crate::process::{Process, Thread, tree};
use crate::sched::{self, Sleep};
use crate::signal;

/// What a group counts.
#[derive(Default)]
pub(super) struct Freezing {
    /// What `cgroup.freeze` says.
    pub asked: bool,
    /// It, and groups above, that are asked.
    reasons: u32,
    /// Its processes, and how many of them rest.
    pub members: u64,
    pub resting: u64,
    /// Groups below, and how many of them are frozen.
    children: u64,
    frozen_children: u64,
    pub frozen: bool,
}

/// Looks anew whether a group is frozen, and those above as far as that changes.
pub(super) fn update(tree: &mut tree::Guard, group: &Arc<Group>) -> Told {
    let mut levels = 0;
    for at in group.chain() {
        let state = at.freezing.get_mut(tree);
        let frozen =
            state.reasons > 0 && state.resting == state.members && state.frozen_children == state.children;
        if frozen == state.frozen {
            break;
        }
        state.frozen = frozen;
        levels += 1;
        if let Some(parent) = &at.parent {
            let count = &mut parent.freezing.get_mut(tree).frozen_children;
            *count = if frozen { *count + 1 } else { *count - 1 };
        }
    }
    (levels > 0).then(|| (group.clone(), levels))
}

/// A new group: it is to freeze if the one above is, and as it is empty it is frozen then. The hierarchy's lock is held.
pub(super) fn begin(group: &Group) {
    let Some(parent) = &group.parent else { return };
    let mut tree = tree::lock();
    let above = parent.freezing.get_mut(&mut tree);
    above.children += 1;
    let reasons = above.reasons;
    above.frozen_children += u64::from(reasons > 0);
    let state = group.freezing.get_mut(&mut tree);
    (state.reasons, state.frozen) = (reasons, reasons > 0);
}

/// A group without members is removed: the one above counts it no more.
pub(super) fn end(tree: &mut tree::Guard, group: &Arc<Group>) -> Changed {
    let Some(parent) = &group.parent else { return Changed::default() };
    let frozen = group.freezing.get(tree).frozen;
    let above = parent.freezing.get_mut(tree);
    above.children -= 1;
    above.frozen_children -= u64::from(frozen);
    Changed::of(update(tree, parent))
}

/// Whether a group is frozen with all that is below it.
pub(super) fn is_frozen(group: &Group) -> bool {
    group.freezing.get(&tree::look()).frozen
}

/// Whether its `cgroup.freeze` says so.
pub(super) fn is_asked(group: &Group) -> bool {
    group.freezing.get(&tree::look()).asked
}

/// Are the processes of a group to rest?
pub(super) fn is_freezing(tree: &tree::Look, group: Option<&Arc<Group>>) -> bool {
    group.is_some_and(|group| group.freezing.get(tree).reasons > 0)
}

/// Writing to `cgroup.freeze`. Does not wait until the group is frozen.
pub(super) fn set(top: &Arc<Group>, freeze: bool) -> Result<()> {
    let _changes = CHANGES.lock();
    if top.is_dead() {
        return Err(Errno::ENODEV);
    }
    if core::mem::replace(&mut top.freezing.get_mut(&mut tree::lock()).asked, freeze) == freeze {
        return Ok(());
    }
    let mut any = false;
    let mut at = Some(top.clone());
    while let Some(group) = at {
        let (turns, changed) = {
            let mut tree = tree::lock();
            let reasons = &mut group.freezing.get_mut(&mut tree).reasons;
            let before = *reasons;
            *reasons = if freeze { before + 1 } else { before - 1 };
            let turns = (before == 0) != (*reasons == 0);
            (turns, if turns { update(&mut tree, &group) } else { None })
        };
        Changed::of(changed).tell();
        if turns {
            any = true;
            let mut last = 0;
            while let Some(process) = core_files::member_after(&group, last) {
                last = process.pid;
                ask(&process, freeze);
                sched::cond_resched();
            }
        }
        at = next_below(top, &group);
        sched::cond_resched();
    }
    if !any {
        // As on Linux: who waits hears that it was done, although a group above decides.
        top.changed("cgroup.events");
    }
    Ok(())
}

/// Has all threads of a process rest, or go on. The hierarchy's lock is held: nobody decides otherwise meanwhile.
pub(super) fn ask(process: &Process, freeze: bool) {
    process.each_thread(|thread| match freeze {
        true => signal::ask_freeze(thread),
        false => signal::thaw(thread),
    });
}

/// A new thread is linked: it rests if its process does.
pub fn join(tree: &tree::Look, process: &Process, thread: &Thread) {
    if let Some(group) = process.cgroup.group()
        && is_freezing(tree, Some(&group))
    {
        signal::ask_freeze(thread);
    }
}

/// The process has begun to rest as a whole, or does so no more.
fn process_changed(tree: &mut tree::Guard, process: &Process) -> Changed {
    let Some(group) = process.cgroup.group().filter(|_| process.in_cgroup.is_linked()) else {
        return Changed::default();
    };
    let rests = process.rests(tree);
    let count = &mut group.freezing.get_mut(tree).resting;
    *count = if rests { *count + 1 } else { *count - 1 };
    let told = update(tree, &group);
    Changed::with(told, group)
}

/// A thread has left its process, which has others.
pub fn thread_gone(tree: &mut tree::Guard, process: &Process, thread: &Thread) -> Changed {
    if process.forget_resting(tree, thread) { process_changed(tree, process) } else { Changed::default() }
}

fn set_resting(thread: &Thread, rests: bool) {
    let changed = {
        let mut tree = tree::lock();
        let process = &thread.process;
        match process.set_resting(&mut tree, thread, rests) {
            true => process_changed(&mut tree, process),
            false => Changed::default(),
        }
    };
    changed.tell();
}

/// The current thread is about to sleep in a way that counts as rest.
pub fn rest(thread: &Thread) {
    set_resting(thread, true);
}

/// The current thread goes on. One whose group is to freeze rests on: it comes to [`rest_if_asked`] before it does anything.
pub fn go_on(thread: &Thread) {
    // Relaxed: only the thread itself changes it while it lives.
    if thread.resting.load(Ordering::Relaxed)
        && (!thread.signals.is_asked_to_freeze() || thread.kill_pending())
    {
        set_resting(thread, false);
    }
}

/// The current thread goes on in the kernel, whatever its group is to do.
pub fn go_on_at_once(thread: &Thread) {
    // Relaxed: as above.
    if thread.resting.load(Ordering::Relaxed) {
        set_resting(thread, false);
    }
}

/// On the way to user mode: the thread rests, if its group is to freeze, until that is over, or there is something to do for a stop or a
/// kill. False if it did not rest.
pub fn rest_if_asked(thread: &Thread) -> bool {
    let signals = &thread.signals;
    if !signals.is_asked_to_freeze() || thread.kill_pending() {
        return false;
    }
    rest(thread);
    sched::sleep_until(Sleep::Frozen, || {
        !signals.is_asked_to_freeze() || thread.kill_pending() || signals.is_asked_for_stops()
    });
    true
}
