//! The checker finds each invariant that is broken on purpose.

use std::collections::BTreeSet;

use super::*;
use crate::sync::Ordering;

fn check(mapping: &Mapping<TestMachine>) -> std::result::Result<(), std::string::String> {
    mapping.check(&mut BTreeSet::new())
}

#[track_caller]
fn expect(mapping: &Mapping<TestMachine>, what: &str) {
    let found = check(mapping).expect_err("a broken invariant was not found");
    assert!(found.contains(what), "{found}");
}

/// Two files with a page at the first index each, mapped alike.
fn two(protocol: ProtocolKind) -> (System, [(TestSpace, Mapping<TestMachine>); 2]) {
    let hugetlb = hugetlb(8, protocol);
    let pairs = [1, 2].map(|value| {
        let file = file(&hugetlb, SLOT_SIZE);
        let (space, mapping) = map_at(&file, HERE, SLOT_SIZE, SHARED);
        store(&mapping, HERE, value);
        (space, mapping)
    });
    (hugetlb, pairs)
}

#[test]
fn all_is_well_under_every_protocol() {
    for (_, protocol) in ProtocolKind::ALL {
        let (_, pairs) = two(*protocol);
        pairs.iter().for_each(|(_, mapping)| check(mapping).unwrap());
        let private = pairs[0].1.file().map(
            pairs[0].1.file().hugetlb().machine().space(),
            HERE,
            2 * MIB2,
            0,
            EVERYTHING,
            PRIVATE,
        );
        let private = private.unwrap();
        assert_eq!(load(&private, HERE), 1);
        check(&private).unwrap();
        store(&private, HERE, 3);
        check(&private).unwrap();
        pairs[0].1.file().fallocate(FallocateMode::PunchHole, 0, MIB2, || false).unwrap();
        pairs.iter().for_each(|(_, mapping)| check(mapping).unwrap());
    }
}

#[test]
fn a_leaf_of_another_file_is_found() {
    for protocol in [ProtocolKind::VmaLock, ProtocolKind::FileTables] {
        let (hugetlb, [(space, mapping), (other, _keep)]) = two(protocol);
        let tables = [space.pud(HERE), other.pud(HERE)].map(|pud| hugetlb.machine().table_of(pud));
        let own = tables[0][0].swap(tables[1][0].load(Ordering::SeqCst), Ordering::SeqCst);
        expect(&mapping, "invariant 1");
        // A page that was never there, in an entry that should be empty.
        tables[0][0].store(own, Ordering::SeqCst);
        tables[0][9].store(own, Ordering::SeqCst);
        expect(&mapping, "invariant 1");
        tables[0][9].store(0, Ordering::SeqCst);
        check(&mapping).unwrap();
    }
}

#[test]
fn another_files_table_is_found() {
    for protocol in [ProtocolKind::VmaLock, ProtocolKind::FileTables] {
        let (_, [(space, mapping), (other, _keep)]) = two(protocol);
        let own = space.set_pud(HERE, other.pud(HERE));
        expect(&mapping, "invariant 3");
        space.set_pud(HERE, own);
        check(&mapping).unwrap();
    }
}

#[test]
fn rights_that_the_mapping_does_not_give_are_found() {
    let (hugetlb, [(space, mut mapping), _]) = two(ProtocolKind::FileTables);
    mapping.protect(Protection::READ);
    let own = space.set_pud(HERE, format::managed(format::table_frame(space.pud(HERE)), RW));
    expect(&mapping, "invariant 3");
    space.set_pud(HERE, own);
    // In a table of the host.
    let file = mapping.file().clone();
    let (space, mut crowded) = map_at(&file, HERE, 2 * MIB2, SHARED);
    // The room ends in the slot, so the host's table is used from now on.
    crowded.set_room(HERE..HERE + 2 * MIB2);
    store(&crowded, HERE, 4);
    crowded.protect(Protection::READ);
    check(&crowded).unwrap();
    let entry = &hugetlb.machine().table_of(space.pud(HERE))[0];
    let own = entry.load(Ordering::SeqCst);
    entry.store(format::leaf(format::leaf_frame(own, PageSize::Size2M), RW), Ordering::SeqCst);
    expect(&crowded, "invariant 3");
    entry.store(own, Ordering::SeqCst);
}
