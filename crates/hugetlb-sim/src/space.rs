//! The page tables of a simulated address space: a PGD table, and the host's tables below it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hugetlb::filetables::format::Native;
use hugetlb::{Entry, EntryValue, Format, Level, OutOfMemory, PhysAddr, Space, TableEntries, VirtAddr};

use crate::memory::Memory;

/// What an entry that leads to a table of the host says besides the frame: present, writable, user, accessed.
const HOST_TABLE: u64 = 0x27;

pub(crate) struct Upper {
    id: u64,
    memory: Arc<Memory>,
    root: PhysAddr,
}

/// A handle to the tables of an address space.
#[derive(Clone)]
pub struct SimSpace(Arc<Upper>);

impl SimSpace {
    pub(crate) fn new(id: u64, memory: &Arc<Memory>) -> Option<SimSpace> {
        let root = memory.allocate_table()?;
        Some(SimSpace(Arc::new(Upper { id, memory: memory.clone(), root })))
    }

    pub(crate) fn root(&self) -> &TableEntries {
        self.0.memory.table(self.0.root)
    }

    /// The host's PMD table in a slot, taken out: nothing of the host's or the library's is in it any more. The caller
    /// flushes, then frees it.
    pub(crate) fn take_host_table(&self, slot: VirtAddr) -> Option<PhysAddr> {
        let pud = self.find_entry(slot, Level::Pud)?;
        let value = pud.load(Ordering::SeqCst);
        if !Native::is_present(value) {
            return None;
        }
        assert!(!Native::is_managed(Level::Pud, value), "a table of the library in a slot without mappings");
        assert!(!Native::is_leaf(Level::Pud, value), "a huge page in a slot without mappings");
        let table = Native::table_frame(value);
        assert!(is_empty(self.0.memory.table(table)), "entries outlived their mapping");
        pud.store(EntryValue::default(), Ordering::SeqCst);
        Some(table)
    }

    /// The value of the entry of `level` for an address, through tables of the host and of the library; 0 when there is
    /// none.
    pub(crate) fn now(&self, address: VirtAddr, level: Level) -> EntryValue {
        let (mut entries, mut at) = (self.root(), Level::Pgd);
        loop {
            let value = entries[at.index(address)].load(Ordering::SeqCst);
            let below = at.below().filter(|_| at > level);
            let Some(below) = below else { return value };
            if !Native::is_present(value) || Native::is_leaf(at, value) {
                return EntryValue::default();
            }
            entries = self.0.memory.table(Native::table_frame(value));
            at = below;
        }
    }

    /// The entries of the host's table of `level` for an address, made on need if `make`.
    fn table(
        &self,
        address: VirtAddr,
        level: Level,
        make: bool,
    ) -> Result<Option<&TableEntries>, OutOfMemory> {
        let (mut entries, mut at) = (self.root(), Level::Pgd);
        while at > level {
            let entry = &entries[at.index(address)];
            if make && !Native::is_present(entry.load(Ordering::SeqCst)) {
                let table = self.0.memory.allocate_table().ok_or(OutOfMemory)?;
                if entry.fill(EntryValue(table.0 | HOST_TABLE)).is_err() {
                    self.0.memory.free_table(table);
                }
            }
            let value = entry.load(Ordering::SeqCst);
            if !Native::is_present(value) || Native::is_managed(at, value) || Native::is_leaf(at, value) {
                return Ok(None);
            }
            entries = self.0.memory.table(Native::table_frame(value));
            at = at.below().ok_or(OutOfMemory)?;
        }
        Ok(Some(entries))
    }
}

fn is_empty(entries: &TableEntries) -> bool {
    entries.iter().all(|entry| entry.load(Ordering::SeqCst) == EntryValue::default())
}

impl Drop for Upper {
    fn drop(&mut self) {
        for entry in self.memory.table(self.root) {
            let value = entry.load(Ordering::SeqCst);
            if value == EntryValue::default() {
                continue;
            }
            assert!(!Native::is_managed(Level::Pgd, value), "an address space ends attached");
            let table = Native::table_frame(value);
            assert!(is_empty(self.memory.table(table)), "an address space ends with entries in a PUD table");
            self.memory.free_table(table);
        }
        self.memory.free_table(self.root);
    }
}

impl Space for SimSpace {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn find_entry(&self, address: VirtAddr, level: Level) -> Option<&Entry> {
        let entries = self.table(address, level, false).ok().flatten()?;
        Some(&entries[level.index(address)])
    }

    fn entry(&self, address: VirtAddr, level: Level) -> Result<Option<&Entry>, OutOfMemory> {
        Ok(self.table(address, level, true)?.map(|entries| &entries[level.index(address)]))
    }

    fn replace_managed(&self, address: VirtAddr, level: Level) -> Result<(), OutOfMemory> {
        let entry = self.find_entry(address, level).ok_or(OutOfMemory)?;
        let table = self.0.memory.allocate_table().ok_or(OutOfMemory)?;
        let old = entry.swap(EntryValue(table.0 | HOST_TABLE), Ordering::SeqCst);
        assert!(Native::is_managed(level, old), "a table that is not the library's is replaced");
        Ok(())
    }
}
