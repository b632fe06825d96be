//! Which regions each address space has attached, for shootdowns.
//!
//! A shootdown of a region, or of a file that is mapped in one, asks each CPU for the address space that it
//! runs, and here what that has attached. So its cost does not depend on how many processes have the region
//! attached.
//!
//! The crate `kernel-models` builds this file with loom's atomics: an attach and a detach against a change in
//! the region.

use alloc::collections::BTreeMap;

use smallvec::SmallVec;

use crate::sync::SpinLock;
use crate::sync::mutant::{self, Mutant};
use crate::sync::primitive::{AtomicUsize, Ordering, constructor, fence};

/// The ids of the regions that one address space has attached, one for each attachment. There are as many as
/// a root has entries at most.
type Regions = SmallVec<[u64; 4]>;

/// A part of the list, by the spaces' ids.
pub type Part = SpinLock<BTreeMap<u64, Regions>>;

/// The list, in parts, so that CPUs seldom meet.
pub struct Spaces<const PARTS: usize> {
    parts: [Part; PARTS],
    /// Attachments of all address spaces.
    attachments: AtomicUsize,
}

impl<const PARTS: usize> Spaces<PARTS> {
    constructor! {
        /// From empty parts.
        pub fn new(parts: [Part; PARTS]) -> Self {
            Self { parts, attachments: AtomicUsize::new(0) }
        }
    }

    fn part(&self, space: u64) -> &Part {
        &self.parts[space as usize % PARTS]
    }

    /// The space gets an attachment of the region, both by the ids of their tables; `write` writes its entries.
    ///
    /// Race: the region changes at this moment. The list comes before the first entry, and a full fence between:
    /// either the change's shootdown finds the space, or the hardware, by an entry that is written later, finds
    /// the changed table.
    pub fn attach<T>(&self, space: u64, region: u64, write: impl FnOnce() -> T) -> T {
        if mutant::is(Mutant::AttachedBeforeListed) {
            let written = write();
            self.add(space, region);
            return written;
        }
        self.add(space, region);
        if !mutant::is(Mutant::ListedWithoutFence) {
            fence(Ordering::SeqCst);
        }
        write()
    }

    fn add(&self, space: u64, region: u64) {
        self.attachments.fetch_add(1, Ordering::Relaxed);
        self.part(space).lock().entry(space).or_default().push(region);
    }

    /// The space has one attachment of the region less. `clear` clears its entries, and has the space's CPUs forget
    /// what they know by them.
    ///
    /// Race: the region changes at this moment. Until the space's own flush is done it is on the list, so that the
    /// change's shootdown reaches it; after it no CPU of the space can read anything of the region.
    pub fn detach(&self, space: u64, region: u64, clear: impl FnOnce()) {
        if mutant::is(Mutant::UnlistedBeforeDetached) {
            self.remove(space, region);
            return clear();
        }
        clear();
        self.remove(space, region);
    }

    fn remove(&self, space: u64, region: u64) {
        let mut part = self.part(space).lock();
        if let Some(regions) = part.get_mut(&space) {
            if mutant::is(Mutant::AllUnlisted) {
                regions.retain(|id| *id != region);
            } else if let Some(place) = regions.iter().position(|id| *id == region) {
                regions.swap_remove(place);
            }
            if regions.is_empty() {
                part.remove(&space);
            }
        }
        drop(part);
        // Release: whoever finds no attachment at all has the flush of the last one behind it.
        self.attachments.fetch_sub(1, Ordering::Release);
    }

    /// Has the space a region attached of whose id `concerned` says yes? The caller has changed what the region
    /// shows before, with a full fence behind the change.
    pub fn has_attached(&self, space: u64, concerned: &dyn Fn(u64) -> bool) -> bool {
        // Acquire: see `remove`.
        if self.attachments.load(Ordering::Acquire) == 0 {
            return false;
        }
        // `concerned` may take locks.
        let regions = self.part(space).lock().get(&space).cloned().unwrap_or_default();
        regions.into_iter().any(concerned)
    }
}
