//! What userfaultfd(2) needs, under each protocol.

use super::*;
use crate::mapping::Presence;

const PROTOCOLS: [ProtocolKind; 3] = [ProtocolKind::FileTables, ProtocolKind::VmaLock, ProtocolKind::None];

fn range(first: u64, pages: u64) -> core::ops::Range<VirtAddr> {
    HERE + first * MIB2..HERE + (first + pages) * MIB2
}

/// Whether the entry of a page permits stores; `None` without one.
fn permits(mapping: &Mapping<TestMachine>, page: u64) -> Option<bool> {
    mapping.translate(HERE + page * MIB2).map(|(_, writable)| writable)
}

#[test]
fn an_unshared_mapping_faults_on_what_the_file_has() {
    for protocol in PROTOCOLS {
        let hugetlb = hugetlb(8, protocol);
        let file = file(&hugetlb, SLOT_SIZE);
        let (space, a) = map_at(&file, HERE, SLOT_SIZE, SHARED);
        let (_, b) = map_at(&file, HERE, SLOT_SIZE, SHARED);
        store(&b, HERE, 5);
        store(&a, HERE, 6);
        a.keep_unshared().unwrap();
        assert!(!X86_64::is_managed(Level::Pud, space.pud(HERE)));
        assert_eq!((permits(&a, 0), a.presence(HERE)), (None, Presence::InFile));
        assert_eq!(a.presence(HERE + MIB2), Presence::Absent);
        assert_eq!(load(&a, HERE), 6);
        // What others add comes by a fault as well, before and after it has left a slot and come back.
        store(&b, HERE + MIB2, 7);
        assert_eq!(permits(&a, 1), None);
        let mut round = CheckRound::new(&hugetlb);
        a.check(&mut round).unwrap();
        // A child shares again.
        let child = a.fork(hugetlb.machine().space()).unwrap();
        assert_eq!(load(&child, HERE + MIB2), 7);
        assert_eq!(load(&a, HERE + MIB2), 7);
        file.fallocate(FallocateMode::PunchHole, 0, MIB2, || false).unwrap();
        assert_eq!(permits(&a, 0), None, "a punch visits it");
        drop((a, b, child, file));
        assert_eq!(pool(&hugetlb), (8, 0));
    }
}

#[test]
fn withheld_stores_outlast_all_but_their_end() {
    for protocol in PROTOCOLS {
        let hugetlb = hugetlb(8, protocol);
        let file = file(&hugetlb, 8 * MIB2);
        let (_, mut mapping) = map_at(&file, HERE, 4 * MIB2, SHARED);
        assert_eq!(mapping.withhold_stores(range(0, 1), true), Err(Error::Invalid), "it may share tables");
        mapping.keep_unshared().unwrap();
        store(&mapping, HERE, 1);
        mapping.withhold_stores(range(0, 2), true).unwrap();
        load(&mapping, HERE + MIB2);
        store(&mapping, HERE + 2 * MIB2, 1);
        assert_eq!([0, 1, 2].map(|page| permits(&mapping, page)), [Some(false), Some(false), Some(true)]);
        mapping.protect(Protection::READ);
        mapping.protect(RW);
        mapping.discard(range(0, 4)).unwrap();
        for page in 0..3 {
            load(&mapping, HERE + page * MIB2);
        }
        assert_eq!([0, 1, 2].map(|page| permits(&mapping, page)), [Some(false), Some(false), Some(true)]);
        // Both parts of a split keep theirs.
        let upper = mapping.split(HERE + MIB2).unwrap();
        assert!(mapping.is_withheld(HERE) && upper.is_withheld(HERE + MIB2));
        upper.withhold_stores(range(1, 1), false).unwrap();
        assert_eq!((permits(&mapping, 0), permits(&upper, 1)), (Some(false), Some(true)));
        assert!(!mapping.fork(hugetlb.machine().space()).unwrap().is_withheld(HERE));
    }
}

#[test]
fn a_private_copy_is_withheld_too() {
    let hugetlb = hugetlb(8, ProtocolKind::FileTables);
    let file = file(&hugetlb, 4 * MIB2);
    let (_, mapping) = map_at(&file, HERE, 4 * MIB2, PRIVATE);
    store(&mapping, HERE, 1);
    mapping.withhold_stores(range(0, 4), true).unwrap();
    load(&mapping, HERE + MIB2);
    mapping.fault(HERE + MIB2, Access::Write).unwrap();
    assert_eq!([0, 1].map(|page| permits(&mapping, page)), [Some(false), Some(false)]);
    mapping.withhold_stores(range(0, 4), false).unwrap();
    store(&mapping, HERE, 2);
    assert_eq!(permits(&mapping, 0), Some(true));
}

#[test]
fn a_filled_page_is_never_seen_without_its_content() {
    for options in [SHARED, PRIVATE] {
        let hugetlb = hugetlb(4, ProtocolKind::FileTables);
        let file = file(&hugetlb, 2 * MIB2);
        let (_, mapping) = map_at(&file, HERE, 2 * MIB2, options);
        let machine = hugetlb.machine();
        assert!(mapping.poison(HERE).unwrap() && mapping.is_poisoned(HERE));
        assert_eq!(mapping.fault(HERE, Access::Read), Err(FaultError::Poisoned(21)));
        assert_eq!(mapping.fill(HERE, &|frame| machine.set_word(frame, 9)), Ok(true));
        assert!(!mapping.is_poisoned(HERE) && !mapping.poison(HERE).unwrap());
        assert_eq!(load(&mapping, HERE), 9);
        assert_eq!(mapping.fill(HERE, &|_| panic!("there is a page")), Ok(false));
        assert_eq!(file.content().get(0).is_some(), options.shared);
        assert!(mapping.poison(HERE + MIB2).unwrap());
        mapping.discard(range(0, 2)).unwrap();
        assert!(!mapping.is_poisoned(HERE + MIB2));
        assert!(mapping.poison(HERE + MIB2).unwrap());
        mapping.lift_poison(HERE + MIB2);
        assert_eq!(mapping.fault(HERE + MIB2, Access::Read), Ok(()));
        drop((mapping, file));
        assert_eq!(pool(&hugetlb), (4, 0));
    }
}

#[test]
fn a_page_that_was_filled_counts_though_its_slot_is_anothers() {
    let hugetlb = hugetlb(8, ProtocolKind::FileTables);
    let machine = hugetlb.machine();
    for unshared in [false, true] {
        let space = machine.space();
        let [file, other] = [file(&hugetlb, MIB2), file(&hugetlb, MIB2)];
        let neighbour = map(&other, &space, (HERE + MIB2, MIB2, 0), SHARED).unwrap();
        store(&neighbour, HERE + MIB2, 1);
        assert!(X86_64::is_managed(Level::Pud, space.pud(HERE)), "it has the slot");
        let mapping = map(&file, &space, (HERE, MIB2, 0), SHARED).unwrap();
        if unshared {
            mapping.keep_unshared().unwrap();
        }
        let fill = || mapping.fill(HERE, &|frame| machine.set_word(frame, 9));
        match unshared {
            // Its next access would be told of once more.
            true => {
                assert_eq!((fill(), mapping.presence(HERE)), (Err(FaultError::SlotShared), Presence::Absent));
                assert!(neighbour.leave_slot(HERE).unwrap());
                assert_eq!((fill(), mapping.is_resident(HERE)), (Ok(true), true));
            }
            false => {
                assert_eq!((fill(), mapping.presence(HERE)), (Ok(true), Presence::InFile));
                assert_eq!(mapping.fault(HERE, Access::Read), Err(FaultError::SlotShared));
                assert!(neighbour.leave_slot(HERE).unwrap());
            }
        }
        assert_eq!(load(&mapping, HERE), 9);
        assert_eq!(fill(), Ok(false));
    }
}

#[test]
fn a_poisoned_page_is_not_mapped() {
    for options in [SHARED, PRIVATE] {
        let hugetlb = hugetlb(4, ProtocolKind::FileTables);
        let file = file(&hugetlb, MIB2);
        let (_, mapping) = map_at(&file, HERE, MIB2, options);
        assert!(mapping.poison(HERE).unwrap());
        // As a fault that looked for the mark before it was there.
        assert_eq!(mapping.fault(HERE, Access::Read), Err(FaultError::Poisoned(21)));
        assert!(!mapping.is_resident(HERE));
        mapping.discard(range(0, 1)).unwrap();
        assert_eq!(load(&mapping, HERE), 0);
    }
}

#[test]
fn children_of_private_mappings_are_poisoned_too() {
    for (options, inherited) in [(PRIVATE, Err(FaultError::Poisoned(21))), (SHARED, Ok(()))] {
        let hugetlb = hugetlb(4, ProtocolKind::FileTables);
        let file = file(&hugetlb, 2 * MIB2);
        let (_, mapping) = map_at(&file, HERE, 2 * MIB2, options);
        assert!(mapping.poison(HERE + MIB2).unwrap());
        assert_eq!(mapping.inspect(HERE + MIB2, |_| ()), Err(FaultError::Poisoned(21)));
        assert_eq!(mapping.inspect(HERE, |_| ()), Ok(()));
        let child = mapping.fork(hugetlb.machine().space()).unwrap();
        assert_eq!(child.fault(HERE + MIB2, Access::Read), inherited);
        assert_eq!(child.fault(HERE, Access::Read), Ok(()));
        // Without memory there is no child, and nothing else has changed.
        hugetlb.machine().steps_left.store(0, Ordering::SeqCst);
        assert_eq!(mapping.fork(hugetlb.machine().space()).err().is_some(), inherited.is_err());
    }
}

#[test]
fn a_poisoned_page_does_not_come_into_sight_by_another_mapping() {
    let hugetlb = hugetlb(4, ProtocolKind::FileTables);
    let file = file(&hugetlb, SLOT_SIZE);
    let (_, poisoned) = map_at(&file, HERE, SLOT_SIZE, SHARED);
    let (_, other) = map_at(&file, HERE, SLOT_SIZE, SHARED);
    store(&other, HERE, 1);
    assert_eq!(load(&poisoned, HERE), 1);
    assert!(!poisoned.poison(HERE).unwrap(), "what is in sight cannot be poisoned");
    assert!(poisoned.poison(HERE + MIB2).unwrap());
    store(&other, HERE + MIB2, 2);
    assert!(!poisoned.is_resident(HERE + MIB2));
    assert_eq!(poisoned.fault(HERE + MIB2, Access::Read), Err(FaultError::Poisoned(21)));
    assert_eq!((load(&poisoned, HERE), load(&other, HERE + MIB2)), (1, 2));
}
