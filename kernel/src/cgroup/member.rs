//! Which group a process is in, and how many of its threads count there.

use alloc::sync::Arc;

use intrusive_collections::{KeyAdapter, RBTreeAtomicLink, intrusive_adapter};

use super::{Group, freezer, pids};
use crate::errno::{Errno, Result};
use crate::process::{Pid, Process, tree};
use crate::sync::IrqLock;

intrusive_adapter!(pub InCgroup = Arc<Process>: Process { in_cgroup => RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for InCgroup {
    type Key = Pid;

    fn get_key(&self, process: &'a Process) -> Pid {
        process.pid
    }
}

struct Place {
    /// `None` for the root.
    group: Option<Arc<Group>>,
    /// Threads that count, those that have ended and were not waited for among them.
    tasks: u64,
}

/// A process's place. Its lock is taken with the process tree's lock held too, hence with interrupts off.
pub struct Member(IrqLock<Place>);

/// Where a new process goes.
#[derive(Clone, Default)]
pub enum Into {
    /// To its parent.
    #[default]
    Parent,
    /// CLONE_INTO_CGROUP: to this one, `None` for the root.
    Group(Option<Arc<Group>>),
}

impl Member {
    /// In the root, without threads.
    pub fn new() -> Member {
        Member(IrqLock::new(Place { group: None, tasks: 0 }))
    }

    /// The group; `None` for the root.
    pub fn group(&self) -> Option<Arc<Group>> {
        self.0.lock().group.clone()
    }

    /// Begins a process with one thread; `EAGAIN` beyond `pids.max`.
    pub fn begin(&self, parent: &Process, into: &Into) -> Result<()> {
        let group = match into {
            Into::Parent => parent.cgroup.group(),
            Into::Group(group) => group.clone(),
        };
        if let Some(group) = &group {
            admit(pids::charge(group))?;
        }
        let old = core::mem::replace(&mut *self.0.lock(), Place { group, tasks: 1 });
        debug_assert!(old.tasks == 0 && old.group.is_none(), "a process begins once");
        Ok(())
    }

    /// Counts one thread more; `EAGAIN` beyond `pids.max`.
    pub fn add_task(&self) -> Result<()> {
        let charged = {
            let mut place = self.0.lock();
            let charged = place.group.as_ref().map_or(Ok(()), pids::charge);
            place.tasks += u64::from(charged.is_ok());
            charged
        };
        admit(charged)
    }

    /// Counts a thread out that nobody can look at any more.
    pub fn remove_task(&self) {
        let mut place = self.0.lock();
        // The kernel's own threads are not counted.
        if place.tasks == 0 {
            return;
        }
        place.tasks -= 1;
        if let Some(group) = &place.group {
            pids::discharge(group);
        }
    }

    /// Moves the process; the group that it was in is dropped by the caller, without locks.
    fn move_to(&self, group: Option<&Arc<Group>>) -> Option<Arc<Group>> {
        let mut place = self.0.lock();
        pids::move_tasks(place.group.as_ref(), group, place.tasks);
        core::mem::replace(&mut place.group, group.cloned())
    }
}

fn admit(charged: Result<(), Arc<Group>>) -> Result<()> {
    charged.map_err(|group| {
        pids::refused(&group);
        Errno::EAGAIN
    })
}

/// The lowest group of which `cgroup.events` says something else than before; and how many it and those above are.
pub(super) type Told = Option<(Arc<Group>, usize)>;

/// Groups whose `populated` or `frozen` has changed: to be told without locks. And what left a list, to be dropped then.
#[derive(Default)]
#[must_use = "who watches the groups is to be told"]
pub struct Changed {
    groups: [Told; 4],
    _dropped: (Option<Arc<Process>>, Option<Arc<Group>>),
}

impl Changed {
    pub(super) fn of(told: Told) -> Self {
        Self { groups: [told, None, None, None], _dropped: (None, None) }
    }

    /// Keeps a reference to the group, too, for it to be dropped later.
    pub(super) fn with(told: Told, group: Arc<Group>) -> Self {
        Self { groups: [told, None, None, None], _dropped: (None, Some(group)) }
    }

    /// Tells who watches.
    pub fn tell(self) {
        for (group, levels) in self.groups.iter().flatten() {
            group.chain().take(*levels).for_each(|at| at.changed("cgroup.events"));
        }
    }
}

/// A reason more to call a group populated, or one less; how many groups are populated now and were not, or the other way round.
fn change_populated(tree: &mut tree::Guard, group: &Arc<Group>, more: bool) -> usize {
    let mut levels = 0;
    for at in group.chain() {
        let reasons = at.populated.get_mut(tree);
        let before = *reasons;
        *reasons = if more { before + 1 } else { before - 1 };
        if before != 0 && *reasons != 0 {
            break;
        }
        levels += 1;
    }
    levels
}

fn insert(tree: &mut tree::Guard, group: &Arc<Group>, process: &Arc<Process>) -> Told {
    let rests = process.rests(tree);
    let freezing = group.freezing.get_mut(tree);
    freezing.members += 1;
    freezing.resting += u64::from(rests);
    let members = group.members.get_mut(tree);
    let first = members.is_empty();
    members.insert(process.clone());
    let levels = if first { change_populated(tree, group, true) } else { 0 };
    (levels > 0).then(|| (group.clone(), levels))
}

fn remove(tree: &mut tree::Guard, group: &Arc<Group>, process: &Process) -> (Option<Arc<Process>>, Told) {
    if !process.in_cgroup.is_linked() {
        return (None, None);
    }
    let rests = process.rests(tree);
    let freezing = group.freezing.get_mut(tree);
    freezing.members -= 1;
    freezing.resting -= u64::from(rests);
    let members = group.members.get_mut(tree);
    // SAFETY: a process that is linked is among the members of the group that it is in: both change under the tree's lock.
    let removed = unsafe { members.cursor_mut_from_ptr(process).remove() };
    let last = members.is_empty();
    let levels = if last { change_populated(tree, group, false) } else { 0 };
    (removed, (levels > 0).then(|| (group.clone(), levels)))
}

/// Are both in one group? Under the tree's lock, which keeps them there.
pub fn are_together(process: &Process, other: &Process) -> bool {
    let address = |process: &Process| process.cgroup.0.lock().group.as_ref().map(Arc::as_ptr);
    address(process) == address(other)
}

/// A new process is known from now on. `ENODEV` when its group was removed meanwhile.
pub fn enter(tree: &mut tree::Guard, process: &Arc<Process>) -> Result<Changed> {
    let Some(group) = process.cgroup.group() else { return Ok(Changed::default()) };
    if group.is_dead() {
        return Err(Errno::ENODEV);
    }
    // Where the group is frozen it stays so in name: the newcomer rests before it does anything.
    let told = insert(tree, &group, process);
    Ok(Changed::with(told, group))
}

/// A process's last thread has ended: it is no member any more.
pub fn leave(tree: &mut tree::Guard, process: &Process) -> Changed {
    let Some(group) = process.cgroup.group() else { return Changed::default() };
    let (removed, told) = remove(tree, &group, process);
    let frozen = freezer::update(tree, &group);
    Changed { groups: [told, frozen, None, None], _dropped: (removed, Some(group)) }
}

/// Moves a process that has not ended; the hierarchy's lock is held, and the group is not removed.
pub(super) fn migrate(tree: &mut tree::Guard, process: &Arc<Process>, to: Option<&Arc<Group>>) -> Changed {
    let from = process.cgroup.group();
    let (removed, left) = from.as_ref().map_or((None, None), |from| remove(tree, from, process));
    let entered = to.and_then(|to| insert(tree, to, process));
    let old = process.cgroup.move_to(to);
    let frozen = [from.as_ref(), to].map(|group| group.and_then(|group| freezer::update(tree, group)));
    let [frozen_there, frozen_here] = frozen;
    Changed { groups: [left, entered, frozen_there, frozen_here], _dropped: (removed, old) }
}

/// Whether a process is in the group or below it.
pub(super) fn is_populated(group: &Group) -> bool {
    *group.populated.get(&tree::look()) > 0
}

/// Whether a process is in the group itself. Not of the root.
pub(super) fn has_members(group: &Group) -> bool {
    !group.members.get(&tree::look()).is_empty()
}
