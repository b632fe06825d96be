//! The fault path, and looking at what is mapped.

use super::area::Placement;
use super::{Area, Batch, Mapping};
use crate::addr::{PageIndex, PhysAddr, VirtAddr};
use crate::error::FaultError;
use crate::format::{self, Protection};
use crate::machine::Machine;
use crate::pool::Page;
use crate::reserve;
use crate::sharing::entry_index;
use crate::sync::{Arc, AtomicU64, Ordering, fence};

/// The access that faulted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// What of a mapping has entries in this address space, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Resident {
    /// Pages of the file in a shared mapping: `Shared_Hugetlb` of smaps.
    pub shared: u64,
    /// Pages of a private mapping: `Private_Hugetlb`.
    pub private: u64,
}

/// The pool is empty, and relatives of the private page could be made to give it up.
struct Rob<M: Machine>(Arc<Page<M>>);

enum Failure<M: Machine> {
    Fault(FaultError),
    Rob(Rob<M>),
}

impl<M: Machine, E: Into<FaultError>> From<E> for Failure<M> {
    fn from(error: E) -> Failure<M> {
        Failure::Fault(error.into())
    }
}

impl<M: Machine> Mapping<M> {
    /// Resolves a fault at `address`: when it returns `Ok` the access can be tried again. The host holds its
    /// address-space lock for reading.
    ///
    /// # Errors
    ///
    /// See [`FaultError`]: each value names its signal.
    pub fn fault(&self, address: VirtAddr, access: Access) -> Result<(), FaultError> {
        self.fault_then(address, access, |_| ())
    }

    /// As [`Mapping::fault`], then shows `work` the frame that the address leads to, while the page can go nowhere: for
    /// accesses by the host (ptrace, `/proc/PID/mem`). `work` must not fault on this file itself.
    ///
    /// # Errors
    ///
    /// As [`Mapping::fault`].
    pub fn fault_then<T>(
        &self,
        address: VirtAddr,
        access: Access,
        work: impl FnOnce(PhysAddr) -> T,
    ) -> Result<T, FaultError> {
        let index = self.index(address).ok_or(FaultError::NotMapped)?;
        let address = address.page(self.page_size());
        let hugetlb = self.file.hugetlb();
        hugetlb.counters().faults.add(1);
        // Two faults on one page, and a fault and the page's removal, come one after the other.
        let _fault = hugetlb.fault_mutex(self.file.id(), index).lock();
        loop {
            // For reading: the fence against whoever would take the table away. Faults on other pages go on.
            let placement = self.area.placement().read();
            let permitted = match access {
                Access::Read => !placement.protection.is_empty(),
                Access::Write => placement.protection.contains(Protection::WRITE),
                Access::Execute => placement.protection.contains(Protection::EXECUTE),
            };
            if !permitted {
                return Err(FaultError::Access);
            }
            let result = if self.area.is_shared() {
                self.fault_shared(&placement, address, index)
            } else {
                self.fault_private(&placement, address, index, access)
            };
            match result {
                Ok(page) => return Ok(work(page.frame())),
                Err(Failure::Fault(error)) => return Err(error),
                // Relatives are other areas: their locks come after ours is released. The fault mutex keeps the page's
                // state as it is.
                Err(Failure::Rob(Rob(page))) => {
                    drop(placement);
                    self.rob_relatives(index, &page);
                }
            }
        }
    }

    fn fault_shared(
        &self,
        placement: &Placement,
        address: VirtAddr,
        index: PageIndex,
    ) -> Result<Arc<Page<M>>, Failure<M>> {
        let page = self.cached_or_new(index)?;
        let table = match self.area.slot(placement, address) {
            Some(slot) => self.file.hugetlb().protocol().table_for_fault(&self.file, &self.area, slot)?,
            None => None,
        };
        match &table {
            Some(table) => {
                let entries = table.entries(self.file.hugetlb().machine());
                publish(&entries[entry_index(address)], &page, table.protection());
            }
            None => publish(self.host_entry(address)?, &page, placement.protection),
        }
        Ok(page)
    }

    /// The entry for an address in tables of the host.
    fn host_entry(&self, address: VirtAddr) -> Result<&AtomicU64, FaultError> {
        let entry = self.area.host_entry(address)?;
        let value = entry.load(Ordering::Acquire);
        if format::is_present(value) && !format::is_leaf(value) {
            // The host left a table of its own where a 1 GiB page goes. Writing over it would lose that table.
            debug_assert!(false, "a 1 GiB mapping over a PMD table of the host");
            return Err(FaultError::OutOfMemory);
        }
        Ok(entry)
    }

    /// The file's page; the fault mutex is held.
    fn cached_or_new(&self, index: PageIndex) -> Result<Arc<Page<M>>, FaultError> {
        {
            let cache = self.file.cache().lock();
            if !cache.covers(index, self.page_size().shift()) {
                return Err(FaultError::Sigbus);
            }
            if let Some(page) = cache.get(index) {
                return Ok(page.clone());
            }
        }
        let page = self.file.allocate_page(index).map_err(|_| FaultError::Sigbus)?;
        self.file.hugetlb().counters().faults_allocated.add(1);
        page.zero();
        let inserted = self.file.cache().lock().insert(index, page.clone());
        inserted.map(|()| page.clone()).map_err(|_| {
            // A truncation came in between. The promise that the page used up is the truncation's to delete, or stays with
            // the file's map; the page must not take it along.
            page.restore();
            FaultError::Sigbus
        })
    }

    fn fault_private(
        &self,
        placement: &Placement,
        address: VirtAddr,
        index: PageIndex,
        access: Access,
    ) -> Result<Arc<Page<M>>, Failure<M>> {
        let (copy, robbed) = {
            let private = self.area.private().lock();
            (private.copies.get(&index).cloned(), private.robbed)
        };
        let cached = {
            let cache = self.file.cache().lock();
            // Looked at under the mapping lock: a truncation that comes later meets what this fault maps.
            if !cache.covers(index, self.page_size().shift()) {
                return Err(FaultError::Sigbus.into());
            }
            cache.get(index).cloned()
        };
        let entry = self.host_entry(address)?;
        let read_only = placement.protection - Protection::WRITE;
        let write = access == Access::Write;
        match (copy, cached) {
            // The area's map and `copy` hold it: nobody else does, so no relative sees the store.
            (Some(page), _) if Arc::strong_count(&page) == 2 => {
                // Acquire: what the last relative read comes before our store; it let go with a release.
                fence(Ordering::Acquire);
                self.replace(entry, address, None, &page, placement.protection);
                Ok(page)
            }
            (Some(page), _) if !write => {
                self.replace(entry, address, None, &page, read_only);
                Ok(page)
            }
            (None, Some(page)) if !write => {
                self.replace(entry, address, None, &page, read_only);
                Ok(page)
            }
            (copy, cached) => {
                let origin = copy.clone().or(cached);
                if origin.is_none() && robbed {
                    return Err(FaultError::Sigbus.into());
                }
                let Some(page) = self.allocate_private(index) else {
                    return Err(match copy {
                        Some(page) if self.area.private().lock().owner => Failure::Rob(Rob(page)),
                        _ => FaultError::Sigbus.into(),
                    });
                };
                match &origin {
                    Some(origin) => {
                        page.copy_from(origin);
                        self.file.hugetlb().counters().faults_copied.add(1);
                    }
                    None => page.zero(),
                }
                self.area.private().lock().copies.insert(index, page.clone());
                self.replace(entry, address, origin, &page, placement.protection);
                Ok(page)
            }
        }
    }

    /// A page for a private copy: promised to this mapping, or else not promised to anybody.
    fn allocate_private(&self, index: PageIndex) -> Option<Arc<Page<M>>> {
        let (pool, subpool) = (self.file.pool(), self.file.subpool());
        let promised = {
            let mut private = self.area.private().lock();
            let promised = private.owner && !private.used.contains(index.0);
            if promised {
                private.used.insert(index.0..index.0 + 1);
            }
            promised
        };
        let frame = if promised {
            let frame = pool.take(true);
            if frame.is_none() {
                self.area.private().lock().used.remove(index.0..index.0 + 1);
            }
            frame?
        } else {
            reserve::take_unpromised(pool, subpool).ok()?
        };
        self.file.hugetlb().counters().faults_allocated.add(1);
        Some(Arc::new(Page::new(frame, pool.clone(), subpool.cloned())))
    }

    /// Makes `entry` lead to `page`; `origin` is the page that it may have led to, if that is another one.
    fn replace(
        &self,
        entry: &AtomicU64,
        address: VirtAddr,
        origin: Option<Arc<Page<M>>>,
        page: &Arc<Page<M>>,
        protection: Protection,
    ) {
        let new = format::leaf(page.frame(), protection);
        // Acquire and release: as in `publish`. The fault mutex makes us the only writer.
        let old = entry.load(Ordering::Acquire);
        if !format::is_leaf(old) {
            page.add_entry();
            entry.store(new, Ordering::Release);
            return;
        }
        if format::leaf_frame(old, self.page_size()) == page.frame() {
            // More rights at most: whoever holds the old entry faults, and looks again.
            entry.store(new, Ordering::Release);
            return;
        }
        // Cleared and flushed before the copy shows: else one thread could store through the new entry while another
        // still reads the origin through its TLB. Who faults in between waits for the fault mutex.
        entry.store(0, Ordering::Release);
        let mut batch = Batch::new(&self.file);
        if let Some(origin) = origin {
            batch.unmap(origin);
        }
        batch.flush_leaf(&self.area, address);
        batch.finish();
        page.add_entry();
        entry.store(new, Ordering::Release);
    }

    /// Takes a page away from the mappings that a fork gave it to and that reserved nothing, so that its owner has it alone.
    fn rob_relatives(&self, index: PageIndex, page: &Arc<Page<M>>) {
        let relatives: alloc::vec::Vec<Arc<Area<M>>> = self
            .file
            .mappings()
            .read()
            .values()
            .filter(|area| !area.is_shared() && area.id() != self.area.id())
            .cloned()
            .collect();
        for area in relatives {
            area.rob(&self.file, index, page);
        }
    }

    /// The frame at `address` and whether stores are permitted, if this address space has an entry for it: for
    /// `/proc/PID/pagemap`. The host holds its address-space lock for reading.
    pub fn translate(&self, address: VirtAddr) -> Option<(PhysAddr, bool)> {
        self.index(address)?;
        let placement = self.area.placement().read();
        let entry = self.area.leaf(&self.file, &placement, address);
        format::is_leaf(entry).then(|| {
            let within = address.0 - address.page(self.page_size()).0;
            (PhysAddr(format::leaf_frame(entry, self.page_size()).0 + within), format::is_writable(entry))
        })
    }

    /// Whether this address space has an entry for `address`: for mincore(2).
    pub fn is_resident(&self, address: VirtAddr) -> bool {
        self.translate(address).is_some()
    }

    /// What of the mapping has entries, for smaps and `HugetlbPages` of `/proc/PID/status`.
    pub fn resident(&self) -> Resident {
        let placement = self.area.placement().read();
        let entries = placement
            .indices()
            .filter(|index| {
                let address = self.area.address(&placement, *index);
                self.area.leaf(&self.file, &placement, address) != 0
            })
            .count() as u64;
        let bytes = entries << self.page_size().shift();
        match self.area.is_shared() {
            true => Resident { shared: bytes, private: 0 },
            false => Resident { shared: 0, private: bytes },
        }
    }

    /// What identifies the memory at `address` to every process that maps it, for the key of a shared futex: the file's
    /// id and the byte offset.
    pub fn identify(&self, address: VirtAddr) -> Option<(u64, u64)> {
        self.index(address)?;
        Some((self.file.id(), self.offset() + (address.0 - self.start().0)))
    }
}

/// Writes the leaf for a page of the file, unless a sharer has.
fn publish<M: Machine>(entry: &AtomicU64, page: &Arc<Page<M>>, protection: Protection) {
    // Acquire: with a sharer's release below.
    let old = entry.load(Ordering::Acquire);
    if format::is_leaf(old) {
        debug_assert_eq!(format::leaf_frame(old, page.size()), page.frame(), "a table equals the cache");
        return;
    }
    page.add_entry();
    // Release: the page's zeroes come before its entry, on every CPU.
    entry.store(format::leaf(page.frame(), protection), Ordering::Release);
}
