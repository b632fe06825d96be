//! Invariant 5, to be looked at by tests while no operation is under way: a pool's counters fit together.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Pool;
use crate::addr::PhysAddr;
use crate::machine::Machine;

impl<M: Machine> Pool<M> {
    /// The frames that are free.
    pub(crate) fn free_frames(&self) -> Vec<PhysAddr> {
        self.state.lock().free.clone()
    }

    /// Whether a frame is on the list of free ones.
    pub(super) fn is_free(&self, frame: PhysAddr) -> bool {
        self.state.lock().free.contains(&frame)
    }

    /// Checks the counters at rest. [`Pool::statistics`] cannot tell that fewer than no pages are promised; this can.
    ///
    /// # Errors
    ///
    /// The counters.
    #[doc(hidden)]
    pub fn check(&self) -> core::result::Result<(), String> {
        let state = self.state.lock();
        let free = state.free.len() as u64;
        let promised = u64::try_from(state.reserved).is_ok_and(|reserved| reserved <= free);
        if promised && free <= state.total && state.total.checked_sub(state.surplus) == Some(state.persistent)
        {
            return Ok(());
        }
        Err(format!(
            "invariant 5: {} pages, {free} free, {} promised, {} surplus, {} persistent",
            state.total, state.reserved, state.surplus, state.persistent
        ))
    }
}
