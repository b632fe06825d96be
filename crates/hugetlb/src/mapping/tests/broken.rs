//! Memory that breaks under a page, and pages that leave it before.

use super::*;
use crate::file::Chunk;

const PROTOCOLS: [ProtocolKind; 3] = [ProtocolKind::FileTables, ProtocolKind::VmaLock, ProtocolKind::None];
const BROKEN: Result<(), FaultError> = Err(FaultError::Poisoned(21));

/// All pages of the pool, and the free ones.
fn counts(hugetlb: &System) -> (u64, u64) {
    let pool = hugetlb.pool(PageSize::Size2M);
    pool.check().unwrap();
    let counted = pool.statistics();
    assert_eq!((counted.total, counted.surplus), (counted.persistent, 0));
    (counted.total, counted.free)
}

fn check(hugetlb: &System, file: &File<TestMachine>, mappings: &[&Mapped]) {
    let mut round = CheckRound::new(hugetlb);
    mappings.iter().for_each(|mapping| mapping.check(&mut round).unwrap());
    file.check_tables().unwrap();
}

#[test]
fn a_broken_page_of_a_file_is_broken_for_all_until_it_leaves_the_file() {
    for protocol in PROTOCOLS {
        let hugetlb = hugetlb(8, protocol);
        let file = file(&hugetlb, SLOT_SIZE);
        let (_, a) = map_at(&file, HERE, SLOT_SIZE, SHARED);
        let (_, b) = map_at(&file, HERE, SLOT_SIZE, SHARED);
        let (_, unshared) = map_at(&file, HERE, SLOT_SIZE, SHARED);
        let (_, private) = map_at(&file, HERE, 4 * MIB2, MapOptions { no_reserve: true, ..PRIVATE });
        unshared.keep_unshared().unwrap();
        for page in 0..3 {
            store(&a, HERE + page * MIB2, page + 1);
        }
        for mapping in [&b, &unshared, &private] {
            assert_eq!([0, 1, 2].map(|page| load(mapping, HERE + page * MIB2)), [1, 2, 3]);
        }
        // A copy of the page is not the page.
        store(&private, HERE + 2 * MIB2, 9);
        let mut noted = None;
        assert!(b.break_page(HERE + MIB2 + 4096, |frame| noted = Some(frame)).unwrap());
        assert!(b.break_page(HERE + 2 * MIB2, |_| ()).unwrap());
        assert_eq!(b.break_page(HERE + MIB2, |_| panic!("twice")), Ok(false));
        assert_eq!(b.break_page(HERE + 3 * MIB2, |_| panic!("a hole")), Ok(false));
        let (_, late) = map_at(&file, HERE, SLOT_SIZE, SHARED);
        for mapping in [&a, &b, &unshared, &private, &late] {
            for access in [Access::Read, Access::Write] {
                assert_eq!(mapping.fault(HERE + MIB2, access), BROKEN, "{protocol:?}");
            }
            assert!(mapping.translate(HERE + MIB2).is_none() && mapping.is_poisoned(HERE + MIB2));
            assert_eq!(mapping.inspect(HERE + MIB2, |_| ()), BROKEN);
            assert_eq!(load(mapping, HERE), 1);
        }
        assert_eq!(load(&private, HERE + 2 * MIB2), 9);
        check(&hugetlb, &file, &[&a, &b, &unshared, &private, &late]);
        // It is the file's still, and is read as far as the host lets it be.
        let Chunk::Data(page) = file.read(MIB2, MIB2) else { panic!("a page is there") };
        assert!(page.is_broken() && Some(page.address()) == noted);
        drop(page);
        assert_eq!((counts(&hugetlb), file.statistics().pages), ((8, 4), 3));
        file.fallocate(FallocateMode::PunchHole, MIB2, MIB2, || false).unwrap();
        assert_eq!(counts(&hugetlb), (7, 4), "its frame is gone");
        for mapping in [&a, &b, &unshared, &late] {
            assert_eq!(load(mapping, HERE + MIB2), 0);
        }
        assert!(!a.is_poisoned(HERE + MIB2));
        check(&hugetlb, &file, &[&a, &b, &unshared, &private, &late]);
        drop((a, b, unshared, private, late, file));
        assert_eq!(counts(&hugetlb), (6, 6));
    }
}

#[test]
fn a_broken_copy_is_broken_for_all_who_share_it() {
    for protocol in PROTOCOLS {
        let hugetlb = hugetlb(7, protocol);
        let file = file(&hugetlb, 4 * MIB2);
        let (_, parent) = map_at(&file, HERE, 4 * MIB2, PRIVATE);
        let (_, stranger) = map_at(&file, HERE, 4 * MIB2, MapOptions { no_reserve: true, ..PRIVATE });
        store(&parent, HERE, 1);
        store(&stranger, HERE, 2);
        let child = parent.fork(hugetlb.machine().space()).unwrap();
        load(&child, HERE);
        assert!(child.break_page(HERE, |_| ()).unwrap());
        for mapping in [&parent, &child] {
            assert_eq!(
                (mapping.fault(HERE, Access::Read), mapping.fault(HERE, Access::Write)),
                (BROKEN, BROKEN)
            );
            assert_eq!(mapping.inspect(HERE, |_| ()), BROKEN);
        }
        assert_eq!((load(&stranger, HERE), counts(&hugetlb)), (2, (6, 5)));
        let grandchild = child.fork(hugetlb.machine().space()).unwrap();
        assert_eq!(grandchild.fault(HERE, Access::Read), BROKEN);
        drop(grandchild);
        child.discard(HERE..HERE + MIB2).unwrap();
        assert_eq!((load(&child, HERE), parent.fault(HERE, Access::Read)), (0, BROKEN));
        // The promise went with the page: what comes now is taken as without one.
        parent.discard(HERE..HERE + MIB2).unwrap();
        assert_eq!(load(&parent, HERE), 0);
        check(&hugetlb, &file, &[&parent, &child, &stranger]);
        drop((parent, child, stranger, file));
        assert_eq!((counts(&hugetlb), pool(&hugetlb)), ((6, 6), (6, 0)));
    }
}

#[test]
fn a_page_of_a_file_moves_and_nobody_sees_it() {
    for protocol in PROTOCOLS {
        let hugetlb = hugetlb(3, protocol);
        let file = file(&hugetlb, SLOT_SIZE);
        let (_, a) = map_at(&file, HERE, SLOT_SIZE, SHARED);
        let (_, b) = map_at(&file, HERE, SLOT_SIZE, SHARED);
        let (_, private) = map_at(&file, HERE, 4 * MIB2, MapOptions { no_reserve: true, ..PRIVATE });
        store(&a, HERE, 1);
        store(&a, HERE + MIB2, 2);
        assert_eq!((load(&b, HERE), load(&private, HERE)), (1, 1));
        let frame = |mapping: &Mapped| mapping.translate(HERE).map(|(frame, _)| frame);
        let mut left = None;
        let before = frame(&a);
        assert!(b.replace_page(HERE, |frame| left = Some(frame)).unwrap());
        assert_eq!((left, counts(&hugetlb)), (before, (2, 0)));
        for mapping in [&a, &b, &private] {
            assert_eq!((load(mapping, HERE), load(mapping, HERE + MIB2)), (1, 2), "{protocol:?}");
            assert!(frame(mapping).is_some() && frame(mapping) != before);
        }
        store(&b, HERE, 3);
        assert_eq!((load(&a, HERE), load(&private, HERE)), (3, 3));
        // The pool is empty: the machine has one more, for the one that goes.
        assert!(a.replace_page(HERE, |_| ()).unwrap());
        assert_eq!((load(&a, HERE), load(&b, HERE), counts(&hugetlb)), (3, 3, (2, 0)));
        check(&hugetlb, &file, &[&a, &b, &private]);
        file.truncate(0).unwrap();
        assert_eq!(counts(&hugetlb), (2, 2));
        drop((a, b, private, file));
    }
}

#[test]
fn a_copy_moves_for_all_who_share_it_and_stays_a_copy() {
    for protocol in PROTOCOLS {
        let hugetlb = hugetlb(5, protocol);
        let file = file(&hugetlb, MIB2);
        let (_, parent) = map_at(&file, HERE, MIB2, PRIVATE);
        store(&parent, HERE, 1);
        let child = parent.fork(hugetlb.machine().space()).unwrap();
        load(&child, HERE);
        assert!(parent.replace_page(HERE, |_| ()).unwrap());
        assert_eq!((load(&parent, HERE), load(&child, HERE), counts(&hugetlb)), (1, 1, (4, 3)));
        store(&parent, HERE, 2);
        assert_eq!((load(&parent, HERE), load(&child, HERE)), (2, 1));
        store(&child, HERE, 3);
        assert_eq!((load(&parent, HERE), load(&child, HERE)), (2, 3));
        assert!(child.replace_page(HERE, |_| ()).unwrap());
        assert_eq!((load(&parent, HERE), load(&child, HERE)), (2, 3));
        check(&hugetlb, &file, &[&parent, &child]);
        drop((parent, child, file));
        assert_eq!((counts(&hugetlb), pool(&hugetlb)), ((3, 3), (3, 0)));
    }
}

#[test]
fn a_surplus_page_that_moves_is_one_still() {
    let hugetlb = hugetlb(1, ProtocolKind::FileTables);
    let counted = || hugetlb.pool(PageSize::Size2M).statistics();
    hugetlb.pool(PageSize::Size2M).set_overcommit(1).unwrap();
    let file = file(&hugetlb, SLOT_SIZE);
    let (_, a) = map_at(&file, HERE, 2 * MIB2, SHARED);
    (0..2).for_each(|page| store(&a, HERE + page * MIB2, page));
    let before = counted();
    assert_eq!((before.total, before.free, before.surplus, before.persistent), (2, 0, 1, 1));
    // A reader has the page yet, which is whole.
    let Chunk::Data(read) = file.read(0, MIB2) else { panic!("a page is there") };
    for page in [0, 1, 0] {
        assert!(a.replace_page(HERE + page * MIB2, |_| ()).unwrap());
        assert_eq!((counted(), load(&a, HERE + page * MIB2)), (before, page));
    }
    assert!(!read.is_broken());
    drop(read);
    assert_eq!(counted(), before);
    drop((a, file));
    assert_eq!((counts(&hugetlb), pool(&hugetlb)), ((1, 1), (1, 0)));
}

#[test]
fn a_page_that_finds_no_other_frame_stays() {
    let hugetlb = hugetlb(2, ProtocolKind::FileTables);
    let file = file(&hugetlb, SLOT_SIZE);
    let (_, a) = map_at(&file, HERE, SLOT_SIZE, SHARED);
    (0..2).for_each(|page| store(&a, HERE + page * MIB2, page));
    hugetlb.machine().is_full.store(true, Ordering::SeqCst);
    assert_eq!(a.replace_page(HERE, |_| panic!("it stays")), Err(OutOfMemory));
    hugetlb.machine().is_full.store(false, Ordering::SeqCst);
    assert_eq!((load(&a, HERE), a.translate(HERE).is_some(), counts(&hugetlb)), (0, true, (2, 0)));
}

#[test]
fn a_mount_is_promised_less_by_a_page_that_broke() {
    let hugetlb = hugetlb(4, ProtocolKind::FileTables);
    let options = crate::superblock::MountOptions::parse("min_size=4M").unwrap();
    let mount = crate::superblock::Superblock::new(&hugetlb, options).unwrap();
    let file = mount.create_file().unwrap();
    file.truncate(MIB2).unwrap();
    let (_, a) = map_at(&file, HERE, MIB2, SHARED);
    store(&a, HERE, 1);
    assert!(a.break_page(HERE, |_| ()).unwrap());
    file.truncate(0).unwrap();
    assert_eq!((counts(&hugetlb), pool(&hugetlb)), ((3, 3), (3, 1)));
    drop((a, file, mount));
    assert_eq!(pool(&hugetlb), (3, 0));
}
