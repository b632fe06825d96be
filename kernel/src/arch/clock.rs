//! The time-stamp counter as the kernel's clock.

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering};
use raw_cpuid::{CpuId, Hypervisor};

use super::{acpi, apic, port, rtc};

const NANOSECONDS: u64 = 1_000_000_000;
/// Frequency of the ACPI power-management timer.
const PM_TIMER_HZ: u64 = 3_579_545;
/// Frequency of the programmable interval timer.
const PIT_HZ: u64 = 1_193_182;
/// How much of a second calibration takes: its reciprocal.
const CALIBRATION_PARTS: u64 = 50;

/// How to turn the counter into nanoseconds since boot: `((tsc - base) * mult) >> shift`, in 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscParameters {
    pub base: u64,
    pub mult: u64,
    pub shift: u32,
    /// Counts a second.
    pub frequency: u64,
}

const SHIFT: u32 = 32;

// Relaxed on all three: the boot CPU writes them once, before the other CPUs start.
static BASE: AtomicU64 = AtomicU64::new(0);
static MULT: AtomicU64 = AtomicU64::new(0);
static FREQUENCY: AtomicU64 = AtomicU64::new(0);
static WALL_AT_BOOT: AtomicU64 = AtomicU64::new(0);

/// The counter. All CPUs of a virtual machine see the same one.
#[inline]
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it.
    unsafe { _rdtsc() }
}

/// Monotonic nanoseconds since the kernel started; 0 before calibration.
#[inline]
pub fn now_ns() -> u64 {
    let elapsed = tsc().saturating_sub(BASE.load(Ordering::Relaxed));
    ((elapsed as u128 * MULT.load(Ordering::Relaxed) as u128) >> SHIFT) as u64
}

/// The parameters behind [`now_ns`], for the vDSO.
pub fn tsc_parameters() -> TscParameters {
    TscParameters {
        base: BASE.load(Ordering::Relaxed),
        mult: MULT.load(Ordering::Relaxed),
        shift: SHIFT,
        frequency: FREQUENCY.load(Ordering::Relaxed),
    }
}

/// Nanoseconds between 1970 and the moment at which [`now_ns`] was 0, by the battery-backed clock.
pub fn wall_at_boot_ns() -> u64 {
    WALL_AT_BOOT.load(Ordering::Relaxed)
}

/// Remembers when the kernel started.
pub(super) fn start() {
    BASE.store(tsc(), Ordering::Relaxed);
}

/// Measures the counter's rate, and reads the wall clock.
pub(super) fn calibrate() {
    let (frequency, source) = frequency_by_cpuid()
        .map(|frequency| (frequency, "CPUID"))
        .or_else(|| Some((frequency_by_acpi_timer()?, "ACPI timer")))
        .or_else(|| Some((frequency_by_pit()?, "PIT")))
        .or_else(|| Some((frequency_by_apic()?, "the hypervisor's APIC timer")))
        .expect("a clock: the TSC's rate by CPUID, an ACPI timer, an interval timer (PIT), or KVM's or QEMU's APIC");
    FREQUENCY.store(frequency, Ordering::Relaxed);
    MULT.store((((NANOSECONDS as u128) << SHIFT) / frequency as u128) as u64, Ordering::Relaxed);
    let wall = rtc::unix_seconds() * NANOSECONDS;
    WALL_AT_BOOT.store(wall.saturating_sub(now_ns()), Ordering::Relaxed);
    log::info!("TSC: {}.{:03} MHz by {source}", frequency / 1_000_000, frequency / 1000 % 1000);
}

fn frequency_by_acpi_timer() -> Option<u64> {
    let timer = acpi::pm_timer()?;
    let mask = if timer.wide { u32::MAX } else { 0xff_ffff };
    // SAFETY: reading the power-management timer has no side effects.
    let read = || unsafe { port::read_u32(timer.port) } & mask;
    measure(PM_TIMER_HZ, read, mask)
}

/// The rate as the CPU or the hypervisor states it.
fn frequency_by_cpuid() -> Option<u64> {
    let cpuid = CpuId::new();
    if let Some(info) = cpuid.get_hypervisor_info()
        && let Some(khz) = info.tsc_frequency().filter(|khz| *khz != 0)
    {
        return Some(khz as u64 * 1000);
    }
    cpuid.get_tsc_info().and_then(|info| info.tsc_frequency()).filter(|hz| *hz != 0)
}

/// One reading of a reference counter, and the TSC at that moment: the tightest of several, since the host may
/// have run something else in between.
fn anchor(read: impl Fn() -> u32) -> (u64, u32) {
    (0..8)
        .map(|_| {
            let before = tsc();
            let value = read();
            let after = tsc();
            (after - before, before + (after - before) / 2, value)
        })
        .min_by_key(|(width, ..)| *width)
        .map(|(_, tsc, value)| (tsc, value))
        .expect("eight readings")
}

/// Measures the TSC against a counter that counts up at `hz` and wraps after `mask`; `None` when it stands still.
fn measure(hz: u64, read: impl Fn() -> u32, mask: u32) -> Option<u64> {
    let (start_tsc, start) = anchor(&read);
    let wanted = hz / CALIBRATION_PARTS;
    // A counter that stands still must not stop the boot: no TSC counts so much in the time, but where the host does
    // not run this CPU, and then the counter has moved at the next look.
    const GIVE_UP: u64 = 1 << 31;
    const LOOKS: u32 = 1000;
    let mut looks = 0;
    while (read().wrapping_sub(start) & mask) as u64 <= wanted {
        looks += 1;
        if looks > LOOKS && tsc().wrapping_sub(start_tsc) > GIVE_UP {
            return None;
        }
    }
    let (end_tsc, end) = anchor(&read);
    let ticks = (end.wrapping_sub(start) & mask) as u64;
    Some(((end_tsc - start_tsc) as u128 * hz as u128 / ticks as u128) as u64)
}

/// Measures against the interval timer's channel 2, which every PC has, and a virtual machine need not.
fn frequency_by_pit() -> Option<u64> {
    const GATE: u16 = 0x61;
    const COMMAND: u16 = 0x43;
    const CHANNEL_2: u16 = 0x42;
    // SAFETY: nobody else uses channel 2; the speaker stays off.
    unsafe {
        port::write_u8(GATE, port::read_u8(GATE) & !2 | 1);
        // Mode 2 (rate generator), both bytes; count 0 is 65536.
        port::write_u8(COMMAND, 0b1011_0100);
        port::write_u8(CHANNEL_2, 0);
        port::write_u8(CHANNEL_2, 0);
    }
    let read = || {
        // SAFETY: latches and reads the count.
        let count = unsafe {
            port::write_u8(COMMAND, 0b1000_0000);
            port::read_u8(CHANNEL_2) as u32 | (port::read_u8(CHANNEL_2) as u32) << 8
        };
        // It counts down.
        count.wrapping_neg() & 0xffff
    };
    measure(PIT_HZ, read, 0xffff)
}

/// Measures against the local APIC's timer, where a hypervisor defines its rate: KVM's and QEMU's own count
/// nanoseconds (KVM's APIC_BUS_CYCLE_NS, QEMU's emulated APIC).
fn frequency_by_apic() -> Option<u64> {
    let info = CpuId::new().get_hypervisor_info()?;
    if !matches!(info.identify(), Hypervisor::KVM | Hypervisor::QEMU) {
        return None;
    }
    apic::start_measuring();
    let frequency = measure(NANOSECONDS, apic::measured, u32::MAX);
    apic::arm_timer(0);
    frequency
}

/// Spins for a time, for hardware that wants a pause.
pub fn delay_us(microseconds: u64) {
    let frequency = FREQUENCY.load(Ordering::Relaxed);
    let start = tsc();
    let wanted = (frequency as u128 * microseconds as u128 / 1_000_000) as u64;
    while tsc().wrapping_sub(start) < wanted {
        core::hint::spin_loop();
    }
}
