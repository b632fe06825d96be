//! The buddy allocator of physical frames, and each CPU's cache of single frames before it.
//!
//! Blocks of 2^order frames, order 0 (4 KiB) to 18 (1 GiB), aligned to their size. The free blocks of each order
//! are a doubly linked list whose links are stored in the blocks themselves. A frame's [`FrameInfo`] says whether
//! a free block begins there, and of which order, so a freed block finds out in one look whether its buddy is free.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering};

use super::usage::{self, Use};
use super::{PAGE_SHIFT, PhysAddr, inject};
use crate::arch::cpu::{self, MAX_CPUS};
use crate::arch::percpu::PerCpu;
use crate::sync::IrqLock;

pub const MAX_ORDER: usize = 18;
const NONE: u64 = u64::MAX;
const NOT_FREE: u8 = u8::MAX;

/// What the kernel knows of each frame.
pub struct FrameInfo {
    /// References by [`super::frame::Frame`] handles.
    pub count: AtomicU32,
    /// The frame's [`Use`].
    pub used_for: AtomicU8,
    /// The order of the free block that begins here, or `NOT_FREE`; changed under the allocator's lock.
    free_order: AtomicU8,
    /// Its memory is broken: nobody gets it any more. Once set it stays.
    pub broken: AtomicBool,
    /// The next frame of the [`super::frame::FrameList`] that the frame is on. On none: what its user notes,
    /// see [`super::frame::Frame::note_at`].
    pub next: AtomicU32,
}

static INFO: AtomicPtr<FrameInfo> = AtomicPtr::new(core::ptr::null_mut());
static INFO_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Bytes that the description of `frames` frames takes.
pub const fn info_size(frames: u64) -> u64 {
    frames * size_of::<FrameInfo>() as u64
}

/// Says where the descriptions of frames 0 to `count` are.
///
/// # Safety
/// `memory` has room for them, for ever; once, before anything else here.
pub unsafe fn init(memory: *mut FrameInfo, count: usize) {
    for index in 0..count {
        let info = FrameInfo {
            count: AtomicU32::new(0),
            used_for: AtomicU8::new(Use::Other as u8),
            free_order: AtomicU8::new(NOT_FREE),
            broken: AtomicBool::new(false),
            next: AtomicU32::new(0),
        };
        // SAFETY: the caller's memory.
        unsafe { memory.add(index).write(info) };
    }
    INFO.store(memory, Ordering::SeqCst);
    INFO_COUNT.store(count, Ordering::SeqCst);
}

/// How many frames have a description.
pub fn count() -> u64 {
    // Relaxed: set once, before the other CPUs start.
    INFO_COUNT.load(Ordering::Relaxed) as u64
}

/// Is the frame in a free block? Without the lock: for reports.
pub fn is_free(frame: u64) -> bool {
    (0..=MAX_ORDER).any(|order| {
        // Relaxed: a snapshot.
        let free = info(frame & !((1 << order) - 1)).free_order.load(Ordering::Relaxed);
        free != NOT_FREE && usize::from(free) >= order
    })
}

/// Notes for reports that the blocks of 2 MiB in a run of frames begin memory for huge pages, or no longer do.
pub fn mark_huge(frame: u64, count: u64, huge: bool) {
    let used_for = if huge { Use::Huge } else { Use::Other };
    for first in (frame..frame + count).filter(|f| f.is_multiple_of(512)) {
        // Relaxed: for reports.
        info(first).used_for.store(used_for as u8, Ordering::Relaxed);
    }
}

/// The description of a frame of RAM.
pub fn info(frame: u64) -> &'static FrameInfo {
    // Relaxed: set once, before the other CPUs start.
    assert!((frame as usize) < INFO_COUNT.load(Ordering::Relaxed), "frame {frame:#x} beyond memory");
    // SAFETY: the array is static, and the index was checked.
    unsafe { &*INFO.load(Ordering::Relaxed).add(frame as usize) }
}

/// Links of a free block, at its beginning.
struct Links {
    next: u64,
    previous: u64,
}

fn links(frame: u64) -> *mut Links {
    PhysAddr(frame << PAGE_SHIFT).as_ptr()
}

struct Buddy {
    heads: [u64; MAX_ORDER + 1],
}

static BUDDY: IrqLock<Buddy> = IrqLock::new(Buddy { heads: [NONE; MAX_ORDER + 1] });

impl Buddy {
    fn push(&mut self, frame: u64, order: usize) {
        let next = self.heads[order];
        // SAFETY: the block is free, so its memory is ours.
        unsafe { links(frame).write(Links { next, previous: NONE }) };
        if next != NONE {
            // SAFETY: a block on the list.
            unsafe { (*links(next)).previous = frame };
        }
        self.heads[order] = frame;
        // Relaxed, here and below: only looked at under the lock.
        info(frame).free_order.store(order as u8, Ordering::Relaxed);
    }

    fn remove(&mut self, frame: u64, order: usize) {
        // SAFETY: blocks on the list.
        unsafe {
            let Links { next, previous } = links(frame).read();
            if previous == NONE {
                self.heads[order] = next;
            } else {
                (*links(previous)).next = next;
            }
            if next != NONE {
                (*links(next)).previous = previous;
            }
        }
        info(frame).free_order.store(NOT_FREE, Ordering::Relaxed);
    }

    fn allocate(&mut self, order: usize) -> Option<u64> {
        let found = (order..=MAX_ORDER).find(|order| self.heads[*order] != NONE)?;
        let frame = self.heads[found];
        self.remove(frame, found);
        for smaller in (order..found).rev() {
            self.push(frame + (1 << smaller), smaller);
        }
        Some(frame)
    }

    fn free(&mut self, mut frame: u64, mut order: usize) {
        while order < MAX_ORDER {
            let buddy = frame ^ (1 << order);
            let whole = (buddy as usize) < INFO_COUNT.load(Ordering::Relaxed)
                && info(buddy).free_order.load(Ordering::Relaxed) == order as u8;
            if !whole {
                break;
            }
            self.remove(buddy, order);
            frame &= !(1 << order);
            order += 1;
        }
        self.push(frame, order);
    }
}

const CACHE_SIZE: usize = 64;
const BATCH: usize = 32;

struct Cache {
    count: usize,
    frames: [u64; CACHE_SIZE],
}

/// Single frames that a CPU freed or is about to need. Locked, so that other CPUs can take them when all else is
/// used up; a CPU's own lock is hardly ever contended. Order: a cache's lock, then the allocator's.
static CACHES: PerCpu<IrqLock<Cache>> =
    PerCpu::new([const { IrqLock::new(Cache { count: 0, frames: [0; CACHE_SIZE] }) }; MAX_CPUS]);

/// Gives memory to the allocator, at boot.
pub fn add(start: PhysAddr, end: PhysAddr) {
    let (mut frame, end) = (start.page_number(), end.page_number());
    usage::add_frames(end - frame);
    let mut buddy = BUDDY.lock();
    while frame < end {
        let fits = (63 - (end - frame).leading_zeros()) as usize;
        let order = fits.min(frame.trailing_zeros() as usize).min(MAX_ORDER);
        buddy.free(frame, order);
        frame += 1 << order;
    }
}

/// A block of 2^`order` frames, as yet without references, charged to `for_use`.
pub fn allocate(order: usize, for_use: Use) -> Option<u64> {
    // The heap's users are the ones to fail, not its slabs.
    if for_use != Use::Heap && inject::fails() || !usage::charge(1 << order, for_use) {
        return None;
    }
    let frame = if order == 0 { allocate_single() } else { allocate_block(order) };
    match frame {
        Some(frame) => {
            debug_assert_eq!(info(frame).count.load(Ordering::SeqCst), 0, "a free frame has references");
            // Relaxed: whoever gets the frame from us sees it.
            info(frame).used_for.store(for_use as u8, Ordering::Relaxed);
        }
        None => usage::uncharge(1 << order, for_use),
    }
    frame
}

/// Frees what [`allocate`] gave, or any aligned part of it.
pub fn free(frame: u64, order: usize, used_for: Use) {
    if order == 0 {
        free_single(frame);
    } else {
        BUDDY.lock().free(frame, order);
    }
    // Last, so that whoever sees the frames counted as free can have them.
    usage::uncharge(1 << order, used_for);
}

/// A frame that has been charged: there is one, and it is only a question of where.
fn allocate_single() -> Option<u64> {
    // Each further round means that others have moved frames between caches and the allocator meanwhile: they got on. The bound is
    // there for a count that is wrong, which must not hang the machine.
    (0..1 << 20).find_map(|_| {
        from_own_cache().or_else(|| {
            (0..cpu::count()).find_map(|cpu| {
                let mut cache = CACHES.of(cpu).lock();
                cache.count = cache.count.checked_sub(1)?;
                Some(cache.frames[cache.count])
            })
        })
    })
}

/// A frame of this CPU's cache, which is filled first if it is empty.
fn from_own_cache() -> Option<u64> {
    let mut cache = CACHES.lock();
    if cache.count == 0 {
        let mut buddy = BUDDY.lock();
        while cache.count < BATCH
            && let Some(frame) = buddy.allocate(0)
        {
            let count = cache.count;
            cache.frames[count] = frame;
            cache.count += 1;
        }
    }
    cache.count = cache.count.checked_sub(1)?;
    Some(cache.frames[cache.count])
}

fn free_single(frame: u64) {
    let mut cache = CACHES.lock();
    if cache.count == CACHE_SIZE {
        let mut buddy = BUDDY.lock();
        for index in CACHE_SIZE - BATCH..CACHE_SIZE {
            buddy.free(cache.frames[index], 0);
        }
        cache.count = CACHE_SIZE - BATCH;
    }
    let count = cache.count;
    cache.frames[count] = frame;
    cache.count += 1;
}

fn allocate_block(order: usize) -> Option<u64> {
    if let Some(frame) = BUDDY.lock().allocate(order) {
        return Some(frame);
    }
    // Single frames in the caches may be what keeps blocks from becoming whole.
    drain_caches();
    BUDDY.lock().allocate(order)
}

fn drain_caches() {
    for cpu in 0..cpu::count() {
        let mut cache = CACHES.of(cpu).lock();
        let mut buddy = BUDDY.lock();
        for index in 0..cache.count {
            buddy.free(cache.frames[index], 0);
        }
        cache.count = 0;
    }
}
