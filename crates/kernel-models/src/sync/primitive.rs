//! loom's atomics.

pub use core::sync::atomic::Ordering;
pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, fence};

/// How often a waiter looks again before it sleeps.
pub const SPINS: u32 = 0;

/// Readers that are given a lock in one hold of its queue's lock: fewer than the models have.
pub const AT_ONCE: usize = 1;

/// A spinning CPU lets the others go on.
pub fn spin_loop() {
    loom::thread::yield_now();
}

/// loom's atomics are not made by constants.
macro_rules! constructor {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),*) -> Self $body:block) => {
        $(#[$attribute])*
        $visibility fn $name($($argument: $type),*) -> Self $body
    };
}
pub(crate) use constructor;
