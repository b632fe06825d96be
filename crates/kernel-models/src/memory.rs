//! Memory, of which there is always enough here.

/// Allocations that may fail in the kernel.
pub mod fallible {
    use alloc::vec::Vec;

    use crate::errno::Errno;

    /// As the kernel's.
    pub fn with_capacity<T>(count: usize) -> Result<Vec<T>, Errno> {
        Ok(Vec::with_capacity(count))
    }
}
