//! What a file knows of a mapping: where it is, its private copies, its tables, its lock.
//!
//! The area is on the file's list, so operations on the file reach it without the address space's lock. Its reader/writer
//! lock is a part of it and lives as long as the list's reference: an operation that found the area can take the lock,
//! however fast the mapping goes away. (Linux hangs the lock off a pointer that copies of a VMA duplicate.)

use alloc::collections::BTreeMap;
use core::ops::Range;

use super::{Batch, Share};
use crate::addr::{PageIndex, PageSize, SLOT_SIZE, VirtAddr};
use crate::error::NoEntry;
use crate::file::{Cache, File};
use crate::format::{self, Protection};
use crate::machine::{Machine, Space};
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::reserve::Regions;
use crate::sharing::{Change, Purpose, Table, entry_index};
use crate::sync::{Arc, AtomicBool, AtomicU64, Ordering, RwLock, Spin};

/// What the mapping lock guards.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placement {
    pub(crate) start: VirtAddr,
    pub(crate) first: PageIndex,
    pub(crate) pages: u64,
    pub(crate) protection: Protection,
}

impl Placement {
    pub(super) fn indices(&self) -> Range<u64> {
        self.first.0..self.first.0 + self.pages
    }
}

/// The part of a shared mapping of 2 MiB pages that lies in one 1 GiB slot: what one table maps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// The slot's first address.
    pub(crate) start: VirtAddr,
    /// The page at the part's first address.
    pub(crate) first: PageIndex,
    /// The pages of the part.
    pub(crate) pages: u64,
    /// The entry of the first page in a table for the slot.
    pub(crate) entry: usize,
    /// What the mapping permits.
    pub(crate) protection: Protection,
}

impl Slot {
    /// Whether the mapping covers the whole slot. Then nothing else is in it, and a managed table there is the mapping's.
    pub(crate) fn is_whole(&self) -> bool {
        self.pages << PageSize::Size2M.shift() == SLOT_SIZE
    }
}

/// What only a `MAP_PRIVATE` mapping has.
pub(super) struct Private<M: Machine> {
    /// Its own pages by file index; after a fork several areas have a share of one page.
    pub(super) copies: BTreeMap<PageIndex, Share<M>>,
    /// Indices whose promise was used up.
    pub(super) used: Regions,
    /// The promise is this mapping's: it was made at mmap, and no fork inherits it.
    pub(super) owner: bool,
    /// The owner took a page away for want of another; what is absent here stays so (`HPAGE_RESV_UNMAPPED`).
    pub(super) robbed: bool,
}

/// A mapping as its file sees it.
pub(crate) struct Area<M: Machine> {
    id: u64,
    space: M::Space,
    shared: bool,
    size: PageSize,
    /// The mapping lock: faults read, what moves or takes away entries writes.
    placement: RwLock<M, Placement>,
    /// Changed under the mapping lock (by faults: for reading, plus the fault mutex of the index).
    private: Spin<M, Private<M>>,
    /// Adopted tables by the file index at the start of their slot. Added under the file's attach mutex, removed under the mapping
    /// lock for writing.
    tables: Spin<M, BTreeMap<PageIndex, Arc<Table<M>>>>,
    /// The key on the file's list, 0 while it is not there. Set once, under the list's lock.
    listed: AtomicU64,
    /// Whether the file's mirror knows the address space from this mapping. Changed under the cache lock.
    joined: AtomicBool,
}

impl<M: Machine> Area<M> {
    pub(super) fn new(
        id: u64,
        space: M::Space,
        shared: bool,
        size: PageSize,
        placement: Placement,
        private: Private<M>,
    ) -> Arc<Area<M>> {
        Arc::new(Area {
            id,
            space,
            shared,
            size,
            placement: RwLock::<M, _>::new(placement),
            private: Spin::<M, _>::new(private),
            tables: Spin::<M, _>::new(BTreeMap::new()),
            listed: AtomicU64::new(0),
            joined: AtomicBool::new(false),
        })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn space(&self) -> &M::Space {
        &self.space
    }

    pub(super) fn is_shared(&self) -> bool {
        self.shared
    }

    pub(super) fn placement(&self) -> &RwLock<M, Placement> {
        &self.placement
    }

    pub(super) fn private(&self) -> &Spin<M, Private<M>> {
        &self.private
    }

    /// The managed table of the slot with file index `base` at its start.
    pub(crate) fn table(&self, base: PageIndex) -> Option<Arc<Table<M>>> {
        self.tables.lock().get(&base).cloned()
    }

    pub(crate) fn set_table(&self, base: PageIndex, table: Arc<Table<M>>) {
        self.tables.lock().insert(base, table);
    }

    pub(crate) fn take_table(&self, base: PageIndex) -> Option<Arc<Table<M>>> {
        self.tables.lock().remove(&base)
    }

    /// Takes the managed tables of the slots from an index on.
    pub(super) fn split_tables(&self, from: PageIndex) -> BTreeMap<PageIndex, Arc<Table<M>>> {
        self.tables.lock().split_off(&from)
    }

    /// The address of a page index.
    pub(super) fn address(&self, placement: &Placement, index: u64) -> VirtAddr {
        placement.start + ((index - placement.first.0) << self.size.shift())
    }

    /// The part of the mapping in the slot around `address`, in which it has pages; `None` when the mapping cannot share tables.
    pub(crate) fn slot(&self, placement: &Placement, address: VirtAddr) -> Option<Slot> {
        if !self.shared || self.size != PageSize::Size2M {
            return None;
        }
        let start = address.slot();
        let slot_end = start.0.saturating_add(SLOT_SIZE);
        let end = placement.start.0 + (placement.pages << self.size.shift());
        let (from, to) = (start.max(placement.start), slot_end.min(end));
        Some(Slot {
            start,
            first: placement.first + ((from.0 - placement.start.0) >> self.size.shift()),
            pages: (to - from.0) >> self.size.shift(),
            entry: entry_index(from),
            protection: placement.protection,
        })
    }

    /// The parts of the mapping by slot; none when it cannot share tables.
    pub(crate) fn slots(&self, placement: &Placement) -> impl Iterator<Item = Slot> {
        let first = self.slot(placement, placement.start);
        let (placement, end) = (*placement, placement.start.0 + (placement.pages << self.size.shift()));
        core::iter::successors(first, move |slot| {
            let next = slot.start.0.checked_add(SLOT_SIZE).filter(|next| *next < end)?;
            self.slot(&placement, VirtAddr(next))
        })
    }

    /// Puts the mapping on the file's list, unless it is there: from now on unmappings visit it.
    ///
    /// It comes before the mapping's first entry in a table that others do not know of. A walk that is under way may have
    /// passed the list's end: it takes the pages away index by index afterwards, and then meets the mapping.
    pub(crate) fn enlist(self: &Arc<Self>, file: &File<M>) {
        // Relaxed: the list's lock orders it; once set it stays.
        if self.listed.load(Ordering::Relaxed) != 0 {
            return;
        }
        let mut list = file.mappings().write();
        if self.listed.load(Ordering::Relaxed) == 0 {
            // The key is taken under the list's lock, so that walkers meet areas in the order of their keys.
            let key = file.hugetlb().next_id();
            self.listed.store(key, Ordering::Relaxed);
            list.insert(key, self.clone());
        }
    }

    /// Whether the mapping is on the file's list.
    pub(crate) fn is_listed(&self) -> bool {
        // Relaxed: the list's lock orders it.
        self.listed.load(Ordering::Relaxed) != 0
    }

    /// Takes the mapping, which has no entries any more, from the file's list.
    pub(super) fn delist(&self, file: &File<M>) {
        // Relaxed: nobody enlists a mapping that is going away.
        let key = self.listed.load(Ordering::Relaxed);
        if key != 0 {
            file.mappings().write().remove(&key);
        }
    }

    /// Makes the address space known to the file's tables, before the first of them is attached.
    pub(crate) fn join(&self, cache: &mut Cache<M>) {
        if Mutant::SpaceNotJoined.is_on() {
            return;
        }
        // Relaxed: the cache lock, of which `cache` is the proof, orders it.
        if !self.joined.swap(true, Ordering::Relaxed) {
            cache.join(self.space.id());
        }
    }

    /// Whether attached slots lead to tables of the file.
    pub(super) fn has_joined(&self) -> bool {
        // Relaxed: the caller holds the mapping lock, and found an attached slot under it.
        self.joined.load(Ordering::Relaxed)
    }

    /// As [`Area::join`], for a mapping that takes over attached slots of `other`.
    pub(super) fn join_as(&self, other: &Area<M>, cache: &mut Cache<M>) {
        if other.joined.load(Ordering::Relaxed) {
            self.join(cache);
        }
    }

    /// Takes it back: no table is attached, and the TLBs were flushed.
    pub(super) fn leave(&self, cache: &mut Cache<M>) {
        // Relaxed: as `join`.
        if self.joined.swap(false, Ordering::Relaxed) {
            cache.leave(self.space.id());
        }
    }

    /// What is in the PUD entry of a slot, if it leads to a table that this mapping is attached to; the mapping lock is held.
    ///
    /// A slot that the mapping covers in part may have another mapping's table. Tables differ in their windows, so the one
    /// that the file has for the mapping's window is the mapping's.
    pub(crate) fn attached(&self, file: &File<M>, slot: &Slot, entry: &AtomicU64) -> Option<u64> {
        // Acquire: with who attached.
        let pud = entry.load(Ordering::Acquire);
        if slot.is_whole() || !format::is_managed(pud) || Mutant::StrangersTableTaken.is_on() {
            return format::is_managed(pud).then_some(pud);
        }
        let cache = file.cache().lock();
        // Once more under the lock: both tables are alive at this moment, so one frame is one table.
        let pud = entry.load(Ordering::Acquire);
        let table = cache.table_at(slot.first, slot.pages, slot.entry);
        table
            .is_some_and(|(frame, _)| format::is_managed(pud) && format::table_frame(pud) == frame)
            .then_some(pud)
    }

    /// The entry for an address in tables of the host, if there is one.
    pub(super) fn find_host_entry(&self, address: VirtAddr) -> Option<&AtomicU64> {
        let pud = self.space.find_pud_entry(address)?;
        if self.size == PageSize::Size1G {
            return Some(pud);
        }
        // Acquire: pairs with the release that installed the table.
        let entry = pud.load(Ordering::Acquire);
        if format::is_managed(entry) || format::is_leaf(entry) {
            None
        } else {
            self.space.find_pmd_entry(address)
        }
    }

    /// The entry for an address in tables of the host, made on need.
    pub(super) fn host_entry(&self, address: VirtAddr) -> Result<&AtomicU64, NoEntry> {
        match self.size {
            PageSize::Size1G => Ok(self.space.pud_entry(address)?),
            PageSize::Size2M => self.space.pmd_entry(address),
        }
    }

    /// The value of the leaf entry for an address, with the rights that the upper levels leave it; 0 when there is none. The
    /// mapping lock is held.
    pub(super) fn leaf(&self, file: &File<M>, placement: &Placement, address: VirtAddr) -> u64 {
        let slot = self.slot(placement, address);
        let attached =
            slot.and_then(|slot| self.attached(file, &slot, self.space.find_pud_entry(slot.start)?));
        let entry = match attached {
            // An attached table is alive.
            Some(pud) => {
                Some(&file.hugetlb().machine().table(format::table_frame(pud))[entry_index(address)])
            }
            None => self.find_host_entry(address),
        };
        // Acquire: who reads the page through the frame finds what was in it when the entry was written.
        let leaf = entry.map_or(0, |entry| entry.load(Ordering::Acquire));
        match (format::is_leaf(leaf), attached) {
            (true, Some(pud)) => format::combine(pud, leaf),
            (true, None) => leaf,
            (false, _) => 0,
        }
    }

    /// The page that the leaf of an index leads to: the private copy, else the file's.
    pub(super) fn page(&self, file: &File<M>, index: PageIndex) -> Option<Arc<Page<M>>> {
        let copy = self.private.lock().copies.get(&index).map(|share| share.page().clone());
        copy.or_else(|| file.cache().lock().get(index).cloned())
    }

    /// Shows `visit` the entries of the page indices that exist, with the index; what the protocol does for a whole slot is
    /// done already, and not shown. `visit` returns true when the TLBs must forget the entry. The mapping lock is held for
    /// writing.
    pub(super) fn change_entries(
        &self,
        file: &File<M>,
        placement: &Placement,
        indices: Range<u64>,
        purpose: Purpose,
        batch: &mut Batch<'_, M>,
        mut visit: impl FnMut(&AtomicU64, PageIndex, &mut Batch<'_, M>) -> bool,
    ) {
        let mine = placement.indices();
        let (mut index, end) = (indices.start.max(mine.start), indices.end.min(mine.end));
        while index < end {
            let address = self.address(placement, index);
            // Up to the next slot, whose table is another one.
            let slot_end = address.slot().0.saturating_add(SLOT_SIZE);
            let run_end = end.min(index + (slot_end - address.0).div_ceil(self.size.bytes()));
            let change = match self.slot(placement, address) {
                Some(slot) => file.hugetlb().protocol().prepare_change(self, slot, purpose, batch),
                None => Change::Host,
            };
            match change {
                Change::Done => {}
                Change::InPlace(table) => {
                    let entries = table.entries(file.hugetlb().machine());
                    for index in index..run_end {
                        let address = self.address(placement, index);
                        if visit(&entries[entry_index(address)], PageIndex(index), batch) {
                            batch.flush_leaf(self, address);
                        }
                    }
                }
                Change::Host => {
                    // Where there is no table there are no entries: a sparse terabyte is passed over slot by slot.
                    let first = self.find_host_entry(address);
                    for index in if first.is_some() { index..run_end } else { 0..0 } {
                        let address = self.address(placement, index);
                        if let Some(entry) = self.find_host_entry(address)
                            && visit(entry, PageIndex(index), batch)
                        {
                            batch.flush_leaf(self, address);
                        }
                    }
                }
            }
            index = run_end;
        }
    }

    /// Clears the entries of the page indices, without private copies.
    pub(super) fn clear_entries(
        &self,
        file: &File<M>,
        placement: &Placement,
        indices: Range<u64>,
        purpose: Purpose,
        batch: &mut Batch<'_, M>,
    ) {
        self.change_entries(file, placement, indices, purpose, batch, |entry, index, batch| {
            // A PUD entry that leads to a table is not ours to clear. Acquire: as below.
            if !format::is_leaf(entry.load(Ordering::Acquire)) {
                return false;
            }
            // AcqRel: the page's last user must come before its next, and the flush after the store.
            let old = entry.swap(0, Ordering::AcqRel);
            if let Some(page) = self.page(file, index) {
                debug_assert_eq!(page.frame(), format::leaf_frame(old, self.size), "an entry and its page");
                batch.unmap(page);
            }
            true
        });
    }

    /// For operations on the file: clears the entries of the indices and drops private copies.
    pub(crate) fn unmap_indices(&self, file: &File<M>, indices: Range<u64>) {
        // Most walks miss most areas of a large file: look before waiting for the faults under way. An area that grows into
        // the range only after this look (there is none: areas shrink and move) would have nothing stale.
        if !overlaps(&self.placement.read().indices(), &indices) {
            return;
        }
        // Held over the flush. Else the mapping could go meanwhile, without a flush of its own since it finds nothing, and
        // a new one at its place would be hidden behind the old translations.
        let placement = self.placement.write();
        let mut batch = Batch::new(file);
        self.clear(file, &placement, indices, Purpose::Clear, &mut batch);
        if Mutant::UnlockedFlush.is_on() {
            drop(placement);
        }
        batch.finish();
    }

    /// Clears the entries of the page indices and drops private copies; the mapping lock is held for writing.
    pub(super) fn clear(
        &self,
        file: &File<M>,
        placement: &Placement,
        indices: Range<u64>,
        purpose: Purpose,
        batch: &mut Batch<'_, M>,
    ) {
        self.restore_promises(file, indices.clone());
        self.clear_entries(file, placement, indices.clone(), purpose, batch);
        self.drop_copies(indices, batch);
    }

    /// Lets an owner that is about to drop copies which it has alone keep the right to fresh ones, so that `MADV_DONTNEED` does
    /// not cost it its promise. As on Linux, not while the pool has surplus pages.
    fn restore_promises(&self, file: &File<M>, indices: Range<u64>) {
        if self.shared || file.pool().statistics().surplus > 0 {
            return;
        }
        let mut private = self.private.lock();
        let Private { copies, used, owner, .. } = &mut *private;
        if !*owner {
            return;
        }
        for (index, share) in copies.range(PageIndex(indices.start)..PageIndex(indices.end)) {
            // A relative that goes away meanwhile came too late. The mapping lock keeps forks out.
            if share.is_sole() && used.remove(index.0..index.0 + 1) == 1 {
                share.page().restore();
            }
        }
    }

    /// Drops private copies; the mapping lock is held for writing.
    fn drop_copies(&self, indices: Range<u64>, batch: &mut Batch<'_, M>) {
        if self.shared {
            return;
        }
        let mut private = self.private.lock();
        loop {
            let next = private.copies.range(PageIndex(indices.start)..PageIndex(indices.end)).next();
            let Some(index) = next.map(|(index, _)| *index) else { return };
            let Some(share) = private.copies.remove(&index) else { return };
            batch.keep(share);
        }
    }

    /// Takes the private copy at `index` away from a mapping that did not reserve it, if it is `page`.
    pub(super) fn rob(&self, file: &File<M>, index: PageIndex, page: &Arc<Page<M>>) {
        // Held over the flush: as in `unmap_indices`.
        let placement = self.placement.write();
        {
            let mut private = self.private.lock();
            let same = private.copies.get(&index).is_some_and(|share| Arc::ptr_eq(share.page(), page));
            if private.owner || !same {
                return;
            }
            private.robbed = true;
        }
        let mut batch = Batch::new(file);
        self.clear(file, &placement, index.0..index.0 + 1, Purpose::Clear, &mut batch);
        batch.finish();
    }
}

fn overlaps(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}
