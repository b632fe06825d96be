//! What resolves faults: putting pages there, permitting stores, poisoning.

use alloc::vec::Vec;
use core::ops::Range;

use super::super::backing::PageCache;
use super::super::entry::Entry;
use super::super::fault::{Access, FaultError, install, leaf_bits, own_bits, zero_page};
use super::super::space::Areas;
use super::super::tables::{NoTable, Tables};
use super::super::vma::{Kind, VmFlags, Vma};
use super::super::{AddressSpace, PAGE};
use super::Context;
use crate::errno::{Errno, Result};
use crate::hugetlb::HugeArea;
use crate::memory::fallible::{self, TryVec};
use crate::memory::frame::{Frame, Use};
use crate::memory::{PAGE_SIZE, reserve};
use crate::mm::uaccess;
use crate::sched;
use core::sync::atomic::Ordering;

/// What is put where a page is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Filling {
    /// UFFDIO_COPY: the bytes at an address of the caller's.
    Copy(u64),
    /// UFFDIO_ZEROPAGE.
    Zeroes,
    /// UFFDIO_CONTINUE: the page that the file has.
    Continue,
    /// UFFDIO_POISON: nothing, and who comes there gets SIGBUS.
    Poison,
}

/// How far a call came, in bytes, and what stopped it.
pub(super) struct Progress {
    pub done: u64,
    pub stopped: Option<Errno>,
}

/// Why a page could not be put there.
enum Stop {
    Failed(Errno),
    /// When the slot was made the address space's own it can be.
    SlotShared,
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

impl From<NoTable> for Stop {
    fn from(why: NoTable) -> Self {
        match why {
            NoTable::NoMemory => Self::Failed(Errno::ENOMEM),
            NoTable::SlotShared => Self::SlotShared,
        }
    }
}

impl Context {
    /// Fills `range` page by page, and withholds stores from the pages if `withhold`.
    pub(super) fn fill(&self, range: Range<u64>, filling: Filling, withhold: bool) -> Result<Progress> {
        let space = self.space()?;
        let (granule, user) = {
            let areas = space.read();
            self.check_unchanged()?;
            let vma = check(&areas, &range, filling, withhold)?;
            // What comes into a file stays there.
            let shared = vma.flags.contains(VmFlags::SHARED);
            (vma.granule(), if shared { Use::File } else { Use::Anon })
        };
        let mut at = range.start;
        while at < range.end {
            let from = match filling {
                Filling::Copy(source) => Filling::Copy(source + (at - range.start)),
                other => other,
            };
            if let Err(errno) = space.fill_page(self, &range, at, (granule, user), from, withhold) {
                return Ok(Progress { done: at - range.start, stopped: Some(errno) });
            }
            at += granule;
            sched::cond_resched();
            if crate::process::current().kill_pending() {
                return Ok(Progress { done: at - range.start, stopped: Some(Errno::EINTR) });
            }
        }
        Ok(Progress { done: at - range.start, stopped: None })
    }

    /// UFFDIO_WRITEPROTECT.
    pub(super) fn write_protect(&self, range: Range<u64>, withhold: bool) -> Result<()> {
        let space = self.space()?;
        let areas = space.read();
        self.check_unchanged()?;
        let mut met = false;
        for vma in areas.set.overlapping(range.clone()) {
            if !vma.flags.contains(VmFlags::USERFAULT_WP) {
                return Err(Errno::ENOENT);
            }
            met = true;
            let part = vma.start.max(range.start)..vma.end.min(range.end);
            if withhold {
                space.withhold_in(&areas.set, vma, part)?;
            } else {
                space.permit_in(vma, part)?;
            }
        }
        if met { Ok(()) } else { Err(Errno::ENOENT) }
    }
}

/// The registered area that has all of the range, if it can be filled so.
fn check<'a>(areas: &'a Areas, range: &Range<u64>, filling: Filling, withhold: bool) -> Result<&'a Vma> {
    let vma = areas.set.find(range.start).filter(|vma| range.end <= vma.end).ok_or(Errno::ENOENT)?;
    if vma.userfault.is_none() {
        return Err(Errno::ENOENT);
    }
    if withhold && !vma.flags.contains(VmFlags::USERFAULT_WP) {
        return Err(Errno::EINVAL);
    }
    let wrong_size = (range.start | range.end) & (vma.granule() - 1) != 0;
    match (&vma.kind, filling) {
        (Kind::Special(_), _) | (Kind::Anonymous, Filling::Continue) => Err(Errno::EINVAL),
        (Kind::Huge(_), Filling::Zeroes) => Err(Errno::EINVAL),
        _ if wrong_size => Err(Errno::EINVAL),
        _ => Ok(vma),
    }
}

impl AddressSpace {
    fn fill_page(
        &self,
        context: &Context,
        range: &Range<u64>,
        at: u64,
        (granule, user): (u64, Use),
        filling: Filling,
        withhold: bool,
    ) -> Result<()> {
        // For what the kernel notes of the page.
        reserve::ask(PAGE_SIZE)?;
        // The content first, without any lock: it may have to be faulted in.
        let content = match filling {
            Filling::Copy(source) => copy_in(source, granule, user)?,
            Filling::Zeroes => {
                let mut zeroes = Vec::new();
                zeroes.try_push(Frame::alloc_zeroed(user).ok_or(Errno::ENOMEM)?)?;
                zeroes
            }
            Filling::Continue | Filling::Poison => Vec::new(),
        };
        loop {
            let areas = self.read();
            // The areas may have changed since.
            context.check_unchanged()?;
            let vma = check(&areas, range, filling, withhold)?;
            if vma.granule() != granule {
                return Err(Errno::ENOENT);
            }
            let filled = match &vma.kind {
                Kind::Huge(huge) => fill_huge(huge, at, filling, &content, withhold),
                _ if filling == Filling::Poison => self.poison(vma, at),
                _ if filling == Filling::Continue => self.map_cached(vma, at, withhold),
                Kind::File(area) if vma.flags.contains(VmFlags::SHARED) => {
                    self.fill_shared(&areas, vma, &**area.link.cache(), at, &content, withhold)
                }
                _ => self.install_private(vma, at, filling, &content, withhold),
            };
            match filled {
                Ok(()) => return Ok(()),
                Err(Stop::Failed(errno)) => return Err(errno),
                Err(Stop::SlotShared) => self.take_slot(&areas.set, at).map_err(|_| Errno::ENOMEM)?,
            }
        }
    }

    /// Puts a page into the file, and maps it.
    fn fill_shared(
        &self,
        areas: &Areas,
        vma: &Vma,
        cache: &dyn PageCache,
        at: u64,
        content: &[Frame],
        withhold: bool,
    ) -> Result<(), Stop> {
        {
            let mut tables = self.tables.lock();
            if tables.leaf(at).is_mapped() {
                return Err(Errno::EEXIST.into());
            }
            // What can fail comes before the page: whoever came again would find it, and take it for another's. The table stays as long
            // as the areas lock is held.
            tables.find_or_make(at, 1)?;
        }
        cache.insert(vma.index_of(at), content.first().ok_or(Errno::ENOMEM)?)?;
        match self.map_cached(vma, at, withhold) {
            // An access was faster, and has mapped this page.
            Err(Stop::Failed(Errno::EEXIST)) if withhold => {
                Ok(self.withhold_in(&areas.set, vma, at..at + PAGE)?)
            }
            Err(Stop::Failed(Errno::EEXIST)) => Ok(()),
            mapped => mapped,
        }
    }

    /// A page of the program's own.
    fn install_private(
        &self,
        vma: &Vma,
        at: u64,
        filling: Filling,
        content: &[Frame],
        withhold: bool,
    ) -> Result<(), Stop> {
        if !vma.is_touched() {
            vma.touched.store(true, Ordering::SeqCst);
        }
        let cache = match &vma.kind {
            Kind::File(area) => {
                // A truncation takes copies, too. Before the number of unmappings is read: see `backing`.
                area.link.enlist(vma.start, vma.pages());
                Some(area.link.cache())
            }
            _ => None,
        };
        let unmappings = || cache.map(|cache| cache.mappings().unmappings());
        let mut tables = loop {
            let before = unmappings();
            if cache.is_some_and(|cache| vma.index_of(at) >= cache.size().div_ceil(PAGE)) {
                return Err(Errno::EFAULT.into());
            }
            let tables = self.tables.lock();
            if unmappings() == before {
                break tables;
            }
            // A truncation may have been here already.
        };
        let mut place = Place::empty(&mut tables, at, withhold)?;
        if filling == Filling::Zeroes && matches!(vma.kind, Kind::Anonymous) {
            return place.put_entry(Entry::new(zero_page(), leaf_bits(vma.flags) | Entry::SPECIAL));
        }
        let frame = content.first().ok_or(Errno::ENOMEM)?.clone();
        place.put(frame, own_bits(vma.flags))
    }

    /// Maps the page that the file has.
    fn map_cached(&self, vma: &Vma, at: u64, withhold: bool) -> Result<(), Stop> {
        let Kind::File(area) = &vma.kind else { return Err(Errno::EINVAL.into()) };
        let cache: &dyn PageCache = &**area.link.cache();
        // Before the number of unmappings is read: see `backing`.
        area.link.enlist(vma.start, vma.pages());
        let mut bits = leaf_bits(vma.flags);
        if cache.is_shmem() {
            bits |= Entry::SHMEM;
        }
        if vma.flags.contains(VmFlags::SHARED | VmFlags::WRITE) {
            bits |= Entry::WRITABLE;
        }
        loop {
            let unmappings = cache.mappings().unmappings();
            let index = vma.index_of(at);
            cache.cached(index).ok_or(Errno::EFAULT)?;
            // One that was only allocated is data from now on.
            let page = cache.page(index, false)?;
            let mut tables = self.tables.lock();
            if cache.mappings().unmappings() != unmappings {
                // The page may be gone from the file, see `backing`.
                continue;
            }
            return Place::empty(&mut tables, at, withhold)?.put(page, bits);
        }
    }

    fn poison(&self, vma: &Vma, at: u64) -> Result<(), Stop> {
        // A child of private memory gets it: see `fork`.
        if !vma.flags.contains(VmFlags::SHARED) && !vma.is_touched() {
            vma.touched.store(true, Ordering::SeqCst);
        }
        let mut tables = self.tables.lock();
        let place = Place::empty(&mut tables, at, false)?;
        place.tables.find_or_make(at, 1)?.store(Entry::POISON, Ordering::SeqCst);
        Ok(())
    }
}

/// A place for a page in the tables, empty.
struct Place<'t> {
    tables: &'t mut Tables,
    at: u64,
}

impl<'t> Place<'t> {
    /// `EEXIST` if there is a page. What a marker said before counts no more.
    fn empty(tables: &'t mut Tables, at: u64, withhold: bool) -> Result<Self, Stop> {
        if tables.leaf(at).is_mapped() {
            return Err(Errno::EEXIST.into());
        }
        let marker = if withhold { Entry::USERFAULT_WP } else { 0 };
        tables.find_or_make(at, 1)?.store(marker, Ordering::SeqCst);
        Ok(Self { tables, at })
    }

    fn put(&mut self, frame: Frame, bits: u64) -> Result<(), Stop> {
        Ok(install(self.tables, self.at, frame, bits)?)
    }

    fn put_entry(&mut self, entry: Entry) -> Result<(), Stop> {
        Ok(self.tables.install(self.at, entry)?)
    }
}

/// Copies `len` bytes of the caller's memory into frames for `user`.
fn copy_in(source: u64, len: u64, user: Use) -> Result<Vec<Frame>> {
    let count = (len / PAGE) as usize;
    let mut frames = fallible::with_capacity(count)?;
    for index in 0..count {
        let frame = Frame::alloc(user).ok_or(Errno::ENOMEM)?;
        let from = source as usize + index * PAGE_SIZE;
        // SAFETY: the frame has a page's bytes, and is ours alone.
        if unsafe { uaccess::copy_from_user_raw(frame.as_ptr(), from, PAGE_SIZE) } != 0 {
            return Err(Errno::EFAULT);
        }
        frames.push(frame);
        sched::cond_resched();
    }
    Ok(frames)
}

fn fill_huge(
    huge: &HugeArea,
    at: u64,
    filling: Filling,
    content: &[Frame],
    withhold: bool,
) -> Result<(), Stop> {
    let size = huge.page_size();
    // What the file has not got cannot be shown, whatever the mapping has instead: as Linux.
    if filling == Filling::Continue && !huge.is_in_file(at) {
        return Err(Errno::EFAULT.into());
    }
    if huge.is_resident(at) {
        return Err(Errno::EEXIST.into());
    }
    if filling == Filling::Poison {
        return if huge.poison(at)? { Ok(()) } else { Err(Errno::EEXIST.into()) };
    }
    // Before the page is there.
    let was_withheld = huge.is_withheld(at);
    if withhold != was_withheld {
        huge.withhold_stores(at..at + size, withhold)?;
    }
    let stopped = |why| match why {
        FaultError::SlotShared => Stop::SlotShared,
        // No free page of the pool.
        FaultError::Sigbus | FaultError::OutOfMemory => Stop::Failed(Errno::ENOMEM),
        _ => Stop::Failed(Errno::EFAULT),
    };
    if filling == Filling::Continue {
        let poisoned = huge.is_poisoned(at);
        huge.lift_poison(at);
        let mapped = huge.fault(at, Access::Read);
        // Where no page came, the mark is as it was. Where only the slot was shared, this is done again.
        if withhold != was_withheld
            && mapped.as_ref().is_err_and(|why| !matches!(why, FaultError::SlotShared))
        {
            huge.withhold_stores(at..at + size, was_withheld)?;
        }
        return mapped.map_err(|why| match why {
            FaultError::Poisoned(_) => Stop::Failed(Errno::EIO),
            // Where the page does not come, it is again what it was.
            why if poisoned && !matches!(why, FaultError::SlotShared) => {
                huge.poison(at).map_or_else(Stop::Failed, |_| stopped(why))
            }
            why => stopped(why),
        });
    }
    let write = |to: *mut u8| {
        for (index, frame) in content.iter().enumerate() {
            // A page of 1 GiB takes long; only locks that may be slept with are held.
            if index % 64 == 63 {
                sched::cond_resched();
            }
            // SAFETY: the page has as many bytes as the frames together, and nobody else knows it yet.
            unsafe { core::ptr::copy_nonoverlapping(frame.as_ptr(), to.add(index * PAGE_SIZE), PAGE_SIZE) };
        }
    };
    let filled = huge.fill(at, &write);
    // Where no page came, the mark is as it was.
    if withhold != was_withheld && !matches!(filled, Ok(true)) {
        huge.withhold_stores(at..at + size, was_withheld)?;
    }
    // Without it the file has the page, and this mapping does not show it.
    if filled.map_err(stopped)? { Ok(()) } else { Err(Errno::EEXIST.into()) }
}
