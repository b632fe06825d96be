//! Turns of those who read one stream: what each takes is in one piece.
//!
//! It is no lock: who waits for a turn can be interrupted and has a deadline, since the one whose turn it is may wait for a page of the program's
//! that comes late or never. Nobody keeps the turn while he waits for data.

use core::sync::atomic::{AtomicBool, Ordering};

use super::options::wait_error;
use crate::errno::Result;
use crate::sync::WaitQueue;

/// Whose turn it is.
pub struct Turns {
    taken: AtomicBool,
    free: WaitQueue,
}

/// The turn, until it is dropped.
pub struct Turn<'a>(&'a Turns);

impl Turns {
    pub const fn new() -> Self {
        Self { taken: AtomicBool::new(false), free: WaitQueue::new() }
    }

    /// A turn if it is nobody's.
    pub fn try_take(&self) -> Option<Turn<'_>> {
        // Acquire pairs with the Release in `drop`: what the one before took is seen as taken.
        let taken = self.taken.swap(true, Ordering::Acquire);
        (!taken).then(|| Turn(self))
    }

    /// Waits for a turn. `deadline` and `timeout` are those of the receive: `EAGAIN`, `EINTR`.
    pub fn take(&self, deadline: Option<u64>, timeout: u64) -> Result<Turn<'_>> {
        self.free.wait_event(deadline, || self.try_take()).map_err(|error| wait_error(error, timeout))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Release: see `try_take`.
        self.0.taken.store(false, Ordering::Release);
        self.0.free.wake_one();
    }
}
