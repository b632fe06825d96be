//! `/proc/PID/fd` and `/proc/PID/fdinfo`.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_raw_sys::general as abi;

use super::super::bytes;
use super::super::system::put;
use super::Target;
use crate::errno::{Errno, Result};
use crate::fs::caller;
use crate::fs::dentry::Dentry;
use crate::fs::file::File;
use crate::fs::inode::{Dirent, Inode, InodeOps};
use crate::fs::path::Path;
use crate::fs::pseudo::{Text, TextInode};
use crate::fs::stat::FileType;
use crate::memory::fallible;

/// Offset of descriptor 0.
const FIRST_OFFSET: u64 = 2;

/// One of the two directories.
pub struct Descriptors {
    pub target: Target,
    /// `fdinfo`.
    pub info: bool,
}

/// A descriptor as it is spelled.
fn parse(name: &[u8]) -> Result<i32> {
    let plain = name == b"0" || name.first() != Some(&b'0') && name.iter().all(u8::is_ascii_digit);
    let text = core::str::from_utf8(name).ok().filter(|_| plain).ok_or(Errno::ENOENT)?;
    text.parse().map_err(|_| Errno::ENOENT)
}

/// An open file of a process that the current thread may look into.
fn open_file(target: &Target, fd: i32) -> Result<Arc<File>> {
    target.check_access()?;
    let thread = target.thread().map_err(|_| Errno::ENOENT)?;
    let files = thread.try_files().ok_or(Errno::ENOENT)?;
    let file = files.get(fd).map_err(|_| Errno::ENOENT)?;
    // It may be a program's that has taken the place of the other meanwhile.
    target.check_access()?;
    Ok(file)
}

impl InodeOps for Descriptors {
    fn lookup(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        let fd = parse(name)?;
        let file = open_file(&self.target, fd)?;
        let target = self.target.clone();
        let number = 1 << 23 | u64::from(self.info) << 22 | fd as u64;
        // What a number stands for changes at any time: each look makes it anew.
        dir.child(
            name,
            |_| false,
            || {
                Ok(if self.info {
                    let text = Arc::new(Info { target: target.clone(), fd });
                    target.inode(number, FileType::Regular, 0o400, TextInode(text))
                } else {
                    let read = if file.readable() { 0o500 } else { 0 };
                    let write = if file.writable() { 0o300 } else { 0 };
                    let link = Link { target: target.clone(), fd };
                    target.inode(number, FileType::Symlink, read | write, link)
                })
            },
        )
    }

    fn readdir(&self, _: &Arc<Dentry>, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
        self.target.check_access()?;
        let thread = self.target.thread().map_err(|_| Errno::ENOENT)?;
        let Some(files) = thread.try_files() else { return Ok(()) };
        let mut next = from.saturating_sub(FIRST_OFFSET) as usize;
        while let Some((fd, file)) = files.next_open(next) {
            drop(file);
            next = fd as usize + 1;
            let name = format!("{fd}");
            let entry = Dirent {
                ino: self.target.ino(1 << 23 | u64::from(self.info) << 22 | fd as u64),
                next_offset: next as u64 + FIRST_OFFSET,
                kind: if self.info { FileType::Regular } else { FileType::Symlink },
                name: name.as_bytes(),
            };
            if !emit(entry) {
                break;
            }
        }
        Ok(())
    }
}

/// `/proc/PID/fd/N`.
struct Link {
    target: Target,
    fd: i32,
}

impl Link {
    fn place(&self) -> Result<Path> {
        Ok(open_file(&self.target, self.fd)?.path().clone())
    }
}

impl InodeOps for Link {
    fn readlink(&self, _: &Inode) -> Result<Vec<u8>> {
        self.place()?.display(&caller::root())
    }

    fn follow(&self) -> Option<Result<Path>> {
        Some(self.place())
    }
}

/// `/proc/PID/fdinfo/N`.
struct Info {
    target: Target,
    fd: i32,
}

impl Text for Info {
    fn show(&self) -> Result<Vec<u8>> {
        self.target.check_access()?;
        let thread = self.target.thread().map_err(|_| Errno::ENOENT)?;
        let files = thread.try_files().ok_or(Errno::ENOENT)?;
        let file = files.get(self.fd).map_err(|_| Errno::ENOENT)?;
        let close = files.close_on_exec(self.fd).unwrap_or(false);
        let flags = file.flags() | if close { abi::O_CLOEXEC } else { 0 };
        let mut out = fallible::Text::new();
        put!(out, "pos:\t{}\nflags:\t0{flags:o}\n", file.position());
        put!(out, "mnt_id:\t{}\nino:\t{}\n", file.path().mount.id, file.inode().ino);
        file.ops().describe(&file, &mut out);
        // It may be a program's that has taken the place of the other meanwhile.
        self.target.check_access()?;
        bytes(out)
    }
}
