//! How long threads stay in the kernel without a chance for others.
//!
//! A stretch begins where a thread enters the kernel or comes onto a CPU in it. It ends where the thread gives way if another one is due: in
//! `cond_resched`, where it sleeps, and on its way to user mode. The idle thread's begins anew each time that it wakes.

use core::fmt::Write;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::memory::fallible::Text;

use crate::arch::clock;
use crate::arch::cpu::MAX_CPUS;
use crate::arch::percpu::PerCpu;
use crate::process;

/// When the present stretch began, in counts of the time-stamp counter.
static BEGIN: PerCpu<AtomicU64> = PerCpu::new([const { AtomicU64::new(0) }; MAX_CPUS]);

/// System calls by number; then what else brings a thread into the kernel, and the kernel's own threads.
const KINDS: usize = 514;
const OTHERS: usize = KINDS - 2;
const KERNEL: usize = KINDS - 1;

/// What the thread that runs is in the kernel for: its present system call, or the one that it has just ended.
static KIND: PerCpu<AtomicUsize> = PerCpu::new([const { AtomicUsize::new(OTHERS) }; MAX_CPUS]);

/// The longest stretch of each.
static LONGEST: [AtomicU64; KINDS] = [const { AtomicU64::new(0) }; KINDS];

/// A stretch begins: a thread has entered the kernel, or comes onto a CPU in it.
#[inline]
pub fn begin() {
    if super::ON {
        let kind = match process::try_current() {
            Some(thread) if thread.is_kernel() => KERNEL,
            Some(thread) => (thread.syscall.load(Ordering::Relaxed) as usize).min(OTHERS),
            None => OTHERS,
        };
        // Relaxed: the CPU's own words.
        KIND.store(kind, Ordering::Relaxed);
        BEGIN.store(clock::tsc(), Ordering::Relaxed);
    }
}

/// The stretch that has just begun is that of a system call.
#[inline]
pub fn is_call(number: usize) {
    if super::ON {
        KIND.store(number.min(OTHERS), Ordering::Relaxed);
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
    if process::try_current().is_some() {
        // Relaxed: the CPU's own word, and statistics.
        LONGEST[KIND.load(Ordering::Relaxed)].fetch_max(now.saturating_sub(began), Ordering::Relaxed);
    }
}

/// The longest stretch of each system call that was made.
pub(super) fn report() -> Text {
    let mut text = Text::from("longest-stretch call\n");
    for (call, longest) in LONGEST.iter().enumerate() {
        // Relaxed: statistics.
        let longest = longest.load(Ordering::Relaxed);
        if longest > 0 {
            let name = match call {
                KERNEL => "kernel-threads",
                OTHERS => "faults-and-interrupts",
                _ => syscalls::Sysno::new(call).map_or("unknown", |call| call.name()),
            };
            // What does not fit is found out at the end.
            let _ = writeln!(text, "{longest} {name}");
        }
    }
    text
}

pub(super) fn reset() {
    LONGEST.iter().for_each(|longest| longest.store(0, Ordering::Relaxed));
}
