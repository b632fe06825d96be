//! Open directories: what getdents64(2) reads.

use alloc::boxed::Box;
use alloc::sync::Arc;

use linux_raw_sys::general as abi;

use super::file::{File, FileOps, Whence};
use super::inode::{Dirent, Inode};
use super::notify;
use super::stat::FileType;
use crate::errno::{Errno, Result};
use crate::sched;

/// What a file system keeps for an open directory.
pub trait Listing: Send + Sync {
    /// As [`super::inode::InodeOps::readdir`].
    fn readdir(&self, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()>;

    /// fsync(2) of the directory.
    fn sync(&self) -> Result<()>;
}

/// The operations of an open directory; its position is a directory offset.
pub struct DirectoryFile {
    listing: Option<Box<dyn Listing>>,
}

impl DirectoryFile {
    /// For one open file.
    pub fn new(inode: &Inode) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { listing: inode.ops.open_directory()? }))
    }
}

impl FileOps for DirectoryFile {
    fn seekable(&self) -> bool {
        true
    }

    fn read_at(&self, _: &File, _: u64, _: &mut super::Sink) -> Result<usize> {
        Err(Errno::EISDIR)
    }

    fn seek(&self, _file: &File, whence: Whence, offset: i64, position: u64) -> Result<u64> {
        let base = match whence {
            Whence::Start => 0,
            Whence::Current => position as i64,
            _ => return Err(Errno::EINVAL),
        };
        let at = base.checked_add(offset).ok_or(Errno::EINVAL)?;
        u64::try_from(at).map_err(|_| Errno::EINVAL)
    }

    fn sync(&self, _file: &File) -> Result<()> {
        self.listing.as_ref().map_or(Ok(()), |listing| listing.sync())
    }
}

/// Reports entries of the open directory from its position on, `.` and `..` first, until `emit` returns
/// false; the position ends behind the last that was taken.
pub fn read(file: &File, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
    let listing = &file.ops_as::<DirectoryFile>().ok_or(Errno::ENOTDIR)?.listing;
    let dir = file.dentry();
    file.with_position(|position| {
        if dir.is_removed() {
            return Err(Errno::ENOENT);
        }
        let start = *position;
        let mut taken = |entry: Dirent| {
            let next = entry.next_offset;
            let more = emit(entry);
            // A caller's buffer holds thousands.
            sched::cond_resched();
            if more {
                *position = next;
            }
            more
        };
        let dot = |name, inode: &Inode, next_offset| Dirent {
            ino: inode.ino,
            next_offset,
            kind: FileType::Directory,
            name,
        };
        if start == 0 && !taken(dot(b".", &dir.inode, 1)) {
            return Ok(());
        }
        if start <= 1 {
            let parent = file.path().parent(&super::root()).unwrap_or_else(|_| file.path().clone());
            if !taken(dot(b"..", parent.inode(), 2)) {
                return Ok(());
            }
        }
        match listing {
            Some(listing) => listing.readdir(start.max(2), &mut taken),
            None => dir.inode.ops.readdir(dir, start.max(2), &mut taken),
        }
    })?;
    notify::happened(dir, abi::IN_ACCESS);
    Ok(())
}
