//! Virtual memory areas: the ranges of an address space, what backs them, and the ordered set of them.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

use bitflags::bitflags;

use super::backing::Link;
use super::gaps::Gaps;
use super::layout::SLOT;
use super::mshare::RegionArea;
use super::policy::Policy;
use super::shm::Attachment;
use super::userfault;
use super::vdso::SpecialPages;
use super::windows::ByFiles;
use super::{AddressSpace, accounting};
use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::hugetlb::{HUGE_FILE, HugeArea};
use crate::memory::{PAGE_SHIFT, PAGE_SIZE};
use crate::sched;

const PAGE: u64 = PAGE_SIZE as u64;

bitflags! {
    /// What an area allows and how it behaves.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct VmFlags: u32 {
        /// PROT_READ.
        const READ = 1 << 0;
        /// PROT_WRITE.
        const WRITE = 1 << 1;
        /// PROT_EXEC.
        const EXEC = 1 << 2;
        /// MAP_SHARED.
        const SHARED = 1 << 3;
        /// mprotect(2) may add READ.
        const MAY_READ = 1 << 4;
        /// mprotect(2) may add WRITE.
        const MAY_WRITE = 1 << 5;
        /// mprotect(2) may add EXEC.
        const MAY_EXEC = 1 << 6;
        /// Grows towards lower addresses when touched below: a stack.
        const GROWS_DOWN = 1 << 7;
        /// mlock(2): pages stay resident. Ours always do; this is for the account.
        const LOCKED = 1 << 8;
        /// mlock2(MLOCK_ONFAULT).
        const LOCK_ON_FAULT = 1 << 9;
        /// MADV_DONTFORK: a child does not get it.
        const DONT_FORK = 1 << 10;
        /// MADV_WIPEONFORK: a child gets it empty.
        const WIPE_ON_FORK = 1 << 11;
        /// MADV_DONTDUMP.
        const DONT_DUMP = 1 << 12;
        /// mremap(2) may not grow it.
        const DONT_EXPAND = 1 << 13;
        /// MAP_NORESERVE.
        const NO_RESERVE = 1 << 14;
        /// Its pages count as committed memory.
        const ACCOUNT = 1 << 15;
        /// MADV_SEQUENTIAL.
        const SEQUENTIAL = 1 << 16;
        /// MADV_RANDOM.
        const RANDOM = 1 << 17;
        /// MADV_HUGEPAGE.
        const HUGE_PAGE = 1 << 18;
        /// MADV_NOHUGEPAGE.
        const NO_HUGE_PAGE = 1 << 19;
        /// MADV_MERGEABLE.
        const MERGEABLE = 1 << 20;
        /// MAP_DROPPABLE.
        const DROPPABLE = 1 << 21;
        /// userfaultfd: faults on missing pages are told of.
        const USERFAULT_MISSING = 1 << 22;
        /// userfaultfd: stores to pages from which they are withheld are told of.
        const USERFAULT_WP = 1 << 23;
        /// userfaultfd: faults on pages that the file has are told of.
        const USERFAULT_MINOR = 1 << 24;
        /// All of userfaultfd's.
        const USERFAULT = 0b111 << 22;
        /// mseal(2): it is not changed or unmapped any more.
        const SEALED = 1 << 25;
        /// memfd_secret(2): nobody accesses it but by the program's own page tables.
        const SECRET = 1 << 26;
        /// READ, WRITE and EXEC.
        const ACCESS = 0b111;
    }
}

/// A mapping of base pages of a file, or of shared anonymous memory.
pub struct FileArea {
    pub(super) link: Link,
    /// The open file; `None` for shared anonymous and SysV memory.
    pub(super) file: Option<Arc<File>>,
    /// SysV: counts as one attachment of the segment.
    pub(super) attachment: Option<Attachment>,
}

/// What is behind an area.
pub enum Kind {
    /// Private anonymous memory.
    Anonymous,
    /// Base pages of a page cache.
    File(Box<FileArea>),
    /// Huge pages.
    Huge(Box<HugeArea>),
    /// A region with areas and tables of its own.
    Region(Box<RegionArea>),
    /// Pages of the kernel's: the vDSO and its data.
    Special(&'static SpecialPages),
}

/// One range with the same rights and backing throughout.
pub struct Vma {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) flags: VmFlags,
    /// Page index in the backing of the page at `start`; the page number for anonymous memory.
    pub(super) first: u64,
    pub(super) kind: Kind,
    /// From which nodes its pages are to come.
    pub(super) policy: Policy,
    /// May there be anonymous pages in it? Fork has nothing to copy where there are none.
    pub(super) touched: AtomicBool,
    /// Who is told of its faults, if anybody is; then `flags` say of which.
    pub(super) userfault: Option<Arc<userfault::Context>>,
}

impl Vma {
    /// An anonymous area.
    pub(super) fn anonymous(range: Range<u64>, flags: VmFlags) -> Self {
        Self {
            start: range.start,
            end: range.end,
            flags,
            first: range.start >> PAGE_SHIFT,
            kind: Kind::Anonymous,
            policy: Policy::default(),
            touched: AtomicBool::new(false),
            userfault: None,
        }
    }

    /// Its addresses.
    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Base pages.
    pub fn pages(&self) -> u64 {
        self.len() >> PAGE_SHIFT
    }

    /// Index in its backing of the page at `address`.
    pub fn index_of(&self, address: u64) -> u64 {
        self.first + ((address - self.start) >> PAGE_SHIFT)
    }

    /// From where a page is to come: the area's policy, and the page's number in what it maps.
    pub(super) fn placing(&self, address: u64) -> (Policy, u64) {
        let in_pages = self.page_size().trailing_zeros() as usize - PAGE_SHIFT;
        (self.policy, self.index_of(address) >> in_pages)
    }

    /// Does it consist of huge pages?
    pub fn is_huge(&self) -> bool {
        matches!(self.kind, Kind::Huge(_))
    }

    /// Do the leaves of its pages belong to the address space alone?
    pub fn has_own_leaves(&self) -> bool {
        !matches!(self.kind, Kind::Huge(_) | Kind::Region(_))
    }

    /// Does it consist of huge pages whose tables other processes share?
    pub fn shares_tables(&self) -> bool {
        self.is_huge() && self.flags.contains(VmFlags::SHARED)
    }

    /// Smallest unit that it can be cut at, bytes: all of it for a region.
    pub fn granule(&self) -> u64 {
        match &self.kind {
            Kind::Region(_) => self.len(),
            _ => self.page_size(),
        }
    }

    /// Bytes of its pages.
    pub fn page_size(&self) -> u64 {
        match &self.kind {
            Kind::Huge(huge) => huge.page_size(),
            _ => PAGE,
        }
    }

    /// Bytes of the kernel's own memory that it takes, about: its part of the set's tree, what it consists of, its entry in a file's list,
    /// and shared memory that lives only by it.
    fn kernel_bytes(&self) -> usize {
        const NODE: usize = 2 * size_of::<Vma>();
        const LINK: usize = 160;
        const SHARED_MEMORY: usize = 1024;
        NODE + match &self.kind {
            Kind::Anonymous | Kind::Special(_) => 0,
            Kind::File(area) if area.file.is_none() => size_of::<FileArea>() + SHARED_MEMORY,
            Kind::File(_) => size_of::<FileArea>() + LINK,
            // Memory without a file has one all the same. Of its parts the first counts it.
            Kind::Huge(huge) if huge.file().is_none() && self.first == 0 => {
                2 * size_of::<HugeArea>() + HUGE_FILE
            }
            Kind::Huge(_) => 2 * size_of::<HugeArea>(),
            Kind::Region(_) => size_of::<RegionArea>() + LINK,
        }
    }

    /// Slots that its huge pages are in: each has a table in the end.
    fn windows(&self) -> usize {
        if self.is_huge() { (self.end.div_ceil(SLOT) - self.start / SLOT) as usize } else { 0 }
    }

    /// Is it memory of its process alone that stores go to: what RLIMIT_DATA and the commit limit count?
    pub fn is_private_writable(&self) -> bool {
        self.flags & (VmFlags::WRITE | VmFlags::SHARED) == VmFlags::WRITE
    }

    /// Does the area belong to RLIMIT_DATA?
    pub(super) fn is_data(&self) -> bool {
        self.is_private_writable() && !self.flags.contains(VmFlags::GROWS_DOWN)
    }

    /// Does it hold code of the program or of a library?
    fn is_code(&self) -> bool {
        self.flags & (VmFlags::EXEC | VmFlags::WRITE | VmFlags::GROWS_DOWN) == VmFlags::EXEC
    }

    /// Could there be anonymous pages?
    pub(super) fn is_touched(&self) -> bool {
        self.touched.load(Ordering::SeqCst)
    }

    /// The open file that it maps.
    pub fn file(&self) -> Option<&Arc<File>> {
        match &self.kind {
            Kind::File(area) => area.file.as_ref(),
            Kind::Huge(huge) => huge.file(),
            Kind::Region(region) => Some(region.file()),
            Kind::Anonymous | Kind::Special(_) => None,
        }
    }

    /// Makes it end at `at` and returns the rest, an area of its own. `at` is inside and at a multiple of the granule; `EINVAL`
    /// for another multiple of the base page.
    pub(super) fn split_off(&mut self, at: u64, space: &Weak<AddressSpace>) -> Result<Vma> {
        debug_assert!(self.start < at && at < self.end);
        if !at.is_multiple_of(self.granule()) {
            return Err(Errno::EINVAL);
        }
        let first = self.index_of(at);
        if self.table_windows().is_some()
            && let Some(space) = space.upgrade()
        {
            // The caller works on the space, so this reference is not the last.
            space.leave_cut_window(self, at);
        }
        let kind = match &mut self.kind {
            Kind::Anonymous => Kind::Anonymous,
            Kind::Special(pages) => Kind::Special(pages),
            Kind::File(area) => {
                // The new entry first: an unmapping in between finds the upper part twice, never not at all.
                let pages = (self.end - at) >> PAGE_SHIFT;
                let writable = self.flags.contains(VmFlags::SHARED | VmFlags::MAY_WRITE);
                let link = Link::new(area.link.cache().clone(), space.clone(), first, writable);
                if area.link.is_listed() {
                    link.enlist(at, pages);
                }
                link.join_as(&area.link);
                area.link.resize((at - self.start) >> PAGE_SHIFT);
                Kind::File(Box::new(FileArea {
                    link,
                    file: area.file.clone(),
                    attachment: area.attachment.clone(),
                }))
            }
            Kind::Huge(huge) => Kind::Huge(Box::new(huge.split_off(at)?)),
            // It is attached as a whole, so no address inside is a multiple of its granule.
            Kind::Region(_) => return Err(Errno::EINVAL),
        };
        let upper = Vma {
            start: at,
            end: self.end,
            flags: self.flags,
            first,
            kind,
            policy: self.policy,
            touched: AtomicBool::new(self.is_touched()),
            userfault: self.userfault.clone(),
        };
        self.end = at;
        Ok(upper)
    }

    /// Could `next`, which begins where this ends, be one area with it?
    pub(super) fn can_merge(&self, next: &Vma) -> bool {
        let same_userfault = match (&self.userfault, &next.userfault) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        let alike = self.flags == next.flags && self.policy == next.policy && same_userfault;
        if self.end != next.start || !alike {
            return false;
        }
        match (&self.kind, &next.kind) {
            (Kind::Anonymous, Kind::Anonymous) => true,
            (Kind::File(a), Kind::File(b)) => {
                let same_file = match (&a.file, &b.file) {
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    (None, None) => true,
                    _ => false,
                };
                same_file
                    && Arc::ptr_eq(a.link.cache(), b.link.cache())
                    && a.attachment.is_none()
                    && b.attachment.is_none()
                    && self.index_of(self.end) == next.first
            }
            _ => false,
        }
    }

    /// Takes over the range of `next`, for which `can_merge` was true.
    pub(super) fn merge(&mut self, next: Vma) {
        self.end = next.end;
        if next.is_touched() {
            self.touched.store(true, Ordering::SeqCst);
        }
        if let (Kind::File(area), Kind::File(other)) = (&self.kind, &next.kind) {
            if other.link.is_listed() {
                area.link.enlist(self.start, self.pages());
            }
            area.link.join_as(&other.link);
            area.link.resize(self.pages());
        }
        // Only now its entry in the file's list goes, so no page is ever without one.
        drop(next);
    }

    /// What maps calls it, apart from heap and stack.
    pub(super) fn name(&self) -> Option<String> {
        match &self.kind {
            Kind::Special(pages) => Some(pages.name.into()),
            Kind::File(area) if area.file.is_none() => Some(match &area.attachment {
                Some(attachment) => attachment.name(),
                None => "/dev/zero (deleted)".into(),
            }),
            Kind::Huge(huge) => huge.name(),
            _ => None,
        }
    }
}

/// What the areas of an address space take, about, for those who must not take the areas lock.
#[derive(Default)]
pub struct Costs {
    /// Bytes of the kernel's own memory.
    heap: AtomicUsize,
    /// Slots of huge pages.
    windows: AtomicUsize,
    /// Bytes that came into regions by the process.
    in_regions: AtomicI64,
    /// Pages that tables of files showed when somebody looked last.
    shown: AtomicU64,
    /// Tables of files that showed them.
    showing: AtomicU64,
    /// Bytes in attached regions that nobody else answers for.
    unclaimed: AtomicU64,
}

impl Costs {
    /// Bytes of the kernel's own memory.
    pub fn heap(&self) -> u64 {
        // Relaxed, here and below: statistics.
        self.heap.load(Ordering::Relaxed) as u64
    }

    /// Bytes of pages, tables and areas that came into regions by the process, as far as they are still there, and into regions that it has
    /// attached by processes that are gone.
    pub fn in_regions(&self) -> u64 {
        // Of two changes of one account the second may come here first.
        let brought = self.in_regions.load(Ordering::Relaxed).max(0) as u64;
        brought + self.unclaimed.load(Ordering::Relaxed)
    }

    /// Counts them: so many more, or fewer.
    pub(super) fn change_in_regions(&self, change: i64) {
        self.in_regions.fetch_add(change, Ordering::Relaxed);
    }

    /// Pages that tables of files showed when somebody looked last.
    pub(super) fn shown(&self) -> u64 {
        self.shown.load(Ordering::Relaxed)
    }

    /// Somebody has looked.
    pub(super) fn note_shown(&self, shown: &ByFiles) {
        self.shown.store(shown.pages, Ordering::Relaxed);
        self.showing.store(shown.tables, Ordering::Relaxed);
        self.unclaimed.store(shown.unclaimed, Ordering::Relaxed);
    }

    /// Bytes that files took for the tables that showed base pages when somebody looked last: the tables live by who maps the file, and so do the
    /// places of 512 pages that each of them goes with.
    pub fn file_tables(&self) -> u64 {
        self.showing.load(Ordering::Relaxed) * 2 * PAGE
    }

    /// Bytes that the tables of huge pages take when all are there: its own, and those of its files.
    pub fn huge_tables(&self) -> u64 {
        self.windows.load(Ordering::Relaxed) as u64 * PAGE
    }
}

/// Goes through areas, of which a program may have very many, and gives way after some.
#[derive(Clone)]
struct GivingWay<I> {
    areas: I,
    seen: usize,
}

impl<I> GivingWay<I> {
    fn new(areas: I) -> Self {
        Self { areas, seen: 0 }
    }
}

impl<'a, I: Iterator<Item = &'a Vma>> Iterator for GivingWay<I> {
    type Item = &'a Vma;

    fn next(&mut self) -> Option<&'a Vma> {
        /// Areas between two looks at who else wants to run.
        const STEP: usize = 64;
        self.seen += 1;
        if self.seen.is_multiple_of(STEP) {
            sched::cond_resched();
        }
        self.areas.next()
    }
}

/// What an area adds to the sums of its set, in pages.
struct Addends {
    total: u64,
    data: u64,
    locked: u64,
    stack: u64,
    code: u64,
    sealed: u64,
}

impl Addends {
    fn of(vma: &Vma) -> Self {
        let total = vma.pages();
        let if_so = |is_so: bool| if is_so { total } else { 0 };
        let has = |flag| if_so(vma.flags.contains(flag));
        Self {
            total,
            data: if_so(vma.is_data()),
            locked: has(VmFlags::LOCKED),
            stack: has(VmFlags::GROWS_DOWN),
            code: if_so(vma.is_code()),
            sealed: has(VmFlags::SEALED),
        }
    }
}

/// The areas of an address space in order.
pub struct VmaSet {
    areas: BTreeMap<u64, Vma>,
    /// What is between them; `None` until it is asked for.
    gaps: Option<Gaps>,
    costs: Arc<Costs>,
    /// A region's areas are in no process's limits: it counts as a whole where it is attached.
    pub(super) is_region: bool,
    /// Sum of all areas, pages.
    pub(super) total: u64,
    /// The most that `total` ever was.
    pub(super) peak: u64,
    /// Sum of those that RLIMIT_DATA counts, pages.
    pub(super) data: u64,
    /// Sum of the locked ones, pages.
    pub(super) locked: u64,
    /// Sum of those that grow down, pages.
    pub(super) stack: u64,
    /// Sum of those that are executed and not written, pages.
    pub(super) code: u64,
    /// Sum of the sealed ones, pages.
    pub(super) sealed: u64,
}

impl VmaSet {
    /// No areas.
    pub(super) fn new(is_region: bool) -> Self {
        Self {
            is_region,
            areas: BTreeMap::new(),
            gaps: Some(Gaps::new()),
            costs: Arc::default(),
            total: 0,
            peak: 0,
            data: 0,
            locked: 0,
            stack: 0,
            code: 0,
            sealed: 0,
        }
    }

    /// The free ranges, or `ENOMEM` when they were not known and there is no memory for that.
    pub(super) fn gaps(&mut self) -> Result<&Gaps> {
        let gaps = match self.gaps.take() {
            Some(gaps) => gaps,
            None => Gaps::between(GivingWay::new(self.areas.values()))?,
        };
        Ok(self.gaps.insert(gaps))
    }

    /// The free ranges, if they are known.
    pub(super) fn known_gaps(&self) -> Option<&Gaps> {
        self.gaps.as_ref()
    }

    /// Leaves it to whoever searches the free ranges first to find them: that costs less than keeping them up to date while very many areas
    /// come in.
    pub(super) fn forget_gaps(&mut self) {
        self.gaps = None;
    }

    /// How many areas there are.
    pub fn count(&self) -> usize {
        self.areas.len()
    }

    /// May there be so many areas more as it takes to make a part of `vma` one by itself? What cuts nothing always may, with more than there
    /// may be as well: a last mmap(2) takes a space one beyond the limit, and the limit may have been lowered. `ENOMEM`.
    pub fn allow_cut(&self, vma: &Vma, part: &Range<u64>) -> Result<()> {
        let splits = usize::from(vma.start < part.start) + usize::from(part.end < vma.end);
        let allowed = splits == 0 || self.count() + splits <= accounting::max_map_count();
        if allowed { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// What the areas take.
    pub(super) fn costs(&self) -> Arc<Costs> {
        self.costs.clone()
    }

    /// Puts an area into the map.
    fn add(&mut self, vma: Vma) {
        // Relaxed, here and below: statistics.
        self.costs.heap.fetch_add(vma.kernel_bytes(), Ordering::Relaxed);
        self.costs.windows.fetch_add(vma.windows(), Ordering::Relaxed);
        let replaced = self.areas.insert(vma.start, vma);
        // Its tables would outlive it, and lead to what is a stranger's by then.
        assert!(replaced.is_none(), "two areas at one address");
    }

    /// Takes an area out of the map.
    fn take(&mut self, start: u64) -> Option<Vma> {
        let vma = self.areas.remove(&start)?;
        self.costs.heap.fetch_sub(vma.kernel_bytes(), Ordering::Relaxed);
        self.costs.windows.fetch_sub(vma.windows(), Ordering::Relaxed);
        Some(vma)
    }

    /// In ascending order; not under a spin lock.
    pub fn iter(&self) -> impl Iterator<Item = &Vma> + Clone {
        GivingWay::new(self.areas.values())
    }

    /// The area that contains `address`.
    pub fn find(&self, address: u64) -> Option<&Vma> {
        self.areas.range(..=address).next_back().map(|(_, vma)| vma).filter(|vma| address < vma.end)
    }

    /// The first area that ends after `address`: it contains it or is the next above.
    pub fn find_from(&self, address: u64) -> Option<&Vma> {
        self.find(address).or_else(|| self.areas.range(address..).next().map(|(_, vma)| vma))
    }

    /// The first area that has a byte in `range`; none in an empty one. Who goes through a range by its parts ends so, whether or not the last
    /// area reaches beyond.
    pub fn find_in(&self, range: Range<u64>) -> Option<&Vma> {
        if range.is_empty() {
            return None;
        }
        self.find_from(range.start).filter(|vma| vma.start < range.end)
    }

    /// As [`VmaSet::find_from`], where one thread looks for the same area again and again: `hint` is where the last one began.
    pub fn find_near(&self, address: u64, hint: &AtomicU64) -> Option<&Vma> {
        // Relaxed, here and below: the number only says where to look first.
        if let Some(vma) = self.areas.get(&hint.load(Ordering::Relaxed))
            && (vma.start..vma.end).contains(&address)
        {
            return Some(vma);
        }
        let found = self.find_from(address);
        if let Some(vma) = found {
            hint.store(vma.start, Ordering::Relaxed);
        }
        found
    }

    /// The last area that begins before `address`.
    pub fn before(&self, address: u64) -> Option<&Vma> {
        self.areas.range(..address).next_back().map(|(_, vma)| vma)
    }

    /// The areas that have a byte in `range`, in ascending order; not under a spin lock.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = &Vma> {
        GivingWay::new(self.overlapping_at_once(range))
    }

    /// As [`VmaSet::overlapping`], for who must not give way: the range is too small for many areas, or the kernel a checked one.
    pub(super) fn overlapping_at_once(&self, range: Range<u64>) -> impl Iterator<Item = &Vma> {
        let start = self.find(range.start).map_or(range.start, |vma| vma.start);
        self.areas.range(start..range.end.max(start)).map(|(_, vma)| vma)
    }

    /// The last area that has a byte in `range`.
    pub(super) fn last_overlapping(&self, range: &Range<u64>) -> Option<&Vma> {
        self.before(range.end).filter(|vma| range.start < vma.end)
    }

    /// Is any byte of `range` in an area?
    pub fn is_occupied(&self, range: Range<u64>) -> bool {
        self.last_overlapping(&range).is_some()
    }

    /// Is every byte of `range` in an area?
    pub fn covers(&self, range: Range<u64>) -> bool {
        let mut at = range.start;
        for vma in self.overlapping(range.clone()) {
            if vma.start > at {
                return false;
            }
            at = vma.end;
        }
        at >= range.end
    }

    fn count_in(&mut self, adds: &Addends) {
        self.total += adds.total;
        self.peak = self.peak.max(self.total);
        self.data += adds.data;
        self.locked += adds.locked;
        self.stack += adds.stack;
        self.code += adds.code;
        self.sealed += adds.sealed;
    }

    fn count_out(&mut self, adds: &Addends) {
        self.total -= adds.total;
        self.data -= adds.data;
        self.locked -= adds.locked;
        self.stack -= adds.stack;
        self.code -= adds.code;
        self.sealed -= adds.sealed;
    }

    /// Adds an area where there is none.
    pub(super) fn insert(&mut self, vma: Vma) {
        debug_assert!(!self.is_occupied(vma.range()));
        self.count_in(&Addends::of(&vma));
        if let Some(gaps) = &mut self.gaps {
            let below = self.areas.range(..vma.start).next_back().map(|(_, vma)| vma);
            let above = self.areas.range(vma.start..).next().map(|(_, vma)| vma);
            gaps.close(&vma, below, above);
        }
        self.add(vma);
    }

    /// Takes the area that starts at `start` out.
    pub(super) fn remove(&mut self, start: u64) -> Option<Vma> {
        let vma = self.take(start)?;
        self.count_out(&Addends::of(&vma));
        self.open_gap(vma.range());
        Some(vma)
    }

    /// No area is in `range` any more.
    fn open_gap(&mut self, range: Range<u64>) {
        if let Some(gaps) = &mut self.gaps {
            let below = self.areas.range(..range.start).next_back().map(|(_, vma)| vma);
            let above = self.areas.range(range.start..).next().map(|(_, vma)| vma);
            gaps.open(range, below, above);
        }
    }

    /// Takes all areas out, and what was known of the gaps between them: there may be very many of either.
    pub(super) fn take_all(&mut self) -> (BTreeMap<u64, Vma>, Option<Gaps>) {
        self.costs.heap.store(0, Ordering::Relaxed);
        self.costs.windows.store(0, Ordering::Relaxed);
        // Relaxed: statistics; the space is at its end.
        let all = Self { peak: self.peak, ..Self::new(self.is_region) };
        let Self { areas, gaps, .. } = core::mem::replace(self, all);
        (areas, gaps)
    }

    /// Changes the area at `start` in place; its start stays, or `change` moves it where nothing is in the way.
    pub(super) fn update<R>(&mut self, start: u64, change: impl FnOnce(&mut Vma) -> R) -> Option<R> {
        let vma = self.areas.get_mut(&start)?;
        let (range, adds, costs) = (vma.range(), Addends::of(vma), (vma.kernel_bytes(), vma.windows()));
        let result = change(vma);
        let is_same = vma.range() == range;
        let after = (Addends::of(vma), vma.kernel_bytes(), vma.windows());
        self.count_out(&adds);
        if is_same && costs == (after.1, after.2) {
            self.count_in(&after.0);
            return Some(result);
        }
        self.costs.heap.fetch_sub(costs.0, Ordering::Relaxed);
        self.costs.windows.fetch_sub(costs.1, Ordering::Relaxed);
        let vma = self.areas.remove(&start)?;
        if is_same {
            self.count_in(&after.0);
            self.add(vma);
        } else {
            self.open_gap(range);
            self.insert(vma);
        }
        Some(result)
    }

    /// Makes an area begin at `at` when one goes across it.
    pub(super) fn split(&mut self, at: u64, space: &Weak<AddressSpace>) -> Result<()> {
        let Some(start) = self.find(at).map(|vma| vma.start).filter(|start| *start < at) else {
            return Ok(());
        };
        let Some(vma) = self.areas.get_mut(&start) else { return Ok(()) };
        // The sums stay: both parts together are what it was.
        let windows = vma.windows();
        let upper = vma.split_off(at, space)?;
        self.costs.windows.fetch_sub(windows - vma.windows(), Ordering::Relaxed);
        self.add(upper);
        Ok(())
    }

    /// Makes `range` begin and end at area borders.
    pub(super) fn isolate(&mut self, range: Range<u64>, space: &Weak<AddressSpace>) -> Result<()> {
        if self.areas.get(&range.start).is_some_and(|vma| vma.end == range.end) {
            return Ok(());
        }
        self.split(range.start, space)?;
        self.split(range.end, space)
    }

    /// Makes a part of an area one by itself, changes it, and merges it with what is like it then.
    pub(super) fn change(
        &mut self,
        part: Range<u64>,
        space: &Weak<AddressSpace>,
        change: impl FnOnce(&mut Vma),
    ) -> Result<()> {
        let isolated = self.isolate(part.clone(), space);
        if isolated.is_ok() {
            self.update(part.start, change);
        }
        self.merge(part);
        isolated
    }

    /// Merges areas that touch inside `range` and at its ends where they can be one. As on Linux, who changes areas does so for each that it
    /// has changed: neighbours that a fork or an end of userfaultfd(2) has made alike stay two.
    pub(super) fn merge(&mut self, range: Range<u64>) {
        let mut at = match self.before(range.start) {
            Some(vma) => vma.start,
            None => range.start,
        };
        while let Some((start, end)) = self.next_mergeable(at, range.end) {
            if let Some(next) = self.take(end)
                && let Some(vma) = self.areas.get_mut(&start)
            {
                vma.merge(next);
            }
            at = start;
            // A range may have a hundred thousand that become one.
            sched::cond_resched();
        }
    }

    /// The first area that begins from `from` to `last` and can be one with the next: where it begins and ends.
    fn next_mergeable(&self, from: u64, last: u64) -> Option<(u64, u64)> {
        let mut areas = self.areas.range(from..);
        let mut vma = areas.next()?.1;
        for (_, next) in areas {
            if vma.start >= last {
                return None;
            }
            if vma.can_merge(next) {
                return Some((vma.start, vma.end));
            }
            vma = next;
            // A range may have a hundred thousand.
            sched::cond_resched();
        }
        None
    }
}
