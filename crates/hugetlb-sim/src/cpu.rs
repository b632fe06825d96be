//! A simulated CPU: a page walker, and a TLB that only a flush empties.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hugetlb::filetables::format::Native;
use hugetlb::{Access, EntryValue, Format, Level, PageSize, PhysAddr, Protection, Space, VirtAddr};
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
    rights: Protection,
}

impl Translation {
    fn permits(&self, access: Access) -> bool {
        self.rights.contains(match access {
            Access::Read => Protection::READ,
            Access::Write => Protection::WRITE,
            Access::Execute => Protection::EXECUTE,
        })
    }

    /// Whether it permits nothing that `other` does not, and leads to the same place.
    pub(crate) fn is_within(&self, other: &Translation) -> bool {
        self.frame == other.frame && self.size == other.size && other.rights.contains(self.rights)
    }
}

/// What a paging-structure cache has of an entry: the space, the level, where the entry begins.
type TableKey = (u64, Level, VirtAddr);

/// What a CPU remembers, keyed by space and address. Spaces are tagged (as with PCIDs), so that a switch flushes nothing: the
/// harshest case.
#[derive(Default)]
pub(crate) struct Tlb {
    pub(crate) leaves: HashMap<(u64, VirtAddr), (SimSpace, Translation)>,
    /// The paging-structure caches: entries that lead to tables, with the rights that the levels above leave.
    pub(crate) tables: HashMap<TableKey, (SimSpace, EntryValue, Protection)>,
}

impl Tlb {
    pub(crate) fn flush(&mut self, space: u64, range: &Range<VirtAddr>, tables: bool) {
        self.leaves.retain(|(id, address), (_, translation)| {
            let end = *address + translation.size.bytes();
            *id != space || end <= range.start || *address >= range.end
        });
        if tables {
            self.tables.retain(|(id, level, start), _| {
                *id != space || *start + level.span() <= range.start || *start >= range.end
            });
        }
    }

    /// As on x86, a page fault drops what the TLB has for the address.
    fn forget(&mut self, space: u64, address: VirtAddr) {
        for size in PageSize::ALL {
            self.leaves.remove(&(space, address.floor(size.level())));
        }
        for level in [Level::Pud, Level::Pgd] {
            self.tables.remove(&(space, level, address.floor(level)));
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
            tlb.forget(space.id(), address);
            return Err(PageFault);
        };
        let within = address.0 & (translation.size.bytes() - 1);
        Ok(work(PhysAddr(translation.frame.0 + within)))
    }

    fn translate(&self, tlb: &mut Tlb, space: &SimSpace, address: VirtAddr) -> Option<Translation> {
        for size in PageSize::ALL {
            if let Some((_, hit)) = tlb.leaves.get(&(space.id(), address.floor(size.level())))
                && hit.size == size
            {
                return Some(*hit);
            }
        }
        // From the lowest table that a paging-structure cache leads to.
        let cached = [Level::Pud, Level::Pgd].into_iter().find_map(|level| {
            let (_, value, rights) = tlb.tables.get(&(space.id(), level, address.floor(level)))?;
            Some((level, *value, *rights))
        });
        let first = || {
            (Level::Pgd, space.root()[Level::Pgd.index(address)].load(Ordering::SeqCst), Protection::all())
        };
        let (mut level, mut value, mut rights) = cached.unwrap_or_else(first);
        while Native::is_present(value) && !Native::is_leaf(level, value) && level > Level::Pmd {
            tlb.tables.insert((space.id(), level, address.floor(level)), (space.clone(), value, rights));
            rights &= Native::protection(value);
            level = level.below()?;
            let table = self.memory.table(Native::table_frame(value));
            value = table[level.index(address)].load(Ordering::SeqCst);
        }
        let found = translation(level, value, rights)?;
        tlb.leaves.insert((space.id(), address.floor(found.size.level())), (space.clone(), found));
        Some(found)
    }
}

/// What a leaf says, with the rights that the levels above leave. Rights combine: all must permit stores, none forbid
/// execution.
fn translation(level: Level, value: EntryValue, rights: Protection) -> Option<Translation> {
    let size = PageSize::ALL.into_iter().find(|size| size.level() == level)?;
    let is_leaf = Native::is_leaf(level, value);
    is_leaf.then(|| Translation {
        frame: Native::leaf_frame(level, value),
        size,
        rights: rights & Native::protection(value),
    })
}

/// Whether a cached entry leads to the table that the entry leads to now, and permits nothing that it does not.
pub(crate) fn table_is_within(held: EntryValue, now: EntryValue) -> bool {
    Native::is_present(now)
        && Native::table_frame(held) == Native::table_frame(now)
        && Native::protection(now).contains(Native::protection(held))
}

/// What the tables say of an address now.
pub(crate) fn walk(space: &SimSpace, address: VirtAddr) -> Option<Translation> {
    let mut rights = Protection::all();
    let mut level = Level::Pgd;
    loop {
        let value = space.now(address, level);
        if !Native::is_present(value) {
            return None;
        }
        if let Some(found) = translation(level, value, rights) {
            return Some(found);
        }
        rights &= Native::protection(value);
        level = level.below()?;
    }
}
