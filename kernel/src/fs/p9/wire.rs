//! The messages of 9P2000.L: little-endian numbers, counted texts, and what consists of them.
//!
//! A reply is the server's word. [`Reader`] gives out nothing behind its end, and what makes no sense is `EIO`.

use crate::errno::{Errno, Result};
use crate::fs::stat::{FileType, Timestamp};

/// The tag of the message that begins a session.
pub const NO_TAG: u16 = !0;
/// The fid that stands for none.
pub const NO_FID: u32 = !0;
/// The reply that is an error's number.
pub const ERROR_REPLY: u8 = 7;

/// What a request is; its reply's number is the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Statfs = 8,
    Open = 12,
    Create = 14,
    Symlink = 16,
    MakeNode = 18,
    ReadLink = 22,
    GetAttributes = 24,
    SetAttributes = 26,
    ReadDirectory = 40,
    Sync = 50,
    Link = 70,
    MakeDirectory = 72,
    Rename = 74,
    Unlink = 76,
    Version = 100,
    Attach = 104,
    Walk = 110,
    Read = 116,
    Write = 118,
    Clunk = 120,
}

/// Writes a message.
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    /// The message is to be in `buffer`.
    pub fn new(buffer: &'a mut [u8], kind: Kind, tag: u16) -> Self {
        let mut this = Self { buffer, len: 0 };
        // The size comes last.
        this.u32(0).u8(kind as u8).u16(tag);
        this
    }

    /// Puts bytes; [`Writer::finish`] tells of those that had no room.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let end = self.len.saturating_add(bytes.len());
        if let Some(place) = self.buffer.get_mut(self.len..end) {
            place.copy_from_slice(bytes);
        }
        self.len = end;
        self
    }

    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A text: its length, and its bytes.
    pub fn text(&mut self, text: &[u8]) -> &mut Self {
        // No name and no path is as long as that; a longer one has no room anyway.
        self.u16(text.len().min(usize::from(u16::MAX)) as u16).bytes(text)
    }

    /// The message's length, once its size stands at its begin. `EMSGSIZE` when it had no room.
    pub fn finish(self) -> Result<usize> {
        let size = u32::try_from(self.len).map_err(|_| Errno::EMSGSIZE)?;
        if self.len > self.buffer.len() {
            return Err(Errno::EMSGSIZE);
        }
        self.buffer[..4].copy_from_slice(&size.to_le_bytes());
        Ok(self.len)
    }
}

/// Reads a message's body.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The body of the reply to a request, which the device says has `len` bytes.
    pub fn of_reply(buffer: &'a [u8], len: usize, kind: Kind, tag: u16) -> Result<Self> {
        let mut this = Self(buffer.get(..len).ok_or(Errno::EIO)?);
        let (size, reply, own) = (this.u32()?, this.u8()?, this.u16()?);
        if size as usize != len || own != tag {
            return Err(Errno::EIO);
        }
        match reply {
            ERROR_REPLY => Err(errno(this.u32()?)),
            _ if reply == kind as u8 + 1 => Ok(this),
            _ => Err(Errno::EIO),
        }
    }

    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Errno::EIO)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const LEN: usize>(&mut self) -> Result<[u8; LEN]> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Errno::EIO)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn text(&mut self) -> Result<&'a [u8]> {
        let len = self.u16()?;
        self.bytes(len.into())
    }

    /// The number by which the server knows a file; its type and version are in other answers, too.
    pub fn file_number(&mut self) -> Result<u64> {
        let (_kind, _version) = (self.u8()?, self.u32()?);
        self.u64()
    }

    fn time(&mut self) -> Result<Timestamp> {
        let (seconds, nanoseconds) = (self.u64()? as i64, self.u64()?);
        Ok(Timestamp { seconds, nanoseconds: nanoseconds.min(999_999_999) as u32 })
    }
}

/// An error by the number that Linux has for it. The kernel's own numbers beyond those are none of a server's.
fn errno(number: u32) -> Errno {
    /// `EHWPOISON`, the last.
    const LAST: u32 = 133;
    match number {
        1..=LAST => Errno::new(number as i32),
        _ => Errno::EIO,
    }
}

/// What the server tells of a file.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// The server's number for the file.
    pub number: u64,
    pub kind: FileType,
    pub permissions: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub rdev: u64,
    pub size: u64,
    pub block_size: u32,
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

impl Attr {
    /// All that Linux's stat(2) has.
    pub const BASIC: u64 = 0x7ff;

    /// The body of the reply.
    pub fn read(reply: &mut Reader) -> Result<Self> {
        let _valid = reply.u64()?;
        let number = reply.file_number()?;
        let (mode, uid, gid) = (reply.u32()?, reply.u32()?, reply.u32()?);
        let (nlink, rdev, size) = (reply.u64()?, reply.u64()?, reply.u64()?);
        let (block_size, blocks) = (reply.u64()?, reply.u64()?);
        let (atime, mtime, ctime) = (reply.time()?, reply.time()?, reply.time()?);
        let kind = FileType::from_mode(mode).filter(|kind| *kind != FileType::Anonymous).ok_or(Errno::EIO)?;
        if size > i64::MAX as u64 {
            return Err(Errno::EIO);
        }
        Ok(Self {
            number,
            kind,
            permissions: mode & 0o7777,
            uid,
            gid,
            nlink: nlink.min(u32::MAX.into()) as u32,
            rdev,
            size,
            block_size: block_size.clamp(512, 1 << 30) as u32,
            blocks,
            atime,
            mtime,
            ctime,
        })
    }
}

/// A change of a file's attributes; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    pub permissions: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<Timestamp>,
    pub mtime: Option<Timestamp>,
}

impl Change {
    /// The body of the request, behind the fid.
    pub fn write(&self, request: &mut Writer) {
        const MODE: u32 = 1 << 0;
        const UID: u32 = 1 << 1;
        const GID: u32 = 1 << 2;
        const SIZE: u32 = 1 << 3;
        /// The time is to change, and to what the request says.
        const ATIME: u32 = 1 << 4 | 1 << 7;
        const MTIME: u32 = 1 << 5 | 1 << 8;
        let flag = |is: bool, bits| if is { bits } else { 0 };
        let valid = flag(self.permissions.is_some(), MODE)
            | flag(self.uid.is_some(), UID)
            | flag(self.gid.is_some(), GID)
            | flag(self.size.is_some(), SIZE)
            | flag(self.atime.is_some(), ATIME)
            | flag(self.mtime.is_some(), MTIME);
        request.u32(valid).u32(self.permissions.unwrap_or(0));
        request.u32(self.uid.unwrap_or(0)).u32(self.gid.unwrap_or(0)).u64(self.size.unwrap_or(0));
        for time in [self.atime, self.mtime].map(Option::unwrap_or_default) {
            request.u64(time.seconds as u64).u64(time.nanoseconds.into());
        }
    }
}
