//! Who traces whom: the beginning and the end of it.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::registers::Registers;
use super::{CALLS, EMULATED, FORCED_TRAP, STEP, TRACED, WITHOUT_SECCOMP, options, stop};
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::process::thread::Leaving;
use crate::process::tree::{self, Removed};
use crate::process::{CAP_SYS_ADMIN, Process, Thread, WaitStatus, current, exit, wait};
use crate::sched;
use crate::seccomp;
use crate::signal::{self, SIGKILL, SIGSTOP, SigInfo};

/// Makes the place for a tracee's registers.
pub fn prepare(thread: &Thread) -> Result<()> {
    let fresh = fallible::boxed(Registers::default())?;
    let mut place = thread.trace.registers.lock();
    let unused = if place.is_none() { place.replace(fresh) } else { Some(fresh) };
    drop(place);
    drop(unused);
    Ok(())
}

/// Checks PTRACE_O_*.
pub fn check_options(wanted: u32) -> Result<()> {
    if wanted & !options::ALL != 0 {
        return Err(Errno::EINVAL);
    }
    if wanted & options::SUSPEND_SECCOMP != 0 {
        let tracer = current();
        tracer.credentials().require(CAP_SYS_ADMIN)?;
        if tracer.seccomp.mode() != seccomp::DISABLED || tracer.trace.suspends_seccomp() {
            return Err(Errno::EPERM);
        }
    }
    Ok(())
}

/// PTRACE_ATTACH and PTRACE_SEIZE. The caller has checked that it may.
pub fn attach(thread: &Arc<Thread>, seize: Option<u32>) -> Result<()> {
    let tracer = current();
    if thread.is_kernel() || Arc::ptr_eq(&thread.process, &tracer.process) {
        return Err(Errno::EPERM);
    }
    prepare(thread)?;
    {
        let mut tree = tree::lock();
        if thread.sched.is_dead() || !thread.in_process.is_linked() {
            return Err(Errno::EPERM);
        }
        link(&mut tree, thread, &tracer.to_arc(), seize)?;
        // One that job control has stopped enters a stop of its tracer's.
        if thread.process.signals.state.lock().stop.is_some() {
            stop::ask_trap(thread);
        }
    }
    if seize.is_none() {
        signal::send_thread(thread, SigInfo::kernel(SIGSTOP));
    }
    Ok(())
}

/// PTRACE_TRACEME: the thread that has made this process traces the current thread.
pub fn trace_me() -> Result<()> {
    let thread = current().to_arc();
    prepare(&thread)?;
    let mut tree = tree::lock();
    if thread.trace.state.get(&tree).tracer.is_some() {
        return Err(Errno::EPERM);
    }
    let Some(parent) = thread.process.parent_locked(&tree).cloned() else { return Ok(()) };
    let maker = tree.thread(thread.process.made_by.load(Ordering::SeqCst));
    let maker = maker.filter(|maker| Arc::ptr_eq(&maker.process, &parent));
    let first = parent.threads_locked(&tree).next().map(Thread::to_arc);
    let linked = match maker.as_ref().or(first.as_ref()) {
        Some(tracer) => link(&mut tree, &thread, tracer, None),
        None => Ok(()),
    };
    drop(tree);
    drop((maker, first, parent));
    // As Linux: a parent on its way out is no tracer, and that is no error.
    match linked {
        Err(Errno::ESRCH) => Ok(()),
        linked => linked,
    }
}

/// Makes `tracer` trace the thread. `EPERM` when somebody does, `ESRCH` when the tracer is about to end.
fn link(
    tree: &mut tree::Guard,
    thread: &Arc<Thread>,
    tracer: &Arc<Thread>,
    seize: Option<u32>,
) -> Result<()> {
    if tracer.trace.state.get(tree).traces_no_more {
        return Err(Errno::ESRCH);
    }
    let state = thread.trace.state.get_mut(tree);
    if state.tracer.is_some() {
        return Err(Errno::EPERM);
    }
    state.tracer = Some(tracer.clone());
    state.seized = seize.is_some();
    state.options = seize.unwrap_or(0);
    state.news = false;
    state.message = 0;
    tracer.trace.state.get_mut(tree).tracees.push_back(thread.clone());
    tracer.process.relations.get_mut(tree).tracees.push_back(thread.clone());
    thread.trace.set(TRACED);
    set_seccomp(thread, seize.unwrap_or(0));
    Ok(())
}

fn set_seccomp(thread: &Thread, wanted: u32) {
    if wanted & options::SUSPEND_SECCOMP != 0 {
        thread.trace.set(WITHOUT_SECCOMP);
    } else {
        thread.trace.clear(WITHOUT_SECCOMP);
    }
}

/// PTRACE_SETOPTIONS, of a tracee in a stop.
pub fn set_options(thread: &Thread, wanted: u32) {
    let mut tree = tree::lock();
    thread.trace.state.get_mut(&mut tree).options = wanted;
    set_seccomp(thread, wanted);
}

/// A new thread is traced by its maker's tracer, with the same options. Its first stop is asked for. False if nobody traces the maker.
pub(in crate::process) fn inherit(tree: &mut tree::Guard, maker: &Thread, thread: &Arc<Thread>) -> bool {
    let state = maker.trace.state.get(tree);
    let Some(tracer) = state.tracer.clone() else { return false };
    let (seized, wanted) = (state.seized, state.options);
    if link(tree, thread, &tracer, Some(wanted)).is_err() {
        return false;
    }
    thread.trace.state.get_mut(tree).seized = seized;
    if seized {
        thread.signals.ask_trap();
    } else {
        signal::add_first_stop(tree, thread);
    }
    // The maker refers to its tracer: this clone is not the last.
    true
}

/// Is the thread a tracee of the current thread's?
pub fn is_tracee_of_current(thread: &Thread) -> bool {
    let tree = tree::look();
    let state = thread.trace.state.get(&tree);
    state.tracer.as_ref().is_some_and(|tracer| core::ptr::eq(Arc::as_ptr(tracer), &*current()))
}

/// Is the thread's tracer its process's parent?
pub(crate) fn is_of_parent(tree: &tree::Look, thread: &Thread) -> bool {
    let tracer = thread.trace.state.get(tree).tracer.as_ref();
    let parent = thread.process.relations.get(tree).parent.as_ref();
    tracer.zip(parent).is_some_and(|(tracer, parent)| Arc::ptr_eq(&tracer.process, parent))
}

/// Nobody traces the thread any more. It goes on, or stops again with its process. What is returned is dropped without the lock.
fn unlink(tree: &mut tree::Guard, thread: &Thread) -> Removed {
    let mut removed = Removed::default();
    let state = thread.trace.state.get_mut(tree);
    let Some(tracer) = state.tracer.take() else { return removed };
    let was_stopped = thread.trace.is_stopped();
    state.options = 0;
    state.seized = false;
    // SAFETY: a traced thread is on the list of its tracer's process.
    let listed =
        unsafe { tracer.process.relations.get_mut(tree).tracees.cursor_mut_from_ptr(thread).remove() };
    // SAFETY: and on its tracer's own. The other list had a reference too: this one is not the last.
    drop(unsafe { tracer.trace.state.get_mut(tree).tracees.cursor_mut_from_ptr(thread).remove() });
    // A trap flag in a running thread's registers stays marked: the trap that it causes is nobody's.
    thread.trace.clear(TRACED | CALLS | EMULATED | STEP | WITHOUT_SECCOMP);
    if was_stopped {
        thread.trace.clear(FORCED_TRAP);
    }
    if thread.in_process.is_linked() {
        if thread.process.signals.state.lock().stop.is_some() {
            thread.signals.ask_stop_again();
        }
        if was_stopped {
            stop::wake(thread);
        }
    }
    removed._threads = [Some(Leaving(tracer)), listed.map(Leaving), None, None];
    removed
}

/// PTRACE_DETACH, of a tracee in a stop: it goes on with this signal. `ESRCH` when it is in none: one that was killed and has ended is for
/// the tracer's wait(2), or for its end.
pub fn detach(thread: &Thread, signal: u32) -> Result<()> {
    let mut tree = tree::lock();
    if !super::stop::is_stopped(&tree, thread) {
        return Err(Errno::ESRCH);
    }
    thread.trace.state.get_mut(&mut tree).answer = signal;
    let removed = unlink(&mut tree, thread);
    drop(tree);
    drop(removed);
    Ok(())
}

/// A process is about to leave the tree, waited for by its parent: nobody traces its first thread from here on.
pub(in crate::process) fn unlink_reaped(tree: &mut tree::Guard, leader: &Thread) -> Removed {
    unlink(tree, leader)
}

/// Another thread takes the number of the old first thread, which has ended: nobody waits for that one any more.
pub fn forget_old_leader(tree: &mut tree::Guard, leader: &Thread) -> Removed {
    unlink(tree, leader)
}

/// The current thread ends: its tracees go on, or are killed if it wanted that.
pub fn tracer_ends(tracer: &Thread) {
    loop {
        // A parent may hear now of a tracee that has ended.
        let mut tree = tree::lock_to_send(1);
        // Other threads of the process may trace any number more.
        let Some(thread) = tracer.trace.state.get(&tree).tracees.front().clone_pointer() else {
            tracer.trace.state.get_mut(&mut tree).traces_no_more = true;
            return;
        };
        let kills = thread.trace.state.get(&tree).options & options::EXITKILL != 0;
        let removed = release(&mut tree, &thread, &tracer.process);
        drop(tree);
        drop(removed);
        if kills {
            signal::send_process(&thread.process, SigInfo::kernel(SIGKILL));
        }
        sched::cond_resched();
    }
}

/// Lets go of a tracee, alive or ended. One that has ended goes to its own parent now, or is gone.
pub(super) fn release(tree: &mut tree::Guard, thread: &Thread, tracer: &Process) -> [Removed; 4] {
    let ended: Option<WaitStatus> = thread.trace.state.get_mut(tree).ended.take();
    let mut all: [Removed; 4] = Default::default();
    all[0] = unlink(tree, thread);
    let Some(_) = ended else { return all };
    if !thread.is_leader() {
        let registered = tree.remove_thread(thread);
        thread.process.cgroup.remove_task();
        all[1]._threads = [registered.map(Leaving), None, None, None];
        return all;
    }
    let process = thread.process.clone();
    let parent = process.parent_locked(tree).cloned();
    let own_child = parent.as_ref().is_some_and(|parent| core::ptr::eq(Arc::as_ptr(parent), tracer));
    if let Some(status) = process.ended_locked(tree)
        && !own_child
        && exit::tell_parent(tree, &process, status)
    {
        let [a, b, c] = wait::remove(tree, &process);
        (all[1], all[2], all[3]) = (a, b, c);
    }
    all[0]._process = Some(process);
    all[0]._parent = parent;
    all
}
