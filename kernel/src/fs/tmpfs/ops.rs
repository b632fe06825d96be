//! Calls on a regular file of tmpfs: checks and locks around its content.

use alloc::sync::Arc;
use core::fmt::Write as _;
use core::ops::Range;

use linux_raw_sys::general as abi;

use super::Limits;
use super::file::{MAX_SIZE, PAGE, RegularFile};
use crate::errno::{Errno, Result};
use crate::fs::file::{AT_END, File, FileOps, Whence};
use crate::fs::inode::{Inode, InodeOps, SetAttributes};
use crate::fs::iobuf::{Sink, Source};
use crate::fs::path::Path;
use crate::fs::seals::Seals;
use crate::fs::stat::Stat;
use crate::fs::tree::InodeCharge;
use crate::fs::{attributes, caller};
use crate::memory::fallible::Text;
use crate::mm::backing::Backing;

/// What the inode of a regular file holds.
pub struct Node {
    file: Arc<RegularFile>,
    _charge: Option<InodeCharge>,
}

impl Node {
    /// An empty file of a mounted tmpfs; it cannot be sealed.
    pub fn new(charge: InodeCharge, limits: Arc<Limits>) -> Self {
        Self { file: RegularFile::new(limits, abi::F_SEAL_SEAL), _charge: Some(charge) }
    }

    /// An empty file outside of any tree, with seals to begin with.
    pub fn detached(limits: Arc<Limits>, seals: u32) -> Self {
        Self { file: RegularFile::new(limits, seals), _charge: None }
    }

    /// The content.
    pub fn file(&self) -> &Arc<RegularFile> {
        &self.file
    }
}

impl InodeOps for Node {
    fn open(&self, path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>> {
        self.file.identify(path.inode());
        Ok(self.file.clone())
    }

    fn stat(&self, _inode: &Inode, stat: &mut Stat) {
        stat.size = self.file.len();
        stat.blocks = self.file.pages.count() * (PAGE / 512);
    }

    fn set_attributes(&self, inode: &Inode, change: &SetAttributes) -> Result<()> {
        const EXECUTE: u32 = 0o111;
        let changes = |new: u32| (new ^ inode.attributes().permissions) & EXECUTE != 0;
        if !self.file.seals.allow_change_of_execution() && change.permissions.is_some_and(changes) {
            return Err(Errno::EPERM);
        }
        Ok(())
    }

    fn truncate(&self, _inode: &Inode, size: u64) -> Result<()> {
        self.file.resize(size)
    }
}

impl FileOps for RegularFile {
    fn appends(&self) -> bool {
        true
    }

    fn seekable(&self) -> bool {
        true
    }

    fn read_at(&self, file: &File, offset: u64, sink: &mut Sink) -> Result<usize> {
        let count = self.read_from(offset, sink)?;
        attributes::file_accessed(file);
        Ok(count)
    }

    fn write_at(&self, file: &File, offset: &mut u64, source: &mut Source) -> Result<usize> {
        // Nothing at all happens, not even to the position.
        if source.remaining() == 0 {
            return Ok(0);
        }
        let inode = file.inode();
        let _writers = inode.lock.lock_killable().ok_or(Errno::EINTR)?;
        if file.appending() || *offset == AT_END {
            *offset = self.len();
        }
        let room = caller::write_room(*offset, MAX_SIZE)?;
        let cut = source.truncate(room.min(usize::MAX as u64) as usize);
        attributes::remove_privileges(inode);
        let result = self.write_to(*offset, source);
        source.extend(cut);
        if result.is_ok() {
            inode.touch_modified();
        }
        result
    }

    fn seek(&self, _file: &File, whence: Whence, offset: i64, position: u64) -> Result<u64> {
        let size = self.len();
        let base = match whence {
            Whence::Start => 0,
            Whence::Current => position,
            Whence::End => size,
            Whence::Data | Whence::Hole => {
                let from = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
                if from >= size {
                    return Err(Errno::ENXIO);
                }
                let pages = &self.pages;
                let found = if whence == Whence::Data {
                    pages.next_data(from / PAGE).ok_or(Errno::ENXIO)?
                } else {
                    pages.next_hole(from / PAGE)
                };
                let at = (found * PAGE).max(from);
                return match whence {
                    Whence::Data if at >= size => Err(Errno::ENXIO),
                    _ => Ok(at.min(size)),
                };
            }
        };
        let at = i64::try_from(base).ok().and_then(|b| b.checked_add(offset)).ok_or(Errno::EINVAL)?;
        u64::try_from(at).map_err(|_| Errno::EINVAL)
    }

    fn seals(&self) -> Option<&Arc<Seals>> {
        Some(&self.seals)
    }

    fn mmap(&self, file: &Arc<File>, _offset: u64, _len: u64) -> Result<Backing> {
        let cache: Arc<RegularFile> = file.ops_arc().ok_or(Errno::ENODEV)?;
        Ok(Backing::PageCache(cache))
    }

    fn truncate(&self, file: &File, size: u64) -> Result<()> {
        let inode = file.inode();
        let _writers = inode.lock.lock_killable().ok_or(Errno::EINTR)?;
        self.resize(size)?;
        attributes::remove_privileges(inode);
        inode.touch_modified();
        Ok(())
    }

    fn fallocate(&self, file: &File, mode: u32, offset: u64, len: u64) -> Result<()> {
        let inode = file.inode();
        let _writers = inode.lock.lock_killable().ok_or(Errno::EINTR)?;
        if mode & !abi::FALLOC_FL_KEEP_SIZE == 0 {
            attributes::check_size_limit(inode, offset.saturating_add(len))?;
        }
        self.allocate(mode, offset, len)?;
        attributes::remove_privileges(inode);
        inode.touch_modified();
        Ok(())
    }

    fn cached_pages(&self, range: Range<u64>) -> Result<u64> {
        Ok(self.pages.count_in(range))
    }

    fn sync(&self, _file: &File) -> Result<()> {
        // Memory is where the file lives.
        Ok(())
    }

    fn fcntl(&self, file: &File, command: u32, argument: usize) -> Result<usize> {
        self.seals.fcntl(file, command, argument, || self.has_writable_mapping())
    }

    fn describe(&self, _file: &File, out: &mut Text) {
        let _ = writeln!(out, "size:\t{}", self.len());
    }
}
