//! The format of a page-table entry, with the bits that software uses.

use crate::memory::PhysAddr;
use crate::sync::primitive::{AtomicU64, Ordering};

/// A value of a page-table entry.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Entry(pub u64);

impl Entry {
    /// The hardware uses it.
    pub const PRESENT: u64 = 1;
    /// Stores are allowed.
    pub const WRITABLE: u64 = 1 << 1;
    /// User mode may use it.
    pub const USER: u64 = 1 << 2;
    /// The hardware used it.
    pub const ACCESSED: u64 = 1 << 5;
    /// The hardware stored through it.
    pub const DIRTY: u64 = 1 << 6;
    /// Not a table but a huge page.
    pub const HUGE: u64 = 1 << 7;
    /// Software: the page is anonymous memory or a private copy, not its file's page.
    pub const ANON: u64 = 1 << 9;
    /// Software: the page has no reference from this entry (zero page, vDSO).
    pub const SPECIAL: u64 = 1 << 10;
    /// Software: there is a page, kept from everybody by PROT_NONE. Not PRESENT.
    pub const HELD: u64 = 1 << 11;
    /// Software: the page is one of shared memory's (for the resident-set counters).
    pub const SHMEM: u64 = 1 << 52;
    /// Software: userfaultfd withholds stores from the page. Without a page it is a marker: the page that comes is to have it.
    pub const USERFAULT_WP: u64 = 1 << 53;
    /// Software, without a page: userfaultfd has poisoned the address.
    pub const POISON: u64 = 1 << 54;
    /// Software, in an entry that leads to a table: the table is a file's (`filetables::Format::is_managed`).
    pub const MANAGED: u64 = 1 << 9;
    /// Software, in an entry of level 2: address spaces share the table since a fork
    /// ([`super::fork_tables`]). Never with WRITABLE.
    pub const FORKED: u64 = 1 << 10;
    /// Instructions cannot be fetched.
    pub const NO_EXECUTE: u64 = 1 << 63;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    /// An entry for the page at `address` with `bits`.
    pub const fn new(address: PhysAddr, bits: u64) -> Self {
        Self(address.0 | bits)
    }

    /// What an entry is now.
    pub fn load(place: &AtomicU64) -> Self {
        // SeqCst: the hardware and other CPUs change entries at any time.
        Self(place.load(Ordering::SeqCst))
    }

    /// An upper level's entry for a table: all rights, the leaves decide.
    pub const fn table(address: PhysAddr) -> Self {
        Self(address.0 | Self::PRESENT | Self::WRITABLE | Self::USER)
    }

    /// An entry of level 2 for a table that address spaces share since a fork: no stores, whatever the leaves
    /// say.
    pub const fn forked(table: PhysAddr) -> Self {
        Self(table.0 | Self::PRESENT | Self::USER | Self::FORKED)
    }

    /// Are all of `bits` set?
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// Can the hardware use it?
    pub const fn is_present(self) -> bool {
        self.has(Self::PRESENT)
    }

    /// Does it name a page, present or held?
    pub const fn is_mapped(self) -> bool {
        self.0 & (Self::PRESENT | Self::HELD) != 0
    }

    /// Does it name no page, but say what is to be with one?
    pub const fn is_marker(self) -> bool {
        !self.is_mapped() && self.0 != 0
    }

    /// Does the entry own one reference to its page's frame?
    pub const fn owns_frame(self) -> bool {
        self.is_mapped() && !self.has(Self::SPECIAL)
    }

    /// Does an entry above the leaves lead to no table that is ours to walk: empty, a huge page, or a table that others share?
    pub const fn is_end(self, level: u32) -> bool {
        debug_assert!(level > 1 && (level == 2 || !self.has(Self::PRESENT | Self::FORKED)));
        // One test: each walk comes here once for each level.
        self.0 & (Self::PRESENT | Self::HUGE | Self::MANAGED | Self::FORKED) != Self::PRESENT
    }

    /// Does it lead to a table that address spaces share since a fork?
    pub const fn is_forked(self, level: u32) -> bool {
        level == 2 && self.has(Self::PRESENT | Self::FORKED) && !self.has(Self::HUGE)
    }

    /// Does it lead to a table of a file that others share?
    pub const fn leads_to_shared(self, level: u32) -> bool {
        level > 1 && self.has(Self::PRESENT | Self::MANAGED) && !self.has(Self::HUGE)
    }

    /// The page's or table's physical address.
    pub const fn address(self) -> PhysAddr {
        PhysAddr(self.0 & Self::ADDRESS)
    }

    /// The entry for another page in the place of this one.
    pub const fn moved_to(self, page: PhysAddr) -> Self {
        Self(self.0 & !Self::ADDRESS | page.0)
    }

    /// The same with `bits` set.
    pub const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    /// The same with `bits` clear.
    pub const fn without(self, bits: u64) -> Self {
        Self(self.0 & !bits)
    }

    /// Can the hardware do with `self` all that it can do with `old`? If so, no TLB needs to be flushed.
    pub const fn allows_all_of(self, old: Self) -> bool {
        if !old.is_present() {
            return true;
        }
        self.is_present()
            && self.address().0 == old.address().0
            && (self.has(Self::WRITABLE) || !old.has(Self::WRITABLE))
            && (!self.has(Self::NO_EXECUTE) || old.has(Self::NO_EXECUTE))
    }
}
