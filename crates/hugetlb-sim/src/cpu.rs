//! A simulated CPU: a page walker, and a TLB that only a flush empties.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hugetlb::filetables::format::X86_64;
use hugetlb::{Access, EntryValue, Format, Level, PageSize, PhysAddr, Protection, Space, VirtAddr};
use parking_lot::Mutex;

use crate::memory::Memory;
use crate::rules::Rules;
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
pub(crate) struct Tlb<F: Format> {
    pub(crate) leaves: HashMap<(u64, VirtAddr), (SimSpace<F>, Translation)>,
    /// The paging-structure caches: entries that lead to tables, with the rights that the levels above leave.
    pub(crate) tables: HashMap<TableKey, (SimSpace<F>, EntryValue, Protection)>,
}

impl<F: Format> Default for Tlb<F> {
    fn default() -> Tlb<F> {
        Tlb { leaves: HashMap::new(), tables: HashMap::new() }
    }
}

impl<F: Format> Tlb<F> {
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

    /// Drops all that is used for an address.
    fn forget(&mut self, space: u64, address: VirtAddr) {
        for size in PageSize::ALL {
            self.leaves.remove(&(space, address.floor(size.level())));
        }
        for level in [Level::Pud, Level::Pgd] {
            self.tables.remove(&(space, level, address.floor(level)));
        }
    }

    /// What it holds that contradicts a leaf of another place.
    fn contradicts_leaf(&self, space: u64, address: VirtAddr, found: &Translation) -> bool {
        let leaf = PageSize::ALL.into_iter().any(|size| {
            let held = self.leaves.get(&(space, address.floor(size.level())));
            held.is_some_and(|(_, held)| {
                held.size == size && (held.size != found.size || held.frame != found.frame)
            })
        });
        let level = found.size.level();
        leaf || self.tables.contains_key(&(space, level, address.floor(level)))
    }

    /// What it holds that contradicts an entry of `level` that leads to a table.
    fn contradicts_table(&self, space: u64, level: Level, address: VirtAddr, table: PhysAddr) -> bool {
        let held = self.tables.get(&(space, level, address.floor(level)));
        held.is_some_and(|(_, held, _)| F::table_frame(*held) != table)
            || PageSize::ALL.into_iter().any(|size| {
                let leaf = self.leaves.get(&(space, address.floor(size.level())));
                size.level() == level && leaf.is_some_and(|(_, leaf)| leaf.size == size)
            })
    }
}

/// What all CPUs have in common.
pub(crate) struct Hardware<F: Format> {
    pub(crate) rules: Rules,
    pub(crate) memory: Arc<Memory>,
    pub(crate) tlbs: Vec<Mutex<Tlb<F>>>,
    /// Held over each access where all TLBs are looked at: the only one who holds two TLBs.
    walks: Mutex<()>,
    /// The first break that was left out.
    pub(crate) unbroken: Mutex<Option<String>>,
}

impl<F: Format> Hardware<F> {
    pub(crate) fn new(rules: Rules, memory: Arc<Memory>, cpus: usize) -> Hardware<F> {
        Hardware {
            rules,
            memory,
            tlbs: (0..cpus).map(|_| Mutex::default()).collect(),
            walks: Mutex::new(()),
            unbroken: Mutex::new(None),
        }
    }

    /// The rights that an entry which leads to a table leaves.
    pub(crate) fn left(&self, value: EntryValue) -> Protection {
        if self.rules.rights_combine { F::table_rights(value) } else { Protection::all() }
    }

    /// Break before make: looks whether another CPU still has a translation to another place.
    fn look_for_conflicts(&self, cpu: usize, what: &dyn Fn(&Tlb<F>) -> bool, place: &dyn Fn() -> String) {
        if !self.rules.break_before_make {
            return;
        }
        for (number, tlb) in self.tlbs.iter().enumerate().filter(|(number, _)| *number != cpu) {
            if what(&tlb.lock()) {
                let report = || format!("CPU {cpu} reads {}, of which CPU {number} has another", place());
                self.unbroken.lock().get_or_insert_with(report);
            }
        }
    }
}

/// A CPU. An access holds its TLB's lock, as an instruction runs to its end before an interrupt.
pub struct Cpu<F: Format = X86_64> {
    pub(crate) hardware: Arc<Hardware<F>>,
    pub(crate) number: usize,
}

impl<F: Format> Cpu<F> {
    /// A load.
    pub fn load(&self, space: &SimSpace<F>, address: VirtAddr) -> Result<u64, PageFault> {
        self.with(space, address, Access::Read, |place| {
            self.hardware.memory.word(place).load(Ordering::SeqCst)
        })
    }

    /// A store.
    pub fn store(&self, space: &SimSpace<F>, address: VirtAddr, value: u64) -> Result<(), PageFault> {
        self.with(space, address, Access::Write, |place| {
            self.hardware.memory.word(place).store(value, Ordering::SeqCst)
        })
    }

    /// Reads the tables of an address ahead of any access, as CPUs do when they like.
    pub fn look(&self, space: &SimSpace<F>, address: VirtAddr) {
        // It loads nothing, and there may be nothing.
        let _ = self.with(space, address, Access::Read, |_| ());
    }

    /// Forgets, on this CPU, what it has for an address: what a host does after a fault where the hardware does not.
    pub fn flush_here(&self, space: &SimSpace<F>, address: VirtAddr) {
        self.tlb().lock().forget(space.id(), address);
    }

    pub(crate) fn tlb(&self) -> &Mutex<Tlb<F>> {
        &self.hardware.tlbs[self.number]
    }

    fn with<T>(
        &self,
        space: &SimSpace<F>,
        address: VirtAddr,
        access: Access,
        work: impl FnOnce(PhysAddr) -> T,
    ) -> Result<T, PageFault> {
        let _walk = self.hardware.rules.break_before_make.then(|| self.hardware.walks.lock());
        let mut tlb = self.tlb().lock();
        let translation = self.translate(&mut tlb, space, address).filter(|found| found.permits(access));
        let Some(translation) = translation else {
            if self.hardware.rules.fault_forgets {
                tlb.forget(space.id(), address);
            }
            return Err(PageFault);
        };
        let within = address.0 & (translation.size.bytes() - 1);
        Ok(work(PhysAddr(translation.frame.0 + within)))
    }

    fn translate(&self, tlb: &mut Tlb<F>, space: &SimSpace<F>, address: VirtAddr) -> Option<Translation> {
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
        let root = self.hardware.rules.root;
        let first = || (root, space.root()[root.index(address)].load(Ordering::SeqCst), Protection::all());
        let (mut level, mut value, mut rights) = cached.unwrap_or_else(first);
        while F::is_present(value) && !F::is_leaf(level, value) && level > Level::Pmd {
            let frame = F::table_frame(value);
            self.hardware.look_for_conflicts(
                self.number,
                &|other| other.contradicts_table(space.id(), level, address, frame),
                &|| format!("the table {frame:?} of {level:?} at {address:?} in space {}", space.id()),
            );
            tlb.tables.insert((space.id(), level, address.floor(level)), (space.clone(), value, rights));
            rights &= self.hardware.left(value);
            level = level.below()?;
            value = self.hardware.memory.table(frame)[level.index(address)].load(Ordering::SeqCst);
        }
        let found = translation::<F>(level, value, rights)?;
        self.hardware.look_for_conflicts(
            self.number,
            &|other| other.contradicts_leaf(space.id(), address, &found),
            &|| format!("{found:?} at {address:?} in space {}", space.id()),
        );
        tlb.leaves.insert((space.id(), address.floor(found.size.level())), (space.clone(), found));
        Some(found)
    }
}

/// What a leaf says, with the rights that the levels above leave.
fn translation<F: Format>(level: Level, value: EntryValue, rights: Protection) -> Option<Translation> {
    let size = PageSize::ALL.into_iter().find(|size| size.level() == level)?;
    let is_leaf = F::is_leaf(level, value);
    is_leaf.then(|| Translation {
        frame: F::leaf_frame(level, value),
        size,
        rights: rights & F::protection(value),
    })
}

/// Whether a cached entry leads to the table that the entry leads to now, and permits nothing that it does not.
pub(crate) fn table_is_within<F: Format>(held: EntryValue, now: EntryValue) -> bool {
    F::is_present(now)
        && F::table_frame(held) == F::table_frame(now)
        && F::table_rights(now).contains(F::table_rights(held))
}

/// What the tables say of an address now.
pub(crate) fn walk<F: Format>(
    hardware: &Hardware<F>,
    space: &SimSpace<F>,
    address: VirtAddr,
) -> Option<Translation> {
    let mut rights = Protection::all();
    let mut level = hardware.rules.root;
    loop {
        let value = space.now(address, level);
        if !F::is_present(value) {
            return None;
        }
        if let Some(found) = translation::<F>(level, value, rights) {
            return Some(found);
        }
        rights &= hardware.left(value);
        level = level.below()?;
    }
}
