//! Newtypes for addresses, and the sizes of huge pages.

use core::fmt;
use core::ops::Add;

/// The entries of a page table. A model checker looks at each step of what walks a table, so its tables are small.
pub const TABLE_ENTRIES: usize = if cfg!(feature = "model") { 4 } else { 512 };
/// The bytes that one entry of a PUD table covers: 1 GiB.
pub const SLOT_SIZE: u64 = (TABLE_ENTRIES as u64) << PageSize::Size2M.shift();
/// The bytes of a page table.
pub const TABLE_SIZE: u64 = 4096;

/// A physical address, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysAddr(pub u64);

/// A virtual address of user space, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtAddr(pub u64);

impl VirtAddr {
    /// The start of the 1 GiB slot that this address lies in.
    pub const fn slot(self) -> VirtAddr {
        VirtAddr(self.0 & !(SLOT_SIZE - 1))
    }

    /// Whether the address is a multiple of `size`.
    pub const fn is_aligned(self, size: PageSize) -> bool {
        self.0 & (size.bytes() - 1) == 0
    }

    /// The address of the page of `size` that this address lies in.
    pub const fn page(self, size: PageSize) -> VirtAddr {
        VirtAddr(self.0 & !(size.bytes() - 1))
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

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// The binary logarithm of the size.
    pub const fn shift(self) -> u32 {
        match self {
            PageSize::Size2M => 21,
            PageSize::Size1G => 30,
        }
    }

    /// The size in KiB, as in the names below `/sys/kernel/mm/hugepages`.
    pub const fn kib(self) -> u64 {
        self.bytes() >> 10
    }

    /// The page size of that many bytes, if it is one.
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
