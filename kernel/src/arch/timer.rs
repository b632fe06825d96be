//! Each CPU's one-shot timer: the local APIC's.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{apic, clock};

/// Timer ticks a second.
static FREQUENCY: AtomicU64 = AtomicU64::new(0);

/// A reading of the timer and the clock at that moment: the tightest of several, since the host may have run something else in
/// between.
fn anchor() -> (u64, u32) {
    (0..8)
        .map(|_| {
            let before = clock::now_ns();
            let ticks = apic::measured();
            let after = clock::now_ns();
            (after - before, before + (after - before) / 2, ticks)
        })
        .min_by_key(|(width, ..)| *width)
        .map(|(_, time, ticks)| (time, ticks))
        .expect("eight readings")
}

/// Measures the timer's rate against the clock; the boot CPU does this once.
pub(super) fn calibrate() {
    const MEASURED_US: u64 = 10_000;
    apic::start_measuring();
    let (start, from) = anchor();
    clock::delay_us(MEASURED_US);
    let (end, to) = anchor();
    apic::arm_timer(0);
    let frequency = (u128::from(to - from) * 1_000_000_000 / u128::from(end - start)) as u64;
    FREQUENCY.store(frequency.max(1), Ordering::Relaxed);
    log::info!("APIC timer: {}.{:03} MHz", frequency / 1_000_000, frequency / 1000 % 1000);
}

/// Makes `time::timer_interrupt` run on this CPU once [`clock::now_ns`] has reached `deadline_ns`; `None` cancels.
///
/// It may come early where the deadline is farther off than the counter reaches (seconds), or by a rounding:
/// the handler looks at the clock and arms again. A later call replaces an earlier one. Interrupts should be off,
/// lest the old deadline's interrupt comes in between.
pub fn arm(deadline_ns: Option<u64>) {
    let Some(deadline) = deadline_ns else {
        apic::arm_timer(0);
        return;
    };
    let wait = deadline.saturating_sub(clock::now_ns());
    // Relaxed: written once, before the other CPUs start.
    let ticks = (wait as u128 * FREQUENCY.load(Ordering::Relaxed) as u128).div_ceil(1_000_000_000);
    // Zero would stop the timer; a deadline that has passed fires at once.
    apic::arm_timer(ticks.clamp(1, u32::MAX as u128) as u32);
}
