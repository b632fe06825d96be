//! Which memory is near to which CPUs: ACPI's tables SRAT and SLIT.
//!
//! They are read as bytes (ACPI 6.5, 5.2.16 and 5.2.17). What they say is believed as a whole or not at all: a table that contradicts
//! itself is worth less than none.

use alloc::vec::Vec;

/// Most nodes that the kernel knows.
pub const MAX_NODES: usize = 16;
/// Distance of a node from itself, and from others where no table says more.
pub const LOCAL_DISTANCE: u8 = 10;
const REMOTE_DISTANCE: u8 = 20;

/// Bytes before the entries of a table.
const HEADER: usize = 36;
/// More entries of one kind than any machine that the kernel runs on has.
const MOST_ENTRIES: usize = 1024;

/// Memory of one node, the end exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeMemory {
    pub start: u64,
    pub end: u64,
    pub node: usize,
}

/// What the tables say. Nodes are numbered as Linux does: in the order in which their numbers in the table appear, CPUs first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// In ascending order, and apart.
    pub memory: Vec<NodeMemory>,
    /// APIC identifiers.
    pub cpus: Vec<(u32, usize)>,
    /// The table's number of each node.
    pub domains: Vec<u32>,
    /// How far nodes are from each other.
    pub distances: [[u8; MAX_NODES]; MAX_NODES],
}

fn bytes<const N: usize>(entry: &[u8], at: usize) -> Result<[u8; N], &'static str> {
    entry.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).ok_or("an entry is too short")
}

fn long(entry: &[u8], at: usize) -> Result<u32, &'static str> {
    bytes(entry, at).map(u32::from_le_bytes)
}

fn quad(entry: &[u8], at: usize) -> Result<u64, &'static str> {
    bytes(entry, at).map(u64::from_le_bytes)
}

/// Reads both tables, headers included; the error says what is wrong with the first.
pub fn read(srat: &[u8], slit: Option<&[u8]>) -> Result<Affinity, &'static str> {
    const CPU: u8 = 0;
    const MEMORY: u8 = 1;
    const CPU_X2APIC: u8 = 2;
    const ENABLED: u32 = 1;
    let revision = *srat.get(8).ok_or("it has no header")?;
    let mut affinity = Affinity::default();
    let mut memory = Vec::new();
    // Twelve bytes behind the header mean nothing.
    let mut rest = srat.get(HEADER + 12..).ok_or("it has no entries")?;
    while let [kind, length, ..] = *rest {
        if length < 2 {
            return Err("an entry has no length");
        }
        let (entry, after) =
            rest.split_at_checked(length.into()).ok_or("an entry is longer than the table")?;
        rest = after;
        match kind {
            CPU if long(entry, 4)? & ENABLED != 0 => {
                // Of the first revision only the lowest byte counts.
                let [low, apic_id] = bytes(entry, 2)?;
                let [a, b, c] = if revision >= 2 { bytes(entry, 9)? } else { [0; 3] };
                let domain = u32::from_le_bytes([low, a, b, c]);
                affinity.add_cpu(apic_id.into(), domain)?;
            }
            CPU_X2APIC if long(entry, 12)? & ENABLED != 0 => {
                affinity.add_cpu(long(entry, 8)?, long(entry, 4)?)?;
            }
            MEMORY if long(entry, 28)? & ENABLED != 0 => {
                let domain = long(entry, 2)? & if revision >= 2 { u32::MAX } else { 0xff };
                let (start, length) = (quad(entry, 8)?, quad(entry, 16)?);
                let end = start.checked_add(length).ok_or("memory ends beyond all addresses")?;
                if memory.len() == MOST_ENTRIES {
                    return Err("it has too many entries");
                }
                if length > 0 {
                    memory.push((start, end, domain));
                }
            }
            _ => {}
        }
    }
    for (start, end, domain) in memory {
        let node = affinity.node(domain)?;
        affinity.memory.push(NodeMemory { start, end, node });
    }
    affinity.memory.sort_unstable_by_key(|memory| memory.start);
    if affinity.memory.windows(2).any(|pair| pair[0].end > pair[1].start) {
        return Err("memory overlaps");
    }
    affinity.memory.dedup_by(|next, last| {
        let joins = last.end == next.start && last.node == next.node;
        if joins {
            last.end = next.end;
        }
        joins
    });
    affinity.set_distances(slit);
    Ok(affinity)
}

impl Affinity {
    /// The node with this number in the table, a new one if need be.
    fn node(&mut self, domain: u32) -> Result<usize, &'static str> {
        if let Some(node) = self.domains.iter().position(|other| *other == domain) {
            return Ok(node);
        }
        if self.domains.len() == MAX_NODES {
            return Err("it has too many nodes");
        }
        self.domains.push(domain);
        Ok(self.domains.len() - 1)
    }

    fn add_cpu(&mut self, apic_id: u32, domain: u32) -> Result<(), &'static str> {
        if self.cpus.len() == MOST_ENTRIES {
            return Err("it has too many entries");
        }
        let node = self.node(domain)?;
        self.cpus.push((apic_id, node));
        Ok(())
    }

    /// Takes the distances of the table if all of them make sense. As Linux: a node is 10 from itself, and farther from all others.
    fn set_distances(&mut self, slit: Option<&[u8]>) {
        let nodes = self.domains.len();
        let told = |from: u32, to: u32| -> Option<u8> {
            let slit = slit?;
            let count = quad(slit, HEADER).ok()?;
            let index = u64::from(from).checked_mul(count)?.checked_add(to.into())?;
            let is_there = u64::from(from.max(to)) < count;
            let at = usize::try_from(index).ok()?.checked_add(HEADER + 8)?;
            slit.get(at).copied().filter(|_| is_there)
        };
        let sound = (0..nodes).all(|from| {
            (0..nodes).all(|to| match told(self.domains[from], self.domains[to]) {
                Some(distance) if from == to => distance == LOCAL_DISTANCE,
                Some(distance) => distance > LOCAL_DISTANCE,
                None => false,
            })
        });
        for from in 0..nodes {
            for to in 0..nodes {
                let usual = if from == to { LOCAL_DISTANCE } else { REMOTE_DISTANCE };
                let table = told(self.domains[from], self.domains[to]).filter(|_| sound);
                self.distances[from][to] = table.unwrap_or(usual);
            }
        }
    }

    /// The node of the CPU with this APIC identifier; the first where the table does not know it.
    pub fn node_of_cpu(&self, apic_id: u32) -> usize {
        self.cpus.iter().find(|(id, _)| *id == apic_id).map_or(0, |(_, node)| *node)
    }

    /// The node of an address, and where that of later addresses may be another. What no entry has counts for the first node.
    pub fn node_at(&self, address: u64) -> (usize, u64) {
        let next = self.memory.partition_point(|memory| memory.end <= address);
        match self.memory.get(next) {
            Some(memory) if memory.start <= address => (memory.node, memory.end),
            Some(memory) => (0, memory.start),
            None => (0, u64::MAX),
        }
    }

    /// Bytes of a range that no entry has.
    pub fn uncovered(&self, start: u64, end: u64) -> u64 {
        let covered =
            self.memory.iter().map(|memory| memory.end.min(end).saturating_sub(memory.start.max(start)));
        end.saturating_sub(start) - covered.sum::<u64>()
    }
}
