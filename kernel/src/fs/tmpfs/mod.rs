//! tmpfs: files in memory, also for the root file system and memfd_create(2).

mod file;
mod memory;
mod ops;
mod secret;

pub use memory::{memfd, secret};

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::any::Any;
use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};

use super::caller;
use super::dentry::Dentry;
use super::inode::{Inode, InodeOps, SetAttributes, Superblock, SuperblockOps};
use super::registry::{MountRequest, options, parse_size};
use super::stat::Statfs;
use super::tree::{self, InodeCharge, TreeFs};
use crate::errno::{Errno, Result};
use crate::memory::fallible::Text;
use crate::memory::{self as physical, PAGE_SIZE, reserve};
use crate::sync::SpinLock;

/// `TMPFS_MAGIC`.
pub const MAGIC: u64 = 0x0102_1994;

/// `RAMFS_MAGIC`.
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// The limits of one tmpfs and what is used of them. 0 stands for no limit.
pub struct Limits {
    max_pages: AtomicU64,
    used_pages: AtomicU64,
    max_inodes: AtomicU64,
    used_inodes: AtomicU64,
    /// Bytes of extended attributes. They count against the number of inodes.
    xattr_bytes: AtomicU64,
    /// What the options said, for `/proc/mounts`: permissions, owner and group of the root.
    root: (Option<u32>, u32, u32),
}

impl Limits {
    fn unlimited() -> Arc<Self> {
        Arc::new(Self {
            max_pages: AtomicU64::new(0),
            used_pages: AtomicU64::new(0),
            max_inodes: AtomicU64::new(0),
            used_inodes: AtomicU64::new(0),
            xattr_bytes: AtomicU64::new(0),
            root: (None, 0, 0),
        })
    }

    fn take(used: &AtomicU64, max: &AtomicU64, count: u64) -> Result<()> {
        // Ordering: counters that order nothing else; the update itself is atomic.
        let fits = |now: u64| {
            let limit = max.load(Ordering::Relaxed);
            let new = now.checked_add(count)?;
            (limit == 0 || new <= limit).then_some(new)
        };
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map(drop).map_err(|_| Errno::ENOSPC)
    }

    /// Counts pages against `size=`; `ENOSPC`.
    fn charge_pages(&self, count: u64) -> Result<()> {
        Self::take(&self.used_pages, &self.max_pages, count)
    }

    /// Counts bytes of extended attributes against `nr_inodes=`, together with the inodes; `ENOSPC`.
    fn charge_xattr(&self, bytes: u64) -> Result<()> {
        // Ordering: as in `take`.
        let fits = |now: u64| {
            let (most, inodes) =
                (self.max_inodes.load(Ordering::Relaxed), self.used_inodes.load(Ordering::Relaxed));
            let room = most.saturating_sub(inodes).saturating_mul(INODE_BYTES);
            let new = now.checked_add(bytes)?;
            (most == 0 || new < room).then_some(new)
        };
        let taken = self.xattr_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.map(drop).map_err(|_| Errno::ENOSPC)
    }

    fn uncharge_xattr(&self, bytes: u64) {
        // Ordering: as in `take`.
        self.xattr_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn uncharge_pages(&self, count: u64) {
        // Ordering: as in `take`.
        self.used_pages.fetch_sub(count, Ordering::Relaxed);
    }
}

impl TreeFs for Limits {
    fn charge_inode(&self) -> Result<()> {
        // Names and inodes stay when their maker ends.
        reserve::ask_lasting(PAGE_SIZE)?;
        Self::take(&self.used_inodes, &self.max_inodes, 1)
    }

    fn uncharge_inode(&self) {
        // Ordering: as in `take`.
        self.used_inodes.fetch_sub(1, Ordering::Relaxed);
    }

    fn regular(&self, charge: InodeCharge) -> Box<dyn InodeOps> {
        let fs: Arc<dyn Any + Send + Sync> = charge.fs().clone();
        match fs.downcast::<Limits>() {
            Ok(limits) => Box::new(ops::Node::new(charge, limits)),
            Err(_) => unreachable!("an inode of tmpfs is charged to a tmpfs"),
        }
    }

    fn entry_size(&self) -> u64 {
        // What Linux pretends an entry takes.
        20
    }

    fn check_attributes(&self, _inode: &Inode, _change: &SetAttributes) -> Result<()> {
        Ok(())
    }
}

/// One tmpfs.
struct Tmpfs {
    magic: u64,
    limits: Arc<Limits>,
    /// Holds the tree until the last mount is gone.
    root: SpinLock<Option<Arc<Dentry>>>,
}

impl SuperblockOps for Tmpfs {
    fn statfs(&self) -> Statfs {
        let l = &self.limits;
        // Ordering: a snapshot for display.
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (pages, inodes) = (get(&l.max_pages), get(&l.max_inodes));
        let free = pages.saturating_sub(get(&l.used_pages));
        Statfs {
            magic: self.magic,
            block_size: PAGE_SIZE as u64,
            blocks: pages,
            blocks_free: if pages == 0 { 0 } else { free },
            blocks_available: if pages == 0 { 0 } else { free },
            files: inodes,
            files_free: inodes.saturating_sub(get(&l.used_inodes)),
            name_max: 255,
        }
    }

    fn keeps_xattrs(&self) -> bool {
        self.magic == MAGIC
    }

    fn has_handles(&self) -> bool {
        self.magic == MAGIC
    }

    fn charge_xattr(&self, bytes: u64) -> Result<()> {
        self.limits.charge_xattr(bytes)
    }

    fn uncharge_xattr(&self, bytes: u64) {
        self.limits.uncharge_xattr(bytes);
    }

    fn options(&self) -> String {
        let l = &self.limits;
        let mut out = String::new();
        // Ordering: a snapshot for display.
        let pages = l.max_pages.load(Ordering::Relaxed);
        if pages != 0 && pages != default_pages() {
            let _ = write!(out, ",size={}k", pages.saturating_mul(PAGE_SIZE as u64 / 1024));
        }
        let inodes = l.max_inodes.load(Ordering::Relaxed);
        if inodes != 0 && inodes != default_pages() {
            let _ = write!(out, ",nr_inodes={inodes}");
        }
        if let Some(mode) = l.root.0 {
            let _ = write!(out, ",mode={mode:o}");
        }
        if l.root.1 != 0 {
            let _ = write!(out, ",uid={}", l.root.1);
        }
        if l.root.2 != 0 {
            let _ = write!(out, ",gid={}", l.root.2);
        }
        out
    }

    fn remount(&self, text: &str) -> Result<()> {
        let new = Options::parse(text)?;
        let l = &self.limits;
        // Ordering: counters that order nothing else.
        let check = |new: Option<u64>, used: &AtomicU64| match new {
            Some(n) if n != 0 && n < used.load(Ordering::Relaxed) => Err(Errno::EINVAL),
            _ => Ok(()),
        };
        check(new.pages, &l.used_pages)?;
        check(new.inodes, &l.used_inodes)?;
        if let Some(pages) = new.pages {
            l.max_pages.store(pages, Ordering::Relaxed);
        }
        if let Some(inodes) = new.inodes {
            l.max_inodes.store(inodes, Ordering::Relaxed);
        }
        Ok(())
    }

    fn kill(&self) {
        let root = self.root.lock().take();
        if let Some(root) = root {
            tree::teardown(&root);
        }
    }
}

/// Half of the memory: the default of `size=`, and of `nr_inodes=`.
fn default_pages() -> u64 {
    physical::stats().total / PAGE_SIZE as u64 / 2
}

/// What Linux takes an inode for, in bytes.
const INODE_BYTES: u64 = 1024;

fn at_most(number: u64, most: u64) -> Result<u64> {
    if number <= most { Ok(number) } else { Err(Errno::EINVAL) }
}

#[derive(Default)]
struct Options {
    pages: Option<u64>,
    inodes: Option<u64>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Options {
    fn parse(text: &str) -> Result<Self> {
        let mut out = Self::default();
        for (name, value) in options(text) {
            let value = || value.ok_or(Errno::EINVAL);
            let number = || value()?.parse::<u32>().map_err(|_| Errno::EINVAL);
            let page = PAGE_SIZE as u64;
            match name {
                "size" => out.pages = Some(parse_size(value()?, physical::stats().total)?.div_ceil(page)),
                "nr_blocks" => out.pages = Some(at_most(parse_size(value()?, 0)?, i64::MAX as u64)?),
                "nr_inodes" => out.inodes = Some(at_most(parse_size(value()?, 0)?, u64::MAX / INODE_BYTES)?),
                "mode" => {
                    let mode = u32::from_str_radix(value()?, 8).map_err(|_| Errno::EINVAL)?;
                    out.mode = Some(mode & 0o7777);
                }
                "uid" => out.uid = Some(caller::kernel_uid(number()?)?),
                "gid" => out.gid = Some(caller::kernel_gid(number()?)?),
                // Placement and huge pages: there is nothing to choose from here, and Linux's defaults are
                // what happens.
                "huge" if value()? == "never" => {}
                "mpol" if value()?.starts_with("default") || value()?.starts_with("local") => {}
                "inode32" | "inode64" | "noswap" => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(out)
    }
}

/// Makes a tmpfs of the named type (`rootfs` is one, too), whose root has these permissions unless an option
/// says otherwise.
pub fn new_instance(kind: &'static str, text: &str, permissions: u32) -> Result<Arc<Dentry>> {
    let options = Options::parse(text)?;
    let own = caller::current_ids();
    let (uid, gid) = (options.uid.unwrap_or(own.0), options.gid.unwrap_or(own.1));
    let limits = Arc::new(Limits {
        max_pages: AtomicU64::new(options.pages.unwrap_or_else(default_pages)),
        used_pages: AtomicU64::new(0),
        max_inodes: AtomicU64::new(options.inodes.unwrap_or_else(default_pages)),
        used_inodes: AtomicU64::new(0),
        xattr_bytes: AtomicU64::new(0),
        root: (options.mode, uid, gid),
    });
    let magic = if kind == "ramfs" { RAMFS_MAGIC } else { MAGIC };
    let superblock =
        Superblock::mounted(kind, Tmpfs { magic, limits: limits.clone(), root: SpinLock::new(None) })?;
    let fs: Arc<dyn TreeFs> = limits;
    let root = tree::new_root(&superblock, &fs, options.mode.unwrap_or(permissions), uid, gid)?;
    if let Some(tmpfs) = superblock.ops_as::<Tmpfs>() {
        *tmpfs.root.lock() = Some(root.clone());
    }
    Ok(root)
}

/// For the registry: ramfs, which is a tmpfs without limits and with no option but the mode.
pub fn mount_ramfs(request: &MountRequest) -> Result<Arc<Dentry>> {
    let mut text = Text::from("size=0,nr_inodes=0");
    for (name, value) in options(request.options) {
        if name == "mode" {
            text.push_str(",mode=");
            text.push_str(value.unwrap_or_default());
        }
    }
    new_instance("ramfs", &text.into_string()?, 0o755)
}

/// For the registry of file-system types.
pub fn mount(request: &MountRequest) -> Result<Arc<Dentry>> {
    new_instance("tmpfs", request.options, 0o1777)
}
