//! From the loader to `kernel_main`: the entries, what the loaders pass, and the start of the other CPUs.

pub mod cmdline;
mod entry;
mod fw_cfg;
pub mod info;
mod multiboot;
mod pvh;
pub mod trampoline;
