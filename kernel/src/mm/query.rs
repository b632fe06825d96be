//! mincore(2) and msync(2): what is in memory, and what is to be written back.

use alloc::vec::Vec;
use core::ops::Range;

use linux_raw_sys::general as abi;

use super::map::page_range;
use super::space::AddressSpace;
use super::vma::{Kind, VmFlags, Vma};
use super::{PAGE, TASK_SIZE, page_up};
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::sched;

impl AddressSpace {
    /// One byte for each page of the range: 1 when it is in memory. `ENOMEM` where nothing is mapped.
    pub fn residency(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let areas = self.read();
        let mut out = fallible::with_capacity(((range.end - range.start) / PAGE) as usize)?;
        let mut at = range.start;
        while at < range.end {
            let vma = areas.set.find(at).ok_or(Errno::ENOMEM)?;
            let end = vma.end.min(range.end);
            if let Kind::Region(region) = &vma.kind {
                let inner = region.inner(vma, at)..region.inner(vma, at) + (end - at);
                out.extend_from_slice(&region.space().residency(inner)?);
                at = end;
                continue;
            }
            while at < end {
                out.push(u8::from(self.is_resident(vma, at)));
                at += PAGE;
            }
        }
        Ok(out)
    }

    fn is_resident(&self, vma: &Vma, address: u64) -> bool {
        match &vma.kind {
            Kind::Huge(_) | Kind::Region(_) => self.tables.lookup(address).is_some(),
            Kind::Special(_) => true,
            Kind::Anonymous => self.tables.lock().leaf(address).is_mapped(),
            Kind::File(area) => {
                if self.tables.lock().leaf(address).is_mapped() {
                    return true;
                }
                let (cache, index) = (area.link.cache(), vma.index_of(address));
                let mut found = [None];
                if index < cache.size().div_ceil(PAGE) {
                    // What was only allocated is not there yet.
                    cache.cached_some(index, 1, &mut found);
                }
                found[0].is_some()
            }
        }
    }

    /// The range of mincore(2): `EINVAL` unaligned, `ENOMEM` outside of user space.
    pub fn residency_range(start: u64, len: u64) -> Result<Range<u64>> {
        if !start.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let len = page_up(len).ok_or(Errno::ENOMEM)?;
        match start.checked_add(len) {
            Some(end) if end <= TASK_SIZE => Ok(start..end),
            _ => Err(Errno::ENOMEM),
        }
    }

    /// msync(2).
    pub fn sync(&self, start: u64, len: u64, flags: u32) -> Result<()> {
        let (sync, lazy) = (flags & abi::MS_SYNC != 0, flags & abi::MS_ASYNC != 0);
        if flags & !(abi::MS_SYNC | abi::MS_ASYNC | abi::MS_INVALIDATE) != 0 || sync && lazy {
            return Err(Errno::EINVAL);
        }
        // As Linux: a length that wraps around when it is rounded up is none.
        let range = page_range(start, page_up(len).unwrap_or(0))?;
        if range.is_empty() {
            return Ok(());
        }
        let mut at = range.start;
        let mut gap = false;
        // Area by area: a file is synced without the lock.
        while at < range.end {
            let file = {
                let areas = self.read();
                let Some(vma) = areas.set.find_in(at..range.end) else {
                    gap = true;
                    break;
                };
                gap |= vma.start > at;
                at = vma.end;
                if flags & abi::MS_INVALIDATE != 0 && vma.flags.contains(VmFlags::LOCKED) {
                    return Err(Errno::EBUSY);
                }
                vma.file().filter(|_| sync && vma.flags.contains(VmFlags::SHARED)).cloned()
            };
            if let Some(file) = file {
                file.ops().sync(&file)?;
            }
            sched::cond_resched();
        }
        if gap { Err(Errno::ENOMEM) } else { Ok(()) }
    }
}
