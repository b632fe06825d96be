//! Sharing of PMD tables between mappings of a file: the seam for protocols.
//!
//! # The guarantee
//!
//! A fault writes a leaf only into a table that its own mapping is attached to for as long as the write takes, and a page
//! is given back only after every TLB that may hold it was flushed. Each protocol is one file that says how it keeps the
//! first half; the second is kept by [`Batch`], for all of them.
//!
//! # The protocols
//!
//! | file | tables are | a fault is fenced by |
//! | --- | --- | --- |
//! | `none` | each mapping's own | nothing to fence |
//! | `unfenced` | adopted from a partner | nothing: the race is there to be seen (feature `lab`) |
//! | `file_lock` | adopted | a lock of the file that all faults hold |
//! | `vma_lock` | adopted | the mapping's own reader/writer lock |
//! | `file_tables` | the file's | nothing to fence: no mapping can take a table away |
//!
//! What the three with adopted tables have in common is in [`adopted`]. The tables of a file are a crate of their own,
//! [`filetables`].
//!
//! The library changes PUD entries with managed tables under the mapping lock: for reading when it attaches (entries go
//! from empty to present, one attachment at a time), for writing when it detaches. Several mappings may have a part of one
//! slot each: only the one that is attached changes a managed entry, and it alone can take it back, see
//! [`crate::Mapping::leave_slot`].

mod adopted;
mod adopted_table;
mod file_lock;
mod file_tables;
mod none;
#[cfg(feature = "lab")]
mod unfenced;
mod vma_lock;

use alloc::boxed::Box;
use core::ops::Range;

pub(crate) use adopted_table::Table;
use filetables::Protection;

use crate::addr::VirtAddr;
use crate::error::{FaultError, OutOfMemory};
use crate::file::File;
use crate::machine::Machine;
use crate::mapping::{Area, Batch, Exclusive, Fault, Placement};
use crate::pool::Page;
use crate::sync::{Arc, ReadGuard, WriteGuard};

/// How page tables are shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProtocolKind {
    /// Not at all: each mapping has tables of its own. For comparison.
    None,
    /// Tables adopted from a partner, and faults that nothing fences: Linux before 5.7. It **corrupts memory**, and is
    /// there to show it.
    #[cfg(feature = "lab")]
    Unfenced,
    /// Tables adopted from a partner; faults are fenced by one lock of the file (Linux 5.7 to 6.0).
    FileLock,
    /// Tables adopted from a partner; faults are fenced by the mapping's own reader/writer lock (Linux 6.1 and later).
    VmaLock,
    /// Tables that belong to the file, as its pages do.
    FileTables,
}

impl ProtocolKind {
    /// The protocols by the names that `hugetlb_sharing=` takes.
    pub const ALL: &[(&'static str, ProtocolKind)] = &[
        ("none", ProtocolKind::None),
        #[cfg(feature = "lab")]
        ("unfenced", ProtocolKind::Unfenced),
        ("file-lock", ProtocolKind::FileLock),
        ("vma-lock", ProtocolKind::VmaLock),
        ("file-tables", ProtocolKind::FileTables),
    ];

    /// Names of protocols that only builds with the feature `lab` have: they are wrong, to be seen going wrong.
    pub const LAB_ONLY: [&'static str; 1] = ["unfenced"];

    /// The protocol of a name, if this build has it.
    pub fn from_name(name: &str) -> Option<ProtocolKind> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    /// The name of the protocol.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    pub(crate) fn protocol<M: Machine>(self) -> Box<dyn Protocol<M>> {
        match self {
            ProtocolKind::None => Box::new(none::NoSharing),
            #[cfg(feature = "lab")]
            ProtocolKind::Unfenced => Box::new(adopted::Adopted(unfenced::Unfenced)),
            ProtocolKind::FileLock => Box::new(adopted::Adopted(file_lock::FileLock)),
            ProtocolKind::VmaLock => Box::new(adopted::Adopted(vma_lock::VmaLock)),
            ProtocolKind::FileTables => Box::new(file_tables::FileTables),
        }
    }
}

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
pub(crate) enum Change<M: Machine> {
    /// The entries in tables of the host.
    Host,
    /// Nothing.
    Done,
    /// Those of the table, which is the mapping's alone until the batch is finished.
    InPlace(Arc<Table<M>>),
}

/// A protocol: when a mapping shares a table, and what protects a fault from losing it.
pub(crate) trait Protocol<M: Machine>: Send + Sync {
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
    ) -> (Change<M>, Option<VirtAddr>);

    /// A shared mapping is about to be cut at an address inside: leaves the slot that the cut goes through. Returns whether
    /// the slot has parts that the mapping attaches again afterwards.
    fn leave_cut_slot(
        &self,
        area: &Area<M>,
        placement: &Exclusive<'_, M>,
        at: VirtAddr,
        batch: &mut Batch<'_, M>,
    ) -> bool;

    /// Puts an empty table of the host in the place of the table that the mapping shares in the slot at `address`. Returns whether
    /// it shared one there.
    fn leave_slot(
        &self,
        area: &Area<M>,
        placement: &Exclusive<'_, M>,
        address: VirtAddr,
        batch: &mut Batch<'_, M>,
    ) -> Result<bool, OutOfMemory>;

    /// Clears the entries of the listed mappings for a run of indices, which are locked: none is left afterwards.
    fn unmap_for_good(&self, file: &File<M>, run: Range<u64>);
}
