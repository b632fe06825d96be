//! What a file has at an index.

use crate::addr::PhysAddr;
use crate::sync::Arc;

/// A page, or a handle that keeps one.
pub trait Frame: Send + Sync + 'static {
    /// Where the page is.
    fn frame(&self) -> PhysAddr;

    /// Whether tables show the page. One that has a place and nothing in it may wait for its first fault: the owner then changes it by
    /// [`FileTables::amend`](crate::FileTables::amend), which shows it.
    fn is_shown(&self) -> bool {
        true
    }
}

impl<T: Frame> Frame for Arc<T> {
    fn frame(&self) -> PhysAddr {
        (**self).frame()
    }

    fn is_shown(&self) -> bool {
        (**self).is_shown()
    }
}
