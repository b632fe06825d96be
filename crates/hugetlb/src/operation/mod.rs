//! The operations of a file that concern its mappings: what a host's system calls come to.

mod create;
mod fallocate;
mod map;
mod truncate;

pub use fallocate::FallocateMode;
pub use map::{MapOptions, MapRequest};
