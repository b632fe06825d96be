//! Signals: what is pending, who is told, and what happens then.
//!
//! A signal is put on a pending set, of a thread or shared by a process (`send`), and the thread that is to take it is woken or interrupted.
//! On its way to user mode a thread takes pending signals one by one (`deliver`): it dies, stops, goes on, or enters a handler through
//! a frame on the user's stack (`frame`), which rt_sigreturn(2) undoes. What concerns all threads of a process is told them a few at a time (`tell`).

mod action;
mod deliver;
mod exception;
mod frame;
pub(crate) mod group;
mod info;
mod pending;
mod send;
pub(crate) mod spares;
mod state;
mod stop;
mod tell;

pub use action::{Action, Actions, SIG_DFL, SIG_IGN, flags};
pub use deliver::{deliver, is_restart, take_waited};
pub use exception::{exception, force_fault, force_poison, force_signal};
pub use frame::{AltStack, sigreturn};
pub use group::send_group;
pub use info::{SigInfo, UserSigInfo, codes};
pub use pending::{Pending, Place, Queued};
pub use send::{
    Sent, caused_by, discard, is_ignored_or_blocked, prepare, queue_prepared, queue_process, queue_thread,
    send_of_timer, send_process, send_process_locked, send_thread,
};
pub(crate) use send::{add_first_stop, ask_freeze, end_all, kick, kill_thread, thaw};
pub use spares::Spares;
pub use state::{ProcessSignals, ThreadSignals};
pub use stop::has_stopped;
pub(crate) use stop::{child_info, join_stop, leave_stop};
/// Starts the kernel's threads that send signals.
pub fn init() {
    tell::init();
    group::init();
}

use crate::errno::{Errno, Result};

/// A set of signals: bit n - 1 for signal n.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct SigSet(pub u64);

impl SigSet {
    /// No signal.
    pub const EMPTY: Self = Self(0);
    /// SIGKILL and SIGSTOP, which cannot be blocked, caught or ignored.
    pub const UNBLOCKABLE: Self = Self::of(&[SIGKILL, SIGSTOP]);
    /// The signals that stop a process by default.
    pub const STOPPING: Self = Self::of(&[SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU]);
    /// The signals that an instruction raises: delivered before all others.
    pub const SYNCHRONOUS: Self = Self::of(&[SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS]);

    /// The set of the given signals.
    pub const fn of(signals: &[u32]) -> Self {
        let mut bits = 0;
        let mut index = 0;
        while index < signals.len() {
            bits |= 1 << (signals[index] - 1);
            index += 1;
        }
        Self(bits)
    }

    pub const fn contains(self, signal: u32) -> bool {
        self.0 >> (signal - 1) & 1 != 0
    }

    pub const fn with(self, signal: u32) -> Self {
        Self(self.0 | 1 << (signal - 1))
    }

    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

macro_rules! signals {
    ($($name:ident = $number:literal),* $(,)?) => {
        // The whole table, whether this kernel sends each of them or not.
        $(#[allow(missing_docs, dead_code)] pub const $name: u32 = $number;)*
    };
}
signals!(
    SIGHUP = 1,
    SIGINT = 2,
    SIGQUIT = 3,
    SIGILL = 4,
    SIGTRAP = 5,
    SIGABRT = 6,
    SIGBUS = 7,
    SIGFPE = 8,
    SIGKILL = 9,
    SIGUSR1 = 10,
    SIGSEGV = 11,
    SIGUSR2 = 12,
    SIGPIPE = 13,
    SIGALRM = 14,
    SIGTERM = 15,
    SIGSTKFLT = 16,
    SIGCHLD = 17,
    SIGCONT = 18,
    SIGSTOP = 19,
    SIGTSTP = 20,
    SIGTTIN = 21,
    SIGTTOU = 22,
    SIGURG = 23,
    SIGXCPU = 24,
    SIGXFSZ = 25,
    SIGVTALRM = 26,
    SIGPROF = 27,
    SIGWINCH = 28,
    SIGIO = 29,
    SIGPWR = 30,
    SIGSYS = 31,
);

/// First real-time signal; those below do not queue.
pub const SIGRTMIN: u32 = 32;
/// The last signal.
pub const SIGNAL_MAX: u32 = 64;

/// What a signal does to a process that has not said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultAction {
    Terminate,
    Core,
    Ignore,
    Stop,
    Continue,
}

/// The default action: signal(7).
pub const fn default_of(signal: u32) -> DefaultAction {
    match signal {
        SIGCHLD | SIGURG | SIGWINCH => DefaultAction::Ignore,
        SIGCONT => DefaultAction::Continue,
        SIGSTOP | SIGTSTP | SIGTTIN | SIGTTOU => DefaultAction::Stop,
        SIGQUIT | SIGILL | SIGTRAP | SIGABRT | SIGBUS | SIGFPE | SIGSEGV | SIGXCPU | SIGXFSZ | SIGSYS => {
            DefaultAction::Core
        }
        _ => DefaultAction::Terminate,
    }
}

/// A signal number from user space; 0 is `None`: "only check whether I might".
pub fn from_user(number: usize) -> Result<Option<u32>> {
    match number as i32 {
        0 => Ok(None),
        number if (1..=SIGNAL_MAX as i32).contains(&number) => Ok(Some(number as u32)),
        _ => Err(Errno::EINVAL),
    }
}
