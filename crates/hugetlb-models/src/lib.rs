//! Models of hugetlb's races: the library's real code, scheduled by loom or shuttle.
//!
//! A model is two or three threads on a machine of two CPUs ([`ModelMachine`]) whose locks and atomics the checker
//! schedules. The machine looks for what must never happen: a page that is freed under a translation or an entry, a table
//! that is retired or used after its end, a program that reaches memory that was freed. The model itself looks at what its
//! programs read, and [`World`] at what is left at the end.
#![cfg(feature = "run")]
#![warn(missing_docs)]

mod explore;
mod lock;
mod machine;
pub mod models;
mod process;
mod space;
mod world;

pub use explore::{Explorer, spawn};
pub use machine::{CPUS, ModelMachine};
pub use process::{Process, Signal};
pub use space::{ModelSpace, WIDE};
pub use world::{PAGE, POOL, RW, SHARED, SLOT, World, stamp};
