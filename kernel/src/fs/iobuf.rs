//! Where a read puts its bytes and where a write takes them from.
//!
//! A [`Sink`] or [`Source`] is a list of pieces of user memory (one for read(2), many for readv(2)) or a
//! piece of kernel memory, with a position. Copies go straight between it and the page cache; nothing is
//! gathered in the kernel first.
//!
//! A copy to user memory may fault, and the fault may need any lock that a fault takes: never call the
//! ordinary methods with a spin lock held, nor with a lock that a page fault on a file mapping takes.
//!
//! All methods tell how many bytes were moved. Fewer than asked means that the memory behind the next byte is
//! not there: stop, and report what has been done so far; they fail with `EFAULT` only when not even the
//! first byte could be moved.

use core::marker::PhantomData;

use linux_raw_sys::general::iovec;
use smallvec::SmallVec;

use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::mm::uaccess;

/// The most that one read or write moves: Linux's `MAX_RW_COUNT`.
pub const MAX_RW_COUNT: usize = 0x7fff_f000;
/// The most pieces that one readv(2) takes.
pub const IOV_MAX: usize = 1024;

#[derive(Clone, Copy)]
enum Segment {
    User { address: usize, len: usize },
    Kernel { start: *mut u8, len: usize },
}

impl Segment {
    fn len(&self) -> usize {
        match *self {
            Self::User { len, .. } | Self::Kernel { len, .. } => len,
        }
    }
}

/// The pieces with the position in them: what sinks and sources have in common.
struct Cursor {
    segments: SmallVec<[Segment; 1]>,
    /// The piece with the next byte, and how much of it is done.
    index: usize,
    offset: usize,
    remaining: usize,
}

impl Cursor {
    fn new(segments: SmallVec<[Segment; 1]>) -> Self {
        let remaining = segments.iter().map(Segment::len).sum();
        Self { segments, index: 0, offset: 0, remaining }
    }

    fn user(address: usize, len: usize) -> Result<Self> {
        uaccess::check_range(address, len)?;
        let len = len.min(MAX_RW_COUNT);
        Ok(Self::new(SmallVec::from_buf([Segment::User { address, len }])))
    }

    fn vectors(address: usize, count: usize) -> Result<Self> {
        if count > IOV_MAX {
            return Err(Errno::EINVAL);
        }
        // In what a page holds, and more only where that can fail.
        let mut segments: SmallVec<[Segment; 1]> = SmallVec::new();
        fallible::reserve_small(&mut segments, count)?;
        let mut total = 0usize;
        for i in 0..count {
            let entry: [usize; 2] = uaccess::read_user(address + i * size_of::<iovec>())?;
            let [base, len] = entry;
            if len > isize::MAX as usize {
                return Err(Errno::EINVAL);
            }
            uaccess::check_range(base, len)?;
            let len = len.min(MAX_RW_COUNT - total);
            total += len;
            if len > 0 {
                segments.push(Segment::User { address: base, len });
            }
        }
        Ok(Self::new(segments))
    }

    fn kernel(start: *mut u8, len: usize) -> Self {
        Self::new(SmallVec::from_buf([Segment::Kernel { start, len }]))
    }

    fn advance(&mut self, mut count: usize) {
        debug_assert!(count <= self.remaining);
        self.remaining -= count;
        while count > 0 {
            let left = self.segments[self.index].len() - self.offset;
            if count < left {
                self.offset += count;
                return;
            }
            count -= left;
            self.index += 1;
            self.offset = 0;
        }
    }

    fn rewind(&mut self, mut count: usize) {
        self.remaining += count;
        while count > self.offset {
            count -= self.offset;
            self.index -= 1;
            self.offset = self.segments[self.index].len();
        }
        self.offset -= count;
    }

    /// Lets `copy` move up to `len` bytes, piece by piece; it gets the piece and how far into the other side
    /// it begins, and returns how much it moved.
    fn each(&mut self, len: usize, mut copy: impl FnMut(Segment, usize) -> usize) -> Result<usize> {
        let len = len.min(self.remaining);
        let mut done = 0;
        while done < len {
            let piece = match self.segments[self.index] {
                Segment::User { address, len } => {
                    Segment::User { address: address + self.offset, len: len - self.offset }
                }
                Segment::Kernel { start, len } => {
                    // A plain address computation inside the piece.
                    Segment::Kernel { start: start.wrapping_add(self.offset), len: len - self.offset }
                }
            };
            let want = piece.len().min(len - done);
            let piece = match piece {
                Segment::User { address, .. } => Segment::User { address, len: want },
                Segment::Kernel { start, .. } => Segment::Kernel { start, len: want },
            };
            let moved = copy(piece, done);
            self.advance(moved);
            done += moved;
            if moved < want {
                break;
            }
        }
        if done == 0 && len > 0 { Err(Errno::EFAULT) } else { Ok(done) }
    }
}

/// The destination of a read.
pub struct Sink<'a> {
    cursor: Cursor,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Sink<'a> {
    /// User memory of the current process. `EFAULT` when the range is not user space at all.
    pub fn user(address: usize, len: usize) -> Result<Self> {
        Ok(Self { cursor: Cursor::user(address, len)?, memory: PhantomData })
    }

    /// The `count` pieces of user memory that the `struct iovec` array at `address` names.
    pub fn vectors(address: usize, count: usize) -> Result<Self> {
        Ok(Self { cursor: Cursor::vectors(address, count)?, memory: PhantomData })
    }

    /// Memory of the kernel.
    pub fn kernel(buffer: &'a mut [u8]) -> Self {
        Self { cursor: Cursor::kernel(buffer.as_mut_ptr(), buffer.len()), memory: PhantomData }
    }

    /// Bytes that still fit.
    pub fn remaining(&self) -> usize {
        self.cursor.remaining
    }

    /// Puts as many of `bytes` as fit; see the module for what the count means.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        // SAFETY: a slice is readable throughout.
        unsafe { self.write_raw(bytes.as_ptr(), bytes.len()) }
    }

    /// Puts all of `bytes`, or fails: for records that make no sense in part. `EINVAL` when they do not fit.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > self.remaining() {
            return Err(Errno::EINVAL);
        }
        if self.write(bytes)? == bytes.len() { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Puts `len` zero bytes, as far as they fit.
    pub fn write_zeroes(&mut self, len: usize) -> Result<usize> {
        self.cursor.each(len, |piece, _| match piece {
            Segment::User { address, len } => len - uaccess::zero_user_raw(address, len),
            Segment::Kernel { start, len } => {
                // SAFETY: the piece is within the slice that the sink was made from and borrows mutably.
                unsafe { start.write_bytes(0, len) };
                len
            }
        })
    }

    /// As `write`, from memory that others may change at the same time, such as a page of the page cache.
    ///
    /// # Safety
    /// `from` must be readable for `len` bytes.
    pub unsafe fn write_raw(&mut self, from: *const u8, len: usize) -> Result<usize> {
        self.cursor.each(len, |piece, done| match piece {
            Segment::User { address, len } => {
                // SAFETY: the caller vouches for `from`, and `done + len` is at most the length that it gave.
                len - unsafe { uaccess::copy_to_user_raw(address, from.add(done), len) }
            }
            Segment::Kernel { start, len } => {
                // SAFETY: as above; the destination is the slice that this sink borrows.
                unsafe { core::ptr::copy(from.add(done), start, len) };
                len
            }
        })
    }
}

/// The origin of a write.
pub struct Source<'a> {
    cursor: Cursor,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Source<'a> {
    /// User memory of the current process. `EFAULT` when the range is not user space at all.
    pub fn user(address: usize, len: usize) -> Result<Self> {
        Ok(Self { cursor: Cursor::user(address, len)?, memory: PhantomData })
    }

    /// The `count` pieces of user memory that the `struct iovec` array at `address` names.
    pub fn vectors(address: usize, count: usize) -> Result<Self> {
        Ok(Self { cursor: Cursor::vectors(address, count)?, memory: PhantomData })
    }

    /// Memory of the kernel.
    pub fn kernel(bytes: &'a [u8]) -> Self {
        Self { cursor: Cursor::kernel(bytes.as_ptr().cast_mut(), bytes.len()), memory: PhantomData }
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.cursor.remaining
    }

    /// Takes as many bytes as fit into `to`; see the module for what the count means.
    pub fn read(&mut self, to: &mut [u8]) -> Result<usize> {
        // SAFETY: a mutable slice is writable throughout.
        unsafe { self.read_raw(to.as_mut_ptr(), to.len()) }
    }

    /// Fills `to`, or fails. `EINVAL` when less than that is left.
    pub fn read_exact(&mut self, to: &mut [u8]) -> Result<()> {
        if to.len() > self.remaining() {
            return Err(Errno::EINVAL);
        }
        if self.read(to)? == to.len() { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// As `read`, to memory that others may use at the same time, such as a page of the page cache.
    ///
    /// # Safety
    /// `to` must be writable for `len` bytes.
    pub unsafe fn read_raw(&mut self, to: *mut u8, len: usize) -> Result<usize> {
        self.cursor.each(len, |piece, done| match piece {
            Segment::User { address, len } => {
                // SAFETY: the caller vouches for `to`, and `done + len` is at most the length that it gave.
                len - unsafe { uaccess::copy_from_user_raw(to.add(done), address, len) }
            }
            Segment::Kernel { start, len } => {
                // SAFETY: as above; the origin is the slice that this source borrows.
                unsafe { core::ptr::copy(start, to.add(done), len) };
                len
            }
        })
    }

    /// Passes over up to `count` bytes, as if they had been taken.
    pub fn skip(&mut self, count: usize) {
        self.cursor.advance(count.min(self.cursor.remaining));
    }

    /// Gives the last `count` bytes back: the next read takes them again.
    pub fn rewind(&mut self, count: usize) {
        self.cursor.rewind(count);
    }

    /// Lets at most `len` further bytes out, and returns how many were cut off; undo with [`Source::extend`].
    pub fn truncate(&mut self, len: usize) -> usize {
        let cut = self.cursor.remaining.saturating_sub(len);
        self.cursor.remaining -= cut;
        cut
    }

    /// Undoes a [`Source::truncate`].
    pub fn extend(&mut self, cut: usize) {
        self.cursor.remaining += cut;
    }
}
