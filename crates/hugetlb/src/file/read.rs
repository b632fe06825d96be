//! Reading a file from its pages: read(2), pread(2), sendfile(2).

use core::fmt;

use super::File;
use crate::addr::PhysAddr;
use crate::machine::Machine;
use crate::pool::Page;
use crate::sync::Arc;

/// Bytes of a cached page, which stays allocated while this is held.
///
/// A hole punch may take the page out of the file meanwhile; the reader then copies what was there before.
pub struct PageRef<M: Machine> {
    page: Arc<Page<M>>,
    within: u64,
    length: u64,
}

impl<M: Machine> fmt::Debug for PageRef<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageRef").field("address", &self.address()).field("length", &self.length).finish()
    }
}

impl<M: Machine> PageRef<M> {
    /// Where the bytes are.
    #[must_use]
    pub fn address(&self) -> PhysAddr {
        PhysAddr(self.page.frame().0 + self.within)
    }

    /// Whether a part of the page is broken ([`crate::Mapping::break_page`]): the host knows which.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.page.is_broken()
    }

    /// How many bytes there are.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }
}

/// What a file has at an offset, up to the end of a page at most.
#[must_use]
pub enum Chunk<M: Machine> {
    /// Bytes to copy; the host does that.
    Data(PageRef<M>),
    /// A hole of that many bytes: they read as zero.
    Hole(u64),
    /// The offset is at or beyond the end of the file.
    End,
}

impl<M: Machine> fmt::Debug for Chunk<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Chunk::Data(page) => f.debug_tuple("Data").field(page).finish(),
            Chunk::Hole(bytes) => f.debug_tuple("Hole").field(bytes).finish(),
            Chunk::End => f.write_str("End"),
        }
    }
}

impl<M: Machine> File<M> {
    /// What the file has at byte `offset`, for a reader who wants `length` bytes.
    pub fn read(&self, offset: u64, length: u64) -> Chunk<M> {
        let size = self.size();
        if offset >= size {
            return Chunk::End;
        }
        let bytes = self.page_size().bytes();
        let within = offset & (bytes - 1);
        let length = length.min(bytes - within).min(size - offset);
        match self.content.get(offset >> self.page_size().shift()) {
            Some(page) => Chunk::Data(PageRef { page, within, length }),
            None => Chunk::Hole(length),
        }
    }
}
