//! User memory: address spaces, page faults, system calls on memory, program loading.
//!
//! An [`AddressSpace`] has two locks. The *areas lock*, a sleeping reader/writer lock, guards the set of areas: page faults and reports read,
//! everything that changes areas writes. The *page-table lock*, a spin lock, guards the tables: faults on several CPUs run at the same
//! time and meet only for the moment in which an entry changes. Truncation of a file takes only the page-table lock. Who only looks ([`walk`])
//! takes none of them.
//!
//! Shared memory uses page tables of its files where it can: [`windows`] has the protocol. Private memory
//! shares tables after a fork until somebody stores: [`fork_tables`], [`fork_files`].
//!
//! Rules:
//! * Nothing touches user memory through `uaccess` with a lock of an address space held.
//! * Entries that lose rights or go away are flushed from all CPUs that run the space before their frames are freed ([`gather`]).
//! * Files are let go of after the areas lock is released: the last close may sleep and take any lock ([`Leftovers`]).
//!
//! Lock order: areas lock, areas lock of a region, a file's list of mappings, page-table lock.

pub mod accounting;
mod advise;
pub mod anonymous;
mod attach;
pub mod backing;
mod brk;
pub mod broken;
pub mod check;
mod entry;
pub mod exec;
pub mod fault;
mod few_pages;
mod file_pages;
pub mod file_tables;
mod fork;
mod fork_files;
pub mod fork_tables;
mod forked;
pub mod futex;
mod gaps;
mod gather;
mod layout;
mod lock;
mod map;
pub mod mshare;
pub mod nodes;
pub mod page_store;
pub mod policy;
mod protect;
mod query;
mod remap;
mod remote;
pub mod scan;
mod seal;
pub mod shm;
pub mod space;
mod tables;
pub mod uaccess;
pub mod userfault;
pub mod vdso;
pub mod view;
mod vma;
mod walk;
mod windows;

pub use futex::{Key, futex_key};
pub use map::{MapRequest, huge_size};
pub use remote::Rights;
pub use space::{AddressSpace, Areas, cpus_running};
pub use tables::{NoMemory, NoTable, PageTables, entries as table_entries};
pub use vma::VmFlags;

use crate::memory::{PAGE_SIZE, USER_END};
use crate::process;

/// Bytes of a base page.
pub const PAGE: u64 = PAGE_SIZE as u64;
/// User addresses are below.
pub const TASK_SIZE: u64 = USER_END;

/// `value` up to the next multiple of the base page; `None` on overflow.
pub const fn page_up(value: u64) -> Option<u64> {
    match value.checked_add(PAGE - 1) {
        Some(sum) => Some(sum & !(PAGE - 1)),
        None => None,
    }
}

/// `value` down to a multiple of the base page.
pub const fn page_down(value: u64) -> u64 {
    value & !(PAGE - 1)
}

/// The calling process's soft limit for `resource`; none during bring-up.
fn limit(resource: u32) -> u64 {
    process::try_current().map_or(u64::MAX, |thread| thread.process.limit(resource as usize))
}

/// Builds what must be ready before the first program.
pub fn init() {
    fault::init();
    vdso::init();
}
