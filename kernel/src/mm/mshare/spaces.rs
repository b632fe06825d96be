//! Which regions each address space has attached, for shootdowns.
//!
//! A shootdown of a region, or of a file that is mapped in one, asks each CPU for the address space that it
//! runs, and here what that has attached. So its cost does not depend on how many processes have the region
//! attached.

use alloc::collections::BTreeMap;
use core::sync::atomic::{AtomicUsize, Ordering};

use smallvec::SmallVec;

use crate::sync::SpinLock;

/// The ids of the regions that one address space has attached, one for each attachment. There are as many as
/// a root has entries at most.
type Regions = SmallVec<[u64; 4]>;

/// Parts of the list, so that CPUs seldom meet.
const SHARDS: usize = 64;

static LIST: [SpinLock<BTreeMap<u64, Regions>>; SHARDS] = [const { SpinLock::new(BTreeMap::new()) }; SHARDS];
/// Attachments of all address spaces.
static ATTACHMENTS: AtomicUsize = AtomicUsize::new(0);

fn shard(space: u64) -> &'static SpinLock<BTreeMap<u64, Regions>> {
    &LIST[space as usize % SHARDS]
}

/// The space gets an attachment of the region; both by the ids of their tables. To be called before the first
/// entry is written.
pub(super) fn attach(space: u64, region: u64) {
    // SeqCst: see `has_attached`.
    ATTACHMENTS.fetch_add(1, Ordering::SeqCst);
    shard(space).lock().entry(space).or_default().push(region);
}

/// The space has one attachment of the region less. To be called after the flush that follows the last entry.
pub(super) fn detach(space: u64, region: u64) {
    let mut list = shard(space).lock();
    if let Some(regions) = list.get_mut(&space) {
        if let Some(place) = regions.iter().position(|id| *id == region) {
            regions.swap_remove(place);
        }
        if regions.is_empty() {
            list.remove(&space);
        }
    }
    drop(list);
    ATTACHMENTS.fetch_sub(1, Ordering::SeqCst);
}

/// Has the space a region attached of whose id `concerned` says yes? The caller has changed what the region
/// shows before.
pub fn has_attached(space: u64, concerned: &dyn Fn(u64) -> bool) -> bool {
    // Race: the space attaches now. If neither the count nor the list show it yet, its entry is written later
    // than this is read, so later than the change: what the hardware walks by that entry is the changed
    // table.
    if ATTACHMENTS.load(Ordering::SeqCst) == 0 {
        return false;
    }
    // `concerned` may take locks.
    let regions = shard(space).lock().get(&space).cloned().unwrap_or_default();
    regions.into_iter().any(concerned)
}
