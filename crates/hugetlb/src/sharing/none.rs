//! The protocol `none`: nothing is shared; what sharing saves is measured against it.

use super::{Change, Protocol, Slot, Table};
use crate::addr::{PageIndex, VirtAddr};
use crate::error::OutOfMemory;
use crate::file::File;
use crate::machine::Machine;
use crate::mapping::{Area, Batch};
use crate::sync::Arc;

pub(super) struct NoSharing;

impl<M: Machine> Protocol<M> for NoSharing {
    fn table_for_fault(
        &self,
        _: &File<M>,
        _: &Area<M>,
        _: Slot,
    ) -> Result<Option<Arc<Table<M>>>, OutOfMemory> {
        Ok(None)
    }

    fn prepare_change(
        &self,
        _: &Area<M>,
        _: VirtAddr,
        _: PageIndex,
        _: bool,
        _: &mut Batch<'_, M>,
    ) -> Change<M> {
        Change::NoTable
    }
}
