//! What the Linux programs here share: a small test library and thin covers over system calls.

pub mod card;
pub mod cgroup;
pub mod child;
pub mod exhaust;
pub mod fault;
pub mod file;
pub mod harness;
pub mod held;
pub mod huge;
pub mod inet;
pub mod inject;
pub mod kinds;
pub mod leak;
pub mod mem;
pub mod mshare;
pub mod namespaces;
pub mod ordinary;
pub mod place;
pub mod procfs;
pub mod propagation;
pub mod rng;
pub mod rows;
pub mod seccomp;
pub mod shared;
pub mod sharing;
pub mod signals;
pub mod socket;
pub mod sys;
pub mod timers;
pub mod tracing;
pub mod uffd;

pub use nix::errno::Errno;
