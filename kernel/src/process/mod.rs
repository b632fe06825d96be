//! Processes and threads: their start, their end, and who they are.

mod account;
pub mod accounts;
pub(crate) mod broadcast;
mod charges;
mod credentials;
mod de_thread;
mod exec;
pub(crate) mod exit;
mod first;
mod fork;
pub mod futex;
mod groups;
pub mod limits;
mod list;
pub mod oom;
pub(crate) mod orphans;
pub mod pidfd;
#[allow(clippy::module_inception)] // `Process` is what the folder is about.
mod process;
pub mod ptrace;
mod rest;
pub(crate) mod rseq;
mod spawn;
mod subreaper;
mod thread;
pub(crate) mod tree;
mod user;
pub(crate) mod user_dispatch;
mod wait;
pub mod watch;

pub use account::{Usage, all_faults, context_switches, cpu_usage, load_averages, note_switch, tick};
pub use charges::{Charge, Charges};
pub use credentials::*;
pub use exec::{execute, execve};
pub use first::first_process;
pub use fork::{CloneArgs, clone};
pub use groups::{
    Target, check_may_signal, getpgid, getsid, kill, kill_group, kill_own_group, session, session_of_group,
    setpgid, setsid,
};
pub use list::{
    find, find_global, find_thread, find_thread_global, forks, process_after, processes, processes_at_once,
    threads_of,
};
pub use orphans::is_group_orphaned;
pub use process::{Process, WaitStatus};
pub use spawn::{new_idle_thread, new_kernel_thread, spawn_init};
pub use thread::{Current, Thread, current, is_killed, try_current};
pub use tree::{PID_MAX, Session, thread_count};
pub use user::{Due, exit_to_user, is_restart_code, switch_address_space};
pub use wait::{IdKind, WaitFlags, Waited, wait};

use core::sync::atomic::{AtomicUsize, Ordering};

/// Number of a thread, process, group or session.
pub type Pid = u32;

/// What the last exception of a thread was: signal frames say it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trap {
    pub vector: u8,
    pub error: u64,
    pub address: u64,
}

static MAX_THREADS: AtomicUsize = AtomicUsize::new(0);

/// Most threads that may exist at once.
pub fn max_threads() -> usize {
    match MAX_THREADS.load(Ordering::SeqCst) {
        0 => limits::max_threads_for_memory(),
        set => set,
    }
}

/// /proc/sys/kernel/threads-max.
pub fn set_max_threads(threads: usize) {
    MAX_THREADS.store(threads.clamp(20, PID_MAX as usize - 1), Ordering::SeqCst);
}
