//! Huge pages as files, whose page tables are shared.
#![no_std]
#![warn(missing_docs)]
