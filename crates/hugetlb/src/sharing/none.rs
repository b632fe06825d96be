//! The protocol `none`: nothing is shared; what sharing saves is measured against it.

use core::ops::Range;

use super::{Change, Protocol, Purpose};
use crate::addr::VirtAddr;
use crate::error::{FaultError, OutOfMemory};
use crate::file::File;
use crate::machine::Machine;
use crate::mapping::{Area, Batch, Exclusive, Fault, Placement, next_slot, publish};
use crate::pool::Page;
use crate::sync::{Arc, ReadGuard, WriteGuard};

pub(super) struct NoSharing;

impl<M: Machine> Protocol<M> for NoSharing {
    fn fault_fence<'f>(&self, _: &'f File<M>) -> Option<ReadGuard<'f, M, ()>> {
        None
    }

    fn change_fence<'f>(&self, _: &'f File<M>) -> Option<WriteGuard<'f, M, ()>> {
        None
    }

    fn fault(&self, fault: &Fault<'_, M>) -> Result<Arc<Page<M>>, FaultError> {
        let placement = fault.lock_mapping()?;
        let page = fault.page()?;
        publish::<M>(fault.host_entry()?, &page, fault.permitted(placement.protection));
        Ok(page)
    }

    fn attach(&self, _: &File<M>, _: &Arc<Area<M>>, _: &Placement) {}

    fn lists_all(&self) -> bool {
        true
    }

    fn prepare_change(
        &self,
        _: &Area<M>,
        _: &Exclusive<'_, M>,
        address: VirtAddr,
        _: Purpose,
        _: &mut Batch<'_, M>,
    ) -> (Change<M>, Option<VirtAddr>) {
        (Change::Host, next_slot(address))
    }

    fn leave_cut_slot(&self, _: &Area<M>, _: &Exclusive<'_, M>, _: VirtAddr, _: &mut Batch<'_, M>) -> bool {
        false
    }

    fn leave_slot(
        &self,
        _: &Area<M>,
        _: &Exclusive<'_, M>,
        _: VirtAddr,
        _: &mut Batch<'_, M>,
    ) -> Result<bool, OutOfMemory> {
        Ok(false)
    }

    fn unmap_for_good(&self, file: &File<M>, run: Range<u64>) {
        file.unmap_listed(run);
    }
}
