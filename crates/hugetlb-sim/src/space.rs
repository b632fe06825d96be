//! The page tables of a simulated address space: one PUD table, 512 GiB.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hugetlb::{NoEntry, OutOfMemory, PageSize, PhysAddr, SLOT_SIZE, Space, VirtAddr, format};

use crate::memory::Memory;

/// What a PUD entry that leads to a table of the host says besides the frame: present, writable, user, accessed.
const HOST_TABLE: u64 = 0x27;

pub(crate) struct Upper {
    id: u64,
    memory: Arc<Memory>,
    pud: PhysAddr,
}

/// A handle to the tables of an address space.
#[derive(Clone)]
pub struct SimSpace(Arc<Upper>);

impl SimSpace {
    pub(crate) fn new(id: u64, memory: &Arc<Memory>) -> Option<SimSpace> {
        let pud = memory.allocate_table()?;
        Some(SimSpace(Arc::new(Upper { id, memory: memory.clone(), pud })))
    }

    /// The host's table in a slot, taken out: nothing of the host's or the library's is in it any more. The caller
    /// flushes, then frees it.
    pub(crate) fn take_host_table(&self, slot: VirtAddr) -> Option<PhysAddr> {
        let pud = self.entry(slot);
        let value = pud.load(Ordering::SeqCst);
        if !format::is_present(value) {
            return None;
        }
        assert!(!format::is_managed(value), "a table of the library in a slot without mappings");
        assert!(!format::is_leaf(value), "a huge page in a slot without mappings");
        let table = format::table_frame(value);
        let left =
            self.0.memory.table(table).iter().filter(|entry| entry.load(Ordering::SeqCst) != 0).count();
        assert_eq!(left, 0, "entries outlived their mapping");
        pud.store(0, Ordering::SeqCst);
        Some(table)
    }

    pub(crate) fn entry(&self, address: VirtAddr) -> &AtomicU64 {
        &self.0.memory.table(self.0.pud)[(address.0 / SLOT_SIZE) as usize % 512]
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        let left =
            self.memory.table(self.pud).iter().filter(|entry| entry.load(Ordering::SeqCst) != 0).count();
        assert_eq!(left, 0, "an address space ends with entries in its PUD table");
        self.memory.free_table(self.pud);
    }
}

impl Space for SimSpace {
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
        let pud = self.entry(address).load(Ordering::SeqCst);
        if !format::is_present(pud) || format::is_managed(pud) {
            return None;
        }
        assert!(!format::is_leaf(pud), "the library asks for a table below a huge page");
        let index = (address.0 >> PageSize::Size2M.shift()) as usize % 512;
        Some(&self.0.memory.table(format::table_frame(pud))[index])
    }

    fn pmd_entry(&self, address: VirtAddr) -> Result<&AtomicU64, NoEntry> {
        let pud = self.entry(address);
        if !format::is_present(pud.load(Ordering::SeqCst)) {
            let table = self.0.memory.allocate_table().ok_or(OutOfMemory)?;
            let new = table.0 | HOST_TABLE;
            if pud.compare_exchange(0, new, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                self.0.memory.free_table(table);
            }
        }
        self.find_pmd_entry(address).ok_or(NoEntry::Managed)
    }

    fn replace_managed(&self, address: VirtAddr) -> Result<(), OutOfMemory> {
        let table = self.0.memory.allocate_table().ok_or(OutOfMemory)?;
        let old = self.entry(address).swap(table.0 | HOST_TABLE, Ordering::SeqCst);
        assert!(format::is_managed(old), "a table that is not the library's is replaced");
        Ok(())
    }
}
