//! The fault path of `MAP_PRIVATE`: copies on write, and who gets a page when the pool is empty.

use filetables::{Entry, EntryValue, Format, Protection};

use crate::addr::PageIndex;
use crate::area::{Placement, Private, Room, Share};
use crate::error::{FaultError, OutOfMemory};
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::payer::PageCharge;
use crate::pool::Page;
use crate::reserve;
use crate::sharing::{Access, Batch, Fault};
use crate::sync::{Arc, Ordering};

enum Failure<M: Machine> {
    Fault(FaultError),
    /// The pool is empty, and relatives of the page could be made to give it up.
    Rob(Arc<Page<M>>),
}

impl<M: Machine, E: Into<FaultError>> From<E> for Failure<M> {
    fn from(error: E) -> Failure<M> {
        Failure::Fault(error.into())
    }
}

impl<M: Machine> Fault<'_, M> {
    /// Resolves a fault on a private mapping.
    pub(super) fn private(&self) -> Result<Arc<Page<M>>, FaultError> {
        let mut robbed = false;
        loop {
            let placement = self.lock_mapping()?;
            match self.try_private(&placement) {
                Ok(page) => return Ok(page),
                Err(Failure::Fault(error)) => return Err(error),
                // Relatives are other areas: their locks come after ours is released. The fault mutex keeps the page's
                // state as it is, and a relative that goes is through with its flush when its lock is free: once is
                // enough.
                Err(Failure::Rob(page)) if !robbed => {
                    drop(placement);
                    self.rob_relatives(&page);
                    robbed = true;
                }
                Err(Failure::Rob(_)) => return Err(FaultError::Sigbus),
            }
        }
    }

    fn try_private(&self, placement: &Placement) -> Result<Arc<Page<M>>, Failure<M>> {
        let index = self.index.index();
        let (copy, robbed) = {
            let private = self.area.private().lock();
            let share = private.copy(index);
            (share.map(|share| (share.is_sole(), share.page().clone())), private.robbed)
        };
        // Looked at under the mapping lock: a truncation that comes later meets what this fault maps.
        let shown = || self.index.page(self.file).filter(|_| index.0 < self.file.content().end());
        let mut cached = shown();
        if copy.is_none() && cached.is_none() {
            // A copy stays until a truncation takes it, and the host may put one where the file has ended: as Linux.
            if self.fill.is_none() && self.file.ends_before(index.0) {
                return Err(FaultError::Sigbus.into());
            }
            // Race: fallocate(2) had put the page behind the end, and shows it since. Who sees the new end sees the page.
            cached = shown();
        }
        if let Some(page) = copy.as_ref().map(|(_, page)| page).or(cached.as_ref()) {
            self.refuse_broken(page)?;
        }
        let entry = self.host_entry()?;
        let read_only = placement.protection - Protection::WRITE;
        let write = self.access == Access::Write;
        match (copy, cached) {
            // No relative sees the store.
            (Some((is_sole, page)), _) if is_sole || Mutant::CopyOfRelatives.is_on() => {
                self.replace(entry, None, &page, self.permitted(placement.protection));
                Ok(page)
            }
            (Some((_, page)), _) if !write => {
                self.replace(entry, None, &page, read_only);
                Ok(page)
            }
            (None, Some(page)) if !write => {
                self.replace(entry, None, &page, read_only);
                Ok(page)
            }
            (copy, cached) => {
                let copy = copy.map(|(_, page)| page);
                let origin = copy.clone().or(cached);
                if origin.is_none() && robbed && self.fill.is_none() {
                    return Err(FaultError::Sigbus.into());
                }
                let mut room = self.room(index)?;
                let Some(page) = self.allocate_private(index, &mut room) else {
                    return Err(match copy {
                        Some(page) if self.area.private().lock().is_owner() => Failure::Rob(page),
                        _ => FaultError::Sigbus.into(),
                    });
                };
                self.initialise(&page, origin.as_deref());
                if origin.is_some() {
                    self.file.hugetlb().counters().fault(index).copied.add(1);
                }
                let share = Share::new(page.clone());
                let old = self.area.private().lock().set_copy(index, share, &mut room);
                // PROT_NONE has no entries: what the host has put there comes by a fault, when there are rights.
                if !placement.protection.is_empty() {
                    self.replace(entry, origin, &page, self.permitted(placement.protection));
                }
                // Behind the flush: see `Share`.
                drop(old);
                Ok(page)
            }
        }
    }

    /// Memory for what the mapping is to know of the index, if it knows nothing of it. The fault mutex and the mapping
    /// lock keep that so.
    fn room(&self, index: PageIndex) -> Result<Option<Room<M>>, OutOfMemory> {
        let is_wanted = self.area.private().lock().wants_room(index);
        is_wanted.then(|| Private::room(self.file.hugetlb().machine(), index)).transpose()
    }

    /// A page for a private copy: promised to this mapping, or else not promised to anybody.
    fn allocate_private(&self, index: PageIndex, room: &mut Option<Room<M>>) -> Option<Arc<Page<M>>> {
        let (pool, subpool) = (self.file.pool(), self.file.subpool());
        let promised = self.area.private().lock().use_promise(index, room);
        let payer = self.file.hugetlb().machine().payer();
        let charge = PageCharge::new(payer, self.file.page_size(), promised);
        let frame = if promised {
            let frame = charge.is_ok().then(|| pool.take(true)).flatten();
            if frame.is_none() {
                // Freed after the lock.
                let emptied = self.area.private().lock().return_promise(index);
                drop(emptied);
            }
            frame?
        } else {
            charge.as_ref().ok().and_then(|_| reserve::take_unpromised(pool, subpool).ok())?
        };
        self.file.hugetlb().counters().fault(index).allocated.add(1);
        Some(Arc::new(Page::new(frame, pool.clone(), subpool.cloned(), charge.ok()?)))
    }

    /// Makes `entry` lead to `page`; `origin` is the page that it may have led to, if that is another one.
    fn replace(
        &self,
        entry: &Entry,
        origin: Option<Arc<Page<M>>>,
        page: &Arc<Page<M>>,
        protection: Protection,
    ) {
        let level = self.file.page_size().level();
        let new = M::Format::leaf(level, page.frame(), protection);
        // Acquire and release: as in `publish`. The fault mutex makes us the only writer.
        let old = entry.load(Ordering::Acquire);
        if !M::Format::is_leaf(level, old) {
            page.add_entry();
            entry.store(new, Ordering::Release);
            return;
        }
        if M::Format::leaf_frame(level, old) == page.frame() {
            // More rights at most: whoever holds the old entry faults, and looks again.
            entry.store(new, Ordering::Release);
            return;
        }
        // Cleared and flushed before the copy shows: else one thread could store through the new entry while another
        // still reads the origin through its TLB. Who faults in between waits for the fault mutex.
        let shown = if Mutant::CopyShownBeforeFlush.is_on() { new } else { EntryValue::default() };
        entry.store(shown, Ordering::Release);
        let mut batch = Batch::new(self.file);
        if let Some(origin) = origin {
            batch.unmap(origin);
        }
        batch.flush_leaf(self.area, self.address);
        batch.finish();
        page.add_entry();
        entry.store(new, Ordering::Release);
    }

    /// Takes a page away from the mappings that a fork gave it to and that reserved nothing, so that its owner has it
    /// alone.
    fn rob_relatives(&self, page: &Arc<Page<M>>) {
        let index = self.index.index();
        self.file.each_listed(index.0..index.0 + 1, |area| {
            if !area.is_shared() && area.id() != self.area.id() {
                area.rob(self.file, index, page);
            }
            // A relative of a relative may have it still.
            true
        });
    }
}
