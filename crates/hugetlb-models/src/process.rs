//! A process of a model: the host kernel's side, as small as it can be.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use hugetlb::{
    Access, Error, FaultError, File, Level, MapOptions, MapRequest, Mapping, Protection, SLOT_SIZE, Space,
    SpaceToken, VirtAddr,
};

use crate::lock::RawRwLock;
use crate::machine::ModelMachine;
use crate::space::{ModelSpace, SLOTS, WIDE};

/// What an access that could not be made is answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGSEGV.
    Segv,
    /// SIGBUS.
    Bus,
}

type Mappings = BTreeMap<VirtAddr, Mapping<ModelMachine>>;

/// What the address-space lock guards.
struct Areas {
    mappings: Mappings,
    token: SpaceToken<ModelSpace>,
}

/// An address space with its mappings, behind the address-space lock.
pub struct Process {
    machine: ModelMachine,
    space: ModelSpace,
    areas: lock_api::RwLock<RawRwLock, Areas>,
}

impl Process {
    pub(crate) fn new(machine: &ModelMachine) -> Process {
        let space = machine.space();
        let areas = Areas { mappings: Mappings::new(), token: SpaceToken::new(space.clone()) };
        Process { machine: machine.clone(), space, areas: lock_api::RwLock::new(areas) }
    }

    /// Its page tables.
    pub fn space(&self) -> &ModelSpace {
        &self.space
    }

    /// Maps part of a file; nothing else is in the range.
    pub fn map(
        &self,
        file: &Arc<File<ModelMachine>>,
        start: VirtAddr,
        length: u64,
        offset: u64,
        options: MapOptions,
    ) -> Result<(), Error> {
        let mut areas = self.areas.write();
        let mapping = file.map(&mut areas.token, MapRequest { start, length, offset, options })?;
        areas.mappings.insert(start, mapping);
        Ok(())
    }

    /// Takes all mappings in the range away; ends of the range may lie inside mappings.
    pub fn unmap(&self, range: Range<VirtAddr>) {
        let Areas { mappings, token } = &mut *self.areas.write();
        for start in Self::isolate(mappings, &range) {
            if let Some(mapping) = mappings.remove(&start) {
                mapping.unmap(token);
            }
        }
        self.free_tables(mappings, &range);
    }

    /// Takes all mappings away, as at the end.
    pub fn exit(&self) {
        self.unmap(VirtAddr(0)..VirtAddr(2 * SLOTS * SLOT_SIZE));
    }

    /// Changes what the mappings in the range permit.
    pub fn protect(&self, range: Range<VirtAddr>, protection: Protection) {
        let mappings = &mut self.areas.write().mappings;
        for start in Self::isolate(mappings, &range) {
            if let Some(mapping) = mappings.get_mut(&start) {
                mapping.protect(protection);
            }
        }
    }

    /// MADV_DONTNEED on a range inside one mapping.
    pub fn discard(&self, range: Range<VirtAddr>) -> Result<(), Error> {
        let mappings = &self.areas.read().mappings;
        let (_, mapping) = mappings.range(..=range.start).next_back().ok_or(Error::Invalid)?;
        mapping.discard(range)
    }

    /// Moves the only mapping, which starts at `from`.
    pub fn move_to(&self, from: VirtAddr, to: VirtAddr) -> Result<(), Error> {
        let mappings = &mut self.areas.write().mappings;
        let mut mapping = mappings.remove(&from).ok_or(Error::Invalid)?;
        let old = from..from + mapping.length();
        let result = mapping.move_to(to);
        mappings.insert(mapping.start(), mapping);
        self.free_tables(mappings, &old);
        result
    }

    /// A child.
    pub fn fork(&self) -> Process {
        let areas = self.areas.write();
        let child = Process::new(&self.machine);
        for (start, mapping) in &areas.mappings {
            let copy = &mut *child.areas.write();
            let mapping = mapping.fork(&mut copy.token).expect("memory never is short");
            copy.mappings.insert(*start, mapping);
        }
        drop(areas);
        child
    }

    /// A load by a program on a CPU.
    pub fn load(&self, cpu: usize, address: VirtAddr) -> Result<u64, Signal> {
        self.access(cpu, address, None)
    }

    /// A store by a program on a CPU.
    pub fn store(&self, cpu: usize, address: VirtAddr, value: u64) -> Result<(), Signal> {
        self.access(cpu, address, Some(value)).map(|_| ())
    }

    fn access(&self, cpu: usize, address: VirtAddr, store: Option<u64>) -> Result<u64, Signal> {
        let access = if store.is_some() { Access::Write } else { Access::Read };
        // Somebody may take the page away before the access is tried again, but not for ever.
        for _ in 0..8 {
            if let Ok(value) = self.machine.access(cpu, &self.space, address, store) {
                return Ok(value);
            }
            self.fault(address, access)?;
        }
        panic!("faults are resolved and the access faults all the same");
    }

    /// The fault of an access, without the access.
    pub fn fault(&self, address: VirtAddr, access: Access) -> Result<(), Signal> {
        let mappings = &self.areas.read().mappings;
        let (_, mapping) = mappings.range(..=address).next_back().ok_or(Signal::Segv)?;
        loop {
            return match mapping.fault(address, access) {
                Ok(()) => Ok(()),
                Err(FaultError::Sigbus | FaultError::Poisoned(_)) => Err(Signal::Bus),
                Err(FaultError::OutOfMemory) => panic!("there are tables enough"),
                Err(FaultError::Access | FaultError::NotMapped) => Err(Signal::Segv),
                Err(FaultError::SlotShared) => {
                    self.give_slot(mappings, address);
                    continue;
                }
            };
        }
    }

    /// A load by the host for somebody else, through the mapping: `/proc/PID/mem`.
    pub fn load_remote(&self, address: VirtAddr) -> Result<u64, FaultError> {
        let mappings = &self.areas.read().mappings;
        let (_, mapping) = mappings.range(..=address).next_back().ok_or(FaultError::NotMapped)?;
        mapping.fault_then(address, Access::Read, |frame| self.machine.word(frame))
    }

    /// Takes the only mapping behind [`WIDE`] out of a shared PUD table, as a fault does that finds too many windows below it.
    pub fn leave_wide(&self) {
        let mappings = &self.areas.read().mappings;
        let (_, mapping) = mappings.range(WIDE..).next().expect("a mapping");
        mapping.leave_slot(WIDE).expect("there are tables enough");
    }

    /// Makes the host's table in a slot, as a fault on a base page does.
    pub fn take_slot(&self, address: VirtAddr) {
        let mappings = &self.areas.read().mappings;
        let is_there = || self.space.entry(address, Level::Pmd).expect("there are tables enough").is_some();
        if !is_there() {
            self.give_slot(mappings, address);
            assert!(is_there(), "a slot that was asked for stays shared");
        }
    }

    /// Takes the mappings in a slot out of the shared table there.
    fn give_slot(&self, mappings: &Mappings, address: VirtAddr) {
        for mapping in
            mappings.range(..address.floor(Level::Pud) + SLOT_SIZE).rev().map(|(_, mapping)| mapping)
        {
            mapping.leave_slot(address).expect("there are tables enough");
        }
        // Of a wide table the host gets one for the slots in it.
        let level = if address < WIDE { Level::Pmd } else { Level::Pud };
        assert!(self.space.find_entry(address, level).is_some(), "a slot that was asked for stays shared");
    }

    /// What the host's own walks tell of an address: whether there is an entry, and whether it permits stores.
    pub fn translate(&self, address: VirtAddr) -> Option<bool> {
        let mappings = &self.areas.read().mappings;
        let (_, mapping) = mappings.range(..=address).next_back()?;
        mapping.translate(address).map(|(_, writable)| writable)
    }

    /// Splits what crosses the ends of the range; returns the starts of the mappings that lie inside.
    fn isolate(mappings: &mut Mappings, range: &Range<VirtAddr>) -> Vec<VirtAddr> {
        for at in [range.start, range.end] {
            if let Some((start, mapping)) = mappings.range_mut(..at).next_back()
                && *start < at
                && at < *start + mapping.length()
            {
                let upper = mapping.split(at).expect("the range is aligned");
                mappings.insert(at, upper);
            }
        }
        mappings.range(range.clone()).map(|(start, _)| *start).collect()
    }

    /// Frees the host's tables of slots in which no mapping is left.
    fn free_tables(&self, mappings: &Mappings, range: &Range<VirtAddr>) {
        let mut slot = range.start.floor(Level::Pud);
        while slot < range.end {
            let end = slot + SLOT_SIZE;
            let used = mappings
                .range(..end)
                .next_back()
                .is_some_and(|(start, mapping)| *start + mapping.length() > slot);
            if !used && let Some(table) = self.space.take_slot_table(slot) {
                self.machine.free_host_table(&self.space, slot, Level::Pud, table);
            }
            slot = end;
        }
        let is_last = mappings.iter().all(|(start, mapping)| *start + mapping.length() <= WIDE);
        if range.end > WIDE
            && is_last
            && let Some(table) = self.space.take_wide_table()
        {
            self.machine.free_host_table(&self.space, WIDE, Level::Pgd, table);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A model that failed has locks that are held.
        if !std::thread::panicking() {
            self.exit();
        }
    }
}
