//! Unpacks the initial RAM disk into the root file system.
//!
//! It is a sequence of cpio archives, each plain or compressed with gzip, with zeroes between them. A plain
//! one is read where it lies; a compressed one goes through a window of 32 KiB. Either way the content is
//! copied once, into the page cache.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_raw_sys::general as abi;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::attributes::{self, SetTime};
use super::cpio::{Consumer, Entry, Malformed, Reader};
use super::file::File;
use super::inode::NewNode;
use super::iobuf::Source;
use super::path::{Path, Start, resolve};
use super::stat::{DeviceId, FileType, Timestamp};
use super::{modify, open};
use crate::errno::{Errno, Result};

/// Unpacks all archives in `image`. What cannot be created is reported and left out, as Linux does.
pub fn unpack(image: &[u8]) {
    let mut unpacker = Unpacker {
        start: Start::kernel(),
        links: BTreeMap::new(),
        directories: Vec::new(),
        current: None,
        failure: None,
    };
    if let Err(Malformed(why)) = unpack_all(image, &mut unpacker) {
        log::error!("initramfs: {why}");
    }
    unpacker.set_directory_times();
    if let Some((name, error)) = unpacker.failure {
        log::error!("initramfs: {}: {error}", alloc::string::String::from_utf8_lossy(&name));
    }
}

fn unpack_all(image: &[u8], to: &mut Unpacker) -> Result<(), Malformed> {
    let mut rest = image;
    let mut reader = Reader::new();
    while !rest.is_empty() {
        let left = reader.push(rest, to)?;
        if left.is_empty() {
            break;
        }
        let mut member = Reader::new();
        rest = gunzip(left, &mut member, to)?;
        if !member.at_boundary() {
            return Err(Malformed("a compressed archive ends early"));
        }
        // Whatever follows begins a stream of its own.
        reader = Reader::new();
        // Plain archives keep their alignment in the image.
        let gap = rest.iter().position(|b| *b != 0).unwrap_or(rest.len());
        rest = &rest[gap..];
    }
    if reader.at_boundary() { Ok(()) } else { Err(Malformed("an archive ends early")) }
}

/// Decompresses one gzip member at the begin of `bytes` into `reader`; returns what follows.
fn gunzip<'a>(bytes: &'a [u8], reader: &mut Reader, to: &mut Unpacker) -> Result<&'a [u8], Malformed> {
    const WINDOW: usize = 32 * 1024;
    let mut input = gzip_body(bytes)?;
    let mut state = new_decompressor();
    let mut window = alloc::vec![0u8; WINDOW];
    let mut at = 0;
    let (mut checksum, mut len) = (crc32fast::Hasher::new(), 0u32);
    loop {
        // No flags: raw deflate data, all of it in `input`, into a window that wraps around.
        let (status, taken, made) = decompress(&mut state, input, &mut window, at, 0);
        input = &input[taken..];
        let piece = &window[at..at + made];
        checksum.update(piece);
        len = len.wrapping_add(made as u32);
        let left = reader.push(piece, to)?;
        if !left.is_empty() {
            return Err(Malformed("a compressed archive holds something else"));
        }
        at = (at + made) % WINDOW;
        match status {
            TINFLStatus::Done => break,
            TINFLStatus::HasMoreOutput => {}
            _ => return Err(Malformed("damaged gzip data")),
        }
        crate::sched::cond_resched();
    }
    let (trailer, rest) = input.split_at_checked(8).ok_or(Malformed("gzip data end early"))?;
    let word = |i: usize| u32::from_le_bytes([trailer[i], trailer[i + 1], trailer[i + 2], trailer[i + 3]]);
    if word(0) != checksum.finalize() || word(4) != len {
        return Err(Malformed("the checksum of gzip data is wrong"));
    }
    Ok(rest)
}

/// A decompressor on the heap. Of its own, because the 11 KiB may be on the stack while they are made, but not
/// while files are written.
#[inline(never)]
fn new_decompressor() -> Box<DecompressorOxide> {
    Box::default()
}

/// The deflate data behind a gzip header (RFC 1952).
fn gzip_body(bytes: &[u8]) -> Result<&[u8], Malformed> {
    const TRUNCATED: Malformed = Malformed("gzip data end early");
    let header = bytes.get(..10).ok_or(Malformed("neither cpio nor gzip"))?;
    if header[..3] != [0x1f, 0x8b, 8] {
        return Err(Malformed("neither cpio nor gzip"));
    }
    let flags = header[3];
    let mut rest = &bytes[10..];
    if flags & 4 != 0 {
        let len = rest.get(..2).ok_or(TRUNCATED)?;
        let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
        rest = rest.get(2 + len..).ok_or(TRUNCATED)?;
    }
    for present in [flags & 8 != 0, flags & 16 != 0] {
        if present {
            let end = rest.iter().position(|b| *b == 0).ok_or(TRUNCATED)?;
            rest = &rest[end + 1..];
        }
    }
    if flags & 2 != 0 {
        rest = rest.get(2..).ok_or(TRUNCATED)?;
    }
    Ok(rest)
}

fn time(mtime: u32) -> SetTime {
    SetTime::At(Timestamp { seconds: mtime.into(), nanoseconds: 0 })
}

/// Device and number of a file with several names, and its type.
type LinkKey = (u32, u32, u32, u32);

/// Puts entries into the tree.
struct Unpacker {
    start: Start,
    /// The first name of each file with several.
    links: BTreeMap<LinkKey, Vec<u8>>,
    /// Directories with their times, which what is put into them changes: set in the end.
    directories: Vec<(Vec<u8>, u32)>,
    current: Option<Current>,
    /// The first thing that went wrong.
    failure: Option<(Vec<u8>, Errno)>,
}

/// The entry whose content is being read.
struct Current {
    entry: Entry,
    content: Content,
}

enum Content {
    File { file: Arc<File>, offset: u64 },
    Link(Vec<u8>),
    None,
}

impl Unpacker {
    fn begin(&mut self, entry: &Entry) -> Result<Content> {
        let name = &entry.name[..];
        let kind = FileType::from_mode(entry.mode).ok_or(Errno::EINVAL)?;
        let mode = entry.mode & 0o7777;
        match kind {
            FileType::Symlink => return Ok(Content::Link(Vec::new())),
            FileType::Directory => {
                self.clear(name, kind)?;
                match open::create(&self.start, name, NewNode::Directory, mode) {
                    Ok(_) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(error),
                }
            }
            FileType::Regular => {
                if self.link_to_first(entry)? {
                    // The content may come with any of the names.
                    if entry.size == 0 {
                        return Ok(Content::None);
                    }
                } else {
                    self.clear(name, kind)?;
                }
                let flags = abi::O_WRONLY | abi::O_CREAT | abi::O_LARGEFILE | abi::O_TRUNC;
                let file = open::open(&self.start, name, flags, mode)?;
                return Ok(Content::File { file, offset: 0 });
            }
            _ => {
                if self.link_to_first(entry)? {
                    return Ok(Content::None);
                }
                self.clear(name, kind)?;
                let device = DeviceId::new(entry.rdev.0, entry.rdev.1);
                let node = match kind {
                    FileType::CharDevice => NewNode::CharDevice(device),
                    FileType::BlockDevice => NewNode::BlockDevice(device),
                    FileType::Fifo => NewNode::Fifo,
                    _ => NewNode::Socket,
                };
                match open::create(&self.start, name, node, mode) {
                    Ok(_) => {}
                    // Of the same type by now, but perhaps another device.
                    Err(Errno::EEXIST) => {
                        modify::unlink(&self.start, name)?;
                        open::create(&self.start, name, node, mode)?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Content::None)
    }

    /// Removes what has the name when it is of another type.
    fn clear(&self, name: &[u8], kind: FileType) -> Result<()> {
        let Ok(old) = resolve(&self.start, name, false) else { return Ok(()) };
        if old.inode().kind == kind {
            Ok(())
        } else if old.inode().is_dir() {
            modify::rmdir(&self.start, name)
        } else {
            modify::unlink(&self.start, name)
        }
    }

    /// For a further name of a file that was there already: makes the link. False for a first name.
    fn link_to_first(&mut self, entry: &Entry) -> Result<bool> {
        if entry.nlink < 2 {
            return Ok(false);
        }
        let key = (entry.dev.0, entry.dev.1, entry.ino, entry.mode & abi::S_IFMT);
        let Some(first) = self.links.get(&key) else {
            self.links.insert(key, entry.name.clone());
            return Ok(false);
        };
        let first = resolve(&self.start, first, false)?;
        // Whatever is there makes way.
        if let Ok(old) = resolve(&self.start, &entry.name, false) {
            if Arc::ptr_eq(old.inode(), first.inode()) {
                return Ok(true);
            }
            if old.inode().is_dir() {
                modify::rmdir(&self.start, &entry.name)?;
            } else {
                modify::unlink(&self.start, &entry.name)?;
            }
        }
        modify::link(&self.start, &first, &entry.name)?;
        Ok(true)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        match &mut current.content {
            Content::File { file, offset } => {
                let mut source = Source::kernel(bytes);
                while source.remaining() > 0 {
                    *offset += file.write_at(*offset, &mut source)? as u64;
                }
            }
            Content::Link(target) => target.extend_from_slice(bytes),
            Content::None => {}
        }
        Ok(())
    }

    fn finish(&mut self, current: Current) -> Result<()> {
        let Current { entry, content } = current;
        let path = match content {
            Content::Link(target) => {
                let target = target.strip_suffix(&[0]).unwrap_or(&target);
                if let Ok(old) = resolve(&self.start, &entry.name, false) {
                    if old.inode().is_dir() {
                        modify::rmdir(&self.start, &entry.name)?;
                    } else {
                        modify::unlink(&self.start, &entry.name)?;
                    }
                }
                open::create(&self.start, &entry.name, NewNode::Symlink(target), 0o777)?
            }
            Content::File { file, .. } => file.path().clone(),
            Content::None => resolve(&self.start, &entry.name, false)?,
        };
        self.set_attributes(&entry, &path)
    }

    fn set_attributes(&mut self, entry: &Entry, path: &Path) -> Result<()> {
        let kernel = &self.start.credentials;
        attributes::chown(path, kernel, Some(entry.uid), Some(entry.gid))?;
        if path.inode().kind != FileType::Symlink {
            attributes::chmod(path, kernel, entry.mode & 0o7777)?;
        }
        if path.inode().is_dir() {
            self.directories.push((entry.name.clone(), entry.mtime));
            return Ok(());
        }
        attributes::set_times(path, kernel, time(entry.mtime), time(entry.mtime))
    }

    fn set_directory_times(&mut self) {
        for (name, mtime) in core::mem::take(&mut self.directories) {
            // Another archive may have put something else there.
            if let Ok(path) = resolve(&self.start, &name, false) {
                let _ = attributes::set_times(&path, &self.start.credentials, time(mtime), time(mtime));
            }
        }
    }

    fn fail(&mut self, name: Vec<u8>, error: Errno) {
        self.failure.get_or_insert((name, error));
    }
}

impl Consumer for Unpacker {
    fn entry(&mut self, entry: &Entry) {
        match self.begin(entry) {
            Ok(content) => self.current = Some(Current { entry: entry.clone(), content }),
            Err(error) => self.fail(entry.name.clone(), error),
        }
    }

    fn data(&mut self, bytes: &[u8]) {
        if let Err(error) = self.write(bytes)
            && let Some(current) = self.current.take()
        {
            self.fail(current.entry.name, error);
        }
    }

    fn end(&mut self) {
        if let Some(current) = self.current.take() {
            let name = current.entry.name.clone();
            if let Err(error) = self.finish(current) {
                self.fail(name, error);
            }
        }
        crate::sched::cond_resched();
    }

    fn trailer(&mut self) {
        self.links.clear();
    }
}
