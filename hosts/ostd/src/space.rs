//! An address space: OSTD's for base pages, in its lower part; above it, tables of this adapter in the same root.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use hugetlb::filetables::format::Native;
use hugetlb::{Entry, EntryValue, Format, Level, OutOfMemory, PhysAddr, Space, VirtAddr};
use ostd::mm::VmSpace;
use ostd::task::disable_preempt;

use crate::sched::OfTask;
use crate::{arch, cpus, memory};

/// The first entry of the root that is ours.
const FIRST_ENTRY: usize = 128;
/// Below this address OSTD's own tables are.
pub const FIRST: VirtAddr = VirtAddr(FIRST_ENTRY as u64 * arch::ROOT.span());
/// Behind the last entry of user space in the root.
const ENTRIES_OF_USERS: usize = 256;

/// A handle to an address space.
#[derive(Clone)]
pub struct OstdSpace(Arc<Upper>);

struct Upper {
    id: u64,
    vm: Arc<VmSpace>,
    root: PhysAddr,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl OstdSpace {
    pub fn new() -> OstdSpace {
        let (id, vm) = (NEXT.fetch_add(1, Ordering::Relaxed), Arc::new(VmSpace::new()));
        let root = {
            // OSTD tells nobody where a space's root is. So it is loaded, and the CPU is asked.
            let guard = disable_preempt();
            cpus::switch(&guard, id, || vm.activate());
            arch::loaded_root()
        };
        let space = OstdSpace(Arc::new(Upper { id, vm, root }));
        OfTask::activate_current();
        space
    }

    pub fn vm(&self) -> &VmSpace {
        &self.0.vm
    }

    /// Loads it on this CPU.
    pub fn activate(&self) {
        let guard = disable_preempt();
        cpus::switch(&guard, self.0.id, || self.0.vm.activate());
    }

    fn entry_at(&self, address: VirtAddr, level: Level, make: bool) -> Result<Option<&Entry>, OutOfMemory> {
        let mut table = self.0.root;
        let mut at = arch::ROOT;
        // With three levels no address has an entry above them.
        if address < FIRST || level > arch::ROOT {
            return Ok(None);
        }
        loop {
            let entry = &memory::entries(table)[at.index(address)];
            if at == level {
                return Ok(Some(entry));
            }
            // Acquire: with who filled it.
            let mut value = entry.load(Ordering::Acquire);
            if make && value == EntryValue::default() {
                let new = memory::allocate_table().ok_or(OutOfMemory)?;
                value = match entry.fill(Native::table(new)) {
                    Ok(()) => Native::table(new),
                    Err(other) => {
                        memory::free_table(new);
                        other
                    }
                };
            }
            let is_table = Native::is_present(value) && !Native::is_leaf(at, value);
            let Some(below) = at.below().filter(|_| is_table && !Native::is_managed(at, value)) else {
                return Ok(None);
            };
            (table, at) = (Native::table_frame(value), below);
        }
    }
}

impl Space for OstdSpace {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn find_entry(&self, address: VirtAddr, level: Level) -> Option<&Entry> {
        self.entry_at(address, level, false).ok().flatten()
    }

    fn entry(&self, address: VirtAddr, level: Level) -> Result<Option<&Entry>, OutOfMemory> {
        self.entry_at(address, level, true)
    }

    fn replace_managed(&self, address: VirtAddr, level: Level) -> Result<(), OutOfMemory> {
        let entry = self.find_entry(address, level).ok_or(OutOfMemory)?;
        let table = memory::allocate_table().ok_or(OutOfMemory)?;
        // Release: who follows it finds an empty table.
        entry.store(Native::table(table), Ordering::Release);
        Ok(())
    }
}

/// Frees the host's table that an entry of `level` led to, and those below it; the library's are all gone.
fn free_table(level: Level, value: EntryValue) {
    if value == EntryValue::default() {
        return;
    }
    assert!(
        !Native::is_managed(level, value) && !Native::is_leaf(level, value),
        "a mapping outlived its space"
    );
    let table = Native::table_frame(value);
    if let Some(below) = level.below() {
        memory::entries(table).iter().for_each(|entry| free_table(below, entry.load(Ordering::Relaxed)));
    }
    memory::retire_table(table);
}

impl Drop for Upper {
    /// OSTD frees its own tables after this, and must find none of ours. Interrupts are on, and no spin lock is held.
    fn drop(&mut self) {
        let entries = &memory::entries(self.root)[FIRST_ENTRY..ENTRIES_OF_USERS];
        let tables: Vec<EntryValue> =
            entries.iter().map(|entry| entry.swap(EntryValue::default(), Ordering::AcqRel)).collect();
        // A CPU that has the space loaded still may read ahead through its caches.
        cpus::shoot_down(&mut |space| space == self.id);
        tables.into_iter().for_each(|table| free_table(arch::ROOT, table));
    }
}
