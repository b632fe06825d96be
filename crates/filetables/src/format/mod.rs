//! The format of page-table entries, for each architecture.
//!
//! Everything that knows a bit of an entry is in the files of this module. [`Native`] is the format of the machine that
//! the crate is built for; a simulator may choose another one.

mod riscv64;
mod x86_64;

pub use riscv64::Riscv64;
pub use x86_64::X86_64;

use crate::addr::{Level, PhysAddr};

bitflags::bitflags! {
    /// What a mapping permits.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct Protection: u8 {
        /// Loads.
        const READ = 1;
        /// Stores. They imply loads.
        const WRITE = 2;
        /// Instruction fetches. On x86-64 they imply loads.
        const EXECUTE = 4;
    }
}

/// The format of the machine that the crate is built for.
#[cfg(target_arch = "x86_64")]
pub type Native = X86_64;
/// The format of the machine that the crate is built for.
#[cfg(target_arch = "riscv64")]
pub type Native = Riscv64;
#[cfg(not(any(target_arch = "x86_64", target_arch = "riscv64")))]
compile_error!("no format of page-table entries is known for this architecture");

/// The value of a page-table entry; 0 is an empty one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EntryValue(pub u64);

impl core::fmt::Debug for EntryValue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "EntryValue({:#x})", self.0)
    }
}

/// A format of page-table entries.
///
/// An entry is empty (0), a *leaf* that leads to a page, or leads to a table. A table of this library is *managed*: a bit
/// that the hardware leaves to software says so in each entry that leads to it.
pub trait Format: 'static {
    /// Whether an entry that leads to a table takes rights away from all leaves below it. Where it does not, the rights of
    /// a mapping stand in the leaves, so mappings with other rights need other tables.
    const RIGHTS_COMBINE: bool;

    /// A leaf of `level`. `protection` is not empty: what permits nothing has no entry.
    fn leaf(level: Level, frame: PhysAddr, protection: Protection) -> EntryValue;

    /// An entry that leads to a managed table. It leaves of the rights below it those of `protection`, which is not empty,
    /// if rights combine.
    fn managed(table: PhysAddr, protection: Protection) -> EntryValue;

    /// Whether the hardware uses the entry.
    fn is_present(entry: EntryValue) -> bool;

    /// Whether an entry of `level` is a present leaf.
    fn is_leaf(level: Level, entry: EntryValue) -> bool;

    /// Whether an entry of `level` leads to a managed table.
    fn is_managed(level: Level, entry: EntryValue) -> bool;

    /// What a leaf permits.
    fn protection(entry: EntryValue) -> Protection;

    /// Whether an entry permits more than one that is made for `allowed` would: stores imply loads, and on some machines fetches do.
    fn exceeds(entry: EntryValue, allowed: Protection) -> bool {
        allowed.is_empty()
            || !Self::protection(Self::leaf(Level::Pmd, PhysAddr(0), allowed))
                .contains(Self::protection(entry))
    }

    /// The leaf with what an entry above it leaves of its rights.
    fn combine(above: EntryValue, leaf: EntryValue) -> EntryValue;

    /// The frame that a leaf of `level` leads to.
    fn leaf_frame(level: Level, entry: EntryValue) -> PhysAddr;

    /// The table that an entry leads to.
    fn table_frame(entry: EntryValue) -> PhysAddr;

    /// The rights that belong to the key of a table: those of its mappings, or all where rights combine.
    fn key_rights(protection: Protection) -> Protection {
        if Self::RIGHTS_COMBINE { Protection::all() } else { protection }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const LEAVES: [Level; 3] = [Level::Pte, Level::Pmd, Level::Pud];

    fn rights() -> impl Iterator<Item = Protection> {
        (1..8).map(Protection::from_bits_truncate).filter(|rights| rights.contains(Protection::READ))
    }

    /// One bit at each place of a frame's address that the level permits.
    fn frames(level: Level, bits: u32) -> Vec<PhysAddr> {
        (level.shift()..bits).map(|bit| PhysAddr(1 << bit)).collect()
    }

    fn leaves_keep_what_they_are_made_of<F: Format>(bits: u32) {
        for level in LEAVES {
            for frame in frames(level, bits) {
                for wanted in rights() {
                    let entry = F::leaf(level, frame, wanted);
                    assert!(F::is_present(entry) && F::is_leaf(level, entry), "{level:?} {entry:?}");
                    assert!(!F::is_managed(level, entry));
                    assert_eq!(F::leaf_frame(level, entry), frame);
                    assert_eq!(F::protection(entry), wanted);
                }
            }
        }
    }

    fn entries_that_lead_to_tables_are_no_leaves<F: Format>(bits: u32) {
        for level in [Level::Pmd, Level::Pud, Level::Pgd] {
            for table in frames(Level::Pte, bits) {
                for wanted in rights() {
                    let entry = F::managed(table, wanted);
                    assert!(F::is_present(entry) && F::is_managed(level, entry));
                    assert!(!F::is_leaf(level, entry));
                    assert_eq!(F::table_frame(entry), table);
                }
            }
        }
    }

    fn an_empty_entry_is_nothing<F: Format>() {
        let empty = EntryValue::default();
        for level in [Level::Pte, Level::Pmd, Level::Pud, Level::Pgd] {
            assert!(!F::is_present(empty) && !F::is_leaf(level, empty) && !F::is_managed(level, empty));
        }
    }

    /// What a walk from an entry with the rights `above` through a leaf with the rights `below` permits.
    fn combined<F: Format>(above: Protection, below: Protection) -> Protection {
        let leaf = F::leaf(Level::Pmd, PhysAddr(0x40_0000_0000), below);
        let combined = F::combine(F::managed(PhysAddr(0x1000), above), leaf);
        assert_eq!(F::leaf_frame(Level::Pmd, combined), PhysAddr(0x40_0000_0000));
        F::protection(combined)
    }

    #[test]
    fn x86_64_entries_say_what_they_were_made_of() {
        leaves_keep_what_they_are_made_of::<X86_64>(52);
        entries_that_lead_to_tables_are_no_leaves::<X86_64>(52);
        an_empty_entry_is_nothing::<X86_64>();
    }

    #[test]
    fn riscv64_entries_say_what_they_were_made_of() {
        leaves_keep_what_they_are_made_of::<Riscv64>(56);
        entries_that_lead_to_tables_are_no_leaves::<Riscv64>(56);
        an_empty_entry_is_nothing::<Riscv64>();
    }

    #[test]
    fn rights_combine_on_x86_64_and_stay_those_of_the_leaf_on_riscv64() {
        for above in rights() {
            for below in rights() {
                assert_eq!(combined::<X86_64>(above, below), above & below);
                assert_eq!(combined::<Riscv64>(above, below), below);
            }
        }
    }

    #[test]
    fn rights_are_part_of_the_key_where_they_do_not_combine() {
        for wanted in rights() {
            assert_eq!(X86_64::key_rights(wanted), Protection::all());
            assert_eq!(Riscv64::key_rights(wanted), wanted);
        }
    }
}
