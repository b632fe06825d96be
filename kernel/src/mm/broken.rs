//! MADV_HWPOISON and MADV_SOFT_OFFLINE: memory that counts as broken, and memory that is left before it breaks.
//!
//! Huge pages are the library's affair, which knows who maps them. Who has an anonymous page is found by looking: every address space is
//! asked for the page at the same address, which is where a fork leaves it. One that is elsewhere (mremap(2) after a fork), or that
//! somebody holds who is no process, keeps its frame, and the caller is told so.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use linux_raw_sys::general as abi;

use super::PAGE;
use super::entry::Entry;
use super::fault::{Access, FaultError, copy_page};
use super::gather::Gather;
use super::space::AddressSpace;
use super::vma::Kind;
use crate::errno::{Errno, Result};
use crate::memory::broken;
use crate::memory::frame::Frame;
use crate::signal::{self, SigInfo};
use crate::{process, sched};

/// `vm.enable_soft_offline`.
pub static SOFT_OFFLINE: AtomicBool = AtomicBool::new(true);

impl AddressSpace {
    /// The pages of a range break, or (`soft`) are moved to other memory; the memory that they had is never used again. A caller who
    /// breaks a page that he maps gets the signal of an access to it.
    pub(super) fn advise_broken(&self, range: Range<u64>, soft: bool) -> Result<()> {
        if !process::current().credentials().capable(abi::CAP_SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        let mut at = range.start;
        while at < range.end {
            // The first address of a huge page need not be the page's.
            at += self.break_at(at, soft)?;
            sched::cond_resched();
        }
        Ok(())
    }

    /// Breaks or moves the page at an address. Returns its size.
    fn break_at(&self, at: u64, soft: bool) -> Result<u64> {
        loop {
            self.fault(at, Access::Read).map_err(|error| match error {
                FaultError::OutOfMemory => Errno::ENOMEM,
                _ => Errno::EFAULT,
            })?;
            // Relaxed: a setting of its own.
            if soft && !SOFT_OFFLINE.load(Ordering::Relaxed) {
                return Err(Errno::EOPNOTSUPP);
            }
            let (done, size) = {
                let areas = self.read();
                let vma = areas.set.find(at).ok_or(Errno::EFAULT)?;
                let done = match &vma.kind {
                    Kind::Huge(huge) if soft => Some(huge.replace_page(at)?),
                    Kind::Huge(huge) => Some(huge.break_page(at)?),
                    Kind::Anonymous => None,
                    // A page of the file's own stays.
                    Kind::File(_) if self.tables.lock().leaf(at).has(Entry::ANON) => None,
                    Kind::File(_) => return Err(Errno::EBUSY),
                    Kind::Special(_) | Kind::Region(_) => return Err(Errno::EBUSY),
                };
                (done, vma.page_size())
            };
            // Without the areas lock: it takes those of all others.
            let is_done = match done {
                Some(is_done) => is_done,
                None => self.break_anonymous(at, soft)?,
            };
            if is_done {
                if !soft {
                    signal::force_signal(SigInfo::poison(at, size.trailing_zeros()));
                }
                return Ok(size);
            }
            // Another thread took the page away: the next access says what there is.
            self.check_killed()?;
        }
    }

    fn check_killed(&self) -> Result<()> {
        sched::cond_resched();
        if process::current().kill_pending() { Err(Errno::EINTR) } else { Ok(()) }
    }

    /// Breaks or moves the anonymous page at an address, for all who have it. False when there is no page; `EBUSY` when it is no
    /// anonymous one, or somebody has it still.
    fn break_anonymous(&self, at: u64, soft: bool) -> Result<bool> {
        let frame = {
            let tables = self.tables.lock();
            let entry = tables.leaf(at);
            if !entry.is_mapped() {
                return Ok(false);
            }
            if !entry.has(Entry::ANON) || !entry.owns_frame() {
                return Err(Errno::EBUSY);
            }
            // SAFETY: under the lock the entry's reference does not go away.
            unsafe { Frame::share_raw(entry.address()) }
        };
        let next = if soft { Some(Frame::alloc(frame.used_for()).ok_or(Errno::ENOMEM)?) } else { None };
        let mut is_copied = false;
        loop {
            let mut found = false;
            for process in process::processes() {
                if let Some(space) = process.mm() {
                    found |= space.part_with(at, &frame, next.as_ref(), &mut is_copied)?;
                }
                self.check_killed()?;
            }
            // Race: who was asked already got it again by a fork of who was not.
            if frame.count() == 1 || !found {
                break;
            }
        }
        let is_held = frame.count() != 1;
        if is_held && soft {
            return Err(Errno::EBUSY);
        }
        broken::note(frame.phys());
        // This reference keeps it out of the allocator for ever.
        frame.into_raw();
        if is_held { Err(Errno::EBUSY) } else { Ok(true) }
    }

    /// Takes an anonymous page out, if it is at this address: an access meets poison from now on, or finds `next`, to which the first who
    /// gets it has the content copied. Returns whether the page was there.
    fn part_with(&self, at: u64, page: &Frame, next: Option<&Frame>, is_copied: &mut bool) -> Result<bool> {
        // Forks of this space wait.
        let _areas = self.read();
        let is_it =
            |entry: Entry| entry.is_mapped() && entry.has(Entry::ANON) && entry.address() == page.phys();
        if !is_it(self.tables.lock().leaf(at)) {
            return Ok(false);
        }
        self.own_window(at).map_err(|_| Errno::ENOMEM)?;
        let mut gather = Gather::new(self);
        let mut tables = self.tables.lock();
        let Some(slot) = tables.own_leaf(at).map_err(|_| Errno::EBUSY)? else { return Ok(false) };
        if !is_it(Entry::load(slot)) {
            return Ok(false);
        }
        let old = match next {
            None => {
                let old = Entry(slot.swap(Entry::POISON, Ordering::SeqCst));
                tables.resident.remove(old);
                old
            }
            Some(next) => {
                // As a copy on write: empty first, flush, and nobody stores to the old page any more. One that several have is stored to
                // by nobody: our reference, too, makes each store a copy.
                let old = Entry(slot.swap(0, Ordering::SeqCst));
                gather.flush_range(at..at + PAGE);
                gather.flush();
                if !*is_copied {
                    copy_page(next, page);
                    *is_copied = true;
                }
                let bits = old.0 ^ old.address().0;
                slot.store(Entry::new(next.clone().into_raw(), bits).0, Ordering::SeqCst);
                old
            }
        };
        // SAFETY: the entry owned this reference, and is gone.
        gather.page(at, unsafe { Frame::from_raw(old.address()) });
        drop(tables);
        Ok(true)
    }
}
