//! An area of a process to which a region is attached.

use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::{Ordering, fence};

use super::SPACES;
use super::brought::Brought;
use super::region::{GRANULE, Region};
use crate::arch::tlb::{self, Flush};
use crate::fs::File;
use crate::memory::PhysAddr;
use crate::mm::PAGE;
use crate::mm::entry::Entry;
use crate::mm::fault::{Access, FaultError};
use crate::mm::space::AddressSpace;
use crate::mm::tables::{PageTables, TOP};
use crate::mm::view::Usage;
use crate::mm::vma::{VmFlags, Vma};

/// A region as it is attached to an address space.
pub struct RegionArea {
    region: Arc<Region>,
    file: Arc<File>,
    start: u64,
    /// Of the address space that it is attached to.
    tables: Arc<PageTables>,
    /// What the process answers for when memory is short.
    brought: Arc<Brought>,
}

/// What is left of an area, to be dropped without locks.
#[allow(dead_code)] // only held to be dropped
pub struct RegionLeftover {
    region: Arc<Region>,
    file: Arc<File>,
}

/// The entry of a root that leads to a region's table at `table` with the rights of an attachment.
pub(super) fn root_entry(table: PhysAddr, flags: VmFlags) -> Entry {
    if !flags.intersects(VmFlags::ACCESS) {
        return Entry(0);
    }
    let write = if flags.contains(VmFlags::WRITE) { Entry::WRITABLE } else { 0 };
    let execute = if flags.contains(VmFlags::EXEC) { 0 } else { Entry::NO_EXECUTE };
    Entry::new(table, Entry::PRESENT | Entry::USER | Entry::MANAGED | write | execute)
}

impl RegionArea {
    /// Attaches all of `region` at `start`, a multiple of [`GRANULE`] with nothing behind it for the length
    /// of the region. The areas lock is held for writing. Nothing can fail: the root is there.
    pub(in crate::mm) fn attach(
        space: &AddressSpace,
        region: Arc<Region>,
        file: Arc<File>,
        start: u64,
        flags: VmFlags,
    ) -> Self {
        let tables = space.page_tables().clone();
        let brought = region.account_of(space);
        region.count_attachment(true);
        let area = Self { region, file, start, tables, brought };
        SPACES.attach(area.tables.id, area.region.id(), || area.set_entries(flags));
        area
    }

    /// The same region, attached to a child at the same place.
    ///
    /// Race: the region changes during the fork. The child has no copy of anything in it: it attaches as
    /// anybody does.
    pub(in crate::mm) fn fork(&self, child: &AddressSpace, flags: VmFlags) -> Self {
        Self::attach(child, self.region.clone(), self.file.clone(), self.start, flags)
    }

    /// Writes the entries for rights `flags`; tells whether one went away or lost a right.
    fn set_entries(&self, flags: VmFlags) -> bool {
        let mut lost = false;
        for offset in (0..self.region.size()).step_by(GRANULE as usize) {
            let new = root_entry(self.region.table(offset), flags);
            let tables = self.tables.lock();
            if let Some(entry) = tables.find(self.start + offset, TOP) {
                let old = Entry(entry.swap(new.0, Ordering::SeqCst));
                debug_assert!(
                    old.0 == 0 || old.has(Entry::MANAGED),
                    "a table of the process's own is in the way"
                );
                lost |= !new.allows_all_of(old);
            }
        }
        lost
    }

    /// Flushes what the process's CPUs know of the region.
    fn flush(&self) {
        // SeqCst: the changed entries are visible before the set is read, see `gather`.
        fence(Ordering::SeqCst);
        let cpus = self.tables.cpus();
        if !cpus.is_empty() {
            tlb::shootdown(&cpus, Flush::All);
        }
    }

    /// The rights change from `old` to `new`, for this process only. The areas lock is held for writing.
    pub(in crate::mm) fn protect(&self, _old: VmFlags, new: VmFlags) {
        if self.set_entries(new) {
            self.flush();
        }
    }

    /// Detaches. The areas lock is held for writing, or nobody knows the address space any more.
    ///
    /// Race: the process exits meanwhile, or has: then no CPU runs it, and there is nothing to flush.
    pub(in crate::mm) fn detach(self) -> RegionLeftover {
        SPACES.detach(self.tables.id, self.region.id(), || {
            if self.set_entries(VmFlags::empty()) {
                self.flush();
            }
        });
        self.region.count_attachment(false);
        self.region.forget_empty(self.tables.id);
        let Self { region, file, .. } = self;
        RegionLeftover { region, file }
    }

    /// What it is attached to.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The region's address space.
    pub(in crate::mm) fn space(&self) -> &AddressSpace {
        self.region.space()
    }

    /// The file through which it was attached.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Device and inode number of that file.
    pub fn id(&self) -> (u64, u64) {
        let inode = self.file.inode();
        (inode.superblock.dev.encode(), inode.ino)
    }

    /// The address in the region's address space of what the process has at `address`.
    pub(in crate::mm) fn inner(&self, vma: &Vma, address: u64) -> u64 {
        debug_assert!(vma.start == self.start && vma.range().contains(&address));
        Region::inner(address - self.start)
    }

    /// Makes `address` accessible: in the region, so for all that have it attached. The process's areas lock
    /// is held for reading.
    ///
    /// Race: the region unmaps the page again before the access. The entry of the root stays right, and the
    /// access faults once more.
    pub(in crate::mm) fn fault(&self, vma: &Vma, address: u64, access: Access) -> Result<(), FaultError> {
        let inner = self.inner(vma, address);
        self.counting(inner, || self.space().fault(inner, access))
    }

    /// Counts the page at `inner` for the process if `bring` brings it in, also in the place of the page of zeroes.
    pub(in crate::mm) fn counting<T, E>(
        &self,
        inner: u64,
        bring: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let before = self.space().page_tables().lookup(inner);
        let done = bring()?;
        if before.is_some_and(|(_, entry)| entry.owns_frame()) {
            return Ok(done);
        }
        let now = self.space().page_tables().lookup(inner);
        if now.map(|(frame, _)| frame) != before.map(|(frame, _)| frame) {
            self.brought.add(PAGE, &self.region);
        }
        Ok(done)
    }

    /// What is to be done to populate `range` of the area, without the areas lock; `Denied` where the process
    /// has no right.
    pub(in crate::mm) fn populating(&self, vma: &Vma, range: Range<u64>) -> Result<Populating, FaultError> {
        if !vma.flags.intersects(VmFlags::ACCESS) {
            return Err(FaultError::Access);
        }
        let start = self.inner(vma, range.start);
        Ok(Populating {
            region: self.region.clone(),
            brought: self.brought.clone(),
            range: start..start + (range.end - range.start),
        })
    }

    /// What is in memory of the region, divided by the number of attachments for the share.
    pub(in crate::mm) fn usage(&self) -> Usage {
        let mut sum = self.region.space().usage_of_all();
        let sharers = self.region.attachments().max(1);
        sum.pss = sum.pss / sharers / PAGE * PAGE;
        if sharers > 1 {
            sum.shared_clean += core::mem::take(&mut sum.private_clean);
            sum.shared_dirty += core::mem::take(&mut sum.private_dirty);
            sum.shared_hugetlb += core::mem::take(&mut sum.private_hugetlb);
        }
        sum
    }
}

/// Populates a part of a region.
pub(in crate::mm) struct Populating {
    /// Race: the process detaches meanwhile. This keeps the region.
    region: Arc<Region>,
    brought: Arc<Brought>,
    range: Range<u64>,
}

impl Populating {
    pub(in crate::mm) fn run(self) -> Result<(), FaultError> {
        self.region.fill(self.range, &self.brought)
    }
}
