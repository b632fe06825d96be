//! ptrace(2): a thread watches and changes another, its tracee.
//!
//! # States of a tracee
//!
//! ```text
//!  untraced --attach--> running --stop--> stopped --listen--> listening
//!     ^                   ^                |   ^                  |
//!     |                   +----resume------+   +------trap--------+
//!     +---------------detach, or the tracer ends
//! ```
//!
//! Only the tracee itself enters a stop, at points where its user registers are all in its frame: on its way to a signal (`deliver`), at
//! system calls, at clone, exec and exit (`hooks`). It copies its registers to a place of its own, announces the stop, tells its tracer
//! and sleeps. While the stop lasts the tracer reads and writes the copy, never the tracee's stack or a CPU's registers. So a kill
//! that wakes the tracee in the middle of a request harms nobody. When the tracee goes on it loads what the copy says.
//!
//! # Locks
//!
//! The tree's lock guards [`State`], the lists of tracees and the beginning and end of stops. The copy of the registers has a lock of its
//! own, inside of no other.

mod hooks;
mod link;
mod reap;
mod registers;
mod stop;
mod watched;

pub use hooks::{
    before_handler, call_begins, call_ends, clone_event, exec_event, exit_event, group_stop, handler_entered,
    own_frame, seccomp_event, signal_stop, step_is_void, vfork_done,
};
pub(crate) use link::is_of_parent;
pub use link::{
    attach, check_options, detach, forget_old_leader, is_tracee_of_current, prepare, set_options, trace_me,
    tracer_ends,
};
pub(super) use link::{inherit, unlink_reaped};
pub(super) use reap::{finish, is_held, keep_thread, leader_ended, look};
pub use registers::{NT_PRFPREG, NT_PRSTATUS, NT_X86_XSTATE, Registers, UserRegs, read_word, write_word};
pub(crate) use stop::trap_of_group;
pub use stop::{Resume, Stop, Stopped, interrupt, listen, resume, set_info, stopped};
pub use watched::debug_code;

use core::sync::atomic::{AtomicU32, Ordering};

use alloc::boxed::Box;
use alloc::sync::Arc;

use intrusive_collections::LinkedList;

use super::tree::{self, OfTracer, TreeCell};
use super::{Thread, WaitStatus};
use crate::namespaces::View;
use crate::signal::SigInfo;
use crate::sync::SpinLock;

/// `PTRACE_O_*`.
pub mod options {
    pub use linux_raw_sys::ptrace::{
        PTRACE_O_EXITKILL as EXITKILL, PTRACE_O_MASK as ALL, PTRACE_O_SUSPEND_SECCOMP as SUSPEND_SECCOMP,
        PTRACE_O_TRACESYSGOOD as TRACESYSGOOD,
    };
}

/// `PTRACE_EVENT_*`; the option of an event is `1 << event`.
pub mod events {
    pub use linux_raw_sys::ptrace::{
        PTRACE_EVENT_CLONE as CLONE, PTRACE_EVENT_EXEC as EXEC, PTRACE_EVENT_EXIT as EXIT,
        PTRACE_EVENT_FORK as FORK, PTRACE_EVENT_SECCOMP as SECCOMP, PTRACE_EVENT_STOP as STOP,
        PTRACE_EVENT_VFORK as VFORK, PTRACE_EVENT_VFORK_DONE as VFORK_DONE,
    };
}

/// Somebody traces the thread.
const TRACED: u32 = 1;
/// It is in a stop.
const STOPPED: u32 = 2;
/// It stops at the beginning and at the end of system calls.
const CALLS: u32 = 4;
/// It stops at the beginning of system calls, and does not make them.
const EMULATED: u32 = 8;
/// It stops after one instruction.
const STEP: u32 = 16;
/// The trap flag in its registers is its tracer's, not its own.
const FORCED_TRAP: u32 = 32;
/// Its seccomp filters are not asked.
const WITHOUT_SECCOMP: u32 = 64;
/// It is in a stop in which only its process's stops and PTRACE_INTERRUPT concern it.
const LISTENING: u32 = 128;
/// It has seccomp filters, or the strict mode. No tracer's: it is here so that each system call tests one word.
const FILTERED: u32 = 256;
/// Its system calls are logged. No tracer's either.
const LOGGED: u32 = 512;
/// Its system calls may be dispatched to a handler of its own: prctl(PR_SET_SYSCALL_USER_DISPATCH).
const DISPATCHED: u32 = 1024;

/// A thread's part.
pub struct Tracee {
    /// Changed under the tree's lock or by the thread itself; looked at without.
    flags: AtomicU32,
    state: TreeCell<State>,
    /// Made when the thread is first traced. What it holds counts during a stop.
    registers: SpinLock<Option<Box<Registers>>>,
}

/// What the tree's lock guards.
#[derive(Default)]
struct State {
    tracer: Option<Arc<Thread>>,
    /// Attached by PTRACE_SEIZE.
    seized: bool,
    options: u32,
    /// The code of the stop that the thread is in or was in last: a signal, and an event 8 bits above.
    stop: Option<u32>,
    /// The stop, or the end, was not waited for yet.
    news: bool,
    /// The signal with which the thread goes on.
    answer: u32,
    /// PTRACE_GETEVENTMSG.
    message: u64,
    info: Option<SigInfo>,
    /// The thread has ended, and stays for its tracer to wait for.
    ended: Option<WaitStatus>,
    /// Threads that this one traces. They are on the list of its process, too.
    tracees: LinkedList<OfTracer>,
    /// The thread is on its way out: it traces nobody any more.
    traces_no_more: bool,
}

impl Tracee {
    /// Traced by nobody.
    pub const fn new(logged: bool) -> Self {
        Self {
            flags: AtomicU32::new(if logged { LOGGED } else { 0 }),
            state: TreeCell::new(State {
                tracer: None,
                seized: false,
                options: 0,
                stop: None,
                news: false,
                answer: 0,
                message: 0,
                info: None,
                ended: None,
                tracees: LinkedList::new(OfTracer::NEW),
                traces_no_more: false,
            }),
            registers: SpinLock::new(None),
        }
    }

    fn has(&self, flags: u32) -> bool {
        self.flags.load(Ordering::SeqCst) & flags != 0
    }

    fn set(&self, flags: u32) {
        self.flags.fetch_or(flags, Ordering::SeqCst);
    }

    /// Returns those that were set.
    fn clear(&self, flags: u32) -> u32 {
        self.flags.fetch_and(!flags, Ordering::SeqCst) & flags
    }

    /// Does somebody trace the thread? The answer may be old by the time the caller looks at it.
    #[inline]
    pub fn is_traced(&self) -> bool {
        self.has(TRACED)
    }

    /// Is it in a stop?
    pub fn is_stopped(&self) -> bool {
        self.has(STOPPED)
    }

    /// Is there anything to do at system calls beside them: for a tracer, for filters, for the log?
    #[inline]
    pub fn minds_calls(&self) -> bool {
        self.has(CALLS | EMULATED | STEP | FILTERED | LOGGED | DISPATCHED)
    }

    /// Is there something to do at system calls for a tracer?
    pub fn watches_calls(&self) -> bool {
        self.has(CALLS | EMULATED | STEP)
    }

    /// The thread has filters from now on. They are in place.
    pub fn set_filtered(&self) {
        self.set(FILTERED);
    }

    /// Turns the dispatch of its system calls on or off.
    pub(super) fn set_dispatched(&self, on: bool) {
        if on {
            self.set(DISPATCHED);
        } else {
            self.clear(DISPATCHED);
        }
    }

    /// Are its system calls dispatched?
    pub(super) fn is_dispatched(&self) -> bool {
        self.has(DISPATCHED)
    }

    /// PTRACE_O_SUSPEND_SECCOMP.
    pub fn suspends_seccomp(&self) -> bool {
        self.has(WITHOUT_SECCOMP)
    }
}

impl Thread {
    /// The number of the process that traces this thread, 0 for none.
    pub fn tracer_pid(&self) -> super::Pid {
        self.trace
            .state
            .get(&tree::look())
            .tracer
            .as_ref()
            .map_or(0, |tracer| View::current().process(&tracer.process))
    }
}
