//! Looking at what is mapped, without a fault: pagemap, mincore, smaps, futex keys.

use core::ops::Range;

use super::{Mapping, Slot};
use crate::addr::{PhysAddr, VirtAddr};
use crate::format;
use crate::machine::{Machine, Space};

/// What of a mapping has entries in this address space, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Resident {
    /// Pages of the file in a shared mapping: `Shared_Hugetlb` of smaps.
    pub shared: u64,
    /// Pages of a private mapping: `Private_Hugetlb`.
    pub private: u64,
}

impl<M: Machine> Mapping<M> {
    /// The frame at `address` and whether stores are permitted, if this address space has an entry for it: for
    /// `/proc/PID/pagemap`. The host holds its address-space lock for reading.
    pub fn translate(&self, address: VirtAddr) -> Option<(PhysAddr, bool)> {
        self.index(address)?;
        let placement = self.area.placement().read();
        let entry = self.area.leaf(&self.file, &placement, address);
        format::is_leaf(entry).then(|| {
            let within = address.0 - address.page(self.page_size()).0;
            (PhysAddr(format::leaf_frame(entry, self.page_size()).0 + within), format::is_writable(entry))
        })
    }

    /// Whether this address space has an entry for `address`: for mincore(2).
    pub fn is_resident(&self, address: VirtAddr) -> bool {
        self.translate(address).is_some()
    }

    /// What of the mapping has entries, for smaps and `HugetlbPages` of `/proc/PID/status`.
    pub fn resident(&self) -> Resident {
        let placement = self.area.placement().read();
        let count = |indices: Range<u64>| {
            let entry = |index: &u64| {
                let address = self.area.address(&placement, *index);
                self.area.leaf(&self.file, &placement, address) != 0
            };
            indices.filter(entry).count() as u64
        };
        let entries: u64 = if self.area.slot(&placement, placement.start).is_none() {
            count(placement.indices())
        } else {
            // By slot, so that a sparse terabyte is not looked at page by page.
            let of_slot = |slot: Slot| {
                let indices = slot.first.0..slot.first.0 + slot.pages;
                let Some(entry) = self.area.space().find_pud_entry(slot.start) else { return 0 };
                let attached = self.area.attached(&self.file, &slot, entry).is_some();
                match attached {
                    true if self.area.has_joined() => self.file.cache().lock().visible(indices),
                    // Where the slot is empty or another's there are no entries of this mapping.
                    false if self.area.find_host_entry(slot.start).is_none() => 0,
                    _ => count(indices),
                }
            };
            self.area.slots(&placement).map(of_slot).sum()
        };
        let bytes = entries << self.page_size().shift();
        match self.area.is_shared() {
            true => Resident { shared: bytes, private: 0 },
            false => Resident { shared: 0, private: bytes },
        }
    }

    /// What identifies the memory at `address` to every process that maps it, for the key of a shared futex: the file's
    /// id and the byte offset.
    pub fn identify(&self, address: VirtAddr) -> Option<(u64, u64)> {
        self.index(address)?;
        Some((self.file.id(), self.offset() + (address.0 - self.start().0)))
    }
}
