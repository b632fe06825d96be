//! msharefs: a tree of names over regions of address space that processes share, page tables included.
//!
//! The face of [`crate::mm::mshare`], as the last published patches for Linux have it (version 3, August
//! 2025): a file is a region, its size is set once, ioctl(2) maps and unmaps inside, mmap(2) attaches.
//! `mshare_info` in the root tells what sizes and addresses are multiples of.

mod file;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use linux_raw_sys::general as abi;

use self::file::Node;
use super::dentry::Dentry;
use super::inode::{Attributes, Inode, InodeOps, Superblock, SuperblockOps};
use super::pseudo::{Functions, TextInode};
use super::registry::{MountRequest, options, register_filesystem};
use super::stat::{FileType, Statfs};
use super::tree::{self, InodeCharge, TreeFs};
use super::{caller, sys};
use crate::errno::{Errno, Result};
use crate::memory::{self, PAGE_SIZE, reserve};
use crate::mm::mshare::{self, GRANULE};
use crate::sync::SpinLock;

/// `MSHARE_MAGIC` of the patches.
const MAGIC: u64 = 0x4d53_4852;

/// What the inodes of a mount have in common.
struct Shared {
    used: AtomicU64,
    max: u64,
}

impl TreeFs for Shared {
    fn charge_inode(&self) -> Result<()> {
        // Names and inodes stay when their maker ends.
        reserve::ask_lasting(PAGE_SIZE)?;
        // Relaxed, here and below: a counter that orders nothing else.
        let fits = |used: u64| (used < self.max).then_some(used + 1);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .map(drop)
            .map_err(|_| Errno::ENOSPC)
    }

    fn uncharge_inode(&self) {
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    fn regular(&self, charge: InodeCharge) -> Box<dyn InodeOps> {
        Box::new(Node::new(charge))
    }
}

/// One mount.
struct MshareFs {
    /// Holds the tree until the last mount is gone.
    root: SpinLock<Option<Arc<Dentry>>>,
    shared: Arc<Shared>,
}

impl SuperblockOps for MshareFs {
    fn statfs(&self) -> Statfs {
        let used = self.shared.used.load(Ordering::Relaxed);
        Statfs {
            magic: MAGIC,
            block_size: PAGE_SIZE as u64,
            files: self.shared.max,
            files_free: self.shared.max.saturating_sub(used),
            name_max: 255,
            ..Statfs::default()
        }
    }

    fn kill(&self) {
        let root = self.root.lock().take();
        if let Some(root) = root {
            tree::teardown(&root);
        }
    }
}

/// For the registry of file-system types. There are no options.
fn mount(request: &MountRequest) -> Result<Arc<Dentry>> {
    if options(request.options).next().is_some() {
        return Err(Errno::EINVAL);
    }
    // As many names as tmpfs lets there be.
    let max = memory::stats().total / PAGE_SIZE as u64 / 2;
    let shared = Arc::new(Shared { used: AtomicU64::new(0), max });
    let fs = MshareFs { root: SpinLock::new(None), shared: shared.clone() };
    let superblock = Superblock::mounted("msharefs", fs)?;
    let tree: Arc<dyn TreeFs> = shared;
    let (uid, gid) = caller::current_ids();
    let root = tree::new_root(&superblock, &tree, 0o777 | abi::S_ISVTX, uid, gid)?;
    let text = Functions { show: || Ok(alloc::format!("{GRANULE}\n")), store: |_: &str| Err(Errno::EIO) };
    let attributes = Attributes::new(0o444, 0, 0);
    let info = Inode::new(&superblock, FileType::Regular, attributes, TextInode(Arc::new(text)));
    tree::add_file(&root, b"mshare_info", info)?;
    if let Some(fs) = superblock.ops_as::<MshareFs>() {
        *fs.root.lock() = Some(root.clone());
    }
    Ok(root)
}

/// Makes the type known, the directory to mount it on, and what is counted.
pub fn init() -> Result<()> {
    register_filesystem("msharefs", mount);
    sys::make_directory("fs/mshare")?;
    let show = |name: &str, value: fn(&mshare::Statistics) -> u64| {
        let path = alloc::format!("kernel/mm/mshare/{name}");
        sys::register_read_only(&path, move || -> Result<String> {
            Ok(alloc::format!("{}\n", value(&mshare::statistics())))
        })
    };
    show("regions", |all| all.regions)?;
    show("attachments", |all| all.attachments)?;
    show("pages", |all| all.pages)?;
    show("table_bytes", |all| all.table_bytes)
}
