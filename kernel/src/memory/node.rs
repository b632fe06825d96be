//! Memory nodes: which memory is near to which CPUs.
//!
//! There is one until the firmware's tables are read, and for good where they name no other. Then nothing here costs more than to see that:
//! all that a path pays for is the load of [`count`]. With several, each frame's description has its node, so that the node of a frame is a
//! load as well.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use super::{PAGE_SIZE, PhysAddr, buddy};
use crate::arch::cpu::{self, CpuId, CpuSet, MAX_CPUS};
pub use crate::arch::srat::MAX_NODES;
use crate::arch::srat::{Affinity, LOCAL_DISTANCE};
use crate::boot::info;
use crate::sync::Once;

/// A set of nodes, a bit each.
pub type NodeMask = u16;

const _: () = assert!(NodeMask::BITS as usize == MAX_NODES);

/// More RAM than this in no entry of the table, and the table is wrong.
const MOST_UNCOVERED: u64 = 1 << 20;

static COUNT: AtomicUsize = AtomicUsize::new(1);
static NODE_OF_CPU: [AtomicU8; MAX_CPUS] = [const { AtomicU8::new(0) }; MAX_CPUS];
static LAYOUT: Once<Layout> = Once::new();

struct Layout {
    affinity: &'static Affinity,
    /// The nodes of each, the nearest first.
    nearest: [[u8; MAX_NODES]; MAX_NODES],
    with_memory: NodeMask,
}

/// How many nodes there are.
#[inline]
pub fn count() -> usize {
    // Relaxed: set once, before the other CPUs start.
    COUNT.load(Ordering::Relaxed)
}

/// The node of a CPU.
pub fn of_cpu(cpu: CpuId) -> usize {
    // Relaxed: set before the CPU starts.
    NODE_OF_CPU[cpu as usize].load(Ordering::Relaxed).into()
}

/// The node of the CPU that runs this code.
#[inline]
pub fn here() -> usize {
    if count() == 1 { 0 } else { of_cpu(cpu::id()) }
}

/// The node of the memory at an address.
pub fn of(address: PhysAddr) -> usize {
    if count() == 1 { 0 } else { buddy::node_of(address.page_number()) }
}

/// All nodes, the nearest to this one first.
pub fn nearest(node: usize) -> &'static [u8] {
    LAYOUT.get().map_or(&[0][..], |layout| &layout.nearest[node][..count()])
}

/// How far memory of one node is from CPUs of another; 10 is near.
pub fn distance(from: usize, to: usize) -> u8 {
    LAYOUT.get().map_or(LOCAL_DISTANCE, |layout| layout.affinity.distances[from][to])
}

/// The nodes that have memory.
pub fn with_memory() -> NodeMask {
    LAYOUT.get().map_or(1, |layout| layout.with_memory)
}

pub use buddy::node_stats as stats;

/// The nodes that have memory in a range of addresses.
pub fn within(start: u64, end: u64) -> NodeMask {
    LAYOUT.get().map_or(1, |layout| nodes_within(layout.affinity, start, end))
}

fn nodes_within(affinity: &Affinity, start: u64, end: u64) -> NodeMask {
    let entries = affinity.memory.iter().filter(|memory| memory.start < end && start < memory.end);
    entries.fold(0, |mask, memory| mask | 1 << memory.node)
}

/// The CPUs of a node.
pub fn cpus(node: usize) -> CpuSet {
    let mut set = CpuSet::new();
    cpu::online().iter().filter(|cpu| of_cpu(*cpu) == node).for_each(|cpu| set.insert(cpu));
    set
}

/// All nodes that there are.
pub fn all() -> core::ops::Range<usize> {
    0..count()
}

/// The nodes of a mask in ascending order.
pub fn list(mask: NodeMask) -> impl Iterator<Item = usize> {
    (0..MAX_NODES).filter(move |node| mask >> node & 1 != 0)
}

/// The frame from which on frames may be of another node than this one.
pub(super) fn end_of_run(frame: u64) -> u64 {
    LAYOUT.get().map_or(u64::MAX, |layout| node_at(layout, frame).1)
}

/// The node of a frame, and the frame from which on it may be another.
fn node_at(layout: &Layout, frame: u64) -> (usize, u64) {
    let (node, end) = layout.affinity.node_at(frame * PAGE_SIZE as u64);
    (node, end.div_ceil(PAGE_SIZE as u64))
}

/// Takes over what the firmware says, once, while only the boot CPU runs.
pub(crate) fn init(affinity: Option<&'static Affinity>) {
    let Some(affinity) = affinity.filter(|affinity| affinity.domains.len() > 1) else { return };
    let uncovered: u64 = info::ram().iter().map(|ram| affinity.uncovered(ram.start, ram.end)).sum();
    if uncovered > MOST_UNCOVERED {
        log::warn!("the table of memory nodes is not used: it lacks {} KiB of RAM", uncovered >> 10);
        return;
    }
    let count = affinity.domains.len();
    let mut nearest = [[0; MAX_NODES]; MAX_NODES];
    for (node, order) in nearest.iter_mut().enumerate().take(count) {
        for (place, other) in order.iter_mut().zip(0..count as u8) {
            *place = other;
        }
        // Of those that are as far, the next in number first: not all nodes turn to the same one.
        order[..count].sort_unstable_by_key(|other| {
            let other = usize::from(*other);
            (affinity.distances[node][other], (other + count - node) % count)
        });
    }
    let with_memory =
        info::ram().iter().fold(0, |mask, ram| mask | nodes_within(affinity, ram.start, ram.end));
    LAYOUT.call_once(|| Layout { affinity, nearest, with_memory });
    buddy::set_nodes(|frame| node_at(&LAYOUT, frame));
    // Last: from here on frames have nodes.
    COUNT.store(count, Ordering::SeqCst);
    for node in all() {
        log::info!("node {node}: {} MiB", stats(node).total >> 20);
    }
}

/// Notes the node of a CPU that is about to start, by its APIC identifier.
pub(crate) fn set_cpu(cpu: CpuId, apic_id: u32) {
    if let Some(layout) = LAYOUT.get() {
        NODE_OF_CPU[cpu as usize].store(layout.affinity.node_of_cpu(apic_id) as u8, Ordering::SeqCst);
    }
}
