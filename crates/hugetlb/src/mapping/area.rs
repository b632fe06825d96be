//! What a file knows of a mapping: where it is, its private copies, its tables, its lock.
//!
//! The area is on the file's list, so operations on the file reach it without the address space's lock. Its reader/writer
//! lock is a part of it and lives as long as the list's reference: an operation that found the area can take the lock,
//! however fast the mapping goes away. (Linux hangs the lock off a pointer that copies of a VMA duplicate.)

use core::ops::{Deref, DerefMut, Range};

use filetables::{Entry, EntryValue, Extent, Format, Found, Level, Protection, Space};
use summary_tree::SummaryTree;

use super::Batch;
use super::copies::{self, Private};
use crate::addr::{PageIndex, PageSize, SLOT_SIZE, VirtAddr};
use crate::error::{FaultError, OutOfMemory};
use crate::file::{File, Key, Place};
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::sharing::{Change, Purpose, Table};
use crate::sync::{Arc, AtomicBool, AtomicU64, Ordering, ReadGuard, RwLock, Spin, WriteGuard};

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

/// The mapping lock, held for writing: no fault of the mapping is under way, and who has this may take entries away.
///
/// Only [`Area::lock`] makes one, so a function that takes it cannot be called without the lock.
pub(crate) struct Exclusive<'a, M: Machine>(WriteGuard<'a, M, Placement>);

impl<M: Machine> Deref for Exclusive<'_, M> {
    type Target = Placement;

    fn deref(&self) -> &Placement {
        &self.0
    }
}

impl<M: Machine> DerefMut for Exclusive<'_, M> {
    fn deref_mut(&mut self) -> &mut Placement {
        &mut self.0
    }
}

/// Adopted tables by the file index at the start of their slot. An entry without a table is one outside of the tree.
type Tables<M> = SummaryTree<PageIndex, Option<Arc<Table<M>>>, ()>;
/// Memory for one of them.
pub(crate) type TableRoom<M> = summary_tree::Entry<PageIndex, Option<Arc<Table<M>>>, ()>;

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
    /// Added to under the file's attach mutex, removed from under the mapping lock for writing.
    tables: Spin<M, Tables<M>>,
    /// The indices that it had when it was made; it never gets others.
    indices: Range<u64>,
    /// One more than the age on the file's list, 0 while it is not there. Set once, under the list's lock.
    listed: AtomicU64,
    /// Whether the file's tables know the address space from this mapping.
    joined: AtomicBool,
    /// Whether it keeps out of shared tables. Set under the mapping lock, and stays.
    unshared: AtomicBool,
    /// Whether stores to a page were ever withheld, or an address poisoned.
    has_marks: AtomicBool,
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
            indices: placement.indices(),
            placement: RwLock::<M, _>::new(placement),
            private: Spin::<M, _>::new(private),
            tables: Spin::<M, _>::new(SummaryTree::new()),
            listed: AtomicU64::new(0),
            joined: AtomicBool::new(false),
            unshared: AtomicBool::new(false),
            has_marks: AtomicBool::new(false),
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

    /// The mapping lock for reading: the mapping stays where it is, and loses no entry.
    pub(super) fn placement(&self) -> ReadGuard<'_, M, Placement> {
        self.placement.read()
    }

    /// The mapping lock for writing.
    pub(super) fn lock(&self) -> Exclusive<'_, M> {
        Exclusive(self.placement.write())
    }

    pub(super) fn private(&self) -> &Spin<M, Private<M>> {
        &self.private
    }

    /// The managed table of the slot with file index `base` at its start.
    pub(crate) fn table(&self, base: PageIndex) -> Option<Arc<Table<M>>> {
        self.tables.lock().get(&base).cloned().flatten()
    }

    /// Memory for the table of the slot with file index `base` at its start.
    pub(crate) fn table_room(machine: &M, base: PageIndex) -> Result<TableRoom<M>, OutOfMemory> {
        machine.take_step()?;
        TableRoom::try_new(base, None).map_err(|_| OutOfMemory)
    }

    /// Sets the table of a slot that has none.
    pub(crate) fn set_table(&self, mut room: TableRoom<M>, table: Arc<Table<M>>) {
        room.change(|_, place| *place = Some(table));
        let added = self.tables.lock().insert_entry(room);
        debug_assert!(added.is_ok(), "a slot has one table");
    }

    pub(crate) fn take_table(&self, _: &Exclusive<'_, M>, base: PageIndex) -> Option<Arc<Table<M>>> {
        // Freed after the lock.
        let room = self.tables.lock().remove_entry(&base);
        room?.into_pair().1
    }

    /// Moves the managed tables of the slots from an index on to another area.
    pub(super) fn split_tables(&self, _: &Exclusive<'_, M>, from: PageIndex, upper: &Area<M>) {
        let next = || {
            let mut tables = self.tables.lock();
            let index = tables.find_from(&from, |index, _| Some(*index))?;
            tables.remove_entry(&index)
        };
        while let Some(room) = next() {
            let added = upper.tables.lock().insert_entry(room);
            debug_assert!(added.is_ok(), "two mappings have no slot in common");
        }
    }

    /// The address of a page index.
    pub(super) fn address(&self, placement: &Placement, index: u64) -> VirtAddr {
        placement.start + ((index - placement.first.0) << self.size.shift())
    }

    /// The mapping, as the tables of a file see it.
    pub(crate) fn extent(&self, placement: &Placement) -> Extent {
        Extent {
            start: placement.start,
            first: placement.first.0,
            pages: placement.pages,
            leaf: self.size.level(),
            rights: M::Format::key_rights(placement.protection),
        }
    }

    /// Whether the mapping keeps out of shared tables.
    pub(crate) fn is_unshared(&self) -> bool {
        // Relaxed: the mapping lock orders it.
        self.unshared.load(Ordering::Relaxed)
    }

    /// Makes it keep out of shared tables.
    pub(super) fn set_unshared(&self) {
        self.unshared.store(true, Ordering::Release);
    }

    /// Whether stores to a page were ever withheld, or an address poisoned.
    pub(super) fn has_marks(&self) -> bool {
        // Relaxed: as `is_unshared`.
        self.has_marks.load(Ordering::Relaxed)
    }

    pub(super) fn set_has_marks(&self) {
        self.has_marks.store(true, Ordering::Release);
    }

    /// Memory for its place on the file's list.
    pub(crate) fn place(self: &Arc<Self>, machine: &M) -> Result<Place<Arc<Self>>, OutOfMemory> {
        machine.take_step()?;
        Place::new(self.indices.clone(), self.clone())
    }

    /// Puts the mapping on the file's list, unless it is there: from now on unmappings visit it.
    ///
    /// It comes before the mapping's first entry in a table that others do not know of. A walk that is under way may have
    /// passed the list's end: it takes the pages away index by index afterwards, and then meets the mapping.
    pub(crate) fn enlist(&self, file: &File<M>, place: Place<Arc<Self>>) {
        let mut list = file.mappings().write();
        // Relaxed, here and below: the list's lock orders it; once set it stays.
        if self.listed.load(Ordering::Relaxed) == 0 {
            let key = list.insert(place);
            self.listed.store(key.age() + 1, Ordering::Relaxed);
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
        if let Some(age) = self.listed.load(Ordering::Relaxed).checked_sub(1) {
            file.mappings().write().remove(Key::new(self.indices.start, age));
        }
    }

    /// Makes the address space known to the file's tables, before the first of them is attached.
    ///
    /// Of two faults that come here at once each joins, so that none goes on before the space is known; one takes it back.
    pub(crate) fn join(&self, file: &File<M>) -> Result<(), OutOfMemory> {
        // Acquire: with the swap of who joined.
        if self.joined.load(Ordering::Acquire) {
            return Ok(());
        }
        file.content().join(self.space.id())?;
        if self.joined.swap(true, Ordering::AcqRel) {
            file.content().leave(self.space.id());
        }
        Ok(())
    }

    /// Whether attached slots lead to tables of the file.
    pub(super) fn has_joined(&self) -> bool {
        // Acquire: as `join`.
        self.joined.load(Ordering::Acquire)
    }

    /// Takes it back: no table is attached, and the TLBs were flushed.
    pub(super) fn leave(&self, file: &File<M>) {
        if self.joined.swap(false, Ordering::AcqRel) {
            file.content().leave(self.space.id());
        }
    }

    /// The entry for an address in tables of the host, if there is one.
    pub(super) fn find_host_entry(&self, address: VirtAddr) -> Option<&Entry> {
        self.space.find_entry(address, self.size.level())
    }

    /// The entry for an address in tables of the host, made on need.
    pub(super) fn host_entry(&self, address: VirtAddr) -> Result<&Entry, FaultError> {
        // Another mapping in the slot may be attached to a table there.
        self.space.entry(address, self.size.level())?.ok_or(FaultError::SlotShared)
    }

    /// The value of the leaf entry for an address, with the rights that the upper levels leave it; 0 when there is none. The
    /// mapping lock is held.
    pub(super) fn leaf(&self, file: &File<M>, placement: &Placement, address: VirtAddr) -> EntryValue {
        let leaf_level = self.size.level();
        let (found, _) = match self.shared {
            true => file.content().look(&self.space, &self.extent(placement), address),
            false => (Found::Host, None),
        };
        let mut rights = Protection::all();
        let leaf = match found {
            Found::Nothing => EntryValue::default(),
            // Acquire, here and below: who reads the page through the frame finds what was in it when the entry was written.
            Found::Host => self
                .find_host_entry(address)
                .map_or(EntryValue::default(), |entry| entry.load(Ordering::Acquire)),
            Found::Attached(slot, entry) => {
                let (mut value, mut level) = (entry.load(Ordering::Acquire), slot.level);
                // An attached table is alive, and those below it are.
                while level > leaf_level && M::Format::is_managed(level, value) {
                    rights &= M::Format::table_rights(value);
                    level = level.below().unwrap_or(leaf_level);
                    let table = file.hugetlb().machine().table(M::Format::table_frame(value));
                    value = table[level.index(address)].load(Ordering::Acquire);
                }
                value
            }
        };
        if !M::Format::is_leaf(leaf_level, leaf) {
            return EntryValue::default();
        }
        let permitted = M::Format::protection(leaf) & rights;
        M::Format::leaf(leaf_level, M::Format::leaf_frame(leaf_level, leaf), permitted)
    }

    /// The page that the leaf of an index leads to: the private copy, else the file's.
    pub(super) fn page(&self, file: &File<M>, index: PageIndex) -> Option<Arc<Page<M>>> {
        let copy = self.private.lock().copy(index).map(|share| share.page().clone());
        copy.or_else(|| file.content().get(index.0))
    }

    /// Shows `visit` the entries of the page indices that exist, with the index; what the protocol does for a whole slot is
    /// done already, and not shown. `visit` returns true when the TLBs must forget the entry.
    pub(super) fn change_entries(
        &self,
        file: &File<M>,
        placement: &Exclusive<'_, M>,
        indices: Range<u64>,
        purpose: Purpose,
        batch: &mut Batch<'_, M>,
        mut visit: impl FnMut(&Entry, PageIndex, &mut Batch<'_, M>) -> bool,
    ) {
        let mine = placement.indices();
        let (mut index, end) = (indices.start.max(mine.start), indices.end.min(mine.end));
        while index < end {
            let address = self.address(placement, index);
            let (change, behind) = match self.shared {
                true => file.hugetlb().protocol().prepare_change(self, placement, address, purpose, batch),
                false => (Change::Host, next_slot(address)),
            };
            let run_end = match behind {
                Some(behind) => end.min(index + (behind.0 - address.0).div_ceil(self.size.bytes())),
                None => end,
            };
            match change {
                Change::Done => {}
                Change::InPlace(table) => {
                    let entries = table.entries(file.hugetlb().machine());
                    for index in index..run_end {
                        let address = self.address(placement, index);
                        if visit(&entries[self.size.level().index(address)], PageIndex(index), batch) {
                            batch.flush_leaf(self, address);
                        }
                    }
                }
                Change::Host => self.change_host_entries(placement, index..run_end, batch, &mut visit),
            }
            batch.end_slot();
            index = run_end;
            file.hugetlb().machine().give_way();
        }
    }

    /// Shows `visit` the entries in tables of the host.
    fn change_host_entries(
        &self,
        placement: &Exclusive<'_, M>,
        indices: Range<u64>,
        batch: &mut Batch<'_, M>,
        visit: &mut impl FnMut(&Entry, PageIndex, &mut Batch<'_, M>) -> bool,
    ) {
        let mut index = indices.start;
        while index < indices.end {
            let address = self.address(placement, index);
            if let Some(entry) = self.find_host_entry(address) {
                if visit(entry, PageIndex(index), batch) {
                    batch.flush_leaf(self, address);
                }
                index += 1;
                continue;
            }
            // Where there is no table there are no entries: a sparse terabyte is passed over table by table.
            let Some(behind) = self.behind_missing(address) else { return };
            index += (behind.0 - address.0).div_ceil(self.size.bytes());
        }
    }

    /// Where the entries may go on when the host has none at an address: behind the table that is missing.
    fn behind_missing(&self, address: VirtAddr) -> Option<VirtAddr> {
        let mut level = self.size.level().above()?;
        while let Some(above) = level.above()
            && self.space.find_entry(address, level).is_none()
        {
            level = above;
        }
        address.floor(level).0.checked_add(level.span()).map(VirtAddr)
    }

    /// Clears the entries of the page indices, without private copies.
    pub(super) fn clear_entries(
        &self,
        file: &File<M>,
        placement: &Exclusive<'_, M>,
        indices: Range<u64>,
        purpose: Purpose,
        batch: &mut Batch<'_, M>,
    ) {
        self.change_entries(file, placement, indices, purpose, batch, |entry, index, batch| {
            let level = self.size.level();
            // A PUD entry that leads to a table is not ours to clear. Acquire: as below.
            if !M::Format::is_leaf(level, entry.load(Ordering::Acquire)) {
                return false;
            }
            // AcqRel: the page's last user must come before its next, and the flush after the store.
            let old = entry.swap(EntryValue::default(), Ordering::AcqRel);
            if let Some(page) = self.page(file, index) {
                debug_assert_eq!(page.frame(), M::Format::leaf_frame(level, old), "an entry and its page");
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
        let placement = self.lock();
        let mut batch = Batch::new(file);
        self.clear(file, &placement, indices, Purpose::Clear, &mut batch);
        if Mutant::UnlockedFlush.is_on() {
            drop(placement);
        }
        batch.finish();
    }

    /// Clears the entries of the page indices and drops private copies.
    pub(super) fn clear(
        &self,
        file: &File<M>,
        placement: &Exclusive<'_, M>,
        indices: Range<u64>,
        purpose: Purpose,
        batch: &mut Batch<'_, M>,
    ) {
        self.restore_promises(file, placement, indices.clone());
        self.clear_entries(file, placement, indices.clone(), purpose, batch);
        self.drop_copies(file, placement, indices, batch);
    }

    /// Lets an owner that is about to drop copies which it has alone keep the right to fresh ones, so that `MADV_DONTNEED` does
    /// not cost it its promise. As on Linux, not while the pool has surplus pages.
    fn restore_promises(&self, file: &File<M>, _: &Exclusive<'_, M>, indices: Range<u64>) {
        if self.shared || file.pool().statistics().surplus > 0 {
            return;
        }
        let mut next = Some(PageIndex(indices.start));
        while let Some(from) = next {
            next = {
                let mut private = self.private.lock();
                if !private.owner {
                    return;
                }
                private.restore_promises(&(from..PageIndex(indices.end)))
            };
            file.hugetlb().machine().give_way();
        }
    }

    /// Drops private copies.
    fn drop_copies(
        &self,
        file: &File<M>,
        _: &Exclusive<'_, M>,
        indices: Range<u64>,
        batch: &mut Batch<'_, M>,
    ) {
        if self.shared {
            return;
        }
        let mut next = Some(PageIndex(indices.start));
        while let Some(from) = next {
            let mut taken = copies::few();
            next = copies::take_copies(&self.private, from..PageIndex(indices.end), &mut taken);
            taken.into_iter().for_each(|share| batch.keep(share));
            batch.end_slot();
            file.hugetlb().machine().give_way();
        }
    }

    /// Takes the private copy at `index` away from a mapping that did not reserve it, if it is `page`.
    pub(super) fn rob(&self, file: &File<M>, index: PageIndex, page: &Arc<Page<M>>) {
        // Held over the flush: as in `unmap_indices`.
        let placement = self.lock();
        {
            let mut private = self.private.lock();
            let same = private.copy(index).is_some_and(|share| Arc::ptr_eq(share.page(), page));
            if private.owner || !(same || Mutant::RobbedWithoutLook.is_on()) {
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

/// The end of the slot of a PUD entry around an address.
pub(crate) fn next_slot(address: VirtAddr) -> Option<VirtAddr> {
    address.floor(Level::Pud).0.checked_add(SLOT_SIZE).map(VirtAddr)
}
