//! An address space: its areas, its tables, the CPUs that run it.

use alloc::collections::LinkedList;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use intrusive_collections::{LinkedListAtomicLink, intrusive_adapter};

use super::backing::PageCache;
use super::entry::Entry;
use super::exec::Executable;
use super::fork_tables::WINDOW;
use super::gaps::Gaps;
use super::gather::{self, Gather};
use super::layout::SLOT;
use super::mshare::{self, RegionLeftover};
use super::shm::Attachment;
use super::tables::{NoMemory, PageTables, Resident};
use super::userfault::Changes;
use super::vma::{Costs, Kind, VmFlags, Vma, VmaSet};
use super::{TASK_SIZE, accounting};
use crate::arch::cpu::{self, CpuId, CpuSet};
use crate::arch::features;
use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::hugetlb::{self, HugeLeftover};
use crate::memory::frame::Frame;
use crate::memory::paging;
#[cfg(debug_assertions)]
use crate::memory::{self, reserve};
use crate::process::oom;
use crate::sched;
#[cfg(debug_assertions)]
use crate::sync::lockdep::stretch;
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, SpinLock, grace};

/// Where the parts of a program are, for brk(2), placement and reports.
#[derive(Clone, Default)]
pub struct Layout {
    /// mmap(2) without an address goes below.
    pub mmap_base: u64,
    /// Nothing goes here but the stack, while there is room elsewhere; empty where the stack is above all that.
    pub stack_room: Range<u64>,
    /// Where the heap begins, and its present end, to the byte.
    pub brk_start: u64,
    pub brk: u64,
    pub code: Range<u64>,
    pub data: Range<u64>,
    /// The first stack pointer.
    pub stack_start: u64,
    pub arguments: Range<u64>,
    pub environment: Range<u64>,
    /// Where the vDSO's image is; 0 for none.
    pub vdso: u64,
    /// As it stands on the stack, pairs of type and value.
    pub auxv: Vec<u64>,
    /// The program's file: `/proc/PID/exe`.
    pub executable: Option<Arc<Executable>>,
}

/// What the areas lock guards.
pub struct Areas {
    pub set: VmaSet,
    pub layout: Layout,
    /// Flags that each new area gets: LOCKED, LOCK_ON_FAULT after mlockall(MCL_FUTURE).
    pub new_flags: VmFlags,
    /// Proves to the library of huge pages that the lock is held.
    pub huge: hugetlb::SpaceToken,
}

/// The id of the space's tables that each CPU has loaded; 0 for the kernel's own.
///
/// Written before the tables are loaded: a CPU that is named after another space still runs kernel code, and forgets the old
/// one's translations with the load.
static ACTIVE: [AtomicU64; cpu::MAX_CPUS] = [const { AtomicU64::new(0) }; cpu::MAX_CPUS];

/// The CPUs that have tables loaded of whose id `concerned` says yes, or of a process that such a region is attached to. Entries that were changed before the call are all that a CPU
/// which is not among them can read.
pub fn cpus_running(concerned: &dyn Fn(u64) -> bool) -> CpuSet {
    let mut cpus = CpuSet::new();
    for cpu in cpu::online().iter() {
        let id = ACTIVE[cpu as usize].load(Ordering::SeqCst);
        if id != 0 && (concerned(id) || mshare::has_attached(id, concerned)) {
            cpus.insert(cpu);
        }
    }
    cpus
}

/// An address space. The last reference must be dropped where the thread may sleep: the end of the space closes files.
pub struct AddressSpace {
    this: Weak<AddressSpace>,
    pub(super) areas: RwLock<Areas>,
    /// Apart from the space, since mappings of huge pages refer to the tables alone.
    pub(super) tables: Arc<PageTables>,
    /// On the list of those that are let go of later.
    later: LinkedListAtomicLink,
    /// What the areas take, for those who must not take their lock.
    costs: Arc<Costs>,
    /// Which walk over all processes has been here last: several may have the space. See [`super::broken`].
    pub(super) walk: AtomicU64,
    /// The last field: all others are dropped before it.
    remains: oom::Remains,
}

intrusive_adapter!(Later = Arc<AddressSpace>: AddressSpace { later => LinkedListAtomicLink });

/// How many there are, those of regions too. Some belong to no process: a fork makes them and an end takes them down, and who reads a stranger's
/// memory keeps it meanwhile.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// How many address spaces there are.
pub fn count() -> usize {
    // Relaxed: whoever compares it with what it has found looks again.
    COUNT.load(Ordering::Relaxed)
}

/// References that must not be the last where they are dropped.
static LATER: SpinLock<intrusive_collections::LinkedList<Later>> =
    SpinLock::new(intrusive_collections::LinkedList::new(Later::NEW));

impl AddressSpace {
    /// Drops a reference where the space must not end, for it could be the last: whoever calls [`AddressSpace::let_go`] next ends it.
    pub(super) fn let_go_later(space: Arc<Self>) {
        let mut later = LATER.lock();
        if !space.later.is_linked() {
            later.push_back(space);
        } else {
            // Here, with the lock: one that is on the list stays there meanwhile, so that this reference is not the last.
            drop(space);
        }
    }

    /// Drops the references of [`AddressSpace::let_go_later`].
    pub(super) fn let_go() {
        loop {
            let space = LATER.lock().pop_front();
            if space.is_none() {
                return;
            }
        }
    }

    /// An empty one.
    pub fn new() -> Result<Arc<Self>> {
        Self::around(PageTables::new(false).map_err(|_| Errno::ENOMEM)?, |areas| RwLock::new(areas))
    }

    /// An empty one for a region: its areas and tables are used through other address spaces. Lock order: those first.
    pub(super) fn new_region() -> Result<Arc<Self>> {
        // Made at a place of their own, so that their order is known to `lockdep`.
        Self::around(PageTables::new(true).map_err(|_| Errno::ENOMEM)?, |areas| RwLock::new(areas))
    }

    fn around(tables: Arc<PageTables>, lock: impl FnOnce(Areas) -> RwLock<Areas>) -> Result<Arc<Self>> {
        let set = VmaSet::new(tables.is_region);
        let costs = set.costs();
        let huge = hugetlb::token(&tables);
        let areas = lock(Areas { set, layout: Layout::default(), new_flags: VmFlags::empty(), huge });
        // Relaxed: see `count`.
        COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new_cyclic(|this| Self {
            this: this.clone(),
            areas,
            tables,
            later: LinkedListAtomicLink::new(),
            costs,
            walk: AtomicU64::new(0),
            remains: oom::Remains::new(),
        }))
    }

    /// Is it a region's?
    pub(super) fn is_region(&self) -> bool {
        self.tables.is_region
    }

    /// What outlives its pages.
    pub fn remains(&self) -> &oom::Remains {
        &self.remains
    }

    pub(super) fn weak(&self) -> &Weak<Self> {
        &self.this
    }

    /// Loads it on the calling CPU, `cpu`. Interrupts are off.
    pub fn activate(&self, cpu: CpuId) {
        // First the set, then the table: see `gather`. The locked instruction orders them.
        ACTIVE[cpu as usize].store(self.tables.id, Ordering::SeqCst);
        self.tables.cpus.insert(cpu);
        // SAFETY: the table maps the kernel, and lives until `deactivate`: whoever runs the space holds a reference.
        unsafe { features::write_cr3(self.tables.root.0) };
    }

    /// Takes the calling CPU, `cpu`, out of its set, and loads the kernel's own table if it is still loaded. Interrupts are off. Call it
    /// after another space's `activate` to save one load.
    pub fn deactivate(&self, cpu: CpuId) {
        if features::read_cr3() & !0xfff == self.tables.root.0 {
            paging::load_kernel_table();
            ACTIVE[cpu as usize].store(0, Ordering::SeqCst);
        }
        self.tables.cpus.remove(cpu);
    }

    /// The CPUs that have it loaded now, or run a process that it is attached to as a region.
    pub fn cpus(&self) -> CpuSet {
        self.tables.cpus()
    }

    /// The page tables.
    pub fn page_tables(&self) -> &Arc<PageTables> {
        &self.tables
    }

    /// The areas, not to be changed while the guard lives.
    pub fn read(&self) -> RwLockReadGuard<'_, Areas> {
        self.areas.read()
    }

    /// As [`AddressSpace::read`], for who must not wait.
    pub(super) fn try_read(&self) -> Option<RwLockReadGuard<'_, Areas>> {
        self.areas.try_read()
    }

    /// The areas, to change them.
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Areas> {
        self.areas.write()
    }

    /// Pages that are mapped, by kind, through tables of the space's own and of files.
    pub fn resident(&self) -> Resident {
        self.resident_in(&self.read())
    }

    /// As [`AddressSpace::resident`], for who has the areas lock.
    pub(super) fn resident_in(&self, areas: &Areas) -> Resident {
        let shown = self.shown(&areas.set);
        self.costs.note_shown(&shown);
        let mut tables = self.tables.lock();
        let mut resident = tables.resident;
        resident.shmem += shown.pages;
        tables.peak = tables.peak.max(resident.total());
        resident
    }

    /// As [`AddressSpace::resident`], for who must not wait: while the areas change, with what tables of files showed when somebody looked
    /// last.
    pub fn resident_now(&self) -> Resident {
        match self.try_read() {
            Some(areas) => self.resident_in(&areas),
            None => {
                let mut resident = self.tables.lock().resident;
                resident.shmem += self.costs.shown();
                resident
            }
        }
    }

    /// The most pages that were mapped at once, as far as anybody looked.
    pub fn peak_resident(&self) -> u64 {
        let now = self.resident_now().total();
        self.tables.lock().peak.max(now)
    }

    /// Bytes of page tables that belong to this space alone, as `VmPTE` has it.
    pub fn table_bytes(&self) -> u64 {
        self.tables.lock().count * 4096
    }

    /// What the areas take. Takes no lock.
    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// The same, to be kept.
    pub(super) fn shared_costs(&self) -> Arc<Costs> {
        self.costs.clone()
    }

    /// The program's file.
    pub fn executable(&self) -> Option<Arc<File>> {
        self.read().layout.executable.as_ref().map(|executable| executable.file().clone())
    }

    /// Removes the pages of `range` from the tables, for base pages only, as far as `what` says. The gather
    /// holds what was removed. Shared tables in the range have been left ([`AddressSpace::leave_forked`]).
    pub(super) fn zap(&self, range: Range<u64>, what: Zap, gather: &mut Gather) {
        let mut at = range.start;
        while at < range.end {
            let mut tables = self.tables.lock();
            let mut removed = Resident::default();
            let walked = tables.walk(at..range.end, gather::BATCH, |address, slot| {
                let value = Entry(slot.load(Ordering::SeqCst));
                if what == Zap::FilePages && (value.has(Entry::ANON) || value.is_marker()) {
                    return;
                }
                // Stores stay withheld from a file's page that comes back.
                let file_page = what != Zap::Everything && !value.has(Entry::ANON);
                let marker = if file_page { value.0 & Entry::USERFAULT_WP } else { 0 };
                // The hardware may have set bits since: the exchange returns the last word, and none after it can.
                let value = Entry(slot.swap(marker, Ordering::SeqCst));
                removed.add(value);
                if value.is_present() {
                    gather.flush_range(address..address + super::PAGE);
                }
                if value.owns_frame() {
                    // SAFETY: the entry owned this reference, and is gone.
                    gather.page(address, unsafe { Frame::from_raw(value.address()) });
                }
            });
            tables.resident.anonymous -= removed.anonymous;
            tables.resident.file -= removed.file;
            tables.resident.shmem -= removed.shmem;
            drop(tables);
            at = match walked {
                Ok(next) => next,
                Err(met) if what == Zap::Everything => {
                    debug_assert!(false, "leaves of a shared table are removed at {:#x}", met.0);
                    (met.0 & !(WINDOW - 1)) + WINDOW
                }
                Err(met) => {
                    // There is room for the pages of one table, and the walk may have met some before.
                    if gather.is_full() {
                        gather.flush();
                    }
                    self.zap_shared(met.0..range.end, what, gather)
                }
            };
            if gather.is_full() {
                gather.flush();
            }
            sched::cond_resched();
        }
    }

    /// A file's pages went away: removes them at `range`. Called under the file's list of mappings, which knows the range to
    /// be one of this file's.
    pub(super) fn unmap_file_pages(&self, range: Range<u64>, with_copies: bool) {
        let mut gather = Gather::new(self);
        let what = if with_copies { Zap::Pages } else { Zap::FilePages };
        self.zap(range, what, &mut gather);
    }

    /// Takes the page of the vDSO's data out, which shows the clocks of a time namespace that the caller, the only thread, has left.
    pub fn forget_clocks(&self) {
        let areas = self.read();
        let mut gather = Gather::new(self);
        for vma in areas.set.iter().filter(|vma| matches!(vma.kind, Kind::Special(_))) {
            self.zap(vma.range(), Zap::Everything, &mut gather);
        }
    }

    /// Removes all areas and parts of areas in `range`, whose ends are multiples of the base page.
    pub(super) fn unmap_locked(
        &self,
        areas: &mut Areas,
        range: Range<u64>,
        leftovers: &mut Leftovers,
    ) -> Result<()> {
        let Some(last) = areas.set.last_overlapping(&range) else { return Ok(()) };
        if areas.set.has_sealed(range.clone()) {
            return Err(Errno::EPERM);
        }
        // What can fail comes first.
        self.own_borders(&range).map_err(|_| Errno::ENOMEM)?;
        // Most unmappings are of one area as a whole, which nobody watches, and nothing is to be cut.
        let whole = last.range() == range;
        let changes = &mut leftovers.changes;
        let told =
            if whole && last.userfault.is_none() { 0 } else { changes.unmapping(&areas.set, &range)? };
        if !whole {
            self.cut_out(areas, &range).inspect_err(|_| leftovers.changes.forget(told))?;
        }
        let mut gather = Gather::new(self);
        self.leave_forked(range.clone(), &mut gather);
        let mut last = areas.set.last_overlapping(&range).map(|vma| vma.start);
        while let Some(vma) = last.and_then(|start| areas.set.remove(start)) {
            // Nothing begins before the range any more.
            let is_first = vma.start == range.start;
            last = if is_first { None } else { areas.set.last_overlapping(&range).map(|vma| vma.start) };
            if vma.has_own_leaves() {
                self.leave_windows(&vma, vma.range());
                self.zap(vma.range(), Zap::Everything, &mut gather);
            }
            if vma.flags.contains(VmFlags::ACCOUNT) {
                accounting::uncommit(vma.pages());
            }
            leftovers.push(vma, &mut areas.huge);
            sched::cond_resched();
        }
        self.free_tables(areas, range, &mut gather);
        Ok(())
    }

    /// Makes `range`, which is about to be unmapped, begin and end at area borders.
    fn cut_out(&self, areas: &mut Areas, range: &Range<u64>) -> Result<()> {
        Self::may_cut_out(areas, range)?;
        areas.set.isolate(range.clone(), &self.this)
    }

    /// May the areas be cut at both ends of `range`? Judged before anything is cut, so that a failure leaves all as it was.
    pub(super) fn may_cut_out(areas: &Areas, range: &Range<u64>) -> Result<()> {
        let splits_middle =
            areas.set.find(range.start).is_some_and(|vma| vma.start < range.start && range.end < vma.end);
        if splits_middle && areas.set.count() >= accounting::max_map_count() {
            return Err(Errno::ENOMEM);
        }
        for at in [range.start, range.end] {
            if let Some(vma) = areas.set.find(at)
                && vma.start < at
                && !(at - vma.start).is_multiple_of(vma.granule())
            {
                return Err(Errno::EINVAL);
            }
        }
        Ok(())
    }

    /// Frees the tables that nothing uses around `range`, in which no area is any more; huge pages beside it may share tables again.
    pub(super) fn free_tables(&self, areas: &Areas, range: Range<u64>, gather: &mut Gather) {
        let (below, above) = self.free_tables_in_hole(&areas.set, range.clone(), gather);
        for (neighbour, at) in [(below, range.start), (above, range.end - 1)] {
            if let Some(Kind::Huge(huge)) = neighbour.map(|vma| &vma.kind) {
                huge.settle(at);
            }
        }
    }

    /// Frees the tables for addresses in `range`, where no area is, that lie between its neighbours as a whole. Returns these.
    pub(super) fn free_tables_in_hole<'s>(
        &self,
        set: &'s VmaSet,
        range: Range<u64>,
        gather: &mut Gather,
    ) -> (Option<&'s Vma>, Option<&'s Vma>) {
        let (below, above) = (set.before(range.start + 1), set.find_from(range.start));
        let floor = below.map_or(0, |vma| vma.end);
        let ceiling = above.map_or(1 << 47, |vma| vma.start);
        if floor < ceiling {
            self.free_tables_in(range, floor..ceiling, gather);
        }
        (below, above)
    }

    /// Frees the tables for addresses in `range` that lie in `hole` as a whole.
    pub(super) fn free_tables_in(&self, range: Range<u64>, hole: Range<u64>, gather: &mut Gather) {
        let mut at = range.start;
        while at < range.end {
            at = self.tables.lock().free(at..range.end, &hole, gather);
            sched::cond_resched();
            if gather.is_full() {
                gather.flush();
                sched::cond_resched();
            }
        }
    }

    /// Makes the slot of `address` the address space's own: the table that it shares since a fork, or else
    /// huge pages and windows in it that use a shared table leave that, and come back by faults.
    /// To be called when [`NoTable::SlotShared`](super::NoTable::SlotShared) says so, with the areas lock held; then the caller tries again.
    pub(super) fn take_slot(&self, set: &VmaSet, address: u64) -> Result<(), NoMemory> {
        if self.own_window(address)? {
            return Ok(());
        }
        let slot = address & !(SLOT - 1);
        for vma in set.overlapping(slot..slot + SLOT) {
            match &vma.kind {
                Kind::Huge(huge) => huge.leave_slot(address)?,
                // Only the area that the address is in can have a window there. A table of the space's own takes its place: from an empty
                // entry above a crowded window the next fault would come back here.
                Kind::File(_) => self.own_file_window(vma, address)?,
                _ => {}
            }
            sched::cond_resched();
        }
        // Race: where a whole 512 GiB was left, another thread may attach to the slot below it at once. Then the caller comes again.
        Ok(())
    }

    /// munmap(2).
    pub fn unmap(&self, start: u64, len: u64) -> Result<()> {
        if !start.is_multiple_of(super::PAGE) || len == 0 {
            return Err(Errno::EINVAL);
        }
        let len = super::page_up(len).ok_or(Errno::EINVAL)?;
        if start > TASK_SIZE || len > TASK_SIZE - start {
            return Err(Errno::EINVAL);
        }
        let mut leftovers = Leftovers::default();
        let mut areas = self.write();
        let result = self.unmap_locked(&mut areas, start..start + len, &mut leftovers);
        drop(areas);
        drop(leftovers);
        result
    }

    /// As [`AddressSpace::free_tables_in`], when the space has no users any more.
    fn free_unseen(&self, range: Range<u64>, hole: Range<u64>, gather: &mut Gather) {
        let mut at = range.start;
        while at < range.end {
            at = self.tables.lock().free(at..range.end, &hole, gather);
            if at < range.end {
                // Who looks at tables without a lock holds a reference to the space, and this was the last.
                gather.flush_unseen();
            }
            sched::cond_resched();
        }
    }

    /// Removes everything: the space has no users any more.
    fn tear_down(&mut self) {
        #[cfg(debug_assertions)]
        if memory::pressure() == memory::Pressure::None {
            // The check takes memory for each area, and nobody could be told that there is none.
            let _checking = reserve::checking();
            // What the check takes is no stretch of the kernel's as it is shipped.
            stretch::end();
            if let Err(what) = self.check() {
                panic!("page tables at the end of an address space: {what}");
            }
            stretch::begin();
        }
        // Nobody waits for the lock: it is taken for what it guards.
        let mut held = self.areas.write();
        let (areas, gaps) = held.set.take_all();
        gaps.into_iter().for_each(Gaps::free);
        let mut areas = areas.into_iter().peekable();
        let mut gather = Gather::new(self);
        self.tables.lock().end_region();
        while let Some((_, vma)) = areas.next() {
            let range = vma.range();
            if vma.has_own_leaves() {
                self.leave_windows(&vma, vma.range());
                // All areas of a window go.
                self.leave_forked(vma.range(), &mut gather);
                self.zap(vma.range(), Zap::Everything, &mut gather);
            }
            if vma.flags.contains(VmFlags::ACCOUNT) {
                accounting::uncommit(vma.pages());
            }
            // Nobody else has a lock of this space: what is left of the area goes at once.
            Leftovers::default().push(vma, &mut held.huge);
            // All tables are where areas are, and each goes with the last area that it serves: only entries that belong to an area are
            // looked at, not all of each table.
            let hole = 0..areas.peek().map_or(1 << 47, |(next, _)| *next);
            self.free_unseen(range, hole, &mut gather);
        }
        if self.is_region() {
            // Those that attachments led to are there without areas.
            self.free_unseen(0..1 << 47, 0..1 << 47, &mut gather);
        }
        gather.flush_unseen();
        let tables = self.tables.lock();
        debug_assert_eq!(tables.resident.total(), 0, "pages left in an empty address space");
        debug_assert_eq!((tables.count, tables.forked), (0, 0), "tables left in an empty address space");
        drop(tables);
        grace::throttle();
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        debug_assert!(self.cpus().is_empty(), "an address space is dropped while a CPU runs it");
        self.tear_down();
        // Relaxed: see `count`.
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What [`AddressSpace::zap`] removes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Zap {
    /// All that there is: the area goes.
    Everything,
    /// All pages; the area stays, and what userfaultfd withholds from a file's pages.
    Pages,
    /// The file's pages. Private copies and anonymous pages stay.
    FilePages,
}

/// What is left of removed areas, to be dropped without locks: files, segments, caches. There may be very many: a list, which never needs
/// much memory at once.
#[derive(Default)]
pub struct Leftovers {
    list: LinkedList<Leftover>,
    /// What monitors are told of then.
    pub(super) changes: Changes,
}

#[allow(dead_code)] // only held to be dropped
enum Leftover {
    File { file: Option<Arc<File>>, cache: Arc<dyn PageCache>, attachment: Option<Attachment> },
    Huge(HugeLeftover),
    Region(RegionLeftover),
}

impl Leftovers {
    /// Takes an area whose pages are unmapped. It leaves its file's list of mappings at once: the range may get
    /// another meaning as soon as the areas lock is free.
    pub(super) fn push(&mut self, vma: Vma, token: &mut hugetlb::SpaceToken) {
        match vma.kind {
            Kind::File(area) => {
                let cache = area.link.cache().clone();
                let super::vma::FileArea { link, file, attachment } = *area;
                drop(link);
                self.list.push_back(Leftover::File { file, cache, attachment });
            }
            // Its pages and tables go here and now: the tables around it are looked at next.
            Kind::Huge(huge) => self.list.push_back(Leftover::Huge(huge.unmap(token))),
            Kind::Region(region) => self.list.push_back(Leftover::Region(region.detach())),
            Kind::Anonymous | Kind::Special(_) => {}
        }
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        while let Some(leftover) = self.list.pop_front() {
            drop(leftover);
            sched::cond_resched();
        }
        self.changes.tell();
    }
}
