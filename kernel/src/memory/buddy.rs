//! The buddy allocator of physical frames, and each CPU's cache of single frames before it.
//!
//! Blocks of 2^order frames, order 0 (4 KiB) to 18 (1 GiB), aligned to their size. The free blocks of each order
//! are a doubly linked list whose links are stored in the blocks themselves. A frame's [`FrameInfo`] says whether
//! a free block begins there, and of which order, so a freed block finds out in one look whether its buddy is free.
//!
//! Each memory node has lists of its own, no block has frames of two, and a CPU's cache has frames of its node alone.

use core::sync::atomic::{
    AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};

use super::node::{self, MAX_NODES};
use super::usage::{self, USES, Use};
use super::{PAGE_SHIFT, PAGE_SIZE, PhysAddr, early, inject};
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
    /// The frame's memory node.
    node: AtomicU8,
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
            node: AtomicU8::new(0),
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

/// The memory node of a frame.
pub fn node_of(frame: u64) -> usize {
    // Relaxed: set once, before the other CPUs start.
    usize::from(info(frame).node.load(Ordering::Relaxed)) % MAX_NODES
}

/// The free blocks of a node.
struct Lists {
    heads: [u64; MAX_ORDER + 1],
    /// Frames of all of them.
    frames: u64,
}

struct Buddy {
    nodes: [Lists; MAX_NODES],
}

static BUDDY: IrqLock<Buddy> =
    IrqLock::new(Buddy { nodes: [const { Lists { heads: [NONE; MAX_ORDER + 1], frames: 0 } }; MAX_NODES] });

impl Buddy {
    /// `node` is the block's, here and in [`Buddy::remove`]: who frees a block looks for it once, however many it joins.
    fn push(&mut self, node: usize, frame: u64, order: usize) {
        let lists = &mut self.nodes[node];
        let next = lists.heads[order];
        // SAFETY: the block is free, so its memory is ours.
        unsafe { links(frame).write(Links { next, previous: NONE }) };
        if next != NONE {
            // SAFETY: a block on the list.
            unsafe { (*links(next)).previous = frame };
        }
        lists.heads[order] = frame;
        lists.frames += 1 << order;
        // Relaxed, here and below: only looked at under the lock.
        info(frame).free_order.store(order as u8, Ordering::Relaxed);
    }

    fn remove(&mut self, node: usize, frame: u64, order: usize) {
        let lists = &mut self.nodes[node];
        lists.frames -= 1 << order;
        // SAFETY: blocks on the list.
        unsafe {
            let Links { next, previous } = links(frame).read();
            if previous == NONE {
                lists.heads[order] = next;
            } else {
                (*links(previous)).next = next;
            }
            if next != NONE {
                (*links(next)).previous = previous;
            }
        }
        info(frame).free_order.store(NOT_FREE, Ordering::Relaxed);
    }

    fn allocate(&mut self, node: usize, order: usize) -> Option<u64> {
        let heads = &self.nodes[node].heads;
        let found = (order..=MAX_ORDER).find(|order| heads[*order] != NONE)?;
        let frame = heads[found];
        self.remove(node, frame, found);
        for smaller in (order..found).rev() {
            self.push(node, frame + (1 << smaller), smaller);
        }
        Some(frame)
    }

    fn free(&mut self, mut frame: u64, mut order: usize) {
        let node = node_of(frame);
        let count = INFO_COUNT.load(Ordering::Relaxed);
        while order < MAX_ORDER {
            let buddy = frame ^ (1 << order);
            if buddy as usize >= count {
                break;
            }
            let other = info(buddy);
            if other.free_order.load(Ordering::Relaxed) != order as u8
                || usize::from(other.node.load(Ordering::Relaxed)) != node
            {
                break;
            }
            self.remove(node, buddy, order);
            frame &= !(1 << order);
            order += 1;
        }
        self.push(node, frame, order);
    }

    /// Frees a run of frames as the largest aligned blocks that it consists of.
    fn free_run(&mut self, mut frame: u64, end: u64) {
        while frame < end {
            let fits = (63 - (end - frame).leading_zeros()) as usize;
            let order = fits.min(frame.trailing_zeros() as usize).min(MAX_ORDER);
            self.free(frame, order);
            frame += 1 << order;
        }
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
    while frame < end {
        let run = node::end_of_run(frame).min(end);
        // Relaxed: a statistic.
        COUNTS[node_of(frame)].total.fetch_add(run - frame, Ordering::Relaxed);
        BUDDY.lock().free_run(frame, run);
        frame = run;
    }
}

/// Gives frames their nodes, and sorts the free ones by them. `node_at` tells the node of a frame, and the frame from which on it may be
/// another. Once, while only the boot CPU runs.
pub(super) fn set_nodes(node_at: impl Fn(u64) -> (usize, u64)) {
    drain_caches();
    let mut frame = 0;
    while frame < count() {
        let (node, end) = node_at(frame);
        for frame in frame..end.min(count()) {
            info(frame).node.store(node as u8, Ordering::Relaxed);
        }
        frame = end;
    }
    let mut buddy = BUDDY.lock();
    let old = core::mem::replace(&mut buddy.nodes[0], Lists { heads: [NONE; MAX_ORDER + 1], frames: 0 });
    // SAFETY: a block on one of the old lists, which nobody else changes.
    let next_of = |frame: u64| unsafe { (*links(frame)).next };
    // None is on a list now: first all of them, so that no block that is free anew joins one that is not yet.
    for head in old.heads {
        let mut next = head;
        while next != NONE {
            info(next).free_order.store(NOT_FREE, Ordering::Relaxed);
            next = next_of(next);
        }
    }
    for (order, head) in old.heads.into_iter().enumerate() {
        let mut next = head;
        while next != NONE {
            let (mut frame, end) = (next, next + (1 << order));
            next = next_of(frame);
            while frame < end {
                let run = node_at(frame).1.min(end);
                buddy.free_run(frame, run);
                frame = run;
            }
        }
    }
    drop(buddy);
    // What was taken before counts for its node, too.
    COUNTS[0].total.store(0, Ordering::Relaxed);
    early::for_each_given(|start, end| {
        let mut frame = start;
        while frame < end {
            let info = info(frame);
            let order = info.free_order.load(Ordering::Relaxed);
            let counts = &COUNTS[node_of(frame)];
            let frames = if order == NOT_FREE { 1 } else { 1 << order };
            counts.total.fetch_add(frames, Ordering::Relaxed);
            if order == NOT_FREE {
                counts.used[usize::from(info.used_for.load(Ordering::Relaxed)) % USES]
                    .fetch_add(1, Ordering::Relaxed);
            }
            frame += frames;
        }
    });
}

/// What is counted of each node, in frames. But for `total` only where there are several.
struct Counts {
    total: AtomicU64,
    /// By use. What was in several frames before nodes were known counts as of another use.
    used: [AtomicI64; USES],
    /// Allocations that came from where they should; that came from here, but should not have; and the other way round.
    hit: AtomicU64,
    miss: AtomicU64,
    foreign: AtomicU64,
    /// Allocations by CPUs of the node, and by others.
    local: AtomicU64,
    other: AtomicU64,
}

static COUNTS: [Counts; MAX_NODES] = [const {
    Counts {
        total: AtomicU64::new(0),
        used: [const { AtomicI64::new(0) }; USES],
        hit: AtomicU64::new(0),
        miss: AtomicU64::new(0),
        foreign: AtomicU64::new(0),
        local: AtomicU64::new(0),
        other: AtomicU64::new(0),
    }
}; MAX_NODES];

/// Counts a block that was allocated, where there are several nodes.
#[cold]
fn count_taken(frame: u64, order: usize, for_use: Use, wanted: usize) {
    let (node, here) = (node_of(frame), node::here());
    let counts = &COUNTS[node];
    // Relaxed, here and below: statistics.
    counts.used[for_use as usize].fetch_add(1 << order, Ordering::Relaxed);
    if node == wanted {
        counts.hit.fetch_add(1, Ordering::Relaxed);
    } else {
        counts.miss.fetch_add(1, Ordering::Relaxed);
        COUNTS[wanted].foreign.fetch_add(1, Ordering::Relaxed);
    }
    let place = if node == here { &counts.local } else { &counts.other };
    place.fetch_add(1, Ordering::Relaxed);
}

#[cold]
fn count_given_back(frame: u64, order: usize, used_for: Use) {
    COUNTS[node_of(frame)].used[used_for as usize].fetch_sub(1 << order, Ordering::Relaxed);
}

/// Memory of one node in bytes, and how allocations met their wishes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeStats {
    pub total: u64,
    pub free: u64,
    used: [u64; USES],
    pub hit: u64,
    pub miss: u64,
    pub foreign: u64,
    pub local: u64,
    pub other: u64,
}

impl NodeStats {
    /// Bytes of one use; only where there are several nodes.
    pub fn used(&self, by: Use) -> u64 {
        self.used[by as usize]
    }
}

/// What is where now; each number of its own moment.
pub fn node_stats(node: usize) -> NodeStats {
    let counts = &COUNTS[node];
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let cached: usize = (0..cpu::count())
        .filter(|cpu| node::of_cpu(*cpu) == node)
        .map(|cpu| CACHES.of(cpu).lock().count)
        .sum();
    let free = BUDDY.lock().nodes[node].frames + cached as u64;
    NodeStats {
        total: load(&counts.total) * PAGE_SIZE as u64,
        free: free * PAGE_SIZE as u64,
        used: counts
            .used
            .each_ref()
            .map(|used| used.load(Ordering::Relaxed).max(0) as u64 * PAGE_SIZE as u64),
        hit: load(&counts.hit),
        miss: load(&counts.miss),
        foreign: load(&counts.foreign),
        local: load(&counts.local),
        other: load(&counts.other),
    }
}

/// A block of 2^`order` frames, as yet without references, charged to `for_use`; from as near as there is one.
pub fn allocate(order: usize, for_use: Use) -> Option<u64> {
    allocate_from(order, for_use, None)
}

/// As [`allocate`], from these nodes and no others, the first one first.
pub fn allocate_from(order: usize, for_use: Use, nodes: Option<&[u8]>) -> Option<u64> {
    // The heap's users are the ones to fail, not its slabs.
    if for_use != Use::Heap && inject::fails() || !usage::charge(1 << order, for_use) {
        return None;
    }
    let frame = match nodes {
        None if order == 0 => allocate_single(),
        None => allocate_block(order, node::nearest(node::here())),
        Some(nodes) => allocate_block(order, nodes),
    };
    match frame {
        Some(frame) => {
            debug_assert_eq!(info(frame).count.load(Ordering::SeqCst), 0, "a free frame has references");
            // Relaxed: whoever gets the frame from us sees it.
            info(frame).used_for.store(for_use as u8, Ordering::Relaxed);
            if node::count() > 1 {
                let wanted =
                    nodes.and_then(|nodes| nodes.first()).map_or_else(node::here, |node| usize::from(*node));
                count_taken(frame, order, for_use, wanted);
            }
        }
        None => usage::uncharge(1 << order, for_use),
    }
    frame
}

/// Frees what [`allocate`] gave, or any aligned part of it.
pub fn free(frame: u64, order: usize, used_for: Use) {
    if node::count() > 1 {
        count_given_back(frame, order, used_for);
    }
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
        from_own_cache().or_else(from_other_nodes).or_else(|| {
            (0..cpu::count()).find_map(|cpu| {
                let mut cache = CACHES.of(cpu).lock();
                cache.count = cache.count.checked_sub(1)?;
                Some(cache.frames[cache.count])
            })
        })
    })
}

/// A frame of another node, where there are several.
fn from_other_nodes() -> Option<u64> {
    let mut others = node::nearest(node::here()).iter().skip(1);
    others.find_map(|node| BUDDY.lock().allocate((*node).into(), 0))
}

/// A frame of this CPU's cache, which is filled first if it is empty.
fn from_own_cache() -> Option<u64> {
    let mut cache = CACHES.lock();
    if cache.count == 0 {
        let node = node::here();
        let mut buddy = BUDDY.lock();
        while cache.count < BATCH
            && let Some(frame) = buddy.allocate(node, 0)
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
    if node::count() > 1 && node_of(frame) != node::here() {
        return BUDDY.lock().free(frame, 0);
    }
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

fn allocate_block(order: usize, nodes: &[u8]) -> Option<u64> {
    if let Some(frame) = first_block(order, nodes) {
        return Some(frame);
    }
    // Single frames in the caches may be what keeps blocks from becoming whole.
    drain_caches();
    first_block(order, nodes)
}

/// A block of the first of the nodes that has one.
fn first_block(order: usize, nodes: &[u8]) -> Option<u64> {
    let mut buddy = BUDDY.lock();
    nodes.iter().find_map(|node| buddy.allocate(usize::from(*node) % MAX_NODES, order))
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
