//! Newtypes for addresses, and the levels of page tables.

use core::fmt;
use core::ops::Add;

/// The binary logarithm of [`TABLE_ENTRIES`].
const ENTRY_BITS: u32 = if cfg!(roundtable_model) { 2 } else { 9 };
/// The entries of a page table. A model checker looks at each step of what walks a table, so its tables are small.
pub const TABLE_ENTRIES: usize = 1 << ENTRY_BITS;
/// The bytes of a page table.
pub const TABLE_SIZE: u64 = 4096;

/// A physical address, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysAddr(pub u64);

/// A virtual address of user space, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtAddr(pub u64);

impl VirtAddr {
    /// The address rounded down to where an entry of `level` begins.
    #[must_use]
    pub const fn floor(self, level: Level) -> VirtAddr {
        VirtAddr(self.0 & !(level.span() - 1))
    }

    /// Whether an entry of `level` begins here.
    #[must_use]
    pub const fn begins(self, level: Level) -> bool {
        self.0 & (level.span() - 1) == 0
    }
}

impl Add<u64> for VirtAddr {
    type Output = VirtAddr;

    fn add(self, bytes: u64) -> VirtAddr {
        VirtAddr(self.0.wrapping_add(bytes))
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PhysAddr({:#x})", self.0)
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VirtAddr({:#x})", self.0)
    }
}

/// The level of a page table, and of the entries in it. Named as Linux names them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Level {
    /// A PTE table: an entry spans 4 KiB.
    Pte = 1,
    /// A PMD table: an entry spans 2 MiB.
    Pmd = 2,
    /// A PUD table: an entry spans 1 GiB.
    Pud = 3,
    /// The table above: an entry spans 512 GiB. It is always the process's own.
    Pgd = 4,
}

impl Level {
    /// The binary logarithm of [`Level::span`].
    #[must_use]
    pub const fn shift(self) -> u32 {
        match self {
            Level::Pte => 12,
            Level::Pmd => 21,
            Level::Pud => 21 + ENTRY_BITS,
            Level::Pgd => 21 + 2 * ENTRY_BITS,
        }
    }

    /// The bytes that one entry spans.
    #[must_use]
    pub const fn span(self) -> u64 {
        1 << self.shift()
    }

    /// The entry for an address in its table of this level.
    #[must_use]
    pub const fn index(self, address: VirtAddr) -> usize {
        (address.0 >> self.shift()) as usize % TABLE_ENTRIES
    }

    /// The level whose entries lead to tables of this one.
    #[must_use]
    pub const fn above(self) -> Option<Level> {
        match self {
            Level::Pte => Some(Level::Pmd),
            Level::Pmd => Some(Level::Pud),
            Level::Pud => Some(Level::Pgd),
            Level::Pgd => None,
        }
    }

    /// The level of the tables that entries of this one lead to.
    #[must_use]
    pub const fn below(self) -> Option<Level> {
        match self {
            Level::Pte => None,
            Level::Pmd => Some(Level::Pte),
            Level::Pud => Some(Level::Pmd),
            Level::Pgd => Some(Level::Pud),
        }
    }
}

#[cfg(all(test, not(roundtable_model)))]
mod tests {
    use super::*;

    #[test]
    fn levels_are_those_of_the_hardware() {
        let spans = [Level::Pte, Level::Pmd, Level::Pud, Level::Pgd].map(Level::span);
        assert_eq!(spans, [4 << 10, 2 << 20, 1 << 30, 512 << 30]);
        for level in [Level::Pte, Level::Pmd, Level::Pud] {
            let above = level.above().unwrap();
            assert_eq!(above.below(), Some(level));
            assert_eq!(above.span(), level.span() * TABLE_ENTRIES as u64);
        }
    }

    #[test]
    fn an_address_has_one_entry_for_each_level() {
        let address = VirtAddr((5 << 39) | (6 << 30) | (7 << 21) | (8 << 12) | 9);
        let entries = [Level::Pgd, Level::Pud, Level::Pmd, Level::Pte].map(|level| level.index(address));
        assert_eq!(entries, [5, 6, 7, 8]);
        assert_eq!(address.floor(Level::Pud), VirtAddr((5 << 39) | (6 << 30)));
    }
}
