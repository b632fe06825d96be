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

/// A PUD entry that leads to a managed PMD table and takes no permission away.
pub fn managed(table: PhysAddr) -> u64 {
    table.0 | PRESENT | WRITABLE | USER | ACCESSED | MANAGED
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
        let entry = managed(PhysAddr(0x1234_5000));
        assert!(is_managed(entry) && is_present(entry) && !is_leaf(entry));
        assert_eq!(table_frame(entry), PhysAddr(0x1234_5000));
    }
}
