//! Invariant 5, to be looked at by tests while no operation is under way: a pool's counters fit together.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Pool;
use super::free::CHUNK as FREE_AT_A_TIME;
use crate::addr::PhysAddr;
use crate::machine::Machine;

impl<M: Machine> Pool<M> {
    /// The frames that are free.
    pub(crate) fn free_frames(&self) -> Vec<PhysAddr> {
        let mut frames = Vec::new();
        // Chunk by chunk: what comes and goes meanwhile may be missed.
        for number in 0.. {
            // Room first, not under the lock. Without memory the list is shorter, and finds less.
            if frames.try_reserve(FREE_AT_A_TIME).is_err() {
                break;
            }
            let state = self.state.lock();
            let Some(chunk) = state.free.chunk(number) else { break };
            frames.extend_from_slice(chunk);
            drop(state);
            self.machine.give_way();
        }
        frames
    }

    /// Whether a frame is on the list of free ones.
    pub(super) fn is_free(&self, frame: PhysAddr) -> bool {
        let state = self.state.lock();
        (0..).map_while(|number| state.free.chunk(number)).any(|chunk| chunk.contains(&frame))
    }

    /// Checks the counters at rest. [`Pool::statistics`] cannot tell that fewer than no pages are promised; this can.
    ///
    /// # Errors
    ///
    /// The counters.
    #[doc(hidden)]
    pub fn check(&self) -> core::result::Result<(), String> {
        let state = self.state.lock();
        let free = state.free.len();
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
