//! Kernel stacks with a guard page, in the kernel area.
//!
//! Each stack has a slot of 32 KiB, of which the upper 16 KiB are mapped. When a stack is freed, its frames go back
//! at once, but its slot is *dead* until every CPU has flushed its TLB: a stale translation is harmless while
//! nobody uses the address. One flush revives the dead slots of many stacks, and frees the page tables of groups
//! in which no slot lives.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use super::fallible;
use super::frame::{Frame, FrameList, Use};
use super::paging::{self, STACK_AREA, STACK_AREA_SIZE};
use super::{PAGE_SIZE, PhysAddr};
use crate::arch::{cpu, interrupts, tlb};
use crate::sync::IrqLock;

/// Bytes of a kernel stack.
pub const STACK_SIZE: usize = 16 << 10;
const STACK_PAGES: usize = STACK_SIZE / PAGE_SIZE;
const SLOT_SIZE: u64 = 32 << 10;
/// Slots under one page table.
const GROUP: usize = 64;
const GROUP_SIZE: u64 = SLOT_SIZE * GROUP as u64;
const MAX_GROUPS: usize = (STACK_AREA_SIZE / GROUP_SIZE) as usize;
/// Dead slots that are worth interrupting all CPUs for.
const MAX_DEAD: usize = 256;

/// 64 slots, a bit each: no bit set means in use.
#[derive(Clone, Copy)]
struct Group {
    free: u64,
    dead: u64,
    /// Dead slots for which a flush is under way.
    flushing: u64,
}

struct Slots {
    groups: Vec<Group>,
    /// Groups before this one have no free slot.
    first_free: usize,
    dead: usize,
}

static SLOTS: IrqLock<Slots> = IrqLock::new(Slots { groups: Vec::new(), first_free: 0, dead: 0 });
/// Whether some CPU flushes.
static FLUSHING: AtomicBool = AtomicBool::new(false);

impl Slots {
    fn allocate(&mut self) -> Option<usize> {
        let found = (self.first_free..self.groups.len()).find(|index| self.groups[*index].free != 0);
        let index = match found {
            Some(index) => index,
            // Nothing is allocated under the lock: see `make_room`.
            None if self.groups.len() < MAX_GROUPS && self.groups.len() < self.groups.capacity() => {
                self.groups.push(Group { free: u64::MAX, dead: 0, flushing: 0 });
                self.groups.len() - 1
            }
            None => return None,
        };
        self.first_free = index;
        let group = &mut self.groups[index];
        let bit = group.free.trailing_zeros() as usize;
        group.free &= group.free - 1;
        Some(index * GROUP + bit)
    }

    /// No slot is free, and there is no place for a group more.
    fn is_full(&self) -> bool {
        self.groups.len() == self.groups.capacity()
            && self.groups.len() < MAX_GROUPS
            && (self.first_free..self.groups.len()).all(|index| self.groups[index].free == 0)
    }

    fn give_back(&mut self, slot: usize) {
        self.groups[slot / GROUP].free |= 1 << (slot % GROUP);
        self.first_free = self.first_free.min(slot / GROUP);
    }

    fn bury(&mut self, slot: usize) -> bool {
        self.groups[slot / GROUP].dead |= 1 << (slot % GROUP);
        self.dead += 1;
        self.dead >= MAX_DEAD
    }
}

/// Makes sure that there is place for a group more when one is needed. None without memory.
fn make_room() -> Option<()> {
    let length = {
        let slots = SLOTS.lock();
        if !slots.is_full() {
            return Some(());
        }
        slots.groups.len()
    };
    let mut larger = fallible::with_capacity(2 * length + 8).ok()?;
    let mut slots = SLOTS.lock();
    if slots.groups.len() < larger.capacity() && slots.groups.capacity() < larger.capacity() {
        larger.extend_from_slice(&slots.groups);
        core::mem::swap(&mut slots.groups, &mut larger);
    }
    drop(slots);
    Some(())
}

fn slot_address(slot: usize) -> u64 {
    STACK_AREA + slot as u64 * SLOT_SIZE
}

/// A kernel stack; dropped by another thread than the one that runs on it.
#[derive(Debug)]
pub struct KernelStack {
    slot: usize,
}

impl KernelStack {
    /// `None` when memory for kernel stacks is used up.
    pub fn new() -> Option<Self> {
        let mut frames = [const { None }; STACK_PAGES];
        for frame in &mut frames {
            *frame = Some(Frame::alloc(Use::KernelStack)?);
        }
        make_room()?;
        let slot = SLOTS.lock().allocate()?;
        let stack = Self { slot };
        let Some(table) = paging::stack_table(slot_address(slot)) else {
            // Nothing was mapped, so nothing needs a flush.
            core::mem::forget(stack);
            SLOTS.lock().give_back(slot);
            return None;
        };
        for (page, frame) in frames.into_iter().flatten().enumerate() {
            // The slot is free, so it was flushed since it was last mapped.
            table[stack.first_entry() + page].store(paging::stack_entry(frame.into_raw()), Ordering::SeqCst);
        }
        Some(stack)
    }

    /// The lowest address.
    pub fn bottom(&self) -> u64 {
        slot_address(self.slot) + SLOT_SIZE - STACK_SIZE as u64
    }

    /// One past the highest address; a multiple of 16.
    pub fn top(&self) -> u64 {
        slot_address(self.slot) + SLOT_SIZE
    }

    fn first_entry(&self) -> usize {
        (self.bottom() / PAGE_SIZE as u64) as usize % paging::ENTRIES
    }
}

impl Drop for KernelStack {
    fn drop(&mut self) {
        let table = paging::stack_table(slot_address(self.slot)).expect("the table of a mapped stack");
        let mut frames = [const { None }; STACK_PAGES];
        for (page, frame) in frames.iter_mut().enumerate() {
            let value = table[self.first_entry() + page].swap(0, Ordering::SeqCst);
            // SAFETY: the entry held the reference.
            *frame = Some(unsafe { Frame::from_raw(PhysAddr(value & paging::flags::ADDRESS)) });
        }
        drop(frames);
        let many = SLOTS.lock().bury(self.slot);
        if many && interrupts::are_enabled() {
            revive();
        }
    }
}

/// Flushes all TLBs once, and makes the slots that were dead before free.
fn revive() {
    if FLUSHING.swap(true, Ordering::SeqCst) {
        return;
    }
    let mut tables = FrameList::new();
    let groups = SLOTS.lock().groups.len();
    for index in 0..groups {
        let mut slots = SLOTS.lock();
        let group = &mut slots.groups[index];
        group.flushing = group.dead;
        group.dead = 0;
        let count = group.flushing.count_ones() as usize;
        let unused = group.flushing != 0 && group.flushing | group.free == u64::MAX;
        if unused {
            // Nobody may take a slot while the table is on its way out.
            group.flushing |= group.free;
            group.free = 0;
        }
        slots.dead -= count;
        drop(slots);
        if unused && let Some(table) = paging::detach_stack_table(STACK_AREA + index as u64 * GROUP_SIZE) {
            tables.push(table);
        }
    }
    tlb::shootdown(&cpu::online(), tlb::Flush::Global);
    drop(tables);
    let mut slots = SLOTS.lock();
    for group in &mut slots.groups {
        group.free |= group.flushing;
        group.flushing = 0;
    }
    slots.first_free = 0;
    drop(slots);
    FLUSHING.store(false, Ordering::SeqCst);
}

/// Whether `address` is in the guard part of a stack slot: then a fault there is a stack overflow.
pub fn is_guard(address: u64) -> bool {
    (STACK_AREA..STACK_AREA + STACK_AREA_SIZE).contains(&address)
        && (address - STACK_AREA) % SLOT_SIZE < SLOT_SIZE - STACK_SIZE as u64
}
