//! The page tables of a simulated address space: a PGD table, and the host's tables below it.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hugetlb::filetables::format::X86_64;
use hugetlb::{Entry, EntryValue, Format, Level, OutOfMemory, PhysAddr, Space, TableEntries, VirtAddr};

use crate::memory::Memory;

pub(crate) struct Upper<F: Format> {
    id: u64,
    memory: Arc<Memory>,
    root: PhysAddr,
    /// The level of the root's entries.
    top: Level,
    format: PhantomData<fn() -> F>,
}

/// A handle to the tables of an address space.
pub struct SimSpace<F: Format = X86_64>(Arc<Upper<F>>);

impl<F: Format> Clone for SimSpace<F> {
    fn clone(&self) -> SimSpace<F> {
        SimSpace(self.0.clone())
    }
}

impl<F: Format> SimSpace<F> {
    pub(crate) fn new(id: u64, top: Level, memory: &Arc<Memory>) -> Option<SimSpace<F>> {
        let root = memory.allocate_table()?;
        Some(SimSpace(Arc::new(Upper { id, memory: memory.clone(), root, top, format: PhantomData })))
    }

    pub(crate) fn root(&self) -> &TableEntries {
        self.0.memory.table(self.0.root)
    }

    /// The host's PMD table in a slot, taken out: nothing of the host's or the library's is in it any more. The caller
    /// flushes, then frees it.
    pub(crate) fn take_host_table(&self, slot: VirtAddr) -> Option<PhysAddr> {
        let pud = self.find_entry(slot, Level::Pud)?;
        let value = pud.load(Ordering::SeqCst);
        if !F::is_present(value) {
            return None;
        }
        assert!(!F::is_managed(Level::Pud, value), "a table of the library in a slot without mappings");
        assert!(!F::is_leaf(Level::Pud, value), "a huge page in a slot without mappings");
        let table = F::table_frame(value);
        assert!(is_empty(self.0.memory.table(table)), "entries outlived their mapping");
        pud.store(EntryValue::default(), Ordering::SeqCst);
        Some(table)
    }

    /// The value of the entry of `level` for an address, through tables of the host and of the library; 0 when there is
    /// none.
    pub(crate) fn now(&self, address: VirtAddr, level: Level) -> EntryValue {
        let (mut entries, mut at) = (self.root(), self.0.top);
        loop {
            let value = entries[at.index(address)].load(Ordering::SeqCst);
            let below = at.below().filter(|_| at > level);
            let Some(below) = below else { return value };
            if !F::is_present(value) || F::is_leaf(at, value) {
                return EntryValue::default();
            }
            entries = self.0.memory.table(F::table_frame(value));
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
        let (mut entries, mut at) = (self.root(), self.0.top);
        if level > at {
            return Ok(None);
        }
        while at > level {
            let entry = &entries[at.index(address)];
            if make && !F::is_present(entry.load(Ordering::SeqCst)) {
                let table = self.0.memory.allocate_table().ok_or(OutOfMemory)?;
                if entry.fill(F::table(table)).is_err() {
                    self.0.memory.free_table(table);
                }
            }
            let value = entry.load(Ordering::SeqCst);
            if !F::is_present(value) || F::is_managed(at, value) || F::is_leaf(at, value) {
                return Ok(None);
            }
            entries = self.0.memory.table(F::table_frame(value));
            at = at.below().ok_or(OutOfMemory)?;
        }
        Ok(Some(entries))
    }
}

fn is_empty(entries: &TableEntries) -> bool {
    entries.iter().all(|entry| entry.load(Ordering::SeqCst) == EntryValue::default())
}

impl<F: Format> Drop for Upper<F> {
    fn drop(&mut self) {
        for entry in self.memory.table(self.root) {
            let value = entry.load(Ordering::SeqCst);
            if value == EntryValue::default() {
                continue;
            }
            assert!(!F::is_managed(self.top, value), "an address space ends attached");
            let table = F::table_frame(value);
            assert!(
                is_empty(self.memory.table(table)),
                "an address space ends with entries in an upper table"
            );
            self.memory.free_table(table);
        }
        self.memory.free_table(self.root);
    }
}

impl<F: Format> Space for SimSpace<F> {
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
        let old = entry.swap(F::table(table), Ordering::SeqCst);
        let was_ours = F::is_managed(level, old) || Some(old) == F::BROKEN;
        assert!(was_ours, "a table that is not the library's is replaced");
        Ok(())
    }
}
