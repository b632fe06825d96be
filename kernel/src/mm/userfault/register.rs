//! Registering areas with a context, and letting go of them.

use alloc::sync::Arc;
use core::ops::Range;

use linux_raw_sys::general as abi;

use super::super::AddressSpace;
use super::super::space::Areas;
use super::super::vma::{Kind, VmFlags, Vma};
use super::Context;
use crate::errno::{Errno, Result};
use crate::sched;

/// Bits of the calls that can be made of a range, as UFFDIO_REGISTER tells them.
const WAKE: u64 = 1 << abi::_UFFDIO_WAKE;
const COPY: u64 = 1 << abi::_UFFDIO_COPY;
const ZEROPAGE: u64 = 1 << abi::_UFFDIO_ZEROPAGE;
const WRITEPROTECT: u64 = 1 << abi::_UFFDIO_WRITEPROTECT;
const CONTINUE: u64 = 1 << abi::_UFFDIO_CONTINUE;
const MOVE: u64 = 1 << abi::_UFFDIO_MOVE;
const POISON: u64 = 1 << abi::_UFFDIO_POISON;

impl Vma {
    /// No userfaultfd is told of its faults any more.
    pub(in super::super) fn forget_userfault(&mut self) {
        if self.userfault.take().is_some() {
            self.flags -= VmFlags::USERFAULT;
            if let Kind::Huge(huge) = &self.kind {
                // The whole area is of whole pages.
                let _ = huge.withhold_stores(self.start..self.end, false);
            }
        }
    }

    /// Can it be registered in a mode?
    fn can_userfault(&self, mode: VmFlags) -> bool {
        let pages_of_files = match &self.kind {
            Kind::Special(_) | Kind::Region(_) => return false,
            Kind::Anonymous => false,
            Kind::File(area) if !area.link.cache().is_shmem() => return false,
            Kind::File(_) | Kind::Huge(_) => true,
        };
        !self.flags.contains(VmFlags::DROPPABLE)
            && (pages_of_files || !mode.contains(VmFlags::USERFAULT_MINOR))
    }
}

impl Context {
    /// UFFDIO_REGISTER: returns which calls can be made of the range.
    pub(super) fn register(self: &Arc<Self>, range: Range<u64>, mode: VmFlags) -> Result<u64> {
        let space = self.space.upgrade().ok_or(Errno::ENOMEM)?;
        let mut guard = space.write();
        let areas: &mut Areas = &mut guard;
        let basic = self.check_range(areas, &range, mode)?;
        let mut at = range.start;
        let mut result = Ok(());
        while result.is_ok()
            && let Some(vma) = areas.set.find_in(at..range.end)
        {
            let part = vma.start.max(range.start)..vma.end.min(range.end);
            at = part.end;
            sched::cond_resched();
            let same = vma.userfault.as_ref().is_some_and(|context| Arc::ptr_eq(context, self));
            if same && vma.flags.contains(mode) {
                continue;
            }
            result = space.isolate_for(areas, &part);
            if result.is_ok() {
                areas.set.update(part.start, |vma| result = self.take_area(&space, vma, part.clone(), mode));
            }
            areas.set.merge(part);
        }
        result?;
        let mut calls = WAKE | COPY | POISON;
        if !basic {
            calls |= ZEROPAGE | MOVE;
        }
        if mode.contains(VmFlags::USERFAULT_WP) {
            calls |= WRITEPROTECT;
        }
        if mode.contains(VmFlags::USERFAULT_MINOR) {
            calls |= CONTINUE;
        }
        Ok(calls)
    }

    /// Registers an area, which is `part`.
    fn take_area(
        self: &Arc<Self>,
        space: &AddressSpace,
        vma: &mut Vma,
        part: Range<u64>,
        mode: VmFlags,
    ) -> Result<()> {
        if let Kind::Huge(huge) = &vma.kind
            && mode.intersects(VmFlags::USERFAULT_WP | VmFlags::USERFAULT_MINOR)
        {
            huge.keep_unshared()?;
        }
        space.leave_windows(vma, part.clone());
        if (vma.flags - mode).contains(VmFlags::USERFAULT_WP) {
            // It is no longer told of stores: a mark that stayed would withhold them for ever.
            space.permit_in(vma, part)?;
        }
        vma.flags = (vma.flags - VmFlags::USERFAULT) | mode;
        vma.userfault = Some(self.clone());
        Ok(())
    }

    /// Can all areas of the range be registered? Tells whether there are huge pages.
    fn check_range(self: &Arc<Self>, areas: &Areas, range: &Range<u64>, mode: VmFlags) -> Result<bool> {
        let mut huge = false;
        let mut first = true;
        for vma in areas.set.overlapping(range.clone()) {
            if !starts_well(vma, range, first) || !vma.can_userfault(mode) {
                return Err(Errno::EINVAL);
            }
            if !vma.flags.contains(VmFlags::MAY_WRITE) {
                return Err(Errno::EPERM);
            }
            if cuts_at_its_end(vma, range) {
                return Err(Errno::EINVAL);
            }
            first = false;
            if vma.userfault.as_ref().is_some_and(|other| !Arc::ptr_eq(other, self)) {
                return Err(Errno::EBUSY);
            }
            huge |= vma.is_huge();
            sched::cond_resched();
        }
        if first { Err(Errno::EINVAL) } else { Ok(huge) }
    }

    /// UFFDIO_UNREGISTER.
    pub(super) fn unregister(self: &Arc<Self>, range: Range<u64>) -> Result<()> {
        let space = self.space.upgrade().ok_or(Errno::ENOMEM)?;
        {
            let mut guard = space.write();
            let areas: &mut Areas = &mut guard;
            let mut first = true;
            for vma in areas.set.overlapping(range.clone()) {
                // As on Linux, the end matters where there is something to let go of.
                let own = vma.userfault.as_ref().is_some_and(|other| Arc::ptr_eq(other, self));
                let cuts = own && cuts_at_its_end(vma, &range);
                if cuts || !starts_well(vma, &range, first) || !vma.can_userfault(VmFlags::empty()) {
                    return Err(Errno::EINVAL);
                }
                first = false;
            }
            if first {
                return Err(Errno::EINVAL);
            }
            space.let_areas_go(areas, self, range.clone())?;
        }
        self.wake(range);
        Ok(())
    }

    /// The descriptor is closed: nobody is told of faults any more, and those who wait go on.
    pub(super) fn release(self: &Arc<Self>) {
        self.waiters.lock().released = true;
        if let Some(space) = self.space.upgrade() {
            let mut areas = space.write();
            // Whole areas: nothing is cut, so nothing can fail.
            let _ = space.let_areas_go(&mut areas, self, 0..super::super::TASK_SIZE);
        }
        self.wake(0..u64::MAX);
        self.give_up_events();
    }
}

/// Whether the range may begin where it does: at a huge page, if the first area that it meets is of those.
fn starts_well(vma: &Vma, range: &Range<u64>, first: bool) -> bool {
    !first || !vma.is_huge() || range.start.is_multiple_of(vma.granule())
}

/// Whether the range ends amid one of the area's huge pages.
fn cuts_at_its_end(vma: &Vma, range: &Range<u64>) -> bool {
    vma.is_huge() && range.end < vma.end && !range.end.is_multiple_of(vma.granule())
}

impl AddressSpace {
    /// Makes a part of an area one by itself.
    fn isolate_for(&self, areas: &mut Areas, part: &Range<u64>) -> Result<()> {
        let Some(vma) = areas.set.find(part.start) else { return Ok(()) };
        areas.set.allow_cut(vma, part)?;
        areas.set.isolate(part.clone(), self.weak())
    }

    /// Lets go of what of the range is registered with `context`.
    fn let_areas_go(&self, areas: &mut Areas, context: &Arc<Context>, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        let mut result = Ok(());
        while let Some(vma) = areas.set.find_in(at..range.end) {
            let part = vma.start.max(range.start)..vma.end.min(range.end);
            at = part.end;
            sched::cond_resched();
            if !vma.userfault.as_ref().is_some_and(|other| Arc::ptr_eq(other, context)) {
                continue;
            }
            result = self.isolate_for(areas, &part);
            if result.is_err() {
                areas.set.merge(part);
                break;
            }
            let huge = areas.set.update(part.start, |vma| {
                vma.forget_userfault();
                vma.is_huge()
            });
            if huge == Some(false) {
                self.permit_stores(part.clone());
            }
            areas.set.merge(part);
        }
        result
    }
}
