//! When memory is short: the largest process is killed, so that the others go on.

use core::sync::atomic::{AtomicU32, Ordering};

use alloc::sync::Arc;

use super::{Pid, Process, WaitStatus, tree};
use crate::memory;
use crate::sched;
use crate::sync::{Mutex, grace};
use crate::{process, signal, time};

/// One decision at a time: the second in need waits and then finds memory.
static DECISION: Mutex<()> = Mutex::new(());
/// The process that was killed last and may not have given its memory back yet; 0 for none.
static VICTIM: AtomicU32 = AtomicU32::new(0);

/// How long a victim may take to give its memory back before another one is chosen, in nanoseconds.
const PATIENCE: u64 = 2 * time::SECOND;

/// Makes room: kills the process that uses most memory, `oom_score_adj` considered, and waits until it has let go. The caller
/// then tries again, or dies itself: a pending kill ends the wait. Called without locks that an ending process needs.
pub fn out_of_memory() {
    let current = process::current();
    if current.kill_pending() {
        return;
    }
    // Page tables that are on their way out may be all that is missing.
    if grace::collect() {
        return;
    }
    let victim = {
        let _decision = DECISION.lock();
        match still_ending() {
            Some(victim) => Some(victim),
            None => choose().inspect(|(victim, _)| kill(victim)).map(|(victim, _)| victim),
        }
    };
    let Some(victim) = victim else {
        panic!("Out of memory and no killable processes");
    };
    if Arc::ptr_eq(&victim, &current.process) {
        return;
    }
    // An ended process has let go of its memory, before it tells anybody.
    let deadline = time::now() + PATIENCE;
    let _ = victim.ended.wait_killable(Some(deadline), || victim.mm().is_none().then_some(()));
    if victim.mm().is_some() {
        // It is stuck or slow; the next round may choose another.
        VICTIM.store(0, Ordering::SeqCst);
    }
    sched::yield_now();
}

/// The victim of an earlier decision, as long as it has memory.
fn still_ending() -> Option<Arc<Process>> {
    let pid: Pid = VICTIM.load(Ordering::SeqCst);
    let victim = (pid != 0).then(|| process::find(pid)).flatten()?;
    let ending = victim.signals.state.lock().ending.is_some();
    (ending && victim.mm().is_some()).then_some(victim)
}

/// How bad a process is: pages that its end gives back, and a thousandth of all memory for each point of `oom_score_adj`. `None` if it must not be killed.
pub fn badness(process: &Process) -> Option<i64> {
    let adjust = i64::from(process.oom_score_adj.load(Ordering::SeqCst));
    if process.pid <= 1 || adjust == -1000 {
        return None;
    }
    let mm = process.mm()?;
    let total = (memory::stats().total / memory::PAGE_SIZE as u64) as i64;
    let resident = mm.resident();
    let pages = (resident.total() + mm.table_bytes() / memory::PAGE_SIZE as u64) as i64;
    Some(pages + adjust * total / 1000)
}

fn choose() -> Option<(Arc<Process>, i64)> {
    process::processes()
        .filter(|process| process.signals.state.lock().ending.is_none())
        .filter_map(|process| badness(&process).map(|points| (process, points)))
        .max_by_key(|(_, points)| *points)
}

fn kill(victim: &Arc<Process>) {
    let comm = victim.comm();
    let name = core::str::from_utf8(&comm).unwrap_or("?").trim_end_matches('\0');
    let resident = victim.mm().map_or(0, |mm| mm.resident().total() * 4);
    log::error!(
        "Out of memory: Killed process {} ({name}) rss:{resident}kB oom_score_adj:{}",
        victim.pid,
        victim.oom_score_adj.load(Ordering::SeqCst)
    );
    VICTIM.store(victim.pid, Ordering::SeqCst);
    let tree = tree::lock();
    let mut state = victim.signals.state.lock();
    let status = WaitStatus::Killed { signal: signal::SIGKILL as u8, core: false };
    signal::end_all(&tree, victim, &mut state, status);
    drop(state);
    // Others that use the same memory keep it alive: they go too.
    if let Some(mm) = victim.mm() {
        drop(tree);
        for process in process::processes() {
            let shares = process.pid > 1 && process.mm().is_some_and(|other| Arc::ptr_eq(&other, &mm));
            if shares && !Arc::ptr_eq(&process, victim) {
                let tree = tree::lock();
                signal::end_all(&tree, &process, &mut process.signals.state.lock(), status);
            }
        }
    }
}
