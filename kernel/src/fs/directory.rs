//! Open directories: what getdents64(2) reads.

use alloc::sync::Arc;

use linux_raw_sys::general as abi;

use super::file::{File, FileOps, Whence};
use super::inode::{Dirent, Inode};
use super::notify;
use super::stat::FileType;
use crate::errno::{Errno, Result};
use crate::sched;

/// The operations of an open directory; its position is a directory offset.
pub struct DirectoryFile;

impl DirectoryFile {
    /// For one open file.
    pub fn new() -> Arc<Self> {
        Arc::new(Self)
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
        Ok(())
    }
}

/// Reports entries of the open directory from its position on, `.` and `..` first, until `emit` returns
/// false; the position ends behind the last that was taken.
pub fn read(file: &File, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
    if file.ops_as::<DirectoryFile>().is_none() {
        return Err(Errno::ENOTDIR);
    }
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
        dir.inode.ops.readdir(dir, start.max(2), &mut taken)
    })?;
    notify::happened(dir, abi::IN_ACCESS);
    Ok(())
}
