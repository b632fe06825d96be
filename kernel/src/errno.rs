//! The error type of the kernel: Linux error numbers.

pub use syscalls::Errno;

/// What every fallible kernel function returns.
pub type Result<T, E = Errno> = core::result::Result<T, E>;
