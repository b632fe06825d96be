//! A simulated process: the host kernel's side, as small as it can be.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use hugetlb::filetables::format::X86_64;
use hugetlb::{
    Access, CheckRound, Error, FaultError, File, Flush, Format, Level, Machine, MapOptions, MapRequest,
    Mapping, OutOfMemory, Protection, SLOT_SIZE, SpaceToken, VirtAddr,
};
use parking_lot::RwLock;

use crate::machine::SimMachine;
use crate::space::SimSpace;

/// What an access that could not be made is answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGSEGV.
    Segv,
    /// SIGBUS.
    Bus,
    /// No memory for page tables.
    OutOfMemory,
}

type Mappings<F> = BTreeMap<VirtAddr, Mapping<SimMachine<F>>>;

/// What the address-space lock guards.
struct Areas<F: Format> {
    mappings: Mappings<F>,
    token: SpaceToken<SimSpace<F>>,
}

/// An address space with its mappings, behind the address-space lock.
pub struct Process<F: Format = X86_64> {
    machine: SimMachine<F>,
    space: SimSpace<F>,
    areas: RwLock<Areas<F>>,
}

impl<F: Format> Process<F> {
    pub(crate) fn new(machine: SimMachine<F>, space: SimSpace<F>) -> Process<F> {
        let token = SpaceToken::new(space.clone());
        Process { machine, space, areas: RwLock::new(Areas { mappings: Mappings::new(), token }) }
    }

    /// The page tables.
    pub fn space(&self) -> &SimSpace<F> {
        &self.space
    }

    /// Maps part of a file; nothing else is in the range.
    pub fn map(
        &self,
        file: &Arc<File<SimMachine<F>>>,
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
    pub fn unmap(&self, range: Range<VirtAddr>) -> Result<(), Error> {
        let Areas { mappings, token } = &mut *self.areas.write();
        for start in self.isolate(mappings, &range)? {
            if let Some(mapping) = mappings.remove(&start) {
                mapping.unmap(token);
            }
        }
        self.free_tables(mappings, &range);
        Ok(())
    }

    /// Changes what the mappings in the range permit.
    pub fn protect(&self, range: Range<VirtAddr>, protection: Protection) -> Result<(), Error> {
        let mappings = &mut self.areas.write().mappings;
        for start in self.isolate(mappings, &range)? {
            if let Some(mapping) = mappings.get_mut(&start) {
                mapping.protect(protection);
            }
        }
        Ok(())
    }

    /// MADV_DONTNEED on a range inside one mapping.
    pub fn discard(&self, range: Range<VirtAddr>) -> Result<(), Error> {
        let mappings = &self.areas.read().mappings;
        let (_, mapping) = mappings.range(..=range.start).next_back().ok_or(Error::Invalid)?;
        mapping.discard(range)
    }

    /// Moves the mapping that starts at `from`; nothing else is in the new range.
    pub fn move_to(&self, from: VirtAddr, to: VirtAddr) -> Result<(), Error> {
        let mappings = &mut self.areas.write().mappings;
        let mut mapping = mappings.remove(&from).ok_or(Error::Invalid)?;
        let old = from..from + mapping.length();
        let result = mapping.move_to(to);
        mappings.insert(mapping.start(), mapping);
        self.free_tables(mappings, &old);
        result
    }

    /// A child; `None` without a frame for its PUD table.
    pub fn fork(&self) -> Option<Process<F>> {
        let areas = self.areas.write();
        let mut child = Process::new(self.machine.clone(), self.machine.space()?);
        let copy = child.areas.get_mut();
        for (start, mapping) in &areas.mappings {
            copy.mappings.insert(*start, mapping.fork(&mut copy.token).ok()?);
        }
        Some(child)
    }

    /// A load by a program on a CPU.
    pub fn load(&self, cpu: usize, address: VirtAddr) -> Result<u64, Signal> {
        loop {
            match self.machine.cpu(cpu).load(&self.space, address) {
                Ok(value) => return Ok(value),
                Err(_) => self.fault(cpu, address, Access::Read)?,
            }
        }
    }

    /// A store by a program on a CPU.
    pub fn store(&self, cpu: usize, address: VirtAddr, value: u64) -> Result<(), Signal> {
        loop {
            match self.machine.cpu(cpu).store(&self.space, address, value) {
                Ok(()) => return Ok(()),
                Err(_) => self.fault(cpu, address, Access::Write)?,
            }
        }
    }

    /// Looks at all that the hardware can reach through the mappings, see [`Mapping::check`].
    pub fn check(&self, round: &mut CheckRound<SimMachine<F>>) -> Result<(), String> {
        self.areas.read().mappings.values().try_for_each(|mapping| mapping.check(round))
    }

    fn fault(&self, cpu: usize, address: VirtAddr, access: Access) -> Result<(), Signal> {
        let result = self.resolve(address, access);
        if !self.machine.rules().fault_forgets {
            self.machine.cpu(cpu).flush_here(&self.space, address);
        }
        result
    }

    fn resolve(&self, address: VirtAddr, access: Access) -> Result<(), Signal> {
        let mappings = &self.areas.read().mappings;
        let (_, mapping) = mappings.range(..=address).next_back().ok_or(Signal::Segv)?;
        mapping.fault(address, access).or_else(|error| match error {
            FaultError::Sigbus | FaultError::Poisoned(_) => Err(Signal::Bus),
            FaultError::OutOfMemory => Err(Signal::OutOfMemory),
            FaultError::Access | FaultError::NotMapped => Err(Signal::Segv),
            // The access comes again.
            FaultError::SlotShared => Self::give_slot(mappings, address),
        })
    }

    /// Takes the mappings in a slot out of the shared table there.
    fn give_slot(mappings: &Mappings<F>, address: VirtAddr) -> Result<(), Signal> {
        let in_slot = mappings.range(..address.floor(Level::Pud) + SLOT_SIZE);
        in_slot.rev().try_for_each(|(_, mapping)| {
            mapping.leave_slot(address).map(|_| ()).map_err(|OutOfMemory| Signal::OutOfMemory)
        })
    }

    /// Splits what crosses the ends of the range; returns the starts of the mappings that lie inside.
    fn isolate(&self, mappings: &mut Mappings<F>, range: &Range<VirtAddr>) -> Result<Vec<VirtAddr>, Error> {
        for at in [range.start, range.end] {
            if let Some((start, mapping)) = mappings.range_mut(..at).next_back()
                && *start < at
                && at < *start + mapping.length()
            {
                let upper = mapping.split(at)?;
                mappings.insert(at, upper);
            }
        }
        Ok(mappings.range(range.clone()).map(|(start, _)| *start).collect())
    }

    /// Frees the host's tables of slots in which no mapping is left.
    fn free_tables(&self, mappings: &Mappings<F>, range: &Range<VirtAddr>) {
        let mut slot = range.start.floor(Level::Pud);
        while slot < range.end {
            let end = slot + SLOT_SIZE;
            let used = mappings
                .range(..end)
                .next_back()
                .is_some_and(|(start, mapping)| *start + mapping.length() > slot);
            if !used {
                self.machine.free_slot(&self.space, slot);
            }
            slot = end;
        }
    }
}

/// Exit.
impl<F: Format> Drop for Process<F> {
    fn drop(&mut self) {
        let last =
            self.areas.read().mappings.last_key_value().map(|(start, mapping)| *start + mapping.length());
        let all = VirtAddr(0)..last.unwrap_or(VirtAddr(0)).max(VirtAddr(512 * SLOT_SIZE));
        self.unmap(all.clone()).expect("nothing is cut");
        // The host's upper tables go with the space.
        self.machine.flush(&[Flush { space: self.space.clone(), range: all, tables: true }]);
    }
}
