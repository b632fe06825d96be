//! The copy of an address space for a child process.
//!
//! Private pages are shared between parent and child, read-only in both, until one of them writes; where
//! there are many, by their page tables ([`fork_tables`]). Pages of files are not copied: the child faults
//! them in, mostly without waiting. The parent's TLBs are flushed before the copy is used, so no store of the
//! parent's threads can reach a page that the child has.
//!
//! First come all areas, then the pages, window by window: what a failure leaves behind has an area for each
//! page.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use super::accounting;
use super::backing::Link;
use super::entry::Entry;
use super::fork_files;
use super::fork_tables::{self, Sharing, WINDOW};
use super::gather::Gather;
use super::space::{AddressSpace, Areas};
use super::tables::{NoMemory, NoTable};
use super::userfault::Forks;
use super::vma::{FileArea, Kind, VmFlags, Vma, VmaSet};
use crate::errno::{Errno, Result};
use crate::hugetlb::HugeArea;
use crate::memory::frame::Frame;
use crate::memory::{PAGE_SIZE, reserve};
use crate::process;
use crate::sched;
use crate::sync::grace;

impl AddressSpace {
    /// A copy for fork(2).
    pub fn fork(&self) -> Result<Arc<AddressSpace>> {
        /// What is missing may be a limit, which stays; and each failed attempt may retire a table itself.
        const ATTEMPTS: u32 = 3;
        let mut result = self.try_fork();
        for _ in 1..ATTEMPTS {
            // Page tables that are on their way out may be all that was missing.
            let again = matches!(result, Err(Errno::ENOMEM))
                && !process::current().kill_pending()
                && grace::collect();
            if !again {
                break;
            }
            result = self.try_fork();
        }
        result
    }

    fn try_fork(&self) -> Result<Arc<AddressSpace>> {
        let child = AddressSpace::new()?;
        let mut parent = self.write();
        let mut copy = child.write();
        copy.layout = parent.layout.clone();
        // Many a child maps nothing before it executes a program or ends.
        copy.set.forget_gaps();
        let mut gather = Gather::new(self);
        let mut forks = Forks::default();
        let mut result = Ok(());
        let Areas { set, .. } = &mut *parent;
        for vma in set.iter() {
            if vma.flags.contains(VmFlags::DONT_FORK) {
                continue;
            }
            result = fork_area(vma, &child, &mut copy, &mut forks);
            if result.is_err() {
                break;
            }
            sched::cond_resched();
        }
        if result.is_ok() {
            result = self.fork_windows(set, &child, &copy.set, &mut gather).map_err(|_| Errno::ENOMEM);
        }
        // Before the parent's threads may fault again, and before the child runs.
        gather.flush();
        drop(copy);
        drop(parent);
        // On failure the child goes as it is: what it has is consistent.
        result?;
        forks.tell();
        Ok(child)
    }

    /// Shares the private pages of `parents`, the areas of this space, with the child, whose areas are `set`.
    fn fork_windows(
        &self,
        parents: &VmaSet,
        child: &AddressSpace,
        set: &VmaSet,
        gather: &mut Gather,
    ) -> Result<(), NoMemory> {
        // All below has been shared or copied; the entries of this window are to be copied.
        let (mut done, mut refused) = (0, None);
        for vma in parents.iter() {
            // Also behind those that have nothing: there may be 65,000 of them.
            sched::cond_resched();
            let withholds = copies_marks(vma, set);
            let copies = copies_pages(vma) || withholds;
            // A shared mapping may have a hundred thousand tables, none of which a child gets.
            if !copies && !fork_files::may_ever_be_mixed(vma) {
                continue;
            }
            let mut at = vma.start.max(done);
            while at < vma.end {
                sched::cond_resched();
                let window = match self.tables.lock().next_table(at..vma.end) {
                    Ok((window, _)) => window,
                    Err(next) => {
                        at = next;
                        continue;
                    }
                };
                done = window + WINDOW;
                // Decided by the first area in the window, for all in it.
                if refused != Some(window)
                    && let Some(sharing) = fork_tables::may_share(parents, window)
                    && (sharing == Sharing::Anonymous || self.prepare_mixed(parents, set, window))
                    && self.share_window(window, sharing, child, set, gather)?
                {
                    at = done;
                    continue;
                }
                refused = Some(window);
                done = done.min(vma.end);
                if copies {
                    self.fork_pages(at.max(window)..done, child, set, withholds, gather)?;
                }
                at = done;
            }
        }
        Ok(())
    }

    /// Shares the table of a window with the child; false if the entries are to be copied.
    fn share_window(
        &self,
        window: u64,
        sharing: Sharing,
        child: &AddressSpace,
        set: &VmaSet,
        gather: &mut Gather,
    ) -> Result<bool, NoMemory> {
        loop {
            let shared = {
                let mut tables = self.tables.lock();
                // Nobody else knows the child, so the order of the two locks cannot matter.
                let mut childs = child.tables.lock();
                tables.share_with(&mut childs, window, sharing, gather)
            };
            match shared {
                Ok(shared) => return Ok(shared),
                Err(NoTable::NoMemory) => return Err(NoMemory),
                Err(NoTable::SlotShared) => child.take_slot(set, window)?,
            }
        }
    }

    /// Copies the entries of anonymous pages in `range`, of one area, to the child, whose areas are `set`. With `withholds` also the marks of
    /// stores that are withheld; those of poison always.
    fn fork_pages(
        &self,
        range: Range<u64>,
        child: &AddressSpace,
        set: &VmaSet,
        withholds: bool,
        gather: &mut Gather,
    ) -> Result<(), NoMemory> {
        let mut at = range.start;
        while at < range.end {
            let tables = self.tables.lock();
            // As in `share_window`.
            let mut childs = child.tables.lock();
            let mut filler = childs.filler();
            let mut failed = None;
            let walked = tables.walk(at..range.end, 512, |address, slot| {
                let value = Entry(slot.load(Ordering::SeqCst));
                if failed.is_some() {
                    return;
                }
                if !value.is_mapped() || !(value.has(Entry::ANON) || value.has(Entry::SPECIAL)) {
                    // The child has no entry there, but it is to meet what is withheld, and poison always.
                    let withheld = if withholds { Entry::USERFAULT_WP } else { 0 };
                    let poison = if value.is_mapped() { 0 } else { Entry::POISON };
                    let marks = value.0 & (withheld | poison);
                    if marks != 0 {
                        failed = filler.mark(address, marks).err().map(|why| (address, why));
                    }
                    return;
                }
                if value.has(Entry::WRITABLE) {
                    slot.fetch_and(!Entry::WRITABLE, Ordering::SeqCst);
                    gather.flush_range(address..address + super::PAGE);
                }
                let dropped = if withholds { Entry::WRITABLE } else { Entry::WRITABLE | Entry::USERFAULT_WP };
                let shared = value.without(dropped);
                if let Err(why) = filler.install(address, shared) {
                    failed = Some((address, why));
                } else if shared.owns_frame() {
                    // SAFETY: under its lock the parent's entry keeps its reference.
                    let frame = unsafe { Frame::share_raw(shared.address()) };
                    let _ = frame.into_raw();
                }
            });
            drop(childs);
            drop(tables);
            sched::cond_resched();
            at = match (failed, walked) {
                (None, Ok(next)) => next,
                // Shared since an earlier fork, and an area in the window is not to be copied whole any more.
                (None, Err(met)) => self.own_met(met)?,
                (Some((_, NoTable::NoMemory)), _) => return Err(NoMemory),
                (Some((address, NoTable::SlotShared)), _) => {
                    child.take_slot(set, address)?;
                    address
                }
            };
        }
        Ok(())
    }
}

/// Does a child get the pages of its own that the area may have?
fn copies_pages(vma: &Vma) -> bool {
    vma.is_touched()
        && vma.has_own_leaves()
        && !vma.flags.intersects(VmFlags::DONT_FORK | VmFlags::WIPE_ON_FORK)
}

/// Does a child, whose areas are `childs`, get marks of the area's entries, whose pages come by faults?
fn copies_marks(vma: &Vma, childs: &VmaSet) -> bool {
    vma.flags.contains(VmFlags::USERFAULT_WP)
        && vma.has_own_leaves()
        && !vma.flags.contains(VmFlags::WIPE_ON_FORK)
        && childs.find(vma.start).is_some_and(|copy| copy.userfault.is_some())
}

/// Gives `child` the area that is a copy of `vma`, without its pages of its own.
fn fork_area(vma: &Vma, child: &Arc<AddressSpace>, copy: &mut Areas, forks: &mut Forks) -> Result<()> {
    // The area, its place in the set, and in its file's list.
    reserve::ask(PAGE_SIZE)?;
    // Who is told of the parent's faults is told of the child's if he is told of the fork.
    let userfault = match &vma.userfault {
        Some(context) => forks.of_area(context, child)?,
        None => None,
    };
    let inherited = if userfault.is_some() { vma.flags } else { vma.flags - VmFlags::USERFAULT };
    let mut flags = inherited - (VmFlags::LOCKED | VmFlags::LOCK_ON_FAULT);
    if flags.contains(VmFlags::ACCOUNT) {
        accounting::commit(vma.pages())?;
    }
    let weak = Arc::downgrade(child);
    let kind = match &vma.kind {
        Kind::Anonymous => Kind::Anonymous,
        Kind::Special(pages) => Kind::Special(pages),
        Kind::File(area) => {
            // On the file's list before the pages are copied: see `MappingList`.
            let writable = flags.contains(VmFlags::SHARED | VmFlags::MAY_WRITE);
            let cache = area.link.cache().clone();
            let link = Link::new(cache, weak, vma.first, writable);
            if !flags.contains(VmFlags::SHARED) && area.link.is_listed() {
                link.enlist(vma.start, vma.pages());
            }
            let (file, attachment) = (area.file.clone(), area.attachment.clone());
            Kind::File(Box::new(FileArea { link, file, attachment }))
        }
        Kind::Huge(huge) => {
            flags = inherited;
            Kind::Huge(Box::new(huge.fork(&mut copy.huge, flags)?))
        }
        Kind::Region(region) => Kind::Region(Box::new(region.fork(child, flags))),
    };
    let area = Vma {
        start: vma.start,
        end: vma.end,
        flags,
        first: vma.first,
        kind,
        policy: vma.policy,
        touched: AtomicBool::new(copies_pages(vma)),
        userfault,
    };
    child.attach_windows(&area);
    copy.set.insert(area);
    // Behind the last step after which the area would be dropped without being unmapped: the child's end does that.
    if flags.intersects(VmFlags::USERFAULT_WP | VmFlags::USERFAULT_MINOR)
        && let Kind::Huge(parents) = &vma.kind
        && let Some(Kind::Huge(childs)) = copy.set.find(vma.start).map(|area| &area.kind)
    {
        childs.keep_unshared()?;
        if flags.contains(VmFlags::USERFAULT_WP) {
            withhold_as(parents, childs, vma.range())?;
        }
    }
    Ok(())
}

/// Withholds stores from the pages of a child's area from which they are withheld in the parent's.
fn withhold_as(parents: &HugeArea, childs: &HugeArea, range: Range<u64>) -> Result<()> {
    let size = parents.page_size();
    for at in range.step_by(size as usize) {
        if parents.is_withheld(at) {
            childs.withhold_stores(at..at + size, true)?;
        }
        sched::cond_resched();
        // The area may be of many TiB.
        if process::current().kill_pending() {
            return Err(Errno::EINTR);
        }
    }
    Ok(())
}
