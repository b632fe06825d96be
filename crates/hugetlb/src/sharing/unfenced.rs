//! The protocol `unfenced`: the race, as Linux had it before 5.7. **It corrupts memory**; it is here to be seen.
//!
//! A fault looks its table up, lets go of the mapping, clears a page (long), and writes the leaf into the table that it
//! found. Meanwhile a hole punch, a truncation or MADV_DONTNEED may detach the mapping: the table may be down and its
//! frame another's, who then sees a page that it never mapped.
//!
//! Compare with `vma_lock`, whose fault keeps the mapping's lock, and with `file_lock`, whose fault is this one inside a fence.

use core::ops::Range;

use super::Fault;
use super::adopted::{self, Adopted, Fence};
use crate::error::FaultError;
use crate::file::File;
use crate::machine::Machine;
use crate::pool::Page;
use crate::state::State;
use crate::sync::{Arc, ReadGuard, WriteGuard};

pub(super) struct Unfenced;

pub(super) const PROTOCOL: Adopted<Unfenced> = Adopted(Unfenced);

impl<M: Machine> Fence<M> for Unfenced {
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
        // The race: nothing keeps the table once the mapping is let go.
        adopted::fault_letting_go(fault)
    }

    fn unmap_for_good(&self, file: &File<M>, run: Range<u64>, unmap: &dyn Fn(Range<u64>)) {
        adopted::unmap_for_good(file, run, unmap);
    }
}
