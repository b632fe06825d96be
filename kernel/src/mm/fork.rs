//! The copy of an address space for a child process.
//!
//! Private pages are shared between parent and child, read-only in both, until one of them writes. Pages of files are not
//! copied: the child faults them in, mostly without waiting. The parent's TLBs are flushed before the copy is
//! used, so no store of the parent's threads can reach a page that the child has.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use super::accounting;
use super::backing::Link;
use super::entry::Entry;
use super::gather::Gather;
use super::space::{AddressSpace, Areas};
use super::tables::{NoMemory, NoTable};
use super::vma::{FileArea, Kind, VmFlags, Vma, VmaSet};
use crate::errno::{Errno, Result};
use crate::memory::frame::Frame;
use crate::memory::{PAGE_SIZE, reserve};
use crate::sched;
use crate::sync::grace;

impl AddressSpace {
    /// A copy for fork(2).
    pub fn fork(&self) -> Result<Arc<AddressSpace>> {
        loop {
            match self.try_fork() {
                // Page tables that are on their way out may be all that was missing.
                Err(Errno::ENOMEM) if grace::collect() => {}
                result => return result,
            }
        }
    }

    fn try_fork(&self) -> Result<Arc<AddressSpace>> {
        let child = AddressSpace::new()?;
        let mut parent = self.write();
        let mut copy = child.write();
        copy.layout = parent.layout.clone();
        // Many a child maps nothing before it executes a program or ends.
        copy.set.forget_gaps();
        let mut gather = Gather::new(self);
        let mut result = Ok(());
        let Areas { set, .. } = &mut *parent;
        for vma in set.iter() {
            if vma.flags.contains(VmFlags::DONT_FORK) {
                continue;
            }
            result = self.fork_area(vma, &child, &mut copy, &mut gather);
            if result.is_err() {
                break;
            }
            sched::cond_resched();
        }
        // Before the parent's threads may fault again, and before the child runs.
        gather.flush();
        drop(copy);
        drop(parent);
        // On failure the child goes as it is: what it has is consistent.
        result.map(|()| child)
    }

    fn fork_area(
        &self,
        vma: &Vma,
        child: &Arc<AddressSpace>,
        copy: &mut Areas,
        gather: &mut Gather,
    ) -> Result<()> {
        // The area, its place in the set, and in its file's list.
        reserve::ask(PAGE_SIZE)?;
        // Who is told of the parent's faults is not told of the child's.
        let inherited = vma.flags - VmFlags::USERFAULT;
        let mut flags = inherited - (VmFlags::LOCKED | VmFlags::LOCK_ON_FAULT);
        if flags.contains(VmFlags::ACCOUNT) {
            accounting::commit(vma.pages())?;
        }
        let wipe = flags.contains(VmFlags::WIPE_ON_FORK);
        let weak = Arc::downgrade(child);
        let kind = match &vma.kind {
            Kind::Anonymous => Kind::Anonymous,
            Kind::Special(pages) => Kind::Special(pages),
            Kind::File(area) => {
                // On the file's list before the pages are copied: see `MappingList`.
                let writable = flags.contains(VmFlags::SHARED | VmFlags::MAY_WRITE);
                let cache = area.link.cache().clone();
                let link = Link::new(cache, weak, vma.start, vma.first, vma.pages(), writable);
                let (file, attachment) = (area.file.clone(), area.attachment.clone());
                Kind::File(Box::new(FileArea { link, file, attachment }))
            }
            Kind::Huge(huge) => {
                flags = inherited;
                Kind::Huge(Box::new(huge.fork(&mut copy.huge, flags)?))
            }
        };
        let copies_pages = vma.is_touched() && !wipe && !vma.is_huge();
        copy.set.insert(Vma {
            start: vma.start,
            end: vma.end,
            flags,
            first: vma.first,
            kind,
            touched: AtomicBool::new(copies_pages),
            userfault: None,
        });
        if copies_pages {
            self.fork_pages(vma, child, &copy.set, gather).map_err(|_| Errno::ENOMEM)?;
        }
        Ok(())
    }

    /// Shares an area's anonymous pages with the child, whose areas so far are `set`.
    fn fork_pages(
        &self,
        vma: &Vma,
        child: &AddressSpace,
        set: &VmaSet,
        gather: &mut Gather,
    ) -> Result<(), NoMemory> {
        let mut at = vma.start;
        while at < vma.end {
            let tables = self.tables.lock();
            // Nobody else knows the child, so the order of the two locks cannot matter.
            let mut childs = child.tables.lock();
            let mut failed = None;
            at = tables.walk(at..vma.end, 512, |address, slot| {
                let value = Entry(slot.load(Ordering::SeqCst));
                if failed.is_some()
                    || !value.is_mapped()
                    || !(value.has(Entry::ANON) || value.has(Entry::SPECIAL))
                {
                    return;
                }
                if value.has(Entry::WRITABLE) {
                    slot.fetch_and(!Entry::WRITABLE, Ordering::SeqCst);
                    gather.flush_range(address..address + super::PAGE);
                }
                let shared = value.without(Entry::WRITABLE | Entry::USERFAULT_WP);
                if let Err(why) = childs.install(address, shared) {
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
            match failed {
                None => {}
                Some((_, NoTable::NoMemory)) => return Err(NoMemory),
                Some((address, NoTable::SlotShared)) => {
                    child.take_slot(set, address)?;
                    at = address;
                }
            }
        }
        Ok(())
    }
}
