//! hugetlbfs: a tree of names over files of huge pages, with the mount's quota.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;

use ::hugetlb::{HUGETLBFS_MAGIC, MountOptions, Superblock as Quota};
use linux_raw_sys::general as abi;

use super::file::{HugeFile, Node};
use super::machine::Kernel;
use super::{errno, system};
use crate::errno::Result;
use crate::fs::dentry::Dentry;
use crate::fs::inode::{InodeOps, Superblock, SuperblockOps};
use crate::fs::registry::MountRequest;
use crate::fs::tree::{self, InodeCharge, TreeFs};
use crate::fs::{Statfs, caller};
use crate::sync::SpinLock;

/// The part of a mount that its inodes share.
struct Shared {
    quota: Arc<Quota<Kernel>>,
}

impl TreeFs for Shared {
    fn charge_inode(&self) -> Result<()> {
        self.quota.count_inode().map_err(errno)
    }

    fn uncharge_inode(&self) {
        self.quota.uncount_inode();
    }

    fn regular(&self, charge: InodeCharge) -> Box<dyn InodeOps> {
        // The tree has charged the inode already.
        let content = self.quota.create_charged_file();
        Box::new(Node::new(HugeFile::new(content, abi::F_SEAL_SEAL), Some(charge)))
    }
}

/// One mount of hugetlbfs.
struct HugetlbFs {
    quota: Arc<Quota<Kernel>>,
    /// Holds the tree until the last mount is gone.
    root: SpinLock<Option<Arc<Dentry>>>,
}

impl SuperblockOps for HugetlbFs {
    fn statfs(&self) -> Statfs {
        let statistics = self.quota.statistics();
        Statfs {
            magic: HUGETLBFS_MAGIC,
            block_size: statistics.block_size,
            blocks: statistics.blocks,
            blocks_free: statistics.free_blocks,
            blocks_available: statistics.free_blocks,
            files: statistics.inodes,
            files_free: statistics.free_inodes,
            name_max: 255,
        }
    }

    fn options(&self) -> String {
        self.quota.to_string()
    }

    fn kill(&self) {
        let root = self.root.lock().take();
        if let Some(root) = root {
            tree::teardown(&root);
        }
    }
}

/// For the registry of file-system types.
pub(super) fn mount(request: &MountRequest) -> Result<Arc<Dentry>> {
    let options = MountOptions::parse(request.options).map_err(errno)?;
    let quota = Quota::new(system(), options).map_err(errno)?;
    let (own_uid, own_gid) = caller::current_ids();
    let (uid, gid) = (options.uid.unwrap_or(own_uid), options.gid.unwrap_or(own_gid));
    let fs = HugetlbFs { quota: quota.clone(), root: SpinLock::new(None) };
    let superblock = Superblock::mounted("hugetlbfs", fs)?;
    let shared: Arc<dyn TreeFs> = Arc::new(Shared { quota });
    let root = tree::new_root(&superblock, &shared, options.mode.unwrap_or(0o755), uid, gid)?;
    if let Some(fs) = superblock.ops_as::<HugetlbFs>() {
        *fs.root.lock() = Some(root.clone());
    }
    Ok(root)
}
