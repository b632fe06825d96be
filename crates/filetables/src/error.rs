//! What can go wrong.

use core::fmt;

/// There was no memory for a page table, or for a record of one. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfMemory;

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no memory for a page table")
    }
}

impl core::error::Error for OutOfMemory {}

impl From<summary_tree::OutOfMemory> for OutOfMemory {
    fn from(_: summary_tree::OutOfMemory) -> OutOfMemory {
        OutOfMemory
    }
}

/// Why a page could not be added to the content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InsertError {
    /// The index lies at or behind the end.
    BeyondEnd,
    /// The index has a page.
    Occupied,
    /// There was no memory for the record.
    OutOfMemory,
}

impl From<OutOfMemory> for InsertError {
    fn from(_: OutOfMemory) -> InsertError {
        InsertError::OutOfMemory
    }
}

impl fmt::Display for InsertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InsertError::BeyondEnd => "the page lies behind the end of the content",
            InsertError::Occupied => "the content has a page there",
            InsertError::OutOfMemory => "no memory for the record of a page",
        })
    }
}

impl core::error::Error for InsertError {}
