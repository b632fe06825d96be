//! When memory is short: the largest process is killed, so that the others go on.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::sync::{Arc, Weak};

use super::{Process, WaitStatus, tree};
use crate::memory;
use crate::mm::AddressSpace;
use crate::sched;
use crate::sync::{Mutex, WaitError, WaitQueue, grace};
use crate::{process, signal, time};

/// The memory of the process that was killed last. One decision at a time: the second in need waits, and then most likely finds memory.
static VICTIM: Mutex<Option<Weak<()>>> = Mutex::new(None);
/// How many victims have given their memory back.
static RETURNED: AtomicU64 = AtomicU64::new(0);
/// Wakes those who wait for an address space to be gone.
static GONE: WaitQueue = WaitQueue::new();

/// How long a victim may take to give its memory back before another one is chosen, in nanoseconds. It takes a moment for each of its pages.
const PATIENCE: u64 = 10 * time::SECOND;

/// Part of an address space, dropped after all else of it: then its memory is back.
pub struct Remains(Option<Arc<()>>);

impl Remains {
    pub fn new() -> Self {
        Self(Some(Arc::new(())))
    }

    fn watch(&self) -> Weak<()> {
        self.0.as_ref().map(Arc::downgrade).unwrap_or_default()
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        self.0 = None;
        GONE.wake_all();
    }
}

/// To be taken before memory is asked for, and handed to [`out_of_memory`] when there was none.
pub fn moment() -> Moment {
    Moment(RETURNED.load(Ordering::SeqCst))
}

/// A point in the history of victims.
pub struct Moment(u64);

/// Makes room: kills the process that uses most memory, `oom_score_adj` considered, and waits until it has let go. The caller, who had no
/// success since `asked`, then tries again, or dies itself: a pending kill ends the wait. Called without locks that an ending process needs.
pub fn out_of_memory(asked: Moment) {
    let current = process::current();
    if current.kill_pending() {
        return;
    }
    // Page tables that are on their way out may be all that is missing.
    if grace::collect() {
        return;
    }
    let memory = {
        let mut last = VICTIM.lock();
        match &*last {
            Some(memory) if memory.strong_count() > 0 => memory.clone(),
            gone => {
                if gone.is_some() {
                    RETURNED.fetch_add(1, Ordering::SeqCst);
                    *last = None;
                }
                // A victim's memory came back after the caller had asked: to kill another one would be one too many.
                if RETURNED.load(Ordering::SeqCst) != asked.0 {
                    return;
                }
                let Some((victim, mm)) = choose() else { panic!("Out of memory and no killable processes") };
                let memory = mm.remains().watch();
                *last = Some(memory.clone());
                kill(&victim, &mm);
                memory
            }
        }
    };
    // The victim itself does not wait: it is being killed.
    let gone = || (memory.strong_count() == 0).then_some(());
    if GONE.wait_killable(Some(time::now() + PATIENCE), gone) == Err(WaitError::TimedOut) {
        // It is stuck; the next round may choose another, but not the same.
        let mut last = VICTIM.lock();
        if last.as_ref().is_some_and(|last| last.ptr_eq(&memory)) {
            *last = None;
        }
    }
    sched::yield_now();
}

/// How bad a process is: pages that its end gives back, and a thousandth of all memory for each point of `oom_score_adj`. `None` if it must not be
/// killed. And its memory.
fn badness(process: &Process) -> Option<(i64, Arc<AddressSpace>)> {
    let adjust = i64::from(process.oom_score_adj.load(Ordering::SeqCst));
    if process.pid <= 1 || adjust == -1000 {
        return None;
    }
    let mm = process.mm()?;
    let total = (memory::stats().total / memory::PAGE_SIZE as u64) as i64;
    let resident = mm.resident();
    let pages = (resident.total() + mm.table_bytes() / memory::PAGE_SIZE as u64) as i64;
    Some((pages + adjust * total / 1000, mm))
}

fn choose() -> Option<(Arc<Process>, Arc<AddressSpace>)> {
    process::processes()
        .filter(|process| process.signals.state.lock().ending.is_none())
        .filter_map(|process| badness(&process).map(|(points, mm)| (points, process, mm)))
        .max_by_key(|(points, ..)| *points)
        .map(|(_, process, mm)| (process, mm))
}

fn kill(victim: &Arc<Process>, mm: &Arc<AddressSpace>) {
    let comm = victim.comm();
    let name = core::str::from_utf8(&comm).unwrap_or("?").trim_end_matches('\0');
    let resident = mm.resident().total() * 4;
    log::error!(
        "Out of memory: Killed process {} ({name}) rss:{resident}kB oom_score_adj:{}",
        victim.pid,
        victim.oom_score_adj.load(Ordering::SeqCst)
    );
    let status = WaitStatus::Killed { signal: signal::SIGKILL as u8, core: false };
    // Others that use the same memory keep it alive: they go too.
    let uses_it = |process: &Process| process.mm().is_some_and(|other| Arc::ptr_eq(&other, mm));
    for process in process::processes() {
        if Arc::ptr_eq(&process, victim) || process.pid > 1 && uses_it(&process) {
            let tree = tree::lock();
            signal::end_all(&tree, &process, &mut process.signals.state.lock(), status);
        }
    }
}
