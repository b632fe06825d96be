//! The protocol `vma-lock`: a fault is fenced by its mapping's own lock.
//!
//! **The fence.** A fault holds its area's lock for reading from the look at the PUD entry to the store of the leaf; who
//! detaches a mapping (unmap, protect, move, split, truncate, punch) holds that area's lock for writing. So a fault
//! that found a table is attached to it when it writes. Mappings of others go on: their lock is another one.
//!
//! **The price.** Truncation and hole punch visit and detach every mapping of the file, and each comes back by a fault.

use core::ops::Range;

use super::Fault;
use super::adopted::{self, Adopted, Fence};
use crate::error::FaultError;
use crate::file::File;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::state::State;
use crate::sync::{Arc, ReadGuard, WriteGuard};

pub(super) struct VmaLock;

pub(super) const PROTOCOL: Adopted<VmaLock> = Adopted(VmaLock);

impl<M: Machine> Fence<M> for VmaLock {
    fn file_state(&self) -> State {
        State::NONE
    }

    fn fault_fence<'f>(&self, _: &'f File<M>) -> Option<ReadGuard<'f, M, ()>> {
        None
    }

    fn change_fence<'f>(&self, _: &'f File<M>) -> Option<WriteGuard<'f, M, ()>> {
        None
    }

    fn fault(&self, fault: &Fault<'_, M>) -> Result<Arc<Page<M>>, FaultError> {
        // The fence: held until the leaf is written.
        let placement = fault.lock_mapping()?;
        let target = adopted::find_target(fault, &placement)?;
        if Mutant::MappingUnlockedEarly.is_on() {
            drop(placement);
        }
        let page = fault.page()?;
        target.publish(&page);
        Ok(page)
    }

    fn unmap_for_good(&self, file: &File<M>, run: Range<u64>, unmap: &dyn Fn(Range<u64>)) {
        adopted::unmap_for_good(file, run, unmap);
    }
}
