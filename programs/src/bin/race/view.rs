//! A file's mapping in one process, and what can be done to it: over a slot of the process's own, or in a region of msharefs.
//!
//! In a region all processes have the same mapping: who unmaps or protects it does that to all of them, and only one of them
//! may ([`Way::is_done_by`](crate::ways::Way::is_done_by)). What each has alone is the attachment, which goes and comes
//! at another address.

use std::sync::atomic::{AtomicUsize, Ordering};

use roundtable_programs::Errno;
use roundtable_programs::file::Fd;
use roundtable_programs::mem::{
    ANON, FIXED, Map, NONE, NORESERVE, PRIVATE, R, RW, SHARED, mmap, mprotect, mremap, munmap,
};
use roundtable_programs::mshare::{Region, granule};

use crate::scale::{page_size, slot_size};

/// A file, and the region that has it mapped at its begin, if that is where it is raced on.
pub struct Ground {
    pub file: Fd,
    pub region: Option<Region>,
}

impl Ground {
    pub fn new(file: Fd, in_region: bool) -> Result<Ground, Errno> {
        let ground = Ground { file, region: in_region.then(Region::new) };
        ground.renew()?;
        Ok(ground)
    }

    /// Maps the file in the region, whatever an earlier cast has left there.
    pub fn renew(&self) -> Result<(), Errno> {
        let Some(region) = &self.region else { return Ok(()) };
        region.map(0, slot_size(), RW, SHARED | NORESERVE, self.file.raw(), 0)
    }
}

/// A file's mapping: a whole slot, in one of two places.
pub struct View<'a> {
    /// The file's number.
    pub file: usize,
    ground: &'a Ground,
    home: Map,
    offset: AtomicUsize,
}

impl<'a> View<'a> {
    pub fn new(file: usize, ground: &'a Ground) -> Result<View<'a>, Errno> {
        let size = if ground.region.is_some() { granule() } else { slot_size() };
        let home = Map::reserve(2 * size, size);
        let view = View { file, ground, home, offset: AtomicUsize::new(0) };
        view.attach()?;
        Ok(view)
    }

    /// Bytes of what moves from one place to the other.
    fn size(&self) -> usize {
        self.home.length / 2
    }

    pub fn start(&self) -> usize {
        self.home.address + self.offset.load(Ordering::SeqCst)
    }

    pub fn address(&self, index: usize, place: usize) -> usize {
        self.start() + index * page_size() + place
    }

    /// Gives this process the slot.
    fn attach(&self) -> Result<(), Errno> {
        match &self.ground.region {
            Some(region) => mmap(self.start(), self.size(), RW, SHARED | FIXED, region.fd.raw(), 0).map(drop),
            None => self.map(0, slot_size()),
        }
    }

    /// Takes the slot away from this process alone, and gives it back.
    pub fn leave_and_come(&self) -> Result<(), Errno> {
        munmap(self.start(), self.size())?;
        self.attach()
    }

    /// Moves to the other place; returns where it was, which is nobody's.
    pub fn move_away(&self) -> Result<usize, Errno> {
        let (from, to) =
            (self.start(), self.home.address + (self.size() ^ self.offset.load(Ordering::SeqCst)));
        if self.ground.region.is_none() {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            mremap(from, self.size(), self.size(), flags, to)?;
            self.offset.fetch_xor(self.size(), Ordering::SeqCst);
            return Ok(from);
        }
        // A region cannot be moved.
        munmap(from, self.size())?;
        self.offset.fetch_xor(self.size(), Ordering::SeqCst);
        self.attach()?;
        Ok(from)
    }

    /// Keeps the place that it has moved away from.
    pub fn keep(&self, from: usize) -> Result<(), Errno> {
        mmap(from, self.size(), NONE, PRIVATE | ANON | NORESERVE | FIXED, -1, 0).map(drop)
    }

    /// Maps the file over a part of the slot.
    pub fn map(&self, offset: usize, length: usize) -> Result<(), Errno> {
        self.map_other(&self.ground.file, offset, length, RW)
    }

    /// Maps another file over a part of the slot, to be read: other threads may be about to store a stamp of the file that was there.
    pub fn seat(&self, sitter: &Fd, offset: usize, length: usize) -> Result<(), Errno> {
        self.map_other(sitter, offset, length, R)
    }

    fn map_other(&self, file: &Fd, offset: usize, length: usize, protection: i32) -> Result<(), Errno> {
        let flags = SHARED | FIXED | NORESERVE;
        match &self.ground.region {
            Some(region) => region.map(offset, length, protection, flags, file.raw(), offset as u64),
            None => {
                mmap(self.start() + offset, length, protection, flags, file.raw(), offset as i64).map(drop)
            }
        }
    }

    pub fn unmap(&self, offset: usize, length: usize) -> Result<(), Errno> {
        match &self.ground.region {
            Some(region) => region.unmap(offset, length),
            None => munmap(self.start() + offset, length),
        }
    }

    pub fn protect(&self, offset: usize, length: usize, protection: i32) -> Result<(), Errno> {
        match &self.ground.region {
            Some(region) => region.protect(offset, length, protection),
            None => mprotect(self.start() + offset, length, protection),
        }
    }
}
