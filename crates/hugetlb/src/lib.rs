//! Huge pages as files, whose page tables are shared.
//!
//! This crate is hugetlbfs for any kernel written in Rust: pools of huge pages, reservations, files with a page
//! cache, mappings with their fault path, and page tables that processes share. It walks and writes page tables
//! through a [`Machine`] and a [`Space`] that the host kernel implements, and has no unsafe code of its own.
//!
//! Begin with [`Hugetlb`], the whole subsystem; it makes a [`Superblock`] for each mount, that makes a [`File`] for each
//! inode, and [`File::map`] makes a [`Mapping`] for each VMA. What the host must do is in [`machine`].
//!
//! Each module uses those below it only: the ladder is in ARCHITECTURE.md.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, clippy::must_use_candidate)]

extern crate alloc;
#[cfg(any(test, roundtable_model))]
extern crate std;

// First: its macros are for all others.
#[doc(hidden)]
#[macro_use]
pub mod mutant;

#[macro_use]
mod protocol;

mod addr;
mod area;
mod error;
mod file;
mod hugetlb;
pub mod machine;
mod mapping;
mod operation;
mod payer;
mod pool;
mod range_list;
mod reserve;
mod sharing;
mod state;
mod stats;
mod superblock;
pub mod sync;
#[cfg(test)]
mod testing;
mod token;

/// Compiles the example in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub use addr::{PageIndex, PageSize, PhysAddr, SLOT_SIZE, TABLE_ENTRIES, TABLE_SIZE, VirtAddr};
pub use error::{Error, FaultError, OutOfMemory, Result};
pub use file::{Chunk, File, FileStatistics, MAX_FILE_SIZE, PageRef};
pub use filetables::{self, EntryValue, Format, Level, Protection, lock_api};
pub use hugetlb::{Config, Hugetlb};
pub use machine::{Entry, Flush, Machine, Space, TableEntries};
pub use mapping::{CheckRound, Mapping, Presence, Resident};
pub use operation::{FallocateMode, MapOptions, MapRequest};
pub use payer::{Expense, Payer, Refused};
pub use pool::{Pool, PoolStatistics};
pub use protocol::ProtocolKind;
pub use sharing::{Access, Fill};
pub use stats::{Fallback, SharingStatistics};
pub use superblock::{HUGETLBFS_MAGIC, InodeCharge, Limit, MountOptions, MountStatistics, Superblock};
pub use token::SpaceToken;
