//! What a CPU shows to those who queue threads for it: whether it has to be interrupted.
//!
//! # The guarantee
//!
//! A CPU does not halt while its queue has a thread, and a thread that should run at once makes its CPU switch.
//!
//! # Why it holds
//!
//! Whoever queues a thread counts it, passes a full fence, and looks at what the CPU runs. A CPU that runs out of work notes that it
//! runs its idle thread, passes a full fence, and looks at the count, with interrupts off. One of the two fences comes first:
//!
//! * The idle thread sees the count. It does not halt.
//! * The other CPU sees that the idle thread runs. It sets the request and sends an interrupt. The interrupt is taken by the `hlt`
//!   behind `sti` at the latest, for an interrupt that is pending when both execute ends the halt at once
//!   ([`crate::arch::interrupts::enable_and_wait`]); the idle thread then looks at the queue again.
//!
//! The request is a hint that is forgotten when the CPU looks at its queue. It is cleared before that look: a thread that was queued
//! before the clearing is found by the look; one that comes later sets the request again. A thread that only wants a place in the
//! queue of a busy CPU sets no request: the tick does so while the queue is not empty, and a busy CPU has a tick.

use crate::sync::mutant::{self, Mutant};
use crate::sync::perturb;
use crate::sync::primitive::{AtomicBool, AtomicU32, AtomicUsize, Ordering, constructor, fence};

/// The rank of an idle thread: any other goes before it.
pub(crate) const IDLE_RANK: u32 = u32::MAX;

/// A CPU's words.
pub(crate) struct Beacon {
    /// Threads in the queue. Changed under the queue's lock.
    length: AtomicUsize,
    /// The rank of the thread that runs; lower ones go first.
    running: AtomicU32,
    /// The CPU should switch at the next chance.
    request: AtomicBool,
}

impl Beacon {
    constructor! {
        pub fn new() -> Self {
            Self {
                length: AtomicUsize::new(0),
                running: AtomicU32::new(IDLE_RANK),
                request: AtomicBool::new(false),
            }
        }
    }

    /// A thread was put into the queue, whose lock is held.
    pub fn count_in(&self) {
        // Relaxed: the fence of `rank_of_running` orders it.
        self.length.fetch_add(1, Ordering::Relaxed);
    }

    /// A thread was taken from the queue, whose lock is held.
    pub fn count_out(&self) {
        // Relaxed: as above.
        self.length.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many threads are queued.
    pub fn length(&self) -> usize {
        // Relaxed: exact for the queue's own CPU only, behind `note_running`.
        self.length.load(Ordering::Relaxed)
    }

    /// What the CPU runs now, for one who has just queued a thread there.
    pub fn rank_of_running(&self) -> u32 {
        if !mutant::is(Mutant::AskedWithoutFence) {
            // Pairs with the fence in `note_running`.
            fence(Ordering::SeqCst);
        }
        perturb::point();
        // Relaxed: see above.
        self.running.load(Ordering::Relaxed)
    }

    /// What the CPU runs, for its own use and for statistics.
    pub fn running(&self) -> u32 {
        // Relaxed: its own word.
        self.running.load(Ordering::Relaxed)
    }

    /// The CPU is about to run a thread of this rank.
    pub fn note_running(&self, rank: u32) {
        if mutant::is(Mutant::IdleLate) && rank == IDLE_RANK {
            return;
        }
        // Relaxed: the fence orders it.
        self.running.store(rank, Ordering::Relaxed);
        if rank == IDLE_RANK {
            // Pairs with the fence in `rank_of_running`.
            fence(Ordering::SeqCst);
        }
        perturb::point();
    }

    /// Whether the idle thread, which runs with interrupts off, may halt.
    pub fn may_halt(&self) -> bool {
        perturb::point();
        mutant::is(Mutant::HaltsWithoutALook) || !self.is_requested() && self.length() == 0
    }

    /// Asks the CPU to switch. The caller interrupts it if it is another one.
    pub fn request(&self) {
        // Release: whoever acts on it sees the queue as it was then. An interrupt is sent behind it, which the hardware orders.
        self.request.store(true, Ordering::Release);
    }

    /// Whether this CPU should switch at the next chance.
    pub fn is_requested(&self) -> bool {
        // Acquire: see `request`.
        self.request.load(Ordering::Acquire)
    }

    /// The CPU is about to look at its queue.
    pub fn clear_request(&self) {
        // Relaxed: the lock of the queue is taken behind it, and whoever sets it again has let go of that lock.
        self.request.store(false, Ordering::Relaxed);
        perturb::point();
    }
}
