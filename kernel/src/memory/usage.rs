//! Who uses how much physical memory, and how much must stay free for whom.

use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::PAGE_SIZE;

/// What a frame is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Use {
    /// Private memory of processes.
    Anon,
    /// Pages of files: tmpfs, shared memory.
    File,
    PageTable,
    KernelStack,
    Heap,
    /// Huge pages.
    Huge,
    Other,
}

pub(super) const USES: usize = 7;

impl Use {
    pub(super) const fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Anon,
            1 => Self::File,
            2 => Self::PageTable,
            3 => Self::KernelStack,
            4 => Self::Heap,
            5 => Self::Huge,
            _ => Self::Other,
        }
    }

    /// Frames that must stay free after an allocation of `frames` for this use. The module's text on the levels: [`super::reserve`].
    fn watermark(self, frames: u64) -> i64 {
        // Relaxed: set once at boot.
        let min = MIN.load(Ordering::Relaxed);
        match self {
            // What may outlive its maker stops first: no end of a process brings it back.
            Self::File => 4 * min,
            // Then memory of processes, so that the tables and stacks to handle that can still be had.
            Self::Anon | Self::Huge => 2 * min,
            Self::PageTable | Self::KernelStack | Self::Other => min,
            // A small allocation has no way to fail. It takes from what the entry to the kernel has left free.
            Self::Heap if frames == 1 => -PROMISED.load(Ordering::SeqCst),
            Self::Heap => min,
        }
    }
}

static TOTAL: AtomicU64 = AtomicU64::new(0);
/// Frames that are free and that nobody was promised. Below zero when small allocations use what others were promised.
static FREE: AtomicI64 = AtomicI64::new(0);
/// Frames that are free, but taken off `FREE` for somebody: [`super::reserve`].
static PROMISED: AtomicI64 = AtomicI64::new(0);
static MIN: AtomicI64 = AtomicI64::new(0);
static USED: [AtomicU64; USES] = [const { AtomicU64::new(0) }; USES];

/// Physical memory in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// All that the kernel manages: RAM without the kernel image and what firmware keeps.
    pub total: u64,
    pub free: u64,
    pub anon: u64,
    pub file: u64,
    pub page_tables: u64,
    pub kernel_stacks: u64,
    pub heap: u64,
    pub huge: u64,
}

/// How scarce memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    None,
    /// Allocation of user memory fails, or nearly.
    Low,
    /// Allocation of page tables and kernel stacks fails, or nearly.
    Critical,
}

/// Frames below which memory is scarce: see [`super::reserve`].
pub fn minimum() -> u64 {
    // Relaxed: set once, at bring-up.
    MIN.load(Ordering::Relaxed).max(0) as u64
}

/// Exact at the moment of each counter, not across them.
pub fn stats() -> Stats {
    let used = |of: Use| USED[of as usize].load(Ordering::SeqCst) * PAGE_SIZE as u64;
    // Pages that the heap keeps ready, empty, are as good as free.
    let spare = super::heap::spare_bytes() as u64;
    Stats {
        total: TOTAL.load(Ordering::SeqCst) * PAGE_SIZE as u64,
        free: (FREE.load(Ordering::SeqCst) + PROMISED.load(Ordering::SeqCst)).max(0) as u64
            * PAGE_SIZE as u64
            + spare,
        anon: used(Use::Anon),
        file: used(Use::File),
        page_tables: used(Use::PageTable),
        kernel_stacks: used(Use::KernelStack),
        heap: used(Use::Heap).saturating_sub(spare),
        huge: used(Use::Huge),
    }
}

pub fn pressure() -> Pressure {
    let free = FREE.load(Ordering::SeqCst);
    // Relaxed: set once at boot.
    let min = MIN.load(Ordering::Relaxed);
    if free <= min {
        Pressure::Critical
    } else if free <= 2 * min {
        Pressure::Low
    } else {
        Pressure::None
    }
}

/// Frames become the allocator's.
pub(super) fn add_frames(frames: u64) {
    TOTAL.fetch_add(frames, Ordering::SeqCst);
    FREE.fetch_add(frames as i64, Ordering::SeqCst);
}

/// Sets how much is kept for the kernel: a 64th of memory, at least 2 MiB and 512 KiB for each CPU, at most 32 MiB.
pub(super) fn set_watermarks(cpus: usize) {
    let frames = (TOTAL.load(Ordering::SeqCst) / 64).clamp((2 << 20) / 4096, (32 << 20) / 4096);
    MIN.store((frames as i64).max(cpus as i64 * (512 << 10) / 4096), Ordering::SeqCst);
}

/// Takes `frames` off the free count for `for_use`; false when too few would be left.
pub(super) fn charge(frames: u64, for_use: Use) -> bool {
    if !take(frames as i64, for_use.watermark(frames)) {
        return false;
    }
    USED[for_use as usize].fetch_add(frames, Ordering::SeqCst);
    true
}

/// Takes `frames` off the free count when `left` of them stay. In one step: a refused attempt is never seen by others, for whom a
/// moment without the frames could be the end.
fn take(frames: i64, left: i64) -> bool {
    let enough = |free: i64| (free.saturating_sub(frames) >= left).then_some(free - frames);
    FREE.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enough).is_ok()
}

/// Would [`charge`] of one frame succeed now?
pub(super) fn is_left(for_use: Use) -> bool {
    FREE.load(Ordering::SeqCst) > for_use.watermark(1)
}

/// Undoes [`charge`].
pub(super) fn uncharge(frames: u64, for_use: Use) {
    USED[for_use as usize].fetch_sub(frames, Ordering::SeqCst);
    FREE.fetch_add(frames as i64, Ordering::SeqCst);
}

/// How far free memory may go down for somebody who has a way to fail, or to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Objects that outlive their maker.
    Lasting,
    /// Other objects of the kernel, in the middle of a call.
    Call,
    /// The entry to the kernel.
    Entry,
}

impl Level {
    fn frames(self) -> i64 {
        // Relaxed: set once at boot.
        let min = MIN.load(Ordering::Relaxed);
        match self {
            Self::Lasting => 4 * min,
            Self::Call => min,
            // Half of it: it is not negative, and each entry comes here.
            Self::Entry => min >> 1,
        }
    }
}

/// Would `frames` more leave what `level` wants to stay free?
#[inline]
pub(super) fn has_room(frames: i64, level: Level) -> bool {
    // Relaxed: a moment's value, as any answer would be.
    FREE.load(Ordering::Relaxed) - frames >= level.frames()
}

/// Whether there would be room without what was promised.
pub(super) fn only_promised(level: Level) -> bool {
    FREE.load(Ordering::SeqCst) + PROMISED.load(Ordering::SeqCst) >= level.frames()
}

/// Takes `frames` off the free count for later, whatever is free.
pub(super) fn promise(frames: i64) {
    FREE.fetch_sub(frames, Ordering::SeqCst);
    PROMISED.fetch_add(frames, Ordering::SeqCst);
}

/// Ends a [`promise`].
pub(super) fn end_promise(frames: i64) {
    PROMISED.fetch_sub(frames, Ordering::SeqCst);
    FREE.fetch_add(frames, Ordering::SeqCst);
}
