//! `/sys/devices/system/node`: the memory nodes, their CPUs, their memory and how far they are from each other.

use alloc::format;
use alloc::string::String;
use core::fmt::Write as _;

use super::{line, register_link, register_read_only};
use crate::arch::cpu::{self, CpuSet};
use crate::errno::Result;
use crate::memory::node::{self, NodeMask};
use crate::memory::{self, PAGE_SIZE, Use};

const NODE: &str = "devices/system/node";

/// Numbers in ascending order as Linux writes lists: `0-2,5`.
pub fn list(numbers: impl Iterator<Item = usize>) -> String {
    let mut out = String::new();
    let mut numbers = numbers.peekable();
    while let Some(first) = numbers.next() {
        let mut last = first;
        while let Some(next) = numbers.next_if_eq(&(last + 1)) {
            last = next;
        }
        let separator = if out.is_empty() { "" } else { "," };
        let _ = write!(out, "{separator}{first}");
        if last > first {
            let _ = write!(out, "-{last}");
        }
    }
    out
}

fn cpu_list(cpus: &CpuSet) -> String {
    list(cpus.iter().map(|cpu| cpu as usize))
}

/// A mask of CPUs in groups of 32, the highest first; the first has as many digits as there are CPUs for.
fn cpu_mask(cpus: &CpuSet) -> String {
    let groups = cpu::count().div_ceil(32);
    let digits = |group: u32| (cpu::count() - group * 32).min(32).div_ceil(4) as usize;
    let mut out = String::new();
    for group in (0..groups).rev() {
        let word = (cpus.words()[group as usize / 2] >> (group % 2 * 32)) as u32;
        let separator = if group > 0 { "," } else { "\n" };
        let _ = write!(out, "{word:0width$x}{separator}", width = digits(group));
    }
    out
}

/// Registers the files of all nodes.
pub(super) fn init() -> Result<()> {
    let with_memory = || line(list(node::list(node::with_memory())));
    for name in ["online", "possible"] {
        register_read_only(&format!("{NODE}/{name}"), || line(list(node::all())))?;
    }
    register_read_only(&format!("{NODE}/has_cpu"), || {
        line(list(node::all().filter(|node| !node::cpus(*node).is_empty())))
    })?;
    for name in ["has_memory", "has_normal_memory"] {
        register_read_only(&format!("{NODE}/{name}"), with_memory)?;
    }
    for node in node::all() {
        let directory = format!("{NODE}/node{node}");
        register_read_only(&format!("{directory}/cpulist"), move || line(cpu_list(&node::cpus(node))))?;
        register_read_only(&format!("{directory}/cpumap"), move || Ok(cpu_mask(&node::cpus(node))))?;
        register_read_only(&format!("{directory}/distance"), move || {
            let distances = node::all().map(|other| format!("{}", node::distance(node, other)));
            line(distances.reduce(|row, distance| row + " " + &distance).unwrap_or_default())
        })?;
        register_read_only(&format!("{directory}/meminfo"), move || Ok(meminfo(node)))?;
        register_read_only(&format!("{directory}/vmstat"), move || Ok(vmstat(node)))?;
        // Not counted where all allocations come from the one node.
        if node::count() > 1 {
            register_read_only(&format!("{directory}/numastat"), move || Ok(counts(node)))?;
        }
        for cpu in node::cpus(node).iter() {
            register_link(&format!("{directory}/cpu{cpu}"), format!("../../cpu/cpu{cpu}"))?;
            register_link(
                &format!("devices/system/cpu/cpu{cpu}/node{node}"),
                format!("../../node/node{node}"),
            )?;
        }
    }
    Ok(())
}

/// Links a block of memory and its nodes to each other.
pub(super) fn link_block(block: u64, nodes: NodeMask) -> Result<()> {
    for node in node::list(nodes) {
        register_link(&format!("{NODE}/node{node}/memory{block}"), format!("../../memory/memory{block}"))?;
        let path = format!("devices/system/memory/memory{block}/node{node}");
        register_link(&path, format!("../../node/node{node}"))?;
    }
    Ok(())
}

/// Bytes of a node: all, free, of files, private, kernel stacks, page tables, the heap.
fn usage(node: usize) -> [u64; 7] {
    if node::count() == 1 {
        let stats = memory::stats();
        let memory::Stats { total, free, file, anon, kernel_stacks, page_tables, heap, .. } = stats;
        return [total, free, file, anon, kernel_stacks, page_tables, heap];
    }
    let stats = node::stats(node);
    let used = [Use::File, Use::Anon, Use::KernelStack, Use::PageTable, Use::Heap].map(|by| stats.used(by));
    let [file, anon, kernel_stacks, page_tables, heap] = used;
    [stats.total, stats.free, file, anon, kernel_stacks, page_tables, heap]
}

fn meminfo(node: usize) -> String {
    let [total, free, file, anon, kernel_stacks, page_tables, heap] = usage(node);
    let mut text = String::new();
    for (name, bytes) in [
        ("MemTotal:", total),
        ("MemFree:", free),
        ("MemUsed:", total.saturating_sub(free)),
        ("SwapCached:", 0),
        ("Active:", 0),
        ("Inactive:", anon + file),
        ("Active(anon):", 0),
        ("Inactive(anon):", anon + file),
        ("Active(file):", 0),
        ("Inactive(file):", 0),
        ("Unevictable:", 0),
        ("Mlocked:", 0),
        ("Dirty:", 0),
        ("Writeback:", 0),
        ("FilePages:", file),
        ("AnonPages:", anon),
        ("Shmem:", file),
        ("KernelStack:", kernel_stacks),
        ("PageTables:", page_tables),
        ("Slab:", heap),
        ("SReclaimable:", 0),
        ("SUnreclaim:", heap),
    ] {
        let _ = writeln!(text, "Node {node} {name:<15} {:>8} kB", bytes >> 10);
    }
    text
}

fn vmstat(node: usize) -> String {
    let [_, free, file, anon, kernel_stacks, page_tables, heap] = usage(node);
    let mut text = String::new();
    for (name, bytes) in [
        ("nr_free_pages", free),
        ("nr_inactive_anon", anon + file),
        ("nr_anon_pages", anon),
        ("nr_file_pages", file),
        ("nr_shmem", file),
        ("nr_page_table_pages", page_tables),
        ("nr_slab_unreclaimable", heap),
    ] {
        let _ = writeln!(text, "{name} {}", bytes / PAGE_SIZE as u64);
    }
    let _ = writeln!(text, "nr_kernel_stack {}", kernel_stacks >> 10);
    if node::count() > 1 {
        text +=
            &counts(node).replace("interleave_hit", "numa_interleave").replace("local_node", "numa_local");
        text = text.replace("other_node", "numa_other");
    }
    text
}

/// How allocations met their wishes.
fn counts(node: usize) -> String {
    let stats = node::stats(node);
    let mut text = String::new();
    for (name, count) in [
        ("numa_hit", stats.hit),
        ("numa_miss", stats.miss),
        ("numa_foreign", stats.foreign),
        ("interleave_hit", 0),
        ("local_node", stats.local),
        ("other_node", stats.other),
    ] {
        let _ = writeln!(text, "{name} {count}");
    }
    text
}
