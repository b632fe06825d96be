//! Models of the kernel's sleeping, waking, idling, timer arming, of its list of attached regions, and of the tables that
//! processes share since a fork: the kernel's own files, scheduled by loom.
//!
//! The modules have the names that they have in the kernel, and hold the files themselves where these are what is modelled. What
//! stands around them is imitated: a thread has a CPU of its own here ([`sched::switch`]), or two CPUs share queues ([`cpu`]).
//! [`sync::mutant`] breaks one thing at a time, and a model has to notice.
// The files are parts of a larger whole.
#![allow(dead_code, unused_imports, clippy::new_without_default, clippy::reversed_empty_ranges)]

extern crate alloc;

pub mod arch;
pub mod cpu;
pub mod errno;
pub mod fs;
pub mod memory;
pub mod mm;
pub mod mshare;
pub mod process;
pub mod sched;
pub mod sync;
pub mod time;
