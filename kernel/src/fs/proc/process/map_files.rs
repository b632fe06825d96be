//! `/proc/PID/map_files`: the files that are mapped, each by the range of its area.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use super::Target;
use crate::errno::{Errno, Result};
use crate::fs::caller;
use crate::fs::dentry::Dentry;
use crate::fs::file::File;
use crate::fs::inode::{Dirent, Inode, InodeOps};
use crate::fs::path::Path;
use crate::fs::stat::FileType;
use crate::memory::PAGE_SIZE;
use crate::mm::view::{AreaName, AreaView};
use crate::process::{self, CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN};
use crate::sched;

/// The directory.
pub struct MapFiles(pub Target);

/// The numbers of its entries begin here: none of another directory of the process has such. That two of them may be alike tells nobody
/// anything.
const FIRST: u64 = 210 << 16;

/// A range as it is spelled: hexadecimal, and no zeros in front.
fn parse(name: &[u8]) -> Result<Range<u64>> {
    let number = |digits: &str| {
        let plain = digits == "0" || !digits.starts_with(['0', '+']);
        u64::from_str_radix(digits, 16).ok().filter(|_| plain)
    };
    let text = core::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
    let (start, end) = text.split_once('-').ok_or(Errno::ENOENT)?;
    Ok(number(start).ok_or(Errno::ENOENT)?..number(end).ok_or(Errno::ENOENT)?)
}

fn file_of(area: &AreaView) -> Option<&Arc<File>> {
    match &area.name {
        AreaName::File(file) => Some(file),
        _ => None,
    }
}

/// The file of the area with exactly this range.
fn find(target: &Target, range: &Range<u64>) -> Result<Arc<File>> {
    let mm = target.memory()?.ok_or(Errno::ENOENT)?;
    let some = mm.areas_from(range.start);
    some.first().filter(|area| area.range == *range).and_then(file_of).cloned().ok_or(Errno::ENOENT)
}

impl MapFiles {
    fn number(area: u64) -> u64 {
        FIRST | (area / PAGE_SIZE as u64) & 0xffff
    }
}

impl InodeOps for MapFiles {
    fn lookup(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        self.0.thread().map_err(|_| Errno::ENOENT)?;
        self.0.check_access()?;
        let range = parse(name)?;
        let file = find(&self.0, &range)?;
        let read = if file.readable() { 0o400 } else { 0 };
        let write = if file.writable() { 0o200 } else { 0 };
        // What a range shows changes at any time: each look makes it anew.
        let make = || {
            let (target, number) = (self.0.clone(), Self::number(range.start));
            Ok(self.0.inode(number, FileType::Symlink, read | write, Link { target, range }))
        };
        dir.child(name, |_| false, make)
    }

    fn readdir(&self, _: &Arc<Dentry>, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
        /// The offset of an area at address 0.
        const FIRST_OFFSET: u64 = 2;
        self.0.thread().map_err(|_| Errno::ENOENT)?;
        self.0.check_access()?;
        let mut next = from.saturating_sub(FIRST_OFFSET).saturating_mul(PAGE_SIZE as u64);
        while let Some(mm) = self.0.memory()? {
            let some = mm.areas_from(next);
            let Some(last) = some.last() else { break };
            next = last.range.end;
            for area in some.iter().filter(|area| file_of(area).is_some()) {
                let name = format!("{:x}-{:x}", area.range.start, area.range.end);
                let entry = Dirent {
                    ino: self.0.ino(Self::number(area.range.start)),
                    next_offset: area.range.end / PAGE_SIZE as u64 + FIRST_OFFSET,
                    kind: FileType::Symlink,
                    name: name.as_bytes(),
                };
                if !emit(entry) {
                    return Ok(());
                }
            }
            sched::cond_resched();
        }
        Ok(())
    }
}

/// One of its links.
struct Link {
    target: Target,
    range: Range<u64>,
}

impl Link {
    fn place(&self) -> Result<Path> {
        Ok(find(&self.target, &self.range)?.path().clone())
    }
}

impl InodeOps for Link {
    fn readlink(&self, _: &Inode) -> Result<Vec<u8>> {
        self.place()?.display(&caller::root())
    }

    /// As Linux: a file that was mapped may be one that the caller could not open by its name, so that this needs a capability.
    fn follow(&self) -> Option<Result<Path>> {
        let own = process::current().credentials();
        let may = own.capable(CAP_SYS_ADMIN) || own.capable(CAP_CHECKPOINT_RESTORE);
        Some(if may { self.place() } else { Err(Errno::EPERM) })
    }
}
