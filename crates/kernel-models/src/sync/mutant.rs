//! Which mutant a model runs with.

#[path = "../../../../kernel/src/sync/mutants.rs"]
mod mutants;

use std::sync::atomic::{AtomicUsize, Ordering};

pub use mutants::{ALL, Mutant};

/// The place of the chosen one in [`ALL`], counted from 1. A process has one for all its life.
static CHOSEN: AtomicUsize = AtomicUsize::new(0);

/// Breaks the kernel in this way from now on.
pub fn choose(mutant: Option<Mutant>) {
    CHOSEN.store(mutant.map_or(0, |mutant| mutant as usize + 1), Ordering::SeqCst);
}

/// Whether the kernel is broken in this way.
pub fn is(mutant: Mutant) -> bool {
    CHOSEN.load(Ordering::SeqCst) == mutant as usize + 1
}
