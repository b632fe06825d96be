//! Memory that breaks, and memory that is about to: a page's frame goes out of use.
//!
//! Both hold the fault mutex of the page's index from the look to the end, so no fault brings the page back into sight meanwhile. The
//! page leaves the sight of everybody as in a hole punch: listed mappings one by one, and the file's own tables in one step with one
//! flush of all who are attached. But it stays the file's, or the copy of those who share it: what comes to it next finds it broken, or
//! finds its successor.
//!
//! Race: `MADV_DONTNEED` of a copy needs no fault mutex, and gives the promise back with the page, if the mapping has it alone. A share
//! that is taken before the page leaves the mappings' sight, which waits for each of them, settles that: the promise came back before,
//! or it does not come back.

use super::Mapping;
use crate::addr::{PageIndex, PhysAddr, VirtAddr};
use crate::area::{Area, Share};
use crate::error::OutOfMemory;
use crate::file::{File, IndexLock};
use crate::machine::Machine;
use crate::pool::Page;
use crate::sharing::{Batch, Purpose};
use crate::sync::Arc;

impl<M: Machine> Mapping<M> {
    /// The memory of the page that `address` leads to is broken (`MADV_HWPOISON`): whoever maps the page gets
    /// [`FaultError::Poisoned`](crate::FaultError::Poisoned) for an access, until it is truncated, punched out or, a private copy,
    /// discarded. `note` gets the frame before anybody can give it up: the host notes what of it is broken, for
    /// [`Machine::free_broken`]. The page of a private mapping leaves the pool's counters at once, that of a file when it leaves the
    /// file. The host holds its address-space lock for reading at most.
    ///
    /// Returns whether there is a page, and a whole one: else the next access says what there is.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when there is none for the file's first page.
    pub fn break_page(&self, address: VirtAddr, note: impl FnOnce(PhysAddr)) -> Result<bool, OutOfMemory> {
        let Some(index) = self.index(address) else { return Ok(false) };
        // As a removal: see `File::remove_pages`.
        let _fence = self.file.protocol().change_fence(&self.file);
        let at = self.file.lock_index(index)?;
        let Some((page, is_copy)) = self.whole_page(index) else { return Ok(false) };
        let _held = is_copy.then(|| Share::new(page.clone()));
        page.hide();
        self.file.withdraw(&at, &page, is_copy);
        if is_copy && page.is_restored() {
            return Ok(false);
        }
        note(page.frame());
        page.break_down();
        if is_copy {
            page.count_out();
        }
        Ok(true)
    }

    /// Moves what the page that `address` leads to has in it to another frame (`MADV_SOFT_OFFLINE`): programs see nothing of it, and the
    /// frame is lost as a broken one is. The new one is a free page of the pool that nobody is promised, or else the machine's. `note`
    /// gets the old frame, as with [`Mapping::break_page`]. The host holds its address-space lock for reading at most.
    ///
    /// Returns whether there is a page, and a whole one.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when there is no frame; nothing has changed then.
    pub fn replace_page(&self, address: VirtAddr, note: impl FnOnce(PhysAddr)) -> Result<bool, OutOfMemory> {
        let Some(index) = self.index(address) else { return Ok(false) };
        let _fence = self.file.protocol().change_fence(&self.file);
        let at = self.file.lock_index(index)?;
        let Some((page, is_copy)) = self.whole_page(index) else { return Ok(false) };
        let successor = self.file.pool().take_successor().ok_or(OutOfMemory)?;
        let _held = is_copy.then(|| Share::new(page.clone()));
        page.hide();
        self.file.withdraw(&at, &page, is_copy);
        // Nobody stores to it any more: each store would need a fault.
        let next = Arc::new(page.succeed(&successor));
        next.copy_from(&page);
        if is_copy {
            // Of several who share the page none is alone with the new one before the last has it.
            let _share = Share::new(next.clone());
            self.file.each_listed(index.0..index.0 + 1, |area| {
                // Who comes of one that was there before has it too; who comes later, and of nobody, has not.
                area.exchange_copy(index, &page, &next)
            });
        } else {
            at.forget();
            let old = self.file.content().replace(index.0, next);
            debug_assert!(old.is_some_and(|old| Arc::ptr_eq(&old, &page)), "the fault mutex keeps the page");
        }
        note(page.frame());
        Ok(true)
    }

    /// The page that an index leads to, unless it is broken, and whether it is a private copy. The fault mutex is held.
    fn whole_page(&self, index: PageIndex) -> Option<(Arc<Page<M>>, bool)> {
        let copy = self.area.private().lock().copy(index).map(|share| share.page().clone());
        let is_copy = copy.is_some();
        let page = copy.or_else(|| self.file.shown_page(index))?;
        (!page.is_broken()).then_some((page, is_copy))
    }
}

impl<M: Machine> File<M> {
    /// Takes a page that is not to be shown any more out of the sight of all who map it. When this returns no TLB has it, and while the
    /// index is locked no fault brings it back.
    fn withdraw(&self, at: &IndexLock<'_, M>, page: &Arc<Page<M>>, is_copy: bool) {
        let index = at.index();
        self.protocol().unmap_for_good(self, index.0..index.0 + 1, &|run| {
            self.each_listed(run, |area| {
                // Without entries anywhere there is nothing to do with who comes: it finds the index locked.
                let is_mapped = page.is_mapped();
                area.unmap_page(self, index, page);
                is_mapped
            });
        });
        if !is_copy && self.content().hide(index.0) {
            self.content().flush();
        }
        debug_assert!(!page.is_mapped() || cfg!(roundtable_model), "an entry outlived its page");
    }
}

impl<M: Machine> Area<M> {
    /// Clears the entry for an index if it leads to this page, and flushes.
    fn unmap_page(&self, file: &File<M>, index: PageIndex, page: &Arc<Page<M>>) {
        // Held over the flush: as in `unmap_indices`.
        let placement = self.lock();
        let is_there = placement.indices().contains(&index.0);
        if is_there && self.page(file, index).is_some_and(|found| Arc::ptr_eq(&found, page)) {
            let mut batch = Batch::new(file);
            self.clear_entries(file, &placement, index.0..index.0 + 1, Purpose::Clear, &mut batch);
            batch.finish();
        }
    }

    /// Puts a page in the place of a private copy, which has no entry. Returns whether the mapping had that copy.
    fn exchange_copy(&self, index: PageIndex, old: &Arc<Page<M>>, new: &Arc<Page<M>>) -> bool {
        let _placement = self.lock();
        // Dropped behind the spin lock.
        let share = self.private().lock().exchange(index, old, new);
        share.is_some()
    }
}
