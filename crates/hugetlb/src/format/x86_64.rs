//! Page-table entries of x86-64: leaves in PMD and PUD tables, software bits.

use crate::addr::{PageSize, PhysAddr};

bitflags::bitflags! {
    /// What a mapping permits.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct Protection: u8 {
        /// Loads.
        const READ = 1;
        /// Stores (on x86 they imply loads).
        const WRITE = 2;
        /// Instruction fetches (on x86 they imply loads).
        const EXECUTE = 4;
    }
}

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const HUGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// The software bit of a PUD entry that leads to a table of the library, see [the ownership rule](crate::machine).
pub const MANAGED: u64 = 1 << 9;

/// A leaf for a huge page. `protection` is not empty: what permits nothing has no entry.
///
/// Accessed and dirty are set: huge pages are neither reclaimed nor written back, so nothing asks, and the CPU is spared
/// two locked cycles.
pub fn leaf(frame: PhysAddr, protection: Protection) -> u64 {
    let mut entry = frame.0 | PRESENT | USER | ACCESSED | DIRTY | HUGE;
    if protection.contains(Protection::WRITE) {
        entry |= WRITABLE;
    }
    if !protection.contains(Protection::EXECUTE) {
        entry |= NO_EXECUTE;
    }
    entry
}

/// A PUD entry that leads to a managed PMD table and leaves of its leaves' permissions those of `protection`, which is not
/// empty: on this architecture permissions combine over the levels.
pub fn managed(table: PhysAddr, protection: Protection) -> u64 {
    let mut entry = table.0 | PRESENT | USER | ACCESSED | MANAGED;
    if protection.contains(Protection::WRITE) {
        entry |= WRITABLE;
    }
    if !protection.contains(Protection::EXECUTE) {
        entry |= NO_EXECUTE;
    }
    entry
}

/// The leaf with what the entry above it leaves of its permissions.
pub fn combine(above: u64, leaf: u64) -> u64 {
    (leaf & (above | !WRITABLE)) | (above & NO_EXECUTE)
}

/// Whether the hardware uses the entry.
pub fn is_present(entry: u64) -> bool {
    entry & PRESENT != 0
}

/// Whether the entry is a present leaf.
pub fn is_leaf(entry: u64) -> bool {
    entry & (PRESENT | HUGE) == PRESENT | HUGE
}

/// Whether a PUD entry leads to a table of the library.
pub fn is_managed(entry: u64) -> bool {
    entry & (PRESENT | HUGE | MANAGED) == PRESENT | MANAGED
}

/// Whether a leaf permits stores.
pub fn is_writable(entry: u64) -> bool {
    entry & WRITABLE != 0
}

/// What a leaf permits.
pub fn protection(entry: u64) -> Protection {
    let mut protection = Protection::READ;
    protection.set(Protection::WRITE, entry & WRITABLE != 0);
    protection.set(Protection::EXECUTE, entry & NO_EXECUTE == 0);
    protection
}

/// The frame of a leaf of that size.
pub fn leaf_frame(entry: u64, size: PageSize) -> PhysAddr {
    PhysAddr(entry & FRAME & !(size.bytes() - 1))
}

/// The table that a PUD entry leads to.
pub fn table_frame(entry: u64) -> PhysAddr {
    PhysAddr(entry & FRAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_gives_back_what_it_was_made_of() {
        for size in PageSize::ALL {
            for bits in 1..8 {
                let wanted = Protection::from_bits_truncate(bits) | Protection::READ;
                let entry = leaf(PhysAddr(0x40_0000_0000), wanted);
                assert!(is_leaf(entry) && !is_managed(entry));
                assert_eq!(leaf_frame(entry, size), PhysAddr(0x40_0000_0000));
                assert_eq!(protection(entry), wanted);
            }
        }
    }

    #[test]
    fn a_managed_entry_is_no_leaf() {
        for bits in 1..8 {
            let entry = managed(PhysAddr(0x1234_5000), Protection::from_bits_truncate(bits));
            assert!(is_managed(entry) && is_present(entry) && !is_leaf(entry));
            assert_eq!(table_frame(entry), PhysAddr(0x1234_5000));
        }
    }

    #[test]
    fn permissions_combine_to_what_both_levels_permit() {
        for (above, below) in (1..8).flat_map(|above| (1..8).map(move |below| (above, below))) {
            let above = Protection::from_bits_truncate(above) | Protection::READ;
            let below = Protection::from_bits_truncate(below) | Protection::READ;
            let leaf = leaf(PhysAddr(0x40_0000_0000), below);
            let combined = combine(managed(PhysAddr(0x1000), above), leaf);
            assert_eq!(protection(combined), above & below);
            assert_eq!(leaf_frame(combined, PageSize::Size2M), PhysAddr(0x40_0000_0000));
        }
    }
}
