//! Looking processes up, counting them, and showing them.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::accounts::{Counted, Share};
use super::process::THREADS_IN_A_HOLD;
use super::{CAP_SYS_ADMIN, CAP_SYS_RESOURCE, Credentials, Pid, Process, Thread, limits, tree};
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::memory::{self, Pressure};
use crate::namespaces::View;
use crate::sched;
use crate::sync::grace;

/// The process with this number in the current process's PID namespace, alive or a zombie.
pub fn find(pid: Pid) -> Option<Arc<Process>> {
    find_global(View::current().global(pid)?)
}

/// The thread with this number there.
pub fn find_thread(tid: Pid) -> Option<Arc<Thread>> {
    find_thread_global(View::current().global(tid)?)
}

/// The process that the kernel itself knows by this number.
pub fn find_global(pid: Pid) -> Option<Arc<Process>> {
    tree::look().process(pid)
}

/// The thread that the kernel itself knows by this number.
pub fn find_thread_global(tid: Pid) -> Option<Arc<Thread>> {
    tree::look().thread(tid)
}

/// The process with the lowest number above `pid`: one step of a walk over all.
pub fn process_after(pid: Pid) -> Option<Arc<Process>> {
    tree::look().process_after(pid)
}

/// All processes in the order of their numbers. The lock is held for each step only, and others may run in between; who starts meanwhile may
/// be missed.
pub fn processes() -> impl Iterator<Item = Arc<Process>> {
    processes_at_once().inspect(|_| sched::cond_resched())
}

/// The same without giving way: that is for the caller to do.
pub fn processes_at_once() -> impl Iterator<Item = Arc<Process>> {
    let mut last = 0;
    core::iter::from_fn(move || {
        let process = process_after(last)?;
        last = process.pid;
        Some(process)
    })
}

/// The live threads of a process, in the order in which they came. The lock is held for a few at a time.
pub fn threads_of(process: &Process) -> Result<Vec<Arc<Thread>>> {
    let mut threads: Vec<Arc<Thread>> = fallible::with_capacity(process.thread_count())?;
    loop {
        fallible::reserve(&mut threads, THREADS_IN_A_HOLD)?;
        let last = threads.last().map_or(0, |thread| thread.order());
        let before = threads.len();
        let tree = tree::look();
        threads.extend(process.threads_after(&tree, last).take(THREADS_IN_A_HOLD).map(Thread::to_arc));
        drop(tree);
        if threads.len() < before + THREADS_IN_A_HOLD {
            return Ok(threads);
        }
        sched::cond_resched();
    }
}

/// Threads and processes made since boot.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// Whether RLIMIT_NPROC does not bind this user.
pub(super) fn exempt(credentials: &Credentials) -> bool {
    credentials.uid == 0 || credentials.capable(CAP_SYS_RESOURCE) || credentials.capable(CAP_SYS_ADMIN)
}

/// Counts one thread more for the user; `EAGAIN` beyond RLIMIT_NPROC or the machine's most threads, `ENOMEM` when memory is short.
pub(super) fn charge(credentials: &Credentials, parent: &Process) -> Result<Option<Share>> {
    // Two that have ended for each one that comes: on CPUs that are never idle nobody else frees them, and until then they count.
    sched::reap_some(2);
    if tree::thread_count() >= super::max_threads() {
        return Err(Errno::EAGAIN);
    }
    let critical = || memory::pressure() == Pressure::Critical;
    // What waits for its grace period may be enough.
    if critical() && (!grace::collect() || critical()) {
        return Err(Errno::ENOMEM);
    }
    let (charge, count) = Share::take(credentials.uid, Counted::Threads);
    if count as u64 > parent.limit(limits::NPROC) && !exempt(credentials) {
        return Err(Errno::EAGAIN);
    }
    Ok(Some(charge))
}

impl Thread {
    /// After a change of its real user: the thread counts for the new one.
    pub(crate) fn recharge(&self) {
        // As Linux: before it counts itself. Relaxed: a flag of its own.
        self.process.over_process_limit.store(super::fork::has_too_many(self), Ordering::Relaxed);
        self.set_charge(Some(Share::take(self.credentials().uid, Counted::Threads).0));
    }
}

pub(super) fn note_fork() {
    // Relaxed: a statistic.
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Threads and processes made since boot: `processes` in /proc/stat.
pub fn forks() -> u64 {
    // Relaxed: a statistic.
    FORKS.load(Ordering::Relaxed)
}

/// Writes all threads to the log, with what they do and where they wait: for a system that seems to hang.
pub fn dump() {
    let now = crate::time::now();
    log::error!("threads, {} runnable:", crate::sched::runnable());
    for process in processes() {
        let Ok(threads) = threads_of(&process) else { continue };
        if threads.is_empty() {
            log::error!("{:6} {:16} Z {:?}", process.pid, name(&process.comm()), process.wait_status());
        }
        for thread in threads {
            let on = crate::sched::running_on(&thread);
            let state = thread.state();
            match thread.sched.wait_place() {
                Some((place, since)) => log::error!(
                    "{:6} {:16} {state} cpu {} waits for {} ms at {place} in {}",
                    thread.tid(),
                    name(&thread.comm()),
                    thread.sched.cpu(),
                    now.saturating_sub(since) / 1_000_000,
                    thread.syscall_name(),
                ),
                None => log::error!(
                    "{:6} {:16} {state} cpu {} {} in {}",
                    thread.tid(),
                    name(&thread.comm()),
                    thread.sched.cpu(),
                    if on.is_some() { "runs" } else { "queued" },
                    thread.syscall_name(),
                ),
            }
        }
    }
}

fn name(comm: &[u8; 16]) -> &str {
    let length = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    core::str::from_utf8(&comm[..length]).unwrap_or("?")
}
