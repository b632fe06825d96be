//! madvise(2).

use alloc::sync::Arc;
use core::ops::Range;

use linux_raw_sys::general as abi;

use super::backing::PageCache;
use super::fault::{Access, FaultError};
use super::gather::Gather;
use super::space::{AddressSpace, Areas, Zap};
use super::vma::{Kind, VmFlags, Vma};
use super::{PAGE, page_up};
use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::hugetlb::HugeFile;
use crate::memory::{PAGE_SHIFT, PAGE_SIZE, reserve};
use crate::process;
use crate::sched;

const FALLOC_FL_KEEP_SIZE: u32 = 1;
const FALLOC_FL_PUNCH_HOLE: u32 = 2;

/// What is punched out by MADV_REMOVE, done without the areas lock.
enum Punch {
    File(Arc<File>, Range<u64>),
    Cache(Arc<dyn PageCache>, Range<u64>),
    Huge(Arc<HugeFile>, Range<u64>),
}

impl AddressSpace {
    /// madvise(2).
    pub fn advise(&self, start: u64, len: u64, advice: u32) -> Result<()> {
        let known = matches!(
            advice,
            abi::MADV_NORMAL..=abi::MADV_WILLNEED
                | abi::MADV_DONTNEED
                | abi::MADV_FREE..=abi::MADV_DOFORK
                | abi::MADV_MERGEABLE
                | abi::MADV_UNMERGEABLE
                | abi::MADV_HUGEPAGE..=abi::MADV_DONTNEED_LOCKED
                | abi::MADV_HWPOISON
                | abi::MADV_SOFT_OFFLINE
        );
        if !known || !start.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let len = page_up(len).ok_or(Errno::EINVAL)?;
        let end = start.checked_add(len).ok_or(Errno::EINVAL)?;
        let range = start..end;
        if range.is_empty() {
            return Ok(());
        }
        if matches!(advice, abi::MADV_HWPOISON | abi::MADV_SOFT_OFFLINE) {
            return self.advise_broken(range, advice == abi::MADV_SOFT_OFFLINE);
        }
        if matches!(
            advice,
            abi::MADV_DONTNEED | abi::MADV_DONTNEED_LOCKED | abi::MADV_FREE | abi::MADV_REMOVE
        ) {
            self.tell_of_removal(range.clone());
        }
        match advice {
            abi::MADV_POPULATE_READ => self.advise_populate(range, Access::Read),
            abi::MADV_POPULATE_WRITE => self.advise_populate(range, Access::Write),
            abi::MADV_REMOVE => self.advise_remove(range),
            abi::MADV_DONTNEED
            | abi::MADV_DONTNEED_LOCKED
            | abi::MADV_FREE
            | abi::MADV_COLD
            | abi::MADV_PAGEOUT
            | abi::MADV_WILLNEED => self.advise_pages(range, advice),
            _ => self.advise_flags(range, advice),
        }
    }

    /// Calls `work` for each area's part of the range; `ENOMEM` at the end when there were gaps.
    fn each_part(
        areas: &Areas,
        range: Range<u64>,
        mut work: impl FnMut(&Vma, Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let mut at = range.start;
        let mut gap = false;
        for vma in areas.set.overlapping(range.clone()) {
            gap |= vma.start > at;
            work(vma, vma.start.max(range.start)..vma.end.min(range.end))?;
            at = vma.end;
            sched::cond_resched();
        }
        if gap || at < range.end { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// The advices that change what is in memory, not the areas.
    fn advise_pages(&self, range: Range<u64>, advice: u32) -> Result<()> {
        if matches!(advice, abi::MADV_DONTNEED | abi::MADV_DONTNEED_LOCKED) {
            self.leave_for_discard(range.clone());
        }
        let areas = self.read();
        Self::each_part(&areas, range, |vma, part| {
            let locked = vma.flags.contains(VmFlags::LOCKED);
            let discards = matches!(advice, abi::MADV_DONTNEED | abi::MADV_DONTNEED_LOCKED | abi::MADV_FREE);
            if discards && vma.is_kept_by_seal() {
                return Err(Errno::EPERM);
            }
            match advice {
                abi::MADV_WILLNEED => return Ok(()),
                abi::MADV_DONTNEED_LOCKED => {}
                _ if locked => return Err(Errno::EINVAL),
                _ => {}
            }
            match &vma.kind {
                Kind::Special(_) => Err(Errno::EINVAL),
                Kind::Huge(huge) => match advice {
                    abi::MADV_DONTNEED | abi::MADV_DONTNEED_LOCKED => huge.discard(part),
                    _ => Err(Errno::EINVAL),
                },
                // There is nowhere to page out to, and nothing to forget for one of those who share it.
                Kind::Region(_) if matches!(advice, abi::MADV_COLD | abi::MADV_PAGEOUT) => Ok(()),
                Kind::Region(_) => Err(Errno::EINVAL),
                Kind::File(_) if advice == abi::MADV_FREE => Err(Errno::EINVAL),
                // There is nowhere to page out to, but what may be dropped is dropped.
                _ if advice == abi::MADV_COLD => Ok(()),
                _ if advice == abi::MADV_PAGEOUT && !vma.flags.contains(VmFlags::DROPPABLE) => Ok(()),
                _ => {
                    let mut gather = Gather::new(self);
                    let anonymous = matches!(vma.kind, Kind::Anonymous);
                    // Race: threads fault in the range meanwhile. A window that they make their own does
                    // not become a shared one before we are done.
                    self.own_borders(&part)
                        .or_else(|_| self.leave_borders(&part, &mut gather))
                        .map_err(|_| Errno::ENOMEM)?;
                    self.leave_forked(part.clone(), &mut gather);
                    let what = if anonymous { Zap::Everything } else { Zap::Pages };
                    self.zap(part, what, &mut gather);
                    Ok(())
                }
            }
        })
    }

    /// Leaves the windows around a range that is discarded. Who reads the areas counts on the tables that they lead to, so they are left with the lock
    /// for writing. A fault that attaches one again right away came later.
    fn leave_for_discard(&self, range: Range<u64>) {
        if self.read().set.overlapping(range.clone()).any(Vma::uses_windows) {
            let areas = self.write();
            for vma in areas.set.overlapping(range.clone()) {
                self.leave_windows(vma, range.clone());
            }
        }
    }

    /// The advices that are kept in the areas.
    fn advise_flags(&self, range: Range<u64>, advice: u32) -> Result<()> {
        let mut guard = self.write();
        let areas: &mut Areas = &mut guard;
        let mut at = range.start;
        let mut gap = false;
        let mut result = Ok(());
        while at < range.end {
            let Some(vma) = areas.set.find_in(at..range.end) else {
                gap = true;
                break;
            };
            gap |= vma.start > at;
            let part = vma.start.max(at)..vma.end.min(range.end);
            at = part.end;
            result = new_flags(vma, advice).and_then(|new| self.set_flags(areas, part, new));
            if result.is_err() {
                break;
            }
            sched::cond_resched();
        }
        result?;
        if gap { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Gives a part of an area other flags; rights stay. It is merged with what is like it then.
    pub(super) fn set_flags(&self, areas: &mut Areas, part: Range<u64>, flags: VmFlags) -> Result<()> {
        let Some(vma) = areas.set.find(part.start) else { return Ok(()) };
        if vma.flags == flags {
            return Ok(());
        }
        areas.set.allow_cut(vma, &part)?;
        areas.set.change(part, self.weak(), |vma| vma.flags = flags)
    }

    fn advise_populate(&self, range: Range<u64>, access: Access) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let step = {
                let areas = self.read();
                let vma = areas.set.find(at).ok_or(Errno::ENOMEM)?;
                // Memory that may only be written can be read all the same: the right counts, not what a load would do.
                let denied = matches!(access, Access::Read) && !vma.flags.contains(VmFlags::READ);
                let fixed = matches!(vma.kind, Kind::Special(_)) || vma.flags.contains(VmFlags::SECRET);
                if denied || fixed {
                    return Err(Errno::EINVAL);
                }
                vma.page_size()
            };
            // For what the kernel notes of the page.
            reserve::ask(PAGE_SIZE)?;
            self.fault(at, access).map_err(|error| match error {
                FaultError::NotMapped | FaultError::OutOfMemory => Errno::ENOMEM,
                // An area without the right: `EFAULT` is for what would be SIGBUS.
                FaultError::Access => Errno::EINVAL,
                // The slot was taken before.
                FaultError::Sigbus | FaultError::SlotShared => Errno::EFAULT,
                FaultError::Poisoned(_) => Errno::EHWPOISON,
            })?;
            at = (at & !(step - 1)) + step;
            sched::cond_resched();
            if process::current().kill_pending() {
                return Err(Errno::EINTR);
            }
        }
        Ok(())
    }

    /// Area by area: punching visits all mappings, these too, and so is done without the lock.
    fn advise_remove(&self, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        let mut gap = false;
        while at < range.end {
            let (punch, start, end) = {
                let areas = self.read();
                let Some(vma) = areas.set.find_in(at..range.end) else {
                    gap = true;
                    break;
                };
                let part = vma.start.max(at)..vma.end.min(range.end);
                (punch_of(vma, part.clone())?, part.start, part.end)
            };
            gap |= start > at;
            at = end;
            match punch {
                Punch::File(file, bytes) => {
                    let mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
                    file.ops().fallocate(&file, mode, bytes.start, bytes.end - bytes.start)?;
                }
                Punch::Cache(cache, bytes) => {
                    cache.punch(bytes.start >> PAGE_SHIFT..bytes.end.div_ceil(PAGE))?;
                }
                Punch::Huge(file, bytes) => file.punch(bytes)?,
            }
            sched::cond_resched();
        }
        if gap { Err(Errno::ENOMEM) } else { Ok(()) }
    }
}

/// What MADV_REMOVE punches out for a part of an area.
fn punch_of(vma: &Vma, part: Range<u64>) -> Result<Punch> {
    if vma.flags.contains(VmFlags::LOCKED) {
        return Err(Errno::EINVAL);
    }
    let offset = vma.index_of(part.start) << PAGE_SHIFT;
    let bytes = offset..offset + (part.end - part.start);
    let punch = match &vma.kind {
        Kind::File(area) => match &area.file {
            Some(file) => Punch::File(file.clone(), bytes),
            None => Punch::Cache(area.link.cache().clone(), bytes),
        },
        Kind::Huge(huge) => match huge.file() {
            Some(file) => Punch::File(file.clone(), bytes),
            None => Punch::Huge(huge.content().clone(), bytes),
        },
        Kind::Anonymous | Kind::Special(_) | Kind::Region(_) => return Err(Errno::EINVAL),
    };
    if vma.flags.contains(VmFlags::SHARED | VmFlags::MAY_WRITE) { Ok(punch) } else { Err(Errno::EACCES) }
}

/// What `advice` makes of the area's flags.
fn new_flags(vma: &Vma, advice: u32) -> Result<VmFlags> {
    let flags = vma.flags;
    let anonymous = matches!(vma.kind, Kind::Anonymous);
    let special = matches!(vma.kind, Kind::Special(_));
    if matches!(advice, abi::MADV_DONTFORK | abi::MADV_WIPEONFORK) && vma.is_kept_by_seal() {
        return Err(Errno::EPERM);
    }
    let merges = !vma.is_huge() && !flags.intersects(VmFlags::SHARED | VmFlags::DROPPABLE);
    Ok(match advice {
        abi::MADV_NORMAL => flags - (VmFlags::RANDOM | VmFlags::SEQUENTIAL),
        abi::MADV_SEQUENTIAL => (flags - VmFlags::RANDOM) | VmFlags::SEQUENTIAL,
        abi::MADV_RANDOM => (flags - VmFlags::SEQUENTIAL) | VmFlags::RANDOM,
        abi::MADV_DONTFORK => flags | VmFlags::DONT_FORK,
        abi::MADV_DOFORK => flags - VmFlags::DONT_FORK,
        abi::MADV_WIPEONFORK if !anonymous => return Err(Errno::EINVAL),
        abi::MADV_WIPEONFORK => flags | VmFlags::WIPE_ON_FORK,
        abi::MADV_KEEPONFORK if flags.contains(VmFlags::DROPPABLE) => return Err(Errno::EINVAL),
        abi::MADV_KEEPONFORK => flags - VmFlags::WIPE_ON_FORK,
        abi::MADV_DONTDUMP => flags | VmFlags::DONT_DUMP,
        abi::MADV_DODUMP if special || flags.contains(VmFlags::DROPPABLE) => return Err(Errno::EINVAL),
        abi::MADV_DODUMP => flags - VmFlags::DONT_DUMP,
        // Equal pages are not looked for, as on a Linux whose ksmd is off.
        abi::MADV_MERGEABLE | abi::MADV_UNMERGEABLE if special || !merges => flags,
        abi::MADV_MERGEABLE => flags | VmFlags::MERGEABLE,
        abi::MADV_UNMERGEABLE => flags - VmFlags::MERGEABLE,
        abi::MADV_HUGEPAGE => (flags - VmFlags::NO_HUGE_PAGE) | VmFlags::HUGE_PAGE,
        abi::MADV_NOHUGEPAGE => (flags - VmFlags::HUGE_PAGE) | VmFlags::NO_HUGE_PAGE,
        _ => return Err(Errno::EINVAL),
    })
}
