//! The page tables of an address space of a model: one PUD table of a few slots.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hugetlb::filetables::format::Native;
use hugetlb::{Entry, EntryValue, Format, Level, OutOfMemory, PhysAddr, SLOT_SIZE, Space, VirtAddr};

use crate::machine::Memory;

/// Slots of an address space.
pub(crate) const SLOTS: u64 = 4;

/// What a PUD entry that leads to a table of the host says besides the frame: present, writable, user, accessed.
const HOST_TABLE: u64 = 0x27;

pub(crate) struct Upper {
    id: u64,
    memory: Arc<Memory>,
    pud: [Entry; SLOTS as usize],
}

/// A handle to the tables of an address space.
#[derive(Clone)]
pub struct ModelSpace(pub(crate) Arc<Upper>);

impl ModelSpace {
    pub(crate) fn new(id: u64, memory: Arc<Memory>) -> ModelSpace {
        let pud = std::array::from_fn(|_| Entry::empty());
        ModelSpace(Arc::new(Upper { id, memory, pud }))
    }

    pub(crate) fn pud(&self, address: VirtAddr) -> &Entry {
        &self.0.pud[(address.0 / SLOT_SIZE) as usize]
    }

    /// The host's table in a slot, taken out: nothing is in it any more.
    pub(crate) fn take_host_table(&self, slot: VirtAddr) -> Option<PhysAddr> {
        let pud = self.pud(slot);
        // Acquire: with the installation.
        let value = pud.load(Ordering::Acquire);
        if !Native::is_present(value) {
            return None;
        }
        assert!(!Native::is_managed(Level::Pud, value), "a table of the library in a slot without mappings");
        pud.store(EntryValue::default(), Ordering::Release);
        Some(Native::table_frame(value))
    }
}

impl Upper {
    /// Whether a PUD entry leads to the table.
    pub(crate) fn leads_to(&self, table: PhysAddr) -> bool {
        self.pud
            .iter()
            .map(Entry::peek)
            .any(|entry| Native::is_present(entry) && Native::table_frame(entry) == table)
    }
}

impl Space for ModelSpace {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn find_entry(&self, address: VirtAddr, level: Level) -> Option<&Entry> {
        match level {
            Level::Pud => Some(self.pud(address)),
            Level::Pmd => {
                // Acquire: with the installation.
                let pud = self.pud(address).load(Ordering::Acquire);
                let is_host = Native::is_present(pud) && !Native::is_managed(Level::Pud, pud);
                is_host.then(|| &self.0.memory.table(Native::table_frame(pud))[level.index(address)])
            }
            Level::Pte | Level::Pgd => None,
        }
    }

    fn entry(&self, address: VirtAddr, level: Level) -> Result<Option<&Entry>, OutOfMemory> {
        // Acquire: with the installation.
        if level == Level::Pmd && !Native::is_present(self.pud(address).load(Ordering::Acquire)) {
            let table = self.0.memory.allocate_table().ok_or(OutOfMemory)?;
            if self.pud(address).fill(EntryValue(table.0 | HOST_TABLE)).is_err() {
                self.0.memory.retire_table(table);
            }
        }
        Ok(self.find_entry(address, level))
    }

    fn replace_managed(&self, address: VirtAddr, level: Level) -> Result<(), OutOfMemory> {
        let table = self.0.memory.allocate_table().ok_or(OutOfMemory)?;
        // Release: with who walks. Acquire: what the shared table showed comes before.
        let old = self.pud(address).swap(EntryValue(table.0 | HOST_TABLE), Ordering::AcqRel);
        assert!(Native::is_managed(level, old), "a table that is not the library's is replaced");
        Ok(())
    }
}
