//! An open directory of the host.
//!
//! The server's offsets say where an entry's successor is, in words of the host's file system. Ours count from 3 on; see [`Dirent`].

use alloc::vec::Vec;

use super::session::Fid;
use super::wire::Reader;
use crate::errno::{Errno, Result};
use crate::fs::dentry::NAME_MAX;
use crate::fs::directory::Listing;
use crate::fs::inode::Dirent;
use crate::fs::stat::FileType;
use crate::memory::fallible::TryVec;
use crate::process;
use crate::sync::Mutex;

/// Where the entries begin.
const FIRST: u64 = 2;
/// The greatest offset that lseek(2) can say.
const LAST: u64 = i64::MAX as u64;
/// Bytes of entries that are asked for at a time.
const BATCH: usize = 32 << 10;

/// Entries that the server has told.
struct Told {
    bytes: Vec<u8>,
    at: usize,
    /// The offset at which the next of them begins, or else the next question.
    next: u64,
}

/// The open directory.
pub struct OpenDirectory {
    fid: Fid,
    told: Mutex<Told>,
}

/// The server's offset for ours. The greatest is the end of some file systems, and stays what it is.
fn to_server(offset: u64) -> u64 {
    if offset >= LAST { LAST } else { offset.saturating_sub(FIRST + 1) }
}

fn from_server(offset: u64) -> u64 {
    offset.saturating_add(FIRST + 1).min(LAST)
}

/// One entry, and where the next one is.
fn entry<'a>(bytes: &mut Reader<'a>) -> Result<Dirent<'a>> {
    let (ino, offset, kind) = (bytes.file_number()?, bytes.u64()?, bytes.u8()?);
    let kind = FileType::from_mode(u32::from(kind & 0xf) << 12).unwrap_or(FileType::Anonymous);
    Ok(Dirent { ino, next_offset: from_server(offset), kind, name: bytes.text()? })
}

/// Can a directory have an entry of this name, beside those that every one has?
fn is_name(name: &[u8]) -> bool {
    let dots = matches!(name, b"." | b"..");
    (1..=NAME_MAX).contains(&name.len()) && !dots && !name.contains(&b'/') && !name.contains(&0)
}

impl OpenDirectory {
    /// For a fid that is open.
    pub fn new(fid: Fid) -> Self {
        Self { fid, told: Mutex::new(Told { bytes: Vec::new(), at: 0, next: FIRST }) }
    }
}

impl Listing for OpenDirectory {
    fn readdir(&self, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
        // Who has it may wait for the server.
        let mut told = self.told.lock_killable().ok_or(Errno::EINTR)?;
        let told = &mut *told;
        if told.next != from || from == FIRST {
            // From the begin all is asked anew, as rewinddir(3) wants.
            told.bytes.clear();
            (told.at, told.next) = (0, from);
        }
        // A server that leads in a circle, past entries that are none, is not followed.
        let mut asked = None;
        loop {
            if told.at >= told.bytes.len() {
                if process::is_killed() {
                    return Err(Errno::EINTR);
                }
                if asked.replace(told.next) == Some(told.next) {
                    return Err(Errno::EIO);
                }
                told.at = 0;
                told.bytes.clear();
                told.bytes.try_resize(BATCH, 0)?;
                let read = self.fid.read_directory(to_server(told.next), &mut told.bytes);
                told.bytes.truncate(*read.as_ref().unwrap_or(&0));
                if read? == 0 {
                    return Ok(());
                }
            }
            let mut rest = Reader(&told.bytes[told.at..]);
            let Ok(entry) = entry(&mut rest) else {
                told.bytes.clear();
                return Err(Errno::EIO);
            };
            if is_name(entry.name) && !emit(entry) {
                return Ok(());
            }
            told.next = entry.next_offset;
            told.at = told.bytes.len() - rest.0.len();
        }
    }

    fn sync(&self) -> Result<()> {
        self.fid.sync()
    }
}
