//! Reading cpio archives of the "new" format, in pieces of any size.

use alloc::vec::Vec;

/// Bytes of a header.
const HEADER: usize = 110;
/// The longest name, its NUL included.
const NAME_LIMIT: usize = 4096;
/// The entry that ends an archive.
const TRAILER: &[u8] = b"TRAILER!!!";

/// What an archive says about an entry.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Path, without a NUL.
    pub name: Vec<u8>,
    /// With `nlink` above 1, entries with the same number and device are names of one file.
    pub ino: u32,
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names of the file.
    pub nlink: u32,
    /// Time of last change, seconds since 1970.
    pub mtime: u32,
    /// Bytes that follow.
    pub size: u32,
    /// Device that the file was on: major, minor.
    pub dev: (u32, u32),
    /// For a device node: major, minor.
    pub rdev: (u32, u32),
}

/// What takes the entries.
pub trait Consumer {
    /// A new entry. Its content follows.
    fn entry(&mut self, entry: &Entry);
    /// The next piece of the entry's content.
    fn data(&mut self, bytes: &[u8]);
    /// The content is complete.
    fn end(&mut self);
    /// The archive is complete: numbers of hard links begin anew.
    fn trailer(&mut self);
}

enum State {
    Header,
    Name,
    Data,
    /// Padding behind a name or a content, then on to the state.
    Padding(bool),
}

/// Not an archive, or a damaged one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// The reader: bytes in, entries out.
pub struct Reader {
    state: State,
    /// Bytes since the begin of the stream: headers and contents start at multiples of 4.
    position: u64,
    collected: Vec<u8>,
    entry: Entry,
    name_len: usize,
    left: u64,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// At the begin of a stream.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            position: 0,
            collected: Vec::new(),
            entry: Entry::default(),
            name_len: 0,
            left: 0,
        }
    }

    /// Is it between archives, where something else may follow?
    pub fn at_boundary(&self) -> bool {
        matches!(self.state, State::Header) && self.collected.is_empty()
    }

    fn take<'a>(&mut self, bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (piece, rest) = bytes.split_at(count.min(bytes.len()));
        *bytes = rest;
        self.position += piece.len() as u64;
        piece
    }

    /// Reads on. Returns what is left over when something that is no archive follows, which can only be at a
    /// boundary.
    pub fn push<'a>(&mut self, mut bytes: &'a [u8], to: &mut dyn Consumer) -> Result<&'a [u8], Malformed> {
        while !bytes.is_empty() {
            match self.state {
                State::Header => {
                    if self.collected.is_empty() {
                        // Zeroes fill up to the next archive.
                        let zeroes = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
                        self.take(&mut bytes, zeroes);
                        match bytes.first() {
                            None => break,
                            Some(b'0') if self.position.is_multiple_of(4) => {}
                            Some(_) => return Ok(bytes),
                        }
                    }
                    let missing = HEADER - self.collected.len();
                    let piece = self.take(&mut bytes, missing);
                    self.collected.extend_from_slice(piece);
                    if self.collected.len() == HEADER {
                        self.parse_header()?;
                    }
                }
                State::Name => {
                    let missing = self.name_len - self.collected.len();
                    let piece = self.take(&mut bytes, missing);
                    self.collected.extend_from_slice(piece);
                    if self.collected.len() == self.name_len {
                        self.state = State::Padding(true);
                        self.settle(to);
                    }
                }
                State::Data => {
                    let want = self.left.min(bytes.len() as u64) as usize;
                    let piece = self.take(&mut bytes, want);
                    to.data(piece);
                    self.left -= piece.len() as u64;
                    if self.left == 0 {
                        to.end();
                        self.state = State::Padding(false);
                        self.settle(to);
                    }
                }
                State::Padding(_) => {
                    let gap = (4 - self.position % 4) % 4;
                    self.take(&mut bytes, gap as usize);
                    self.settle(to);
                }
            }
        }
        Ok(bytes)
    }

    /// Goes on when the padding is complete.
    fn settle(&mut self, to: &mut dyn Consumer) {
        let State::Padding(after_name) = self.state else { return };
        if !self.position.is_multiple_of(4) {
            return;
        }
        if !after_name {
            self.state = State::Header;
            return;
        }
        let mut name = core::mem::take(&mut self.collected);
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        name.truncate(end);
        let is_trailer = name == TRAILER;
        self.entry.name = name;
        self.left = u64::from(self.entry.size);
        if is_trailer {
            to.trailer();
            self.state = State::Header;
            return;
        }
        to.entry(&self.entry);
        if self.left == 0 {
            to.end();
            self.state = State::Header;
        } else {
            self.state = State::Data;
        }
    }

    fn parse_header(&mut self) -> Result<(), Malformed> {
        let header = core::mem::take(&mut self.collected);
        if !matches!(&header[..6], b"070701" | b"070702") {
            return Err(Malformed("no magic number of the newc format"));
        }
        let mut fields = [0u32; 13];
        for (field, digits) in fields.iter_mut().zip(header[6..].chunks_exact(8)) {
            let text = core::str::from_utf8(digits).map_err(|_| Malformed("a number is not hexadecimal"))?;
            *field = u32::from_str_radix(text, 16).map_err(|_| Malformed("a number is not hexadecimal"))?;
        }
        let [ino, mode, uid, gid, nlink, mtime, size, major, minor, rmajor, rminor, name_len, _check] =
            fields;
        if name_len == 0 || name_len as usize > NAME_LIMIT {
            return Err(Malformed("the length of a name is out of range"));
        }
        self.name_len = name_len as usize;
        self.entry = Entry {
            name: Vec::new(),
            ino,
            mode,
            uid,
            gid,
            nlink,
            mtime,
            size,
            dev: (major, minor),
            rdev: (rmajor, rminor),
        };
        self.state = State::Name;
        Ok(())
    }
}
