//! Grace periods: a page table is reused only after every CPU has passed a quiescent point.
//!
//! # The guarantee
//!
//! A reader that enters a [`read`] section after a table became unreachable does not find it; a reader that entered
//! before has left its section when the table's frame is freed. So whoever walks page tables without a lock never looks
//! at a frame that has become something else (CVE-2025-38085 is the story of a walker that did).
//!
//! # Why it holds
//!
//! A read section does not sleep, and kernel mode is not preempted, so the section runs on one CPU between two
//! *quiescent points* of it: a return to user mode, a switch of threads, [`crate::sched::cond_resched`], idling.
//! Readers therefore pay nothing, and a period ends when each CPU has passed one such point since it began:
//!
//! * A period begins under the lock, after its tables became unreachable, by an increment of [`PERIOD`]. A CPU at a
//!   quiescent point reads that number (acquire) and then says that it has seen it (release). What it reads afterwards
//!   is later than the begin, so it does not find the tables; what it read before is earlier than the end.
//! * A CPU that idles has no reader. It says so before it halts, and takes it back with a full fence before it does
//!   anything else. Whoever ends the period looks at that flag behind a full fence, too: either it finds the CPU awake,
//!   and waits, or the CPU finds the tables gone. So sleeping CPUs are neither waited for nor woken.
//! * The CPU that reports last ends the period, for it looks at all others after its own report, and the lock orders
//!   two that report at once.
//!
//! The idea is that of read-copy-update with quiescent states. A library of epochs (crossbeam-epoch) would work in a
//! kernel as well, but has a participant per thread that must be pinned around each section, keeps garbage in bags of
//! the participant until that one is pinned again, and cannot be asked to get the memory back now: which is what an
//! allocation that failed has to do ([`collect`]).

use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use super::{IrqLock, debug};
use crate::arch::cpu::{self, CpuId, MAX_CPUS};
use crate::arch::percpu::{self, PerCpu};
use crate::arch::{interrupts, ipi};
use crate::memory::frame::{Frame, FrameList};
use crate::sched::{self, Sleep};
use crate::{process, time};

/// Frames that are freed at one quiescent point: it may lie in front of a return to user mode.
const BATCH: usize = 16;
/// Frames that may wait before those who retire more have to wait themselves: 8 MiB.
const LIMIT: u64 = 2048;
/// Frames that a thread may retire before it waits for others' as well: a small munmap does not pay for a neighbour's
/// large one.
const SHARE: u32 = 64;
/// How long a waiter sleeps between two looks, in nanoseconds.
const NAP: u64 = 500_000;

/// What a CPU tells of itself.
struct Reports {
    /// The newest period that it saw at a quiescent point.
    seen: AtomicU64,
    /// It halts, or does not take part yet.
    idle: AtomicBool,
}

static REPORTS: PerCpu<Reports> =
    PerCpu::new([const { Reports { seen: AtomicU64::new(0), idle: AtomicBool::new(true) } }; MAX_CPUS]);

/// The newest period.
static PERIOD: AtomicU64 = AtomicU64::new(0);
/// Frames ever retired, and ever freed.
static RETIRED: AtomicU64 = AtomicU64::new(0);
static FREED: AtomicU64 = AtomicU64::new(0);
/// How many frames have their period behind them and are yet to be freed.
static OVER: AtomicU64 = AtomicU64::new(0);

struct Waiting {
    /// Came while a period was under way, which may be too early for them.
    next: FrameList,
    /// Wait for the end of the newest period.
    current: FrameList,
    /// Waited long enough.
    over: FrameList,
}

static WAITING: IrqLock<Waiting> =
    IrqLock::new(Waiting { next: FrameList::new(), current: FrameList::new(), over: FrameList::new() });

/// A time in which this CPU may look at page tables without a lock. It must not sleep meanwhile, as if it held a spin
/// lock; debug builds watch that.
pub struct ReadSection(PhantomData<*mut ()>);

/// Begins a read section.
#[inline]
pub fn read() -> ReadSection {
    debug::spin_acquired();
    // Relaxed: the CPU's own flag.
    debug_assert!(!REPORTS.idle.load(Ordering::Relaxed), "an idle CPU reads page tables");
    ReadSection(PhantomData)
}

impl Drop for ReadSection {
    #[inline]
    fn drop(&mut self) {
        debug::spin_released();
    }
}

/// Frees the frame of a table once no reader can be in it. No entry leads to it any more, and the TLBs were flushed.
/// Does not wait.
pub fn retire(frame: Frame) {
    RETIRED.fetch_add(1, Ordering::SeqCst);
    if let Some(thread) = process::try_current() {
        // Relaxed: the thread's own.
        thread.retired_tables.fetch_add(1, Ordering::Relaxed);
    }
    let mut waiting = WAITING.lock();
    waiting.next.push(frame);
    waiting.begin();
}

impl Waiting {
    /// Begins a period for those that came last, unless one is under way.
    fn begin(&mut self) {
        if self.current.is_empty() && !self.next.is_empty() {
            core::mem::swap(&mut self.current, &mut self.next);
            // SeqCst: behind everything that made the frames unreachable; see the module.
            PERIOD.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Ends the period if all have passed, and begins the next one.
    fn end(&mut self) {
        if !self.current.is_empty() && all_passed() {
            OVER.fetch_add(self.current.len() as u64, Ordering::SeqCst);
            self.over.append(&mut self.current);
            self.begin();
        }
    }
}

fn has_passed(cpu: CpuId, period: u64) -> bool {
    let reports = REPORTS.of(cpu);
    // Acquire: what the CPU's readers did comes before what happens to the frames now.
    reports.idle.load(Ordering::Acquire) || reports.seen.load(Ordering::Acquire) >= period
}

/// Has each CPU passed a quiescent point since the newest period began?
fn all_passed() -> bool {
    // Full: between the entries that were cleared and the look at who idles. See the module.
    fence(Ordering::SeqCst);
    // Relaxed: only changed under the lock that the caller holds.
    let period = PERIOD.load(Ordering::Relaxed);
    cpu::online().iter().all(|cpu| has_passed(cpu, period))
}

/// This CPU has no reader now. Called with or without interrupts, and with no lock.
#[inline]
pub fn quiescent() {
    debug_assert_eq!(percpu::preempt_count(), 0, "a quiescent point inside a read section");
    // Acquire: what became unreachable before the period began is so for this CPU's next reader.
    let period = PERIOD.load(Ordering::Acquire);
    let reports = &*REPORTS;
    // Relaxed: the CPU's own word.
    if reports.seen.load(Ordering::Relaxed) != period {
        // Release: this CPU's last reader was before.
        reports.seen.store(period, Ordering::Release);
        advance();
    } else if OVER.load(Ordering::Relaxed) != 0 {
        advance();
    }
}

/// As one step of a wait for a period: ends it if it is over.
pub fn poll() {
    advance();
}

/// Ends a period that is over, and frees a few frames. Returns whether there is more to do at once.
#[cold]
fn advance() -> bool {
    let mut freed = [const { None }; BATCH];
    let mut count = 0;
    let more = {
        let mut waiting = WAITING.lock();
        waiting.end();
        while count < BATCH
            && let Some(frame) = waiting.over.pop()
        {
            freed[count] = Some(frame);
            count += 1;
        }
        OVER.fetch_sub(count as u64, Ordering::SeqCst);
        !waiting.over.is_empty() || !waiting.current.is_empty() && all_passed()
    };
    drop(freed);
    // Behind the drop: whoever waits for the number finds the memory free.
    FREED.fetch_add(count as u64, Ordering::SeqCst);
    more
}

/// This CPU is about to halt, with interrupts off. False: there is something to free first, so it should not.
pub fn begin_idle() -> bool {
    // SeqCst: of two CPUs that go idle at once one sees the other.
    REPORTS.idle.store(true, Ordering::SeqCst);
    if waiting_frames() != 0 && advance() {
        end_idle();
        return false;
    }
    true
}

/// This CPU takes part again, and looks at nothing before it has said so.
pub fn end_idle() {
    // A full fence on x86-64; see the module.
    REPORTS.idle.swap(false, Ordering::SeqCst);
}

/// Frames of tables that wait for the end of their period. They count as page tables until then.
pub fn waiting_frames() -> u64 {
    // In this order the difference cannot be negative.
    let freed = FREED.load(Ordering::SeqCst);
    RETIRED.load(Ordering::SeqCst) - freed
}

/// Gets the memory of all tables that are retired now. Returns whether there were any: then an allocation that failed
/// is worth another try. Sleeps; the locks that the caller may hold must be sleeping ones.
pub fn collect() -> bool {
    let goal = RETIRED.load(Ordering::SeqCst);
    if FREED.load(Ordering::SeqCst) >= goal {
        return false;
    }
    wait_for(goal);
    true
}

/// Waits when too much memory is in retirement and the current thread has put more than its share there: at the end of
/// each system call, most of which can retire tables, and of each address space. A quiescent point frees a few, and one
/// call may have retired thousands. Without locks.
#[inline]
pub fn throttle() {
    let Some(thread) = process::try_current() else { return };
    // Relaxed, here and below: the thread's own.
    if thread.retired_tables.load(Ordering::Relaxed) <= SHARE {
        return;
    }
    if waiting_frames() > LIMIT {
        wait_for(RETIRED.load(Ordering::SeqCst) - LIMIT / 2);
    }
    thread.retired_tables.store(0, Ordering::Relaxed);
}

#[cold]
fn wait_for(goal: u64) {
    let reached = || FREED.load(Ordering::SeqCst) >= goal;
    while !reached() {
        hurry();
        // This CPU's own report: others run on it, or it idles.
        let _ = sched::sleep(Sleep::Uninterruptible, Some(time::now() + NAP), reached);
        // There may be thousands to free.
        while advance() {
            sched::cond_resched();
        }
    }
}

/// Makes CPUs that run user mode pass a quiescent point now rather than at their next tick.
fn hurry() {
    interrupts::without(|| {
        let (here, period) = (cpu::id(), PERIOD.load(Ordering::SeqCst));
        for late in cpu::online().iter().filter(|cpu| *cpu != here && !has_passed(*cpu, period)) {
            ipi::reschedule(late);
        }
    });
}
