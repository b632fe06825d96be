//! How a thread goes to sleep and is woken, in two words.
//!
//! # The guarantee
//!
//! Whoever makes a thread's condition true and then wakes it is never missed: the thread sees the condition, or it is queued.
//!
//! # Why it holds
//!
//! The sleeper announces its sleep, passes a full fence, and looks at its condition. The waker changes the condition, passes a full
//! fence, and looks at the state. Of two such fences one comes first, and the other side sees what was written before it: either the
//! sleeper sees the condition, or the waker sees the announcement. In the second case the waker turns the announcement into
//! "running" by a compare-and-exchange, and the sleeper parks by another on the same word. One of the two fails:
//!
//! * The waker was first: parking fails, and the sleeper goes on and looks at its condition again.
//! * The sleeper was first: the waker finds "parked" and is the only one to turn it into "running", so that it alone queues the thread.
//!
//! A thread that has parked runs on: its CPU is on its way to the next thread. The waker waits until the CPU says that it has let go
//! of the thread's stack. From parking to that point the CPU keeps interrupts off and waits for nobody but holders of run-queue
//! locks, and wakers hold none; so this wait is short, and ends even if the waker itself keeps interrupts off.

use crate::sync::mutant::{self, Mutant};
use crate::sync::perturb;
use crate::sync::primitive::{AtomicBool, AtomicU8, Ordering, constructor, fence, spin_loop};

/// What may end a sleep besides its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Sleep {
    /// Nothing: for what is sure to happen soon.
    Uninterruptible = 1,
    /// A signal that kills.
    Killable = 2,
    /// Any signal.
    Interruptible = 3,
    /// SIGCONT or a signal that kills: the sleep of job control.
    Stopped = 4,
    /// The end of a control group's freezing, or a signal that kills.
    Frozen = 5,
}

impl Sleep {
    fn from_bits(bits: u8) -> Option<Self> {
        match bits & !PARKED {
            1 => Some(Self::Uninterruptible),
            2 => Some(Self::Killable),
            3 => Some(Self::Interruptible),
            4 => Some(Self::Stopped),
            5 => Some(Self::Frozen),
            _ => None,
        }
    }
}

/// The states beside "announced sleep" (the value of [`Sleep`]) and "parked" (that value and this bit).
const RUNNING: u8 = 0;
const PARKED: u8 = 0x10;
const DEAD: u8 = 0x20;

/// What a wake has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The thread does not sleep, or not in a way that this ends.
    No,
    /// It was about to sleep, and goes on.
    Awake,
    /// It slept. The caller queues it.
    Queue,
}

/// A thread's two words.
pub(crate) struct SleepState {
    state: AtomicU8,
    /// A CPU uses the thread's stack and registers.
    on_cpu: AtomicBool,
}

impl SleepState {
    constructor! {
        pub fn new() -> Self {
            Self { state: AtomicU8::new(RUNNING), on_cpu: AtomicBool::new(false) }
        }
    }

    /// The thread is about to sleep: it looks at its condition after this.
    pub fn announce(&self, mode: Sleep) {
        // An exchange, so that it comes behind the exchange of a waker of the last sleep. Relaxed: the fence orders it.
        self.state.swap(mode as u8, Ordering::Relaxed);
        if !mutant::is(Mutant::AnnouncedWithoutFence) {
            // Pairs with the fence in `wake_if`.
            fence(Ordering::SeqCst);
        }
        perturb::point();
    }

    /// The thread does not sleep after all, or has slept.
    pub fn stay_awake(&self) {
        // Relaxed: only the exchange of a waker meets it, and fails.
        self.state.swap(RUNNING, Ordering::Relaxed);
    }

    pub fn set_dead(&self) {
        self.state.store(DEAD, Ordering::SeqCst);
    }

    pub fn is_dead(&self) -> bool {
        self.state.load(Ordering::SeqCst) == DEAD
    }

    /// How the thread sleeps, if it does.
    pub fn sleeping(&self) -> Option<Sleep> {
        // Relaxed: a statistic.
        Sleep::from_bits(self.state.load(Ordering::Relaxed))
    }

    /// Commits an announced sleep. False if a wake came first. Interrupts are off.
    pub fn park(&self) -> bool {
        perturb::point();
        // Relaxed: the thread wrote it itself, or a waker did, which the exchange notices.
        let state = self.state.load(Ordering::Relaxed);
        if mutant::is(Mutant::ParkedAnyway) {
            self.state.store(state | PARKED, Ordering::SeqCst);
            return true;
        }
        Sleep::from_bits(state).is_some()
            && self.state.compare_exchange(state, state | PARKED, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Wakes the thread if `admits` says so of its way of sleeping. When the caller is to queue it, no CPU uses it any more.
    pub fn wake_if(&self, admits: impl Fn(Sleep) -> bool) -> Woken {
        if !mutant::is(Mutant::WokenWithoutFence) {
            // Pairs with the fence in `announce`: the condition was changed before.
            fence(Ordering::SeqCst);
        }
        loop {
            perturb::point();
            // Relaxed: the exchange decides.
            let state = self.state.load(Ordering::Relaxed);
            let Some(sleep) = Sleep::from_bits(state) else { return Woken::No };
            if !admits(sleep) {
                return Woken::No;
            }
            if self.state.compare_exchange(state, RUNNING, Ordering::SeqCst, Ordering::Relaxed).is_err() {
                continue;
            }
            if state & PARKED == 0 {
                return Woken::Awake;
            }
            while self.is_on_cpu() && !mutant::is(Mutant::QueuedOnCpu) {
                spin_loop();
            }
            return Woken::Queue;
        }
    }

    pub fn is_on_cpu(&self) -> bool {
        // Acquire pairs with the Release of `set_on_cpu(false)`: what the thread saved is complete.
        self.on_cpu.load(Ordering::Acquire)
    }

    pub fn set_on_cpu(&self, on: bool) {
        if !on {
            perturb::point();
        }
        // Release: see `is_on_cpu`.
        self.on_cpu.store(on, Ordering::Release);
    }
}
