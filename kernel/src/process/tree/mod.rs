//! Who is whose parent, thread, group and session: one lock for all of it, whose rules are in [`guard`].
//!
//! The links are inside the processes and threads, so nothing is allocated for them.

mod guard;

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use alloc::sync::Arc;
use intrusive_collections::{
    KeyAdapter, LinkedList, LinkedListAtomicLink, RBTree, RBTreeAtomicLink, intrusive_adapter,
};

use super::broadcast::Board;
use super::process::WaitStatus;
use super::thread::Leaving;
use super::{Pid, Process, Thread, orphans};
use crate::errno::{Errno, Result};
use crate::namespaces::{Numbers, SharedNumbers};
use crate::signal::{Spares, group};
use crate::sync::{IrqLock, SpinLock};

pub(crate) use guard::{Event, Guard, Look, TreeCell, lock, lock_to_send, look};

intrusive_adapter!(ByTid = Arc<Thread>: Thread { by_tid => RBTreeAtomicLink });
intrusive_adapter!(pub(super) InProcess = Arc<Thread>: Thread { in_process => RBTreeAtomicLink });
intrusive_adapter!(pub(super) Siblings = Arc<Process>: Process { sibling => LinkedListAtomicLink });
intrusive_adapter!(pub(super) InGroup = Arc<Process>: Process { in_group => LinkedListAtomicLink });
intrusive_adapter!(pub(super) Tracees = Arc<Thread>: Thread { in_tracees => LinkedListAtomicLink });
intrusive_adapter!(pub(super) OfTracer = Arc<Thread>: Thread { of_tracer => LinkedListAtomicLink });
intrusive_adapter!(ByPgid = Arc<Group>: Group { by_pgid => RBTreeAtomicLink });
intrusive_adapter!(BySid = Arc<Session>: Session { by_sid => RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for ByTid {
    type Key = Pid;
    fn get_key(&self, thread: &'a Thread) -> Pid {
        thread.tid()
    }
}

impl<'a> KeyAdapter<'a> for InProcess {
    type Key = u64;
    fn get_key(&self, thread: &'a Thread) -> u64 {
        thread.order()
    }
}

impl<'a> KeyAdapter<'a> for ByPgid {
    type Key = Pid;
    fn get_key(&self, group: &'a Group) -> Pid {
        group.pgid
    }
}

impl<'a> KeyAdapter<'a> for BySid {
    type Key = Pid;
    fn get_key(&self, session: &'a Session) -> Pid {
        session.sid
    }
}

/// A set of numbers, a bit each.
type Numbers64 = [u64; PID_MAX as usize / 64];

/// What is guarded by the tree's lock.
pub(crate) struct Tree {
    threads: RBTree<ByTid>,
    groups: RBTree<ByPgid>,
    sessions: RBTree<BySid>,
    next_pid: Pid,
    /// Numbers that threads have or are about to have.
    used: Numbers64,
    /// Numbers of processes, whose first threads are in `threads`.
    leaders: Numbers64,
    init: Option<Arc<Process>>,
    /// For signals that are sent under the lock.
    spares: Spares,
}

static TREE: IrqLock<Tree> = IrqLock::new(Tree {
    threads: RBTree::new(ByTid::NEW),
    groups: RBTree::new(ByPgid::NEW),
    sessions: RBTree::new(BySid::NEW),
    next_pid: 1,
    used: [0; PID_MAX as usize / 64],
    leaders: [0; PID_MAX as usize / 64],
    init: None,
    spares: Spares::new(),
});

static THREAD_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Largest process number plus one; Linux's default on small machines.
pub const PID_MAX: Pid = 32768;
/// Where the numbers start again after `PID_MAX`, so that the low ones stay with long-lived processes.
const RESERVED_PIDS: Pid = 300;

/// The number that is tried after `pid`.
fn after(pid: Pid) -> Pid {
    if pid + 1 >= PID_MAX { RESERVED_PIDS } else { pid + 1 }
}

/// A process's place in the tree.
pub(super) struct Relations {
    pub parent: Option<Arc<Process>>,
    /// Those that have ended come first.
    pub children: LinkedList<Siblings>,
    /// The threads that live, in the order in which they came.
    pub threads: RBTree<InProcess>,
    pub live: usize,
    /// How many of them rest, as control groups count it; and whether that is all.
    pub resting: usize,
    pub rests: bool,
    /// How many threads have come so far.
    came: u64,
    /// How many have ended.
    pub gone: u64,
    /// Threads of other processes that threads of this one trace. Those with news come first.
    pub tracees: LinkedList<Tracees>,
    /// How often one of those has moved in the list.
    pub tracees_moved: u64,
    /// The first thread, alive or not.
    pub leader: Option<Arc<Thread>>,
    pub group: Option<Arc<Group>>,
    /// Set once the last thread has ended.
    pub ended: Option<WaitStatus>,
    /// A stop or continuation that the parent has not waited for yet.
    pub news: Option<WaitStatus>,
    pub exit_signal: u32,
}

impl Relations {
    pub fn new(exit_signal: u32) -> Self {
        Self {
            parent: None,
            children: LinkedList::new(Siblings::NEW),
            threads: RBTree::new(InProcess::NEW),
            live: 0,
            resting: 0,
            rests: false,
            came: 0,
            gone: 0,
            tracees: LinkedList::new(Tracees::NEW),
            tracees_moved: 0,
            leader: None,
            group: None,
            ended: None,
            news: None,
            exit_signal,
        }
    }

    /// Adds a thread, behind all others.
    pub fn add_thread(&mut self, thread: &Arc<Thread>) {
        self.came += 1;
        thread.set_order(self.came);
        self.threads.insert(thread.clone());
        self.live += 1;
    }
}

/// A process group.
pub struct Group {
    pub pgid: Pid,
    /// The same number in PID namespaces below the first.
    pub numbers: Option<SharedNumbers>,
    pub session: Arc<Session>,
    by_pgid: RBTreeAtomicLink,
    /// Signals that are on their way to all members.
    pub(super) board: Board,
    /// The kernel's own.
    pub(crate) news: TreeCell<group::News>,
    pub(crate) in_telling: LinkedListAtomicLink,
    /// Members that live and have a parent in another group of the same session: it could continue them. Changed under the lock.
    pub(super) ties: AtomicUsize,
    /// Members that live and are stopped. Changed under the lock.
    pub(super) stopped: AtomicUsize,
    /// Those that live.
    pub(super) members: TreeCell<LinkedList<InGroup>>,
    /// Those that have ended and were not waited for.
    pub(super) ended: TreeCell<LinkedList<InGroup>>,
}

/// A session, with what the terminal's driver needs.
pub struct Session {
    pub sid: Pid,
    /// The same number in PID namespaces below the first.
    pub numbers: Option<SharedNumbers>,
    by_sid: RBTreeAtomicLink,
    groups: TreeCell<usize>,
    /// The controlling terminal: the terminal's driver sets and reads it.
    pub terminal: SpinLock<Option<Arc<dyn core::any::Any + Send + Sync>>>,
    /// The group in the foreground of a terminal that was hung up, 0 for none: the terminal's driver tells it of the leader's end.
    pub left_in_foreground: AtomicU32,
}

impl Group {
    pub(super) fn new(pgid: Pid, numbers: Option<&Arc<Numbers>>, session: Arc<Session>) -> Arc<Self> {
        Arc::new(Self {
            pgid,
            numbers: numbers.map(SharedNumbers::new),
            session,
            by_pgid: RBTreeAtomicLink::new(),
            board: Board::new(),
            news: TreeCell::new(group::News::new()),
            in_telling: LinkedListAtomicLink::new(),
            ties: AtomicUsize::new(0),
            stopped: AtomicUsize::new(0),
            members: TreeCell::new(LinkedList::new(InGroup::NEW)),
            ended: TreeCell::new(LinkedList::new(InGroup::NEW)),
        })
    }

    /// The list that a process of the group is on.
    fn list_of<'a>(&'a self, tree: &'a mut Guard, process: &Process) -> &'a mut LinkedList<InGroup> {
        let has_ended = process.relations.get(tree).ended.is_some();
        if has_ended { self.ended.get_mut(tree) } else { self.members.get_mut(tree) }
    }
}

impl Session {
    pub(super) fn new(sid: Pid, numbers: Option<&Arc<Numbers>>) -> Arc<Self> {
        Arc::new(Self {
            sid,
            numbers: numbers.map(SharedNumbers::new),
            by_sid: RBTreeAtomicLink::new(),
            groups: TreeCell::new(0),
            terminal: SpinLock::new(None),
            left_in_foreground: AtomicU32::new(0),
        })
    }
}

/// What has left the tree, to be dropped without the lock.
#[derive(Default)]
pub(crate) struct Removed {
    pub _process: Option<Arc<Process>>,
    pub _group: Option<Arc<Group>>,
    pub _session: Option<Arc<Session>>,
    pub _threads: [Option<Leaving>; 4],
    pub _parent: Option<Arc<Process>>,
}

impl Tree {
    pub fn thread(&self, tid: Pid) -> Option<Arc<Thread>> {
        self.threads.find(&tid).clone_pointer()
    }

    /// The process with this number, alive or a zombie.
    pub fn process(&self, pid: Pid) -> Option<Arc<Process>> {
        let thread = self.threads.find(&pid);
        thread.get().filter(|thread| thread.is_leader()).map(|thread| thread.process.clone())
    }

    /// The process with the lowest number above `pid`.
    ///
    /// Other threads' numbers are not looked at: they may be many.
    pub fn process_after(&self, pid: Pid) -> Option<Arc<Process>> {
        let first = pid as usize + 1;
        let mut mask = u64::MAX << (first % 64);
        for (index, word) in self.leaders.iter().enumerate().skip(first / 64) {
            let found = word & mask;
            if found != 0 {
                return self.process((index * 64) as Pid + found.trailing_zeros());
            }
            mask = u64::MAX;
        }
        None
    }

    pub fn group(&self, pgid: Pid) -> Option<Arc<Group>> {
        self.groups.find(&pgid).clone_pointer()
    }

    pub fn session(&self, sid: Pid) -> Option<Arc<Session>> {
        self.sessions.find(&sid).clone_pointer()
    }

    pub fn init(&self) -> Option<Arc<Process>> {
        self.init.clone()
    }
}

impl Guard {
    /// A number that no thread, group or session has. It is taken until `free_pid` or `remove_thread`.
    pub fn allocate_pid(&mut self) -> Result<Pid> {
        let tree = self.tree();
        let mut left = PID_MAX;
        while left > 0 {
            let pid = tree.next_pid;
            let (word, bit) = (pid as usize / 64, pid % 64);
            // A word at a time: most numbers may be taken.
            let taken = (tree.used[word] >> bit).trailing_ones();
            if taken > 0 {
                left = left.saturating_sub(taken);
                tree.next_pid = after(pid + taken - 1);
                continue;
            }
            left -= 1;
            tree.next_pid = after(pid);
            // A number may be that of a group or session whose first process has gone.
            if tree.groups.find(&pid).is_null() && tree.sessions.find(&pid).is_null() {
                tree.used[word] |= 1 << bit;
                return Ok(pid);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Takes this number; `EEXIST` when a thread, group or session has it.
    pub fn allocate_this_pid(&mut self, pid: Pid) -> Result<Pid> {
        let tree = self.tree();
        let (word, bit) = (pid as usize / 64, pid % 64);
        let taken = tree.used[word] >> bit & 1 != 0;
        if taken || !tree.groups.find(&pid).is_null() || !tree.sessions.find(&pid).is_null() {
            return Err(Errno::EEXIST);
        }
        tree.used[word] |= 1 << bit;
        Ok(pid)
    }

    /// Takes a number that was just freed, under the same lock.
    pub fn claim_pid(&mut self, pid: Pid) {
        self.tree().used[pid as usize / 64] |= 1 << (pid % 64);
    }

    /// The number of a thread that did not come to be.
    pub fn free_pid(&mut self, pid: Pid) {
        self.tree().used[pid as usize / 64] &= !(1 << (pid % 64));
    }

    pub fn insert_thread(&mut self, thread: &Arc<Thread>) {
        THREAD_COUNT.fetch_add(1, Ordering::SeqCst);
        if let Some(numbers) = thread.numbers() {
            numbers.namespaces().for_each(|namespace| namespace.thread_comes());
        }
        if thread.is_leader() {
            self.tree().leaders[thread.tid() as usize / 64] |= 1 << (thread.tid() % 64);
        }
        self.tree().threads.insert(thread.clone());
    }

    /// Takes a thread out of the register of numbers.
    pub fn remove_thread(&mut self, thread: &Thread) -> Option<Arc<Thread>> {
        if !thread.by_tid.is_linked() {
            return None;
        }
        THREAD_COUNT.fetch_sub(1, Ordering::SeqCst);
        if let Some(numbers) = thread.numbers() {
            numbers.namespaces().for_each(|namespace| namespace.thread_goes());
            numbers.give_back();
        }
        self.free_pid(thread.tid());
        self.tree().leaders[thread.tid() as usize / 64] &= !(1 << (thread.tid() % 64));
        // SAFETY: it is linked, and only ever in this tree.
        unsafe { self.tree().threads.cursor_mut_from_ptr(thread).remove() }
    }

    pub fn set_init(&mut self, init: Arc<Process>) {
        self.tree().init = Some(init);
    }

    /// Makes `process` a member of `group`, and of no other; what became empty is returned.
    pub fn join_group(&mut self, process: &Arc<Process>, group: &Arc<Group>) -> Removed {
        let removed = self.leave_group(process);
        if !group.by_pgid.is_linked() {
            self.tree().groups.insert(group.clone());
            if !group.session.by_sid.is_linked() {
                self.tree().sessions.insert(group.session.clone());
            }
            *group.session.groups.get_mut(self) += 1;
        }
        group.list_of(self, process).push_back(process.clone());
        process.relations.get_mut(self).group = Some(group.clone());
        group::enter(self, process, group);
        orphans::enter(self, process, group);
        removed
    }

    /// Takes a process out of its group; a group without members and a session without groups leave the tree.
    pub fn leave_group(&mut self, process: &Process) -> Removed {
        let mut removed = Removed::default();
        let Some(group) = process.relations.get_mut(self).group.take() else { return removed };
        orphans::leave(process, &group, process.ended_locked(self).is_none());
        let list = group.list_of(self, process);
        // SAFETY: a process with a group is on that group's list.
        removed._process = unsafe { list.cursor_mut_from_ptr(process).remove() };
        if group.members.get(self).is_empty() && group.ended.get(self).is_empty() {
            // SAFETY: a group with members is in the tree.
            let _ = unsafe { self.tree().groups.cursor_mut_from_ptr(Arc::as_ptr(&group)).remove() };
            let session = group.session.clone();
            let groups = session.groups.get_mut(self);
            *groups -= 1;
            if *groups == 0 {
                // SAFETY: a session with groups is in the tree.
                let _ = unsafe { self.tree().sessions.cursor_mut_from_ptr(Arc::as_ptr(&session)).remove() };
            }
            removed._session = Some(session);
        }
        removed._group = Some(group);
        removed
    }

    /// Makes `child` a child of `parent`; ended ones come first, so that wait(2) finds them at once.
    pub fn adopt(&mut self, parent: &Arc<Process>, child: &Arc<Process>) -> Removed {
        let mut removed = self.disown(child);
        let ended = child.relations.get(self).ended.is_some();
        let children = &mut parent.relations.get_mut(self).children;
        if ended {
            children.push_front(child.clone());
        } else {
            children.push_back(child.clone());
        }
        removed._parent = child.relations.get_mut(self).parent.replace(parent.clone()).or(removed._parent);
        orphans::recount(self, child);
        removed
    }

    /// Takes a process from its parent's list.
    pub fn disown(&mut self, child: &Process) -> Removed {
        let mut removed = Removed::default();
        if let Some(parent) = child.relations.get_mut(self).parent.take() {
            if child.sibling.is_linked() {
                let children = &mut parent.relations.get_mut(self).children;
                // SAFETY: a linked child is on its parent's list.
                removed._process = unsafe { children.cursor_mut_from_ptr(child).remove() };
            }
            removed._parent = Some(parent);
            orphans::recount(self, child);
        }
        removed
    }

    /// Moves a child that has ended to where wait(2) looks first.
    pub fn child_to_front(&mut self, child: &Arc<Process>) {
        let Some(parent) = child.relations.get(self).parent.clone() else { return };
        let children = &mut parent.relations.get_mut(self).children;
        // SAFETY: a process with a parent is on the parent's list.
        if let Some(child) = unsafe { children.cursor_mut_from_ptr(Arc::as_ptr(child)).remove() } {
            children.push_front(child);
        }
        // The parent lives on: the tree and the child still refer to it, so this clone is not the last.
    }
}

/// How many threads there are, kernel threads not counted.
pub fn thread_count() -> usize {
    THREAD_COUNT.load(Ordering::SeqCst)
}

/// The number that the next process will probably get.
pub fn last_pid() -> Pid {
    look().next_pid.saturating_sub(1)
}

/// Makes a process one of those that have ended: in the same hold in which it gets its status.
pub(super) fn set_ended(tree: &mut Guard, process: &Process, status: WaitStatus) {
    let listed = process.relations.get(tree).group.clone().and_then(|group| {
        // SAFETY: it is a member of this group, and lives.
        let listed = unsafe { group.members.get_mut(tree).cursor_mut_from_ptr(process).remove() };
        listed.map(|process| (group, process))
    });
    process.relations.get_mut(tree).ended = Some(status);
    if let Some((group, process)) = listed {
        orphans::leave(&process, &group, true);
        group.ended.get_mut(tree).push_back(process);
    }
}

/// The first member of a group that lives; with [`next_member`], a walk during which signals may be sent.
pub(crate) fn first_member(tree: &Look, group: &Group) -> Option<Arc<Process>> {
    group.members.get(tree).front().clone_pointer()
}

/// Makes a process the last member of its group; nothing if it is in another one, or has ended.
pub(crate) fn to_back(tree: &mut Guard, group: &Arc<Group>, process: &Process) {
    if !process.is_in_group(tree, group) || process.ended_locked(tree).is_some() {
        return;
    }
    let members = group.members.get_mut(tree);
    // SAFETY: it is a member of this group.
    if let Some(process) = unsafe { members.cursor_mut_from_ptr(process).remove() } {
        members.push_back(process);
    }
}

/// The member after `process`.
pub(crate) fn next_member(tree: &Look, group: &Group, process: &Process) -> Option<Arc<Process>> {
    // SAFETY: members stay on the list while the lock is held.
    let mut cursor = unsafe { group.members.get(tree).cursor_from_ptr(process) };
    cursor.move_next();
    cursor.clone_pointer()
}
