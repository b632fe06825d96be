//! Telling the threads of a process what has become of it: a few in one hold of the locks, however many there are.
//!
//! The end of a process, a stop, its continuation and a signal that some thread is to take concern all of its threads. Whoever causes
//! one of these may be an interrupt handler, and holds the tree's lock. So it changes the process's state, tells the first few threads
//! and the current one, and leaves the others to a thread of the kernel's.
//!
//! A thread is told what the state is when its turn comes, whatever the walk began for. A walk that is asked for while one is under way goes
//! to its end and then once around, so that it meets every thread after the change that it was asked for. Threads that come meanwhile are
//! behind all others, and know the state from the beginning ([`super::join_stop`]).
//!
//! Signals that a change removes from the threads' own sets ([`State::catch_up`]) need no walk: each set is put right before it is used.

use alloc::sync::Arc;

use intrusive_collections::{LinkedList, LinkedListAtomicLink, intrusive_adapter};

use super::send::{kick, kill_thread, notify};
use super::state::State;
use super::{SigSet, stop};
use crate::process::{self, Process, Thread, ptrace, tree};
use crate::sched;
use crate::sync::{IrqLock, WaitQueue};

/// Threads that are told in one hold.
pub(super) const MOST: usize = 16;

/// A process's walk through its threads.
#[derive(Default)]
pub(super) struct Walk {
    /// Which thread was told last, in the order in which they came.
    last: u64,
    /// How often the walk comes to the end of the threads yet; 0 for no walk. One that is under way is the worker's.
    rounds: u8,
}

impl Walk {
    pub fn is_under_way(&self) -> bool {
        self.rounds > 0
    }
}

intrusive_adapter!(Listed = Arc<Process>: Process { in_telling => LinkedListAtomicLink });

/// Processes whose walks are under way.
static UNDER_WAY: IrqLock<LinkedList<Listed>> = IrqLock::new(LinkedList::new(Listed::NEW));
static WORKER: WaitQueue = WaitQueue::new();

/// Tells all threads of the process, the current one and the first few at once.
pub(super) fn all(tree: &tree::Look, process: &Arc<Process>, state: &mut State) {
    if state.walk.is_under_way() {
        state.walk.rounds = 2;
    } else {
        state.walk = Walk { last: 0, rounds: 1 };
        step(tree, process, state);
        if state.walk.is_under_way() {
            UNDER_WAY.lock().push_back(process.clone());
            WORKER.wake_one();
        }
    }
    // It does not go back to user mode as if nothing had happened.
    if state.walk.is_under_way()
        && let Some(current) = process::try_current()
        && Arc::ptr_eq(&current.process, process)
    {
        tell(tree, state, &current);
    }
}

/// Tells the next few.
fn step(tree: &tree::Look, process: &Process, state: &mut State) {
    let mut left = MOST;
    for thread in process.threads_after(tree, state.walk.last) {
        if left == 0 {
            return;
        }
        left -= 1;
        state.walk.last = thread.order();
        tell(tree, state, thread);
    }
    state.walk.last = 0;
    state.walk.rounds -= 1;
    if !state.walk.is_under_way() {
        // Nobody takes what is left now: who unblocks it looks by itself.
        state.untold = SigSet::EMPTY;
    }
}

fn tell(tree: &tree::Look, state: &mut State, thread: &Thread) {
    if state.ending.is_some() {
        kill_thread(thread);
        return;
    }
    if state.shows_turn_to(&thread.signals) {
        if state.stop.is_some() {
            state.ask_stop(&thread.signals);
            ptrace::trap_of_group(tree, thread);
            let thread = thread.to_arc();
            // One that has not left its last stop yet takes part in this one, too.
            if !sched::wake_for_signal(&thread, false) && !sched::wake_stopped(&thread) {
                kick(&thread);
            }
        } else {
            state.take_stop(&thread.signals);
            thread.signals.take_stop_again();
            sched::wake_stopped(&thread.to_arc());
            ptrace::trap_of_group(tree, thread);
        }
    }
    let mut left = state.untold;
    while !left.is_empty() {
        let signal = left.0.trailing_zeros() + 1;
        left = left.without(SigSet::of(&[signal]));
        if thread.signals.unblocks(signal) {
            state.untold = state.untold.without(SigSet::of(&[signal]));
            notify(&thread.to_arc());
        }
    }
}

/// One step of a process's walk. False when it is over.
fn go_on(process: &Arc<Process>) -> bool {
    // The stop may be complete by this.
    let mut tree = tree::lock_to_send(1);
    let (complete, more) = {
        let mut state = process.signals.state.lock();
        step(&tree, process, &mut state);
        (state.complete_stop(), state.walk.is_under_way())
    };
    let last = process.threads_locked(&tree).next().map(Thread::to_arc);
    if let (Some(signal), Some(last)) = (complete, &last) {
        stop::tell_of_stop(&mut tree, process, last, signal);
    }
    drop(tree);
    drop(last);
    more
}

/// Starts the thread that tells threads.
pub fn init() {
    sched::spawn_kernel_thread("signals", || {
        loop {
            let process = WORKER.wait_until(|| UNDER_WAY.lock().pop_front());
            if go_on(&process) {
                UNDER_WAY.lock().push_back(process);
            } else {
                drop(process);
            }
            sched::cond_resched();
        }
    });
}
