//! What the library of huge pages runs on: this kernel's frames, tables, locks and TLBs.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use ::hugetlb::filetables::{self, Entry, Level, format::Native};
use ::hugetlb::{Flush, Machine, OutOfMemory, PageSize, PhysAddr, Space, TableEntries, VirtAddr};

use crate::arch::cpu::{self, CpuSet};
use crate::arch::{features, ipi, tlb};
use crate::cgroup::HugePayer;
use crate::memory::frame::{Frame, Use};
use crate::memory::{self, PAGE_SIZE, contiguous};
use crate::mm::{self, NoTable, PageTables};
use crate::sync::grace;
use crate::{process, sched, sync};

/// This kernel, as a machine: all of its state is global.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

/// How much is cleared or copied before other threads get their turn, bytes.
const STEP: u64 = 256 << 10;
/// More translations than this are dearer to forget one by one than all at once.
const MAX_SINGLE: u64 = 32;

impl filetables::Machine for Kernel {
    type Format = Native;
    type RawSpinLock = sync::RawSpinLock;
    type Space = SpaceTables;

    fn allocate_table(&self) -> Option<PhysAddr> {
        #[cfg(feature = "lab")]
        if let Some(table) = super::lab::take() {
            return Some(PhysAddr(table.into_raw().0));
        }
        let allocate = || Frame::alloc_zeroed(Use::PageTable);
        // What other tables have left may be on its way back.
        let frame = allocate().or_else(|| if grace::collect() { allocate() } else { None })?;
        // What a file notes of a table is a small part of it.
        memory::reserve::covered();
        Some(PhysAddr(frame.into_raw().0))
    }

    fn retire_table(&self, table: PhysAddr) {
        // SAFETY: the reference that `allocate_table` gave away, given back once.
        let table = unsafe { Frame::from_raw(memory::PhysAddr(table.0)) };
        #[cfg(feature = "lab")]
        let Some(table) = super::lab::keep(table) else { return };
        grace::retire(table);
    }

    fn table(&self, table: PhysAddr) -> &TableEntries {
        // SAFETY: the caller's table is not retired, so the frame is a table as long as it is looked at.
        unsafe { &*memory::PhysAddr(table.0).as_ptr::<TableEntries>() }
    }

    fn flush_spaces(&self, concerned: &dyn Fn(u64) -> bool) {
        // As in `flush`.
        fence(Ordering::SeqCst);
        let mut cpus = mm::cpus_running(concerned);
        let this = cpu::id();
        if cpus.contains(this) {
            tlb::flush_all();
        }
        cpus.remove(this);
        if !cpus.is_empty() {
            ipi::call(&cpus, &tlb::flush_all);
        }
    }

    fn give_way(&self) {
        sched::cond_resched();
    }
}

impl Machine for Kernel {
    type RawMutex = sync::RawMutex;
    type RawRwLock = sync::RawRwLock;
    type Payer = HugePayer;

    fn payer(&self) -> HugePayer {
        HugePayer::current()
    }

    fn take_step(&self) -> Result<(), OutOfMemory> {
        sched::cond_resched();
        match process::try_current() {
            Some(thread) if thread.kill_pending() => Err(OutOfMemory),
            _ => memory::reserve::ask(PAGE_SIZE).map_err(|_| OutOfMemory),
        }
    }

    fn allocate_huge(&self, size: PageSize) -> Option<PhysAddr> {
        let bytes = size.bytes() as usize;
        contiguous::alloc(bytes, bytes, None).map(|address| PhysAddr(address.0))
    }

    fn free_huge(&self, size: PageSize, frame: PhysAddr) {
        // SAFETY: the caller gives back what `allocate_huge` gave it, and nothing uses it any more.
        unsafe { contiguous::free(memory::PhysAddr(frame.0), size.bytes() as usize) };
    }

    fn free_broken(&self, size: PageSize, frame: PhysAddr) {
        // SAFETY: as in `free_huge`.
        unsafe { contiguous::free_broken(memory::PhysAddr(frame.0), size.bytes() as usize) };
    }

    fn zero(&self, start: PhysAddr, bytes: u64) {
        in_steps(bytes, |offset, len| {
            let pointer: *mut u8 = memory::PhysAddr(start.0 + offset).as_ptr();
            // SAFETY: the range is inside a huge frame that the library owns; the direct map shows it.
            unsafe { pointer.write_bytes(0, len as usize) };
        });
    }

    fn copy_huge(&self, size: PageSize, from: PhysAddr, to: PhysAddr) {
        in_steps(size.bytes(), |offset, len| {
            let source: *const u8 = memory::PhysAddr(from.0 + offset).as_ptr::<u8>();
            let target: *mut u8 = memory::PhysAddr(to.0 + offset).as_ptr();
            // SAFETY: two different huge frames that the library owns. Programs may still store to the source: a copy of memory
            // that is stored to has old or new bytes.
            unsafe { core::ptr::copy_nonoverlapping(source, target, len as usize) };
        });
    }

    fn flush(&self, batch: &[Flush<SpaceTables>]) {
        // The changed entries are visible before the sets are read: a CPU that is not in a set yet loads the changed
        // table. See `mm::gather`.
        fence(Ordering::SeqCst);
        let mut cpus = CpuSet::new();
        for flush in batch {
            flush.space.0.cpus().iter().for_each(|cpu| cpus.insert(cpu));
        }
        let this = cpu::id();
        if cpus.contains(this) {
            flush_here(batch);
        }
        cpus.remove(this);
        if !cpus.is_empty() {
            ipi::call(&cpus, &|| flush_here(batch));
        }
    }
}

/// Calls `work` with offset and length of each step, and lets other threads run in between.
fn in_steps(bytes: u64, work: impl Fn(u64, u64)) {
    let mut offset = 0;
    while offset < bytes {
        let len = STEP.min(bytes - offset);
        work(offset, len);
        offset += len;
        sched::cond_resched();
    }
}

/// Forgets on this CPU what the batch has for the space that it runs.
fn flush_here(batch: &[Flush<SpaceTables>]) {
    let root = features::read_cr3() & !(PAGE_SIZE as u64 - 1);
    if batch.iter().any(|flush| flush.space.0.is_region) {
        // Each process that a region is attached to has it at another address.
        tlb::flush_all();
        return;
    }
    for flush in batch.iter().filter(|flush| flush.space.0.root.0 == root) {
        let (start, end) = (flush.range.start.0, flush.range.end.0);
        let stride = PageSize::Size2M.bytes();
        // A changed table entry is in paging-structure caches, which INVLPG empties as well, for every address.
        if (end - start).div_ceil(stride) > MAX_SINGLE {
            tlb::flush_all();
            return;
        }
        let mut address = start;
        while address < end {
            tlb::flush_page(address);
            address += stride;
        }
        if flush.tables {
            tlb::flush_page(start);
        }
    }
}

/// The page tables of an address space, as the library sees them.
#[derive(Clone)]
pub struct SpaceTables(pub Arc<PageTables>);

/// An entry as the library sees it.
fn library_entry(entry: &AtomicU64) -> &Entry {
    // SAFETY: it has the layout of the hardware's entry.
    unsafe { &*core::ptr::from_ref(entry).cast::<Entry>() }
}

impl Space for SpaceTables {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn find_entry(&self, address: VirtAddr, level: Level) -> Option<&Entry> {
        let reading = grace::read();
        let entry = core::ptr::from_ref(self.0.find(address.0, level as u32, &reading)?);
        // SAFETY: tables are freed only where no area is, and a live mapping of huge pages is one, as is one of shared memory for which
        // `mm::windows` asks; the library keeps to the addresses of its mappings, as `hugetlb::machine` lays down. The handle keeps the root.
        Some(library_entry(unsafe { &*entry }))
    }

    fn entry(&self, address: VirtAddr, level: Level) -> Result<Option<&Entry>, OutOfMemory> {
        // Mostly it is there.
        if let Some(entry) = self.find_entry(address, level) {
            return Ok(Some(entry));
        }
        let mut tables = self.0.lock();
        match tables.find_or_make(address.0, level as u32) {
            Ok(entry) => {
                let entry = core::ptr::from_ref(entry);
                // SAFETY: as in `find_entry`.
                Ok(Some(library_entry(unsafe { &*entry })))
            }
            Err(NoTable::SlotShared) => Ok(None),
            Err(NoTable::NoMemory) => Err(OutOfMemory),
        }
    }

    fn replace_managed(&self, address: VirtAddr, level: Level) -> Result<(), OutOfMemory> {
        self.0.lock().replace_shared(address.0, level as u32).map_err(|_| OutOfMemory)
    }
}
