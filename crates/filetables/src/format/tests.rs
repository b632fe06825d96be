//! Each format, with all rights, at all levels, for each bit of an address.

use std::vec::Vec;

use super::*;

const LEVELS: [Level; 4] = [Level::Pte, Level::Pmd, Level::Pud, Level::Pgd];

fn rights() -> impl Iterator<Item = Protection> + Clone {
    (1..8).map(Protection::from_bits_truncate)
}

/// The rights with those that they imply.
fn implied(wanted: Protection) -> Protection {
    wanted | Protection::READ
}

/// One bit at each place of a frame's address that the level permits, none, and all.
fn frames(level: Level, bits: u32) -> Vec<PhysAddr> {
    let single = (level.shift()..bits).map(|bit| PhysAddr(1 << bit));
    single.chain([PhysAddr(0), PhysAddr(((1 << bits) - 1) & !(level.span() - 1))]).collect()
}

fn leaves_say_what_they_are_made_of<F: Format>(bits: u32) {
    for level in [Level::Pte, Level::Pmd, Level::Pud] {
        for frame in frames(level, bits) {
            for wanted in rights() {
                let entry = F::leaf(level, frame, wanted);
                assert!(F::is_present(entry) && F::is_leaf(level, entry), "{level:?} {entry:?}");
                assert!(!F::is_managed(level, entry), "{level:?} {entry:?}");
                assert_eq!(F::leaf_frame(level, entry), frame);
                assert_eq!(F::protection(entry), implied(wanted));
                for allowed in rights() {
                    let exceeds = !implied(allowed).contains(implied(wanted));
                    assert_eq!(F::exceeds(entry, allowed), exceeds, "{wanted:?} of {allowed:?}");
                }
                assert!(F::exceeds(entry, Protection::empty()));
            }
        }
    }
}

fn entries_that_lead_to_tables_say_whose_and_are_no_leaves<F: Format>(bits: u32) {
    for level in [Level::Pmd, Level::Pud, Level::Pgd] {
        for table in frames(Level::Pte, bits) {
            for wanted in rights() {
                let entry = F::managed(table, wanted);
                assert!(F::is_present(entry) && F::is_managed(level, entry), "{level:?} {entry:?}");
                assert!(!F::is_leaf(level, entry));
                assert_eq!(F::table_frame(entry), table);
                let left = if F::RIGHTS_COMBINE { implied(wanted) } else { Protection::all() };
                assert_eq!(F::table_rights(entry), left);
                for allowed in rights() {
                    let exceeds = F::RIGHTS_COMBINE && !implied(allowed).contains(implied(wanted));
                    assert_eq!(F::table_exceeds(entry, allowed), exceeds, "{wanted:?} of {allowed:?}");
                }
                assert!(F::table_exceeds(entry, Protection::empty()));
            }
            let host = F::table(table);
            assert!(F::is_present(host) && !F::is_managed(level, host) && !F::is_leaf(level, host));
            assert_eq!((F::table_frame(host), F::table_rights(host)), (table, Protection::all()));
        }
    }
}

fn what_is_not_present_is_nothing<F: Format>() {
    let broken = F::BROKEN.filter(|broken| {
        assert_ne!(*broken, EntryValue::default(), "it would be taken for an empty entry");
        true
    });
    for entry in broken.into_iter().chain([EntryValue::default()]) {
        for level in LEVELS {
            assert!(!F::is_present(entry) && !F::is_leaf(level, entry) && !F::is_managed(level, entry));
        }
    }
}

fn is_sound<F: Format>(bits: u32) {
    leaves_say_what_they_are_made_of::<F>(bits);
    entries_that_lead_to_tables_say_whose_and_are_no_leaves::<F>(bits);
    what_is_not_present_is_nothing::<F>();
}

#[test]
fn x86_64_entries_say_what_they_were_made_of() {
    is_sound::<X86_64>(52);
}

#[test]
fn riscv64_entries_say_what_they_were_made_of() {
    is_sound::<Riscv64>(56);
}

#[test]
fn aarch64_entries_say_what_they_were_made_of() {
    is_sound::<Aarch64<0>>(48);
    is_sound::<Aarch64<7>>(48);
}

/// The values, bit by bit, as the manuals draw them: the other tests would also pass with two bits exchanged.
#[test]
fn entries_are_those_of_the_manuals() {
    let (frame, table) = (PhysAddr(0x4000_0000), PhysAddr(0x1234_5000));
    let read = Protection::READ;
    let all = Protection::all();
    // P, U, A, D, PS; XD. P, R/W, U, A and bit 9 of the ignored ones.
    assert_eq!(X86_64::leaf(Level::Pmd, frame, read).0, 0x8000_0000_4000_00e5);
    assert_eq!(X86_64::leaf(Level::Pte, frame, all).0, 0x0000_0000_4000_0067);
    assert_eq!(X86_64::managed(table, all).0, 0x0000_0000_1234_5227);
    assert_eq!(X86_64::table(table).0, 0x0000_0000_1234_5027);
    // V, R, U, A, D; and W, X. The page number is two bits further down. V and the first bit of RSW.
    assert_eq!(Riscv64::leaf(Level::Pmd, frame, read).0, (0x4000_0000 >> 2) | 0xd3);
    assert_eq!(Riscv64::leaf(Level::Pud, frame, all).0, (0x4000_0000 >> 2) | 0xdf);
    assert_eq!(Riscv64::managed(table, read).0, (0x1234_5000 >> 2) | 0x101);
    assert_eq!(Riscv64::table(table).0, (0x1234_5000 >> 2) | 0x001);
    // UXN, PXN, nG, AF, SH 3, AP 3 or 1, a block or a page. APTable[1], UXNTable, PXNTable, bit 55.
    assert_eq!(Aarch64::<0>::leaf(Level::Pmd, frame, read).0, 0x0060_0000_4000_0fc1);
    assert_eq!(Aarch64::<0>::leaf(Level::Pte, frame, all).0, 0x0020_0000_4000_0f43);
    assert_eq!(Aarch64::<1>::leaf(Level::Pte, frame, all).0, 0x0020_0000_4000_0f47);
    assert_eq!(Aarch64::<0>::managed(table, read).0, 0x5880_0000_1234_5003);
    assert_eq!(Aarch64::<0>::table(table).0, 0x0000_0000_1234_5003);
}

#[test]
fn rights_are_part_of_the_key_where_they_do_not_combine() {
    for wanted in rights() {
        assert_eq!(X86_64::key_rights(wanted), Protection::all());
        assert_eq!(Aarch64::<0>::key_rights(wanted), Protection::all());
        assert_eq!(Riscv64::key_rights(wanted), wanted);
    }
}

#[test]
fn arm_alone_demands_break_before_make() {
    assert_eq!((X86_64::BROKEN, Riscv64::BROKEN), (None, None));
    assert!(Aarch64::<0>::BROKEN.is_some());
}
