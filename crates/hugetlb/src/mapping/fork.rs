//! fork: a mapping of the same file in the child.

use filetables::{Format, Protection};

use super::{Mapping, place_at_once};
use crate::area::{self, Private, marks};
use crate::error::OutOfMemory;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::sharing::{Batch, Purpose};
use crate::sync::Ordering;
use crate::token::SpaceToken;

impl<M: Machine> Mapping<M> {
    /// The child's mapping at the same addresses, in the address space of `child`. The host holds its address-space lock of the
    /// parent for writing, too.
    ///
    /// A shared mapping starts with what the protocol attaches it to: under `file-tables` with all that is in the file, else
    /// without entries, as on Linux. A private one shares its copies with the child until one of
    /// them writes, and the promise stays with the parent: the child may find the pool empty. What is poisoned in a private mapping is so in
    /// the child's; stores are withheld from none of its pages.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when [`Machine::take_step`] says so: a private mapping may have very many copies. Nothing has changed then.
    pub fn fork(&self, child: &mut SpaceToken<M::Space>) -> Result<Mapping<M>, OutOfMemory> {
        let space = child.space().clone();
        let _fence = self.file.protocol().change_fence(&self.file);
        // Held until the child is on the list and the parent's entries are read-only in every TLB.
        let placement = self.area.lock();
        let private = self.area.private();
        // Before the copies: so that a truncation under way need not visit the child. Else who forks faster than it visits would
        // hold it up for ever.
        let unmapping = self.file.last_unmapping();
        let copies = match self.is_shared() {
            true => Private::new(None, false),
            false => area::fork(self.file.hugetlb().machine(), private, &unmapping.indices)?,
        };
        let has_copies = !copies.is_empty();
        let area = self.new_area(space, *placement, copies, unmapping.number);
        if !self.is_shared() && self.area.has_marks() {
            let machine = self.file.hugetlb().machine();
            area.set_has_marks();
            marks::copy_poison(machine, self.area.marks(), area.marks())
                .inspect_err(|_| marks::forget(machine, area.marks()))?;
        }
        let place = place_at_once(&self.file, &area)?;
        let mut batch = Batch::new(&self.file);
        if has_copies {
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
                    if !M::Format::is_leaf(level, old) || !writable || private.lock().copy(index).is_none() {
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
        let child = Mapping { file: self.file.clone(), area, placement: *placement, is_unmapped: false };
        if Mutant::ForkUnlockedEarly.is_on() {
            batch.finish();
            drop(placement);
            child.attach_new(place);
            return Ok(child);
        }
        child.attach_new(place);
        batch.finish();
        Ok(child)
    }
}
