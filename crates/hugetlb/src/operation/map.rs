//! mmap(2): a mapping of a file.

use filetables::Protection;

use crate::addr::{PageIndex, VirtAddr};
use crate::area::Placement;
use crate::error::{Error, Result};
use crate::file::{File, MAX_FILE_SIZE};
use crate::machine::Machine;
use crate::mapping::{Mapping, NewMapping};
use crate::mutant::Mutant;
use crate::reserve;
use crate::sync::Arc;
use crate::token::SpaceToken;

/// How a file is to be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapOptions {
    /// `MAP_SHARED`; else `MAP_PRIVATE`.
    pub shared: bool,
    /// `MAP_NORESERVE`: promise no pages.
    pub no_reserve: bool,
    /// `PROT_*`.
    pub protection: Protection,
}

/// What mmap(2) asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapRequest {
    /// The first address.
    pub start: VirtAddr,
    /// In bytes.
    pub length: u64,
    /// Where in the file the mapping begins, in bytes.
    pub offset: u64,
    /// How.
    pub options: MapOptions,
}

impl<M: Machine> File<M> {
    /// Maps a part of the file into the address space of `token`. Addresses, length and offset are multiples of the page
    /// size. The mapping has to be [unmapped](Mapping::unmap) before it is dropped.
    ///
    /// The host has nothing else in the range. A mapping that may be written extends the file to its end, as hugetlbfs does. With 1 GiB pages the PUD entries of the range are empty.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for bad alignment or range; [`Error::NoMemory`] when the pages cannot be promised.
    pub fn map(
        self: &Arc<Self>,
        token: &mut SpaceToken<M::Space>,
        request: MapRequest,
    ) -> Result<Mapping<M>> {
        let MapRequest { start, length, offset, options } = request;
        let size = self.page_size();
        let misaligned = (start.0 | length | offset) & (size.bytes() - 1) != 0;
        let end = offset.checked_add(length).filter(|end| *end <= MAX_FILE_SIZE).ok_or(Error::Invalid)?;
        if misaligned || length == 0 || start.0.checked_add(length).is_none() {
            return Err(Error::Invalid);
        }
        let first = PageIndex(offset >> size.shift());
        let pages = length >> size.shift();

        let placement = Placement { start, first, pages, protection: options.protection };
        let mapping = NewMapping::prepare(self, token.space().clone(), placement, options.shared)?;
        let mut held = (!Mutant::MapWithoutSizeLock.is_on()).then(|| self.lock_size());
        // Who pays for the promise of a private mapping.
        let mut payer = None;
        if !options.no_reserve {
            if options.shared {
                self.reserve_pages(first.0..first.0 + pages)?;
            } else {
                payer = Some(reserve::reserve(self.pool(), self.subpool(), pages)?);
            }
        }
        if options.protection.contains(Protection::WRITE) && self.size() < end {
            self.grow(held.get_or_insert_with(|| self.lock_size()), end);
        }
        // mmap changes the list of mappings.
        let _fence = self.protocol().change_fence(self);
        Ok(mapping.attach(self.clone(), payer))
    }
}
