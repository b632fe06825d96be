//! A walk over the entries of a mapping: what changes or clears them, for the mapping itself and for operations on the file.

use core::ops::Range;

use filetables::{Entry, EntryValue, Format, Found, Protection, Space};

use crate::addr::{PageIndex, VirtAddr};
use crate::area::{self, Area, Exclusive, Placement};
use crate::file::File;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::sharing::{Batch, Change, Purpose, next_slot};
use crate::sync::{Arc, Ordering};

/// How many entries a walk that changes nothing looks at before it gives way.
const LOOKS_AT_A_TIME: u64 = 512;

impl<M: Machine> File<M> {
    /// Clears the entries of the listed mappings for the page indices, drops private copies, and flushes.
    pub(crate) fn unmap_listed(&self, indices: Range<u64>) {
        let unmapping = self.begin_unmapping(indices.clone());
        self.each_listed(indices.clone(), |area| area.unmap_indices(self, indices.clone(), unmapping.number));
    }
}

impl<M: Machine> Area<M> {
    /// The value of the leaf entry for an address, with the rights that the upper levels leave it; 0 when there is none. The
    /// mapping lock is held.
    pub(super) fn leaf(&self, file: &File<M>, placement: &Placement, address: VirtAddr) -> EntryValue {
        let leaf_level = self.size().level();
        let (found, _) = match self.is_shared() {
            true => file.content().look(self.space(), &self.extent(placement), address),
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
        let copy = self.private().lock().copy(index).map(|share| share.page().clone());
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
            let (change, behind) = match self.is_shared() {
                true => file.protocol().prepare_change(self, placement, address, purpose, batch),
                false => (Change::Host, next_slot(address)),
            };
            let run_end = match behind {
                Some(behind) => end.min(index + (behind.0 - address.0).div_ceil(self.size().bytes())),
                None => end,
            };
            match change {
                Change::Done => {}
                Change::InPlace(table) => {
                    let entries = file.hugetlb().machine().table(table);
                    for index in index..run_end {
                        let address = self.address(placement, index);
                        if visit(&entries[self.size().level().index(address)], PageIndex(index), batch) {
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

    /// Shows `visit` the entries in tables of the host, to change them.
    fn change_host_entries(
        &self,
        placement: &Exclusive<'_, M>,
        indices: Range<u64>,
        batch: &mut Batch<'_, M>,
        visit: &mut impl FnMut(&Entry, PageIndex, &mut Batch<'_, M>) -> bool,
    ) {
        let mut next = Some(indices.start);
        while let Some(index) = next.filter(|index| *index < indices.end) {
            let found;
            (found, next) = self.host_entry_from(placement, index);
            if let Some(entry) = found
                && visit(entry, PageIndex(index), batch)
            {
                batch.flush_leaf(self, self.address(placement, index));
            }
        }
    }

    /// Shows `visit` the entries in tables of the host, to look at them, until it says an error. The mapping lock is held; other
    /// threads get their turn.
    pub(super) fn each_host_entry<E>(
        &self,
        file: &File<M>,
        placement: &Placement,
        indices: Range<u64>,
        mut visit: impl FnMut(&Entry, PageIndex) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut next = Some(indices.start);
        let mut looks = 0u64;
        while let Some(index) = next.filter(|index| *index < indices.end) {
            let found;
            (found, next) = self.host_entry_from(placement, index);
            if let Some(entry) = found {
                visit(entry, PageIndex(index))?;
            }
            looks += 1;
            if looks.is_multiple_of(LOOKS_AT_A_TIME) {
                file.hugetlb().machine().give_way();
            }
        }
        Ok(())
    }

    /// The entry of an index in tables of the host, if there is one, and the index to look at next: where there is no table there
    /// are no entries, and a sparse terabyte is passed over table by table.
    fn host_entry_from(&self, placement: &Placement, index: u64) -> (Option<&Entry>, Option<u64>) {
        let address = self.address(placement, index);
        if let Some(entry) = self.find_host_entry(address) {
            return (Some(entry), Some(index + 1));
        }
        let steps = |behind: VirtAddr| (behind.0 - address.0).div_ceil(self.size().bytes());
        (None, self.behind_missing(address).map(|behind| index + steps(behind)))
    }

    /// Where the entries may go on when the host has none at an address: behind the table that is missing.
    fn behind_missing(&self, address: VirtAddr) -> Option<VirtAddr> {
        let mut level = self.size().level().above()?;
        while let Some(above) = level.above()
            && self.space().find_entry(address, level).is_none()
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
            let level = self.size().level();
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

    /// For operations on the file: clears the entries of the indices and drops private copies, for an unmapping of a number. False
    /// when this was done, or the mapping has come since without any.
    pub(crate) fn unmap_indices(&self, file: &File<M>, indices: Range<u64>, number: u64) -> bool {
        if self.is_unmapped_by(number) {
            return false;
        }
        // Most walks miss most areas of a large file: look before waiting for the faults under way. An area that grows into
        // the range only after this look (there is none: areas shrink and move) would have nothing stale.
        if !overlaps(&self.placement().indices(), &indices) {
            return true;
        }
        // Held over the flush. Else the mapping could go meanwhile, without a flush of its own since it finds nothing, and
        // a new one at its place would be hidden behind the old translations.
        let placement = self.lock();
        let mut batch = Batch::new(file);
        self.clear(file, &placement, indices, Purpose::Clear, &mut batch);
        // What a split takes off it from now on is unmapped, too.
        self.set_unmapped_by(number);
        if Mutant::UnlockedFlush.is_on() {
            drop(placement);
        }
        batch.finish();
        true
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
        if self.is_shared() || file.pool().statistics().surplus > 0 {
            return;
        }
        let mut next = Some(PageIndex(indices.start));
        while let Some(from) = next {
            next = {
                let mut private = self.private().lock();
                if !private.is_owner() {
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
        if self.is_shared() {
            return;
        }
        let mut next = Some(PageIndex(indices.start));
        while let Some(from) = next {
            let mut taken = area::few();
            next = area::take_copies(self.private(), from..PageIndex(indices.end), &mut taken);
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
            let mut private = self.private().lock();
            let same = private.copy(index).is_some_and(|share| Arc::ptr_eq(share.page(), page));
            if private.is_owner() || !(same || Mutant::RobbedWithoutLook.is_on()) {
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
