//! Sharing of PMD tables between mappings of a file: the seam for protocols.
//!
//! # The guarantee
//!
//! A fault writes a leaf only into a table that its own mapping is attached to for as long as the write takes, and a page
//! is given back only after every TLB that may hold it was flushed. Each protocol is one file that says how it keeps the
//! first half; the second is kept here, for all of them:
//!
//! * A [`Table`] counts the mappings attached to it, and nothing else; the count rises from 1 or more only. A mapping that
//!   detaches clears its PUD entry, flushes its TLBs, and only *then* is counted out. So a count of 1 means that no
//!   other TLB holds anything of the table.
//! * Entries of a table that several mappings are attached to are added (under the fault mutex of their index) but never
//!   changed or taken away. Whoever wants to change entries detaches; or, when it is alone, *closes* the table to newcomers,
//!   changes them in place, flushes, and opens it again.
//! * The last that is counted out takes the entries down and retires the frame.
//!
//! The library changes PUD entries with managed tables under the mapping lock: for reading when it attaches (entries go
//! from empty to present, serialised by the file's attach mutex), for writing when it detaches.

mod none;
mod table;
mod vma_lock;

use alloc::boxed::Box;

pub(crate) use table::Table;

use crate::addr::{PageIndex, SLOT_SIZE, VirtAddr};
use crate::error::OutOfMemory;
use crate::file::File;
use crate::format::Protection;
use crate::machine::Machine;
use crate::mapping::{Area, Batch};
use crate::sync::Arc;

/// How page tables are shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProtocolKind {
    /// Not at all: each mapping has tables of its own. For comparison.
    None,
    /// Tables adopted from a partner; faults are fenced by the mapping's own reader/writer lock (Linux 6.1 and later).
    VmaLock,
}

impl ProtocolKind {
    /// The protocols by the names that `hugetlb_sharing=` takes.
    pub const ALL: [(&'static str, ProtocolKind); 2] =
        [("none", ProtocolKind::None), ("vma-lock", ProtocolKind::VmaLock)];

    /// Names of protocols that only builds with the feature `lab` have: they are wrong, to be seen going wrong.
    pub const LAB_ONLY: [&'static str; 1] = ["unfenced"];

    /// The protocol of a name, if this build has it.
    pub fn from_name(name: &str) -> Option<ProtocolKind> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    /// The name of the protocol.
    pub fn name(self) -> &'static str {
        match self {
            ProtocolKind::None => "none",
            ProtocolKind::VmaLock => "vma-lock",
        }
    }

    pub(crate) fn protocol<M: Machine>(self) -> Box<dyn Protocol<M>> {
        match self {
            ProtocolKind::None => Box::new(none::NoSharing),
            ProtocolKind::VmaLock => Box::new(vma_lock::VmaLock),
        }
    }
}

/// A 1 GiB slot that one shared mapping covers wholly: what can have a shared table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Its first address.
    pub(crate) start: VirtAddr,
    /// The file's page index there.
    pub(crate) base: PageIndex,
    /// What the mapping permits; leaves of an adopted table say the same.
    pub(crate) protection: Protection,
}

/// What is to become of the entries of a slot that are to change.
pub(crate) enum Change<M: Machine> {
    /// The slot has no table of the library.
    NoTable,
    /// The mapping gave its table up; there is nothing left to change.
    Detached,
    /// The table is the mapping's alone until the batch is finished: change the entries.
    InPlace(Arc<Table<M>>),
}

/// A protocol: when a mapping shares a table, and what protects a fault from losing it.
pub(crate) trait Protocol<M: Machine>: Send + Sync {
    /// The table that a fault in `slot` writes to; attaches one on need. `None`: the slot has tables of the host.
    ///
    /// The area's lock is held for reading and the fault mutex of the index is held.
    fn table_for_fault(
        &self,
        file: &File<M>,
        area: &Area<M>,
        slot: Slot,
    ) -> Result<Option<Arc<Table<M>>>, OutOfMemory>;

    /// Prepares a change of entries in the slot with file index `base` at its start. `keep` tells whether some entries
    /// are to stay: if not, the table is given up as a whole.
    ///
    /// The area's lock is held for writing.
    fn prepare_change(
        &self,
        area: &Area<M>,
        start: VirtAddr,
        base: PageIndex,
        keep: bool,
        batch: &mut Batch<'_, M>,
    ) -> Change<M>;
}

/// The entry of a table for an address.
pub(crate) fn entry_index(address: VirtAddr) -> usize {
    ((address.0 & (SLOT_SIZE - 1)) >> 21) as usize
}
