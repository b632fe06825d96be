//! The switch from one thread to the next, and what is done on either side of it.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, Ordering};

use alloc::sync::Arc;

use super::entity::Entity;
use super::policy::NICE_0_WEIGHT;
use super::{idle, queue};
use crate::arch::cpu::{self, MAX_CPUS};
use crate::arch::percpu::{self, PerCpu};
use crate::arch::{context, interrupts};
use crate::memory::reserve;
use crate::process::{self, Thread};
use crate::sync::lockdep::stretch;
use crate::sync::{SpinLock, WaitQueue, grace};
use crate::time;

/// Time between two ticks of a CPU that runs a thread, in nanoseconds; also the slice of a thread of nice 0.
pub const TICK: u64 = 4_000_000;

/// What this CPU was switched away from, until `finish` deals with it.
struct Leaving {
    thread: UnsafeCell<*const Thread>,
    /// It is runnable, and goes back to a queue.
    requeue: UnsafeCell<bool>,
    yielded: UnsafeCell<bool>,
}

// SAFETY: each CPU uses its own copy, with interrupts off.
unsafe impl Sync for Leaving {}

impl Leaving {
    const fn new() -> Self {
        Self {
            thread: UnsafeCell::new(core::ptr::null()),
            requeue: UnsafeCell::new(false),
            yielded: UnsafeCell::new(false),
        }
    }
}

static LEAVING: PerCpu<Leaving> = PerCpu::new([const { Leaving::new() }; MAX_CPUS]);

/// Threads that have ended and whose stacks are no longer in use, linked through `dead_next`.
static DEAD_LIST: AtomicPtr<Thread> = AtomicPtr::new(core::ptr::null_mut());

/// Woken when a dead thread has left its stack.
pub(super) static DEAD_WAIT: WaitQueue = WaitQueue::new();

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Block,
    Preempt,
    Yield,
    Exit,
}

/// Commits the sleep that the current thread has announced. Returns at once if a wake came first.
pub(super) fn block() {
    debug_assert!(interrupts::are_enabled(), "a thread sleeps with interrupts off");
    interrupts::without(|| schedule(Why::Block));
    // What follows is a new stretch.
    reserve::enter();
}

/// Lets other threads of this CPU go first.
pub(super) fn yield_cpu() {
    interrupts::without(|| schedule(Why::Yield));
}

/// Switches if a better thread is queued. Interrupts are off.
pub(super) fn preempt() {
    schedule(Why::Preempt);
}

/// The current thread has ended: it never runs again.
pub fn exit_current() -> ! {
    interrupts::disable();
    process::current().sched.set_dead();
    schedule(Why::Exit);
    unreachable!("a dead thread was scheduled");
}

/// A reschedule interrupt: the flag was set by the sender, and is looked at on the way to user mode or by the idle thread.
pub fn resched_interrupt() {}

/// Charges the run time since the last call to the thread that runs here.
pub(super) fn account(thread: &Thread) {
    let entity = &thread.sched;
    let now = time::now();
    // Relaxed: the thread's own CPU writes these; others read them as statistics.
    let ran = now.saturating_sub(entity.started_at.swap(now, Ordering::Relaxed));
    entity.runtime.fetch_add(ran, Ordering::Relaxed);
    thread.process.timers.charge(ran);
    let weighted = ran * u64::from(NICE_0_WEIGHT) / u64::from(entity.weight().max(1));
    entity.vruntime.fetch_add(weighted, Ordering::SeqCst);
}

/// Chooses the next thread and runs it; returns when the current thread runs again. Interrupts are off throughout.
fn schedule(why: Why) {
    debug_assert!(!interrupts::are_enabled());
    stretch::end();
    grace::quiescent();
    let previous = percpu::current().cast::<Thread>();
    // SAFETY: the thread that runs this code is alive.
    let current = unsafe { &*previous };
    let here = cpu::id();
    let idle = idle::of(here);
    let was_idle = core::ptr::eq(previous, idle);
    if why == Why::Block && !current.sched.sleep.park() {
        return;
    }
    // Behind the attempt to sleep: one that a wake has overtaken does not answer a request to switch.
    queue::clear_resched();
    if !was_idle {
        account(current);
    }
    let runnable = match why {
        Why::Exit | Why::Block => false,
        Why::Preempt | Why::Yield => !was_idle,
    };
    // A thread that may no longer run here gives way to anything, even to the idle thread.
    let may_stay = runnable && current.sched.is_allowed_on(here);
    if may_stay {
        queue::note_rank(current);
    }
    let next = queue::take_best(may_stay.then_some(current), why == Why::Yield)
        .or_else(|| if may_stay { None } else { queue::steal(0) });
    let next = match next {
        Some(next) => next,
        None if may_stay || was_idle => return,
        None => idle,
    };
    // Relaxed: statistics.
    if why == Why::Preempt && !was_idle {
        current.sched.involuntary_switches.fetch_add(1, Ordering::Relaxed);
    } else {
        current.sched.voluntary_switches.fetch_add(1, Ordering::Relaxed);
    }
    process::note_switch();
    switch_to(current, next, runnable && !was_idle, why == Why::Yield);
}

fn switch_to(current: &Thread, next: *const Thread, requeue: bool, yielded: bool) {
    // SAFETY: `next` came from a queue or is this CPU's idle thread: alive, and run by nobody else.
    let next = unsafe { &*next };
    next.sched.set_on_cpu(true);
    next.sched.set_cpu(cpu::id());
    // Relaxed: statistics.
    next.sched.started_at.store(time::now(), Ordering::Relaxed);
    next.sched.new_slice_if_over();
    let to_idle = core::ptr::eq(next, idle::of(cpu::id()));
    queue::note_running(next, to_idle);
    time::tick_wanted(!to_idle);
    // SAFETY: this CPU's copy, with interrupts off.
    unsafe {
        *LEAVING.thread.get() = current;
        *LEAVING.requeue.get() = requeue;
        *LEAVING.yielded.get() = yielded;
    }
    process::switch_address_space(current, next);
    percpu::set_current(core::ptr::from_ref(next).cast());
    let away = reserve::off_cpu(&current.memory);
    // SAFETY: both contexts belong to threads that only this CPU touches now; `finish` runs on the other side.
    unsafe { context::switch(&mut *current.context.get(), &*next.context.get()) };
    away.back();
    stretch::begin();
    finish();
}

/// First thing on the stack of the thread that was switched to: lets go of the previous one.
fn finish() {
    // SAFETY: this CPU's copy, with interrupts off.
    let (previous, requeue, yielded) =
        unsafe { (*LEAVING.thread.get(), *LEAVING.requeue.get(), *LEAVING.yielded.get()) };
    // SAFETY: it cannot end or be freed before `set_on_cpu(false)` below.
    let entity = unsafe { &(*previous).sched };
    if entity.is_dead() {
        let mut head = DEAD_LIST.load(Ordering::SeqCst);
        loop {
            entity.dead_next.store(head, Ordering::SeqCst);
            match DEAD_LIST.compare_exchange(head, previous.cast_mut(), Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
    }
    let dead = entity.is_dead();
    // From here on another CPU may run or free it, unless it is runnable: then this CPU alone can queue it.
    entity.set_on_cpu(false);
    if dead {
        DEAD_WAIT.wake_all();
    }
    if requeue {
        // SAFETY: a runnable thread does not end before it has run again.
        queue::requeue(unsafe { &*previous }, yielded);
    }
}

/// The entry of a new thread calls this first: the other half of the switch that started it.
pub fn finish_switch_for_new_thread() {
    stretch::begin();
    finish();
}

/// One of the dead threads; the scheduler's reference goes to the caller. Interrupts are on.
pub(super) fn take_dead() -> Option<Arc<Thread>> {
    /// One at a time takes: so the first of the list stays there until it is taken, and what it is linked to stays behind it.
    static TAKING: SpinLock<()> = SpinLock::new(());
    let thread = {
        let _taking = TAKING.lock();
        let mut head = DEAD_LIST.load(Ordering::SeqCst);
        loop {
            // SAFETY: a thread on the list is alive, as the scheduler's reference goes with it.
            let first = unsafe { head.as_ref() }?;
            let next = first.sched.dead_next.load(Ordering::SeqCst);
            match DEAD_LIST.compare_exchange(head, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        // SAFETY: this is the reference that `adopt` took, given up once by `finish`.
        unsafe { Arc::from_raw(head.cast_const()) }
    };
    // `finish` puts the thread on the list a few instructions before it lets go.
    while thread.sched.is_on_cpu() {
        core::hint::spin_loop();
    }
    Some(thread)
}

pub(super) fn any_dead() -> bool {
    !DEAD_LIST.load(Ordering::SeqCst).is_null()
}

impl Entity {
    fn new_slice_if_over(&self) {
        // Relaxed: the thread's own CPU changes it.
        if self.slice_left.load(Ordering::Relaxed) == 0 {
            self.new_slice();
        }
    }
}
