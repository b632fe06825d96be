//! The protocol `unfenced`: the race, as Linux had it before 5.7. **It corrupts memory**; it is here to be seen.
//!
//! A fault looks its table up, lets go of the mapping, clears a page (long), and writes the leaf into the table that it
//! found. Meanwhile a hole punch, a truncation or MADV_DONTNEED may detach the mapping: the table may be down and its
//! frame another's, who then sees a page that it never mapped.
//!
//! Compare with `vma_lock`: the one difference is how long the mapping's lock is held.

use super::{Change, Protocol, Purpose, adopted};
use crate::addr::PageIndex;
use crate::error::FaultError;
use crate::file::File;
use crate::machine::Machine;
use crate::mapping::{Area, Batch, Fault, Placement, Slot};
use crate::pool::Page;
use crate::sync::Arc;

pub(super) struct Unfenced;

impl<M: Machine> Protocol<M> for Unfenced {
    fn fault(&self, fault: &Fault<'_, M>) -> Result<Arc<Page<M>>, FaultError> {
        let target = {
            let placement = fault.lock_mapping()?;
            adopted::find_target(fault, &placement)?
        };
        // The race: from here on nothing keeps the table.
        let page = fault.page()?;
        target.publish(&page);
        Ok(page)
    }

    fn attach(&self, file: &File<M>, area: &Arc<Area<M>>, placement: &Placement) {
        adopted::enlist(file, area, placement);
    }

    fn prepare_change(
        &self,
        area: &Area<M>,
        slot: Slot,
        purpose: Purpose,
        batch: &mut Batch<'_, M>,
    ) -> Change<M> {
        adopted::prepare_change(area, slot, purpose, batch)
    }

    fn unmap_for_good(&self, file: &File<M>, index: PageIndex) {
        adopted::unmap_for_good(file, index);
    }
}
