//! Pages whose memory breaks: out of the pool, and what takes their place.

use super::Pool;
use crate::addr::PhysAddr;
use crate::machine::Machine;

impl<M: Machine> Pool<M> {
    /// A frame for a page in use that takes the place of another: a free one that nobody is promised, else one of the machine's, whatever
    /// the limits are: the other one goes soon.
    pub(crate) fn take_successor(&self) -> Option<PhysAddr> {
        {
            let mut state = self.state.lock();
            if state.unreserved() > 0
                && let Some(frame) = state.free.pop()
            {
                return Some(frame);
            }
        }
        let frame = self.machine.allocate_huge(self.size)?;
        let Ok(mut state) = self.lock_with_room(1) else {
            self.machine.free_huge(self.size, frame);
            return None;
        };
        state.total += 1;
        state.persistent = state.total - state.surplus;
        Some(frame)
    }

    /// A page in use is none of the pool's any more: a surplus one if there are any.
    pub(super) fn count_out(&self) {
        let mut state = self.state.lock();
        state.total -= 1;
        state.surplus = state.surplus.saturating_sub(1);
        state.persistent = state.total - state.surplus;
    }
}
