//! New files: of a mount, and without one.

use crate::addr::PageSize;
use crate::error::Result;
use crate::file::File;
use crate::hugetlb::Hugetlb;
use crate::machine::Machine;
use crate::pool::Subpool;
use crate::superblock::{InodeCharge, Superblock};
use crate::sync::Arc;

fn new<M: Machine>(
    hugetlb: &Arc<Hugetlb<M>>,
    size: PageSize,
    subpool: Option<&Arc<Subpool<M>>>,
    inode: Option<InodeCharge<M>>,
) -> Arc<File<M>> {
    let state = hugetlb.protocol_kind().protocol::<M>().file_state();
    File::new(hugetlb.clone(), size, subpool.cloned(), inode, state)
}

impl<M: Machine> Hugetlb<M> {
    /// A file of `bytes` that no mount limits, for `MAP_ANONYMOUS | MAP_HUGETLB`, `shmget(SHM_HUGETLB)` and
    /// `memfd_create(MFD_HUGETLB)`; promises come with [`File::reserve`] or the mapping.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Invalid`] when `bytes` is not a multiple of the page size.
    pub fn anonymous_file(self: &Arc<Self>, size: PageSize, bytes: u64) -> Result<Arc<File<M>>> {
        let file = new(self, size, None, None);
        file.set_initial_size(bytes)?;
        Ok(file)
    }
}

impl<M: Machine> Superblock<M> {
    /// A new, empty file.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NoSpace`] when `nr_inodes=` is used up.
    pub fn create_file(self: &Arc<Self>) -> Result<Arc<File<M>>> {
        let inode = self.charge_inode()?;
        Ok(new(self.hugetlb(), self.page_size(), self.subpool(), Some(inode)))
    }

    /// A new, empty file whose inode the host has counted by [`Superblock::charge_inode`], and keeps counted as long as the
    /// file lives.
    pub fn create_charged_file(&self) -> Arc<File<M>> {
        new(self.hugetlb(), self.page_size(), self.subpool(), None)
    }
}
