//! Looking at what is mapped, without a fault: pagemap, mincore, smaps, futex keys.

use core::convert::Infallible;
use core::ops::Range;

use filetables::{Format, Found, Protection};

use super::Mapping;
use crate::addr::{PhysAddr, VirtAddr};
use crate::area::Placement;
use crate::error::FaultError;
use crate::machine::Machine;
use crate::sync::Ordering;

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
    #[must_use]
    pub fn translate(&self, address: VirtAddr) -> Option<(PhysAddr, bool)> {
        self.index(address)?;
        let placement = self.area.placement();
        let level = self.page_size().level();
        let entry = self.area.leaf(&self.file, &placement, address);
        M::Format::is_leaf(level, entry).then(|| {
            let within = address.0 - address.floor(level).0;
            let writable = M::Format::protection(entry).contains(Protection::WRITE);
            (PhysAddr(M::Format::leaf_frame(level, entry).0 + within), writable)
        })
    }

    /// Shows `work` the frame of the page that `address` leads to, whatever the mapping permits; nothing where there is a hole, which reads
    /// as zeroes. For reads by the host that need no right (ptrace, `/proc/PID/mem`): no page is made, and no entry. The page can go
    /// nowhere until `work` is done.
    ///
    /// # Errors
    ///
    /// [`FaultError::NotMapped`] outside of the mapping, [`FaultError::Sigbus`] and [`FaultError::Poisoned`] where an access would get it.
    pub fn inspect<T>(
        &self,
        address: VirtAddr,
        work: impl FnOnce(Option<PhysAddr>) -> T,
    ) -> Result<T, FaultError> {
        // Held to the end: it keeps the file's page where it is.
        let locked = self.file.lock_index(self.index(address).ok_or(FaultError::NotMapped)?)?;
        let index = locked.index();
        if self.area.poisons(index) {
            return Err(FaultError::Poisoned(self.page_size().shift()));
        }
        let page = self.area.page(&self.file, index);
        if page.is_none() && self.file.ends_before(index.0) {
            return Err(FaultError::Sigbus);
        }
        if page.as_ref().is_some_and(|page| page.is_broken()) {
            return Err(FaultError::Poisoned(self.page_size().shift()));
        }
        if page.is_none() && self.area.private().lock().robbed {
            return Err(FaultError::Sigbus);
        }
        // By reference: the page lives until `work` is done. The index lock keeps the file's page, but not the mapping's own copy,
        // which MADV_DONTNEED and truncations drop under the mapping lock alone.
        Ok(work(page.as_ref().map(|page| page.frame())))
    }

    /// Whether this address space has an entry for `address`: for mincore(2).
    #[must_use]
    pub fn is_resident(&self, address: VirtAddr) -> bool {
        self.translate(address).is_some()
    }

    /// What of the mapping has entries, for smaps and `HugetlbPages` of `/proc/PID/status`.
    #[must_use]
    pub fn resident(&self) -> Resident {
        let placement = self.area.placement();
        let entries: u64 = match self.is_shared() {
            false => self.count_entries(&placement, placement.indices()),
            true => {
                // By slot, so that a sparse terabyte is not looked at page by page.
                let (mut entries, mut next) = (0, Some(placement.start));
                let end = self.start() + self.length();
                while let Some(address) = next.filter(|address| *address < end) {
                    let found;
                    let extent = self.area.extent(&placement);
                    (found, next) = self.file.content().look(self.area.space(), &extent, address);
                    let index = |address: VirtAddr| {
                        placement.first.0 + ((address.0 - placement.start.0) >> self.page_size().shift())
                    };
                    let indices = index(address)..index(next.map_or(end, |next| next.min(end)));
                    entries += match found {
                        Found::Nothing => 0,
                        Found::Attached(slot, _) if self.area.has_joined() => {
                            self.file.content().shown(&slot.window)
                        }
                        Found::Attached(..) | Found::Host => self.count_entries(&placement, indices),
                    };
                    self.file.hugetlb().machine().give_way();
                }
                entries
            }
        };
        let bytes = entries << self.page_size().shift();
        match self.area.is_shared() {
            true => Resident { shared: bytes, private: 0 },
            false => Resident { shared: 0, private: bytes },
        }
    }

    /// How many leaves there are in tables of the host.
    fn count_entries(&self, placement: &Placement, indices: Range<u64>) -> u64 {
        let level = self.page_size().level();
        let mut entries = 0;
        let _ = self.area.each_host_entry(&self.file, placement, indices, |entry, _| {
            // Relaxed: a number to show.
            entries += u64::from(M::Format::is_leaf(level, entry.load(Ordering::Relaxed)));
            Ok::<_, Infallible>(())
        });
        entries
    }

    /// What identifies the memory at `address` to every process that maps it, for the key of a shared futex: the file's
    /// id and the byte offset.
    #[must_use]
    pub fn identify(&self, address: VirtAddr) -> Option<(u64, u64)> {
        self.index(address)?;
        Some((self.file.id(), self.offset() + (address.0 - self.start().0)))
    }
}
