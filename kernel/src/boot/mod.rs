//! From the loader to `kernel_main`: the PVH entry, what the loader passes, and the start of the other CPUs.

pub mod cmdline;
mod entry;
pub mod info;
pub mod trampoline;
