//! How long threads stay in the kernel without a chance for others, in checked kernels.
//!
//! A stretch begins where a thread enters the kernel or comes onto a CPU in it. It ends where the thread gives way if another one is due: in
//! `cond_resched`, where it sleeps, and on its way to user mode.

use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};

use alloc::string::String;

use crate::arch::clock;
use crate::arch::cpu::MAX_CPUS;
use crate::arch::percpu::PerCpu;
use crate::process;

/// When the present stretch began, in counts of the time-stamp counter.
static BEGIN: PerCpu<AtomicU64> = PerCpu::new([const { AtomicU64::new(0) }; MAX_CPUS]);

/// System calls by number; the last one is what else brings a thread into the kernel.
const KINDS: usize = 513;

/// The longest stretch of each.
static LONGEST: [AtomicU64; KINDS] = [const { AtomicU64::new(0) }; KINDS];

/// A stretch begins.
#[inline]
pub fn begin() {
    if super::ON {
        // Relaxed: the CPU's own word.
        BEGIN.store(clock::tsc(), Ordering::Relaxed);
    }
}

/// A stretch of the current thread ends, and another one begins.
#[inline]
pub fn end() {
    if !super::ON {
        return;
    }
    let now = clock::tsc();
    // Relaxed: the CPU's own word.
    let began = BEGIN.swap(now, Ordering::Relaxed);
    let Some(thread) = process::try_current() else { return };
    if !thread.is_kernel() {
        // Relaxed: the thread's own word, and statistics.
        let call = (thread.syscall.load(Ordering::Relaxed) as usize).min(KINDS - 1);
        LONGEST[call].fetch_max(now.saturating_sub(began), Ordering::Relaxed);
    }
}

/// The longest stretch of each system call, the longest first.
pub(super) fn report() -> String {
    let mut lines: alloc::vec::Vec<_> = LONGEST
        .iter()
        .enumerate()
        .map(|(call, longest)| (longest.load(Ordering::Relaxed), call))
        .filter(|(longest, _)| *longest > 0)
        .collect();
    lines.sort_unstable_by(|a, b| b.cmp(a));
    let mut text = String::from("longest-stretch call\n");
    for (longest, call) in lines {
        let name = syscalls::Sysno::new(call).map_or("faults-and-interrupts", |call| call.name());
        // Writing to a string does not fail.
        let _ = writeln!(text, "{longest} {name}");
    }
    text
}

pub(super) fn reset() {
    LONGEST.iter().for_each(|longest| longest.store(0, Ordering::Relaxed));
}
