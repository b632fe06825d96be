//! How page tables are cut: what one table of each level covers.

use serde::Serialize;

/// The page tables of a 64-bit architecture with tables as large as base pages and entries of eight bytes: x86-64,
/// arm64 and riscv64 alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    page_shift: u32,
}

/// The levels whose tables the kernel counts in `VmPTE`, lowest first.
pub const LEVELS: usize = 3;

impl Geometry {
    /// The geometry for base pages of this size, a power of two from 4 KiB to 64 KiB.
    pub fn new(page_size: u64) -> Option<Geometry> {
        let known = page_size.is_power_of_two() && (4096..=65536).contains(&page_size);
        known.then(|| Geometry { page_shift: page_size.trailing_zeros() })
    }

    /// Base pages of 4 KiB.
    pub const fn four_kib() -> Geometry {
        Geometry { page_shift: 12 }
    }

    /// Bytes of a base page, and of a table.
    pub fn page(self) -> u64 {
        1 << self.page_shift
    }

    /// Entries of a table.
    pub fn entries(self) -> u64 {
        1 << (self.page_shift - 3)
    }

    /// The shift of what one table of a level covers: 0 for PTE tables, 1 for PMD tables, 2 for PUD tables.
    pub fn table_shift(self, level: usize) -> u32 {
        self.page_shift + (self.page_shift - 3) * (level as u32 + 1)
    }

    /// Bytes that one entry of a PMD table maps: the size of the huge pages whose tables are shared.
    pub fn huge(self) -> u64 {
        1 << self.table_shift(0)
    }

    /// Bytes that one PMD table maps: 1 GiB where base pages are of 4 KiB.
    pub fn slot(self) -> u64 {
        1 << self.table_shift(1)
    }

    /// The level of the tables that hold the entries of pages of this size, and `None` for sizes that are none of
    /// the architecture's own levels (arm64's contiguous pages: they use several entries of the level below).
    pub fn leaf_level(self, page_size: u64) -> usize {
        (0..LEVELS)
            .rev()
            .find(|&level| page_size >= self.page() << (level as u32 * (self.page_shift - 3)))
            .unwrap_or(0)
    }
}

/// Numbers of page-table pages by level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tables {
    /// Tables of base-page entries.
    pub pte: u64,
    /// Tables of 2 MiB entries (of 4 KiB base pages).
    pub pmd: u64,
    /// Tables of 1 GiB entries.
    pub pud: u64,
}

impl Tables {
    /// All of them.
    pub fn count(self) -> u64 {
        self.pte + self.pmd + self.pud
    }

    /// Their bytes.
    pub fn bytes(self, geometry: Geometry) -> u64 {
        self.count() * geometry.page()
    }

    /// So many of a level.
    pub fn level(&mut self, level: usize) -> &mut u64 {
        match level {
            0 => &mut self.pte,
            1 => &mut self.pmd,
            _ => &mut self.pud,
        }
    }

    /// What `members` processes have when `probed` of them have this together.
    pub fn scaled(self, members: u64, probed: u64) -> Tables {
        let scale = |count| scaled(count, members, probed);
        Tables { pte: scale(self.pte), pmd: scale(self.pmd), pud: scale(self.pud) }
    }
}

/// `count` of `probed`, drawn up to `members`, rounded.
pub fn scaled(count: u64, members: u64, probed: u64) -> u64 {
    if probed == 0 || members == probed {
        return count;
    }
    let product = u128::from(count) * u128::from(members) + u128::from(probed) / 2;
    (product / u128::from(probed)) as u64
}

impl std::ops::AddAssign for Tables {
    fn add_assign(&mut self, other: Tables) {
        self.pte += other.pte;
        self.pmd += other.pmd;
        self.pud += other.pud;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_kib_pages_give_the_sizes_that_everybody_knows() {
        let geometry = Geometry::four_kib();
        assert_eq!((geometry.huge(), geometry.slot(), geometry.entries()), (2 << 20, 1 << 30, 512));
        assert_eq!(geometry.table_shift(2), 39);
        let levels = [4 << 10, 64 << 10, 2 << 20, 32 << 20, 1 << 30].map(|size| geometry.leaf_level(size));
        assert_eq!(levels, [0, 0, 1, 1, 2]);
    }

    #[test]
    fn other_base_pages_are_cut_as_arm64_cuts_them() {
        let geometry = Geometry::new(16 << 10).unwrap();
        assert_eq!((geometry.huge(), geometry.slot()), (32 << 20, 64 << 30));
        let geometry = Geometry::new(64 << 10).unwrap();
        assert_eq!(geometry.huge(), 512 << 20);
        for size in [0, 512, 4097, 128 << 10] {
            assert_eq!(Geometry::new(size), None);
        }
    }

    #[test]
    fn a_sample_is_drawn_up_to_all() {
        assert_eq!(scaled(7, 10, 10), 7);
        assert_eq!(scaled(2, 10, 4), 5);
        assert_eq!(scaled(3, 10, 4), 8, "rounded");
        assert_eq!(scaled(1 << 62, 4, 2), 1 << 63);
    }
}
