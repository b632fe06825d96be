//! Signals of the kernel's own to process groups: the terminal's ^C, the end of a session, a group that is orphaned.
//!
//! Whoever sends one may be an interrupt handler, and a group may have any number of members. So the signal is put up in the group with a
//! number, the current process and the first few members get it at once, and a thread of the kernel's tells the others, a few in one hold
//! of the tree's lock. Each process knows the number of the last signal that it has heard. A child has heard what its parent has, and a process
//! that has not heard makes no child and does not leave its group before it has ([`hear`]). So those who are yet to hear never become more.
//!
//! Who has heard is moved behind all other members, as in [`crate::process::broadcast`], whose calls use the same order: a member moves only
//! when it has heard both. So the first member that has heard both is the end of a walk.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::sync::Arc;
use intrusive_collections::{LinkedList, LinkedListAtomicLink, intrusive_adapter};

use super::{SIGCONT, SIGHUP, SigInfo, send, spares};
use crate::process::tree::{self, Group, Guard, Look};
use crate::process::{self, Pid, Process, broadcast};
use crate::sched;
use crate::sync::{IrqLock, WaitQueue};

const SIGINT: u32 = 2;
const SIGQUIT: u32 = 3;
const SIGTSTP: u32 = 20;
const SIGTTIN: u32 = 21;
const SIGTTOU: u32 = 22;
const SIGWINCH: u32 = 28;

/// What the kernel sends to groups.
const SIGNALS: [u32; 8] = [SIGHUP, SIGINT, SIGQUIT, SIGCONT, SIGTSTP, SIGTTIN, SIGTTOU, SIGWINCH];

/// The most of its own signals that the kernel sends so that one process hears of all.
pub const MOST_FOR_ONE: usize = SIGNALS.len() + send::caused_by(SIGCONT);
/// Members that are told in one hold, of one signal each.
const MEMBERS: usize = 16;
const _: () = assert!(2 * MEMBERS + MOST_FOR_ONE <= spares::MOST);

/// What a group was sent.
pub struct News {
    /// The number of the last signal of each kind.
    last: [u64; SIGNALS.len()],
    /// The largest of them.
    newest: u64,
}

impl News {
    pub const fn new() -> Self {
        Self { last: [0; SIGNALS.len()], newest: 0 }
    }

    /// Puts a signal up.
    fn announce(&mut self, signal: u32) {
        // Of all groups, so that who changes from one to another has no number of a later signal. Relaxed, here and below: under the tree's lock.
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed) + 1;
        let kind = SIGNALS.iter().position(|of_kind| *of_kind == signal);
        debug_assert!(kind.is_some(), "signal {signal} is not for groups");
        if let Some(kind) = kind {
            self.last[kind] = number;
            self.newest = number;
        }
    }

    /// The oldest signal with a number above this one.
    fn after(&self, heard: u64) -> Option<(u64, u32)> {
        let news = self.last.iter().zip(SIGNALS).filter(|(number, _)| **number > heard);
        news.min_by_key(|(number, _)| **number).map(|(number, signal)| (*number, signal))
    }
}

intrusive_adapter!(Listed = Arc<Group>: Group { in_telling => LinkedListAtomicLink });

/// Groups with members that are yet to hear.
static UNDER_WAY: IrqLock<LinkedList<Listed>> = IrqLock::new(LinkedList::new(Listed::NEW));
static WORKER: WaitQueue = WaitQueue::new();

/// Sends a signal to all members of a session's process group, if there is one of that number: who noted the number does not keep it,
/// and a group of another session may have it by now. Usable in interrupt handlers.
pub fn send_group(session: Pid, pgid: Pid, signal: u32) {
    let mut tree = tree::lock_to_send(2 * MEMBERS + MOST_FOR_ONE);
    let Some(group) = tree.group(pgid).filter(|group| group.session.sid == session) else { return };
    group.news.get_mut(&mut tree).announce(signal);
    // It does not go back to user mode as if nothing had happened.
    if let Some(current) = process::try_current()
        && current.process.is_in_group(&tree, &group)
    {
        visit(&mut tree, &group, &current.process);
    }
    if !matches!(step(&mut tree, &group), Step::Over) {
        list(&group);
    }
}

/// As [`send_group`] of several signals, for those who hold the tree's lock: all members hear later.
pub(crate) fn send_group_later(tree: &mut Guard, group: &Arc<Group>, signals: &[u32]) {
    for signal in signals {
        group.news.get_mut(tree).announce(*signal);
    }
    list(group);
}

/// Makes a process hear what its group was sent. Takes up to [`MOST_FOR_ONE`] of the signals that the lock was taken for.
pub(crate) fn hear(tree: &mut Guard, process: &Arc<Process>) {
    let Some(group) = process.group_locked(tree).cloned() else { return };
    while let Some((number, signal)) = group.news.get(tree).after(process.heard.of_kernel()) {
        process.heard.set_of_kernel(number);
        send::send_process_locked(tree, process, SigInfo::kernel(signal));
    }
}

/// A process that enters a group was not meant by what the group was sent before.
pub(crate) fn enter(tree: &Look, process: &Process, group: &Group) {
    process.heard.set_of_kernel(group.news.get(tree).newest);
}

/// Whether a process has yet to hear what its group was sent.
pub(crate) fn has_news(tree: &Look, process: &Process) -> bool {
    process.group_locked(tree).is_some_and(|group| group.news.get(tree).newest > process.heard.of_kernel())
}

/// Tells a member, which goes behind all others if there is nothing else that it has to hear.
fn visit(tree: &mut Guard, group: &Arc<Group>, member: &Arc<Process>) {
    hear(tree, member);
    if broadcast::unheard_in_group(tree, member).is_none() {
        tree::to_back(tree, group, member);
    }
}

/// What came of a step through a group's members.
enum Step {
    /// All have heard.
    Over,
    /// Some have not.
    More,
    /// This one is to hear a call of a process's first.
    Call(Arc<broadcast::Call>, Arc<Process>),
}

fn step(tree: &mut Guard, group: &Arc<Group>) -> Step {
    for _ in 0..MEMBERS {
        let Some(member) = tree::first_member(tree, group) else { return Step::Over };
        if let Some(call) = broadcast::unheard_in_group(tree, &member) {
            return Step::Call(call, member);
        }
        if !has_news(tree, &member) {
            return Step::Over;
        }
        if tree.sends() < MOST_FOR_ONE {
            return Step::More;
        }
        visit(tree, group, &member);
    }
    Step::More
}

/// Leaves the rest to the kernel's thread.
fn list(group: &Arc<Group>) {
    let mut under_way = UNDER_WAY.lock();
    if !group.in_telling.is_linked() {
        under_way.push_back(group.clone());
    }
    drop(under_way);
    WORKER.wake_one();
}

/// Starts the thread that tells groups.
pub fn init() {
    sched::spawn_kernel_thread("groups", || {
        loop {
            let group = WORKER.wait_until(|| UNDER_WAY.lock().pop_front());
            let mut tree = tree::lock_to_send(2 * MEMBERS + MOST_FOR_ONE);
            let came = step(&mut tree, &group);
            drop(tree);
            match came {
                Step::Over => {}
                Step::More => list(&group),
                Step::Call(call, member) => {
                    call.reach(&member);
                    list(&group);
                }
            }
            drop(group);
            sched::cond_resched();
        }
    });
}
