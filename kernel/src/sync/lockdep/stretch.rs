//! How long threads stay in the kernel without a chance for others.
//!
//! A stretch begins where a thread enters the kernel or comes onto a CPU in it. It ends where the thread gives way if another one is due: in
//! `cond_resched`, where it sleeps, and on its way to user mode. The idle thread's begins anew each time that it wakes.

use core::fmt::Write;
use core::panic::Location;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use crate::memory::fallible::Text;

use crate::arch::clock;
use crate::arch::cpu::MAX_CPUS;
use crate::arch::percpu::PerCpu;
use crate::process;

/// When the present stretch began, in counts of the time-stamp counter.
static BEGIN: PerCpu<AtomicU64> = PerCpu::new([const { AtomicU64::new(0) }; MAX_CPUS]);

/// A place of the kernel's source.
type Place = AtomicPtr<Location<'static>>;

fn place(at: &Place) -> &'static Location<'static> {
    // SAFETY: null, or from a reference that is valid for ever. Relaxed: what it leads to never changes.
    unsafe { at.load(Ordering::Relaxed).as_ref() }.unwrap_or(Location::caller())
}

/// Where it began.
static FROM: PerCpu<Place> = PerCpu::new([const { AtomicPtr::new(ptr::null_mut()) }; MAX_CPUS]);

/// System calls by number; then what else brings a thread into the kernel, and the kernel's own threads.
const KINDS: usize = 514;
const OTHERS: usize = KINDS - 2;
const KERNEL: usize = KINDS - 1;

/// What the thread that runs is in the kernel for: its present system call, or the one that it has just ended.
static KIND: PerCpu<AtomicUsize> = PerCpu::new([const { AtomicUsize::new(OTHERS) }; MAX_CPUS]);

/// The longest stretch of each.
static LONGEST: [AtomicU64; KINDS] = [const { AtomicU64::new(0) }; KINDS];

/// Where that began and ended.
static PLACES: [[Place; 2]; KINDS] = [const { [const { AtomicPtr::new(ptr::null_mut()) }; 2] }; KINDS];

/// A stretch begins: a thread has entered the kernel, or comes onto a CPU in it.
#[inline]
#[cfg_attr(any(feature = "lockdep", feature = "lock-times"), track_caller)]
pub fn begin() {
    if super::ON {
        let kind = match process::try_current() {
            Some(thread) if thread.is_kernel() => KERNEL,
            Some(thread) => (thread.syscall.load(Ordering::Relaxed) as usize).min(OTHERS),
            None => OTHERS,
        };
        // Relaxed: the CPU's own words.
        KIND.store(kind, Ordering::Relaxed);
        FROM.store(ptr::from_ref(Location::caller()).cast_mut(), Ordering::Relaxed);
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
#[cfg_attr(any(feature = "lockdep", feature = "lock-times"), track_caller)]
pub fn end() {
    if !super::ON {
        return;
    }
    let now = clock::tsc();
    // Relaxed: the CPU's own word.
    let began = BEGIN.swap(now, Ordering::Relaxed);
    let to = ptr::from_ref(Location::caller()).cast_mut();
    let from = FROM.swap(to, Ordering::Relaxed);
    if process::try_current().is_some() {
        // Relaxed: the CPU's own word, and statistics.
        let kind = KIND.load(Ordering::Relaxed);
        let lasted = now.saturating_sub(began);
        if LONGEST[kind].fetch_max(lasted, Ordering::Relaxed) < lasted {
            PLACES[kind][0].store(from, Ordering::Relaxed);
            PLACES[kind][1].store(to, Ordering::Relaxed);
        }
    }
}

/// The longest stretch of each system call that was made.
pub(super) fn report() -> Text {
    let mut text = Text::from("longest-stretch call from to\n");
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
            let [from, to] = PLACES[call].each_ref().map(place);
            let _ = writeln!(text, "{longest} {name} {from} {to}");
        }
    }
    text
}

pub(super) fn reset() {
    LONGEST.iter().for_each(|longest| longest.store(0, Ordering::Relaxed));
}
