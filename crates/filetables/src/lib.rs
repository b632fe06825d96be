//! Page tables that belong to files, shared by all who map them.
//!
//! A file has pages by index: huge pages of hugetlbfs, or the 4 KiB pages of shared memory. This crate keeps them
//! ([`FileTables`]), and beside them the page tables that show them. A process that maps the file does not fill tables
//! of its own: it *attaches*, by one entry, to a table of the file. Ten thousand processes are attached to one table.
//!
//! # The guarantee
//!
//! *Inside its window, a table says what the file says.* A page that is added appears in all tables at once; a page
//! that is taken out has left all of them when the call returns, and every TLB after the flush that follows. No process
//! owns a table, so none can take it away: there is no unsharing, and nothing for a fault to race with.
//!
//! # The key
//!
//! A table has a [`Window`]: which pages of the file it shows, in which entries. Mappings with the same window share
//! the table, whatever their addresses and lengths are otherwise. What a mapping permits stands in the process's own
//! entry, where the architecture combines rights over the levels; else ([`Format::RIGHTS_COMBINE`]) the rights are part
//! of the window.
//!
//! | table | its entries | its window |
//! | --- | --- | --- |
//! | of leaves | lead to pages | any part of what a table spans |
//! | above | lead to tables of the same file | all of what it spans |
//!
//! The level is a parameter: with 2 MiB pages the PMD tables have leaves, and a PUD table above them shows 512 GiB. A
//! process that maps 1 TiB, aligned, has two entries and no table for it.
//!
//! # Pieces and locks
//!
//! The file is cut into *pieces* of as many pages as a table has entries. A piece has its pages and the notes of the
//! tables that show them; a spin lock (of its stripe: pieces share 64 of them) guards both. Who adds a page or takes
//! one out writes the entries in the same section. A window whose phase is not 0 lies over two pieces: its entries of
//! each are that piece's. Nothing on the way of a page takes a lock of the whole file, and nothing allocates, waits or
//! flushes under a lock.
//!
//! Locks, outermost first: tables above by level, highest first; a stripe. Two stripes are never held at once.
//!
//! # Lifetime
//!
//! A table is made when a mapping attaches to a window that has a page, never for an empty window. It lives while
//! entries lead to it, which it counts. A mapping clears its entry, flushes its TLBs, and only then is counted out; the
//! last one out takes the table away. Its memory is reused after a grace period, so a walker without locks never reads
//! another's table.
//!
//! # Whom to flush
//!
//! The file knows the address spaces that are attached to any of its tables. A shootdown asks each CPU whether it runs
//! one of them. What it costs depends on the CPUs, not on the sharers.
//!
//! # Cost
//!
//! | operation | steps |
//! | --- | --- |
//! | look a page up, add it, take it out | O(log pieces) + the windows over its piece, at most 16 |
//! | attach a mapping | its windows with pages, each O(log pieces); one for 512 GiB |
//! | attach one more process to a table that is there | one entry |
//! | detach | one entry and this process's flush for each table |
//! | make a table | 512 entries, 64 of them with one hold of a lock |
//!
//! The number of sharers, of other mappings, and of windows elsewhere in the file appears in none of them. Loops that a
//! user can make long call [`Machine::give_way`]. When memory is short an operation fails and leaves everything as it
//! was.
//!
//! # What the host must do
//!
//! Implement [`Machine`] and [`Space`], and keep to [the rule of ownership](machine). This crate has no unsafe code.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, clippy::must_use_candidate)]

extern crate alloc;
#[cfg(any(test, roundtable_model))]
extern crate std;

// First: its macros are for all others.
#[macro_use]
#[doc(hidden)]
pub mod mutant;

mod addr;
mod attach;
mod check;
mod content;
mod counts;
mod error;
pub mod format;
mod frame;
mod levels;
mod lock;
pub mod machine;
mod memory;
mod piece;
mod spaces;
mod stripe;
pub mod sync;
mod tables;
#[cfg(all(test, not(roundtable_model)))]
mod testing;
#[cfg(all(test, not(roundtable_model)))]
mod tests;
mod uppers;
mod window;

pub use addr::{Level, PhysAddr, TABLE_ENTRIES, TABLE_SIZE, VirtAddr};
pub use attach::{AttachTally, Attached, Found};
pub use check::Seen;
pub use content::{REMOVED_AT_A_TIME, Removed};
pub use counts::{Counts, Totals};
pub use error::{InsertError, OutOfMemory};
pub use format::{EntryValue, Format, Protection};
pub use frame::Frame;
pub use lock_api;
pub use machine::{Entry, Machine, Space, TableEntries};
pub use tables::FileTables;
pub use window::{Extent, HIGHEST, Slot, Window};
