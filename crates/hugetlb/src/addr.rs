//! Page indices, and the sizes of huge pages.

use core::ops::Add;

use filetables::Level;
pub use filetables::{PhysAddr, TABLE_ENTRIES, TABLE_SIZE, VirtAddr};

/// The bytes that one entry of a PUD table covers: 1 GiB.
pub const SLOT_SIZE: u64 = Level::Pud.span();

/// The index of a page within its file, in huge pages of the file's size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageIndex(pub u64);

impl Add<u64> for PageIndex {
    type Output = PageIndex;

    fn add(self, pages: u64) -> PageIndex {
        PageIndex(self.0.saturating_add(pages))
    }
}

/// The size of a huge page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PageSize {
    /// 2 MiB: a leaf in a PMD table.
    Size2M,
    /// 1 GiB: a leaf in a PUD table.
    Size1G,
}

impl PageSize {
    /// Both sizes, the small one first.
    pub const ALL: [PageSize; 2] = [PageSize::Size2M, PageSize::Size1G];

    /// The level of the entries that lead to such pages.
    #[must_use]
    pub const fn level(self) -> Level {
        match self {
            PageSize::Size2M => Level::Pmd,
            PageSize::Size1G => Level::Pud,
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.level().span()
    }

    /// The binary logarithm of the size.
    #[must_use]
    pub const fn shift(self) -> u32 {
        self.level().shift()
    }

    /// The size in KiB, as in the names below `/sys/kernel/mm/hugepages`.
    #[must_use]
    pub const fn kib(self) -> u64 {
        self.bytes() >> 10
    }

    /// The page size of that many bytes, if it is one.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Option<PageSize> {
        match bytes {
            0x20_0000 => Some(PageSize::Size2M),
            0x4000_0000 => Some(PageSize::Size1G),
            _ => None,
        }
    }

    pub(crate) const fn slot(self) -> usize {
        match self {
            PageSize::Size2M => 0,
            PageSize::Size1G => 1,
        }
    }
}
