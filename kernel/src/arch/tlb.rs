//! Translation look-aside buffers: this CPU's, and those of others (shootdown).

use core::arch::asm;

use super::cpu::{self, CpuSet};
use super::{features, interrupts, ipi};
use crate::memory::PAGE_SIZE;

/// More single pages than this are dearer to flush one by one than all at once.
const MAX_SINGLE: usize = 32;

/// What to flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// The translation of one page of any size, by an address in it.
    Page(u64),
    /// `pages` translations, `stride` bytes apart, from `start` on.
    Range { start: u64, pages: usize, stride: usize },
    /// All but global translations: everything of the loaded address space.
    All,
    /// Global translations as well: the kernel's own mappings changed.
    Global,
}

impl Flush {
    /// The flush of all base pages in `start..end`.
    pub fn range(start: u64, end: u64) -> Self {
        Self::Range { start, pages: ((end - start) as usize).div_ceil(PAGE_SIZE), stride: PAGE_SIZE }
    }
}

/// Flushes one page's translation on this CPU.
pub fn flush_page(address: u64) {
    // SAFETY: only forgets a translation. It also drops all paging-structure caches.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// Flushes all translations of this CPU but the global ones.
pub fn flush_all() {
    // SAFETY: loads the table that is loaded.
    unsafe { features::write_cr3(features::read_cr3()) };
}

/// Flushes all translations of this CPU.
pub fn flush_global() {
    const GLOBAL_PAGES: u64 = 1 << 7;
    interrupts::without(|| {
        let cr4 = features::read_cr4();
        // SAFETY: the bit goes off and on again; toggling it flushes everything.
        unsafe {
            asm!("mov cr4, {}", in(reg) cr4 & !GLOBAL_PAGES, options(nostack, preserves_flags));
            asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags));
        }
    });
}

/// Flushes `what` on this CPU.
pub fn flush(what: Flush) {
    match what {
        Flush::Page(address) => flush_page(address),
        Flush::Range { start, pages, stride } if pages <= MAX_SINGLE => {
            for page in 0..pages {
                flush_page(start + (page * stride) as u64);
            }
        }
        Flush::Range { .. } | Flush::All => flush_all(),
        Flush::Global => flush_global(),
    }
}

/// Flushes `what` on all of `cpus`, this one included when it is in the set, and returns when all have done so.
///
/// The caller has already changed the page table. One interrupt for each target. Interrupts must be on unless
/// no other CPU is in the set.
pub fn shootdown(cpus: &CpuSet, what: Flush) {
    let this = cpu::id();
    if cpus.contains(this) {
        flush(what);
    }
    let mut others = *cpus;
    others.remove(this);
    ipi::call(&others, &|| flush(what));
}
