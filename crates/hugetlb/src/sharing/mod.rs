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
//! [`filetables`]. The protocols are listed in [`crate::protocol`], one line each. What a protocol has to know of a file, of a
//! mapping, or of what waits for a flush is a type of its own, which nobody else sees: [`State`](crate::state::State), [`Later`].
//!
//! The library changes PUD entries with managed tables under the mapping lock: for reading when it attaches (entries go
//! from empty to present, one attachment at a time), for writing when it detaches. Several mappings may have a part of one
//! slot each: only the one that is attached changes a managed entry, and it alone can take it back, see
//! [`crate::Mapping::leave_slot`].

mod adopted;
mod batch;
mod fault;
mod seam;

pub(crate) use batch::{Batch, Later};
pub use fault::{Access, Fill};
pub(crate) use fault::{Fault, publish};
pub(crate) use seam::{Change, Protocol, Purpose, Table, next_slot};

use crate::file::File;
use crate::machine::Machine;
use crate::protocol::ProtocolKind;

macro_rules! modules {
    ($($kind:ident = $name:literal $(if $feature:literal)? in $module:ident, $meaning:literal;)*) => {
        $($(#[cfg(feature = $feature)])? mod $module;)*

        impl ProtocolKind {
            /// What the protocol does.
            pub(crate) fn protocol<M: Machine>(self) -> &'static dyn Protocol<M> {
                match self {
                    $($(#[cfg(feature = $feature)])? ProtocolKind::$kind => &$module::PROTOCOL,)*
                }
            }
        }
    };
}

protocols!(modules);

impl<M: Machine> File<M> {
    /// How the file's tables are shared.
    pub(crate) fn protocol(&self) -> &'static dyn Protocol<M> {
        self.hugetlb().protocol_kind().protocol()
    }
}
