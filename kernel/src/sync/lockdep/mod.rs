//! Which locks are taken inside of which, in kernels with the feature `lockdep`: an order that was ever reversed is a panic.
//!
//! A lock's class is the place at which it is made; of a lock that a library makes, the place at which it is taken first. When a lock is
//! taken while others are held, an edge leads from each of their classes to its class. A cycle of edges is a deadlock that has not
//! happened yet: the report shows what is held now, and for each edge of the way back where it was seen first.
//!
//! Locks of one class are not compared with each other, but for a lock that is taken twice: such are taken in the order of addresses
//! or numbers, or down a tree. What is tried without waiting adds no edge. A reader counts as a writer: a writer that waits keeps new
//! readers out.
//!
//! Such kernels also count how often each class of spin lock was taken and how long it was held at most: [`report`]. A kernel with the
//! feature `lock-times` does nothing but that: its times are those of the kernel as it is shipped, and some eighty instructions for each
//! lock that is taken meanwhile.

#[cfg(feature = "lockdep")]
mod breaker;
mod class;
mod graph;
mod held;
pub mod stretch;

#[cfg(feature = "lockdep")]
pub use breaker::break_rule;
pub use class::Class;
pub use held::Held;

use core::fmt::Write;
use core::panic::Location;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch::{clock, interrupts};
use crate::errno::Result;
use crate::fs::sys;
use crate::memory::fallible::Text;
use crate::process;

/// Whether this kernel looks at locks at all.
const ON: bool = cfg!(any(feature = "lockdep", feature = "lock-times"));
/// Whether it looks at their order, not only at times.
const ORDER: bool = cfg!(feature = "lockdep");

/// What a lock's holder may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It spins: its holder neither sleeps nor allocates.
    Spin,
    /// The same, but small allocations are made under it: [`super::SpinLock::growing`].
    Growing,
    /// It spins and keeps interrupts off.
    Irq,
    /// Its waiters sleep.
    Sleep,
}

/// A lock is about to be waited for at `site`.
#[inline]
pub fn before<L>(class: &Class, lock: &L, site: &'static Location<'static>) {
    if ORDER {
        before_checked(class, ptr::from_ref(lock).addr(), site);
    }
}

/// It was taken.
#[inline]
pub fn taken<L>(class: &Class, lock: &L, kind: Kind, site: &'static Location<'static>) {
    if ON {
        taken_checked(class, ptr::from_ref(lock).addr(), kind, site);
    }
}

/// It is about to be given back.
#[inline]
pub fn released<L>(lock: &L) {
    if ON {
        released_checked(ptr::from_ref(lock).addr());
    }
}

fn before_checked(class: &Class, lock: usize, site: &'static Location<'static>) {
    let Some(thread) = process::try_current() else { return };
    let class = class.number(site);
    let problem = interrupts::without(|| {
        thread.locks.each(|held| {
            if held.lock == lock {
                return Err(Problem::Twice(held.site));
            }
            graph::add(held.class, class, held.site, site)
                .map_err(|()| Problem::Reversed(held.class, held.site))
        })
    });
    match problem {
        Ok(()) => {}
        Err(Problem::Twice(first)) => panic!("lockdep: a lock is taken at {site} that is held since {first}"),
        Err(Problem::Reversed(held, held_site)) => reversed(&thread, class, site, held, held_site),
    }
}

enum Problem {
    Twice(&'static Location<'static>),
    Reversed(u16, &'static Location<'static>),
}

#[cold]
fn reversed(
    thread: &process::Thread,
    class: u16,
    site: &'static Location<'static>,
    held: u16,
    held_site: &'static Location<'static>,
) -> ! {
    let mut text = Text::new();
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "lockdep: an order of locks is reversed\n  {} is wanted at {site}\n  while held:",
        class::name(class)
    );
    let _ = thread.locks.each(|held| {
        let _ = write!(text, "\n    {} since {}", class::name(held.class), held.site);
        Ok::<(), ()>(())
    });
    let _ =
        write!(text, "\n  {} was held at {held_site}; the way from the first to that:", class::name(held));
    graph::show_way(class, held, &mut text);
    panic!("{text}");
}

fn taken_checked(class: &Class, lock: usize, kind: Kind, site: &'static Location<'static>) {
    let Some(thread) = process::try_current() else { return };
    let kind = if kind == Kind::Spin && class.grows() { Kind::Growing } else { kind };
    let class = class.number(site);
    let since = clock::tsc();
    interrupts::without(|| thread.locks.push(held::Entry { lock, class, kind, site, since }));
}

fn released_checked(lock: usize) {
    let Some(thread) = process::try_current() else { return };
    let entry = interrupts::without(|| thread.locks.remove(lock));
    if let Some(entry) = entry
        && entry.kind != Kind::Sleep
    {
        class::note_hold(entry.class, clock::tsc().wrapping_sub(entry.since), entry.site);
    }
}

/// The heap gives memory. Under a spin lock it is not asked for any: whoever needs some there has set it aside before. The exceptions are
/// locks over what grows ([`super::SpinLock::growing`]), unless one of the others is held, too.
#[inline]
pub fn note_allocation(bytes: usize) {
    if !ON {
        return;
    }
    let Some(thread) = process::try_current() else { return };
    let (last, forbids) = interrupts::without(|| thread.locks.innermost_spins());
    if let Some(held) = last {
        class::note_allocation(held.class);
    }
    // Relaxed: a flag of its own.
    if ORDER
        && let Some(held) = forbids
        && IS_UP.load(Ordering::Relaxed)
    {
        allocated(&held, bytes);
    }
}

/// Bring-up is over: until then one CPU fills the kernel's lists, and nobody waits for the locks.
static IS_UP: AtomicBool = AtomicBool::new(false);

/// The first process is about to run its program: see [`note_allocation`].
pub fn system_is_up() {
    // Relaxed: a flag of its own.
    IS_UP.store(true, Ordering::Relaxed);
}

#[cold]
fn allocated(held: &held::Entry, bytes: usize) {
    /// What a panic itself allocates is no second one.
    static TOLD: AtomicBool = AtomicBool::new(false);
    // Relaxed: a flag of its own.
    if !TOLD.swap(true, Ordering::Relaxed) {
        panic!(
            "lockdep: {bytes} bytes are allocated under the lock {} of kind {:?} held since {}",
            class::name(held.class),
            held.kind,
            held.site
        );
    }
}

/// Each class with how often it was taken, how long it was held at most (in counts of the time-stamp counter, where it was taken
/// then), and how often memory was allocated under it.
pub fn report() -> Text {
    let mut text = Text::from("taken longest-hold allocations class longest-at\n");
    class::report(&mut text);
    text
}

/// Registers `lock_stat` and `stretch_stat` in `/sys/kernel/debug`; writing to one begins it anew.
pub fn register() -> Result<()> {
    if !ON {
        return Ok(());
    }
    let reset_classes = |_: &str| {
        class::reset();
        Ok(())
    };
    sys::register("kernel/debug/lock_stat", || report().into_string(), reset_classes)?;
    let reset_stretches = |_: &str| {
        stretch::reset();
        Ok(())
    };
    sys::register("kernel/debug/stretch_stat", || stretch::report().into_string(), reset_stretches)
}
