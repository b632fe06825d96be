//! A process: an address space, its mappings, and what its faults are resolved by. Every host has something like it.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use hugetlb::{
    Access, Error, FaultError, File, Level, MapOptions, MapRequest, Mapping, SLOT_SIZE, SpaceToken, VirtAddr,
};
use lock_api::RwLock;

use crate::locks::RawSleepRw;
use crate::machine::Ostd;
use crate::space::OstdSpace;

type Mappings = BTreeMap<VirtAddr, Mapping<Ostd>>;

/// What the address-space lock guards: the mappings, and the proof that it is held.
pub struct Areas {
    pub mappings: Mappings,
    pub token: SpaceToken<OstdSpace>,
}

/// A process that has files mapped.
pub struct Process {
    pub areas: RwLock<RawSleepRw, Areas>,
    space: OstdSpace,
}

impl Process {
    pub fn new() -> Arc<Process> {
        let space = OstdSpace::new();
        Process::with(Areas { mappings: Mappings::new(), token: SpaceToken::new(space) })
    }

    fn with(areas: Areas) -> Arc<Process> {
        let space = areas.token.space().clone();
        Arc::new(Process { areas: RwLock::new(areas), space })
    }

    pub fn space(&self) -> &OstdSpace {
        &self.space
    }

    /// Maps a file from its beginning, in the place of what was there.
    pub fn map(
        &self,
        file: &Arc<File<Ostd>>,
        start: VirtAddr,
        length: u64,
        options: MapOptions,
    ) -> Result<(), Error> {
        let mut areas = self.areas.write();
        areas.unmap(start..start + length)?;
        let mapping = file.map(&mut areas.token, MapRequest { start, length, offset: 0, options })?;
        areas.mappings.insert(start, mapping);
        Ok(())
    }

    pub fn fork(&self) -> Result<Arc<Process>, Error> {
        let parent = self.areas.write();
        let mut child = Areas { mappings: Mappings::new(), token: SpaceToken::new(OstdSpace::new()) };
        for (start, mapping) in &parent.mappings {
            match mapping.fork(&mut child.token) {
                Ok(copy) => child.mappings.insert(*start, copy),
                Err(error) => {
                    // What was made goes as in an exit.
                    drop(Process::with(child));
                    return Err(error.into());
                }
            };
        }
        Ok(Process::with(child))
    }

    /// Resolves a fault; an error is the signal's.
    pub fn fault(&self, address: VirtAddr, access: Access) -> Result<(), FaultError> {
        let mappings = &self.areas.read().mappings;
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

/// Exit.
impl Drop for Process {
    fn drop(&mut self) {
        let Areas { mappings, token } = self.areas.get_mut();
        while let Some((_, mapping)) = mappings.pop_first() {
            mapping.unmap(token);
        }
    }
}
