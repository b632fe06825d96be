//! Pseudo-random delays at the points at which one CPU overtakes another: for tests that look for lost wake-ups.
//!
//! Checked kernels know the parameter `perturb=SEED`. At each point a CPU then spins now and then for up to 100 us, by a sequence of
//! its own that begins with the seed. Without it, and in other kernels, a point is nothing.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::arch::cpu::{self, MAX_CPUS};
use crate::arch::percpu::PerCpu;
use crate::boot::cmdline;
use crate::time;

/// The seed; 0 for no delays.
static SEED: AtomicU64 = AtomicU64::new(0);
/// Where each CPU's sequence is.
static STATES: PerCpu<AtomicU64> = PerCpu::new([const { AtomicU64::new(0) }; MAX_CPUS]);

/// One point in so many delays.
const ONE_IN: u64 = 8;
/// The delays in nanoseconds are below this, and most of them far below.
const MOST: u64 = 100_000;

/// Reads the command line.
pub fn init() {
    if !cfg!(debug_assertions) {
        return;
    }
    if let Some(seed) = cmdline::get("perturb").and_then(|seed| seed.parse::<u64>().ok()) {
        log::info!("delays at points of the scheduler, seed {seed}");
        SEED.store(seed, Ordering::SeqCst);
    }
}

/// A point at which a delay shows what another CPU may do in between. Usable everywhere, but for a wait on `time::now`.
#[inline(always)]
pub fn point() {
    // Relaxed: set once at bring-up.
    if cfg!(debug_assertions) && SEED.load(Ordering::Relaxed) != 0 {
        delay();
    }
}

#[cold]
fn delay() {
    // Relaxed: the CPU's own number; an interrupt in between uses a number twice, which does not matter.
    let mut state = STATES.load(Ordering::Relaxed);
    if state == 0 {
        state = SEED.load(Ordering::Relaxed).wrapping_mul(2) + 1 + (u64::from(cpu::id()) << 40);
    }
    // Marsaglia's xorshift: the low bits of the state choose.
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    STATES.store(state, Ordering::Relaxed);
    if !state.is_multiple_of(ONE_IN) {
        return;
    }
    // Each halving is as likely as all that is longer.
    let longest = MOST >> ((state >> 8).trailing_zeros().min(16));
    let wanted = (state >> 32) % (MOST / longest.max(1)).max(1);
    let end = time::now() + wanted * 100;
    while time::now() < end {
        core::hint::spin_loop();
    }
}
