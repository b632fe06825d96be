//! The pages of a file that are mapped.
//!
//! They are the one thing that is kept of a file; when those of all volumes are an eighth of the memory, files that nobody maps keep none, and
//! a file that grows gives back what it has. What changes the file here takes them out of the mappings, and the next access fetches
//! them anew; what the host has changed shows when the file is mapped the next time, and may show before. Stores do not get to
//! the host, so no shared mapping that could be written is made; private ones are, and programs run from here.

use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::session::Fid;
use super::wire::Attr;
use crate::errno::{Errno, Result};
use crate::fs::stat::Timestamp;
use crate::memory::frame::{Frame, Use};
use crate::memory::{self, PAGE_SIZE, fallible, reserve};
use crate::mm::backing::{MappingList, PageCache};
use crate::mm::page_store::{self, PageStore, Taken};
use crate::sched;
use crate::sync::{Mutex, SpinLock};

const PAGE: u64 = PAGE_SIZE as u64;
/// Pages that are fetched together.
const AHEAD: u64 = 16;
/// A file with no more pages keeps them.
const FEW: u64 = 256;

/// Pages of all volumes. Relaxed: a sum that orders nothing.
static PAGES: AtomicU64 = AtomicU64::new(0);

/// Are there more pages than are to stay without need? They count for nobody who does not have them in a mapping, and the host has them.
fn too_many() -> bool {
    PAGES.load(Ordering::Relaxed) > memory::stats().total / PAGE / 8
}

/// The content of a file as far as it is known here.
pub struct Content {
    /// Device and number.
    id: (u64, u64),
    size: AtomicU64,
    /// It has been mapped.
    is_mapped: AtomicBool,
    pages: PageStore,
    mappings: MappingList,
    /// Through what pages are read, and what the file was like when it was last mapped.
    source: SpinLock<Option<(Arc<Fid>, Version)>>,
    /// Held by those who fetch pages, and by those who take them out after a change: a page from before the change does not come behind it.
    fetching: Mutex<()>,
    /// How often somebody who is killed has taken pages out without a wait for those who fetch. Held while one is put in, and never while
    /// anybody waits for the server.
    not_waited: Mutex<u64>,
}

/// What tells that somebody else has changed a file.
type Version = Option<(Timestamp, u64)>;

impl Content {
    pub fn new(id: (u64, u64), size: u64) -> Self {
        Self {
            id,
            size: AtomicU64::new(size),
            is_mapped: AtomicBool::new(false),
            pages: PageStore::new(),
            mappings: MappingList::new(),
            source: SpinLock::new(None),
            fetching: Mutex::new(()),
            not_waited: Mutex::new(0),
        }
    }

    /// Bytes, as far as is known.
    pub fn len(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    /// The server has told the size.
    pub fn told(&self, size: u64) {
        self.size.store(size, Ordering::SeqCst);
    }

    /// It is about to be mapped by somebody who can read it by `fid`. `attr`: what the server tells of it, unless nobody but us can change it.
    pub fn map(&self, fid: &Arc<Fid>, attr: Option<&Attr>) {
        self.is_mapped.store(true, Ordering::SeqCst);
        let version = attr.map(|attr| (attr.mtime, attr.size));
        let old = self.source.lock().replace((fid.clone(), version));
        if version.is_some() && old.is_some_and(|(_, known)| known != version) {
            self.forget(0..u64::MAX);
        }
    }

    /// The bytes of this range were written, by others than those who have them mapped.
    pub fn written(&self, range: Range<u64>) {
        self.size.fetch_max(range.end, Ordering::SeqCst);
        if self.is_mapped.load(Ordering::SeqCst) {
            self.forget(range.start / PAGE..range.end.div_ceil(PAGE));
        }
    }

    /// The file has another size. With the inode's lock.
    pub fn resized(&self, size: u64) -> Result<()> {
        let old = self.size.swap(size, Ordering::SeqCst);
        if self.is_mapped.load(Ordering::SeqCst) {
            // Private copies behind the end go, too. The page with the end shows other bytes than before.
            self.mappings.unmap_with_copies(size.div_ceil(PAGE)..u64::MAX);
            self.forget(size.min(old) / PAGE..u64::MAX);
        }
        Ok(())
    }

    /// Takes pages out that are not what the file has any more, and out of all mappings.
    fn forget(&self, range: Range<u64>) {
        self.remove(range, |from| {
            let _fetching = self.fetching.lock_killable().or_else(|| {
                // Who has it may wait for the server for ever. What he fetches now is too old.
                *self.not_waited.lock() += 1;
                None
            });
            self.pages.remove(from)
        });
    }

    /// Takes all pages out, and out of all mappings, because there are too many. They are what the file has: one that is just fetched may stay.
    fn give_up(&self) {
        self.remove(0..u64::MAX, |from| self.pages.remove(from));
    }

    fn remove(&self, range: Range<u64>, take_out: impl Fn(Range<u64>) -> (Taken, Option<u64>)) {
        let mut next = Some(range.start);
        while let Some(from) = next {
            let removed;
            (removed, next) = take_out(from..range.end);
            PAGES.fetch_sub(removed.len() as u64, Ordering::Relaxed);
            if !removed.is_empty() {
                // Out of the mappings before the frames go.
                self.mappings.unmap(from..next.unwrap_or(range.end));
            }
            page_store::let_go(removed);
            sched::cond_resched();
        }
    }

    /// Fetches the page at `index`, and some behind it.
    fn fetch(&self, index: u64) -> Result<Frame> {
        let source = self.source.lock().as_ref().map(|(fid, _)| fid.clone());
        let fid = source.ok_or(Errno::EFAULT)?;
        if self.pages.count() > FEW && too_many() {
            // Those that are mapped and used come again.
            self.give_up();
        }
        // Who has it waits for the server.
        let _fetching = self.fetching.lock_killable().ok_or(Errno::EINTR)?;
        loop {
            if let Some(frame) = self.fetch_some(&fid, index)? {
                return Ok(frame);
            }
        }
    }

    /// As above, with the lock. `None` when a change that did not wait has come in between.
    fn fetch_some(&self, fid: &Fid, index: u64) -> Result<Option<Frame>> {
        if let Some(frame) = self.pages.get(index) {
            return Ok(Some(frame));
        }
        // The lock goes at the end of the statement.
        let before = *self.not_waited.lock();
        if index >= self.len().div_ceil(PAGE) {
            // The host may have made it longer.
            let attr = fid.attributes()?;
            if attr.number == self.id.1 {
                self.told(attr.size);
            }
        }
        let end = self.len().div_ceil(PAGE).min(index.saturating_add(AHEAD));
        if index >= end {
            return Err(Errno::EFAULT);
        }
        let mut bytes = fallible::filled(0u8, ((end - index) * PAGE) as usize)?;
        let mut len = 0;
        while len < bytes.len() {
            match fid.read(index * PAGE + len as u64, &mut bytes[len..])? {
                0 => break,
                read => len += read,
            }
        }
        let mut first = None;
        for (at, bytes) in (index..end).zip(bytes.chunks_exact(PAGE_SIZE)) {
            reserve::ask_lasting(PAGE_SIZE)?;
            let frame = Frame::alloc(Use::File).ok_or(Errno::ENOMEM)?;
            // SAFETY: both are a page, and nobody else has the frame.
            unsafe { frame.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), PAGE_SIZE) };
            match self.insert_fetched(fid, at, &frame, before) {
                Ok(Some((frame, is_new))) => {
                    PAGES.fetch_add(u64::from(is_new), Ordering::Relaxed);
                    first = first.or(Some(frame));
                }
                // What comes behind the one that was asked for may fail.
                Ok(None) if first.is_none() => return Ok(None),
                Err(error) if first.is_none() => return Err(error),
                Ok(None) | Err(_) => break,
            }
        }
        first.map(Some).ok_or(Errno::EFAULT)
    }

    /// Puts a page in that the server has sent. `EFAULT` behind the end; `None` when it is too old, as pages were taken out since
    /// `before`.
    ///
    /// Race: an answer to somebody's stat(2) from before the file had the page, who gets to run only now, has told another end meanwhile. The
    /// server knows better.
    fn insert_fetched(
        &self,
        fid: &Fid,
        index: u64,
        frame: &Frame,
        before: u64,
    ) -> Result<Option<(Frame, bool)>> {
        loop {
            let inserted = {
                let not_waited = self.not_waited.lock();
                if *not_waited != before {
                    return Ok(None);
                }
                self.pages.insert_inside(index, frame, &self.size)
            };
            if !matches!(inserted, Err(Errno::EFAULT)) {
                return inserted.map(Some);
            }
            let attr = fid.attributes()?;
            if attr.number != self.id.1 || index >= attr.size.div_ceil(PAGE) {
                return inserted.map(Some);
            }
            self.told(attr.size);
        }
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        self.pages.empty(|count| {
            PAGES.fetch_sub(count, Ordering::Relaxed);
        });
    }
}

impl PageCache for Content {
    fn page(&self, index: u64, _write: bool) -> Result<Frame> {
        match self.cached(index) {
            Some(frame) => Ok(frame),
            None => self.fetch(index),
        }
    }

    fn cached(&self, index: u64) -> Option<Frame> {
        if index < self.len().div_ceil(PAGE) { self.pages.get(index) } else { None }
    }

    fn cached_some(&self, first: u64, wanted: u32, found: &mut [Option<Frame>]) {
        self.pages.get_some(first, wanted, found);
    }

    fn insert(&self, _: u64, _: &Frame) -> Result<()> {
        Err(Errno::EINVAL)
    }

    fn size(&self) -> u64 {
        self.len()
    }

    fn mappings(&self) -> &MappingList {
        &self.mappings
    }

    fn id(&self) -> (u64, u64) {
        self.id
    }

    fn takes_stores(&self) -> bool {
        false
    }

    fn left_mappings(&self) {
        if self.pages.count() > 0 && too_many() {
            self.give_up();
        }
    }

    fn is_shmem(&self) -> bool {
        false
    }
}
