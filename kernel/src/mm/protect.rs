//! mprotect(2).

use core::ops::Range;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;

use super::entry::Entry;
use super::fault::leaf_bits;
use super::gather::Gather;
use super::map::{access_flags, page_range};
use super::space::{AddressSpace, Areas};
use super::vma::{Kind, VmFlags, Vma};
use super::{accounting, layout};
use crate::errno::{Errno, Result};
use crate::memory::frame::Frame;
use crate::process;
use crate::sched;

const PROT_SEM: u32 = 8;

impl AddressSpace {
    /// mprotect(2).
    pub fn protect(&self, start: u64, len: u64, prot: u32) -> Result<()> {
        let grows_down = prot & abi::PROT_GROWSDOWN != 0;
        let grows_up = prot & abi::PROT_GROWSUP != 0;
        let prot = prot & !(abi::PROT_GROWSDOWN | abi::PROT_GROWSUP);
        if grows_down && grows_up {
            return Err(Errno::EINVAL);
        }
        let mut range = page_range(start, len)?;
        if range.is_empty() {
            return Ok(());
        }
        if prot & !(abi::PROT_READ | abi::PROT_WRITE | abi::PROT_EXEC | PROT_SEM) != 0 {
            return Err(Errno::EINVAL);
        }
        let mut guard = self.write();
        let areas: &mut Areas = &mut guard;
        let first = areas.set.find_from(range.start).ok_or(Errno::ENOMEM)?;
        if grows_down {
            if first.start >= range.end {
                return Err(Errno::ENOMEM);
            }
            if !first.flags.contains(VmFlags::GROWS_DOWN) {
                return Err(Errno::EINVAL);
            }
            range.start = first.start;
        } else if first.start > range.start {
            return Err(Errno::ENOMEM);
        }
        if grows_up {
            // No area of this architecture grows up.
            return Err(Errno::EINVAL);
        }
        self.protect_locked(areas, range, access_flags(prot))
    }

    /// Area by area; what comes before the first that cannot be changed stays changed, as on Linux.
    fn protect_locked(&self, areas: &mut Areas, range: Range<u64>, access: VmFlags) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let vma = areas.set.find(at).ok_or(Errno::ENOMEM)?;
            let part = at..vma.end.min(range.end);
            at = part.end;
            sched::cond_resched();
            let old = vma.flags;
            let mut new = old & !VmFlags::ACCESS | access;
            // MAY_READ and so on are four bits above READ and so on.
            if access.bits() & !(old.bits() >> 4) & VmFlags::ACCESS.bits() != 0 {
                return Err(Errno::EACCES);
            }
            if old.contains(VmFlags::SEALED) {
                return Err(Errno::EPERM);
            }
            if new == old {
                continue;
            }
            if process::current().process.denies_gain(old, new) {
                return Err(Errno::EACCES);
            }
            areas.set.allow_cut(vma, &part)?;
            for border in [part.start, part.end] {
                if border > vma.start
                    && border < vma.end
                    && !(border - vma.start).is_multiple_of(vma.granule())
                {
                    return Err(Errno::EINVAL);
                }
            }
            if vma.has_own_leaves() {
                // What can fail comes first. Until the areas lock is free, no table in the range becomes a
                // shared one.
                self.own_windows(part.clone()).map_err(|_| Errno::ENOMEM)?;
            }
            let pages = (part.end - part.start) >> 12;
            let becomes_private_writable =
                new & (VmFlags::WRITE | VmFlags::SHARED) == VmFlags::WRITE && !old.contains(VmFlags::WRITE);
            if becomes_private_writable && vma.has_own_leaves() {
                layout::check_limits_data(&areas.set, new, pages)?;
                if !old.intersects(VmFlags::ACCOUNT | VmFlags::NO_RESERVE) {
                    accounting::commit(pages)?;
                    new |= VmFlags::ACCOUNT;
                }
            }
            // As Linux: memory that nobody has stored to is none to count while nobody may.
            let gives_back = !new.contains(VmFlags::WRITE)
                && old.contains(VmFlags::ACCOUNT)
                && matches!(vma.kind, Kind::Anonymous)
                && !vma.is_touched();
            if gives_back {
                new -= VmFlags::ACCOUNT;
            }
            let changed = areas.set.change(part, self.weak(), |vma| {
                vma.flags = new;
                match &mut vma.kind {
                    Kind::Huge(huge) => huge.protect(new),
                    Kind::Region(region) => region.protect(old, new),
                    _ => {
                        self.protect_windows(vma);
                        self.protect_leaves(vma);
                    }
                }
            });
            let taken = new - old;
            match changed {
                Ok(()) if gives_back => accounting::uncommit(pages),
                Ok(()) => {}
                Err(error) => {
                    if taken.contains(VmFlags::ACCOUNT) {
                        accounting::uncommit(pages);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Gives the present leaves of an area, all in tables of the space's own, the rights that its flags say.
    fn protect_leaves(&self, vma: &Vma) {
        const RIGHTS: u64 = Entry::PRESENT | Entry::HELD | Entry::WRITABLE | Entry::NO_EXECUTE;
        let shared = vma.flags.contains(VmFlags::SHARED);
        let writable = vma.flags.contains(VmFlags::WRITE);
        let rights = leaf_bits(vma.flags) & RIGHTS;
        let mut gather = Gather::new(self);
        let mut at = vma.start;
        while at < vma.end {
            let tables = self.tables.lock();
            let walked = tables.walk(at..vma.end, 1024, |address, slot| {
                let mut old = Entry(slot.load(Ordering::SeqCst));
                if old.is_marker() {
                    return;
                }
                loop {
                    let mut new = Entry(old.0 & !RIGHTS | rights);
                    // A private page may be written to only if nobody shares it; the fault finds out about the others.
                    let ours = old.has(Entry::ANON) && Frame::count_at(old.address()) == 1;
                    let withheld = old.has(Entry::USERFAULT_WP) || old.has(Entry::SPECIAL);
                    if writable && new.is_present() && (shared || ours) && !withheld {
                        new = new.with(Entry::WRITABLE);
                    }
                    // The hardware may set bits meanwhile: they must not get lost.
                    match slot.compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst) {
                        Ok(_) => {
                            if !new.allows_all_of(old) {
                                gather.flush_range(address..address + super::PAGE);
                            }
                            return;
                        }
                        Err(now) => old = Entry(now),
                    }
                }
            });
            drop(tables);
            at = walked.unwrap_or_else(|met| panic!("a shared table is protected at {:#x}", met.0));
            sched::cond_resched();
        }
    }
}
