//! Committed memory and other limits on all address spaces together.

use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::errno::{Errno, Result};
use crate::memory::{self, PAGE_SIZE};

/// Pages that programs may come to use: private writable and shared anonymous memory.
static COMMITTED: AtomicI64 = AtomicI64::new(0);
/// 0: refuse only what can never be; 1: refuse nothing; 2: keep the sum below the limit.
static OVERCOMMIT: AtomicU32 = AtomicU32::new(0);
/// Percentage of RAM in the limit of mode 2.
static RATIO: AtomicU64 = AtomicU64::new(50);
static MAX_MAP_COUNT: AtomicUsize = AtomicUsize::new(65530);

/// Pages in RAM.
fn total_pages() -> u64 {
    memory::stats().total / PAGE_SIZE as u64
}

/// Pages that may be committed in mode 2.
pub fn commit_limit() -> u64 {
    // Relaxed, here and below: settings and a counter on which no other data hangs.
    total_pages() * RATIO.load(Ordering::Relaxed) / 100
}

/// Pages that are committed.
pub fn committed() -> u64 {
    COMMITTED.load(Ordering::Relaxed).max(0) as u64
}

/// Commits `pages` more, or `ENOMEM`.
pub fn commit(pages: u64) -> Result<()> {
    commit_instead(0, pages)
}

/// As [`commit`], when `replaced` pages that are committed are about to be taken off.
pub fn commit_instead(replaced: u64, pages: u64) -> Result<()> {
    let sum = COMMITTED.fetch_add(pages as i64, Ordering::Relaxed) + pages as i64;
    let fits = match OVERCOMMIT.load(Ordering::Relaxed) {
        _ if pages <= replaced => true,
        1 => true,
        2 => sum - replaced as i64 <= commit_limit() as i64,
        _ => pages - replaced <= total_pages(),
    };
    if fits {
        return Ok(());
    }
    uncommit(pages);
    Err(Errno::ENOMEM)
}

/// Takes `pages` off again.
pub fn uncommit(pages: u64) {
    COMMITTED.fetch_sub(pages as i64, Ordering::Relaxed);
}

/// Must even MAP_NORESERVE memory be committed?
pub fn is_strict() -> bool {
    OVERCOMMIT.load(Ordering::Relaxed) == 2
}

/// Areas that an address space may have.
pub fn max_map_count() -> usize {
    MAX_MAP_COUNT.load(Ordering::Relaxed)
}

/// `vm.overcommit_memory`.
pub fn overcommit_memory() -> u32 {
    OVERCOMMIT.load(Ordering::Relaxed)
}

/// Sets `vm.overcommit_memory`; `EINVAL` for other than 0, 1, 2.
pub fn set_overcommit_memory(mode: u32) -> Result<()> {
    if mode > 2 {
        return Err(Errno::EINVAL);
    }
    OVERCOMMIT.store(mode, Ordering::Relaxed);
    Ok(())
}

/// `vm.overcommit_ratio`.
pub fn overcommit_ratio() -> u64 {
    RATIO.load(Ordering::Relaxed)
}

/// Sets `vm.overcommit_ratio`.
pub fn set_overcommit_ratio(percent: u64) {
    RATIO.store(percent, Ordering::Relaxed);
}

/// Sets `vm.max_map_count`.
pub fn set_max_map_count(count: usize) {
    MAX_MAP_COUNT.store(count, Ordering::Relaxed);
}
