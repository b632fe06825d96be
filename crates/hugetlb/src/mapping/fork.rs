//! fork: a mapping of the same file in the child.

use alloc::collections::BTreeMap;

use filetables::{Format, Protection};

use super::area::COPIES_AT_A_TIME;
use super::area::Private;
use super::{Area, Batch, Exclusive, Mapping, Share};
use crate::addr::PageIndex;
use crate::error::OutOfMemory;
use crate::file::File;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::reserve::Regions;
use crate::sharing::Purpose;
use crate::sync::Ordering;
use crate::token::SpaceToken;

impl<M: Machine> Mapping<M> {
    /// The child's mapping at the same addresses, in the address space of `child`. The host holds its address-space lock of the
    /// parent for writing, too.
    ///
    /// A shared mapping starts with what the protocol attaches it to: under `file-tables` with all that is in the file, else
    /// without entries, as on Linux. A private one shares its copies with the child until one of
    /// them writes, and the promise stays with the parent: the child may find the pool empty.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when [`Machine::take_step`] says so: a private mapping may have very many copies. Nothing has changed then.
    pub fn fork(&self, child: &mut SpaceToken<M::Space>) -> Result<Mapping<M>, OutOfMemory> {
        let space = child.space().clone();
        let _fence = self.file.hugetlb().protocol().change_fence(&self.file);
        // Held until the child is on the list and the parent's entries are read-only in every TLB.
        let placement = self.area.lock();
        let copies = self.area.fork_copies(&self.file, &placement)?;
        let mut batch = Batch::new(&self.file);
        if !copies.is_empty() {
            let level = self.page_size().level();
            self.area.change_entries(
                &self.file,
                &placement,
                placement.indices(),
                Purpose::Clear,
                &mut batch,
                |entry, index, _| {
                    // Relaxed: the mapping lock orders it.
                    let old = entry.load(Ordering::Relaxed);
                    let writable = M::Format::protection(old).contains(Protection::WRITE);
                    if !M::Format::is_leaf(level, old) || !writable || !copies.contains_key(&index) {
                        return false;
                    }
                    let permitted = placement.protection - Protection::WRITE;
                    // AcqRel: a store through the old entry comes before the flush or faults.
                    let frame = M::Format::leaf_frame(level, old);
                    entry.swap(M::Format::leaf(level, frame, permitted), Ordering::AcqRel);
                    !Mutant::ForkNotFlushed.is_on()
                },
            );
        }
        let robbed = self.area.private().lock().robbed;
        let private = Private {
            copies,
            used: Regions::default(),
            owner: false,
            robbed,
            withheld: Regions::default(),
            poisoned: Regions::default(),
        };
        debug_assert!(private.copies.is_empty() || !self.area.is_shared());
        let child = Self::unattached(self.file.clone(), space, self.area.is_shared(), *placement, private);
        if Mutant::ForkUnlockedEarly.is_on() {
            batch.finish();
            drop(placement);
            child.attach();
            return Ok(child);
        }
        child.attach();
        batch.finish();
        Ok(child)
    }
}

impl<M: Machine> Area<M> {
    /// A share for a child of each private copy.
    fn fork_copies(
        &self,
        file: &File<M>,
        _: &Exclusive<'_, M>,
    ) -> Result<BTreeMap<PageIndex, Share<M>>, OutOfMemory> {
        let mut copies = BTreeMap::new();
        let mut next = PageIndex(0);
        while !self.is_shared() {
            let mut some = [const { None }; COPIES_AT_A_TIME];
            {
                let private = self.private().lock();
                let from_next = private.copies.range(next..);
                for (place, (index, share)) in some.iter_mut().zip(from_next) {
                    *place = Some((*index, share.fork()));
                }
            }
            let Some((last, _)) = some.iter().rev().flatten().next() else { break };
            next = *last + 1;
            file.hugetlb().machine().take_step()?;
            copies.extend(some.into_iter().flatten());
        }
        Ok(copies)
    }
}

impl<M: Machine> Private<M> {
    /// Takes what belongs to the indices from `at` on.
    pub(super) fn split_off(&mut self, at: PageIndex) -> Private<M> {
        let copies = self.copies.split_off(&at);
        Private {
            copies,
            used: self.used.split_off(at.0),
            owner: self.owner,
            robbed: self.robbed,
            withheld: self.withheld.split_off(at.0),
            poisoned: self.poisoned.split_off(at.0),
        }
    }
}
