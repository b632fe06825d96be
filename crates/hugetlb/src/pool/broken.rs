//! Pages whose memory breaks: out of the pool, and what takes their place.

use super::Pool;
use crate::addr::PhysAddr;
use crate::machine::Machine;

/// A frame that takes the place of another page's.
pub(crate) struct Successor {
    pub(super) frame: PhysAddr,
    /// The pool counts it beside the other page; else it has the other one's place in the counters.
    pub(super) is_counted: bool,
}

impl<M: Machine> Pool<M> {
    /// A frame for a page in use that takes the place of another: a free one that nobody is promised, else one of the machine's, whatever
    /// the limits are, since the other one goes.
    pub(crate) fn take_successor(&self) -> Option<Successor> {
        {
            let mut state = self.state.lock();
            if state.unreserved() > 0
                && let Some(frame) = state.free.pop()
            {
                return Some(Successor { frame, is_counted: true });
            }
        }
        // Counted at no time: a pool that was larger by the page for a moment would give another one back meanwhile.
        let frame = self.machine.allocate_huge(self.size)?;
        Some(Successor { frame, is_counted: false })
    }

    /// A page in use is none of the pool's any more: a surplus one if there are any.
    pub(super) fn count_out(&self) {
        let mut state = self.state.lock();
        state.total -= 1;
        state.surplus = state.surplus.saturating_sub(1);
        state.persistent = state.total - state.surplus;
    }
}
