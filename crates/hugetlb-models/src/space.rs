//! The page tables of an address space of a model: one PUD table of a few slots.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hugetlb::sync::AtomicU64;
use hugetlb::{NoEntry, OutOfMemory, PageSize, PhysAddr, SLOT_SIZE, Space, TABLE_ENTRIES, VirtAddr, format};

use crate::machine::Memory;

/// Slots of an address space.
pub(crate) const SLOTS: u64 = 4;

/// What a PUD entry that leads to a table of the host says besides the frame: present, writable, user, accessed.
const HOST_TABLE: u64 = 0x27;

pub(crate) struct Upper {
    id: u64,
    memory: Arc<Memory>,
    pud: [AtomicU64; SLOTS as usize],
}

/// A handle to the tables of an address space.
#[derive(Clone)]
pub struct ModelSpace(pub(crate) Arc<Upper>);

impl ModelSpace {
    pub(crate) fn new(id: u64, memory: Arc<Memory>) -> ModelSpace {
        let pud = std::array::from_fn(|_| AtomicU64::new(0));
        ModelSpace(Arc::new(Upper { id, memory, pud }))
    }

    pub(crate) fn entry(&self, address: VirtAddr) -> &AtomicU64 {
        &self.0.pud[(address.0 / SLOT_SIZE) as usize]
    }

    /// The host's table in a slot, taken out: nothing is in it any more.
    pub(crate) fn take_host_table(&self, slot: VirtAddr) -> Option<PhysAddr> {
        let pud = self.entry(slot);
        // Acquire: with the installation.
        let value = pud.load(Ordering::Acquire);
        if !format::is_present(value) {
            return None;
        }
        assert!(!format::is_managed(value), "a table of the library in a slot without mappings");
        pud.store(0, Ordering::Release);
        Some(format::table_frame(value))
    }
}

impl Upper {
    /// Whether a PUD entry leads to the table.
    pub(crate) fn leads_to(&self, table: PhysAddr) -> bool {
        self.pud
            .iter()
            .map(|entry| entry.peek())
            .any(|entry| format::is_present(entry) && format::table_frame(entry) == table)
    }
}

impl Space for ModelSpace {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn find_pud_entry(&self, address: VirtAddr) -> Option<&AtomicU64> {
        Some(self.entry(address))
    }

    fn pud_entry(&self, address: VirtAddr) -> Result<&AtomicU64, OutOfMemory> {
        Ok(self.entry(address))
    }

    fn find_pmd_entry(&self, address: VirtAddr) -> Option<&AtomicU64> {
        // Acquire: with the installation.
        let pud = self.entry(address).load(Ordering::Acquire);
        if !format::is_present(pud) || format::is_managed(pud) {
            return None;
        }
        let index = (address.0 >> PageSize::Size2M.shift()) as usize % TABLE_ENTRIES;
        Some(&self.0.memory.table(format::table_frame(pud))[index])
    }

    fn pmd_entry(&self, address: VirtAddr) -> Result<&AtomicU64, NoEntry> {
        let pud = self.entry(address);
        // Acquire: with the installation.
        if !format::is_present(pud.load(Ordering::Acquire)) {
            let table = self.0.memory.allocate_table().ok_or(OutOfMemory)?;
            // Release: with who walks.
            if pud.compare_exchange(0, table.0 | HOST_TABLE, Ordering::Release, Ordering::Relaxed).is_err() {
                self.0.memory.retire_table(table);
            }
        }
        self.find_pmd_entry(address).ok_or(NoEntry::Managed)
    }

    fn replace_managed(&self, address: VirtAddr) -> Result<(), OutOfMemory> {
        let table = self.0.memory.allocate_table().ok_or(OutOfMemory)?;
        // Release: with who walks. Acquire: what the shared table showed comes before.
        let old = self.entry(address).swap(table.0 | HOST_TABLE, Ordering::AcqRel);
        assert!(format::is_managed(old), "a table that is not the library's is replaced");
        Ok(())
    }
}
