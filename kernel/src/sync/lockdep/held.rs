//! The locks that a thread holds.

use core::cell::UnsafeCell;
use core::panic::Location;

use super::Kind;

/// One of them.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub lock: usize,
    pub class: u16,
    pub kind: Kind,
    pub site: &'static Location<'static>,
    /// When it was taken, in counts of the time-stamp counter.
    pub since: u64,
}

/// More are not looked at.
const MOST: usize = if super::ON { 24 } else { 0 };

struct List {
    entries: [Option<Entry>; MOST],
    count: usize,
}

/// A thread's locks, in the order in which it took them; those that interrupts on top of it take are among them.
pub struct Held(UnsafeCell<List>);

// SAFETY: only the thread itself uses it, with interrupts off.
unsafe impl Sync for Held {}
// SAFETY: it has no tie to a CPU.
unsafe impl Send for Held {}

impl Held {
    pub const fn new() -> Self {
        Self(UnsafeCell::new(List { entries: [None; MOST], count: 0 }))
    }

    #[allow(clippy::mut_from_ref)]
    fn list(&self) -> &mut List {
        // SAFETY: called by the thread itself with interrupts off, for the time of one of the methods below.
        unsafe { &mut *self.0.get() }
    }

    pub(super) fn push(&self, entry: Entry) {
        let list = self.list();
        if let Some(slot) = list.entries.get_mut(list.count) {
            *slot = Some(entry);
            list.count += 1;
        }
    }

    pub(super) fn remove(&self, lock: usize) -> Option<Entry> {
        let list = self.list();
        let index = list.entries[..list.count].iter().rposition(|e| e.is_some_and(|e| e.lock == lock))?;
        let entry = list.entries[index];
        list.entries.copy_within(index + 1..list.count, index);
        list.count -= 1;
        entry
    }

    /// Calls `f` with each, until it fails.
    pub(super) fn each<E>(&self, mut f: impl FnMut(Entry) -> Result<(), E>) -> Result<(), E> {
        let list = self.list();
        list.entries[..list.count].iter().flatten().try_for_each(|entry| f(*entry))
    }

    /// The spin lock that was taken last, and the last one under which nothing is allocated.
    pub(super) fn innermost_spins(&self) -> (Option<Entry>, Option<Entry>) {
        let list = self.list();
        let mut spins = list.entries[..list.count]
            .iter()
            .rev()
            .flatten()
            .filter(|entry| entry.kind != Kind::Sleep)
            .copied();
        let last = spins.next();
        (last, last.into_iter().chain(spins).find(|entry| entry.kind != Kind::Growing))
    }
}

impl Default for Held {
    fn default() -> Self {
        Self::new()
    }
}
