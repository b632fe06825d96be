//! The format of page-table entries, for each architecture.
//!
//! Everything that knows a bit of an entry is in the files of this module. [`Native`] is the format of the machine that
//! the crate is built for; a simulator may choose another one.

mod aarch64;
mod riscv64;
mod x86_64;

pub use aarch64::Aarch64;
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
        /// Instruction fetches. They imply loads.
        const EXECUTE = 4;
    }
}

/// The format of the machine that the crate is built for.
#[cfg(target_arch = "x86_64")]
pub type Native = X86_64;
/// The format of the machine that the crate is built for.
#[cfg(target_arch = "riscv64")]
pub type Native = Riscv64;
/// The format of the machine that the crate is built for. A host whose `MAIR_EL1` has normal memory elsewhere takes another
/// [`Aarch64`].
#[cfg(target_arch = "aarch64")]
pub type Native = Aarch64;
#[cfg(not(any(target_arch = "x86_64", target_arch = "riscv64", target_arch = "aarch64")))]
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

    /// On an architecture that demands *break before make*: what stands in an entry that changes, until the TLBs are
    /// flushed. It is not present and not empty. `None` where one store may replace an entry.
    const BROKEN: Option<EntryValue> = None;

    /// A leaf of `level`. `protection` is not empty: what permits nothing has no entry.
    fn leaf(level: Level, frame: PhysAddr, protection: Protection) -> EntryValue;

    /// An entry that leads to a managed table. It leaves of the rights below it those of `protection`, which is not empty,
    /// if rights combine.
    fn managed(table: PhysAddr, protection: Protection) -> EntryValue;

    /// An entry that leads to a table of the host, and takes no rights away.
    fn table(table: PhysAddr) -> EntryValue;

    /// Whether the hardware uses the entry.
    fn is_present(entry: EntryValue) -> bool;

    /// Whether an entry of `level` is a present leaf.
    fn is_leaf(level: Level, entry: EntryValue) -> bool;

    /// Whether an entry of `level` leads to a managed table.
    fn is_managed(level: Level, entry: EntryValue) -> bool;

    /// What a leaf permits.
    fn protection(leaf: EntryValue) -> Protection;

    /// The rights that an entry which leads to a table leaves to the leaves below it: all where rights do not combine.
    fn table_rights(entry: EntryValue) -> Protection;

    /// Whether a leaf permits more than one that is made for `allowed` would: stores imply loads, and on some machines fetches do.
    #[must_use]
    fn exceeds(leaf: EntryValue, allowed: Protection) -> bool {
        allowed.is_empty()
            || !Self::protection(Self::leaf(Level::Pmd, PhysAddr(0), allowed))
                .contains(Self::protection(leaf))
    }

    /// Whether an entry that leads to a table leaves more rights than one that is made for `allowed` would.
    #[must_use]
    fn table_exceeds(entry: EntryValue, allowed: Protection) -> bool {
        allowed.is_empty()
            || !Self::table_rights(Self::managed(PhysAddr(0), allowed)).contains(Self::table_rights(entry))
    }

    /// The frame that a leaf of `level` leads to.
    fn leaf_frame(level: Level, entry: EntryValue) -> PhysAddr;

    /// The table that an entry leads to.
    fn table_frame(entry: EntryValue) -> PhysAddr;

    /// The rights that belong to the key of a table: those of its mappings, or all where rights combine.
    #[must_use]
    fn key_rights(protection: Protection) -> Protection {
        if Self::RIGHTS_COMBINE { Protection::all() } else { protection }
    }
}

#[cfg(test)]
mod tests;
