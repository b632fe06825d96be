//! Physical and virtual addresses as types of their own, and the direct map.

use core::fmt;
use core::ops::{Add, AddAssign, Sub};

/// Size of a base page in bytes.
pub const PAGE_SIZE: usize = 4096;
/// Base-2 logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: usize = 12;
/// Where the kernel image's physical address 0 would be in virtual memory.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// Start of the direct map: all of RAM at its physical address plus this.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// Bytes of address space that the direct map may fill.
pub const DIRECT_MAP_SIZE: u64 = 64 << 40;
/// Kernel stacks and mapped device registers live from here on.
pub const KERNEL_AREA: u64 = 0xffff_c000_0000_0000;
/// Bytes of the kernel area: one top-level entry, present from boot, so that every process sees all of it.
pub const KERNEL_AREA_SIZE: u64 = 512 << 30;
/// User space ends one page below the canonical hole, as on Linux.
pub const USER_END: u64 = 0x0000_7fff_ffff_f000;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            pub const fn as_usize(self) -> usize {
                self.0 as usize
            }
        }

        impl Add<u64> for $name {
            type Output = Self;
            fn add(self, bytes: u64) -> Self {
                Self(self.0 + bytes)
            }
        }

        impl AddAssign<u64> for $name {
            fn add_assign(&mut self, bytes: u64) {
                self.0 += bytes;
            }
        }

        impl Sub<u64> for $name {
            type Output = Self;
            fn sub(self, bytes: u64) -> Self {
                Self(self.0 - bytes)
            }
        }

        impl Sub for $name {
            type Output = u64;
            fn sub(self, other: Self) -> u64 {
                self.0 - other.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A physical address.
    PhysAddr
}
address! {
    /// A virtual address.
    VirtAddr
}

impl PhysAddr {
    /// Rounds down to a multiple of `align`, a power of two.
    pub const fn align_down(self, align: u64) -> Self {
        Self(self.0 & !(align - 1))
    }

    pub const fn is_aligned(self, align: u64) -> bool {
        self.0 & (align - 1) == 0
    }

    /// Number of the base page that holds this address.
    pub const fn page_number(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }

    pub const fn page_offset(self) -> usize {
        (self.0 & (PAGE_SIZE as u64 - 1)) as usize
    }

    /// Where the direct map shows this address.
    pub const fn to_virt(self) -> VirtAddr {
        VirtAddr(self.0 + DIRECT_MAP)
    }

    /// The direct map's pointer to this address.
    pub const fn as_ptr<T>(self) -> *mut T {
        (self.0 + DIRECT_MAP) as *mut T
    }
}

impl VirtAddr {
    pub fn from_ptr<T: ?Sized>(pointer: *const T) -> Self {
        Self(pointer.cast::<()>() as u64)
    }

    pub const fn as_ptr<T>(self) -> *mut T {
        self.0 as *mut T
    }

    /// The physical address of a direct-map or kernel-image address; `None` for other addresses.
    pub const fn to_phys(self) -> Option<PhysAddr> {
        if self.0 >= KERNEL_BASE {
            Some(PhysAddr(self.0 - KERNEL_BASE))
        } else if self.0 >= DIRECT_MAP && self.0 < DIRECT_MAP + DIRECT_MAP_SIZE {
            Some(PhysAddr(self.0 - DIRECT_MAP))
        } else {
            None
        }
    }
}
