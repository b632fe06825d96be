//! mremap(2): growing, shrinking and moving.

use alloc::boxed::Box;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use linux_raw_sys::general as abi;

use super::backing::Link;
use super::entry::Entry;
use super::gather::Gather;
use super::layout::{self, Placement};
use super::space::{AddressSpace, Areas, Leftovers};
use super::tables::{NoMemory, NoTable, span};
use super::vma::{FileArea, Kind, VmFlags, Vma, VmaSet};
use super::{PAGE, TASK_SIZE, accounting, page_up};
use crate::errno::{Errno, Result};
use crate::memory::PAGE_SHIFT;
use crate::sched;

/// Leaves that are moved in one hold of the page-table lock.
const BATCH: usize = 512;

/// What mremap(2) was asked for; lengths are multiples of the granule.
struct Remap {
    old: Range<u64>,
    new_len: u64,
    /// The new address, with MREMAP_FIXED; a hint for MREMAP_DONTUNMAP.
    target: u64,
    may_move: bool,
    fixed: bool,
    keep_old: bool,
}

impl AddressSpace {
    /// mremap(2): returns the new address.
    pub fn remap(&self, address: u64, old_len: u64, new_len: u64, flags: u32, target: u64) -> Result<u64> {
        if flags & !(abi::MREMAP_MAYMOVE | abi::MREMAP_FIXED | abi::MREMAP_DONTUNMAP) != 0 {
            return Err(Errno::EINVAL);
        }
        let may_move = flags & abi::MREMAP_MAYMOVE != 0;
        let fixed = flags & abi::MREMAP_FIXED != 0;
        let keep_old = flags & abi::MREMAP_DONTUNMAP != 0;
        if (fixed || keep_old) && !may_move || keep_old && old_len != new_len || !address.is_multiple_of(PAGE)
        {
            return Err(Errno::EINVAL);
        }
        let old_len = page_up(old_len).ok_or(Errno::EINVAL)?;
        let new_len = page_up(new_len).filter(|len| *len != 0).ok_or(Errno::EINVAL)?;
        let mut leftovers = Leftovers::default();
        let mut areas = self.write();
        let vma = areas.set.find(address).ok_or(Errno::EFAULT)?;
        // As Linux 6.12: before anything else is looked at, and before the target goes.
        if vma.flags.contains(VmFlags::SEALED) {
            return Err(Errno::EPERM);
        }
        if matches!(vma.kind, Kind::Region(_))
            || keep_old && (vma.flags.contains(VmFlags::DONT_EXPAND) || matches!(vma.kind, Kind::Special(_)))
        {
            return Err(Errno::EINVAL);
        }
        let granule = vma.granule();
        let old_len = old_len.checked_next_multiple_of(granule).ok_or(Errno::EINVAL)?;
        let new_len = new_len.checked_next_multiple_of(granule).ok_or(Errno::EINVAL)?;
        // The new address, too, where nobody asks for it: as Linux.
        if !address.is_multiple_of(granule)
            || vma.is_huge() && (!target.is_multiple_of(granule) || new_len > old_len || keep_old)
        {
            return Err(Errno::EINVAL);
        }
        // What is longer than user space is cut off by munmap(2), or not there.
        let too_long = if old_len > new_len { Errno::EINVAL } else { Errno::EFAULT };
        let end = address.checked_add(old_len).filter(|end| *end <= TASK_SIZE).ok_or(too_long)?;
        let remap = Remap { old: address..end, new_len, target, may_move, fixed, keep_old };
        let result = self.remap_locked(&mut areas, remap, &mut leftovers);
        drop(areas);
        let (start, locked_growth) = result?;
        if let Some(range) = locked_growth {
            // What cannot be populated is found out at the first touch.
            let _ = self.populate(range);
        }
        Ok(start)
    }

    /// The new address, and the range to populate when the area is locked.
    fn remap_locked(
        &self,
        areas: &mut Areas,
        mut remap: Remap,
        leftovers: &mut Leftovers,
    ) -> Result<(u64, Option<Range<u64>>)> {
        let Remap { new_len, .. } = remap;
        let old_len = remap.old.end - remap.old.start;
        if remap.fixed || remap.keep_old {
            self.check_target(areas, &remap)?;
            if remap.fixed {
                let target = remap.target..remap.target + new_len;
                self.unmap_locked(areas, target, leftovers)?;
            }
        }
        if old_len > new_len {
            let tail = remap.old.start + new_len..remap.old.end;
            self.unmap_locked(areas, tail.clone(), leftovers)?;
            remap.old.end = tail.start;
        }
        if old_len >= new_len && !remap.fixed && !remap.keep_old {
            return Ok((remap.old.start, None));
        }
        let vma = areas.set.find(remap.old.start).ok_or(Errno::EFAULT)?;
        let flags = vma.flags;
        let old_len = remap.old.end - remap.old.start;
        if old_len == 0 && !flags.contains(VmFlags::SHARED) {
            return Err(Errno::EINVAL);
        }
        if remap.old.end > vma.end {
            return Err(Errno::EFAULT);
        }
        if new_len > old_len {
            if flags.contains(VmFlags::DONT_EXPAND) || matches!(vma.kind, Kind::Special(_)) {
                return Err(Errno::EFAULT);
            }
            if new_len > TASK_SIZE {
                return Err(Errno::ENOMEM);
            }
            let first = vma.index_of(remap.old.start);
            if first.checked_add(new_len >> PAGE_SHIFT).is_none_or(|end| end > 1 << 52) {
                return Err(Errno::EINVAL);
            }
        }
        let locked = flags & (VmFlags::LOCKED | VmFlags::LOCK_ON_FAULT) == VmFlags::LOCKED;
        let in_place = remap.old.end == vma.end && old_len != 0 && !remap.fixed && !remap.keep_old;
        if in_place {
            let growth = remap.old.end..remap.old.end + (new_len - old_len);
            // The guard below a stack keeps nobody away who names the address: as Linux.
            if growth.end <= TASK_SIZE && !areas.set.is_occupied(growth.clone()) {
                layout::charge(&areas.set, flags, (growth.end - growth.start) >> PAGE_SHIFT)?;
                let start = vma.start;
                areas.set.update(start, |vma| {
                    vma.end = growth.end;
                    if let Kind::File(area) = &vma.kind {
                        area.link.resize(vma.pages());
                    }
                });
                areas.set.merge(growth.clone());
                return Ok((remap.old.start, locked.then_some(growth)));
            }
        }
        if !remap.may_move {
            return Err(Errno::ENOMEM);
        }
        let start = if remap.fixed { remap.target } else { self.find_target(areas, &remap)? };
        self.move_area(areas, &remap, start, leftovers)?;
        Ok((start, locked.then_some(start + old_len..start + new_len)))
    }

    fn check_target(&self, areas: &Areas, remap: &Remap) -> Result<()> {
        let target = remap.target;
        let granule = areas.set.find(remap.old.start).map_or(PAGE, |vma| vma.granule());
        if !target.is_multiple_of(granule) || remap.new_len > TASK_SIZE || target > TASK_SIZE - remap.new_len
        {
            return Err(Errno::EINVAL);
        }
        let overlaps = target < remap.old.end && remap.old.start < target + remap.new_len;
        if overlaps {
            return Err(Errno::EINVAL);
        }
        if areas.set.count() + 2 >= accounting::max_map_count().saturating_sub(3) {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    fn find_target(&self, areas: &mut Areas, remap: &Remap) -> Result<u64> {
        let vma = areas.set.find(remap.old.start).ok_or(Errno::EFAULT)?;
        let (offset, shared) =
            (vma.index_of(remap.old.start) << PAGE_SHIFT, vma.flags.contains(VmFlags::SHARED));
        let place = match &vma.kind {
            Kind::Huge(_) => Placement::huge(remap.new_len, vma.granule(), offset, shared),
            Kind::File(area) if shared && area.link.cache().content().is_some() => {
                Placement::windows(remap.new_len, offset)
            }
            _ => Placement::pages(remap.new_len),
        };
        layout::choose(areas, if remap.keep_old { remap.target } else { 0 }, &place)
    }

    /// Makes the area at `start`, takes the pages along, and removes the old one unless it is to stay.
    fn move_area(
        &self,
        areas: &mut Areas,
        remap: &Remap,
        start: u64,
        leftovers: &mut Leftovers,
    ) -> Result<()> {
        let old = remap.old.clone();
        let old_len = old.end - old.start;
        let copies = old_len == 0;
        let vma = areas.set.find(old.start).ok_or(Errno::EFAULT)?;
        // The area at the new place is registered with a userfaultfd only if that is told of the move.
        let registered = vma.userfault.is_some();
        let userfault = vma.userfault.clone().filter(|context| context.follows_moves());
        let flags = if userfault.is_some() { vma.flags } else { vma.flags - VmFlags::USERFAULT };
        let pages = remap.new_len >> PAGE_SHIFT;
        // A move takes its pages along; only what is more than before has to be within the limits.
        let more = if copies || remap.keep_old { pages } else { pages - (old_len >> PAGE_SHIFT) };
        if areas.set.count() + 3 > accounting::max_map_count() {
            return Err(Errno::ENOMEM);
        }
        layout::charge(&areas.set, flags, more)?;
        let uncharge = || {
            if flags.contains(VmFlags::ACCOUNT) {
                accounting::uncommit(more);
            }
        };
        if !copies {
            areas.set.isolate(old.clone(), self.weak()).inspect_err(|_| uncharge())?;
        }
        let vma = areas.set.find(old.start).ok_or(Errno::EFAULT)?;
        let first = vma.index_of(old.start);
        let range = start..start + remap.new_len;
        let kind = match &vma.kind {
            Kind::Anonymous => Kind::Anonymous,
            Kind::Special(pages) => Kind::Special(pages),
            Kind::File(area) => {
                // On the file's list before the pages come, see `backing`.
                let cache = area.link.cache().clone();
                let writable = flags.contains(VmFlags::SHARED | VmFlags::MAY_WRITE);
                let link = Link::new(cache, self.weak().clone(), first, writable);
                if area.link.is_listed() {
                    link.enlist(start, pages);
                }
                let (file, attachment) = (area.file.clone(), area.attachment.clone());
                Kind::File(Box::new(FileArea { link, file, attachment }))
            }
            Kind::Huge(_) => return self.move_huge(areas, old, start, leftovers),
            Kind::Region(_) => return Err(Errno::EINVAL),
        };
        if !copies && self.move_pages(&areas.set, old.clone(), start).is_err() {
            uncharge();
            return Err(Errno::ENOMEM);
        }
        if registered && userfault.is_none() && !copies {
            self.permit_stores(start..start + old_len);
        }
        let touched = AtomicBool::new(vma.is_touched());
        let policy = vma.policy;
        let first = if matches!(kind, Kind::Anonymous) { start >> PAGE_SHIFT } else { first };
        let gone = !copies && !remap.keep_old;
        if let Some(context) = &userfault {
            leftovers.changes.moved(context, old.start, start, old_len);
        }
        if gone {
            if let Some(vma) = areas.set.remove(old.start) {
                self.leave_windows(&vma, vma.range());
                leftovers.changes.unmapped_alone(&vma, &old);
                leftovers.push(vma, &mut areas.huge);
            }
            if areas.layout.vdso == old.start {
                areas.layout.vdso = start;
            }
        } else if remap.keep_old {
            areas.set.update(old.start, |vma| vma.flags -= VmFlags::LOCKED | VmFlags::LOCK_ON_FAULT);
        }
        let area = Vma { start, end: range.end, flags, first, kind, policy, touched, userfault };
        self.attach_windows(&area);
        areas.set.insert(area);
        if gone {
            // With the new area in the set: its tables may be close by, and must stay.
            let mut gather = Gather::new(self);
            self.free_tables(areas, old, &mut gather);
        } else if remap.keep_old {
            // It was cut out to be moved, and stays a part of what it was.
            areas.set.merge(old);
        }
        areas.set.merge(range);
        Ok(())
    }

    /// Moves a whole area of huge pages, which neither grows nor stays behind.
    fn move_huge(
        &self,
        areas: &mut Areas,
        old: Range<u64>,
        start: u64,
        leftovers: &mut Leftovers,
    ) -> Result<()> {
        let mut vma = areas.set.remove(old.start).ok_or(Errno::EFAULT)?;
        let result = match &mut vma.kind {
            Kind::Huge(huge) => huge.move_to(start),
            _ => Err(Errno::EFAULT),
        };
        if result.is_ok() {
            (vma.start, vma.end) = (start, start + (old.end - old.start));
            match vma.userfault.clone().filter(|context| context.follows_moves()) {
                Some(context) => leftovers.changes.moved(&context, old.start, start, old.end - old.start),
                None => vma.forget_userfault(),
            }
            leftovers.changes.unmapped_alone(&vma, &old);
        }
        areas.set.insert(vma);
        result?;
        let mut gather = Gather::new(self);
        self.free_tables(areas, old, &mut gather);
        Ok(())
    }

    /// Moves the leaves of `old` to `start`. Either all of them or none.
    fn move_pages(&self, set: &VmaSet, old: Range<u64>, start: u64) -> Result<(), NoMemory> {
        let target = |address: u64| start + (address - old.start);
        // First the tables, which may fail. Leaves only go away meanwhile: nothing faults without the areas
        // lock, and no table becomes a shared one.
        self.own_windows(old.clone())?;
        let mut at = old.start;
        while at < old.end {
            sched::cond_resched();
            let mut tables = self.tables.lock();
            let mut first = None;
            let next = tables.read(at..old.end, BATCH, |address, _, _| first = first.or(Some(address)));
            let Some(first) = first else {
                at = next;
                continue;
            };
            let made = match tables.find_or_make(target(first), 1) {
                Ok(_) => {
                    // All that goes to the same table has one now.
                    at = first + (span(2) - target(first) % span(2));
                    continue;
                }
                Err(NoTable::NoMemory) => {
                    drop(tables);
                    Err(NoMemory)
                }
                Err(NoTable::SlotShared) => {
                    drop(tables);
                    at = first;
                    self.take_slot(set, target(first))
                }
            };
            if made.is_err() {
                let target = start..target(old.end);
                // No area is there, so nobody else finds those that reach beyond it.
                self.free_tables_in_hole(set, target, &mut Gather::new(self));
                return made;
            }
        }
        at = old.start;
        while at < old.end {
            let mut gather = Gather::new(self);
            let tables = self.tables.lock();
            let walked = tables.walk(at..old.end, BATCH, |address, slot| {
                let Ok(Some(new)) = tables.own_leaf(target(address)) else {
                    panic!("a page is moved to {:#x}, where there is no table", target(address));
                };
                let value = slot.swap(0, Ordering::SeqCst);
                new.store(value, Ordering::SeqCst);
                if Entry(value).is_present() {
                    gather.flush_range(address..address + PAGE);
                }
            });
            // Still under the lock: no unmapping may free a page that a TLB shows at its old address. One that comes between two batches
            // finds each page at one of its places, see `backing`.
            gather.flush();
            drop(tables);
            at = walked.unwrap_or_else(|met| panic!("pages of a shared table are moved at {:#x}", met.0));
            sched::cond_resched();
        }
        Ok(())
    }
}
