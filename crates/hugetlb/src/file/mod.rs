//! Files of huge pages: a size, a page cache, a reservation map, and the mappings.
//!
//! # Who may change what
//!
//! * The *size* changes under the size lock. No fault can add a page beyond the end once it is set: see
//!   [`FileTables::set_end`].
//! * The *content's end* is the size, or lies where fallocate(2) has put pages behind it: as on Linux, who maps those
//!   reaches them. It moves under the size lock, too.
//! * The *content* changes at an index only under that index's fault mutex.
//! * The *reservation map* changes under its own mutex, held from the look at an index to the page taken for it.
//! * An area is put on the *mapping list* before it gets its first entry, and leaves it after its last.

mod index;
mod mappings;
mod read;

use core::fmt;
use core::ops::Range;

use filetables::{FileTables, InsertError};

use index::FaultMutexes;
pub(crate) use index::{IndexLock, RunLock};
use mappings::LastUnmapping;
pub use read::{Chunk, PageRef};

use crate::addr::{PageIndex, PageSize};
use crate::area::Area;
use crate::error::{Error, Result};
use crate::hugetlb::Hugetlb;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::payer::PageCharge;
use crate::pool::{Page, Pool, Subpool};
use crate::range_list::RangeList;
use crate::reserve::{self, Promises};
use crate::state::State;
use crate::superblock::InodeCharge;
use crate::sync::{Arc, Line, Mutex, MutexGuard, Ordering, RwLock, Spin, Tally};

/// The largest file, in bytes, as for every file of Linux.
pub const MAX_FILE_SIZE: u64 = i64::MAX as u64;

/// What stat(2) tells of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileStatistics {
    /// `st_size`, in bytes.
    pub size: u64,
    /// Pages in the cache, in huge pages; `st_blocks` counts 512-byte units of them.
    pub pages: u64,
}

/// What the size lock guards. Only its guard leads to one, so a function that takes it cannot be called without the lock.
pub(crate) struct SizeLock(());

/// A file of huge pages.
///
/// The host keeps an `Arc` of it in its inode; each mapping keeps one, too. When the last is gone, pages and promises
/// return.
pub struct File<M: Machine> {
    id: u64,
    hugetlb: Arc<Hugetlb<M>>,
    pool: Arc<Pool<M>>,
    subpool: Option<Arc<Subpool<M>>>,
    _inode: Option<InodeCharge<M>>,
    /// Serialises what changes the size or frees ranges, and mmap's promise with it.
    size_lock: Mutex<M, SizeLock>,
    /// `st_size`, in bytes. Changed under the size lock, and read by each fault that adds a page.
    size: Line<Tally>,
    /// The pages, and the tables that show them.
    content: FileTables<M, Arc<Page<M>>>,
    fault_mutexes: FaultMutexes<M>,
    promises: Mutex<M, Promises<M::Payer>>,
    /// What the protocol keeps.
    state: State,
    /// Mappings with entries that the file does not write itself.
    mappings: RwLock<M, RangeList<Arc<Area<M>>>>,
    unmapping: Spin<M, LastUnmapping>,
}

impl<M: Machine> File<M> {
    pub(crate) fn new(
        hugetlb: Arc<Hugetlb<M>>,
        page_size: PageSize,
        subpool: Option<Arc<Subpool<M>>>,
        inode: Option<InodeCharge<M>>,
        state: State,
    ) -> Arc<File<M>> {
        let pool = hugetlb.pool(page_size).clone();
        let content =
            FileTables::new(hugetlb.shared_machine().clone(), page_size.level(), hugetlb.table_counts());
        Arc::new(File {
            id: hugetlb.next_id(),
            hugetlb,
            pool,
            subpool,
            _inode: inode,
            size_lock: Mutex::<M, _>::new(SizeLock(())),
            size: Line(Tally::new(0)),
            content,
            fault_mutexes: FaultMutexes::new(),
            promises: Mutex::<M, _>::new(Promises::new()),
            state,
            mappings: RwLock::<M, _>::new(RangeList::new()),
            unmapping: Spin::<M, _>::new(LastUnmapping::NONE),
        })
    }

    /// Tells files apart, also after one is gone and another was made: for futex keys.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The size of the file's pages.
    pub fn page_size(&self) -> PageSize {
        self.pool.page_size()
    }

    /// Size and allocated pages.
    pub fn statistics(&self) -> FileStatistics {
        FileStatistics { size: self.size(), pages: self.content.len() }
    }

    /// The subsystem that the file belongs to.
    pub fn hugetlb(&self) -> &Arc<Hugetlb<M>> {
        &self.hugetlb
    }

    pub(crate) fn pool(&self) -> &Arc<Pool<M>> {
        &self.pool
    }

    pub(crate) fn subpool(&self) -> Option<&Arc<Subpool<M>>> {
        self.subpool.as_ref()
    }

    /// The pages, and the tables that show them.
    pub(crate) fn content(&self) -> &FileTables<M, Arc<Page<M>>> {
        &self.content
    }

    pub(crate) fn size(&self) -> u64 {
        // Relaxed: what a fault must know is the content's end.
        self.size.0.load(Ordering::Relaxed)
    }

    /// Whether a fault may not add a page at an index: the file ends before it.
    pub(crate) fn ends_before(&self, index: u64) -> bool {
        // The content's end first: with `truncate_if`. Behind it the size may be late, see there.
        index >= self.content.end() || index >= self.size() >> self.page_size().shift()
    }

    /// The page of an index, unless a truncation is about to take it.
    pub(crate) fn shown_page(&self, index: PageIndex) -> Option<Arc<Page<M>>> {
        self.content.get(index.0).filter(|_| index.0 < self.content.end())
    }

    /// Makes the file longer.
    pub(crate) fn grow(&self, held: &SizeLock, size: u64) {
        self.size.0.store(size, Ordering::Relaxed);
        self.show_to(held, size >> self.page_size().shift());
    }

    /// Shows the pages up to an index, wherever the file ends.
    pub(crate) fn show_to(&self, _: &SizeLock, end: u64) {
        if end > self.content.end() {
            self.content.set_end(end);
        }
    }

    /// Moves the end; what lies behind it is not shown any more.
    pub(crate) fn set_size(&self, _: &SizeLock, size: u64) {
        self.size.0.store(size, Ordering::Relaxed);
        self.content.set_end(size >> self.page_size().shift());
    }

    /// Compares the file's tables with its content, while no operation is under way.
    ///
    /// # Errors
    ///
    /// What is different.
    #[doc(hidden)]
    pub fn check_tables(&self) -> core::result::Result<(), alloc::string::String> {
        self.content.check()
    }

    /// Looks, when nobody maps the file, whether a page counts an entry that leads to it.
    ///
    /// # Errors
    ///
    /// Which page.
    #[doc(hidden)]
    pub fn check_unmapped(&self) -> core::result::Result<(), alloc::string::String> {
        let mut next = 0;
        while let Some(index) = self.content.next(next..u64::MAX) {
            if self.content.get(index).is_some_and(|page| page.is_mapped()) {
                return Err(alloc::format!("page {index} counts entries, and nobody maps the file"));
            }
            next = index + 1;
        }
        Ok(())
    }

    /// What the protocol keeps.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Takes the size lock.
    pub(crate) fn lock_size(&self) -> MutexGuard<'_, M, SizeLock> {
        self.size_lock.lock()
    }

    /// The reservation map.
    pub(crate) fn promises(&self) -> &Mutex<M, Promises<M::Payer>> {
        &self.promises
    }

    pub(crate) fn mappings(&self) -> &RwLock<M, RangeList<Arc<Area<M>>>> {
        &self.mappings
    }

    /// Sets the size of a file that nobody maps yet and that promises nothing: for anonymous memory and `shmget`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when `size` is not a multiple of the page size or beyond the largest file.
    pub(crate) fn set_initial_size(&self, size: u64) -> Result<()> {
        self.check_size(size)?;
        self.set_size(&self.size_lock.lock(), size);
        Ok(())
    }

    pub(crate) fn check_size(&self, size: u64) -> Result<()> {
        if size & (self.page_size().bytes() - 1) != 0 || size > MAX_FILE_SIZE {
            return Err(Error::Invalid);
        }
        Ok(())
    }

    /// Promises the pages of the byte range for shared mappings to come, as `shmget(SHM_HUGETLB)` does without
    /// `SHM_NORESERVE`.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`] when the pool or the mount cannot keep the promise.
    pub fn reserve(&self, bytes: Range<u64>) -> Result<()> {
        let shift = self.page_size().shift();
        self.reserve_pages(bytes.start >> shift..bytes.end.div_ceil(self.page_size().bytes()))
    }

    pub(crate) fn reserve_pages(&self, pages: Range<u64>) -> Result<()> {
        let mut promises = self.promises.lock();
        let payer = reserve::reserve(&self.pool, self.subpool(), promises.missing(pages.clone()))?;
        promises.insert(pages, &payer);
        Ok(())
    }

    /// Takes a page for an index that has none, by the file's promises. The content is arbitrary. Behind the end of the file only if
    /// `anywhere`: else [`Error::Invalid`]. Its way ends with [`File::bring_page`].
    pub(crate) fn allocate_page(&self, at: &IndexLock<'_, M>, anywhere: bool) -> Result<Arc<Page<M>>> {
        // Held from the look to the change: a truncation that deletes the promise comes before or after both.
        let mut promises = self.promises.lock();
        let index = at.index().0;
        // A truncation moves the end before it deletes promises. One that has deleted them has nobody to delete this one.
        if !anywhere && self.ends_before(index) {
            return Err(Error::Invalid);
        }
        self.take_page(&mut promises, index).map(|(page, _)| page)
    }

    /// Takes a page for an index, which is on its way then; also whether it was promised.
    fn take_page(&self, promises: &mut Promises<M::Payer>, index: u64) -> Result<(Arc<Page<M>>, bool)> {
        promises.make_room()?;
        let promised = promises.contains(index);
        let payer = self.hugetlb.machine().payer();
        let charge = PageCharge::new(payer, self.page_size(), promised).map_err(|_| Error::NoSpace)?;
        let frame = if promised {
            self.pool.take(true).ok_or(Error::NoSpace)?
        } else {
            reserve::take_unpromised(&self.pool, self.subpool())?
        };
        promises.set_out(index);
        Ok((Arc::new(Page::new(frame, self.pool.clone(), self.subpool.clone(), charge)), promised))
    }

    /// Whether there is a page for an index that has none; it is not kept, nor is a promise used up.
    pub(crate) fn try_page(&self, at: &IndexLock<'_, M>) -> Result<()> {
        let index = at.index().0;
        // Held to the end: who promises the page meanwhile would take the note of one that is on its way for a promise, and a truncation would have
        // nothing to delete.
        let mut promises = self.promises.lock();
        let (page, promised) = self.take_page(&mut promises, index)?;
        promises.arrive(index);
        if promised {
            page.restore();
        } else {
            promises.remove(self.page_size(), index..index + 1);
        }
        // The page goes after the lock.
        drop(promises);
        Ok(())
    }

    /// Puts a page of [`File::allocate_page`], whose content is written, where it belongs. On failure the page goes, and the promise
    /// that it used up is the pool's again if the file still keeps it.
    ///
    /// # Errors
    ///
    /// [`InsertError::BeyondEnd`] when a truncation came in between, even if the file is as long again.
    pub(crate) fn bring_page(
        &self,
        at: &IndexLock<'_, M>,
        page: &Arc<Page<M>>,
        anywhere: bool,
    ) -> core::result::Result<(), InsertError> {
        let index = at.index().0;
        // Held over the insert: a truncation that takes pages out and then deletes promises meets both or neither.
        let mut promises = self.promises.lock();
        if !promises.arrive(index) {
            return Err(InsertError::BeyondEnd);
        }
        let inserted = if anywhere {
            self.content.insert_anywhere(index, page.clone())
        } else {
            self.content.insert(index, page.clone())
        };
        match &inserted {
            Ok(()) => {}
            // The truncation has not come to the promises yet: what it would take back, the page has used up.
            Err(InsertError::BeyondEnd) if !Mutant::PromiseTakenAlong.is_on() => {
                promises.remove(self.page_size(), index..index + 1);
            }
            Err(InsertError::BeyondEnd) => {}
            // The promise stays in the map.
            Err(InsertError::OutOfMemory | InsertError::Occupied) => page.restore(),
        }
        inserted
    }
}

impl<M: Machine> fmt::Debug for File<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("id", &self.id)
            .field("page_size", &self.page_size())
            .field("statistics", &self.statistics())
            .finish_non_exhaustive()
    }
}

impl<M: Machine> Drop for File<M> {
    fn drop(&mut self) {
        // Nobody maps or reads the file any more. Its pages return some at a time, and others get their turn in between.
        let used = self.remove_pages(&self.lock_size(), 0..u64::MAX, false);
        let promised = self.promises.get_mut().remove(self.pool.page_size(), 0..u64::MAX);
        reserve::unreserve(&self.pool, self.subpool.as_ref(), promised.saturating_sub(used));
    }
}
