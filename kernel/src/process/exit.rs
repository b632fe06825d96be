//! The end of threads and processes.

use core::sync::atomic::Ordering;

use alloc::sync::Arc;
use smallvec::SmallVec;

use super::process::WaitStatus;
use super::subreaper::{self, Search};
use super::tree::Event;
use super::{Process, Thread, futex, orphans, ptrace, tree, user};
use crate::arch::interrupts;
use crate::cgroup;
use crate::mm::{shm, uaccess};
use crate::namespaces::View;
use crate::sched;
use crate::signal::{self, SIGCHLD, SIGCONT, SIGHUP, SIGNAL_MAX, SigInfo, SigSet, flags};

/// A kernel thread's function has returned.
pub(super) fn kernel_thread_ended() -> ! {
    sched::exit_current()
}

/// exit(2): only the current thread ends, with this code if it is the last.
pub fn exit_thread(code: u8) -> ! {
    finish(WaitStatus::Exited(code))
}

/// The current thread ends as if this signal had killed it, and the others do not.
pub fn thread_killed_alone(signal: u32) -> ! {
    finish(WaitStatus::Killed { signal: signal as u8, core: false })
}

/// Ends the process: all other threads are killed, and the current one ends.
pub fn end_process(status: WaitStatus) -> ! {
    let thread = super::current();
    let status = {
        let tree = tree::look();
        let mut state = thread.process.signals.state.lock();
        if state.exec && state.ending.is_none() && thread.kill_pending() {
            // Another thread executes a program and has asked this one to go: then that is all that happens.
            WaitStatus::Exited(0)
        } else {
            signal::end_all(&tree, &thread.process, &mut state, status);
            state.ending.unwrap_or(status)
        }
    };
    finish(status)
}

/// The current thread was killed: by a signal to the process, by exit_group(2), or by an execve(2) of another thread.
pub fn thread_killed() -> ! {
    let thread = super::current();
    let status = thread.process.signals.state.lock().ending.unwrap_or(WaitStatus::Exited(0));
    finish(status)
}

/// Lets go of everything, and leaves the CPU for good.
fn finish(status: WaitStatus) -> ! {
    let thread = super::current();
    let process = thread.process.clone();
    debug_assert!(interrupts::are_enabled());
    // It is dying already: what it still waits for below must be able to happen, and it waits for no memory but its own.
    thread.signals.clear_killed();
    thread.memory.set_ending();
    ptrace::exit_event(&thread, status);
    // The killer may have ended that stop.
    thread.signals.clear_killed();
    ptrace::tracer_ends(&thread);
    // Before joiners hear of it: a thread that ends keeps nobody from a filter for all.
    thread.seccomp.end();
    // What it was told to take for the process is for another thread now.
    thread.set_signal_mask(SigSet(u64::MAX));
    thread.cpu_timers.end();
    futex::exit_robust_list(&thread);
    futex::leave_words(&thread, true);
    clear_child_tid(&thread);
    let remains = process.mm().map(|mm| mm.remains().hold());
    let last = leave_memory(&thread);
    if last && process.pid == 1 {
        panic!("Attempted to kill init! exitcode={:#010x}", status.to_bits());
    }
    if last {
        shm::maker_ends(&process);
    }
    thread.leave_undo_list();
    thread.set_files(None);
    thread.set_fs(None);
    thread.set_namespaces(None);
    thread.signals.drop_own();
    if last {
        process.timers.posix.clear();
        process.aio.clear();
        process.signals.drop_shared();
    }
    drop(remains);
    let restart = thread.restart.lock().take();
    drop(restart);
    unlink(&thread, &process, status);
    process.thread_ended.wake_all();
    // The scheduler's reference keeps the thread until it has left its stack; ours would never be dropped.
    drop(process);
    sched::exit_current()
}

/// set_tid_address(2): tells joiners that the thread is gone.
pub(super) fn clear_child_tid(thread: &Thread) {
    let address = thread.clear_child_tid.swap(0, Ordering::SeqCst);
    if address != 0 && uaccess::write_user(address, &0u32).is_ok() {
        futex::wake_after_exit(address);
    }
}

/// Lets go of the address space. True for the last thread that does, whatever others have yet to do on their way out: with it goes the
/// process's own reference, and a vfork(2) parent goes on.
fn leave_memory(thread: &Thread) -> bool {
    let process = &thread.process;
    let own = user::drop_address_space(thread);
    // Race: the last threads end at the same time. Each still counts as living, so it is not by that number that one of them is the last.
    // AcqRel: the last one comes behind all that the others did to the memory.
    let last = process.running.fetch_sub(1, Ordering::AcqRel) == 1;
    // By the last one alone: it looks at all areas, and a thousand threads would do so a thousand times.
    let shared = if last {
        process.note_resident();
        process.replace_mm(None)
    } else {
        None
    };
    // The one that drops the last reference takes the memory apart, with interrupts on and no lock held.
    drop(own);
    drop(shared);
    if last {
        release_vfork(process);
    }
    last
}

/// The process does not use its vfork(2) parent's memory any more.
pub(super) fn release_vfork(process: &Process) {
    if !process.vfork_released.swap(true, Ordering::SeqCst) {
        process.vfork_wait.wake_all();
    }
}

/// Takes the thread out of its process, and ends the process if it was the last.
fn unlink(thread: &Thread, process: &Arc<Process>, status: WaitStatus) {
    let times = thread.sched.times();
    let switches = thread.sched.switches();
    let totals = &process.totals;
    // Relaxed: statistics; the tree's lock orders them with the removal of the thread.
    let mut tree = tree::lock_to_send(SENDS);
    totals.ended_user.fetch_add(times.0, Ordering::Relaxed);
    totals.ended_system.fetch_add(times.1, Ordering::Relaxed);
    totals.ended_minor_faults.fetch_add(thread.minor_faults.load(Ordering::Relaxed), Ordering::Relaxed);
    totals.ended_major_faults.fetch_add(thread.major_faults.load(Ordering::Relaxed), Ordering::Relaxed);
    totals.ended_voluntary.fetch_add(switches.0, Ordering::Relaxed);
    totals.ended_involuntary.fetch_add(switches.1, Ordering::Relaxed);
    let leader = thread.is_leader();
    let relations = process.relations.get_mut(&mut tree);
    // SAFETY: a live thread is on its process's list.
    let removed = unsafe { relations.threads.cursor_mut_from_ptr(thread).remove() };
    relations.live -= 1;
    relations.gone += 1;
    let last = relations.live == 0;
    signal::leave_stop(&mut tree, thread);
    let stays = leader || ptrace::keep_thread(&mut tree, thread, status);
    let unregistered = if stays { None } else { tree.remove_thread(thread) };
    if !stays {
        process.cgroup.remove_task();
    }
    let changed = match last {
        true => cgroup::leave(&mut tree, process),
        false => cgroup::freezer::thread_gone(&mut tree, process, thread),
    };
    if last {
        let state = process.signals.state.lock();
        // As Linux since 5.17: without exit_group(2) or a signal the last thread's end is the process's.
        let status = state.ending.unwrap_or(status);
        drop(state);
        if let Some(session) = led_session(&tree, process) {
            drop(tree);
            // Before the parent hears of the end: the next session that it starts on the terminal must not be hung up.
            crate::tty::session_leader_ends(&session);
            tree = tree::lock_to_send(SENDS);
        }
        end(tree, process, status);
    } else {
        drop(tree);
    }
    changed.tell();
    drop(removed);
    drop(unregistered);
}

/// The session that a process leads.
fn led_session(tree: &tree::Look, process: &Process) -> Option<Arc<tree::Session>> {
    let group = process.relations.get(tree).group.as_ref()?;
    (group.session.sid == process.pid).then(|| group.session.clone())
}

/// The last thread has ended: children find a new parent, the parent is told.
fn end(mut tree: tree::Guard, process: &Arc<Process>, status: WaitStatus) {
    if let Some(numbers) = process.numbers.as_ref().filter(|numbers| numbers.own() == 1) {
        drop(tree);
        numbers.namespace().first_process_ends(process);
        tree = tree::lock_to_send(SENDS);
    }
    // Some at a time: what leaves the tree is kept without allocating, and dropped without the lock.
    let mut removed = Removed::new();
    let mut search = None;
    while let Err(more) = reparent_children(&mut tree, process, search.as_ref(), &mut removed) {
        drop(tree);
        removed.clear();
        search = more.search;
        sched::cond_resched();
        tree = tree::lock_to_send(more.sends);
    }
    // Its own group may lose the last member that could continue it.
    if let Some(group) = process.group_locked(&tree).cloned()
        && orphans::is_last_tie(&tree, process, &group)
    {
        hang_up_if_stopped(&mut tree, &group);
    }
    tree::set_ended(&mut tree, process, status);
    tree.child_to_front(process);
    let reaped = !ptrace::leader_ended(&mut tree, process, status) && tell_parent(&mut tree, process, status);
    if reaped {
        removed.extend(super::wait::remove(&mut tree, process));
    }
    drop(tree);
    drop(removed);
    process.timers.process_ends();
    // What came after the last thread had dropped its own. Nothing comes any more: somebody may leave the process a zombie for long.
    process.signals.drop_shared();
    if let Some(leader) = process.leader() {
        leader.signals.drop_own();
    }
    process.ended.wake_all();
}

/// A process executes another program: its parent hears of its end by SIGCHLD, and so does it of its children's, whatever signals the
/// programs before had asked for.
pub(super) fn program_changed(process: &Process) {
    let mut tree = tree::lock();
    process.relations.get_mut(&mut tree).exit_signal = SIGCHLD;
    // Relaxed: under the tree's lock.
    process.exec_id.fetch_add(1, Ordering::Relaxed);
}

/// SIGCHLD and waking. True if the parent does not care, so that the process is gone at once.
pub(super) fn tell_parent(tree: &mut tree::Guard, process: &Arc<Process>, status: WaitStatus) -> bool {
    let Some(parent) = process.relations.get(tree).parent.clone() else { return true };
    // Relaxed: under the tree's lock.
    let same_program =
        process.exec_id_of_parent.load(Ordering::Relaxed) == parent.exec_id.load(Ordering::Relaxed);
    let exit_signal = match process.relations.get(tree).exit_signal {
        0 => 0,
        _ if !same_program => SIGCHLD,
        signal => signal,
    };
    let leader = process.relations.get(tree).leader.as_ref();
    let traced = leader.is_some_and(|leader| leader.trace.is_traced());
    let mut reap = false;
    if !traced
        && parent
            .numbers
            .as_ref()
            .is_some_and(|numbers| numbers.own() == 1 && numbers.namespace().is_closed())
    {
        // The first process of a PID namespace is at its end and waits until all others are gone. It has waited for those that had ended before
        // that, and waits for no more of them, whatever signal they send.
        reap = true;
    // clone(2) takes any number: of what is no signal nothing is sent.
    } else if (1..=SIGNAL_MAX).contains(&exit_signal) {
        let mut send = true;
        // A tracer waits for its tracees, whatever it says of its children.
        if exit_signal == SIGCHLD && !traced {
            let action = parent.actions.lock().get(SIGCHLD);
            if action.handler == signal::SIG_IGN {
                (reap, send) = (true, false);
            } else if action.flags & flags::SA_NOCLDWAIT != 0 {
                reap = true;
            }
        }
        if send {
            let mut info = signal::child_info(process, &parent, status);
            info.signal = exit_signal as i32;
            signal::send_process_locked(tree, &parent, info);
        }
    }
    tree.tell(&parent, Event::Child);
    reap
}

/// What leaves the tree with the children of one hold of its lock, and with the process itself.
type Removed = SmallVec<[tree::Removed; 4 * (CHILDREN + 1)]>;
/// Children that find a new parent in one hold of the tree's lock.
const CHILDREN: usize = 8;

/// Signals that the end of a thread may send, children apart: of a stop that is complete by it, and of the end itself to a tracer or the
/// parent.
const SENDS: usize = 3;

/// What is left for another hold of the tree's lock.
struct More {
    /// For how many signals it is to be taken.
    sends: usize,
    /// How far the search for the new parent is.
    search: Option<Search>,
}

impl More {
    fn children(sends: usize) -> Self {
        Self { sends, search: None }
    }
}

/// Gives some of the children a new parent. `Err` when some are left.
fn reparent_children(
    tree: &mut tree::Guard,
    process: &Arc<Process>,
    search: Option<&Search>,
    removed: &mut Removed,
) -> Result<(), More> {
    if process.relations.get(tree).children.is_empty() {
        return Ok(());
    }
    let new_parent = match subreaper::new_parent(tree, process, search) {
        Ok(new_parent) => new_parent,
        Err(search) => return Err(More { sends: CHILDREN + SENDS, search: Some(search) }),
    };
    for _ in 0..CHILDREN {
        let Some(child) = process.relations.get(tree).children.front().clone_pointer() else {
            return Ok(());
        };
        let mut signals = mourned_by(&child, tree);
        // Of the child's end the new parent may hear.
        let needed = signals.count_ones() as usize + signal::caused_by(SIGCONT) + 1 + SENDS;
        if tree.sends() < needed {
            return Err(More::children(needed.max(CHILDREN + SENDS)));
        }
        while signals != 0 {
            let signal = signals.trailing_zeros() + 1;
            signals &= signals - 1;
            signal::send_process_locked(
                tree,
                &child,
                SigInfo::user(signal, 0, View::of(&child).process(process), 0),
            );
        }
        let Some(new_parent) = &new_parent else {
            removed.push(tree.disown(&child));
            continue;
        };
        let tied = orphans::ties(tree, &child);
        removed.push(tree.adopt(new_parent, &child));
        if tied
            && let Some(group) = child.group_locked(tree).cloned()
            && orphans::is_orphaned(tree, &group)
        {
            hang_up_if_stopped(tree, &group);
        }
        child.relations.get_mut(tree).exit_signal = SIGCHLD;
        if let Some(status) = child.relations.get(tree).ended
            && !ptrace::is_held(tree, &child)
            && tell_parent(tree, &child, status)
        {
            removed.extend(super::wait::remove(tree, &child));
        }
    }
    match process.relations.get(tree).children.is_empty() {
        true => Ok(()),
        false => Err(More::children(CHILDREN + SENDS)),
    }
}

/// The members of a group that has just become orphaned get SIGHUP and SIGCONT if one is stopped: nobody else could continue them.
fn hang_up_if_stopped(tree: &mut tree::Guard, group: &Arc<tree::Group>) {
    if orphans::has_stopped(tree, group) {
        signal::group::send_group_later(tree, group, &[SIGHUP, SIGCONT]);
    }
}

/// The signals by which threads want to hear of their parent's end, a bit each: the process gets each of them once.
fn mourned_by(process: &Process, tree: &tree::Look) -> u64 {
    let signal = |thread: &Thread| thread.parent_death_signal.load(Ordering::SeqCst);
    let bit = |signal: u32| signal.checked_sub(1).and_then(|bit| 1u64.checked_shl(bit)).unwrap_or(0);
    process.threads_locked(tree).fold(0, |set, thread| set | bit(signal(thread)))
}
