//! A simulated CPU: a page walker, and a TLB that only a flush empties.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hugetlb::{Access, PageSize, PhysAddr, SLOT_SIZE, Space, VirtAddr, format};
use parking_lot::Mutex;

use crate::memory::Memory;
use crate::space::SimSpace;

/// The tables do not permit an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault;

/// A translation, with the permissions of all levels combined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Translation {
    pub(crate) frame: PhysAddr,
    pub(crate) size: PageSize,
    writable: bool,
    executable: bool,
}

impl Translation {
    fn permits(&self, access: Access) -> bool {
        match access {
            Access::Read => true,
            Access::Write => self.writable,
            Access::Execute => self.executable,
        }
    }

    /// Whether it permits nothing that `other` does not, and leads to the same place.
    pub(crate) fn is_within(&self, other: &Translation) -> bool {
        self.frame == other.frame
            && self.size == other.size
            && self.writable <= other.writable
            && self.executable <= other.executable
    }
}

/// What a CPU remembers, keyed by space and address. Spaces are tagged (as with PCIDs), so that a switch flushes nothing: the
/// harshest case.
#[derive(Default)]
pub(crate) struct Tlb {
    pub(crate) leaves: HashMap<(u64, VirtAddr), (SimSpace, Translation)>,
    /// The paging-structure cache: PUD entries that lead to tables.
    pub(crate) tables: HashMap<(u64, VirtAddr), (SimSpace, u64)>,
}

impl Tlb {
    pub(crate) fn flush(&mut self, space: u64, range: &Range<VirtAddr>, tables: bool) {
        self.leaves.retain(|(id, address), (_, translation)| {
            let end = *address + translation.size.bytes();
            *id != space || end <= range.start || *address >= range.end
        });
        if tables {
            self.tables.retain(|(id, slot), _| {
                *id != space || *slot + SLOT_SIZE <= range.start || *slot >= range.end
            });
        }
    }
}

/// A CPU. An access holds its TLB's lock, as an instruction runs to its end before an interrupt.
pub struct Cpu {
    pub(crate) memory: Arc<Memory>,
    pub(crate) tlb: Mutex<Tlb>,
}

impl Cpu {
    /// A load.
    pub fn load(&self, space: &SimSpace, address: VirtAddr) -> Result<u64, PageFault> {
        self.with(space, address, Access::Read, |place| self.memory.word(place).load(Ordering::SeqCst))
    }

    /// A store.
    pub fn store(&self, space: &SimSpace, address: VirtAddr, value: u64) -> Result<(), PageFault> {
        self.with(space, address, Access::Write, |place| {
            self.memory.word(place).store(value, Ordering::SeqCst)
        })
    }

    fn with<T>(
        &self,
        space: &SimSpace,
        address: VirtAddr,
        access: Access,
        work: impl FnOnce(PhysAddr) -> T,
    ) -> Result<T, PageFault> {
        let mut tlb = self.tlb.lock();
        let translation = self.translate(&mut tlb, space, address).filter(|found| found.permits(access));
        let Some(translation) = translation else {
            // As on x86, a page fault drops what the TLB has for the address.
            for size in PageSize::ALL {
                tlb.leaves.remove(&(space.id(), address.page(size)));
            }
            tlb.tables.remove(&(space.id(), address.slot()));
            return Err(PageFault);
        };
        let within = address.0 & (translation.size.bytes() - 1);
        Ok(work(PhysAddr(translation.frame.0 + within)))
    }

    fn translate(&self, tlb: &mut Tlb, space: &SimSpace, address: VirtAddr) -> Option<Translation> {
        for size in PageSize::ALL {
            if let Some((_, hit)) = tlb.leaves.get(&(space.id(), address.page(size)))
                && hit.size == size
            {
                return Some(*hit);
            }
        }
        let key = (space.id(), address.slot());
        let pud = match tlb.tables.get(&key) {
            Some((_, pud)) => *pud,
            None => space.entry(address).load(Ordering::SeqCst),
        };
        let found = walk(&self.memory, pud, address)?;
        if found.size == PageSize::Size2M {
            tlb.tables.insert(key, (space.clone(), pud));
        }
        tlb.leaves.insert((space.id(), address.page(found.size)), (space.clone(), found));
        Some(found)
    }
}

const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const NO_EXECUTE: u64 = 1 << 63;

/// Whether a cached PUD entry leads to the table that the entry leads to now, and permits nothing that it does not.
pub(crate) fn table_is_within(held: u64, now: u64) -> bool {
    let rights = WRITABLE | NO_EXECUTE;
    held & !rights == now & !rights
        && held & WRITABLE <= now & WRITABLE
        && held & NO_EXECUTE >= now & NO_EXECUTE
}

/// What the tables below a PUD entry say of an address.
pub(crate) fn walk(memory: &Memory, pud: u64, address: VirtAddr) -> Option<Translation> {
    if !format::is_present(pud) || pud & USER == 0 {
        return None;
    }
    let (leaf, size) = if format::is_leaf(pud) {
        (pud, PageSize::Size1G)
    } else {
        let table = memory.table(format::table_frame(pud));
        let entry = table[(address.0 >> PageSize::Size2M.shift()) as usize % 512].load(Ordering::SeqCst);
        (entry, PageSize::Size2M)
    };
    if !format::is_leaf(leaf) || leaf & USER == 0 {
        return None;
    }
    // Permissions combine over the levels: all must permit stores, none forbid execution.
    Some(Translation {
        frame: format::leaf_frame(leaf, size),
        size,
        writable: format::is_writable(leaf) && format::is_writable(pud),
        executable: (leaf | pud) & NO_EXECUTE == 0,
    })
}
