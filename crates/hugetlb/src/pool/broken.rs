//! Pages whose memory breaks: out of the pool, and what takes their place.

use super::Pool;
use crate::addr::PhysAddr;
use crate::machine::Machine;

impl<M: Machine> Pool<M> {
    /// A frame for a page in use that takes the place of another: a free one that nobody is promised, else one of the machine's, whatever
    /// the limits are: the other one goes soon.
    pub(crate) fn take_successor(&self) -> Option<PhysAddr> {
        let order = self.wanted_nodes();
        {
            let mut state = self.state.lock();
            if state.unreserved() > 0
                && let Some(frame) = state.pop(&order)
            {
                return Some(frame);
            }
        }
        let frame = self.machine.allocate_huge(self.size)?;
        let Ok(mut state) = self.lock_with_room(1) else {
            self.machine.free_huge(self.size, frame);
            return None;
        };
        state.count_in(self.node_of(frame), 1);
        state.persistent = state.total - state.surplus;
        Some(frame)
    }

    /// A page in use is none of the pool's any more: a surplus one if its node has any.
    pub(super) fn count_out(&self, frame: PhysAddr) {
        let node = self.node_of(frame);
        let mut state = self.state.lock();
        if state.has_surplus(node) {
            state.count_surplus_out(node);
        } else {
            state.count_out(node);
        }
        state.persistent = state.total - state.surplus;
    }
}
