//! Memory, of which there is always enough here.

pub mod frame;

/// A physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysAddr(pub u64);

/// Allocations that may fail in the kernel.
pub mod fallible {
    use alloc::boxed::Box;

    use crate::errno::Errno;

    /// As the kernel's.
    pub fn boxed<T>(value: T) -> Result<Box<T>, Errno> {
        Ok(Box::new(value))
    }
}
