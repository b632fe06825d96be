//! Huge pages as files, whose page tables are shared.
//!
//! This crate is hugetlbfs for any kernel written in Rust: pools of huge pages, reservations, files with a page
//! cache, mappings with their fault path, and page tables that processes share. It walks and writes page tables
//! through a [`Machine`] and a [`Space`] that the host kernel implements, and has no unsafe code of its own.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

mod addr;
mod error;
pub mod format;
pub mod machine;
mod sync;

pub use addr::{PageIndex, PageSize, PhysAddr, SLOT_SIZE, TABLE_SIZE, VirtAddr};
pub use error::{Error, FaultError, OutOfMemory, Result};
pub use machine::{Flush, Machine, Space, TableEntries};
