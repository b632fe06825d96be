//! What `file-tables` promises beyond the other protocols.

use super::*;
use crate::stats::SharingStatistics;

const THERE: VirtAddr = VirtAddr((9 << 30) + 7 * MIB2);

/// A file of one slot with pages at the first indices.
fn filled(pages: u64) -> (System, Arc<File<TestMachine>>) {
    let hugetlb = hugetlb(16, ProtocolKind::FileTables);
    let file = file(&hugetlb, SLOT_SIZE);
    file.fallocate(FallocateMode::AllocateKeepSize, 0, pages * MIB2, || false).unwrap();
    (hugetlb, file)
}

fn sharing(hugetlb: &System) -> SharingStatistics {
    hugetlb.sharing()
}

#[test]
fn what_is_in_the_file_faults_in_no_mapping() {
    let (hugetlb, file) = filled(3);
    let (space, a) = map_at(&file, HERE, SLOT_SIZE, SHARED);
    let (_, b) = map_at(&file, HERE, SLOT_SIZE, SHARED);
    assert!(X86_64::is_managed(Level::Pud, space.pud(HERE)));
    for mapping in [&a, &b] {
        assert!((0..3).all(|page| mapping.is_resident(HERE + page * MIB2)));
        assert!(!mapping.is_resident(HERE + 3 * MIB2));
    }
    // What one of them adds is there for the other.
    store(&a, HERE + 3 * MIB2, 5);
    assert!(b.is_resident(HERE + 3 * MIB2));
    let child = b.fork(hugetlb.machine().space()).unwrap();
    assert!(child.is_resident(HERE + 3 * MIB2));
    let now = sharing(&hugetlb);
    assert_eq!((now.tables, now.attachments, now.faults), (1, 3, 1));
    drop((a, b, child, file));
    assert_eq!(pool(&hugetlb), (16, 0));
    assert_eq!(sharing(&hugetlb).tables, 0);
}

#[test]
fn a_mapping_smaller_than_a_slot_shares_at_the_same_phase() {
    let (hugetlb, file) = filled(4);
    let map = |at: VirtAddr| {
        let space = hugetlb.machine().space();
        let mapping = super::map(&file, &space, (at, 2 * MIB2, MIB2), SHARED).unwrap();
        (space, mapping)
    };
    let (space_a, _a) = map(HERE + MIB2);
    let (space_b, b) = map(VirtAddr(11 << 30) + MIB2);
    assert_eq!(space_a.pud(HERE), space_b.pud(VirtAddr(11 << 30)));
    // Another phase has a table of its own, which says the same.
    let (space_c, c) = map(THERE);
    assert_ne!(space_c.pud(THERE), space_a.pud(HERE));
    assert!(c.is_resident(THERE) && c.is_resident(THERE + MIB2));
    // Nothing of the file outside the window can be reached.
    let table = hugetlb.machine().table_of(space_a.pud(HERE));
    let present = table.iter().filter(|entry| entry.load(crate::sync::Ordering::SeqCst) != EMPTY).count();
    assert_eq!(present, 2);
    assert_eq!((sharing(&hugetlb).tables, sharing(&hugetlb).attachments), (2, 3));
    drop(b);
    assert_eq!((sharing(&hugetlb).tables, sharing(&hugetlb).attachments), (2, 2));
}

#[test]
fn an_incongruent_mapping_of_a_slot_lies_in_two_tables() {
    let (hugetlb, file) = filled(1);
    file.fallocate(FallocateMode::AllocateKeepSize, SLOT_SIZE - MIB2, MIB2, || false).unwrap();
    let (space_a, a) = map_at(&file, THERE, SLOT_SIZE, SHARED);
    let (space_b, _b) = map_at(&file, THERE, SLOT_SIZE, SHARED);
    let next = THERE + SLOT_SIZE;
    assert_eq!(space_a.pud(THERE), space_b.pud(THERE));
    assert_eq!(space_a.pud(next), space_b.pud(next));
    assert!(a.is_resident(THERE) && a.is_resident(THERE + (SLOT_SIZE - MIB2)));
    assert_eq!((sharing(&hugetlb).tables, sharing(&hugetlb).attachments), (2, 4));
}

#[test]
fn rights_stand_in_the_entry_of_the_process() {
    let (hugetlb, file) = filled(1);
    let (space_a, mut a) = map_at(&file, HERE, SLOT_SIZE, SHARED);
    let reading = MapOptions { protection: Protection::READ, ..SHARED };
    let (space_b, b) = map_at(&file, HERE, SLOT_SIZE, reading);
    let table = |space: &TestSpace| X86_64::table_frame(space.pud(HERE));
    assert_eq!(table(&space_a), table(&space_b));
    let writable = |mapping: &Mapping<TestMachine>| mapping.translate(HERE).map(|(_, writable)| writable);
    assert_eq!((writable(&a), writable(&b)), (Some(true), Some(false)));
    assert_eq!(b.fault(HERE, Access::Write), Err(FaultError::Access));
    // Losing a right is flushed, winning one is not.
    let flushes = || hugetlb.machine().flushes.load(crate::sync::Ordering::SeqCst);
    let before = flushes();
    a.protect(Protection::READ);
    assert_eq!((writable(&a), flushes()), (Some(false), before + 1));
    a.protect(RW);
    assert_eq!((writable(&a), flushes()), (Some(true), before + 1));
    a.protect(Protection::empty());
    assert_eq!((space_a.pud(HERE), sharing(&hugetlb).attachments), (EMPTY, 1));
    assert_eq!(a.fault(HERE, Access::Read), Err(FaultError::Access));
    a.protect(RW);
    assert_eq!(table(&space_a), table(&space_b));
    assert_eq!(sharing(&hugetlb).faults_allocated, 0);
}

#[test]
fn a_punch_flushes_once_however_many_share() {
    for sharers in [1, 20] {
        let (hugetlb, file) = filled(8);
        let mappings: std::vec::Vec<_> =
            (0..sharers).map(|_| map_at(&file, HERE, SLOT_SIZE, SHARED).1).collect();
        let before = hugetlb.machine().flushes.load(crate::sync::Ordering::SeqCst);
        file.fallocate(FallocateMode::PunchHole, 0, 6 * MIB2, || false).unwrap();
        assert_eq!(hugetlb.machine().flushes.load(crate::sync::Ordering::SeqCst), before + 1);
        for mapping in &mappings {
            assert!(!mapping.is_resident(HERE + 5 * MIB2) && mapping.is_resident(HERE + 6 * MIB2));
        }
        assert_eq!(pool(&hugetlb).0, 14);
    }
}

#[test]
fn pages_behind_the_end_are_shown_and_holes_there_are_none() {
    let hugetlb = hugetlb(4, ProtocolKind::FileTables);
    let file = file(&hugetlb, MIB2);
    let (_, mapping) = map_at(&file, HERE, 4 * MIB2, MapOptions { protection: Protection::READ, ..SHARED });
    file.fallocate(FallocateMode::AllocateKeepSize, 0, 2 * MIB2, || false).unwrap();
    // Who mapped the empty window faults once in it.
    assert!(!mapping.is_resident(HERE));
    assert_eq!(load(&mapping, HERE), 0);
    assert!(mapping.is_resident(HERE + MIB2));
    assert_eq!(mapping.fault(HERE + 2 * MIB2, Access::Read), Err(FaultError::Sigbus));
    // Also by a table that is made now.
    let (_, late) = map_at(&file, THERE, 4 * MIB2, MapOptions { protection: Protection::READ, ..SHARED });
    assert!(late.is_resident(THERE) && late.is_resident(THERE + MIB2));
    file.truncate(2 * MIB2).unwrap();
    assert!(mapping.is_resident(HERE + MIB2) && late.is_resident(THERE + MIB2));
    file.truncate(MIB2).unwrap();
    assert!(!mapping.is_resident(HERE + MIB2) && !late.is_resident(THERE + MIB2));
    assert_eq!(pool(&hugetlb).0, 3);
}

#[test]
fn who_needs_a_table_in_the_slot_takes_the_shared_one_away() {
    let (hugetlb, file) = filled(2);
    let (space, mapping) = map_at(&file, HERE, 2 * MIB2, SHARED);
    assert!(X86_64::is_managed(Level::Pud, space.pud(HERE)));
    // Anywhere in the slot, but not in another one.
    for elsewhere in [HERE + SLOT_SIZE, VirtAddr(0), VirtAddr(u64::MAX)] {
        assert_eq!(mapping.leave_slot(elsewhere), Ok(false));
    }
    let before = hugetlb.machine().flushes.load(crate::sync::Ordering::SeqCst);
    assert_eq!(mapping.leave_slot(HERE + 400 * MIB2), Ok(true));
    assert_eq!(hugetlb.machine().flushes.load(crate::sync::Ordering::SeqCst), before + 1);
    assert!(X86_64::is_present(space.pud(HERE)) && !X86_64::is_managed(Level::Pud, space.pud(HERE)));
    assert_eq!((mapping.is_resident(HERE), sharing(&hugetlb).tables), (false, 0));
    assert_eq!(load(&mapping, HERE), 0);
    // A punch finds the entry in the table of the host.
    file.fallocate(FallocateMode::PunchHole, 0, MIB2, || false).unwrap();
    assert!(!mapping.is_resident(HERE));
    assert_eq!(load(&mapping, HERE + MIB2), 0);
    assert_eq!(mapping.leave_slot(HERE), Ok(false));
    assert_eq!(sharing(&hugetlb).fallbacks(crate::Fallback::Neighbour), 1);
}

#[test]
fn without_a_table_for_the_host_the_slot_stays_shared() {
    let (hugetlb, file) = filled(1);
    let (space, mapping) = map_at(&file, HERE, MIB2, SHARED);
    let hoard: std::vec::Vec<_> =
        core::iter::from_fn(|| filetables::Machine::allocate_table(hugetlb.machine())).collect();
    assert_eq!(mapping.leave_slot(HERE), Err(crate::OutOfMemory));
    assert!(X86_64::is_managed(Level::Pud, space.pud(HERE)) && mapping.is_resident(HERE));
    for table in hoard {
        filetables::Machine::retire_table(hugetlb.machine(), table);
    }
    assert_eq!(mapping.leave_slot(HERE), Ok(true));
}

#[test]
fn of_two_mappings_in_a_slot_the_first_is_attached_until_the_second_faults() {
    for options in [SHARED, PRIVATE] {
        let (hugetlb, file) = filled(4);
        let (space, first) = map_at(&file, HERE, 2 * MIB2, SHARED);
        let there = HERE + 9 * MIB2;
        let second = map(&file, &space, (there, 2 * MIB2, 2 * MIB2), options).unwrap();
        let pud = space.pud(HERE);
        assert!(X86_64::is_managed(Level::Pud, pud) && first.is_resident(HERE) && !second.is_resident(there));
        assert_eq!((first.resident().shared, second.resident()), (2 * MIB2, Default::default()));
        assert_eq!(second.leave_slot(HERE), Ok(false));
        // What takes entries away from the second leaves the first's table.
        second.discard(there..there + 2 * MIB2).unwrap();
        assert_eq!(space.pud(HERE), pud);
        assert_eq!(second.fault(there, Access::Read), Err(FaultError::SlotShared));
        assert_eq!(first.leave_slot(there), Ok(true));
        assert_eq!((load(&second, there), load(&first, HERE)), (0, 0));
        assert!(!X86_64::is_managed(Level::Pud, space.pud(HERE)) && second.is_resident(there));
        drop(second);
        assert!(first.is_resident(HERE) && space.pud(HERE) != EMPTY);
        assert_eq!(sharing(&hugetlb).attachments, 0);
    }
}

#[test]
fn the_second_mapping_of_a_slot_goes_without_the_firsts_table() {
    let (hugetlb, file) = filled(4);
    let (space, first) = map_at(&file, HERE, 2 * MIB2, SHARED);
    let there = HERE + 9 * MIB2;
    let mut second = map(&file, &space, (there, 2 * MIB2, 0), SHARED).unwrap();
    let pud = space.pud(HERE);
    second.protect(Protection::READ);
    second.protect(Protection::empty());
    second.protect(RW);
    second.move_to(there + MIB2).unwrap();
    drop(second.split(there + 2 * MIB2).unwrap());
    drop(second);
    assert_eq!((space.pud(HERE), sharing(&hugetlb).attachments), (pud, 1));
    assert!(first.is_resident(HERE + MIB2));
    drop(first);
    assert_eq!((space.pud(HERE), sharing(&hugetlb).tables), (EMPTY, 0));
}

#[test]
fn a_split_leaves_one_window_for_another() {
    let (_, file) = filled(8);
    let (space, mut lower) = map_at(&file, HERE, SLOT_SIZE, SHARED);
    let (other, _whole) = map_at(&file, HERE, SLOT_SIZE, SHARED);
    let upper = lower.split(HERE + 4 * MIB2).unwrap();
    assert_eq!(space.pud(HERE), EMPTY);
    assert_eq!(load(&lower, HERE), 0);
    assert!(X86_64::is_managed(Level::Pud, space.pud(HERE)) && !upper.is_resident(HERE + 5 * MIB2));
    drop((lower, upper));
    // A partial unmap: split, drop a half, and the other shares with all who have the same left.
    let (space, mut lower) = map_at(&file, HERE, SLOT_SIZE, SHARED);
    drop(lower.split(HERE + 4 * MIB2).unwrap());
    for elsewhere in [VirtAddr(0), HERE + SLOT_SIZE, VirtAddr(u64::MAX)] {
        lower.settle(elsewhere);
    }
    assert_eq!(space.pud(HERE), EMPTY);
    lower.settle(HERE + 4 * MIB2);
    assert!(X86_64::is_managed(Level::Pud, space.pud(HERE)));
    assert_ne!(X86_64::table_frame(space.pud(HERE)), X86_64::table_frame(other.pud(HERE)));
    assert!(lower.is_resident(HERE + 3 * MIB2));
    assert_eq!(lower.resident().shared, 4 * MIB2);
}

#[test]
fn a_discard_of_what_belongs_to_the_file_does_nothing() {
    let (hugetlb, file) = filled(2);
    let (_, mapping) = map_at(&file, HERE, SLOT_SIZE, SHARED);
    mapping.discard(HERE..HERE + 2 * MIB2).unwrap();
    assert!(mapping.is_resident(HERE));
    assert_eq!(hugetlb.machine().flushes.load(crate::sync::Ordering::SeqCst), 0);
}

#[test]
fn a_sparse_mapping_has_tables_where_it_has_pages() {
    let hugetlb = hugetlb(4, ProtocolKind::FileTables);
    let tables = hugetlb.machine().free_tables() as u64;
    let file = file(&hugetlb, (tables + 40) * SLOT_SIZE);
    let map = || map_at(&file, HERE, (tables + 40) * SLOT_SIZE, SHARED).1;
    let early = map();
    assert_eq!((sharing(&hugetlb).tables, hugetlb.machine().free_tables() as u64), (0, tables));
    let pages = [HERE, HERE + MIB2, HERE + (tables + 1) * SLOT_SIZE];
    assert!(pages.iter().all(|address| load(&early, *address) == 0));
    let now = sharing(&hugetlb);
    assert_eq!((now.tables, now.attachments, now.faults_allocated), (2, 2, 3));
    // Who maps afterwards finds them all.
    let late = map();
    assert!(pages.iter().all(|address| late.is_resident(*address)));
    assert_eq!((sharing(&hugetlb).tables, sharing(&hugetlb).attachments), (2, 4));
    drop((early, late));
    assert_eq!(hugetlb.machine().free_tables() as u64, tables);
}
