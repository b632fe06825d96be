//! Where the bytes of an archive's files come from.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

/// Where a file's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Given here.
    Bytes(Vec<u8>),
    /// Read from this file of the host when the archive is written.
    Host(PathBuf),
    /// Read from a file that holds many.
    Part(Part),
}

/// A part of an open file: of a tarball.
#[derive(Clone, Debug)]
pub struct Part {
    /// The file.
    pub whole: Arc<File>,
    /// Where the part begins, bytes.
    pub offset: u64,
    /// Its length, bytes.
    pub len: u64,
}

impl PartialEq for Part {
    fn eq(&self, other: &Part) -> bool {
        Arc::ptr_eq(&self.whole, &other.whole) && (self.offset, self.len) == (other.offset, other.len)
    }
}

impl Eq for Part {}

/// What two names of one file have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Device and inode on the host.
    Inode(u64, u64),
    /// Address of the open file, and the place in it.
    Part(usize, u64),
}

impl Content {
    /// All of the bytes. An error names the file.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Content::Bytes(bytes) => Ok(bytes.clone()),
            Content::Host(path) => fs::read(path)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
            Content::Part(Part { whole, offset, len }) => {
                let mut bytes = Vec::new();
                let end = offset.saturating_add(*len);
                Positioned { file: whole, at: *offset, end }.read_to_end(&mut bytes)?;
                if bytes.len() as u64 != *len {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the tarball was cut short"));
                }
                Ok(bytes)
            }
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        match self {
            Content::Bytes(bytes) => bytes.is_empty(),
            Content::Host(path) => fs::metadata(path).is_ok_and(|data| data.len() == 0),
            Content::Part(part) => part.len == 0,
        }
    }

    /// What it shares with other names of the same file; none for what can have no other.
    pub fn identity(&self) -> Option<Identity> {
        match self {
            Content::Bytes(_) => None,
            Content::Host(path) => {
                let data = fs::metadata(path).ok().filter(|data| data.nlink() > 1)?;
                Some(Identity::Inode(data.dev(), data.ino()))
            }
            // Empty files may begin where the next one does.
            Content::Part(part) if part.len == 0 => None,
            Content::Part(part) => Some(Identity::Part(Arc::as_ptr(&part.whole).addr(), part.offset)),
        }
    }
}

/// Reads a range of a file that others read, too.
struct Positioned<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let len = left.min(buffer.len());
        let count = self.file.read_at(&mut buffer[..len], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}
