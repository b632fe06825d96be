//! Files of huge pages: a size, a page cache, a reservation map, and the mappings.
//!
//! # Who may change what
//!
//! * The *size* changes under the size lock. No fault can add a page beyond the end once it is set: see
//!   [`FileTables::set_end`].
//! * The *content* changes at an index only under that index's fault mutex.
//! * The *reservation map* changes under its own mutex, held from the look at an index to the page taken for it.
//! * An area is put on the *mapping list* before it gets its first entry, and leaves it after its last.

mod fallocate;
mod index;
mod listed;
mod read;
mod truncate;

use core::ops::Range;

use filetables::{FileTables, Protection};

pub use fallocate::FallocateMode;
use index::FaultMutexes;
pub(crate) use index::IndexLock;
pub(crate) use listed::{Key, RangeList, Search};
pub use read::{Chunk, PageRef};

use crate::addr::{PageIndex, PageSize, VirtAddr};
use crate::error::{Error, Result};
use crate::hugetlb::Hugetlb;
use crate::machine::Machine;
use crate::mapping::{Area, Mapping, Placement};
use crate::mutant::Mutant;
use crate::pool::{Page, Pool};
use crate::reserve::{self, Regions, Subpool};
use crate::superblock::InodeCharge;
use crate::sync::{Arc, Mutex, Ordering, RwLock, Tally};
use crate::token::SpaceToken;

/// The largest file, in bytes, as for every file of Linux.
pub const MAX_FILE_SIZE: u64 = i64::MAX as u64;

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

/// What stat(2) tells of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileStatistics {
    /// `st_size`, in bytes.
    pub size: u64,
    /// Pages in the cache, in huge pages; `st_blocks` counts 512-byte units of them.
    pub pages: u64,
}

/// How many areas a walk takes from the list at a time, so that it does not keep the list locked while it waits.
const AREAS_AT_A_TIME: usize = if cfg!(roundtable_model) { 2 } else { 16 };

/// What the size lock guards. Only its guard leads to one, so a function that takes it cannot be called without the lock.
pub(super) struct SizeLock(());

/// Whether mappings may adopt tables just now.
pub(crate) struct Attach {
    /// Removals of pages under way that must not see an entry come back by adoption.
    paused: usize,
}

impl Attach {
    /// Whether a mapping may adopt a partner's table.
    pub(crate) fn may_adopt(&self) -> bool {
        self.paused == 0
    }

    /// From now on nobody adopts, until as many calls of [`Attach::resume`].
    pub(crate) fn pause(&mut self) {
        self.paused += 1;
    }

    pub(crate) fn resume(&mut self) {
        self.paused -= 1;
    }
}

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
    /// `st_size`, in bytes. Changed under the size lock.
    size: Tally,
    /// The pages, and the tables that show them.
    content: FileTables<M, Arc<Page<M>>>,
    fault_mutexes: FaultMutexes<M>,
    regions: Mutex<M, Regions>,
    /// Held by all faults (for reading) and by what takes away (for writing) under the protocol `file-lock`.
    fence: RwLock<M, ()>,
    /// Serialises that mappings adopt tables; see the `sharing` module.
    attach: Mutex<M, Attach>,
    /// Mappings with entries that the file does not write itself.
    mappings: RwLock<M, RangeList<Arc<Area<M>>>>,
}

impl<M: Machine> File<M> {
    pub(crate) fn new(
        hugetlb: Arc<Hugetlb<M>>,
        page_size: PageSize,
        subpool: Option<Arc<Subpool<M>>>,
        inode: Option<InodeCharge<M>>,
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
            size: Tally::new(0),
            content,
            fault_mutexes: FaultMutexes::new(),
            fence: RwLock::<M, _>::new(()),
            regions: Mutex::<M, _>::new(Regions::default()),
            attach: Mutex::<M, _>::new(Attach { paused: 0 }),
            mappings: RwLock::<M, _>::new(RangeList::new()),
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

    fn size(&self) -> u64 {
        // Relaxed: what a fault must know is the content's end.
        self.size.load(Ordering::Relaxed)
    }

    /// Moves the end.
    fn set_size(&self, _: &SizeLock, size: u64) {
        self.size.store(size, Ordering::Relaxed);
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

    pub(crate) fn fence(&self) -> &RwLock<M, ()> {
        &self.fence
    }

    pub(crate) fn attach(&self) -> &Mutex<M, Attach> {
        &self.attach
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

    fn check_size(&self, size: u64) -> Result<()> {
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

    fn reserve_pages(&self, pages: Range<u64>) -> Result<()> {
        let mut regions = self.regions.lock();
        reserve::reserve(&self.pool, self.subpool(), regions.missing(pages.clone()))?;
        regions.insert(pages);
        Ok(())
    }

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

        let mut held = (!Mutant::MapWithoutSizeLock.is_on()).then(|| self.size_lock.lock());
        if !options.no_reserve {
            if options.shared {
                self.reserve_pages(first.0..first.0 + pages)?;
            } else {
                reserve::reserve(&self.pool, self.subpool(), pages)?;
            }
        }
        if options.protection.contains(Protection::WRITE) && self.size() < end {
            self.set_size(held.get_or_insert_with(|| self.size_lock.lock()), end);
        }
        // mmap changes the list of mappings.
        let _fence = self.hugetlb.protocol().change_fence(self);
        let placement = Placement { start, first, pages, protection: options.protection };
        Ok(Mapping::new(self.clone(), token.space().clone(), placement, options))
    }

    /// Takes a page for an index that has none, by the file's promises. The content is arbitrary.
    pub(crate) fn allocate_page(&self, at: &IndexLock<'_, M>) -> Result<Arc<Page<M>>> {
        // Held from the look to the change: a truncation that deletes the promise comes before or after both.
        let mut regions = self.regions.lock();
        let index = at.index().0;
        let frame = if regions.contains(index) {
            self.pool.take(true).ok_or(Error::NoSpace)?
        } else {
            let frame = reserve::take_unpromised(&self.pool, self.subpool())?;
            regions.insert(index..index + 1);
            frame
        };
        Ok(Arc::new(Page::new(frame, self.pool.clone(), self.subpool.clone())))
    }

    /// Clears the entries of the listed mappings for the page indices, drops private copies, and flushes.
    pub(crate) fn unmap_listed(&self, indices: Range<u64>) {
        self.each_listed(indices.clone(), |area| area.unmap_indices(self, indices.clone()));
    }

    /// Shows `visit` the listed mappings that have a page of the indices, with no lock held. An area that a fork or a split
    /// makes while its origin is locked is met, too: who is on the list at the start is visited first, then who has come
    /// meanwhile, and so on.
    pub(crate) fn each_listed(&self, indices: Range<u64>, mut visit: impl FnMut(&Arc<Area<M>>)) {
        // Most files have no listed mappings.
        if self.mappings.read().is_empty() {
            return;
        }
        let mut search = Search { indices, ages: 0..0 };
        let mut after = None;
        loop {
            let mut areas = [const { None }; AREAS_AT_A_TIME];
            {
                let list = self.mappings.read();
                if after.is_none() {
                    search.ages = search.ages.end..list.next_age();
                }
                let mut places = areas.iter_mut();
                let mut last = None;
                list.find(&search, after, |key, area| {
                    // One more than there is place for is found, and found again next.
                    let Some(place) = places.next() else { return Some(()) };
                    (last, *place) = (Some(key), Some(area.clone()));
                    None
                });
                after = last;
                if after.is_none() && search.ages.end == list.next_age() {
                    return;
                }
            }
            areas.iter().flatten().for_each(&mut visit);
            if Mutant::WalkEndsEarly.is_on() {
                return;
            }
            self.hugetlb.machine().give_way();
        }
    }
}

impl<M: Machine> Drop for File<M> {
    fn drop(&mut self) {
        // Nobody maps or reads the file any more. The pages return by themselves; promises that no page used do here.
        let used = self.content.len();
        let promised = self.regions.get_mut().remove(0..u64::MAX);
        reserve::unreserve(&self.pool, self.subpool.as_ref(), promised.saturating_sub(used));
    }
}
