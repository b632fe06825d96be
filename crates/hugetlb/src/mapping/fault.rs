//! The fault path: from the host's call to the protocol.

use super::Mapping;
use crate::addr::{PhysAddr, VirtAddr};
use crate::error::FaultError;
use crate::machine::Machine;
use crate::sharing::{Access, Fault};

impl<M: Machine> Mapping<M> {
    /// Resolves a fault at `address`: when it returns `Ok` the access can be tried again. The host holds its
    /// address-space lock for reading.
    ///
    /// # Errors
    ///
    /// See [`FaultError`]: each value names its signal.
    pub fn fault(&self, address: VirtAddr, access: Access) -> Result<(), FaultError> {
        self.fault_then(address, access, |_| ())
    }

    /// As [`Mapping::fault`], then shows `work` the frame that the address leads to, while the page can go nowhere: for
    /// accesses by the host (ptrace, `/proc/PID/mem`). `work` must not fault on this file itself.
    ///
    /// # Errors
    ///
    /// As [`Mapping::fault`].
    pub fn fault_then<T>(
        &self,
        address: VirtAddr,
        access: Access,
        work: impl FnOnce(PhysAddr) -> T,
    ) -> Result<T, FaultError> {
        let index = self.index(address).ok_or(FaultError::NotMapped)?;
        self.file.hugetlb().counters().fault(index).all.add(1);
        // Before the index: whoever excludes all faults of the file locks indices later.
        let _fence = self.file.protocol().fault_fence(&self.file);
        let fault = Fault {
            file: &self.file,
            area: &self.area,
            address: address.floor(self.page_size().level()),
            access,
            fill: None,
            // Two faults on one page, and a fault and the page's removal, come one after the other.
            index: self.file.lock_index(index)?,
        };
        let page =
            if self.area.is_shared() { self.file.protocol().fault(&fault)? } else { fault.private()? };
        // The index is still locked.
        Ok(work(page.frame()))
    }
}
