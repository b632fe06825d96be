//! What a process wants to happen for each signal: sigaction(2).

use alloc::sync::Arc;

use super::{DefaultAction, SIGNAL_MAX, default_of};
use crate::sync::{IrqLock, Mutex, MutexGuard};

/// The default action.
pub const SIG_DFL: u64 = 0;
/// Ignore the signal.
pub const SIG_IGN: u64 = 1;

/// Flags of sigaction(2).
#[allow(missing_docs)]
pub mod flags {
    pub const SA_NOCLDSTOP: u64 = 1;
    pub const SA_NOCLDWAIT: u64 = 2;
    pub const SA_SIGINFO: u64 = 4;
    pub const SA_RESTORER: u64 = 0x0400_0000;
    pub const SA_ONSTACK: u64 = 0x0800_0000;
    pub const SA_RESTART: u64 = 0x1000_0000;
    pub const SA_NODEFER: u64 = 0x4000_0000;
    pub const SA_RESETHAND: u64 = 0x8000_0000;
    /// Those that exist; the kernel clears others, so that programs can find out.
    pub const KNOWN: u64 = SA_NOCLDSTOP
        | SA_NOCLDWAIT
        | SA_SIGINFO
        | SA_RESTORER
        | SA_ONSTACK
        | SA_RESTART
        | SA_NODEFER
        | SA_RESETHAND;
}

/// One action, as rt_sigaction(2) passes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Action {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

impl Action {
    /// Whether the signal is thrown away at once, by wish or by default. What SIGCONT does by default, it does when it is sent.
    pub fn ignores(&self, signal: u32) -> bool {
        let by_default = || matches!(default_of(signal), DefaultAction::Ignore | DefaultAction::Continue);
        self.handler == SIG_IGN || self.handler == SIG_DFL && by_default()
    }
}

/// The actions of a process, or of several that clone(CLONE_SIGHAND) made.
pub struct Actions {
    table: IrqLock<[Action; SIGNAL_MAX as usize]>,
    /// Held by sigaction(2) until what it made ignored is thrown away: a signal that was sent after the next change stays.
    changes: Mutex<()>,
}

impl Actions {
    /// All default.
    pub fn new() -> Arc<Self> {
        Self::of([Action::default(); SIGNAL_MAX as usize])
    }

    /// A copy for a child process.
    pub fn duplicate(&self) -> Arc<Self> {
        let table = *self.table.lock();
        Self::of(table)
    }

    fn of(table: [Action; SIGNAL_MAX as usize]) -> Arc<Self> {
        Arc::new(Self { table: IrqLock::new(table), changes: Mutex::new(()) })
    }

    /// For the time of a change by sigaction(2).
    pub fn change(&self) -> MutexGuard<'_, ()> {
        self.changes.lock()
    }

    /// The action for a signal.
    pub fn get(&self, signal: u32) -> Action {
        self.table.lock()[signal as usize - 1]
    }

    /// Changes it, returns the old.
    pub fn set(&self, signal: u32, action: Action) -> Action {
        core::mem::replace(&mut self.table.lock()[signal as usize - 1], action)
    }

    /// execve(2): caught signals return to their default, ignored ones stay ignored.
    pub fn reset_for_exec(&self) {
        for action in self.table.lock().iter_mut() {
            let handler = if action.handler == SIG_IGN { SIG_IGN } else { SIG_DFL };
            *action = Action { handler, ..Action::default() };
        }
    }

    /// clone(CLONE_CLEAR_SIGHAND): all that are not ignored become default.
    pub fn clear_handlers(&self) {
        self.reset_for_exec();
    }
}
