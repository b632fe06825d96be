//! Timers: a queue for each CPU, one hardware deadline.
//!
//! A timer sits on the queue of the CPU that armed it last. `Timer::cpu` says which, and changes only under that
//! queue's lock. Arming and cancelling cost O(log n) in the timers of that CPU.
//!
//! # What an interrupt does
//!
//! Users choose how many timers there are and when they go off, so an interrupt must not do all that is due. It takes
//! at most [`BATCH`] timers from the queue. What is due beyond that waits for the next interrupt, which comes after a
//! pause as long as this one took: timers get half of a CPU at most, and other interrupts are held off for the time of
//! one batch.
//!
//! A timer of [`Timer::new`] runs its function in the interrupt, with interrupts off: the function wakes one thread. A
//! timer of [`Timer::new_deferred`] has a function that may take longer: it sends a signal, or wakes all who wait for a
//! descriptor. The interrupt only puts it on a list; the thread `timers` runs the functions, with interrupts on, of each user in turn.
//!
//! No function arms its own timer for the next period. A periodic timer is armed again when its user has taken the
//! expiration: when the signal is delivered, or the descriptor is read. The periods that passed meanwhile are counted
//! by a division.
//!
//! A timer waits for a time of the monotonic or of the real-time clock. When the latter is set, timers stay where they are, and each CPU
//! looks anew when its first one is due: the interrupt that asks for that comes after any that still counted with the old time.
//!
//! No deadline is missed, by the argument of [`super::alarm`]: a timer is armed on the queue of the CPU that arms it,
//! never on another's, and an interrupt looks at the whole queue. The idle thread halts with the hardware set and does
//! not look at timers.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use alloc::boxed::Box;
use alloc::sync::Arc;
use intrusive_collections::{KeyAdapter, RBTree, RBTreeAtomicLink, intrusive_adapter};

use super::Deadline;
use super::alarm::{Alarm, NEVER};
use super::clock::now;
use super::due::{self, Due};
use crate::arch::cpu::{self, MAX_CPUS};
use crate::arch::percpu::PerCpu;
use crate::arch::{self, interrupts, ipi};
use crate::sched::{self, TICK};
use crate::sync::{IrqLock, WaitQueue};

/// Something that happens at a time. Made once, armed and cancelled as often as wanted.
pub struct Timer {
    link: RBTreeAtomicLink,
    /// Used under the lock of the queue that the timer is on.
    deadline: UnsafeCell<Deadline>,
    /// The CPU on whose queue the timer is, or `NOWHERE`.
    cpu: AtomicU32,
    /// The function runs in the thread `timers`.
    deferred: bool,
    pub(super) due: due::Place,
    function: Box<dyn Fn() + Send + Sync>,
}

// SAFETY: `deadline` is guarded as its comment says; the rest is atomic or immutable.
unsafe impl Sync for Timer {}
// SAFETY: nothing in it is tied to a CPU.
unsafe impl Send for Timer {}

const NOWHERE: u32 = u32::MAX;

intrusive_adapter!(ByDeadline = Arc<Timer>: Timer { link => RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for ByDeadline {
    /// The address tells apart timers with the same deadline.
    type Key = (u64, usize);

    fn get_key(&self, timer: &'a Timer) -> (u64, usize) {
        // SAFETY: the tree is inside the queue's lock.
        let (Deadline::Monotonic(time) | Deadline::Realtime(time)) = unsafe { *timer.deadline.get() };
        (time, core::ptr::from_ref(timer).addr())
    }
}

struct Queue {
    timers: IrqLock<Timers>,
    alarm: Alarm,
}

static QUEUES: PerCpu<Queue> =
    PerCpu::new([const { Queue { timers: IrqLock::new(Timers::new()), alarm: Alarm::new() } }; MAX_CPUS]);

/// The timers that wait, of each clock by itself: when the real-time clock is set, the order of neither changes.
struct Timers {
    monotonic: RBTree<ByDeadline>,
    realtime: RBTree<ByDeadline>,
}

impl Timers {
    const fn new() -> Self {
        Self { monotonic: RBTree::new(ByDeadline::NEW), realtime: RBTree::new(ByDeadline::NEW) }
    }

    fn tree(&mut self, deadline: Deadline) -> &mut RBTree<ByDeadline> {
        match deadline {
            Deadline::Monotonic(_) => &mut self.monotonic,
            Deadline::Realtime(_) => &mut self.realtime,
        }
    }

    /// The first deadline of each clock as things stand, in monotonic nanoseconds.
    fn first_deadlines(&self) -> (u64, u64) {
        // SAFETY: under the queue's lock.
        let deadline = |timer: &Timer| unsafe { *timer.deadline.get() }.as_monotonic();
        let first = |tree: &RBTree<ByDeadline>| tree.front().get().map_or(NEVER, deadline);
        (first(&self.monotonic), first(&self.realtime))
    }

    /// Takes the timer that has been due for the longest time, if one was due at this monotonic time.
    fn take_due(&mut self, time: u64) -> Option<Arc<Timer>> {
        let (monotonic, realtime) = self.first_deadlines();
        if monotonic.min(realtime) > time {
            return None;
        }
        let tree = if monotonic <= realtime { &mut self.monotonic } else { &mut self.realtime };
        tree.front_mut().remove()
    }
}

/// Timers that one interrupt takes from its queue.
const BATCH: usize = 16;

/// Deferred timers that have gone off.
static DUE: IrqLock<Due> = IrqLock::new(Due::new());
/// Woken when there are some.
static DUE_WAIT: WaitQueue = WaitQueue::new();

impl Timer {
    /// A timer that calls `function` in the timer interrupt. The function's work is bounded and small: it wakes one
    /// thread.
    pub fn new(function: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Self::make(false, due::Place::of_current(), Box::new(function))
    }

    /// A timer that calls `function` in a thread of the kernel's own, with interrupts on, soon after its deadline. The
    /// function does not sleep. It may run once more after the timer was cancelled, or armed for later: it looks itself
    /// whether it is due.
    pub fn new_deferred(function: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Self::make(true, due::Place::of_current(), Box::new(function))
    }

    /// A timer of this user, for the checks at boot.
    pub(super) fn of_user(user: u32) -> Arc<Self> {
        Self::make(true, due::Place::of(user), Box::new(|| {}))
    }

    fn make(deferred: bool, due: due::Place, function: Box<dyn Fn() + Send + Sync>) -> Arc<Self> {
        Arc::new(Self {
            link: RBTreeAtomicLink::new(),
            deadline: UnsafeCell::new(Deadline::Monotonic(0)),
            cpu: AtomicU32::new(NOWHERE),
            deferred,
            due,
            function,
        })
    }

    /// Makes the timer go off at `deadline`, and not at the time it was armed for before.
    pub fn arm(self: &Arc<Self>, deadline: impl Into<Deadline>) {
        let deadline = deadline.into();
        interrupts::without(|| {
            let here = cpu::id();
            let queue = QUEUES.of(here);
            loop {
                self.cancel();
                let mut timers = queue.timers.lock();
                // Another CPU may arm it at the same time: the one that is first here is overruled by the next round.
                if self.cpu.compare_exchange(NOWHERE, here, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                    continue;
                }
                // SAFETY: the timer was nowhere, and is this queue's now, whose lock is held.
                unsafe { *self.deadline.get() = deadline };
                timers.tree(deadline).insert(self.clone());
                break;
            }
            queue.alarm.deadline_added(deadline.as_monotonic(), set_hardware);
        });
    }

    /// Takes the timer back. False if it was not armed: its function has been called or is being called now.
    pub fn cancel(&self) -> bool {
        loop {
            let cpu = self.cpu.load(Ordering::SeqCst);
            if cpu == NOWHERE {
                return false;
            }
            let mut timers = QUEUES.of(cpu).timers.lock();
            if self.cpu.load(Ordering::SeqCst) != cpu || !self.link.is_linked() {
                continue;
            }
            // SAFETY: it is on this queue, whose lock is held.
            let removed = unsafe {
                let deadline = *self.deadline.get();
                timers.tree(deadline).cursor_mut_from_ptr(self).remove()
            };
            self.cpu.store(NOWHERE, Ordering::SeqCst);
            drop(timers);
            drop(removed);
            return true;
        }
    }
}

/// The real-time clock was set: each CPU looks when its first timer is due now. Interrupts are on.
pub(super) fn clock_was_set() {
    ipi::call(&cpu::online(), &|| {
        interrupts::without(|| {
            let queue = QUEUES.of(cpu::id());
            queue.alarm.deadline_added(queue.first_deadline(), set_hardware);
        });
    });
}

fn set_hardware(deadline: u64) {
    arch::timer::arm((deadline != NEVER).then_some(deadline));
}

/// Starts or stops this CPU's tick; the scheduler says so when it switches, with interrupts off.
pub fn tick_wanted(wanted: bool) {
    QUEUES.of(cpu::id()).alarm.tick_wanted(wanted, TICK, now, set_hardware);
}

impl Queue {
    /// As [`Timers::take_due`].
    fn take_due(&self, time: u64) -> Option<Arc<Timer>> {
        let mut timers = self.timers.lock();
        let timer = timers.take_due(time)?;
        timer.cpu.store(NOWHERE, Ordering::SeqCst);
        Some(timer)
    }

    fn first_deadline(&self) -> u64 {
        let (monotonic, realtime) = self.timers.lock().first_deadlines();
        monotonic.min(realtime)
    }
}

/// This CPU's timer went off; `user`: it interrupted user mode. Interrupts are off.
pub fn timer_interrupt(user: bool) {
    let queue = QUEUES.of(cpu::id());
    queue.alarm.interrupt_begins();
    // One look at the clock: what comes due meanwhile is the next interrupt's.
    let begin = now();
    let mut deferred = false;
    for _ in 0..BATCH {
        let Some(timer) = queue.take_due(begin) else { break };
        if timer.deferred {
            deferred |= defer(timer);
        } else {
            (timer.function)();
        }
    }
    if deferred {
        DUE_WAIT.wake_one();
    }
    if queue.alarm.tick_is_due(begin, TICK) {
        sched::tick(user);
        crate::process::tick(user);
    }
    let first = queue.first_deadline();
    queue.alarm.interrupt_ends(first, begin, now(), set_hardware);
}

/// Leaves the function to the thread. False if the timer waits for that already.
fn defer(timer: Arc<Timer>) -> bool {
    DUE.lock().push(timer)
}

/// Starts the thread that runs the functions of deferred timers. It is an ordinary thread: it wakes ahead of those that
/// run long, and one user's flood of timers gets it one thread's share of a CPU. Another user's timer waits for one of these: [`due`].
pub fn init() {
    sched::spawn_kernel_thread("timers", || {
        loop {
            let timer = DUE_WAIT.wait_until(|| DUE.lock().pop());
            (timer.function)();
            drop(timer);
            sched::cond_resched();
        }
    });
}
