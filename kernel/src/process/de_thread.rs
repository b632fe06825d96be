//! execve(2) in a process with several threads: the others end, and the one that stays becomes the first.

use core::sync::atomic::Ordering;

use alloc::sync::Arc;

use super::{Process, Thread, ptrace, tree};
use crate::errno::{Errno, Result};
use crate::sched;
use crate::signal::{self, Actions};
use crate::sync::WaitError;

/// Ends all other threads of the process and waits for that. `EAGAIN` when another thread does the same or the process ends.
pub(super) fn de_thread(thread: &Thread) -> Result<()> {
    let process = &thread.process;
    {
        let tree = tree::look();
        let mut state = process.signals.state.lock();
        if state.ending.is_some() || state.exec {
            return Err(Errno::EAGAIN);
        }
        state.exec = process.relations.get(&tree).live > 1;
    }
    // Those that the others make meanwhile come behind them. Who is told makes none any more.
    process.each_thread(|other| {
        if !core::ptr::eq(other, thread) {
            signal::kill_thread(other);
        }
    });
    let alone = process.thread_ended.wait_killable(None, || (process.thread_count() == 1).then_some(()));
    process.signals.state.lock().exec = false;
    if let Err(WaitError::Interrupted | WaitError::TimedOut) = alone {
        return Err(Errno::EINTR);
    }
    if !thread.is_leader() {
        take_lead(thread, process);
    }
    unshare_actions(process);
    Ok(())
}

/// Takes the number of the first thread, which has ended: the process keeps its number.
fn take_lead(thread: &Thread, process: &Arc<Process>) {
    let mut tree = tree::lock();
    // The numbers go from one thread to the other, and are nobody else's in between.
    if let Some(numbers) = &process.numbers {
        numbers.hold();
    }
    let old = process.relations.get_mut(&mut tree).leader.take();
    let by_tracer = old.as_ref().map(|old| ptrace::forget_old_leader(&mut tree, old));
    let registered = old.as_ref().and_then(|old| tree.remove_thread(old));
    if registered.is_some() {
        process.cgroup.remove_task();
    } else if let Some(numbers) = &process.numbers {
        numbers.give_back();
    }
    let own = tree.remove_thread(thread);
    thread.set_tid(process.pid);
    if let Some(own) = &own {
        tree.claim_pid(process.pid);
        tree.insert_thread(own);
    }
    let relations = process.relations.get_mut(&mut tree);
    relations.leader = own;
    drop(tree);
    if let Some(old) = &old {
        sched::wait_for_end(old);
        old.set_charge(None);
    }
    drop(by_tracer);
    drop(registered);
    drop(old);
    sched::reap();
}

/// Another process may share the actions through clone(CLONE_SIGHAND): exec must not change them for it.
fn unshare_actions(process: &Process) {
    let actions = process.actions.lock().clone();
    // The process's own and this one: nobody is left in it who could change that.
    if Arc::strong_count(&actions) > 2 {
        // Without the lock, under which nothing is allocated.
        let copy: Arc<Actions> = actions.duplicate();
        let old = core::mem::replace(&mut *process.actions.lock(), copy);
        drop(old);
    }
    process.has_execed.store(true, Ordering::SeqCst);
    process.membarrier.store(0, Ordering::SeqCst);
}
