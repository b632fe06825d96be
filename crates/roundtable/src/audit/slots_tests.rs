//! Tests of the verdicts, on groups made by hand and at random.

use std::cell::RefCell;

use proptest::prelude::*;

use super::*;
use crate::audit::collect::File;
use crate::audit::cost::cost;
use crate::audit::files::FileId;
use crate::audit::geometry::Tables;
use crate::audit::maps::Access;

const GIB: u64 = 1 << 30;
const HUGE: u64 = 2 << 20;
const PLACE: u64 = 0x7000_0000_0000;
const GEOMETRY: Geometry = Geometry::four_kib();

/// A shared mapping, readable and writable, by so many processes that have touched all of it.
fn shape(start: u64, length: u64, offset: u64, members: u64) -> Shape {
    let access = Access { read: true, write: true, execute: false, shared: true };
    let flags = Flags::parse(b"rd wr sh mr mw me ms de ht");
    let slots = ((start + length - 1) / GIB - start / GIB + 1) as usize;
    let mut shape = Shape {
        start,
        end: start + length,
        offset,
        access,
        flags: flags.compared(),
        all_flags: flags,
        members,
        probed: members,
        witness: Some(1),
        witnesses: vec![Some(1); slots],
        populated: vec![members as u32; slots],
        most_pages: 0,
        most_private: 0,
        has_flags: false,
        exclusive: Tables::default(),
        filled_itself: 0,
    };
    shape.exclusive.pmd = slots as u64 * members;
    shape
}

fn with_flags(mut shape: Shape, flags: &[u8]) -> Shape {
    shape.all_flags = Flags::parse(flags);
    shape.flags = shape.all_flags.compared();
    shape
}

fn group(shapes: Vec<Shape>) -> Group {
    let pids = (1..=shapes.iter().map(|shape| shape.members as i32).sum()).collect();
    let size = shapes.iter().map(|shape| shape.offset + shape.end - shape.start).max().unwrap();
    let id = FileId { device: (0, 15), inode: 1, namespace: 0 };
    let file = File { name: b"/memfd:test (deleted)".to_vec(), page_size: HUGE, is_hugetlb: true };
    Group { id, file, size, pids, shapes }
}

fn verdicts(group: &Group) -> Vec<(Verdict, u64)> {
    analyse(group, GEOMETRY, true, &NoWitness).verdicts.into_iter().collect()
}

#[test]
fn congruent_mappings_share() {
    let two = group(vec![shape(PLACE, GIB, 0, 3), shape(PLACE + 5 * GIB, GIB, 0, 2)]);
    assert_eq!(verdicts(&two), [(Verdict::Shared, 5)]);
    let analysis = analyse(&two, GEOMETRY, true, &NoWitness);
    assert_eq!((analysis.sharable_tables, analysis.sharable_uses), (1, 5));
}

#[test]
fn congruence_counts_the_offset_in_the_file() {
    // The second half of the file, at an address that is off by the same.
    let one = shape(PLACE, 2 * GIB, 0, 1);
    let half = shape(PLACE + 8 * GIB, GIB, GIB, 1);
    assert_eq!(verdicts(&group(vec![one, half])), [(Verdict::Shared, 2), (Verdict::Alone, 1)]);
    let one = shape(PLACE, 3 * GIB, 0, 1);
    let shifted = shape(PLACE + 8 * GIB + HUGE, 2 * GIB - HUGE, HUGE, 1);
    let seen = verdicts(&group(vec![one, shifted]));
    assert_eq!(
        seen,
        [(Verdict::Shared, 2), (Verdict::Alone, 1), (Verdict::NoPartner, 1), (Verdict::TooShort, 1)]
    );
}

#[test]
fn other_addresses_do_not() {
    let apart = group(vec![shape(PLACE, 2 * GIB, 0, 1), shape(PLACE + HUGE, 2 * GIB, 0, 1)]);
    assert_eq!(verdicts(&apart), [(Verdict::TooShort, 2), (Verdict::NotCongruent, 3)]);
}

#[test]
fn too_short_a_mapping_shares_nothing() {
    assert_eq!(verdicts(&group(vec![shape(PLACE, GIB - HUGE, 0, 4)])), [(Verdict::TooShort, 4)]);
    assert_eq!(verdicts(&group(vec![shape(PLACE, GIB - HUGE, 0, 1)])), [(Verdict::Alone, 1)]);
}

#[test]
fn protection_and_flags_are_told_apart() {
    let reader = with_flags(shape(PLACE, GIB, 0, 1), b"rd sh mr mw me ms de ht");
    let seen = analyse(&group(vec![shape(PLACE, GIB, 0, 1), reader]), GEOMETRY, true, &NoWitness);
    assert_eq!(seen.verdicts.into_iter().collect::<Vec<_>>(), [(Verdict::ProtectionDiffers, 2)]);
    let other = with_flags(shape(PLACE, GIB, 0, 1), b"rd wr sh mr mw me ms de ht nr");
    let seen = analyse(&group(vec![shape(PLACE, GIB, 0, 1), other]), GEOMETRY, true, &NoWitness);
    assert_eq!(seen.differing.into_iter().collect::<Vec<_>>(), ["nr"]);
    assert_eq!(seen.verdicts.into_iter().collect::<Vec<_>>(), [(Verdict::FlagsDiffer, 2)]);
    let locked = with_flags(shape(PLACE, GIB, 0, 1), b"rd wr sh mr mw me ms de ht lo");
    assert_eq!(verdicts(&group(vec![shape(PLACE, GIB, 0, 1), locked])), [(Verdict::Shared, 2)]);
}

#[test]
fn userfaultfd_and_private_mappings_keep_to_themselves() {
    for (flags, verdict) in
        [(&b"uw"[..], Verdict::UserfaultfdWriteProtect), (b"ui", Verdict::UserfaultfdMinor)]
    {
        let flags = [b"rd wr sh mr mw me ms de ht ", flags].concat();
        let watched = with_flags(shape(PLACE, GIB, 0, 2), &flags);
        assert_eq!(
            verdicts(&group(vec![shape(PLACE, GIB, 0, 2), watched])),
            [(Verdict::Shared, 2), (verdict, 2)]
        );
    }
    // Missing faults alone are no obstacle, only another set of flags.
    let missing = with_flags(shape(PLACE, GIB, 0, 2), b"rd wr sh mr mw me ms de ht um");
    assert_eq!(verdicts(&group(vec![missing])), [(Verdict::Shared, 2)]);
    let mut private = shape(PLACE, GIB, 0, 2);
    private.access.shared = false;
    assert_eq!(
        verdicts(&group(vec![shape(PLACE, GIB, 0, 1), private])),
        [(Verdict::NoPartner, 1), (Verdict::Private, 2)]
    );
}

#[test]
fn page_size_and_kernel_decide_first() {
    let mut gigantic = group(vec![shape(PLACE, GIB, 0, 2)]);
    gigantic.file.page_size = GIB;
    assert_eq!(verdicts(&gigantic), [(Verdict::GiganticPage, 2)]);
    gigantic.file.page_size = 64 << 10;
    assert_eq!(verdicts(&gigantic), [(Verdict::OtherPageSize, 2)]);
    let plain = group(vec![shape(PLACE, GIB, 0, 2)]);
    let seen = analyse(&plain, GEOMETRY, false, &NoWitness).verdicts;
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(Verdict::KernelCannot, 2)]);
}

#[test]
fn slots_that_nobody_has_touched_have_no_table() {
    let mut some = shape(PLACE, 2 * GIB, 0, 4);
    some.populated = vec![1, 0];
    assert_eq!(verdicts(&group(vec![some])), [(Verdict::Untouched, 7), (Verdict::FirstOfSeveral, 1)]);
}

/// Says of every page that it is in so many tables.
struct Says(u64, RefCell<u32>);

impl Witness for Says {
    fn mapcount(&self, _: i32, _: FileId, start: u64, _: u64) -> Option<(u64, u64)> {
        *self.1.borrow_mut() += 1;
        Some((start, self.0))
    }
}

#[test]
fn the_kernels_count_finds_tables_from_before() {
    let four = group(vec![shape(PLACE, GIB, 0, 4)]);
    for (count, expected) in [
        (1, vec![(Verdict::Shared, 4)]),
        (2, vec![(Verdict::Shared, 3), (Verdict::OwnTable, 1)]),
        (4, vec![(Verdict::OwnTable, 4)]),
        (9, vec![(Verdict::OwnTable, 4)]),
    ] {
        let analysis = analyse(&four, GEOMETRY, true, &Says(count, RefCell::default()));
        assert_eq!(analysis.verdicts.into_iter().collect::<Vec<_>>(), expected, "{count}");
        assert_eq!(analysis.evidence, Evidence::Kpagecount);
        assert_eq!(analysis.sharable_tables, count.min(4));
    }
}

#[test]
fn tables_of_those_who_cannot_share_are_no_surplus() {
    // Three share; two others, at another phase, have each a table of their own with the same page.
    let group = group(vec![shape(PLACE, GIB, 0, 3), shape(PLACE + HUGE, GIB, 0, 2)]);
    let analysis = analyse(&group, GEOMETRY, true, &Says(3, RefCell::default()));
    assert_eq!(analysis.verdicts[&Verdict::Shared], 3);
    assert_eq!(analysis.verdicts.get(&Verdict::OwnTable), None);
}

#[test]
fn without_root_the_processes_counters_tell() {
    let mut two = shape(PLACE, GIB, 0, 4);
    two.filled_itself = 1;
    assert_eq!(verdicts(&group(vec![two.clone()])), [(Verdict::Shared, 4)]);
    two.filled_itself = 3;
    assert_eq!(verdicts(&group(vec![two])), [(Verdict::Shared, 2), (Verdict::OwnTable, 2)]);
}

#[test]
fn no_more_slots_are_checked_than_promised() {
    let large = group(vec![shape(PLACE, 3 * CHECKED as u64 * GIB, 0, 2)]);
    let witness = Says(2, RefCell::default());
    let analysis = analyse(&large, GEOMETRY, true, &witness);
    assert!(*witness.1.borrow() as usize <= CHECKED);
    assert_eq!(
        analysis.verdicts[&Verdict::OwnTable],
        2 * 3 * CHECKED as u64,
        "the unchecked are as the checked"
    );
}

#[test]
fn the_design_documents_figures_come_out() {
    // 1 TiB by 10,000 processes: 39 GiB of tables when none is shared, 4 MiB when all are.
    let all = group(vec![shape(PLACE, 1 << 40, 0, 10_000)]);
    let analysis = analyse(&all, GEOMETRY, true, &NoWitness);
    let sum = cost(&all, &analysis, GEOMETRY, true);
    assert_eq!(sum.unshared.pmd * 4096, 41_943_040_000);
    assert_eq!(sum.now.pmd * 4096, 4 << 20);
    let none = cost(&all, &analyse(&all, GEOMETRY, false, &NoWitness), GEOMETRY, false);
    assert_eq!((none.now.pmd, none.best_here.pmd), (10_240_000, 10_240_000));
    assert_eq!(none.best_owned.pmd, 1024);
}

#[test]
fn a_file_that_owns_its_tables_shares_them_with_all() {
    let reader = with_flags(shape(PLACE, GIB, 0, 2), b"rd sh mr mw me ms de ht");
    let elsewhere = shape(PLACE + HUGE, GIB, 0, 1);
    let watched = with_flags(shape(PLACE, GIB, 0, 1), b"rd wr sh mr mw me ms de ht uw");
    let all = group(vec![shape(PLACE, GIB, 0, 3), reader, elsewhere, watched]);
    let analysis = analyse_owned(&all, GEOMETRY);
    assert_eq!(
        analysis.verdicts.iter().map(|(verdict, count)| (*verdict, *count)).collect::<Vec<_>>(),
        // The one elsewhere lies in two slots.
        [(Verdict::UserfaultfdWriteProtect, 1), (Verdict::FileOwned, 7)]
    );
    assert_eq!((analysis.sharable_tables, analysis.sharable_uses), (3, 7));
    let sum = cost(&all, &analysis, GEOMETRY, true);
    assert_eq!((sum.unshared.pmd, sum.now.pmd), (8, 4));
    assert!(sum.best_here.pmd <= sum.now.pmd && sum.best_owned.pmd <= sum.best_here.pmd);
}

#[test]
fn tables_of_base_pages_would_belong_to_the_file() {
    // A hundred processes have 1.5 GiB and 3 MiB from an offset of 1 MiB on, ten more the first GiB.
    let of = |offset, length, members, pte| {
        let mut shape = shape(PLACE + offset, length, offset, members);
        shape.exclusive.pte = pte * members;
        shape
    };
    let mut all = group(vec![of(1 << 20, GIB + GIB / 2 + (3 << 20), 100, 770), of(0, GIB, 10, 512)]);
    (all.file.is_hugetlb, all.file.page_size) = (false, 4096);
    let nothing = Analysis { sharable_tables: 0, ..analyse(&all, GEOMETRY, true, &NoWitness) };
    let sum = cost(&all, &nothing, GEOMETRY, true);
    assert_eq!(sum.now.pte, 77_000 + 5_120);
    // 1 MiB at its start is an end of its own in each; it ends at a whole window.
    assert_eq!(sum.owned_as_is.pte, 512 + 256 + 2 + 100);
    // The first slot is whole for the ten only: the hundred have a table of their own for it, and for the second.
    assert_eq!(sum.owned_as_is.pmd, 1 + 2 * 100);
    assert!(sum.best_owned.pte == 0 && sum.best_owned.pmd <= sum.owned_as_is.pmd);
}

/// A naive oracle: two slots share when Linux's conditions hold for them as a pair.
fn pairwise(group: &Group) -> u64 {
    let mut slots = Vec::new();
    for shape in &group.shapes {
        for index in (0..shape.populated.len()).filter(|&index| shape.fills(index, GEOMETRY)) {
            let able = shape.access.shared && !shape.all_flags.has(b"uw") && !shape.all_flags.has(b"ui");
            let start = shape.slot_start(index, GEOMETRY);
            slots.extend(
                (0..shape.members).map(|_| (able, shape.offset + (start - shape.start), &shape.flags)),
            );
        }
    }
    let shares = |a: usize| (0..slots.len()).any(|b| a != b && slots[a].0 && slots[a] == slots[b]);
    (0..slots.len()).filter(|&slot| shares(slot)).count() as u64
}

proptest! {
    #[test]
    fn verdicts_agree_with_the_rule_taken_pair_by_pair(
        shapes in prop::collection::vec(
            // Address in halves of a slot, length in halves, offset in halves, members, flags.
            (0u64..8, 1u64..7, 0u64..5, 1u64..4, 0usize..5), 1..6)
    ) {
        let half = GIB / 2;
        let kinds: [&[u8]; 4] = [b"rd wr ms ht", b"rd ms ht", b"rd wr ms ht uw", b"rd wr ms ht lo"];
        let shapes = shapes.into_iter().map(|(place, length, offset, members, kind)| {
            let mut shape = shape(PLACE + place * half, length * half, offset * half, members);
            if kind < 4 { shape = with_flags(shape, kinds[kind]); } else { shape.access.shared = false; }
            shape
        });
        let group = group(shapes.collect());
        let analysis = analyse(&group, GEOMETRY, true, &NoWitness);
        prop_assert_eq!(analysis.verdicts.get(&Verdict::Shared).copied().unwrap_or(0), pairwise(&group));
        let slots: u64 = group.shapes.iter().map(|shape| shape.populated.len() as u64 * shape.members).sum();
        prop_assert_eq!(analysis.verdicts.values().sum::<u64>(), slots, "every slot has one verdict");
        let sum = cost(&group, &analysis, GEOMETRY, true);
        prop_assert!(sum.best_owned.pmd <= sum.best_here.pmd);
        prop_assert!(sum.best_here.pmd <= sum.now.pmd);
        prop_assert!(sum.now.pmd <= sum.unshared.pmd);
    }
}
