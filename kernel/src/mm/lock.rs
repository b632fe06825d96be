//! mlock(2) and its family. Pages never leave memory here, so a lock means: populated now, and on the account.

use core::ops::Range;

use linux_raw_sys::general as abi;

use super::fault::FaultError;
use super::space::{AddressSpace, Areas};
use super::vma::{Kind, VmFlags, Vma};
use super::{PAGE, limit, page_down};
use crate::errno::{Errno, Result};
use crate::process;
use crate::sched;

const LOCK_FLAGS: VmFlags = VmFlags::LOCKED.union(VmFlags::LOCK_ON_FAULT);

fn is_privileged() -> bool {
    process::try_current().is_none_or(|thread| thread.credentials().capable(abi::CAP_IPC_LOCK))
}

/// May the process lock anything? `EPERM`.
pub(super) fn check_may_lock() -> Result<()> {
    if limit(abi::RLIMIT_MEMLOCK) != 0 || is_privileged() { Ok(()) } else { Err(Errno::EPERM) }
}

/// May it have `pages` locked? `ENOMEM`.
pub(super) fn check_limit(pages: u64) -> Result<()> {
    if pages.saturating_mul(PAGE) <= limit(abi::RLIMIT_MEMLOCK) || is_privileged() {
        Ok(())
    } else {
        Err(Errno::ENOMEM)
    }
}

impl AddressSpace {
    /// mlock2(2), and mlock(2) with no flags.
    pub fn lock(&self, start: u64, len: u64, flags: u32) -> Result<()> {
        if flags & !abi::MLOCK_ONFAULT != 0 {
            return Err(Errno::EINVAL);
        }
        check_may_lock()?;
        let range = byte_range(start, len)?;
        let on_fault = flags & abi::MLOCK_ONFAULT != 0;
        let new = if on_fault { LOCK_FLAGS } else { VmFlags::LOCKED };
        let mut areas = self.write();
        let pages = (range.end - range.start) >> 12;
        let already: u64 = areas
            .set
            .overlapping(range.clone())
            .filter(|vma| vma.flags.contains(VmFlags::LOCKED))
            .map(|vma| (vma.end.min(range.end) - vma.start.max(range.start)) >> 12)
            .sum();
        check_limit(areas.set.locked + pages - already)?;
        self.set_lock(&mut areas, range.clone(), new)?;
        drop(areas);
        if on_fault {
            return Ok(());
        }
        self.populate(range).map_err(|error| match error {
            FaultError::OutOfMemory => Errno::EAGAIN,
            _ => Errno::ENOMEM,
        })
    }

    /// munlock(2).
    pub fn unlock(&self, start: u64, len: u64) -> Result<()> {
        let range = byte_range(start, len)?;
        self.set_lock(&mut self.write(), range, VmFlags::empty())
    }

    /// mlockall(2).
    pub fn lock_all(&self, flags: u32) -> Result<()> {
        const KNOWN: u32 = abi::MCL_CURRENT | abi::MCL_FUTURE | abi::MCL_ONFAULT;
        if flags == 0 || flags & !KNOWN != 0 || flags == abi::MCL_ONFAULT {
            return Err(Errno::EINVAL);
        }
        check_may_lock()?;
        let on_fault = flags & abi::MCL_ONFAULT != 0;
        let new = if on_fault { LOCK_FLAGS } else { VmFlags::LOCKED };
        let mut areas = self.write();
        if flags & abi::MCL_CURRENT != 0 {
            check_limit(areas.set.total)?;
        }
        areas.new_flags = if flags & abi::MCL_FUTURE != 0 { new } else { VmFlags::empty() };
        if flags & abi::MCL_CURRENT == 0 {
            return Ok(());
        }
        self.set_lock_of_all(&mut areas, new)?;
        drop(areas);
        if on_fault {
            return Ok(());
        }
        let mut next = 0;
        loop {
            let Some(range) = self.read().set.find_from(next).map(Vma::range) else { break };
            next = range.end;
            // As Linux: what cannot be populated is left out.
            let _ = self.populate(range);
            if process::try_current().is_some_and(|thread| thread.kill_pending()) {
                break;
            }
        }
        Ok(())
    }

    /// munlockall(2).
    pub fn unlock_all(&self) {
        let mut areas = self.write();
        areas.new_flags = VmFlags::empty();
        // Taking flags off a whole area needs no further areas.
        let _ = self.set_lock_of_all(&mut areas, VmFlags::empty());
    }

    /// Gives all areas the lock flags `new`. A whole area cannot fail to take flags, but for the number of areas, which does not grow.
    fn set_lock_of_all(&self, areas: &mut Areas, new: VmFlags) -> Result<()> {
        let mut next = 0;
        while let Some(range) = areas.set.find_from(next).map(Vma::range) {
            // Merged with its neighbours it may end further up: those have the flags already.
            next = range.end;
            self.set_lock(areas, range, new)?;
        }
        Ok(())
    }

    /// Gives all of `range` the lock flags `new`; `ENOMEM` where nothing is mapped.
    fn set_lock(&self, areas: &mut Areas, range: Range<u64>, new: VmFlags) -> Result<()> {
        let mut at = range.start;
        let mut result = Ok(());
        while at < range.end {
            let Some(vma) = areas.set.find(at) else {
                result = Err(Errno::ENOMEM);
                break;
            };
            let part = at..vma.end.min(range.end);
            at = part.end;
            sched::cond_resched();
            // Huge pages and the kernel's own are always resident, and never counted; a region is not the process's alone.
            // Secret memory counts for its owner.
            let is_fixed = matches!(vma.kind, Kind::Huge(_) | Kind::Special(_) | Kind::Region(_));
            // What may be dropped at any time is not locked.
            if is_fixed || vma.flags.intersects(VmFlags::SECRET | VmFlags::DROPPABLE) {
                continue;
            }
            let flags = (vma.flags - LOCK_FLAGS) | new;
            result = self.set_flags(areas, part, flags);
            if result.is_err() {
                break;
            }
        }
        result
    }
}

/// The pages that have a byte of the range.
fn byte_range(start: u64, len: u64) -> Result<Range<u64>> {
    // As Linux: a length that wraps around when it is rounded up is none.
    let len = len.wrapping_add(start & (PAGE - 1)).wrapping_add(PAGE - 1) & !(PAGE - 1);
    let start = page_down(start);
    Ok(start..start.checked_add(len).ok_or(Errno::EINVAL)?)
}
