//! What a registered area has at an address, as the access that faults there meets it.

use ::hugetlb::Presence;
use core::ops::Range;
use core::sync::atomic::Ordering;

use super::super::entry::Entry;
use super::super::fault::Access;
use super::super::fork_tables::WINDOW;
use super::super::gather::{self, Gather};
use super::super::vma::{FileArea, Kind, VmFlags, Vma, VmaSet};
use super::super::{AddressSpace, NoTable, PAGE, page_down};
use crate::errno::{Errno, Result};
use crate::hugetlb::HugeArea;
use crate::{process, sched};

/// What an access meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// Nothing that a userfaultfd wants to know of.
    Clear,
    /// There is no page.
    Missing,
    /// The file has the page, the address space has no entry for it.
    Minor,
    /// Stores are withheld from the page.
    Withheld,
    /// The address is poisoned.
    Poisoned,
}

impl AddressSpace {
    /// What an access to a registered area meets. The areas lock is held.
    pub(super) fn look(&self, vma: &Vma, address: u64, access: Access) -> Look {
        let write = access == Access::Write;
        match &vma.kind {
            Kind::Special(_) | Kind::Region(_) => Look::Clear,
            Kind::Huge(huge) => look_huge(huge, vma.flags, address, write),
            Kind::Anonymous => self.look_base(vma, address, write, || Look::Missing),
            Kind::File(area) => self.look_base(vma, address, write, || absent(area, vma, address)),
        }
    }

    fn look_base(&self, vma: &Vma, address: u64, write: bool, absent: impl FnOnce() -> Look) -> Look {
        let entry = self.tables.lock().leaf(page_down(address));
        if entry.is_mapped() {
            let withheld = write && entry.has(Entry::USERFAULT_WP);
            return wanted(if withheld { Look::Withheld } else { Look::Clear }, vma.flags);
        }
        if entry.has(Entry::POISON) { Look::Poisoned } else { wanted(absent(), vma.flags) }
    }

    /// Whether stores to the page at an address are withheld, for `/proc/PID/pagemap`. The areas lock is held.
    pub(in super::super) fn is_withheld(&self, vma: &Vma, address: u64) -> bool {
        if !vma.flags.contains(VmFlags::USERFAULT_WP) {
            return false;
        }
        match &vma.kind {
            Kind::Huge(huge) => huge.is_withheld(address),
            _ => self.tables.lock().leaf(address).has(Entry::USERFAULT_WP),
        }
    }

    /// Permits stores to all pages of `range`, which belongs to one area of base pages. The areas lock is
    /// held. In tables that address spaces share since a fork they are withheld from none.
    pub(in super::super) fn permit_stores(&self, range: Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            let walked = self.tables.lock().walk(at..range.end, gather::BATCH, |_, slot| {
                // More rights come by faults: nothing is to be flushed.
                slot.fetch_and(!Entry::USERFAULT_WP, Ordering::SeqCst);
            });
            at = walked.unwrap_or_else(|met| (met.0 & !(WINDOW - 1)) + WINDOW);
            sched::cond_resched();
        }
    }

    /// Permits stores to a part of an area again. `EINVAL` unless it is of whole pages. The areas lock is held.
    pub(super) fn permit_in(&self, vma: &Vma, part: Range<u64>) -> Result<()> {
        if let Kind::Huge(huge) = &vma.kind {
            return huge.withhold_stores(part, false);
        }
        self.permit_stores(part);
        Ok(())
    }

    /// Withholds stores from a part of an area of `set`, the areas. The areas lock is held.
    pub(in super::super) fn withhold_in(&self, set: &VmaSet, vma: &Vma, part: Range<u64>) -> Result<()> {
        if let Kind::Huge(huge) = &vma.kind {
            return huge.withhold_stores(part, true);
        }
        let context = vma.userfault.as_ref().ok_or(Errno::ENOENT)?;
        let unpopulated = context.has(linux_raw_sys::general::UFFD_FEATURE_WP_UNPOPULATED);
        let marks = unpopulated || !matches!(vma.kind, Kind::Anonymous);
        let mut gather = Gather::new(self);
        let mut at = part.start;
        while at < part.end {
            let tables = self.tables.lock();
            let walked = tables.walk(at..part.end, gather::BATCH, |address, slot| {
                let old = Entry(slot.fetch_or(Entry::USERFAULT_WP, Ordering::SeqCst));
                if old.is_mapped() && old.has(Entry::WRITABLE) {
                    slot.fetch_and(!Entry::WRITABLE, Ordering::SeqCst);
                    gather.flush_range(address..address + PAGE);
                }
            });
            drop(tables);
            at = match walked {
                Ok(next) => next,
                Err(met) => self.own_met(met).map_err(|_| Errno::ENOMEM)?,
            };
            sched::cond_resched();
        }
        gather.flush();
        if marks { self.mark_absent(set, part) } else { Ok(()) }
    }

    /// Sets a marker where there is no page.
    fn mark_absent(&self, set: &VmaSet, part: Range<u64>) -> Result<()> {
        let mut at = part.start;
        while at < part.end {
            match self.mark_some_absent(at, part.end.min(at + gather::BATCH as u64 * PAGE)) {
                (next, None) => at = next,
                (_, Some(NoTable::NoMemory)) => return Err(Errno::ENOMEM),
                (next, Some(NoTable::SlotShared)) => {
                    self.take_slot(set, next).map_err(|_| Errno::ENOMEM)?;
                    at = next;
                }
            }
            sched::cond_resched();
            // It may make very many tables.
            if process::current().kill_pending() {
                return Err(Errno::EINTR);
            }
        }
        Ok(())
    }

    /// Returns how far it came, and what stopped it.
    fn mark_some_absent(&self, start: u64, end: u64) -> (u64, Option<NoTable>) {
        let mut tables = self.tables.lock();
        let mut at = start;
        while at < end {
            match tables.find_or_make(at, 1) {
                Err(why) => return (at, Some(why)),
                // An entry that is there has got the bit before.
                Ok(slot) => {
                    let _ = slot.compare_exchange(0, Entry::USERFAULT_WP, Ordering::SeqCst, Ordering::SeqCst);
                }
            }
            at += PAGE;
        }
        (end, None)
    }
}

/// What an area of huge pages has.
fn look_huge(huge: &HugeArea, flags: VmFlags, address: u64, write: bool) -> Look {
    let found = if huge.is_resident(address) {
        if write && huge.is_withheld(address) { Look::Withheld } else { Look::Clear }
    } else {
        if huge.is_poisoned(address) {
            return Look::Poisoned;
        }
        match huge.presence(address) {
            Presence::Absent => Look::Missing,
            Presence::InFile => Look::Minor,
            // SIGBUS, and nobody can help; a copy is not the file's to tell of.
            Presence::BeyondEnd | Presence::Copied => Look::Clear,
        }
    };
    wanted(found, flags)
}

/// What a mapping of a file of base pages has where it has no entry.
fn absent(area: &FileArea, vma: &Vma, address: u64) -> Look {
    let cache = area.link.cache();
    let index = vma.index_of(page_down(address));
    match cache.cached(index) {
        Some(_) => Look::Minor,
        None if index < cache.size().div_ceil(PAGE) => Look::Missing,
        // SIGBUS, and nobody can help.
        None => Look::Clear,
    }
}

/// What was found, if the area is registered for it.
fn wanted(found: Look, flags: VmFlags) -> Look {
    let mode = match found {
        Look::Clear | Look::Poisoned => return found,
        Look::Missing => VmFlags::USERFAULT_MISSING,
        Look::Minor => VmFlags::USERFAULT_MINOR,
        Look::Withheld => VmFlags::USERFAULT_WP,
    };
    if flags.contains(mode) { found } else { Look::Clear }
}
