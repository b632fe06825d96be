//! The page tables of an address space of a model: a PGD of two entries, the host's PUD table below the first.
//!
//! The second entry is empty at first: a mapping that fills it attaches to a PUD table of the file, as 512 GiB do.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hugetlb::filetables::format::Native;
use hugetlb::{Entry, EntryValue, Format, Level, OutOfMemory, PhysAddr, SLOT_SIZE, Space, VirtAddr};

use crate::machine::Memory;

/// Slots that a PGD entry spans.
pub(crate) const SLOTS: u64 = 4;
/// Where the second PGD entry begins, and the addresses end that the first spans.
pub const WIDE: VirtAddr = VirtAddr(SLOTS * SLOT_SIZE);

/// What an entry that leads to a table of the host says besides the frame: present, writable, user, accessed.
const HOST_TABLE: u64 = 0x27;

pub(crate) struct Upper {
    id: u64,
    memory: Arc<Memory>,
    pud: [Entry; SLOTS as usize],
    pgd: Entry,
}

/// A handle to the tables of an address space.
#[derive(Clone)]
pub struct ModelSpace(pub(crate) Arc<Upper>);

/// Takes a table of the host out of an entry: nothing is in it any more.
fn take_host_table(entry: &Entry, level: Level) -> Option<PhysAddr> {
    // Acquire: with the installation.
    let value = entry.load(Ordering::Acquire);
    if !Native::is_present(value) {
        return None;
    }
    assert!(!Native::is_managed(level, value), "a table of the library in a slot without mappings");
    entry.store(EntryValue::default(), Ordering::Release);
    Some(Native::table_frame(value))
}

impl ModelSpace {
    pub(crate) fn new(id: u64, memory: Arc<Memory>) -> ModelSpace {
        let pud = std::array::from_fn(|_| Entry::empty());
        ModelSpace(Arc::new(Upper { id, memory, pud, pgd: Entry::empty() }))
    }

    /// The PGD entry of an address; `None` below the first, which always leads to the same table.
    pub(crate) fn pgd(&self, address: VirtAddr) -> Option<&Entry> {
        (address >= WIDE).then_some(&self.0.pgd)
    }

    /// The PUD entry of an address, in the table that the PGD entry leads to.
    pub(crate) fn pud(&self, pgd: Option<EntryValue>, address: VirtAddr) -> &Entry {
        let slot = (address.0 / SLOT_SIZE % SLOTS) as usize;
        match pgd {
            None => &self.0.pud[slot],
            Some(pgd) => &self.0.memory.table(Native::table_frame(pgd))[slot],
        }
    }

    /// The PUD entry in a table of the host, if there is one.
    fn host_pud(&self, address: VirtAddr) -> Option<&Entry> {
        // Acquire: with the installation.
        let pgd = self.pgd(address).map(|entry| entry.load(Ordering::Acquire));
        let is_host = |pgd| Native::is_present(pgd) && !Native::is_managed(Level::Pgd, pgd);
        pgd.is_none_or(is_host).then(|| self.pud(pgd, address))
    }

    /// The host's table in a slot, taken out: nothing is in it any more.
    pub(crate) fn take_slot_table(&self, slot: VirtAddr) -> Option<PhysAddr> {
        take_host_table(self.host_pud(slot)?, Level::Pud)
    }

    /// The host's PUD table below the second PGD entry, taken out.
    pub(crate) fn take_wide_table(&self) -> Option<PhysAddr> {
        take_host_table(&self.0.pgd, Level::Pgd)
    }

    /// Makes the host's table that an entry is to lead to, unless there is one.
    fn fill(&self, entry: &Entry) -> Result<(), OutOfMemory> {
        // Acquire: with the installation.
        if !Native::is_present(entry.load(Ordering::Acquire)) {
            let table = self.0.memory.allocate_table().ok_or(OutOfMemory)?;
            if entry.fill(EntryValue(table.0 | HOST_TABLE)).is_err() {
                self.0.memory.retire_table(table);
            }
        }
        Ok(())
    }
}

impl Upper {
    /// Whether an entry of the address space's own leads to the table.
    pub(crate) fn leads_to(&self, table: PhysAddr) -> bool {
        self.pud
            .iter()
            .chain([&self.pgd])
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
            Level::Pgd => self.pgd(address),
            Level::Pud => self.host_pud(address),
            Level::Pmd => {
                // Acquire: with the installation.
                let pud = self.host_pud(address)?.load(Ordering::Acquire);
                let is_host = Native::is_present(pud) && !Native::is_managed(Level::Pud, pud);
                is_host.then(|| &self.0.memory.table(Native::table_frame(pud))[level.index(address)])
            }
            Level::Pte => None,
        }
    }

    fn entry(&self, address: VirtAddr, level: Level) -> Result<Option<&Entry>, OutOfMemory> {
        if level < Level::Pgd
            && let Some(pgd) = self.pgd(address)
        {
            self.fill(pgd)?;
        }
        if level < Level::Pud
            && let Some(pud) = self.host_pud(address)
        {
            self.fill(pud)?;
        }
        Ok(self.find_entry(address, level))
    }

    fn replace_managed(&self, address: VirtAddr, level: Level) -> Result<(), OutOfMemory> {
        let table = self.0.memory.allocate_table().ok_or(OutOfMemory)?;
        let entry = self.find_entry(address, level).expect("an entry that a mapping is attached by");
        // Release: with who walks. Acquire: what the shared table showed comes before.
        let old = entry.swap(EntryValue(table.0 | HOST_TABLE), Ordering::AcqRel);
        assert!(Native::is_managed(level, old), "a table that is not the library's is replaced");
        Ok(())
    }
}
