//! When memory is short: the largest process is killed, so that the others go on.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::sync::{Arc, Weak};

use smallvec::SmallVec;

use super::{Process, Thread, WaitStatus, tree};
use crate::arch::percpu;
use crate::fs::FdTable;
use crate::memory::node::NodeMask;
use crate::memory::stack::STACK_SIZE;
use crate::memory::{self, reserve};
use crate::mm::{AddressSpace, mshare};
use crate::sched::{self, Sleep};
use crate::sync::{Mutex, WaitError, WaitQueue, grace};
use crate::{process, signal, time};

/// The memory of the process that was killed last. One decision at a time: the second in need waits, and then most
/// likely finds memory.
static VICTIM: Mutex<Option<Weak<()>>> = Mutex::new(None);
/// How many victims have given their memory back.
static RETURNED: AtomicU64 = AtomicU64::new(0);
/// Wakes those who wait for an address space to be gone.
static GONE: WaitQueue = WaitQueue::new();

/// How long a victim may take to give its memory back before another one is chosen, in nanoseconds. It takes a moment
/// for each of its pages.
const PATIENCE: u64 = 10 * time::SECOND;
/// Between two looks whether promised memory is free again, in nanoseconds.
const NAP: u64 = 1_000_000;

/// Part of an address space, dropped after all else of it, and held by the threads that end with it: then its memory is
/// back.
pub struct Remains(Option<Arc<()>>);

impl Remains {
    pub fn new() -> Self {
        Self(Some(Arc::new(())))
    }

    /// Makes whoever waits for the memory wait for the drop of this, too: a process at its end has more to give back
    /// than its address space.
    pub fn hold(&self) -> Self {
        Self(self.0.clone())
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

/// What came of a search for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Try again: memory has come back, or the caller is to die.
    Again,
    /// As before, and a victim did not end in time: what it waits for may be the caller's.
    Stuck,
    /// Nothing can be had. Only the first process is told so: there is nobody else.
    Nothing,
}

/// Makes room: kills the process that uses most memory, `oom_score_adj` considered, and waits until it has let go. The
/// caller, who had no success since `asked`, then tries again, or dies itself: a pending kill ends the wait. Who holds a
/// lock that an ending process may need gives it up when a victim is stuck: another victim would wait for it as well.
///
/// When nobody is left who may be killed, the caller is: it cannot go on without memory. For the first process those go
/// that were excepted (`oom_score_adj` -1000).
///
/// Where only some memory nodes are `full`, from which alone the caller wants its pages, the others who may be killed are those who have
/// pages there, and these are what counts.
pub fn out_of_memory(asked: Moment, full: NodeMask) -> Found {
    let current = process::current();
    if current.kill_pending() || current.memory.is_ending() {
        return Found::Again;
    }
    // What sleeps in here is not made to wait for memory once more.
    let passed = current.memory.set_passes(true);
    // What the caller itself shows through tables of files is known from here on, even if other threads of its change its areas all the time.
    // Who has a lock does not wait for one.
    if percpu::sleeping_locks() == 0
        && let Some(mm) = current.process.mm()
    {
        mm.resident();
    }
    let found = search(&current, asked, full);
    current.memory.set_passes(passed);
    found
}

fn search(current: &Thread, asked: Moment, full: NodeMask) -> Found {
    // Page tables that are on their way out may be all that is missing, or what the heap keeps ready, or the stacks of threads that have ended.
    if sched::reap_some(usize::MAX) || grace::collect() || reserve::give_up_spares() {
        return Found::Again;
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
                    return Found::Again;
                }
                // The walks give way to threads of real-time priority alone. All who need memory wait for them, and among thousands who want to
                // run the turn of who chooses would come again seconds later.
                current.sched.hurry();
                let chosen = mshare::with_decision(|| choose(current, full));
                if let Some(Victim { process, mm, ending: false }) = &chosen {
                    kill(process, mm);
                }
                current.sched.calm();
                let Some(Victim { mm, .. }) = chosen else { return Found::Nothing };
                let memory = mm.remains().watch();
                *last = Some(memory.clone());
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
        return Found::Stuck;
    }
    sched::yield_now();
    Found::Again
}

/// The entry to the kernel is closed: memory is scarce. Returns when it is not, or when the thread may pass: see
/// [`reserve`].
#[cold]
pub fn make_room() {
    let current = process::current();
    if reserve::passes(&current) || current.memory.set_passes(true) {
        return;
    }
    let mut patience = time::now() + PATIENCE;
    while reserve::is_scarce() && !current.kill_pending() {
        let asked = moment();
        if reserve::only_promised() && time::now() < patience {
            // Memory is there, and kept for threads that hold locks. They come out of the kernel, or fall asleep
            // without a lock.
            let _ = sched::sleep(Sleep::Killable, Some(time::now() + NAP), || false);
            continue;
        }
        patience = time::now() + PATIENCE;
        if out_of_memory(asked, 0) == Found::Nothing {
            // The first process goes on as long as there is any memory at all.
            break;
        }
    }
    current.memory.set_passes(false);
}

/// Whom the killer has found.
struct Victim {
    process: Arc<Process>,
    mm: Arc<AddressSpace>,
    /// It was killed before, and has not let go yet.
    ending: bool,
}

/// All processes. After some of them whoever is due runs: with ten thousand the walk is no stretch of ten million instructions.
fn processes() -> impl Iterator<Item = Arc<Process>> {
    const AT_ONCE: usize = 64;
    process::processes_at_once().enumerate().map(|(number, process)| {
        if number % AT_ONCE == AT_ONCE - 1 {
            sched::cond_resched();
        }
        process
    })
}

/// How bad a process is: pages that its end gives back, and a thousandth of all memory for each point of
/// `oom_score_adj`. And its memory; `None` without.
fn badness(process: &Process) -> Option<(i64, Arc<AddressSpace>)> {
    let (pages, mm) = pages(process, true)?;
    let adjust = i64::from(process.oom_score_adj.load(Ordering::SeqCst));
    let total = (memory::stats().total / memory::PAGE_SIZE as u64) as i64;
    Some((pages as i64 + adjust * total / 1000, mm))
}

/// Whether all that a thread of the process takes is of these nodes. What others have there is not looked for: it may be shown to them a
/// thousand times, and they would die for somebody who may go nowhere else.
fn is_bound_to(process: &Process, nodes: NodeMask) -> bool {
    process.find_thread(|thread| thread.memory_policy.is_bound_to(nodes)).is_some()
}

/// Pages that the end of a process gives back, and its memory; `None` without. Only with `files` it looks at the open files, one after the
/// other: one that is closed meanwhile is released by whoever looks.
pub fn pages(process: &Process, files: bool) -> Option<(u64, Arc<AddressSpace>)> {
    let mm = process.mm()?;
    // First: it finds out what tables of files there are.
    let resident = mm.resident_now().total();
    let kernel = table_memory(&mm) + kernel_memory(process, &mm, files);
    // What it brought into regions may go with it; what others brought there is not its fault, while they live.
    let regions = mm.costs().in_regions();
    Some((resident + (regions + kernel) / memory::PAGE_SIZE as u64, mm))
}

/// Bytes of page tables that go with an address space: its own, and those of the files that it maps, since a file's
/// tables live by its mappings. The latter are counted for each that maps the file, as on Linux.
fn table_memory(mm: &AddressSpace) -> u64 {
    let (costs, stats) = (mm.costs(), memory::stats());
    let of_files = costs.file_tables().min(stats.page_tables + stats.heap);
    mm.table_bytes() + costs.huge_tables().min(stats.page_tables) + of_files
}

/// Bytes of the kernel's own memory that the end of a process gives back, page tables apart: what it can have many of.
/// Takes no lock that somebody who waits for memory holds.
fn kernel_memory(process: &Process, mm: &AddressSpace, files: bool) -> u64 {
    /// A thread: its stack, and what the scheduler and signals keep of it.
    const THREAD: u64 = STACK_SIZE as u64 + 4096;
    let threads = process.thread_count() as u64 * THREAD;
    let files = if files { descriptors(process) } else { 0 };
    threads + mm.costs().heap() + process.charges.bytes() + files
}

/// Bytes that go with the descriptors of a process: its first thread may have ended, and each may have a table for itself.
fn descriptors(process: &Process) -> u64 {
    static SUMS: AtomicU64 = AtomicU64::new(0);
    // Relaxed: only the numbers have to differ.
    let sum = SUMS.fetch_add(1, Ordering::Relaxed) + 1;
    let (mut bytes, mut last) = (0, 0);
    // The first few: most threads have one table, and another sum at the same time does not make it new again.
    let mut seen: SmallVec<[u64; 8]> = SmallVec::new();
    let mut is_new = |table: &FdTable| {
        let known = seen.contains(&table.id());
        if !known && seen.len() < seen.inline_size() {
            seen.push(table.id());
            return true;
        }
        !known && table.is_new_in(sum)
    };
    loop {
        let some = process.some_threads_after(last);
        let Some(thread) = some.last() else { return bytes };
        last = thread.order();
        let tables = some.iter().filter_map(|thread| thread.try_files());
        bytes += tables.filter(|table| is_new(table)).map(|table| table.kernel_bytes()).sum::<u64>();
        drop(some);
        sched::cond_resched();
    }
}

/// The process whose end helps most, where some nodes are `full` of the caller and those that are bound to them; the caller when there is
/// none, or, for the first process, one that is excepted.
fn choose(current: &Thread, full: NodeMask) -> Option<Victim> {
    let may_help = |process: &Arc<Process>| {
        full == 0 || Arc::ptr_eq(process, &current.process) || is_bound_to(process, full)
    };
    let is_ending = |process: &Process| process.signals.state.lock().ending.is_some();
    let worst = |wanted: &dyn Fn(&Process) -> bool| {
        let mut worst: Option<(i64, Victim)> = None;
        for process in processes().filter(|process| process.pid > 1 && may_help(process) && wanted(process)) {
            let Some((points, mm)) = badness(&process) else { continue };
            if worst.as_ref().is_none_or(|(most, _)| points > *most) {
                let ending = is_ending(&process);
                worst = Some((points, Victim { process, mm, ending }));
            }
        }
        worst.map(|(_, victim)| victim)
    };
    let excepted = |process: &Process| process.oom_score_adj.load(Ordering::SeqCst) == -1000;
    worst(&|process| !excepted(process) && !is_ending(process))
        .or_else(|| worst(&|process| is_ending(process) && !was_waited_for(process)))
        .or_else(|| {
            let own = || {
                Some(Victim { process: current.process.clone(), mm: current.process.mm()?, ending: false })
            };
            if current.process.pid > 1 {
                own()
            } else {
                worst(&|process| excepted(process) && !is_ending(process))
            }
        })
}

/// Whether somebody has waited in vain for this process to end; from now on somebody has.
fn was_waited_for(process: &Process) -> bool {
    process.oom_waited.swap(true, Ordering::SeqCst)
}

fn kill(victim: &Arc<Process>, mm: &Arc<AddressSpace>) {
    let comm = victim.comm();
    let name = core::str::from_utf8(&comm).unwrap_or("?").trim_end_matches('\0');
    let resident = mm.resident_now().total() * 4;
    let stats = memory::stats();
    log::error!(
        "Memory: {} kB, free {} kB, anon {} kB, file {} kB, tables {} kB, stacks {} kB, heap {} kB, huge {} kB",
        stats.total >> 10,
        stats.free >> 10,
        stats.anon >> 10,
        stats.file >> 10,
        stats.page_tables >> 10,
        stats.kernel_stacks >> 10,
        stats.heap >> 10,
        stats.huge >> 10
    );
    log::error!(
        "Out of memory: Killed process {} ({name}) rss:{resident}kB pgtables:{}kB kernel:{}kB oom_score_adj:{}",
        victim.pid,
        table_memory(mm) >> 10,
        kernel_memory(victim, mm, true) >> 10,
        victim.oom_score_adj.load(Ordering::SeqCst)
    );
    let status = WaitStatus::Killed { signal: signal::SIGKILL as u8, core: false };
    // Others that use the same memory keep it alive: they go too.
    let uses_it = |process: &Process| process.mm().is_some_and(|other| Arc::ptr_eq(&other, mm));
    for process in processes() {
        if Arc::ptr_eq(&process, victim) || process.pid > 1 && uses_it(&process) {
            // Relaxed: a flag of its own, before the lock that ends what it is in.
            process.oom_killed.store(true, Ordering::Relaxed);
            let tree = tree::look();
            signal::end_all(&tree, &process, &mut process.signals.state.lock(), status);
        }
    }
}
