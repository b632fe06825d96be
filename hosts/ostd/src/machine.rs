//! The library's machine.

use hugetlb::filetables::format::Native;
use hugetlb::{Flush, Machine, OutOfMemory, PageSize, PhysAddr, Space, TableEntries, filetables};
use ostd::task::Task;

use crate::locks::{RawSleep, RawSleepRw, RawSpin};
use crate::space::OstdSpace;
use crate::{cpus, memory};

/// OSTD, as the library sees it.
pub struct Ostd;

impl filetables::Machine for Ostd {
    type Format = Native;
    type RawSpinLock = RawSpin;
    type Space = OstdSpace;

    fn allocate_table(&self) -> Option<PhysAddr> {
        memory::allocate_table()
    }

    fn retire_table(&self, table: PhysAddr) {
        memory::retire_table(table);
    }

    fn table(&self, table: PhysAddr) -> &TableEntries {
        memory::entries(table)
    }

    fn flush_spaces(&self, concerned: &dyn Fn(u64) -> bool) {
        cpus::shoot_down(&mut |space| concerned(space));
    }

    fn give_way(&self) {
        cpus::pass_quiescent_point();
        Task::yield_now();
    }
}

impl Machine for Ostd {
    type RawMutex = RawSleep;
    type RawRwLock = RawSleepRw;
    type Payer = ();

    fn payer(&self) {}

    fn take_step(&self) -> Result<(), OutOfMemory> {
        filetables::Machine::give_way(self);
        Ok(())
    }

    fn allocate_huge(&self, size: PageSize) -> Option<PhysAddr> {
        memory::allocate_huge(size)
    }

    fn free_huge(&self, _: PageSize, frame: PhysAddr) {
        memory::free_huge(frame);
    }

    fn zero(&self, start: PhysAddr, bytes: u64) {
        memory::zero(start, bytes);
    }

    fn copy_huge(&self, size: PageSize, from: PhysAddr, to: PhysAddr) {
        memory::copy(size, from, to);
    }

    fn flush(&self, batch: &[Flush<OstdSpace>]) {
        cpus::shoot_down(&mut |space| batch.iter().any(|flush| flush.space.id() == space));
    }
}
