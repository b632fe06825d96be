//! The tables of memory nodes, sound ones and others.

use kernel_models::arch::srat::{Affinity, NodeMemory, read};

const MIB: u64 = 1 << 20;

/// A table with these entries.
fn table(revision: u8, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![0; 48];
    out[..4].copy_from_slice(b"SRAT");
    out[8] = revision;
    out.extend(entries.iter().flatten());
    out
}

fn cpu(apic_id: u8, domain: u8) -> Vec<u8> {
    let mut out = vec![0, 16, domain, apic_id, 1];
    out.resize(16, 0);
    out
}

fn x2apic(apic_id: u32, domain: u32) -> Vec<u8> {
    let mut out = vec![2, 24, 0, 0];
    out.extend([domain, apic_id, 1].map(u32::to_le_bytes).as_flattened());
    out.resize(24, 0);
    out
}

fn memory(start: u64, length: u64, domain: u32) -> Vec<u8> {
    let mut out = vec![1, 40];
    out.extend(domain.to_le_bytes());
    out.extend([0; 2]);
    out.extend([start, length].map(u64::to_le_bytes).as_flattened());
    out.extend([0; 4]);
    out.extend(1u32.to_le_bytes());
    out.resize(40, 0);
    out
}

fn slit(count: u64, distances: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 36];
    out.extend(count.to_le_bytes());
    out.extend(distances);
    out
}

/// As QEMU makes it for two nodes of 512 MiB.
fn two() -> Vec<Vec<u8>> {
    vec![
        cpu(0, 0),
        cpu(1, 1),
        memory(0, 640 << 10, 0),
        memory(MIB, 511 * MIB, 0),
        memory(512 * MIB, 512 * MIB, 1),
    ]
}

#[test]
fn memory_and_cpus_have_nodes() {
    let found = read(&table(1, &two()), None).unwrap();
    assert_eq!(found.domains, [0, 1]);
    assert_eq!(found.cpus, [(0, 0), (1, 1)]);
    assert_eq!((found.node_of_cpu(1), found.node_of_cpu(9)), (1, 0));
    assert_eq!(found.memory.len(), 3);
    assert_eq!(found.node_at(2 * MIB), (0, 512 * MIB));
    assert_eq!(found.node_at(512 * MIB), (1, 1024 * MIB));
    // Between the entries, and behind them.
    assert_eq!(found.node_at(700 << 10), (0, MIB));
    assert_eq!(found.node_at(1024 * MIB), (0, u64::MAX));
    assert_eq!(found.uncovered(0, 1024 * MIB), 384 << 10);
    assert_eq!((found.distances[0][0], found.distances[0][1]), (10, 20));
}

#[test]
fn nodes_are_numbered_as_they_appear_and_entries_side_by_side_are_one() {
    let entries = [x2apic(300, 7), memory(0, MIB, 3), memory(MIB, MIB, 3), memory(2 * MIB, MIB, 7)];
    let found = read(&table(3, &entries), None).unwrap();
    assert_eq!(found.domains, [7, 3]);
    assert_eq!(found.node_of_cpu(300), 0);
    let [low, high] =
        [(0, 2 * MIB, 1), (2 * MIB, 3 * MIB, 0)].map(|(start, end, node)| NodeMemory { start, end, node });
    assert_eq!(found.memory, [low, high]);
}

#[test]
fn distances_are_taken_where_all_of_them_make_sense() {
    let of = |slit: &[u8]| read(&table(1, &two()), Some(slit)).unwrap().distances;
    assert_eq!(of(&slit(2, &[10, 31, 17, 10]))[0][..2], [10, 31]);
    let usual = read(&table(1, &two()), None).unwrap().distances;
    for bad in [
        slit(2, &[10, 10, 17, 10]),
        slit(2, &[11, 20, 20, 10]),
        slit(2, &[10, 31, 17]),
        slit(1, &[10]),
        slit(u64::MAX, &[10, 31, 17, 10]),
        vec![0; 40],
        Vec::new(),
    ] {
        assert_eq!(of(&bad), usual, "{bad:?}");
    }
}

#[test]
fn tables_that_contradict_themselves_are_refused() {
    let refused = |entries: &[Vec<u8>]| read(&table(2, entries), None).unwrap_err();
    assert_eq!(refused(&[memory(0, 2 * MIB, 0), memory(MIB, MIB, 1)]), "memory overlaps");
    assert_eq!(refused(&[memory(0, 4 * MIB, 0), memory(MIB, MIB, 0)]), "memory overlaps");
    assert_eq!(refused(&[memory(u64::MAX - 5, 100, 0)]), "memory ends beyond all addresses");
    let many: Vec<_> = (0..17).map(|node| cpu(node, node)).collect();
    assert_eq!(refused(&many), "it has too many nodes");
    let many = vec![cpu(1, 1); 1025];
    assert_eq!(refused(&many), "it has too many entries");
    let many: Vec<_> = (0..1025).map(|at| memory(at * MIB, MIB, 0)).collect();
    assert_eq!(refused(&many), "it has too many entries");
    assert_eq!(refused(&[vec![0, 0]]), "an entry has no length");
    assert_eq!(refused(&[vec![1, 40, 0]]), "an entry is longer than the table");
    for short in [vec![0, 4, 0, 0], vec![0, 8, 0, 0, 1, 0, 0, 0], vec![1, 2], vec![2, 3, 0]] {
        assert_eq!(refused(&[short]), "an entry is too short");
    }
    assert!(read(&[], None).is_err() && read(&[0; 20], None).is_err());
    // What is switched off, of no length or unknown says nothing.
    let mut off = memory(0, MIB, 5);
    off[28] = 0;
    let found = read(&table(2, &[off, memory(MIB, 0, 6), vec![9, 2]]), None);
    assert_eq!(found.unwrap(), Affinity::default());
}

#[test]
fn no_bytes_make_it_stumble() {
    let whole = table(2, &two());
    // Each byte of a sound table with each of some values, and each of its beginnings.
    for at in 0..whole.len() {
        let _ = read(&whole[..at], Some(&whole[..at]));
        for value in [0, 1, 2, 3, 15, 16, 39, 40, 127, 128, 255] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if let Ok(found) = read(&bytes, Some(&bytes)) {
                assert!(found.memory.is_sorted_by(|a, b| a.end <= b.start));
                let _ = (found.node_at(u64::MAX), found.uncovered(0, 1024 * MIB));
            }
        }
    }
}
