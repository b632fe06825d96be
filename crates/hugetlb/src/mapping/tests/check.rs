//! The checker finds each invariant that is broken on purpose.

use super::*;
use crate::payer::PageCharge;
use crate::pool::Page;
use crate::sync::Ordering;

fn check(mapping: &Mapping<TestMachine>) -> std::result::Result<(), std::string::String> {
    mapping.check(&mut CheckRound::new(mapping.file().hugetlb()))
}

#[track_caller]
fn expect(mapping: &Mapping<TestMachine>, what: &str) {
    let found = check(mapping).expect_err("a broken invariant was not found");
    assert!(found.contains(what), "{found}");
}

/// Two files with a page at the first index each, mapped alike.
fn two(protocol: ProtocolKind) -> (System, [(TestSpace, Mapped); 2]) {
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
        let (_, private) = map_at(pairs[0].1.file(), HERE, 2 * MIB2, PRIVATE);
        assert_eq!(load(&private, HERE), 1);
        check(&private).unwrap();
        store(&private, HERE, 3);
        check(&private).unwrap();
        pairs[0].1.file().fallocate(FallocateMode::PunchHole, 0, MIB2, || false).unwrap();
        pairs.iter().for_each(|(_, mapping)| check(mapping).unwrap());
    }
}

#[test]
fn stores_and_instruction_fetches_imply_loads() {
    for (_, protocol) in ProtocolKind::ALL {
        let (_, mut pairs) = two(*protocol);
        for protection in [Protection::WRITE, Protection::EXECUTE] {
            pairs[0].1.protect(protection);
            assert_eq!(load(&pairs[0].1, HERE), 1);
            check(&pairs[0].1).unwrap();
        }
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
        tables[0][9].store(EMPTY, Ordering::SeqCst);
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
    let own = space.set_pud(HERE, X86_64::managed(X86_64::table_frame(space.pud(HERE)), RW));
    expect(&mapping, "invariant 3");
    space.set_pud(HERE, own);
    // In a table of the host.
    let file = mapping.file().clone();
    let (space, mut crowded) = map_at(&file, HERE, 2 * MIB2, SHARED);
    // The host's table is used from now on.
    assert_eq!(crowded.leave_slot(HERE), Ok(true));
    store(&crowded, HERE, 4);
    crowded.protect(Protection::READ);
    check(&crowded).unwrap();
    let entry = &hugetlb.machine().table_of(space.pud(HERE))[0];
    let own = entry.load(Ordering::SeqCst);
    entry.store(X86_64::leaf(Level::Pmd, X86_64::leaf_frame(Level::Pmd, own), RW), Ordering::SeqCst);
    expect(&crowded, "invariant 3");
    entry.store(own, Ordering::SeqCst);
}

/// A round over several mappings, to its end.
fn check_all(mappings: &[&Mapping<TestMachine>]) -> std::result::Result<(), std::string::String> {
    let mut round = CheckRound::new(mappings[0].file().hugetlb());
    mappings.iter().try_for_each(|mapping| mapping.check(&mut round))?;
    round.check_counts()
}

#[track_caller]
fn expect_of_all(mappings: &[&Mapping<TestMachine>], what: &str) {
    let found = check_all(mappings).expect_err("a broken invariant was not found");
    assert!(found.contains(what), "{found}");
}

#[test]
fn a_table_that_miscounts_is_found() {
    for protocol in [ProtocolKind::VmaLock, ProtocolKind::FileTables] {
        let (_, [(space, mapping), (_, other)]) = two(protocol);
        let (partner, second) = map_at(mapping.file(), HERE, SLOT_SIZE, SHARED);
        load(&second, HERE);
        assert_eq!(X86_64::table_frame(space.pud(HERE)), X86_64::table_frame(partner.pud(HERE)));
        check_all(&[&mapping, &second, &other]).unwrap();
        // A mapping that no address space has any more is still counted.
        expect_of_all(&[&mapping, &other], "1 entries lead to the table");
        // As is one whose entry somebody took away.
        let own = partner.set_pud(HERE, EMPTY);
        expect_of_all(&[&mapping, &second, &other], "1 entries lead to the table");
        let last = space.set_pud(HERE, EMPTY);
        expect_of_all(&[&mapping, &second, &other], "1 entries lead to tables, 3 are counted");
        partner.set_pud(HERE, own);
        space.set_pud(HERE, last);
        check_all(&[&mapping, &second, &other]).unwrap();
    }
}

#[test]
fn a_page_of_two_files_is_found() {
    for protocol in [ProtocolKind::None, ProtocolKind::VmaLock, ProtocolKind::FileTables] {
        let (_hugetlb, [(_, mapping), (_, other)]) = two(protocol);
        check_all(&[&mapping, &other]).unwrap();
        // The second file's page becomes one that has the first one's frame; both tables say what their files say.
        let first = mapping.file().content().get(0).unwrap().frame();
        let pool = other.file().pool().clone();
        let punch = || other.file().fallocate(FallocateMode::PunchHole, 0, MIB2, || false).unwrap();
        punch();
        let charge = PageCharge::new((), PageSize::Size2M, true).unwrap();
        let double = Arc::new(Page::new(first, pool, None, charge));
        // It must not give the frame back.
        std::mem::forget(double.clone());
        assert!(other.file().content().insert(0, double).is_ok());
        assert_eq!(load(&other, HERE), 1);
        expect_of_all(&[&mapping, &other], "invariant 6");
        punch();
        check_all(&[&mapping, &other]).unwrap();
    }
}

#[test]
fn a_mapped_page_that_is_free_is_found() {
    for protocol in [ProtocolKind::None, ProtocolKind::VmaLock, ProtocolKind::FileTables] {
        let (_, [(_, mapping), (_, other)]) = two(protocol);
        let pool = mapping.file().pool();
        let frame = mapping.file().content().get(0).unwrap().frame();
        pool.give(frame, false);
        expect_of_all(&[&mapping, &other], "which is free");
        assert_eq!(pool.take(false), Some(frame));
        check_all(&[&mapping, &other]).unwrap();
    }
}
