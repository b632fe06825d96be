//! A file of msharefs: a region by its name.

use alloc::sync::Arc;
use core::fmt::Write as _;

use linux_raw_sys::general as abi;

use crate::errno::{Errno, Result};
use crate::fs::attributes;
use crate::fs::caller::files;
use crate::fs::file::{File, FileOps};
use crate::fs::inode::{Inode, InodeOps};
use crate::fs::path::Path;
use crate::fs::stat::Stat;
use crate::fs::tree::InodeCharge;
use crate::memory::fallible::Text;
use crate::mm::VmFlags;
use crate::mm::backing::Backing;
use crate::mm::mshare::{NewMapping, Region};
use crate::mm::uaccess::read_user;
use crate::sync::SpinLock;

/// `_IOW('x', number, size)`.
const fn command(number: u32, size: usize) -> u32 {
    1 << 30 | (size as u32) << 16 | (b'x' as u32) << 8 | number
}

/// The argument of `MSHAREFS_CREATE_MAPPING`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CreateMapping {
    region_offset: u64,
    size: u64,
    offset: u64,
    prot: u32,
    flags: u32,
    fd: i32,
}

/// The argument of `MSHAREFS_UNMAP`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Unmap {
    region_offset: u64,
    size: u64,
}

/// The argument of `MSHAREFS_PROTECT`, which the patches do not have.
#[repr(C)]
#[derive(Clone, Copy)]
struct Protect {
    region_offset: u64,
    size: u64,
    prot: u32,
    flags: u32,
}

const MSHAREFS_CREATE_MAPPING: u32 = command(0, size_of::<CreateMapping>());
const MSHAREFS_UNMAP: u32 = command(1, size_of::<Unmap>());
const MSHAREFS_PROTECT: u32 = command(2, size_of::<Protect>());

/// What an open file leads to.
struct RegionFile {
    /// `None` until the size is set.
    region: SpinLock<Option<Arc<Region>>>,
}

impl RegionFile {
    fn region(&self) -> Option<Arc<Region>> {
        self.region.lock().clone()
    }

    fn size(&self) -> u64 {
        self.region().map_or(0, |region| region.size())
    }

    /// Sets the size, once; the inode is locked. `EINVAL` for another size later.
    fn resize(&self, size: u64) -> Result<()> {
        if size == self.size() {
            return Ok(());
        }
        if self.region().is_some() {
            return Err(Errno::EINVAL);
        }
        let region = Region::new(size)?;
        *self.region.lock() = Some(region);
        Ok(())
    }
}

impl FileOps for RegionFile {
    fn ioctl(&self, file: &File, command: u32, argument: usize) -> Result<usize> {
        if !matches!(command, MSHAREFS_CREATE_MAPPING | MSHAREFS_UNMAP | MSHAREFS_PROTECT) {
            return Err(Errno::ENOTTY);
        }
        // Who may not store does not change what others see either.
        if !file.writable() {
            return Err(Errno::EACCES);
        }
        let region = self.region().ok_or(Errno::EINVAL)?;
        match command {
            MSHAREFS_CREATE_MAPPING => {
                let new: CreateMapping = read_user(argument)?;
                let is_anonymous = new.flags & abi::MAP_ANONYMOUS != 0;
                let mapped = if is_anonymous { None } else { Some(files().get(new.fd)?) };
                if !is_anonymous && !new.offset.is_multiple_of(crate::mm::PAGE) {
                    return Err(Errno::EINVAL);
                }
                region.map(NewMapping {
                    at: new.region_offset,
                    len: new.size,
                    prot: new.prot,
                    flags: new.flags,
                    file: mapped,
                    offset: new.offset,
                })?;
            }
            MSHAREFS_UNMAP => {
                let old: Unmap = read_user(argument)?;
                region.unmap(old.region_offset, old.size)?;
            }
            _ => {
                let part: Protect = read_user(argument)?;
                if part.flags != 0 {
                    return Err(Errno::EINVAL);
                }
                region.protect(part.region_offset, part.size, part.prot)?;
            }
        }
        Ok(0)
    }

    fn mmap(&self, _file: &Arc<File>, offset: u64, len: u64) -> Result<Backing> {
        let region = self.region().ok_or(Errno::EINVAL)?;
        // It is attached as a whole, or not at all.
        if offset != 0 || len != region.size() {
            return Err(Errno::EINVAL);
        }
        Ok(Backing::Region(region))
    }

    fn truncate(&self, file: &File, size: u64) -> Result<()> {
        let inode = file.inode();
        let _writers = inode.lock.lock_killable().ok_or(Errno::EINTR)?;
        self.resize(size)?;
        inode.touch_modified();
        Ok(())
    }

    fn fallocate(&self, file: &File, mode: u32, offset: u64, len: u64) -> Result<()> {
        if mode != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if offset != 0 {
            return Err(Errno::EINVAL);
        }
        attributes::check_size_limit(file.inode(), len)?;
        self.truncate(file, len)
    }

    fn sync(&self, _file: &File) -> Result<()> {
        // Memory is where it lives.
        Ok(())
    }

    /// The mappings inside, one in a line: range and rights as in `maps`, the size of its pages.
    fn describe(&self, _file: &File, out: &mut Text) {
        let Some(region) = self.region() else { return };
        let _ = writeln!(out, "size:\t{}\nattachments:\t{}", region.size(), region.attachments());
        let mut next = 0;
        while let Ok(some) = region.mapped(next)
            && let Some(last) = some.last()
        {
            next = last.range.end;
            for mapped in &some {
                let flag = |flag, letter| if mapped.flags.contains(flag) { letter } else { '-' };
                let _ = writeln!(
                    out,
                    "mapping:\t{:x}-{:x} {}{}{}{} {}",
                    mapped.range.start,
                    mapped.range.end,
                    flag(VmFlags::READ, 'r'),
                    flag(VmFlags::WRITE, 'w'),
                    flag(VmFlags::EXEC, 'x'),
                    if mapped.flags.contains(VmFlags::SHARED) { 's' } else { 'p' },
                    mapped.page_size,
                );
            }
            crate::sched::cond_resched();
        }
    }
}

/// What the inode holds.
pub(super) struct Node {
    file: Arc<RegionFile>,
    _charge: InodeCharge,
}

impl Node {
    /// A region without a size.
    pub fn new(charge: InodeCharge) -> Self {
        Self { file: Arc::new(RegionFile { region: SpinLock::new(None) }), _charge: charge }
    }
}

impl InodeOps for Node {
    fn open(&self, _path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(self.file.clone())
    }

    fn stat(&self, _inode: &Inode, stat: &mut Stat) {
        let Some(region) = self.file.region() else { return };
        stat.size = region.size();
        stat.blocks = region.pages() * (crate::mm::PAGE / 512);
    }

    fn truncate(&self, _inode: &Inode, size: u64) -> Result<()> {
        self.file.resize(size)
    }
}
