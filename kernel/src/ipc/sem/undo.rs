//! What the end of a process undoes: `SEM_UNDO`.
//!
//! Processes and threads that share a list of it (`CLONE_SYSVSEM`) hold an [`UndoList`]; when the last lets go, the adjustments are applied. The
//! adjustments of a set are in the set, under its lock. The list knows only which sets have some of its own.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use super::{MAX_VALUE, Set, State};
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::process::{self, Charge};
use crate::sched;
use crate::sync::SpinLock;

/// The sets in which a list has adjustments.
struct Sets {
    number: u64,
    sets: SpinLock<BTreeMap<i32, Weak<Set>>>,
}

/// The adjustments that one list has in a set.
pub(super) struct Undo {
    list: Weak<Sets>,
    pub(super) adjustments: Vec<i16>,
    _charge: Charge,
}

/// Applies the adjustments when it goes.
struct Owner(Arc<Sets>);

/// One thread's share of a list.
#[derive(Clone)]
pub struct UndoList(Arc<Owner>);

impl UndoList {
    /// An empty list.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: only the numbers have to differ.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Owner(Arc::new(Sets { number, sets: SpinLock::growing(BTreeMap::new()) }))))
    }
}

impl UndoList {
    /// The same for all threads that share the list, and for no others.
    pub fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

/// The number of the current thread's list, which has room for adjustments in this set.
pub(super) fn prepare(set: &Arc<Set>) -> Result<u64> {
    let list = process::current().undo_list();
    let sets = &list.0.0;
    let mut state = set.state.lock();
    if state.removed {
        return Err(Errno::EIDRM);
    }
    if let Entry::Vacant(entry) = state.undos.entry(sets.number) {
        let adjustments = fallible::filled(0, set.size)?;
        let charge = process::current().process.charges.add(size_of_val(&*adjustments));
        entry.insert(Undo { list: Arc::downgrade(sets), adjustments, _charge: charge });
        sets.sets.lock().insert(set.id, Arc::downgrade(set));
    }
    Ok(sets.number)
}

impl State {
    /// The set is removed: nothing is undone in it.
    pub(super) fn forget_undos(&mut self, id: i32) {
        for undo in core::mem::take(&mut self.undos).into_values() {
            if let Some(list) = undo.list.upgrade() {
                list.sets.lock().remove(&id);
            }
            sched::cond_resched();
        }
    }

    /// The semaphores from `first` on that are fewer than `count` have got their values by semctl(2): nothing of before is undone.
    pub(super) fn clear_adjustments(&mut self, first: usize, count: usize) {
        for undo in self.undos.values_mut() {
            undo.adjustments[first..first + count].fill(0);
            sched::cond_resched();
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let sets = core::mem::take(&mut *self.0.sets.lock());
        let pid = crate::ipc::current_pid();
        for set in sets.into_values().filter_map(|set| set.upgrade()) {
            let mut state = set.state.lock();
            let Some(undo) = state.undos.remove(&self.0.number) else { continue };
            let changed = || undo.adjustments.iter().enumerate().filter(|(_, adjustment)| **adjustment != 0);
            for (index, adjustment) in changed() {
                let semaphore = &mut state.semaphores[index];
                let value = i32::from(semaphore.value) + i32::from(*adjustment);
                semaphore.value = value.clamp(0, MAX_VALUE) as u16;
                semaphore.pid = pid;
            }
            state.settle(changed().map(|(index, _)| index as u16));
            drop(state);
            sched::cond_resched();
        }
    }
}
