//! What a file has at an index.

use crate::addr::PhysAddr;
use crate::sync::Arc;

/// A page, or a handle that keeps one.
pub trait Frame: Send + Sync + 'static {
    /// Where the page is.
    fn frame(&self) -> PhysAddr;
}

impl<T: Frame> Frame for Arc<T> {
    fn frame(&self) -> PhysAddr {
        (**self).frame()
    }
}
