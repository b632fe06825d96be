//! UFFDIO_MOVE: pages of the program's own memory go to another place in it, without a copy.

use core::sync::atomic::Ordering;

use alloc::sync::Arc;
use smallvec::SmallVec;

use super::super::entry::Entry;
use super::super::gather::Gather;
use super::super::space::Areas;
use super::super::tables::NoTable;
use super::super::vma::{Kind, VmFlags, Vma};
use super::super::{AddressSpace, PAGE};
use super::Context;
use super::fill::Progress;
use crate::errno::{Errno, Result};
use crate::memory::frame::Frame;
use crate::memory::{PAGE_SIZE, reserve};
use crate::process;
use crate::sched;

/// Pages that are moved in one hold of the page-table lock.
const BATCH: usize = 32;

/// What ended a hold before its pages were all moved.
enum Stop {
    Failed(Errno),
    /// The address's table is to be made the address space's own first.
    SlotShared(u64),
}

impl Context {
    /// Moves the pages at `from` on to the registered range at `to` on. With `skip_holes` a page that is not there is none to move.
    pub(super) fn move_pages(
        self: &Arc<Self>,
        to: u64,
        from: u64,
        len: u64,
        skip_holes: bool,
    ) -> Result<Progress> {
        let space = self.space()?;
        let mut done = 0;
        while done < len {
            // For the tables.
            let step = reserve::ask(PAGE_SIZE).and_then(|()| {
                let areas = space.read();
                self.check_unchanged()?;
                self.check_move(&areas, to, from, len)?;
                let bytes = (len - done).min(BATCH as u64 * PAGE);
                let (moved, stop) = space.move_some(to + done, from + done, bytes, skip_holes);
                done += moved;
                match stop {
                    None => Ok(()),
                    Some(Stop::Failed(errno)) => Err(errno),
                    Some(Stop::SlotShared(at)) => space.take_slot(&areas.set, at).map_err(|_| Errno::ENOMEM),
                }
            });
            if let Err(errno) = step {
                return Ok(Progress { done, stopped: Some(errno) });
            }
            sched::cond_resched();
            if process::current().kill_pending() {
                return Ok(Progress { done, stopped: Some(Errno::EINTR) });
            }
        }
        Ok(Progress { done, stopped: None })
    }

    /// May pages move between these places? Each is in one area of private memory, with the same rights, and the program may store to both.
    fn check_move(self: &Arc<Self>, areas: &Areas, to: u64, from: u64, len: u64) -> Result<()> {
        let find = |start: u64| areas.set.find(start).ok_or(Errno::ENOENT);
        let (target, source) = (find(to)?, find(from)?);
        let holds = |vma: &Vma, start: u64| {
            let rights = VmFlags::SHARED | VmFlags::WRITE;
            start + len <= vma.end
                && vma.flags & rights == VmFlags::WRITE
                && matches!(vma.kind, Kind::Anonymous)
        };
        const ALIKE: VmFlags = VmFlags::ACCESS.union(VmFlags::LOCKED);
        let is_own = target.userfault.as_ref().is_some_and(|context| Arc::ptr_eq(context, self));
        let alike = target.flags & ALIKE == source.flags & ALIKE;
        if !holds(target, to) || !holds(source, from) || !alike || !is_own {
            return Err(Errno::EINVAL);
        }
        target.touched.store(true, Ordering::SeqCst);
        Ok(())
    }
}

impl AddressSpace {
    /// Moves some pages, all in one hold of the page-table lock: how many bytes were gone through, and what came in the way. The areas
    /// lock is held, and both ranges are in areas between which pages may move.
    fn move_some(&self, to: u64, from: u64, len: u64, skip_holes: bool) -> (u64, Option<Stop>) {
        let mut moved: SmallVec<[(u64, Entry); BATCH]> = SmallVec::new();
        let mut gather = Gather::new(self);
        let mut tables = self.tables.lock();
        let mut done = 0;
        let stop = loop {
            if done == len {
                break None;
            }
            let (source, target) = (from + done, to + done);
            match tables.find_or_make(target, 1) {
                Ok(slot) if slot.load(Ordering::SeqCst) == 0 => {}
                Ok(_) => break Some(Stop::Failed(Errno::EEXIST)),
                Err(NoTable::NoMemory) => break Some(Stop::Failed(Errno::ENOMEM)),
                Err(NoTable::SlotShared) => break Some(Stop::SlotShared(target)),
            }
            let slot = match tables.own_leaf(source) {
                Ok(slot) => slot.filter(|slot| slot.load(Ordering::SeqCst) != 0),
                Err(NoTable::NoMemory) => break Some(Stop::Failed(Errno::ENOMEM)),
                Err(NoTable::SlotShared) => break Some(Stop::SlotShared(source)),
            };
            let Some(slot) = slot else {
                if !skip_holes {
                    break Some(Stop::Failed(Errno::ENOENT));
                }
                done += PAGE;
                continue;
            };
            let value = Entry(slot.load(Ordering::SeqCst));
            if !value.is_mapped() {
                // A marker is nothing to move.
                break Some(Stop::Failed(Errno::EFAULT));
            }
            let zeroes = value.has(Entry::SPECIAL);
            let is_own = value.has(Entry::ANON) && Frame::count_at(value.address()) == 1;
            if !zeroes && !is_own {
                // Others have it, too.
                break Some(Stop::Failed(Errno::EBUSY));
            }
            // The processor may note a store in the entry until it is out.
            let value = Entry(slot.swap(0, Ordering::SeqCst)).without(Entry::USERFAULT_WP);
            moved.push((target, if zeroes { value } else { value.with(Entry::WRITABLE) }));
            gather.flush_range(source..source + PAGE);
            done += PAGE;
        };
        // Under the lock, and before the pages are at their new places: no store by the old ones comes behind that.
        gather.flush();
        for (target, entry) in moved {
            match tables.own_leaf(target) {
                Ok(Some(slot)) => slot.store(entry.0, Ordering::SeqCst),
                _ => panic!("a page is moved to {target:#x}, where there is no table"),
            }
        }
        (done, stop)
    }
}
