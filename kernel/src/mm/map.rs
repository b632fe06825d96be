//! mmap(2): making areas.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::AtomicBool;

use bitflags::bitflags;
use linux_raw_sys::general as abi;

use super::anonymous::SharedMemory;
use super::backing::{Backing, Link, PageCache};
use super::fault::{Access, FaultError};
use super::layout::{self, MIN_ADDRESS, Placement, Sums};
use super::mshare::{self, Region, RegionArea};
use super::policy::Policy;
use super::shm::Attachment;
use super::space::{AddressSpace, Areas, Leftovers};
use super::vma::{FileArea, Kind, VmFlags, Vma};
use super::{PAGE, TASK_SIZE, accounting, lock, page_up};
use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::fs::seals::{Arriving, Seals};
use crate::hugetlb;
use crate::memory::{PAGE_SHIFT, PAGE_SIZE, reserve};
use crate::process;

bitflags! {
    /// `MAP_*`, apart from the type of mapping.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MapFlags: u32 {
        const FIXED = abi::MAP_FIXED;
        const ANONYMOUS = abi::MAP_ANONYMOUS;
        const GROWSDOWN = abi::MAP_GROWSDOWN;
        const DENYWRITE = abi::MAP_DENYWRITE;
        const EXECUTABLE = abi::MAP_EXECUTABLE;
        const LOCKED = abi::MAP_LOCKED;
        const NORESERVE = abi::MAP_NORESERVE;
        const POPULATE = abi::MAP_POPULATE;
        const NONBLOCK = abi::MAP_NONBLOCK;
        const STACK = abi::MAP_STACK;
        const HUGETLB = abi::MAP_HUGETLB;
        const SYNC = abi::MAP_SYNC;
        const FIXED_NOREPLACE = abi::MAP_FIXED_NOREPLACE;
        /// Below 4 GiB... 2 GiB to be exact.
        const LOW = 0x40;
    }
}

/// The flags that MAP_SHARED_VALIDATE knows.
const VALIDATED: u32 = MapFlags::all().bits() & !(abi::MAP_SYNC | abi::MAP_FIXED_NOREPLACE);
/// Private memory that the kernel may empty when memory is short, which this one never does; newer than `linux_raw_sys`.
const MAP_DROPPABLE: u32 = 8;

/// What mmap(2) was asked for.
pub struct MapRequest {
    /// Hint, or the address itself with FIXED.
    pub address: u64,
    /// Bytes.
    pub len: u64,
    /// `PROT_*`.
    pub prot: u32,
    /// `MAP_*`, with the type.
    pub flags: u32,
    /// The file, for what is not anonymous.
    pub file: Option<Arc<File>>,
    /// Byte offset in the file.
    pub offset: u64,
}

/// What will be behind the new area.
pub(super) enum Source {
    Anonymous,
    Cache { cache: Arc<dyn PageCache>, file: Option<Arc<File>>, attachment: Option<Attachment> },
    Huge { file: Arc<hugetlb::HugeFile>, opened: Option<Arc<File>>, attachment: Option<Attachment> },
    Region { region: Arc<Region>, file: Arc<File> },
}

/// READ, WRITE, EXEC for `PROT_*`.
pub(super) fn access_flags(prot: u32) -> VmFlags {
    let mut flags = VmFlags::empty();
    flags.set(VmFlags::READ, prot & abi::PROT_READ != 0);
    flags.set(VmFlags::WRITE, prot & abi::PROT_WRITE != 0);
    flags.set(VmFlags::EXEC, prot & abi::PROT_EXEC != 0);
    flags
}

pub(super) const MAY_ALL: VmFlags = VmFlags::MAY_READ.union(VmFlags::MAY_WRITE).union(VmFlags::MAY_EXEC);

/// A mapping that has been checked: what is to be made, and where.
pub(super) struct Plan {
    pub hint: u64,
    pub len: u64,
    pub fixed: bool,
    pub no_replace: bool,
    pub low: bool,
    pub flags: VmFlags,
    /// Page index in the source.
    pub first: u64,
    pub source: Source,
    /// Keeps the file from being sealed until the mapping is there.
    pub _arriving: Option<Arriving>,
}

impl AddressSpace {
    /// mmap(2): returns the address.
    pub fn map(&self, request: MapRequest) -> Result<u64> {
        let flags = MapFlags::from_bits_truncate(request.flags);
        let plan = plan(&request)?;
        let populate = flags.contains(MapFlags::POPULATE) && !flags.contains(MapFlags::NONBLOCK);
        let (len, range) = (plan.len, self.map_plan(plan)?);
        debug_assert_eq!(len, range.end - range.start);
        let locked = {
            let areas = self.read();
            let vma = areas.set.find(range.start);
            vma.is_some_and(|vma| vma.flags & (VmFlags::LOCKED | VmFlags::LOCK_ON_FAULT) == VmFlags::LOCKED)
        };
        if populate || locked {
            // What cannot be populated is found out at the first touch.
            let _ = self.populate(range.clone());
        }
        Ok(range.start)
    }

    /// Makes the area that `plan` says.
    pub(super) fn map_plan(&self, plan: Plan) -> Result<Range<u64>> {
        let mut leftovers = Leftovers::default();
        let mut areas = self.write();
        let result = self.map_locked(&mut areas, plan, &mut leftovers);
        drop(areas);
        result
    }

    /// As [`AddressSpace::map_plan`], for who has the areas lock.
    pub(super) fn map_locked(
        &self,
        areas: &mut Areas,
        plan: Plan,
        leftovers: &mut Leftovers,
    ) -> Result<Range<u64>> {
        if areas.set.count() > accounting::max_map_count() {
            return Err(Errno::ENOMEM);
        }
        if self.is_region() && matches!(plan.source, Source::Region { .. }) {
            // A region in a region would be reached by tables that only the inner one knows.
            return Err(Errno::EINVAL);
        }
        if process::try_current().is_some_and(|thread| thread.process.denies_gain(plan.flags, plan.flags)) {
            return Err(Errno::EACCES);
        }
        let start = if plan.fixed { self.fixed_place(areas, &plan)? } else { place(areas, &plan)? };
        let range = start..start + plan.len;
        // The books of the address space have no answer to an area that wraps around.
        assert!(range.start < range.end && range.end <= TASK_SIZE, "an area at {range:#x?}");
        let pages = plan.len >> PAGE_SHIFT;
        let mut flags = plan.flags | areas.new_flags;
        if matches!(plan.source, Source::Huge { .. } | Source::Region { .. }) {
            flags &= !(VmFlags::LOCKED | VmFlags::LOCK_ON_FAULT | VmFlags::ACCOUNT);
        }
        // What MAP_FIXED replaces does not count, and stays when the limits forbid what comes in its place: as Linux since 6.12. A failure
        // after this takes it away there as well.
        if let Err(error) = layout::charge(&areas.set, flags, pages) {
            if !plan.fixed {
                return Err(error);
            }
            if areas.set.has_sealed(range.clone()) {
                return Err(Errno::EPERM);
            }
            Self::may_cut_out(areas, &range)?;
            layout::charge_instead(&areas.set, Sums::of(&areas.set, &range), flags, pages)?;
        }
        let uncharge = || {
            if flags.contains(VmFlags::ACCOUNT) {
                accounting::uncommit(pages);
            }
        };
        if plan.fixed {
            self.unmap_locked(areas, range.clone(), leftovers).inspect_err(|_| uncharge())?;
        }
        let kind = match plan.source {
            Source::Anonymous => Kind::Anonymous,
            Source::Cache { cache, file, attachment } => {
                let writable = flags.contains(VmFlags::SHARED | VmFlags::MAY_WRITE);
                let link = Link::new(cache, self.weak().clone(), plan.first, writable);
                Kind::File(Box::new(FileArea { link, file, attachment }))
            }
            Source::Huge { file, opened, attachment } => {
                let offset = plan.first << PAGE_SHIFT;
                let keeps = hugetlb::HugeLeftover::new(file, opened, attachment);
                match hugetlb::HugeArea::new(&mut areas.huge, keeps, range.clone(), offset, flags) {
                    Ok(area) => Kind::Huge(Box::new(area)),
                    Err(error) => {
                        uncharge();
                        return Err(error);
                    }
                }
            }
            Source::Region { region, file } => {
                Kind::Region(Box::new(RegionArea::attach(self, region, file, start, flags)))
            }
        };
        // Huge pages and regions never are, and the search for neighbours costs as much as the rest.
        let is_mergeable = !matches!(kind, Kind::Huge(_) | Kind::Region(_));
        let first = if matches!(kind, Kind::Anonymous) { start >> PAGE_SHIFT } else { plan.first };
        let area = Vma {
            start,
            end: range.end,
            flags,
            first,
            kind,
            policy: Policy::default(),
            touched: AtomicBool::new(false),
            userfault: None,
        };
        self.attach_windows(&area);
        areas.set.insert(area);
        if is_mergeable {
            areas.set.merge(range.clone());
        }
        Ok(range)
    }

    fn fixed_place(&self, areas: &Areas, plan: &Plan) -> Result<u64> {
        let (start, len) = (plan.hint, plan.len);
        let granule = match &plan.source {
            Source::Huge { file, .. } => file.page_size(),
            Source::Region { .. } => mshare::GRANULE,
            _ => PAGE,
        };
        check_fixed(start, len, granule)?;
        if plan.no_replace && areas.set.is_occupied(start..start + len) {
            return Err(Errno::EEXIST);
        }
        Ok(start)
    }

    /// Faults all pages of `range` in, as far as the areas go; stops at the first that cannot be.
    pub fn populate(&self, range: Range<u64>) -> Result<(), FaultError> {
        let mut at = range.start;
        while at < range.end {
            let (write, end, step) = {
                let areas = self.read();
                let Some(vma) = areas.set.find(at) else { return Err(FaultError::NotMapped) };
                if let Kind::Region(region) = &vma.kind {
                    let end = vma.end.min(range.end);
                    let populating = region.populating(vma, at..end);
                    drop(areas);
                    populating?.run()?;
                    at = end;
                    crate::sched::cond_resched();
                    continue;
                }
                let write = vma.flags & (VmFlags::WRITE | VmFlags::SHARED) == VmFlags::WRITE;
                if !vma.flags.intersects(VmFlags::ACCESS) {
                    return Err(FaultError::Access);
                }
                if vma.flags.contains(VmFlags::SECRET) {
                    // It comes by the program's own accesses.
                    return Err(FaultError::Sigbus);
                }
                (write, vma.end.min(range.end), vma.page_size())
            };
            while at < end {
                // For what the kernel notes of the page.
                reserve::ask(PAGE_SIZE).map_err(|_| FaultError::OutOfMemory)?;
                self.fault(at, if write { Access::Write } else { self.populating_read(at) })?;
                at = (at & !(step - 1)) + step;
                crate::sched::cond_resched();
                if process::try_current().is_some_and(|thread| thread.kill_pending()) {
                    return Err(FaultError::OutOfMemory);
                }
            }
        }
        Ok(())
    }

    /// The weakest access that the area at `address` allows.
    fn populating_read(&self, address: u64) -> Access {
        let areas = self.read();
        match areas.set.find(address).map(|vma| vma.flags) {
            Some(flags) if flags & VmFlags::ACCESS == VmFlags::EXEC => Access::Execute,
            _ => Access::Read,
        }
    }
}

fn place(areas: &mut Areas, plan: &Plan) -> Result<u64> {
    let place = match &plan.source {
        Source::Huge { file, .. } => {
            let shared = plan.flags.contains(VmFlags::SHARED);
            Placement::huge(plan.len, file.page_size(), plan.first << PAGE_SHIFT, shared)
        }
        Source::Cache { cache, .. } if cache.content().is_some() => {
            Placement::windows(plan.len, plan.first << PAGE_SHIFT)
        }
        Source::Region { .. } => Placement::region(plan.len),
        _ => Placement::pages(plan.len),
    };
    if plan.low {
        return layout::choose_low(areas, plan.hint, &place);
    }
    layout::choose(areas, plan.hint, &place)
}

/// Whether an area may be at a place that the caller names, whatever is there.
fn check_fixed(start: u64, len: u64, granule: u64) -> Result<()> {
    if !start.is_multiple_of(granule) {
        return Err(Errno::EINVAL);
    }
    if len > TASK_SIZE || start > TASK_SIZE - len {
        return Err(Errno::ENOMEM);
    }
    if start < MIN_ADDRESS && !process::current().credentials().capable(abi::CAP_SYS_RAWIO) {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// Checks a request, and finds out what it is about.
fn plan(request: &MapRequest) -> Result<Plan> {
    let map = MapFlags::from_bits_truncate(request.flags);
    let kind = request.flags & abi::MAP_TYPE;
    if request.len == 0 {
        return Err(Errno::EINVAL);
    }
    let mut flags = access_flags(request.prot) | MAY_ALL;
    let anonymous = map.contains(MapFlags::ANONYMOUS);
    let shared = match kind {
        abi::MAP_PRIVATE => false,
        abi::MAP_SHARED => true,
        MAP_DROPPABLE if anonymous && !map.contains(MapFlags::LOCKED) => {
            flags |= VmFlags::NO_RESERVE | VmFlags::DONT_DUMP | VmFlags::WIPE_ON_FORK | VmFlags::DROPPABLE;
            false
        }
        abi::MAP_SHARED_VALIDATE if !anonymous || map.contains(MapFlags::HUGETLB) => {
            if request.flags & !(VALIDATED | abi::MAP_TYPE | abi::MAP_HUGE_MASK << abi::MAP_HUGE_SHIFT) != 0 {
                return Err(Errno::EOPNOTSUPP);
            }
            true
        }
        _ => return Err(Errno::EINVAL),
    };
    let granule = match () {
        () if anonymous && map.contains(MapFlags::HUGETLB) => huge_size(request.flags)?,
        () => match &request.file {
            Some(file) => match hugetlb::page_size_of(file) {
                Some(size) => size,
                None if map.contains(MapFlags::HUGETLB) => return Err(Errno::EINVAL),
                None => PAGE,
            },
            None => PAGE,
        },
    };
    let huge = anonymous && map.contains(MapFlags::HUGETLB);
    let overflow = if huge { Errno::EINVAL } else { Errno::ENOMEM };
    let len = request.len.checked_next_multiple_of(granule).ok_or(overflow)?;
    if len > TASK_SIZE {
        return Err(Errno::ENOMEM);
    }
    if huge {
        // It is a file without a name, and its offset counts as a file's.
        check_end(request.offset, len)?;
        if !request.offset.is_multiple_of(granule) {
            return Err(Errno::EINVAL);
        }
    }
    flags.set(VmFlags::SHARED, shared);
    if map.contains(MapFlags::NORESERVE) && !accounting::is_strict() {
        flags |= VmFlags::NO_RESERVE;
    }
    if map.contains(MapFlags::LOCKED) {
        lock::check_may_lock()?;
        flags |= VmFlags::LOCKED;
    }
    let fixed = map.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE);
    if fixed {
        // Before the file is asked: as Linux, where a bad address is told before a seal is.
        check_fixed(request.address, len, granule)?;
    }
    let mut arriving = None;
    let (first, source) = if anonymous {
        if map.contains(MapFlags::GROWSDOWN) {
            if shared || map.contains(MapFlags::HUGETLB) {
                return Err(Errno::EINVAL);
            }
            flags |= VmFlags::GROWS_DOWN;
        }
        (0, anonymous_source(map, shared, granule, len, &flags)?)
    } else {
        if map.contains(MapFlags::GROWSDOWN) {
            return Err(Errno::EINVAL);
        }
        arriving = admit(request, len, &mut flags)?;
        file_source(request, len, &mut flags)?
    };
    let accountable = flags & (VmFlags::WRITE | VmFlags::SHARED | VmFlags::NO_RESERVE) == VmFlags::WRITE;
    flags.set(VmFlags::ACCOUNT, accountable && !matches!(source, Source::Huge { .. }));
    Ok(Plan {
        hint: request.address,
        len,
        fixed,
        no_replace: map.contains(MapFlags::FIXED_NOREPLACE),
        low: map.contains(MapFlags::LOW),
        flags,
        first,
        source,
        _arriving: arriving,
    })
}

/// The page size that `MAP_HUGE_*` or `SHM_HUGE_*` bits name.
pub fn huge_size(flags: u32) -> Result<u64> {
    let bits = flags >> abi::MAP_HUGE_SHIFT & abi::MAP_HUGE_MASK;
    let size = if bits == 0 { hugetlb::default_page_size() } else { 1u64.checked_shl(bits).unwrap_or(0) };
    if hugetlb::is_page_size(size) { Ok(size) } else { Err(Errno::EINVAL) }
}

fn anonymous_source(map: MapFlags, shared: bool, granule: u64, len: u64, flags: &VmFlags) -> Result<Source> {
    if map.contains(MapFlags::HUGETLB) {
        let file = hugetlb::HugeFile::anonymous(granule, len)?;
        return Ok(Source::Huge { file, opened: None, attachment: None });
    }
    if !shared {
        return Ok(Source::Anonymous);
    }
    let cache = SharedMemory::new(len, !flags.contains(VmFlags::NO_RESERVE))?;
    Ok(Source::Cache { cache, file: None, attachment: None })
}

/// Whether the file may be mapped so, by how it is opened and by its seals: without leave to store it is a mapping to look at, and stays one.
fn admit(request: &MapRequest, len: u64, flags: &mut VmFlags) -> Result<Option<Arriving>> {
    let file = request.file.as_ref().ok_or(Errno::EBADF)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    check_end(request.offset, len)?;
    if !file.readable() {
        return Err(Errno::EACCES);
    }
    let mount = &file.path().mount;
    if mount.has(abi::MS_NOEXEC) || mount.superblock.ops.without_programs() {
        if flags.contains(VmFlags::EXEC) {
            return Err(Errno::EPERM);
        }
        *flags -= VmFlags::MAY_EXEC;
    }
    let wants_write = request.prot & abi::PROT_WRITE != 0;
    if !flags.contains(VmFlags::SHARED) {
        return Ok(None);
    }
    if !file.writable() {
        if wants_write {
            return Err(Errno::EACCES);
        }
        *flags -= VmFlags::MAY_WRITE;
        return Ok(None);
    }
    match file.ops().seals().map(Seals::admit_writable_mapping).transpose() {
        Err(Errno::EPERM) if !wants_write => {
            *flags -= VmFlags::MAY_WRITE;
            Ok(None)
        }
        admitted => admitted,
    }
}

/// `EOVERFLOW` when no file can have a byte as far behind.
fn check_end(offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => Err(Errno::EOVERFLOW),
    }
}

fn file_source(request: &MapRequest, len: u64, flags: &mut VmFlags) -> Result<(u64, Source)> {
    let file = request.file.as_ref().ok_or(Errno::EBADF)?;
    let shared = flags.contains(VmFlags::SHARED);
    let backing = file.ops().mmap(file, request.offset, len)?;
    let first = request.offset >> PAGE_SHIFT;
    Ok(match backing {
        // As Linux for such files.
        Backing::PageCache(cache)
            if shared && flags.contains(VmFlags::MAY_WRITE) && !cache.takes_stores() =>
        {
            return Err(Errno::EINVAL);
        }
        Backing::PageCache(cache) if cache.is_secret() && !shared => return Err(Errno::EINVAL),
        Backing::PageCache(cache) => {
            if cache.is_secret() {
                *flags |= VmFlags::SECRET | VmFlags::DONT_DUMP;
            }
            (first, Source::Cache { cache, file: Some(file.clone()), attachment: None })
        }
        Backing::Zero if shared => {
            let cache = SharedMemory::new(len, !flags.contains(VmFlags::NO_RESERVE))?;
            (0, Source::Cache { cache, file: None, attachment: None })
        }
        Backing::Zero => (0, Source::Anonymous),
        Backing::Huge(huge) => {
            if !request.offset.is_multiple_of(huge.page_size()) {
                return Err(Errno::EINVAL);
            }
            (first, Source::Huge { file: huge, opened: Some(file.clone()), attachment: None })
        }
        Backing::Region(_) if !shared => return Err(Errno::EINVAL),
        Backing::Region(region) => (0, Source::Region { region, file: file.clone() }),
    })
}

/// The length of a range of whole pages from `start` on, for the calls that take one: `EINVAL` for an unaligned start, `ENOMEM` for a
/// range that leaves user space.
pub(super) fn page_range(start: u64, len: u64) -> Result<Range<u64>> {
    if !start.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let len = page_up(len).ok_or(Errno::ENOMEM)?;
    let end = start.checked_add(len).filter(|end| *end <= TASK_SIZE).ok_or(Errno::ENOMEM)?;
    Ok(start..end)
}
