//! Memory that is allocated before a lock is taken, so that nothing allocates under one and a failure is an error.

use alloc::vec::Vec;

use summary_tree::{Entry, SummaryTree};

use crate::error::OutOfMemory;

/// A map behind a lock. An entry is allocated before the lock is taken, and freed after.
pub(crate) type Tree<K, V> = SummaryTree<K, V, ()>;
/// An entry for a [`Tree`], or from one.
pub(crate) type Leaf<K, V> = Entry<K, V, ()>;

/// An empty vector with room for `count`.
pub(crate) fn vec_with_room<T>(count: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
    Ok(memory)
}
