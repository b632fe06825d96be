//! The fault mutex of a page index, as a guard that other functions ask to see.

use super::File;
use crate::addr::PageIndex;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::sync::MutexGuard;

/// The fault mutex of one page index of a file, held: faults on the page and the page's removal come one after the other.
///
/// What changes the cache at an index asks for it, so that the compiler finds who forgot to lock.
pub(crate) struct IndexLock<'f, M: Machine> {
    index: PageIndex,
    _mutex: MutexGuard<'f, M, ()>,
}

impl<M: Machine> IndexLock<'_, M> {
    /// The index that is locked.
    pub(crate) fn index(&self) -> PageIndex {
        self.index
    }
}

impl<M: Machine> File<M> {
    /// Takes the fault mutex of an index. Several indices share a mutex: a thread holds one at a time.
    pub(crate) fn lock_index(&self, index: PageIndex) -> IndexLock<'_, M> {
        // A new number each time: another mutex.
        let file = if Mutant::IndexNotLocked.is_on() { self.hugetlb.next_id() } else { self.id };
        IndexLock { index, _mutex: self.hugetlb.fault_mutex(file, index).lock() }
    }
}
