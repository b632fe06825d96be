//! Regions: pieces of address space that processes share as a whole, mappings and page tables included.
//!
//! # The guarantee
//!
//! What changes in a region has changed for every process that has it attached when the call returns: the
//! mapping is there, is gone, or has its new rights, on every CPU. No process has an entry of its own that
//! could say otherwise.
//!
//! # How
//!
//! A [`Region`] has an [`AddressSpace`](super::AddressSpace) that no CPU ever loads: areas, locks, tables. It
//! is cut into parts of [`GRANULE`] bytes, which is what an entry of a root table spans. The table below that
//! is made with the region and stays until its end. A process attaches ([`RegionArea`]) by one entry in its
//! root for each part, which leads to that table. So:
//!
//! * Attaching writes all entries at once, whether there is anything in the region or not, and needs no table.
//! * Whatever comes and goes in the region is below the tables that the entries lead to: pages, page tables, huge pages, tables of files.
//! * The rights of an attachment are in the process's entry. x86-64 combines rights over the levels, so they hold for that process only.
//! * A fault in an attachment is the region's: it resolves there, by the same code as anywhere. It charges the process that touched.
//!
//! # Locks
//!
//! Outermost first: areas lock of the process, areas lock of the region, then as in [`super`]. Calls that
//! change a region take no lock of a process. The lists in [`spaces`] are innermost.
//!
//! # Races
//!
//! Each is named at the line that meets it.
//!
//! | who against whom | what meets it |
//! | --- | --- |
//! | attach, a change in the region | the list first, then the entry: `Spaces::attach`; tables stay: `Tables::free_below` |
//! | detach, a shootdown of the region | the entry, the flush, then the list: `Spaces::detach` |
//! | a process begins to run, a shootdown | `space::cpus_running` |
//! | exit, detach | the same, with no CPU to flush |
//! | fork, a change in the region | the child attaches as anybody does: `RegionArea::fork` |
//! | unlink or the creator's exit, use | references: `Region` |
//! | the region's end, an attach | an attach has a reference; the last is dropped without locks: `Region` |
//! | truncation of a file that is mapped inside | it finds the region's areas on the file's list, as any others: `super::backing` |
//! | a fault, an unmapping inside | the region's areas lock |
//! | a fault, an unmapping of the attachment | the process's areas lock |
//!
//! The face to user space is `crate::fs::msharefs`; nothing here depends on it.

mod area;
mod brought;
mod check;
mod region;
mod spaces;

pub use area::{RegionArea, RegionLeftover};
pub use check::check_all;
pub use region::{GRANULE, NewMapping, Region, Statistics, begin_decision, statistics, with_decision};

use alloc::collections::BTreeMap;

use spaces::{Part, Spaces};

/// What all address spaces have attached.
static SPACES: Spaces<64> = Spaces::new([const { Part::growing(BTreeMap::new()) }; 64]);

/// Has the address space a region attached of whose id `concerned` says yes? As [`Spaces::has_attached`].
pub fn has_attached(space: u64, concerned: &dyn Fn(u64) -> bool) -> bool {
    SPACES.has_attached(space, concerned)
}
