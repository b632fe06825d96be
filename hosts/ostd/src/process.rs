//! A process: an address space, its mappings, and what its faults are resolved by. Every host has something like it.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use hugetlb::{Access, Error, FaultError, File, Level, MapOptions, Mapping, SLOT_SIZE, VirtAddr};
use lock_api::RwLock;

use crate::locks::RawSleepRw;
use crate::machine::Ostd;
use crate::space::OstdSpace;

type Mappings = BTreeMap<VirtAddr, Mapping<Ostd>>;

/// A process that has files mapped.
pub struct Process {
    /// The address-space lock. Before the space: mappings go first.
    mappings: RwLock<RawSleepRw, Mappings>,
    space: OstdSpace,
    faults: AtomicU64,
}

impl Process {
    pub fn new() -> Arc<Process> {
        Process::with(OstdSpace::new(), Mappings::new())
    }

    fn with(space: OstdSpace, mappings: Mappings) -> Arc<Process> {
        Arc::new(Process { mappings: RwLock::new(mappings), space, faults: AtomicU64::new(0) })
    }

    pub fn space(&self) -> &OstdSpace {
        &self.space
    }

    /// Page faults so far.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    pub fn map(
        &self,
        file: &Arc<File<Ostd>>,
        start: VirtAddr,
        length: u64,
        options: MapOptions,
    ) -> Result<(), Error> {
        let mut mappings = self.mappings.write();
        let mapping = file.map(self.space.clone(), start, length, 0, options)?;
        mappings.insert(start, mapping);
        Ok(())
    }

    /// Takes the mapping away that begins at `start`.
    pub fn unmap(&self, start: VirtAddr) {
        self.mappings.write().remove(&start);
    }

    pub fn fork(&self) -> Result<Arc<Process>, Error> {
        let mappings = self.mappings.write();
        let space = OstdSpace::new();
        let mut children = Mappings::new();
        for (start, mapping) in &*mappings {
            children.insert(*start, mapping.fork(space.clone())?);
        }
        Ok(Process::with(space, children))
    }

    /// Resolves a fault; an error is the signal's.
    pub fn fault(&self, address: VirtAddr, access: Access) -> Result<(), FaultError> {
        self.faults.fetch_add(1, Ordering::Relaxed);
        let mappings = self.mappings.read();
        let (_, mapping) = mappings.range(..=address).next_back().ok_or(FaultError::NotMapped)?;
        match mapping.fault(address, access) {
            // The mappings in the slot leave the shared table, and the access comes again.
            Err(FaultError::SlotShared) => {
                let in_slot = mappings.range(..address.floor(Level::Pud) + SLOT_SIZE).rev();
                for (_, mapping) in in_slot {
                    mapping.leave_slot(address)?;
                }
                Ok(())
            }
            result => result,
        }
    }
}
