//! The protocol `none`: nothing is shared; what sharing saves is measured against it.

use super::{Change, Protocol, Purpose};
use crate::error::FaultError;
use crate::file::File;
use crate::machine::Machine;
use crate::mapping::{Area, Batch, Fault, Placement, Slot, publish};
use crate::pool::Page;
use crate::sync::Arc;

pub(super) struct NoSharing;

impl<M: Machine> Protocol<M> for NoSharing {
    fn fault(&self, fault: &Fault<'_, M>) -> Result<Arc<Page<M>>, FaultError> {
        let placement = fault.lock_mapping()?;
        let page = fault.page()?;
        publish(fault.host_entry()?, &page, placement.protection);
        Ok(page)
    }

    fn attach(&self, file: &File<M>, area: &Arc<Area<M>>, _: &Placement) {
        area.enlist(file);
    }

    fn prepare_change(&self, _: &Area<M>, _: Slot, _: Purpose, _: &mut Batch<'_, M>) -> Change<M> {
        Change::Host
    }
}
