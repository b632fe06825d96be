//! The content of a regular file of tmpfs: pages, size, holes, seals.
//!
//! A lock of the pages ([`PageStore`]) is held only to find, add or remove frames. Copies run
//! on a frame's own reference, so a page that is punched out meanwhile stays readable until the copy is done,
//! as if the copy had come first. What changes size or removes pages runs under the inode's lock; faults and
//! reads do not take it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use linux_raw_sys::general as abi;

use super::Limits;
use crate::errno::{Errno, Result};
use crate::fs::inode::Inode;
use crate::fs::iobuf::{Sink, Source};
use crate::fs::seals::Seals;
use crate::memory::fallible::TryVec;
use crate::memory::frame::{Frame, Use};
use crate::memory::{PAGE_SIZE, reserve};
use crate::mm::backing::{MappingList, PageCache};
use crate::mm::page_store::{self, Content, PageStore};
use crate::process;
use crate::process::accounts::{Counted, Share};

pub(super) const PAGE: u64 = PAGE_SIZE as u64;
/// The largest file, bytes: Linux's `MAX_LFS_FILESIZE`.
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// The content of a regular file: its size and pages.
pub struct RegularFile {
    limits: Arc<Limits>,
    size: AtomicU64,
    pub(super) pages: PageStore,
    mappings: MappingList,
    pub(super) seals: Arc<Seals>,
    /// Whose it is, if nobody else looks at it.
    secret: Option<Share>,
    /// Device and inode number, known once the inode is there.
    dev: AtomicU64,
    ino: AtomicU64,
}

impl RegularFile {
    pub(super) fn new(limits: Arc<Limits>, seals: u32) -> Arc<Self> {
        Arc::new(Self::build(limits, seals, None))
    }

    /// One that nobody looks at from outside: its pages count as locked memory of `owner`.
    pub(super) fn secret(limits: Arc<Limits>, owner: Share) -> Arc<Self> {
        Arc::new(Self::build(limits, abi::F_SEAL_SEAL, Some(owner)))
    }

    fn build(limits: Arc<Limits>, seals: u32, secret: Option<Share>) -> Self {
        Self {
            limits,
            size: AtomicU64::new(0),
            pages: PageStore::new(),
            mappings: MappingList::new(),
            seals: Seals::new(seals),
            secret,
            dev: AtomicU64::new(0),
            ino: AtomicU64::new(0),
        }
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Tells the content which inode it belongs to, for `/proc/PID/maps`.
    pub(super) fn identify(&self, inode: &Inode) {
        // Ordering: as in `id`.
        self.dev.store(inode.superblock.dev.encode(), Ordering::Relaxed);
        self.ino.store(inode.ino, Ordering::Relaxed);
    }

    fn lookup(&self, index: u64) -> Option<Frame> {
        self.pages.get(index)
    }

    /// The page at `index` to put data in, allocated when there is a hole. `ENOSPC` by the limit, `ENOMEM` by
    /// the machine, `EFAULT` behind the end unless `anywhere`, which the inode's lock permits.
    fn obtain(&self, index: u64, anywhere: bool) -> Result<Frame> {
        let (frame, is_new) = match self.lookup(index) {
            Some(frame) => (frame, false),
            None => self.allocate_page(index, anywhere, true)?,
        };
        if !is_new {
            self.pages.mark_written(index);
        }
        Ok(frame)
    }

    /// Allocates the page at `index`, where there was a hole; it is data if `written`. Returns the one that is there then, and whether it is new.
    fn allocate_page(&self, index: u64, anywhere: bool, written: bool) -> Result<(Frame, bool)> {
        // The file's tree grows, too, and may outlive whoever writes.
        reserve::ask_lasting(PAGE_SIZE)?;
        self.charge_page()?;
        let Some(frame) = Frame::alloc_zeroed(Use::File) else {
            self.uncharge_pages(1);
            return Err(Errno::ENOMEM);
        };
        let inserted = match anywhere {
            true => self.pages.insert(index, &frame, written),
            false => self.pages.insert_inside(index, &frame, &self.size),
        };
        // Another thread was faster: theirs counts.
        if !matches!(inserted, Ok((_, true))) {
            self.uncharge_pages(1);
        }
        inserted
    }

    /// Counts a page against the limits: `ENOSPC`.
    fn charge_page(&self) -> Result<()> {
        self.limits.charge_pages(1)?;
        if let Some(owner) = &self.secret {
            let limit = process::current().process.limit(abi::RLIMIT_MEMLOCK as usize) / PAGE;
            if !owner.add_within(Counted::SecretPages, limit) {
                self.limits.uncharge_pages(1);
                return Err(Errno::ENOSPC);
            }
        }
        Ok(())
    }

    fn uncharge_pages(&self, count: u64) {
        self.limits.uncharge_pages(count);
        if let Some(owner) = &self.secret {
            owner.take_back(Counted::SecretPages, count as usize);
        }
    }

    /// Puts a page with data into a hole; `EFAULT` behind the end.
    fn insert_page(&self, index: u64, frame: &Frame) -> Result<()> {
        reserve::ask_lasting(PAGE_SIZE)?;
        self.charge_page()?;
        let inserted = self.pages.insert_inside(index, frame, &self.size);
        if matches!(inserted, Ok((_, true))) {
            return Ok(());
        }
        self.uncharge_pages(1);
        inserted.and(Err(Errno::EEXIST))
    }

    /// Takes the pages `first..end` out of the file and out of all mappings, then frees them.
    fn remove_pages(&self, first: u64, end: u64) {
        let mut next = Some(first);
        while let Some(from) = next {
            let removed;
            (removed, next) = self.pages.remove(from..end);
            if !removed.is_empty() {
                self.uncharge_pages(removed.len() as u64);
                // Out of the cache first, then out of the mappings, and only then may the frames go.
                self.mappings.unmap(from..next.unwrap_or(end));
            }
            page_store::let_go(removed);
            crate::sched::cond_resched();
        }
    }

    /// Takes those of the pages `first..end` out that were allocated, and that nobody has touched since: no mapping has one.
    fn remove_untouched(&self, first: u64, end: u64) {
        let mut next = Some(first);
        while let Some(from) = next {
            let removed;
            (removed, next) = self.pages.remove_untouched(from..end);
            self.uncharge_pages(removed.len() as u64);
            page_store::let_go(removed);
            crate::sched::cond_resched();
        }
    }

    /// Clears the bytes `start..end` as far as there are pages; both are in the same page.
    fn clear(&self, start: u64, end: u64) {
        if start < end
            && let Some(frame) = self.lookup(start / PAGE)
        {
            // SAFETY: the range is inside the frame, to which `frame` is a reference. Programs that have it
            // mapped may look at it at the same time; they see old bytes or zeroes.
            unsafe { frame.as_ptr().add((start % PAGE) as usize).write_bytes(0, (end - start) as usize) };
        }
    }

    fn set_size(&self, size: u64) {
        // Who sees the size may add pages in front of it: they are in front of the end, too.
        let grows = size > self.len();
        if grows {
            self.pages.set_end(size.div_ceil(PAGE));
        }
        // Release: who sees the size finds the bytes.
        self.size.store(size, Ordering::Release);
        if !grows {
            self.pages.set_end(size.div_ceil(PAGE));
        }
    }

    /// Sets the size; the inode is locked.
    pub(super) fn resize(&self, size: u64) -> Result<()> {
        let old = self.len();
        self.seals.check_resize(old, size)?;
        if size > MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        self.pages.grow(size.div_ceil(PAGE), old.div_ceil(PAGE))?;
        self.set_size(size);
        // Also for the same size: pages may have been allocated behind the end.
        if size <= old {
            let first = size.div_ceil(PAGE);
            // Private copies behind the end go, too. After this no mapping shows anything there, and no fault
            // adds to it.
            self.mappings.unmap_with_copies(first..u64::MAX);
            self.remove_pages(first, u64::MAX);
        }
        // What a mapping wrote behind the end must not show when the file grows over it.
        let edge = size.min(old);
        self.clear(edge, edge.next_multiple_of(PAGE));
        Ok(())
    }

    pub(super) fn read_from(&self, offset: u64, sink: &mut Sink) -> Result<usize> {
        let mut done = 0;
        while sink.remaining() > 0 {
            let at = offset + done as u64;
            let size = self.len();
            if at >= size {
                break;
            }
            let inside = (at % PAGE) as usize;
            let want = (PAGE_SIZE - inside).min(sink.remaining()).min((size - at).min(PAGE) as usize);
            let moved = match self.lookup(at / PAGE) {
                // SAFETY: `inside + want` is within the frame, which the reference keeps.
                Some(frame) => unsafe { sink.write_raw(frame.as_ptr().add(inside), want) },
                None => sink.write_zeroes(want),
            };
            match moved {
                Ok(count) => done += count,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            if !moved.is_ok_and(|count| count == want) {
                break;
            }
            crate::sched::cond_resched();
        }
        Ok(done)
    }

    /// Writes at `offset`; the inode is locked.
    pub(super) fn write_to(&self, offset: u64, source: &mut Source) -> Result<usize> {
        self.seals.check_write()?;
        let may_grow = self.seals.allow_growth();
        let fits = offset.checked_add(source.remaining() as u64).is_some_and(|end| end <= self.len());
        if !may_grow && !fits {
            // Linux 6.12 refuses the part that fits as well: it looks at the end of up to 2 MiB at once.
            return Err(Errno::EPERM);
        }
        self.write_pages(offset, source, may_grow)
    }

    fn write_pages(&self, offset: u64, source: &mut Source, may_grow: bool) -> Result<usize> {
        let old = self.len();
        if offset > old && may_grow {
            self.clear(old, old.next_multiple_of(PAGE).min(offset));
        }
        let end = offset.saturating_add(source.remaining() as u64).min(MAX_SIZE);
        self.pages.grow(end.div_ceil(PAGE), old.div_ceil(PAGE))?;
        let mut done = 0;
        let mut failure = None;
        while source.remaining() > 0 {
            let at = offset + done as u64;
            let inside = (at % PAGE) as usize;
            let want = (PAGE_SIZE - inside).min(source.remaining());
            // As in Linux, a page is written whole or not at all.
            if !may_grow && at + want as u64 > self.len() {
                failure = Some(Errno::EPERM);
                break;
            }
            // With as much to write as memory is large others wait for the inode's lock, and cannot be killed.
            if crate::fs::caller::fatal_signal_pending() {
                failure = Some(Errno::EINTR);
                break;
            }
            // What is new is behind the end, or data only when there is any.
            let index = at / PAGE;
            let obtained = match self.lookup(index) {
                Some(frame) => Ok((frame, false)),
                None => self.allocate_page(index, true, false),
            };
            let (frame, is_new) = match obtained {
                Ok(obtained) => obtained,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            };
            // SAFETY: `inside + want` is within the frame, which the reference keeps.
            let moved = unsafe { source.read_raw(frame.as_ptr().add(inside), want) };
            let count = match moved {
                Ok(count) => count,
                Err(error) => {
                    drop(frame);
                    if is_new {
                        // For bytes that could not be had.
                        self.remove_untouched(index, index + 1);
                    }
                    failure = Some(error);
                    break;
                }
            };
            self.pages.mark_written(index);
            done += count;
            let end = at + count as u64;
            if end > self.len() {
                self.set_size(end);
            }
            if count < want {
                break;
            }
            crate::sched::cond_resched();
        }
        match failure {
            Some(error) if done == 0 => Err(error),
            _ => Ok(done),
        }
    }

    /// fallocate(2); the inode is locked.
    pub(super) fn allocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).filter(|e| *e <= MAX_SIZE).ok_or(Errno::EFBIG)?;
        if mode & !(abi::FALLOC_FL_KEEP_SIZE | abi::FALLOC_FL_PUNCH_HOLE) != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if mode & abi::FALLOC_FL_PUNCH_HOLE != 0 {
            if mode & abi::FALLOC_FL_KEEP_SIZE == 0 {
                return Err(Errno::EOPNOTSUPP);
            }
            self.seals.check_write()?;
            let (first, last) = (offset.div_ceil(PAGE), end / PAGE);
            if first > last {
                self.clear(offset, end);
                return Ok(());
            }
            self.clear(offset, first * PAGE);
            self.clear(last * PAGE, end);
            if first < last {
                self.remove_pages(first, last);
            }
            return Ok(());
        }
        let grows = mode & abi::FALLOC_FL_KEEP_SIZE == 0 && end > self.len();
        self.seals.check_resize(self.len(), end.max(self.len()))?;
        self.pages.grow(end.div_ceil(PAGE), self.len().div_ceil(PAGE))?;
        let mut added: Vec<(u64, u64)> = Vec::new();
        for index in offset / PAGE..end.div_ceil(PAGE) {
            crate::sched::cond_resched();
            let failure = if crate::fs::caller::fatal_signal_pending() {
                Some(Errno::EINTR)
            } else if self.lookup(index).is_some() {
                None
            } else {
                let allocated = self.allocate_page(index, true, false);
                allocated.map(drop).and_then(|()| self.note_added(index, &mut added)).err()
            };
            if let Some(error) = failure {
                // All or nothing, but for what others have found and stored to meanwhile.
                for (first, end) in added {
                    self.remove_untouched(first, end);
                }
                return Err(error);
            }
        }
        if grows {
            self.resize(end)?;
        }
        Ok(())
    }

    /// Notes that the page at `index` is new. Without room for the note it goes again.
    fn note_added(&self, index: u64, added: &mut Vec<(u64, u64)>) -> Result<()> {
        match added.last_mut() {
            Some(run) if run.1 == index => run.1 += 1,
            _ => {
                added.try_push((index, index + 1)).inspect_err(|_| self.remove_untouched(index, index + 1))?
            }
        }
        Ok(())
    }

    /// Is there a mapping through which stores reach the file, or could after mprotect(2)?
    pub(super) fn has_writable_mapping(&self) -> bool {
        self.mappings.has_writable()
    }
}

impl Drop for RegularFile {
    fn drop(&mut self) {
        self.pages.empty(|count| self.uncharge_pages(count));
    }
}

impl PageCache for RegularFile {
    fn page(&self, index: u64, _write: bool) -> Result<Frame> {
        if index >= self.len().div_ceil(PAGE) {
            return Err(Errno::EFAULT);
        }
        // A page that comes behind a truncation is not ours to take out again: somebody may have written to it meanwhile.
        self.obtain(index, false)
    }

    fn insert(&self, index: u64, frame: &Frame) -> Result<()> {
        if index >= self.len().div_ceil(PAGE) {
            return Err(Errno::EFAULT);
        }
        self.insert_page(index, frame)
    }

    fn size(&self) -> u64 {
        self.len()
    }

    fn mappings(&self) -> &MappingList {
        &self.mappings
    }

    fn content(&self) -> Option<&Content> {
        self.pages.content()
    }

    fn is_secret(&self) -> bool {
        self.secret.is_some()
    }

    fn is_shmem(&self) -> bool {
        self.secret.is_none()
    }

    fn cached(&self, index: u64) -> Option<Frame> {
        if index < self.len().div_ceil(PAGE) { self.lookup(index) } else { None }
    }

    fn cached_some(&self, first: u64, wanted: u32, found: &mut [Option<Frame>]) {
        self.pages.get_some(first, wanted, found);
    }

    fn id(&self) -> (u64, u64) {
        // Ordering: set before the file can be mapped, by the open that leads there.
        (self.dev.load(Ordering::Relaxed), self.ino.load(Ordering::Relaxed))
    }
}
