//! The protocol `none`: nothing is shared; what sharing saves is measured against it.

use core::ops::Range;

use super::{Batch, Change, Fault, Protocol, Purpose, Table, next_slot, publish};
use crate::addr::VirtAddr;
use crate::area::{Area, Exclusive, Placement};
use crate::error::{FaultError, OutOfMemory};
use crate::file::File;
use crate::machine::Machine;
use crate::pool::Page;
use crate::state::State;
use crate::sync::{Arc, ReadGuard, WriteGuard};

pub(super) struct NoSharing;

pub(super) const PROTOCOL: NoSharing = NoSharing;

impl<M: Machine> Protocol<M> for NoSharing {
    fn file_state(&self) -> State {
        State::NONE
    }

    fn area_state(&self) -> State {
        State::NONE
    }

    fn fault_fence<'f>(&self, _: &'f File<M>) -> Option<ReadGuard<'f, M, ()>> {
        None
    }

    fn change_fence<'f>(&self, _: &'f File<M>) -> Option<WriteGuard<'f, M, ()>> {
        None
    }

    fn fault(&self, fault: &Fault<'_, M>) -> Result<Arc<Page<M>>, FaultError> {
        let placement = fault.lock_mapping()?;
        // What can fail comes before the page: see `Mapping::fill`.
        let entry = fault.host_entry()?;
        let page = fault.page()?;
        publish::<M>(entry, &page, fault.permitted(placement.protection));
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
    ) -> (Change, Option<VirtAddr>) {
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

    fn unmap_for_good(&self, _: &File<M>, run: Range<u64>, unmap: &dyn Fn(Range<u64>)) {
        unmap(run);
    }

    fn split(&self, _: &Area<M>, _: &Exclusive<'_, M>, _: u64, _: &Area<M>) {}

    fn table(&self, _: &Area<M>, _: u64) -> Option<Table> {
        None
    }
}
