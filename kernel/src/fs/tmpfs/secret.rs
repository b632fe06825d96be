//! Memory that nobody looks at from outside: memfd_secret(2).
//!
//! The file can only be mapped, and shared. Its pages count as locked memory of who made it. Whoever accesses memory by page tables that are not those of the current thread (ptrace(2),
//! process_vm_readv(2), `/proc/PID/mem`, vmsplice(2)) is refused by the area's flag.

use alloc::sync::Arc;

use super::Limits;
use super::file::{PAGE, RegularFile};
use crate::errno::{Errno, Result};
use crate::fs::file::{File, FileOps};
use crate::fs::inode::{Inode, InodeOps};
use crate::fs::path::Path;
use crate::fs::stat::Stat;
use crate::mm::backing::Backing;
use crate::process;
use crate::process::accounts::{Counted, Share};

/// What the inode holds.
pub(super) struct SecretNode(Arc<RegularFile>);

impl SecretNode {
    /// An empty file of the current user's.
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        let (owner, _) = Share::take(process::current().credentials().uid, Counted::SecretFiles);
        Self(RegularFile::secret(limits, owner))
    }

    /// Its content.
    pub(super) fn file(&self) -> &Arc<RegularFile> {
        &self.0
    }
}

impl InodeOps for SecretNode {
    fn open(&self, path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>> {
        self.0.identify(path.inode());
        Ok(Arc::new(SecretFile(self.0.clone())))
    }

    fn stat(&self, _inode: &Inode, stat: &mut Stat) {
        stat.size = self.0.len();
        stat.blocks = self.0.pages.count() * (PAGE / 512);
    }

    /// Its size is set once.
    fn truncate(&self, _inode: &Inode, size: u64) -> Result<()> {
        if self.0.len() != 0 { Err(Errno::EINVAL) } else { self.0.resize(size) }
    }
}

/// An open one.
pub(super) struct SecretFile(pub(super) Arc<RegularFile>);

impl FileOps for SecretFile {
    fn mmap(&self, _file: &Arc<File>, _offset: u64, _len: u64) -> Result<Backing> {
        Ok(Backing::PageCache(self.0.clone()))
    }

    fn truncate(&self, file: &File, size: u64) -> Result<()> {
        let inode = file.inode();
        let _writers = inode.lock.lock_killable().ok_or(Errno::EINTR)?;
        inode.ops.truncate(inode, size)?;
        inode.touch_modified();
        Ok(())
    }
}
