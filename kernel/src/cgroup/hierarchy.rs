//! The tree of groups: making and removing them, turning controllers on, moving processes.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::group::{self, Group};
use super::knob::{Interface, Knob};
use super::{Controller, Into, core_files, filesystem, freezer, hugetlb, member};
use crate::errno::{Errno, Result};
use crate::fs::access::{self, Credentials};
use crate::fs::caller;
use crate::memory::reserve;
use crate::process::tree::{self, TreeCell};
use crate::process::{self, Pid, Process};
use crate::signal::{self, SigInfo};
use crate::sync::Mutex;

/// Orders what changes the tree of groups, or who is where.
pub(super) static CHANGES: Mutex<()> = Mutex::new(());

/// How many groups there may be one below the other: charges go through all of them.
const MAX_DEPTH: u32 = 64;
/// Bytes of the kernel's memory that a group takes with its files, about.
const FOOTPRINT: usize = 16 << 10;
/// Bytes that the files of a controller take, about.
const CONTROLLER_FOOTPRINT: usize = 8 << 10;

/// What `cgroup.type` says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Domain,
    /// It has processes beside groups below, and hands down controllers of threads only.
    ThreadRoot,
    /// A group above is such a one: nothing may be here.
    Invalid,
}

fn is_thread_root(group: &Group) -> bool {
    !group.is_root() && group.handed_down() & Controller::THREADED != 0 && member::has_members(group)
}

/// What a group is, by what is in it and above it.
pub(super) fn kind(group: &Arc<Group>) -> Kind {
    if group.chain().skip(1).any(|above| is_thread_root(above)) {
        Kind::Invalid
    } else if is_thread_root(group) {
        Kind::ThreadRoot
    } else {
        Kind::Domain
    }
}

/// Whether processes and controllers of threads may be in it at once.
fn can_be_thread_root(group: &Group) -> bool {
    if group.is_root() {
        return true;
    }
    let populated = {
        let tree = tree::look();
        *group.populated.get(&tree) > u64::from(!group.members.get(&tree).is_empty())
    };
    !populated && group.handed_down() & !Controller::THREADED == 0
}

/// The group behind `at` in the order from above downwards, of those below `top`. The hierarchy's lock keeps them in place.
pub(super) fn next_below(top: &Arc<Group>, at: &Arc<Group>) -> Option<Arc<Group>> {
    if let Some(child) = at.child_after(0) {
        return Some(child);
    }
    let mut at = at.clone();
    while !Arc::ptr_eq(&at, top) {
        let parent = at.parent.clone()?;
        if let Some(sibling) = parent.child_after(at.number) {
            return Some(sibling);
        }
        at = parent;
    }
    None
}

/// How many groups have a controller.
pub(super) fn count_with(controller: Controller) -> usize {
    let _changes = CHANGES.lock();
    let root = group::root();
    let mut count = 1;
    let mut at = root.clone();
    while let Some(next) = next_below(root, &at) {
        count += usize::from(next.controllers() & controller.bit() != 0);
        at = next;
        crate::sched::cond_resched();
    }
    count
}

/// Makes a group of the caller's.
pub(super) fn make(
    parent: &Arc<Group>,
    name: &[u8],
    permissions: u32,
    owner: &Credentials,
) -> Result<Arc<Group>> {
    if name.contains(&b'\n') {
        return Err(Errno::EINVAL);
    }
    // It stays when its maker ends.
    reserve::ask_lasting(FOOTPRINT)?;
    let _changes = CHANGES.lock();
    if parent.is_dead() {
        return Err(Errno::ENODEV);
    }
    if parent.children.lock().by_name.contains_key(name) || parent.knob_of(name).is_some() {
        return Err(Errno::EEXIST);
    }
    let above = || core::iter::successors(Some(parent), |group| group.parent.as_ref());
    let full = above().enumerate().any(|(level, group)| {
        group.descendants.load(Ordering::SeqCst) >= group.max_descendants.load(Ordering::SeqCst)
            || level as u32 >= group.max_depth.load(Ordering::SeqCst)
    });
    if full || parent.depth >= MAX_DEPTH {
        return Err(Errno::EAGAIN);
    }
    let group = Group::new(Some(parent), name);
    filesystem::furnish(&group, permissions, (owner.uid, owner.gid));
    for (controller, _) in Controller::ALL {
        if group.controllers() & controller.bit() != 0
            && let Err(error) = turn_on(&group, controller)
        {
            take_apart(&group);
            return Err(error);
        }
    }
    freezer::begin(&group);
    let mut children = parent.children.lock();
    children.by_name.insert(name.into(), group.number);
    children.by_number.insert(group.number, group.clone());
    drop(children);
    above().for_each(|group| _ = group.descendants.fetch_add(1, Ordering::SeqCst));
    Ok(group)
}

/// Removes a group; `EBUSY` when there is a process or a group in it.
pub(super) fn remove(group: &Arc<Group>) -> Result<()> {
    let _changes = CHANGES.lock();
    let Some(parent) = &group.parent else { return Err(Errno::EBUSY) };
    if group.is_dead() {
        return Err(Errno::ENODEV);
    }
    if !group.children.lock().by_name.is_empty() {
        return Err(Errno::EBUSY);
    }
    let changed = {
        // A process that is being made looks under the same lock whether its group is there still.
        let mut tree = tree::lock();
        if *group.populated.get(&tree) > 0 {
            return Err(Errno::EBUSY);
        }
        group.set_dead();
        freezer::end(&mut tree, group)
    };
    changed.tell();
    let removed = {
        let mut children = parent.children.lock();
        children.by_name.remove(&group.name);
        children.by_number.remove(&group.number)
    };
    for above in core::iter::successors(Some(parent), |group| group.parent.as_ref()) {
        above.descendants.fetch_sub(1, Ordering::SeqCst);
        above.dying.fetch_add(1, Ordering::SeqCst);
    }
    take_apart(group);
    drop(removed);
    Ok(())
}

/// Lets go of what refers to the group, and the group to it.
fn take_apart(group: &Group) {
    let knobs = core::mem::take(&mut *group.knobs.lock());
    let directory = group.directory.lock().take();
    let account = group.hugetlb.lock().take();
    filesystem::forget(&knobs, directory.as_ref());
    drop((knobs, directory, account));
}

/// A controller begins in a group: its files appear. They are whose turned it on: who was given the directory does not change the limits
/// that hold it.
fn turn_on(group: &Arc<Group>, controller: Controller) -> Result<()> {
    reserve::ask_lasting(CONTROLLER_FOOTPRINT)?;
    match controller {
        Controller::Hugetlb => {
            let account = hugetlb::Account::new(group);
            let old = group.hugetlb.lock().replace(account);
            drop(old);
        }
        Controller::Pids => group.pids.reset(),
    }
    let who = caller::credentials();
    filesystem::add_knobs(group, Interface::wanted(group, Some(controller)), (who.uid, who.gid));
    Ok(())
}

/// It ends there.
fn turn_off(group: &Arc<Group>, controller: Controller) {
    let of_it = |knob: &mut Arc<Knob>| knob.interface.controller == Some(controller);
    let gone: alloc::vec::Vec<_> = group.knobs.lock().extract_if(.., of_it).collect();
    filesystem::forget(&gone, None);
    match controller {
        // What is charged to it stays so until it goes, and the groups above count it.
        Controller::Hugetlb => drop(group.hugetlb.lock().take()),
        Controller::Pids => group.pids.reset(),
    }
}

/// Turns controllers on and off for the groups below.
pub(super) fn set_subtree_control(group: &Arc<Group>, on: u32, off: u32) -> Result<()> {
    let _changes = CHANGES.lock();
    if group.is_dead() {
        return Err(Errno::ENODEV);
    }
    let now = group.handed_down();
    let (on, off) = (on & !now, off & now);
    if on & !group.controllers() != 0 {
        return Err(Errno::ENOENT);
    }
    let children = || {
        let first = group.child_after(0);
        core::iter::successors(first, |child| group.child_after(child.number))
    };
    if off != 0 && children().any(|child| child.handed_down() & off != 0) {
        return Err(Errno::EBUSY);
    }
    if on | off == 0 {
        return Ok(());
    }
    if on != 0 {
        check_enable(group, on)?;
    }
    group.subtree_control.store(now & !off | on, Ordering::SeqCst);
    let mut result = Ok(());
    for child in children() {
        for (controller, _) in Controller::ALL {
            if on & controller.bit() != 0 && result.is_ok() {
                result = turn_on(&child, controller);
            } else if off & controller.bit() != 0 {
                turn_off(&child, controller);
            }
        }
    }
    if result.is_err() {
        // As it was: those that begin no more, the others stay off.
        group.subtree_control.store(now & !off, Ordering::SeqCst);
        for child in children() {
            Controller::ALL
                .iter()
                .filter(|(one, _)| on & one.bit() != 0)
                .for_each(|(one, _)| turn_off(&child, *one));
        }
    }
    result
}

/// The rule that processes are in the lowest groups only.
fn check_enable(group: &Arc<Group>, on: u32) -> Result<()> {
    if kind(group) == Kind::Invalid {
        return Err(Errno::EOPNOTSUPP);
    }
    if group.is_root() {
        return Ok(());
    }
    if on & !Controller::THREADED != 0 {
        if is_thread_root(group) {
            return Err(Errno::EOPNOTSUPP);
        }
    } else if can_be_thread_root(group) {
        return Ok(());
    }
    if member::has_members(group) { Err(Errno::EBUSY) } else { Ok(()) }
}

/// Whether a process may be put into a group.
fn check_destination(group: &Arc<Group>) -> Result<()> {
    if kind(group) == Kind::Invalid {
        return Err(Errno::EOPNOTSUPP);
    }
    if !can_be_thread_root(group) && group.handed_down() != 0 { Err(Errno::EBUSY) } else { Ok(()) }
}

/// The nearest group that both are in or below.
fn common(one: &Arc<Group>, other: &Arc<Group>) -> Arc<Group> {
    let found = one.chain().find(|at| other.chain().any(|above| Arc::ptr_eq(at, above)));
    found.unwrap_or_else(|| group::root()).clone()
}

/// `EACCES` unless the file `cgroup.procs` of a group may be written.
fn check_may_write(group: &Group, who: &Credentials) -> Result<()> {
    let knob = group.knob("cgroup.procs").ok_or(Errno::ENODEV)?;
    knob.inode().map_or(Err(Errno::ENODEV), |inode| who.check(&inode, access::WRITE))
}

/// The group of a process, the root too.
fn place_of(process: &Process) -> Arc<Group> {
    process.cgroup.group().unwrap_or_else(|| group::root().clone())
}

/// What a new group of a process is to it: `None` for the root.
fn as_place(group: &Arc<Group>) -> Option<Arc<Group>> {
    (!group.is_root()).then(|| group.clone())
}

/// Writing to `cgroup.procs`, or for `whole` false to `cgroup.threads`, by who opened it: 0 is the caller.
pub(super) fn attach(group: &Arc<Group>, pid: Pid, who: &Credentials, whole: bool) -> Result<()> {
    let _changes = CHANGES.lock();
    if group.is_dead() {
        return Err(Errno::ENODEV);
    }
    let process = match pid {
        0 => process::current().process.clone(),
        _ => process::find_thread(pid).ok_or(Errno::ESRCH)?.process.clone(),
    };
    let from = place_of(&process);
    check_may_write(&common(&from, group), who)?;
    check_destination(group)?;
    if !whole && !Arc::ptr_eq(&from, group) {
        // Threads are where their process is.
        return Err(Errno::EOPNOTSUPP);
    }
    if Arc::ptr_eq(&from, group) {
        return Ok(());
    }
    let (changed, freeze) = {
        let mut tree = tree::lock();
        // It has nothing to move any more.
        if process.ended_locked(&tree).is_some() || process.threads_locked(&tree).next().is_none() {
            return Ok(());
        }
        let to = as_place(group);
        let was_to_freeze = freezer::is_freezing(&tree, as_place(&from).as_ref());
        let freeze = freezer::is_freezing(&tree, to.as_ref());
        let changed = member::migrate(&mut tree, &process, to.as_ref());
        (changed, (freeze != was_to_freeze).then_some(freeze))
    };
    changed.tell();
    if let Some(freeze) = freeze {
        freezer::ask(&process, freeze);
    }
    Ok(())
}

/// CLONE_INTO_CGROUP: where the child goes, if the caller may put it there.
pub fn check_clone(group: &Arc<Group>, thread: bool) -> Result<Into> {
    let _changes = CHANGES.lock();
    if group.is_dead() {
        return Err(Errno::ENOENT);
    }
    let from = place_of(&process::current().process);
    let who = caller::credentials();
    check_may_write(group, &who)?;
    if !Arc::ptr_eq(&from, group) {
        check_may_write(&common(&from, group), &who)?;
        check_destination(group)?;
        if thread {
            return Err(Errno::EOPNOTSUPP);
        }
    }
    Ok(Into::Group(as_place(group)))
}

/// The group whose processes are being killed: one at a time, by who holds `CHANGES`.
static KILLED: TreeCell<Option<Arc<Group>>> = TreeCell::new(None);

/// Is the process, which is about to make a child, to be killed with its group? Then it makes none.
pub(crate) fn is_being_killed(tree: &tree::Look, process: &Process) -> bool {
    let Some(top) = KILLED.get(tree) else { return false };
    process.pid != 1 && place_of(process).chain().any(|group| Arc::ptr_eq(group, top))
}

/// Kills every process in the group and below.
pub(super) fn kill(top: &Arc<Group>) -> Result<()> {
    let _changes = CHANGES.lock();
    let put = KILLED.get_mut(&mut tree::lock()).replace(top.clone());
    debug_assert!(put.is_none(), "two groups at once");
    kill_below(top);
    let taken = KILLED.get_mut(&mut tree::lock()).take();
    drop(taken);
    Ok(())
}

fn kill_below(top: &Arc<Group>) {
    // A process that has the signal, or is about to get it, makes no other; one that was made just before is met by the next round.
    loop {
        let mut killed = false;
        let mut at = Some(top.clone());
        while let Some(group) = at {
            let mut last = 0;
            while let Some(process) = core_files::member_after(&group, last) {
                last = process.pid;
                // Nothing ends the system's first process.
                if !process.is_ending() && process.pid != 1 {
                    killed = true;
                    signal::send_process_locked(
                        &mut tree::lock_to_send(1),
                        &process,
                        SigInfo::kernel(signal::SIGKILL),
                    );
                }
                crate::sched::cond_resched();
            }
            at = next_below(top, &group);
        }
        if !killed {
            return;
        }
    }
}
