//! Where the parts of the kernel that have models take their atomics from.
//!
//! The crate `kernel-models` builds the same files with loom's atomics in the place of these. loom knows sequential consistency of
//! fences only: where two CPUs each write one word and then read the other's, there is a fence between the two.

pub use core::hint::spin_loop;
pub use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// How often a waiter for a sleeping lock looks again before it goes to sleep: most critical sections are shorter than two switches.
pub const SPINS: u32 = 64;

/// Readers that are given a sleeping lock in one hold of its queue's lock: more than there are CPUs for them on most machines.
pub const AT_ONCE: usize = 32;

/// A constructor that is `const` here, and not in the models.
macro_rules! constructor {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),*) -> Self $body:block) => {
        $(#[$attribute])*
        $visibility const fn $name($($argument: $type),*) -> Self $body
    };
}
pub(crate) use constructor;
