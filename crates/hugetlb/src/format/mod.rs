//! The format of page-table entries of the architecture that the host runs on.
//!
//! Everything that knows a bit of an entry is in the one file that this module re-exports. The rest of the library asks
//! for leaves by [`Protection`] and for table entries by address, so an architecture without hierarchical permissions
//! (RISC-V) can come as a second file.

mod x86_64;

pub use x86_64::*;
