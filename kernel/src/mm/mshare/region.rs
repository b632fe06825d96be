//! A region: its areas and tables, and what changes them.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bitflags::bitflags;
use linux_raw_sys::general as abi;

use super::brought::{Accounts, Brought};
use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::memory::fallible::TryVec;
use crate::memory::{PAGE_SIZE, PhysAddr, reserve};
use crate::mm::entry::Entry;
use crate::mm::fault::FaultError;
use crate::mm::map::MapRequest;
use crate::mm::space::AddressSpace;
use crate::mm::tables::{TOP, span};
use crate::mm::vma::{VmFlags, Vma};
use crate::mm::{PAGE, TASK_SIZE, page_up};
use crate::sync::SpinLock;
use crate::{process, sched};

/// What a region's size, and the address of an attachment, are multiples of, bytes: the span of an entry of a
/// root.
pub const GRANULE: u64 = span(TOP);
/// Where the region begins in its own address space: behind the addresses that not everybody may map.
const BASE: u64 = GRANULE;
/// The largest region, bytes: what is left of an address space.
pub const MAX_SIZE: u64 = (TASK_SIZE & !(GRANULE - 1)) - BASE;

bitflags! {
    /// The flags of a mapping inside, apart from the type.
    struct InnerFlags: u32 {
        const FIXED = abi::MAP_FIXED;
        const FIXED_NOREPLACE = abi::MAP_FIXED_NOREPLACE;
        const ANONYMOUS = abi::MAP_ANONYMOUS;
        const NORESERVE = abi::MAP_NORESERVE;
        const POPULATE = abi::MAP_POPULATE;
        const NONBLOCK = abi::MAP_NONBLOCK;
        const HUGETLB = abi::MAP_HUGETLB;
        // Without a meaning, here as everywhere.
        const DENYWRITE = abi::MAP_DENYWRITE;
        const EXECUTABLE = abi::MAP_EXECUTABLE;
        const STACK = abi::MAP_STACK;
    }
}

/// A mapping that is to be made inside.
pub struct NewMapping {
    /// Where, from the begin of the region on, bytes.
    pub at: u64,
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

/// A mapping that is inside.
pub struct Mapped {
    /// From the begin of the region on, bytes.
    pub range: Range<u64>,
    pub flags: VmFlags,
    pub page_size: u64,
}

/// A piece of address space, alive as long as anybody has a reference: a file, an open file, an attachment.
///
/// Race: unlink, the end of the creator, the last detach, in any order, against use. Each user has a
/// reference of its own. The last one is dropped without locks, since the end of the address space closes
/// what is mapped inside.
pub struct Region {
    space: Arc<AddressSpace>,
    size: u64,
    attachments: AtomicU64,
    accounts: Accounts,
    /// Bytes that no account answers for, and the decision for which that was found out.
    unclaimed: AtomicU64,
    decision: AtomicU64,
}

/// Decisions so far that hang on who answers for what is in regions.
static DECISIONS: AtomicU64 = AtomicU64::new(0);

/// Whether somebody is to be killed by what is found out now.
static KILLER_DECIDES: AtomicBool = AtomicBool::new(false);

/// Finds out anew, from now on, what nobody answers for. While somebody is chosen to be killed that is not found out again for others: readers
/// of `oom_score` would make each process that has a region attached cost the killer one more walk through the region.
pub fn begin_decision() {
    // Relaxed, here and below: numbers on which no other data hangs. A decision too many costs time.
    if !KILLER_DECIDES.load(Ordering::Relaxed) {
        DECISIONS.fetch_add(1, Ordering::Relaxed);
    }
}

/// As [`begin_decision`], for who chooses whom to kill: nobody else begins one before `decide` returns. One at a time.
pub fn with_decision<R>(decide: impl FnOnce() -> R) -> R {
    begin_decision();
    KILLER_DECIDES.store(true, Ordering::Relaxed);
    let result = decide();
    KILLER_DECIDES.store(false, Ordering::Relaxed);
    result
}

/// All regions, by the ids of their tables.
static ALL: SpinLock<BTreeMap<u64, Weak<Region>>> = SpinLock::growing(BTreeMap::new());

impl Region {
    /// An empty region of `size` bytes: `EINVAL` unless that is a multiple of [`GRANULE`] above 0, `EFBIG`
    /// above [`MAX_SIZE`].
    pub fn new(size: u64) -> Result<Arc<Self>> {
        if size == 0 || !size.is_multiple_of(GRANULE) {
            return Err(Errno::EINVAL);
        }
        if size > MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        // It may outlive its maker.
        reserve::ask_lasting(2 * PAGE_SIZE)?;
        let space = AddressSpace::new_region()?;
        for part in 0..size / GRANULE {
            sched::cond_resched();
            // The tables that attachments lead to.
            space
                .page_tables()
                .lock()
                .find_or_make(BASE + part * GRANULE, TOP - 1)
                .map_err(|_| Errno::ENOMEM)?;
        }
        let region = Arc::new(Self {
            space,
            size,
            attachments: AtomicU64::new(0),
            accounts: Accounts::default(),
            unclaimed: AtomicU64::new(0),
            decision: AtomicU64::new(0),
        });
        ALL.lock().insert(region.id(), Arc::downgrade(&region));
        if let Some(maker) = process::current().process.mm() {
            region.account_of(&maker).add(region.known(), &region);
        }
        Ok(region)
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The id of its tables.
    pub(super) fn id(&self) -> u64 {
        self.space.page_tables().id
    }

    /// Its address space.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// The address in its own address space of what is `offset` bytes behind its begin.
    pub(super) fn inner(offset: u64) -> u64 {
        BASE + offset
    }

    /// The table that attachments' entries for the part around byte `offset` lead to.
    pub(super) fn table(&self, offset: u64) -> PhysAddr {
        let tables = self.space.page_tables().lock();
        let entry = tables.find(Self::inner(offset), TOP).map_or(0, |entry| entry.load(Ordering::SeqCst));
        debug_assert!(Entry(entry).is_present(), "a region without a table at {offset:#x}");
        Entry(entry).address()
    }

    pub(super) fn count_attachment(&self, more: bool) {
        if more {
            self.attachments.fetch_add(1, Ordering::SeqCst);
        } else {
            self.attachments.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// How many attachments there are.
    pub fn attachments(&self) -> u64 {
        self.attachments.load(Ordering::SeqCst)
    }

    /// Pages of memory that its tables show, huge pages apart.
    pub fn pages(&self) -> u64 {
        self.space.resident().total()
    }

    /// Bytes of pages, page tables and areas that it has, with what tables of files showed when somebody looked last.
    pub(super) fn known(&self) -> u64 {
        let costs = self.space.costs();
        self.own() + PAGE * (1 + costs.shown()) + costs.file_tables() + costs.heap()
    }

    /// The same, after a walk through all areas.
    pub(super) fn weight(&self) -> u64 {
        self.space.resident_now();
        self.known()
    }

    /// Bytes of the pages in tables of its own, and of these.
    fn own(&self) -> u64 {
        let tables = self.space.page_tables().lock();
        (tables.resident.total() + tables.count) * PAGE
    }

    /// What tables of files show in a range of the region's own addresses, bytes.
    fn shown_in(&self, range: Range<u64>) -> u64 {
        self.space.shown_in(&self.space.read().set, range).pages * PAGE
    }

    /// Counts what `change` makes areas and tables take more for who asks for it.
    fn counting<T>(&self, change: impl FnOnce() -> T) -> T {
        let taken = || self.space.costs().heap() + self.space.table_bytes();
        let before = taken();
        let result = change();
        let more = taken().saturating_sub(before);
        if more > 0
            && let Some(space) = process::current().process.mm()
        {
            self.account_of(&space).add(more, self);
        }
        result
    }

    /// Bytes that came by processes which are gone: they count for each who has the region attached, as shared memory does. One walk through
    /// the accounts and areas for each decision, however many ask.
    pub(in crate::mm) fn unclaimed(&self) -> u64 {
        let decision = DECISIONS.load(Ordering::Relaxed);
        if self.decision.load(Ordering::Acquire) != decision {
            let unclaimed = self.weight().saturating_sub(self.accounts.claimed());
            self.unclaimed.store(unclaimed, Ordering::Relaxed);
            // Behind the number: who finds the decision finds that. Two may find it out at once.
            self.decision.store(decision, Ordering::Release);
        }
        self.unclaimed.load(Ordering::Relaxed)
    }

    /// What `space` has brought in.
    pub(super) fn account_of(&self, space: &AddressSpace) -> Arc<Brought> {
        self.accounts.of(space)
    }

    /// The space with these tables has detached.
    pub(super) fn forget_empty(&self, id: u64) {
        self.accounts.forget_empty(id);
    }

    /// Populates a range of the region's own addresses. It counts for `brought` as it comes: others may be short of memory meanwhile.
    pub(super) fn fill(&self, range: Range<u64>, brought: &Brought) -> core::result::Result<(), FaultError> {
        /// Between two looks at what has come, bytes.
        const STEP: u64 = 2 << 20;
        // What tables of files show is counted at the end.
        let (before, mut at) = (self.shown_in(range.clone()), range.start);
        let mut result = Ok(());
        while at < range.end && result.is_ok() {
            let end = (at - at % STEP + STEP).min(range.end);
            let then = self.own();
            result = self.space.populate(at..end);
            brought.add(self.own().saturating_sub(then), self);
            at = end;
        }
        brought.add(self.shown_in(range).saturating_sub(before), self);
        result
    }

    /// Checks a range of whole pages; `EINVAL` for one that is empty, not aligned, or not inside.
    fn range(&self, at: u64, len: u64) -> Result<Range<u64>> {
        let len = page_up(len).filter(|len| *len > 0).ok_or(Errno::EINVAL)?;
        let end = at.checked_add(len).filter(|end| *end <= self.size).ok_or(Errno::EINVAL)?;
        if at.is_multiple_of(PAGE) { Ok(Self::inner(at)..Self::inner(end)) } else { Err(Errno::EINVAL) }
    }

    /// Makes a mapping inside. Its errors are mmap(2)'s; and `EINVAL` for a range that is not inside, for
    /// flags that make no sense there, and without MAP_FIXED or MAP_FIXED_NOREPLACE, for the place is given.
    pub fn map(&self, new: NewMapping) -> Result<()> {
        let range = self.range(new.at, new.len)?;
        let kind = new.flags & abi::MAP_TYPE;
        let size_bits = abi::MAP_HUGE_MASK << abi::MAP_HUGE_SHIFT;
        let flags = InnerFlags::from_bits(new.flags & !abi::MAP_TYPE & !size_bits).ok_or(Errno::EINVAL)?;
        let is_known = matches!(kind, abi::MAP_SHARED | abi::MAP_PRIVATE | abi::MAP_SHARED_VALIDATE);
        if !is_known || !flags.intersects(InnerFlags::FIXED | InnerFlags::FIXED_NOREPLACE) {
            return Err(Errno::EINVAL);
        }
        if new.flags & size_bits != 0 && !flags.contains(InnerFlags::HUGETLB) {
            return Err(Errno::EINVAL);
        }
        // The area stays when its maker ends, and an account of who fills it.
        reserve::ask_lasting(PAGE_SIZE)?;
        let populates = flags.contains(InnerFlags::POPULATE) && !flags.contains(InnerFlags::NONBLOCK);
        let request = MapRequest {
            address: range.start,
            len: range.end - range.start,
            prot: new.prot,
            flags: new.flags & !abi::MAP_POPULATE,
            file: new.file,
            offset: new.offset,
        };
        self.counting(|| self.space.map(request))?;
        if populates && let Some(space) = process::current().process.mm() {
            // As mmap(2): what cannot be populated is found out at the first touch.
            let _ = self.fill(range, &self.account_of(&space));
        }
        Ok(())
    }

    /// Unmaps a range inside, for all.
    pub fn unmap(&self, at: u64, len: u64) -> Result<()> {
        let range = self.range(at, len)?;
        // Areas may be cut in two.
        reserve::ask(PAGE_SIZE)?;
        self.counting(|| self.space.unmap(range.start, range.end - range.start))?;
        self.accounts.limit(self.weight());
        Ok(())
    }

    /// Sets the rights of a range inside, for all. Errors as of mprotect(2).
    pub fn protect(&self, at: u64, len: u64, prot: u32) -> Result<()> {
        let range = self.range(at, len)?;
        if prot & !(abi::PROT_READ | abi::PROT_WRITE | abi::PROT_EXEC) != 0 {
            return Err(Errno::EINVAL);
        }
        reserve::ask(PAGE_SIZE)?;
        self.counting(|| self.space.protect(range.start, range.end - range.start, prot))
    }

    /// The first mappings inside that end behind byte `from`, in order: as many as are shown at a time.
    pub fn mapped(&self, from: u64) -> Result<Vec<Mapped>> {
        const SHOWN: usize = 32;
        let areas = self.space.read();
        let mut some = Vec::new();
        for vma in areas.set.overlapping(Self::inner(from)..TASK_SIZE).take(SHOWN) {
            let Range { start, end } = Vma::range(vma);
            let range = start - BASE..end - BASE;
            some.try_push(Mapped { range, flags: vma.flags, page_size: vma.page_size() })?;
        }
        Ok(some)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        ALL.lock().remove(&self.id());
    }
}

/// The regions that there are now, one after another: what comes or goes meanwhile is met or not.
pub fn all() -> impl Iterator<Item = Arc<Region>> {
    let mut next = 0;
    core::iter::from_fn(move || {
        loop {
            let (id, region) = {
                let all = ALL.lock();
                let (id, region) = all.range(next..).next()?;
                (*id, region.upgrade())
            };
            next = id + 1;
            sched::cond_resched();
            if region.is_some() {
                return region;
            }
        }
    })
}

/// What all regions have together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    pub regions: u64,
    pub attachments: u64,
    /// Pages of memory that their tables show.
    pub pages: u64,
    /// Bytes of their page tables, roots included.
    pub table_bytes: u64,
}

/// Counts all regions.
pub fn statistics() -> Statistics {
    let mut sum = Statistics::default();
    for region in all() {
        sum.regions += 1;
        sum.attachments += region.attachments();
        sum.pages += region.pages();
        sum.table_bytes += region.space.table_bytes() + PAGE;
    }
    sum
}
