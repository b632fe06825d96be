//! Timers: a queue for each CPU, one hardware deadline.
//!
//! A timer sits on the queue of the CPU that armed it last. `Timer::cpu` says which, and changes only under that queue's lock. When it is
//! due, the timer interrupt of that CPU takes it out and calls its function without any lock, with interrupts off.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use alloc::boxed::Box;
use alloc::sync::Arc;
use intrusive_collections::{KeyAdapter, RBTree, RBTreeAtomicLink, intrusive_adapter};

use super::clock::now;
use crate::arch::cpu::{self, MAX_CPUS};
use crate::arch::percpu::PerCpu;
use crate::arch::{self, interrupts};
use crate::sched::{self, TICK};
use crate::sync::IrqLock;

/// Something that happens at a time. Made once, armed and cancelled as often as wanted.
pub struct Timer {
    link: RBTreeAtomicLink,
    /// Used under the lock of the queue that the timer is on.
    deadline: UnsafeCell<u64>,
    /// The CPU on whose queue the timer is, or `NOWHERE`.
    cpu: AtomicU32,
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
        (unsafe { *timer.deadline.get() }, core::ptr::from_ref(timer).addr())
    }
}

struct Queue {
    timers: IrqLock<RBTree<ByDeadline>>,
    /// When the next tick is due; `NEVER` on an idle CPU.
    tick_at: AtomicU64,
    /// What the hardware is set to.
    armed: AtomicU64,
}

const NEVER: u64 = u64::MAX;

static QUEUES: PerCpu<Queue> = PerCpu::new(
    [const {
        Queue {
            timers: IrqLock::new(RBTree::new(ByDeadline::NEW)),
            tick_at: AtomicU64::new(NEVER),
            armed: AtomicU64::new(NEVER),
        }
    }; MAX_CPUS],
);

impl Timer {
    /// A timer that calls `function`, in the timer interrupt: it wakes, sets flags, sends signals, and arms timers.
    pub fn new(function: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            link: RBTreeAtomicLink::new(),
            deadline: UnsafeCell::new(0),
            cpu: AtomicU32::new(NOWHERE),
            function: Box::new(function),
        })
    }

    /// Like [`Self::new`], for a function that needs the timer itself, to arm it again.
    pub fn new_cyclic<F: Fn() + Send + Sync + 'static>(
        make: impl FnOnce(&alloc::sync::Weak<Self>) -> F,
    ) -> Arc<Self> {
        Arc::new_cyclic(|weak| Self {
            link: RBTreeAtomicLink::new(),
            deadline: UnsafeCell::new(0),
            cpu: AtomicU32::new(NOWHERE),
            function: Box::new(make(weak)),
        })
    }

    /// Makes the timer go off at `deadline` (monotonic nanoseconds), and not at the time it was armed for before.
    pub fn arm(self: &Arc<Self>, deadline: u64) {
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
                timers.insert(self.clone());
                break;
            }
            if deadline < queue.armed.load(Ordering::SeqCst) {
                set_hardware(queue, deadline);
            }
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
            let removed = unsafe { timers.cursor_mut_from_ptr(self).remove() };
            self.cpu.store(NOWHERE, Ordering::SeqCst);
            drop(timers);
            drop(removed);
            return true;
        }
    }
}

fn set_hardware(queue: &Queue, deadline: u64) {
    queue.armed.store(deadline, Ordering::SeqCst);
    arch::timer::arm((deadline != NEVER).then_some(deadline));
}

/// Starts or stops this CPU's tick; the scheduler says so when it switches, with interrupts off.
pub fn tick_wanted(wanted: bool) {
    let queue = QUEUES.of(cpu::id());
    let ticking = queue.tick_at.load(Ordering::SeqCst) != NEVER;
    if wanted && !ticking {
        let at = now() + TICK;
        queue.tick_at.store(at, Ordering::SeqCst);
        if at < queue.armed.load(Ordering::SeqCst) {
            set_hardware(queue, at);
        }
    } else if !wanted && ticking {
        // The hardware goes off once more for nothing and is set right then: cheaper than setting it at each switch.
        queue.tick_at.store(NEVER, Ordering::SeqCst);
    }
}

/// This CPU's timer went off; `user`: it interrupted user mode. Interrupts are off.
pub fn timer_interrupt(user: bool) {
    let queue = QUEUES.of(cpu::id());
    queue.armed.store(NEVER, Ordering::SeqCst);
    loop {
        let expired = {
            let mut timers = queue.timers.lock();
            let due = timers.front().get().is_some_and(|first| {
                // SAFETY: under the queue's lock.
                unsafe { *first.deadline.get() <= now() }
            });
            if !due {
                break;
            }
            let timer = timers.front_mut().remove().expect("there is a first one");
            timer.cpu.store(NOWHERE, Ordering::SeqCst);
            timer
        };
        (expired.function)();
    }
    let tick_at = queue.tick_at.load(Ordering::SeqCst);
    if tick_at != NEVER && tick_at <= now() {
        queue.tick_at.store(now() + TICK, Ordering::SeqCst);
        sched::tick(user);
        crate::process::tick(user);
    }
    let first = queue.timers.lock().front().get().map_or(NEVER, |first| {
        // SAFETY: under the queue's lock.
        unsafe { *first.deadline.get() }
    });
    let next = first.min(queue.tick_at.load(Ordering::SeqCst));
    if next < queue.armed.load(Ordering::SeqCst) {
        set_hardware(queue, next);
    }
}
