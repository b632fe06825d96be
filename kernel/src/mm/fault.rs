//! Page faults: finding out what should be there, and putting it there.
//!
//! A fault holds the areas lock for reading, so the area cannot change under it, and several faults run at once. The page is found or
//! made first, without the page-table lock; then, under that lock, the entry is looked at again, and the page goes in only
//! if the entry is as it was. Whoever comes second finds a present entry and drops its own page.

use core::sync::atomic::Ordering;

use super::backing::PageCache;
use super::entry::Entry;
use super::gather::Gather;
use super::policy::Placing;
use super::space::{AddressSpace, Areas};
use super::tables::{FILLED, NoMemory, NoTable, Tables};
use super::userfault::Origin;
use super::vma::{FileArea, Kind, VmFlags, Vma};
use super::{PAGE, TASK_SIZE, layout, page_down, uaccess};
use crate::arch::trap::TrapFrame;
use crate::arch::{percpu, tlb};
use crate::errno::Errno;
use crate::memory::frame::{Frame, Use};
use crate::memory::{self, PAGE_SIZE, PhysAddr, Pressure, reserve};
use crate::process::{self, oom::Found};
use crate::sched;
use crate::signal;
use crate::sync::Once;

/// What the program tried to do, and why it cannot be: the library's, from the trap to the page.
///
/// [`FaultError::SlotShared`] stays among the steps of a fault; [`AddressSpace::fault_as`] takes the slot and goes on.
pub use ::hugetlb::{Access, FaultError};

/// The failure that an errno of a page's source stands for.
pub(super) fn failure(errno: Errno) -> FaultError {
    match errno {
        Errno::ENOMEM => FaultError::OutOfMemory,
        _ => FaultError::Sigbus,
    }
}

impl From<NoMemory> for FaultError {
    fn from(_: NoMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<NoTable> for FaultError {
    fn from(why: NoTable) -> Self {
        match why {
            NoTable::NoMemory => Self::OutOfMemory,
            NoTable::SlotShared => Self::SlotShared,
        }
    }
}

const PROTECTION: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const RESERVED: u64 = 1 << 3;
const FETCH: u64 = 1 << 4;

const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;
const BUS_ADRERR: i32 = 2;

/// How many pages around a fault in a file are mapped with it when they are in the cache: a power of two.
const AROUND: u64 = FILLED as u64;

/// Rounds of a fault after which a kill ends it.
pub(super) const ENOUGH_ROUNDS: u64 = 8;

static ZERO_PAGE: Once<Frame> = Once::new();

/// The page that all untouched anonymous memory reads.
pub fn zero_page() -> PhysAddr {
    ZERO_PAGE.phys()
}

pub(super) fn init() {
    let frame = Frame::alloc_zeroed(Use::Other).expect("memory for the zero page");
    assert!(ZERO_PAGE.set(frame).is_ok(), "initialised twice");
}

/// A page fault at `address` with the hardware's `error` code, in user mode or in kernel mode. False when it is the kernel's own and
/// stays unresolved: then [`uaccess::fixup`] knows whether the instruction may fail. Interrupts are as they were at the fault.
pub fn page_fault(frame: &mut TrapFrame, address: u64, error: u64) -> bool {
    let user = frame.is_user();
    if !user && (uaccess::fixup(frame.rip).is_none() || uaccess::faults_disabled() || address >= TASK_SIZE) {
        return false;
    }
    assert!(error & RESERVED == 0, "page table with reserved bits, address {address:#x}");
    let Some(current) = process::try_current() else { return false };
    let Some(space) = current.space() else { return false };
    let access = match error {
        e if e & FETCH != 0 => Access::Execute,
        e if e & WRITE != 0 => Access::Write,
        _ => Access::Read,
    };
    current.count_fault(false);
    reserve::enter();
    let mut attempts = 0;
    loop {
        let asked = process::oom::moment();
        let origin = if user { Origin::Program } else { Origin::Kernel };
        let allowed = |vma: &Vma| allows(vma.flags, access);
        let failure = match space.fault_as(address, access, origin, allowed) {
            Ok(()) => {
                if error & PROTECTION != 0 {
                    // Another CPU may have granted the right without telling this one's TLB.
                    tlb::flush_page(address);
                }
                if !user {
                    // What takes the page away again and again (another thread, or a mistake of ours) holds up this thread, not the
                    // CPU and those who wait for it to give way; and a kill ends it.
                    sched::cond_resched();
                    return !current.kill_pending() || !is_repeated(&current, address);
                }
                return true;
            }
            Err(failure) => failure,
        };
        if failure == FaultError::OutOfMemory {
            attempts += 1;
            if attempts == 1 && memory::pressure() == Pressure::None {
                // It was short only for a moment.
                continue;
            }
            match process::oom::out_of_memory(asked, current.memory_policy.take_full()) {
                Found::Nothing => panic!("Out of memory, and nobody left but the first process"),
                // A copy from or to the program with a file's lock held, for which the victim waits. The call fails and lets it go;
                // the next victim would be a bystander.
                Found::Stuck if !user && percpu::sleeping_locks() != 0 => return false,
                Found::Stuck | Found::Again => {}
            }
            if !current.kill_pending() && !current.memory.is_ending() {
                continue;
            }
            // Chosen to die: user mode is left on the way back to it, a system call fails and gets there soon.
            return user;
        }
        if !user {
            return false;
        }
        if let FaultError::Poisoned(granule) = failure {
            signal::force_poison(address, granule, error);
            return true;
        }
        let (signal, code) = match failure {
            FaultError::NotMapped => (signal::SIGSEGV, SEGV_MAPERR),
            FaultError::Access => (signal::SIGSEGV, SEGV_ACCERR),
            _ => (signal::SIGBUS, BUS_ADRERR),
        };
        // What is at the kernel's addresses is nobody's to find out.
        let error = if address >= TASK_SIZE { error | PROTECTION } else { error };
        signal::force_fault(signal, code, address, error);
        return true;
    }
}

/// Whether a thread that is to end has just had a fault of the kernel's at this address: then it gets no further there.
fn is_repeated(thread: &process::Thread, address: u64) -> bool {
    // Relaxed: only the thread itself asks.
    thread.last_fault.swap(address, Ordering::Relaxed) == address
}

/// Whether an area with `flags` allows an access. A readable page is what x86-64 makes of any right at all.
fn allows(flags: VmFlags, access: Access) -> bool {
    match access {
        Access::Read => flags.intersects(VmFlags::ACCESS),
        Access::Write => flags.contains(VmFlags::WRITE),
        Access::Execute => flags.contains(VmFlags::EXEC),
    }
}

/// The bits of a present leaf in an area with `flags`, without WRITABLE.
pub(super) fn leaf_bits(flags: VmFlags) -> u64 {
    let execute = if flags.contains(VmFlags::EXEC) { 0 } else { Entry::NO_EXECUTE };
    let access = if flags.intersects(VmFlags::ACCESS) { Entry::PRESENT } else { Entry::HELD };
    access | Entry::USER | Entry::ACCESSED | execute
}

/// The bits of a leaf for a page of the program's own that was stored to. The store may have come from outside, where the area does not let the
/// program itself store.
pub(super) fn own_bits(flags: VmFlags) -> u64 {
    let writable = if flags.contains(VmFlags::WRITE) { Entry::WRITABLE } else { 0 };
    leaf_bits(flags) | writable | Entry::DIRTY | Entry::ANON
}

impl AddressSpace {
    /// Makes `address` accessible the way `access` wants it, if it should be.
    pub fn fault(&self, address: u64, access: Access) -> Result<(), FaultError> {
        self.fault_as(address, access, Origin::Kernel, |vma| allows(vma.flags, access))
    }

    /// As [`AddressSpace::fault`], where `permitted` decides for an area. What a store brings forth is writable for the program only if
    /// the area is.
    pub(super) fn fault_as(
        &self,
        address: u64,
        access: Access,
        origin: Origin,
        permitted: impl Fn(&Vma) -> bool,
    ) -> Result<(), FaultError> {
        if address >= TASK_SIZE {
            return Err(FaultError::NotMapped);
        }
        let thread = process::current();
        // Each round but the last finds the way clear for one more step; some are more than any fault needs.
        for round in 0u64.. {
            if round > ENOUGH_ROUNDS && thread.kill_pending() {
                break;
            }
            let areas = self.read();
            let Some(vma) = areas.set.find_near(address, &thread.last_area) else {
                return Err(FaultError::NotMapped);
            };
            if vma.start <= address {
                if !permitted(vma) {
                    return Err(FaultError::Access);
                }
                if vma.userfault.is_some()
                    && let Some(fault) = self.intercept(vma, address, access, origin)?
                {
                    drop(areas);
                    if fault.wait(origin)? {
                        continue;
                    }
                    return Ok(());
                }
                let placing = Placing::new(&thread, || vma.placing(address));
                let resolved = self.fault_in(vma, address, access);
                drop(placing);
                match resolved {
                    Err(FaultError::SlotShared) => self.take_slot(&areas.set, address)?,
                    resolved => return resolved,
                }
                drop(areas);
                sched::cond_resched();
                continue;
            }
            if !vma.flags.contains(VmFlags::GROWS_DOWN) {
                return Err(FaultError::NotMapped);
            }
            drop(areas);
            self.grow_stack(address)?;
        }
        // The program does not come back to the access.
        if origin == Origin::Program { Ok(()) } else { Err(FaultError::Sigbus) }
    }

    /// Moves the begin of the stack above `address` down to it.
    fn grow_stack(&self, address: u64) -> Result<(), FaultError> {
        let start = page_down(address);
        let mut guard = self.write();
        let areas: &mut Areas = &mut guard;
        let Some(vma) = areas.set.find_from(address) else { return Err(FaultError::NotMapped) };
        if vma.start <= address {
            // Another thread was faster.
            return Ok(());
        }
        if !vma.flags.contains(VmFlags::GROWS_DOWN) {
            return Err(FaultError::NotMapped);
        }
        let (old, grown) = (vma.start, (vma.start - start) / PAGE);
        layout::may_grow_stack(&areas.set, vma, start).map_err(|_| FaultError::NotMapped)?;
        // A limit of this process, or of what may be committed: its own error, which no victim's memory would heal. As on Linux.
        layout::charge(&areas.set, vma.flags, grown).map_err(|_| FaultError::NotMapped)?;
        areas.set.update(old, |vma| {
            vma.first -= grown;
            vma.start = start;
        });
        Ok(())
    }

    fn fault_in(&self, vma: &Vma, address: u64, access: Access) -> Result<(), FaultError> {
        let page = page_down(address);
        let write = access == Access::Write;
        match &vma.kind {
            Kind::Huge(huge) => huge.fault(address, access),
            Kind::Region(region) => Ok(region.fault(vma, address, access)?),
            Kind::Special(pages) => self.special_fault(vma, pages.frame(vma.index_of(page)), page),
            Kind::Anonymous => self.anonymous_fault(vma, page, write),
            Kind::File(area) => self.file_fault(vma, area, page, write),
        }
    }

    /// What a page of private memory counts as. In a region it may outlive its maker, as a file's pages do.
    pub(super) fn private_use(&self) -> Use {
        if self.is_region() { Use::File } else { Use::Anon }
    }

    /// A page of the kernel's own, read only.
    fn special_fault(&self, vma: &Vma, page: Option<PhysAddr>, address: u64) -> Result<(), FaultError> {
        let physical = page.ok_or(FaultError::Sigbus)?;
        let mut tables = self.tables.lock();
        if !tables.leaf(address).is_present() {
            tables.install(address, Entry::new(physical, leaf_bits(vma.flags) | Entry::SPECIAL))?;
        }
        Ok(())
    }

    fn anonymous_fault(&self, vma: &Vma, address: u64, write: bool) -> Result<(), FaultError> {
        // Before the first page can be there: fork looks at it.
        if !vma.is_touched() {
            vma.touched.store(true, Ordering::SeqCst);
        }
        let bits = leaf_bits(vma.flags);
        if !write {
            let mut tables = self.tables.lock();
            let entry = tables.leaf(address);
            if !entry.is_mapped() && !is_for_monitor(vma) {
                refuse_poison(entry)?;
                tables.install(address, Entry::new(zero_page(), bits | Entry::SPECIAL))?;
            }
            return Ok(());
        }
        // Before a page is made for nothing.
        let present = self.tables.lock().own_leaf(address)?.map_or(Entry(0), Entry::load);
        if present.is_mapped() {
            return self.write_to_present(vma, address);
        }
        if is_for_monitor(vma) {
            return Ok(());
        }
        refuse_poison(present)?;
        let frame = Frame::alloc_zeroed(self.private_use()).ok_or(FaultError::OutOfMemory)?;
        let mut tables = self.tables.lock();
        let present = tables.leaf(address);
        if present.is_mapped() {
            drop(tables);
            return self.write_to_present(vma, address);
        }
        // Race: UFFDIO_POISON came while the page was made.
        refuse_poison(present)?;
        Ok(install(&mut tables, address, frame, own_bits(vma.flags))?)
    }

    fn file_fault(&self, vma: &Vma, area: &FileArea, address: u64, write: bool) -> Result<(), FaultError> {
        let cache = &**area.link.cache();
        let shared = vma.flags.contains(VmFlags::SHARED);
        if let Some(result) = self.window_fault(vma, cache, address, write) {
            return result;
        }
        // Before the number of unmappings is read: see `backing`.
        area.link.enlist(vma.start, vma.pages());
        if !shared && write && !vma.is_touched() {
            vma.touched.store(true, Ordering::SeqCst);
        }
        let index = vma.index_of(address);
        let mut bits = leaf_bits(vma.flags);
        if cache.is_shmem() {
            bits |= Entry::SHMEM;
        }
        if shared && vma.flags.contains(VmFlags::WRITE) {
            bits |= Entry::WRITABLE;
        }
        loop {
            let present = self.tables.lock().leaf(address);
            if present.is_mapped() {
                return match () {
                    () if !write || present.has(Entry::WRITABLE) => Ok(()),
                    () if shared => self.make_writable(address),
                    () => self.write_to_present(vma, address),
                };
            }
            refuse_poison(present)?;
            let unmappings = cache.mappings().unmappings();
            if is_for_monitor(vma) && index < cache.size().div_ceil(PAGE) && cache.cached(index).is_none() {
                return Ok(());
            }
            let page = cache.page(index, write && shared).map_err(failure)?;
            let copy = if write && !shared {
                let copy = Frame::alloc(self.private_use()).ok_or(FaultError::OutOfMemory)?;
                copy_page(&copy, &page);
                Some(copy)
            } else {
                None
            };
            let mut tables = self.tables.lock();
            let present = tables.leaf(address);
            if cache.mappings().unmappings() != unmappings
                || present.is_mapped()
                || present.has(Entry::POISON)
            {
                // The page may be gone from the file (see `backing`), another thread was faster, or UFFDIO_POISON was: look again.
                continue;
            }
            return match copy {
                Some(copy) => Ok(install(&mut tables, address, copy, own_bits(vma.flags))?),
                None => {
                    install(&mut tables, address, page, bits)?;
                    // Who is told of stores or of minor faults is told of those in neighbours, too.
                    if !vma.flags.intersects(VmFlags::USERFAULT_WP | VmFlags::USERFAULT_MINOR) {
                        map_around(&mut tables, vma, cache, address, bits);
                    }
                    Ok(())
                }
            };
        }
    }

    /// A shared page's entry lacks the right to write that its area has.
    fn make_writable(&self, address: u64) -> Result<(), FaultError> {
        let tables = self.tables.lock();
        if let Some(slot) = tables.own_leaf(address)?
            && let entry = Entry(slot.load(Ordering::SeqCst))
            && entry.is_present()
            && !entry.has(Entry::USERFAULT_WP)
        {
            slot.fetch_or(Entry::WRITABLE, Ordering::SeqCst);
        }
        Ok(())
    }

    /// A store to a private page whose entry does not allow it (yet): a page that another address space or the file shares gets
    /// copied; one that is ours alone becomes writable.
    fn write_to_present(&self, vma: &Vma, address: u64) -> Result<(), FaultError> {
        let tables = self.tables.lock();
        let Some(slot) = tables.own_leaf(address)? else { return Ok(()) };
        let old = Entry(slot.load(Ordering::SeqCst));
        if !old.is_mapped() || old.has(Entry::WRITABLE) || old.has(Entry::USERFAULT_WP) {
            // Gone, done or withheld meanwhile: the access comes again if it has to.
            return Ok(());
        }
        if old.has(Entry::ANON) && Frame::count_at(old.address()) == 1 {
            // This entry has the only reference, and the table is ours alone: others that share one have no
            // reference of their own. Further ones come by fork, which the areas lock keeps away, or through
            // this entry.
            slot.fetch_or(own_bits(vma.flags) & (Entry::WRITABLE | Entry::DIRTY), Ordering::SeqCst);
            return Ok(());
        }
        // SAFETY: under the lock the entry's reference does not go away.
        let original = old.owns_frame().then(|| unsafe { Frame::share_raw(old.address()) });
        drop(tables);
        let copy = match &original {
            None => Frame::alloc_zeroed(self.private_use()),
            Some(_) => Frame::alloc(self.private_use()),
        }
        .ok_or(FaultError::OutOfMemory)?;
        if let Some(original) = &original {
            copy_page(&copy, original);
        }
        let mut gather = Gather::new(self);
        let mut tables = self.tables.lock();
        let Some(slot) = tables.own_leaf(address)? else { return Ok(()) };
        let now = Entry(slot.load(Ordering::SeqCst));
        if !now.is_mapped()
            || now.address() != old.address()
            || now.0 & (Entry::WRITABLE | Entry::USERFAULT_WP) != 0
        {
            return Ok(());
        }
        // Empty first, flush, then the copy: no CPU may still read the old page when another has written to the new one.
        let now = Entry(slot.swap(0, Ordering::SeqCst));
        gather.flush_range(address..address + PAGE);
        gather.flush();
        tables.resident.remove(now);
        if now.owns_frame() {
            // SAFETY: the entry owned this reference, and is gone.
            gather.page(address, unsafe { Frame::from_raw(now.address()) });
        }
        Ok(install(&mut tables, address, copy, own_bits(vma.flags))?)
    }
}

/// Are missing pages of the area its monitor's affair? Race: the page was there when the fault asked whether to tell the monitor, and
/// MADV_DONTNEED or UFFDIO_MOVE has taken it since. Nothing is put in its place: the access comes again, and the monitor is told.
fn is_for_monitor(vma: &Vma) -> bool {
    vma.flags.contains(VmFlags::USERFAULT_MISSING)
}

/// What userfaultfd has poisoned stays so until it is unmapped.
fn refuse_poison(entry: Entry) -> Result<(), FaultError> {
    if entry.has(Entry::POISON) { Err(FaultError::Poisoned(PAGE_SIZE.trailing_zeros())) } else { Ok(()) }
}

/// Puts a frame's reference into an empty entry.
pub(super) fn install(tables: &mut Tables, address: u64, frame: Frame, bits: u64) -> Result<(), NoTable> {
    let entry = Entry::new(frame.phys(), bits);
    tables.install(address, entry)?;
    // The entry has the reference now.
    let _ = frame.into_raw();
    Ok(())
}

/// Maps pages of the cache beside `address` that are there: programs and libraries touch neighbours soon.
pub(super) fn map_around(tables: &mut Tables, vma: &Vma, cache: &dyn PageCache, address: u64, bits: u64) {
    // The truth of "accessed" is worth less than a fault; but a neighbour nobody asked for was not accessed.
    let bits = bits & !Entry::ACCESSED;
    let window = address & !(AROUND * PAGE - 1);
    let limit = cache.size().div_ceil(PAGE);
    let range = window.max(vma.start)..(window + AROUND * PAGE).min(vma.end);
    let first = vma.index_of(range.start);
    let before_end = match limit.saturating_sub(first).min(AROUND) {
        0 => return,
        pages => u32::MAX >> (u32::BITS - pages as u32),
    };
    // The window is aligned to its size: its leaves lie in the table that has the leaf of `address`.
    tables.fill(range, |wanted, entries| {
        let mut pages = [const { None }; AROUND as usize];
        let pages = &mut pages[..entries.len()];
        cache.cached_some(first, wanted & before_end, pages);
        for (entry, page) in entries.iter_mut().zip(pages.iter_mut().map(Option::take)) {
            if let Some(page) = page {
                *entry = Entry::new(page.phys(), bits);
                // The entry has the reference now.
                let _ = page.into_raw();
            }
        }
    });
}

/// Copies a page. The source may change meanwhile: shared memory does not promise more.
pub(super) fn copy_page(to: &Frame, from: &Frame) {
    // SAFETY: both frames are referenced, and `to` is not known to anybody else.
    unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), PAGE_SIZE) };
}
