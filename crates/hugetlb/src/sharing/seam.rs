//! What a protocol is asked.

use core::ops::Range;

use filetables::{Level, Protection};

use super::{Batch, Fault};
use crate::addr::{PhysAddr, SLOT_SIZE, VirtAddr};
use crate::area::{Area, Exclusive, Placement};
use crate::error::{FaultError, OutOfMemory};
use crate::file::File;
use crate::machine::Machine;
use crate::pool::Page;
use crate::state::State;
use crate::sync::{Arc, ReadGuard, WriteGuard};

/// Why entries of a mapping in a slot are to change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// The mapping leaves the slot: its table is given up as a whole.
    Leave,
    /// Some entries are to be cleared, others stay.
    Clear,
    /// The mapping permits something else from now on; not nothing.
    Protect(Protection),
}

/// What of the entries in a slot is left to change for the caller.
pub(crate) enum Change {
    /// The entries in tables of the host.
    Host,
    /// Nothing.
    Done,
    /// Those of the table in this frame, which is the mapping's alone until the batch is finished.
    InPlace(PhysAddr),
}

/// A table that a protocol keeps for a slot, for checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Table {
    pub(crate) frame: PhysAddr,
    /// The mappings attached.
    pub(crate) sharers: u64,
}

/// A protocol: when a mapping shares a table, and what protects a fault from losing it.
///
/// Nothing has a default: each protocol says all that it does.
pub(crate) trait Protocol<M: Machine>: Send + Sync {
    /// What the protocol keeps with each file.
    fn file_state(&self) -> State;

    /// What the protocol keeps with each mapping.
    fn area_state(&self) -> State;

    /// What every fault on the file holds from before it locks its page's index to its end.
    fn fault_fence<'f>(&self, file: &'f File<M>) -> Option<ReadGuard<'f, M, ()>>;

    /// What excludes all faults on the file: taken by whoever takes tables or entries away or changes the file's list of
    /// mappings, before any index or mapping lock.
    fn change_fence<'f>(&self, file: &'f File<M>) -> Option<WriteGuard<'f, M, ()>>;

    /// Resolves a fault on a shared mapping: the page is in the file and mapped when it returns `Ok`.
    fn fault(&self, fault: &Fault<'_, M>) -> Result<Arc<Page<M>>, FaultError>;

    /// A shared mapping was made by mmap or fork, or came to other addresses or rights: what it may attach to at once.
    ///
    /// Nobody else changes the mapping meanwhile.
    fn attach(&self, file: &File<M>, area: &Arc<Area<M>>, placement: &Placement);

    /// Whether shared mappings are on the file's list from the beginning, not only from a fault on that needs it.
    fn lists_all(&self) -> bool;

    /// Prepares a change of what a shared mapping has at an address. Returns what is left to change for the caller, and
    /// where the mapping may have something else.
    fn prepare_change(
        &self,
        area: &Area<M>,
        placement: &Exclusive<'_, M>,
        address: VirtAddr,
        purpose: Purpose,
        batch: &mut Batch<'_, M>,
    ) -> (Change, Option<VirtAddr>);

    /// A shared mapping is about to be cut at an address inside: leaves the slot that the cut goes through. Returns whether
    /// the slot has parts that the mapping attaches again afterwards.
    fn leave_cut_slot(
        &self,
        area: &Area<M>,
        placement: &Exclusive<'_, M>,
        at: VirtAddr,
        batch: &mut Batch<'_, M>,
    ) -> bool;

    /// Moves what the protocol keeps of a mapping for the slots from an index on to the mapping that is their owner now.
    fn split(&self, lower: &Area<M>, placement: &Exclusive<'_, M>, from: u64, upper: &Area<M>);

    /// Puts an empty table of the host in the place of the table that the mapping shares in the slot at `address`. Returns whether
    /// it shared one there.
    fn leave_slot(
        &self,
        area: &Area<M>,
        placement: &Exclusive<'_, M>,
        address: VirtAddr,
        batch: &mut Batch<'_, M>,
    ) -> Result<bool, OutOfMemory>;

    /// Clears the entries of the listed mappings for a run of indices, which are locked, by `unmap`, which visits these mappings in
    /// turn: none is left afterwards.
    fn unmap_for_good(&self, file: &File<M>, run: Range<u64>, unmap: &dyn Fn(Range<u64>));

    /// The table that the protocol keeps for the mapping's slot with this file index at its start, if it is not the file's.
    fn table(&self, area: &Area<M>, first: u64) -> Option<Table>;
}

/// The end of the slot of a PUD entry around an address.
pub(crate) fn next_slot(address: VirtAddr) -> Option<VirtAddr> {
    address.floor(Level::Pud).0.checked_add(SLOT_SIZE).map(VirtAddr)
}
