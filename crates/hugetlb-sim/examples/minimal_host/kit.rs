//! What the conformance kit asks for besides: what programs do on the machine, and what is in its memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hugetlb::filetables::Machine as _;
use hugetlb::filetables::format::Native;
use hugetlb::{Entry, Format, Level, PhysAddr, Space, TABLE_SIZE, VirtAddr};
use hugetlb_sim::conformance::Host;
use parking_lot::Mutex;

use super::{HUGE, Hardware, MinimalMachine, MinimalSpace, SIZE, TABLES, Tables};

impl Host for MinimalMachine {
    fn new() -> MinimalMachine {
        let frames = |(base, count), size| (0..count).map(|n| PhysAddr(base + n * size)).collect();
        MinimalMachine(Arc::new(Hardware {
            tables: (0..TABLES.1).map(|_| Box::new([const { Entry::empty() }; 512])).collect(),
            words: (0..HUGE.1 * SIZE / 8).map(|_| AtomicU64::new(0)).collect(),
            free: Mutex::new(frames(TABLES, TABLE_SIZE)),
            retired: Mutex::default(),
            free_huge: Mutex::new(frames(HUGE, SIZE)),
            tlb: Mutex::default(),
            spaces: AtomicU64::new(1),
        }))
    }

    fn space(&self) -> MinimalSpace {
        let id = self.0.spaces.fetch_add(1, Ordering::Relaxed);
        let root = self.allocate_table().expect("a table is free");
        MinimalSpace(Arc::new(Tables { id, machine: self.clone(), root }))
    }

    fn translate(&self, space: &MinimalSpace, address: VirtAddr) -> Option<PhysAddr> {
        let (page, within) = (address.floor(Level::Pmd), address.0 % SIZE);
        let mut tlb = self.0.tlb.lock();
        let frame = tlb.get(&(space.id(), page)).copied().or_else(|| {
            let (mut table, mut level) = (space.0.root, Level::Pgd);
            loop {
                let value = self.table(table)[level.index(address)].load(Ordering::Acquire);
                match level.below().filter(|_| Native::is_present(value)) {
                    Some(_) if Native::is_leaf(level, value) => {
                        return Some(Native::leaf_frame(level, value));
                    }
                    Some(below) => (table, level) = (Native::table_frame(value), below),
                    None => return None,
                }
            }
        })?;
        tlb.insert((space.id(), page), frame);
        Some(PhysAddr(frame.0 + within))
    }

    fn read(&self, place: PhysAddr) -> u64 {
        self.0.words[((place.0 - HUGE.0) / 8) as usize].load(Ordering::Relaxed)
    }

    fn write(&self, place: PhysAddr, value: u64) {
        self.0.words[((place.0 - HUGE.0) / 8) as usize].store(value, Ordering::Relaxed);
    }

    fn pass_grace_period(&self) {
        self.0.free.lock().append(&mut self.0.retired.lock());
    }
}
