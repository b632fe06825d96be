//! A simulated machine with a TLB per CPU, to test `hugetlb` on.
//!
//! Memory is simulated page by page: real page tables in frames that are reused at once, huge pages of a few words each
//! that are poisoned when they are freed. Each [`Cpu`] has a TLB and a paging-structure cache, **which are filled on a miss
//! and emptied by nothing but a flush**. So a flush that the library forgets is a TLB that contradicts the tables
//! ([`SimMachine::check`]), a frame that is freed under a translation (a panic), or poison that a program reads.
//!
//! The machine is of any architecture that the library knows: the [`Format`](hugetlb::Format) of its entries is a parameter,
//! and [`Rules`] say what its hardware does differently.
//!
//! A [`Process`] plays the host kernel: it keeps the mappings, resolves faults, and frees its own tables.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod conformance;
mod cpu;
mod machine;
mod memory;
mod process;
mod rules;
mod space;

pub use cpu::{Cpu, PageFault};
pub use machine::SimMachine;
pub use memory::{POISON, WORDS};
pub use process::{Process, Signal};
pub use rules::Rules;
pub use space::SimSpace;
