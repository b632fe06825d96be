//! Reservations in the pool, and the surplus pages that back them.

use alloc::vec::Vec;

use super::Pool;
use crate::addr::PhysAddr;
use crate::error::{Error, Result};
use crate::machine::Machine;

impl<M: Machine> Pool<M> {
    /// Promises `pages` more pages, for which free pages are added from the machine within the overcommit limit.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`] when the pool cannot keep the promise; nothing has changed then.
    pub(crate) fn reserve(&self, pages: u64) -> Result<()> {
        if pages == 0 {
            return Ok(());
        }
        let wanted = i64::try_from(pages).map_err(|_| Error::NoMemory)?;
        let mut added: Vec<PhysAddr> = Vec::new();
        let result = loop {
            let mut state = self.state.lock();
            let needed = wanted.saturating_sub(state.unreserved()).max(0) as u64;
            let have = added.len() as u64;
            if needed <= have {
                state.reserved += wanted;
                for _ in 0..needed {
                    // Frames of `added` are counted in `total`, for which the list has room.
                    state.free.extend(added.pop());
                }
                break Ok(());
            }
            // Refuse what cannot be met before taking the machine's memory for it.
            if needed - have > state.overcommit.saturating_sub(state.surplus) {
                break Err(Error::NoMemory);
            }
            drop(state);
            match self.grow_surplus() {
                Some(frame) => added.push(frame),
                None => break Err(Error::NoMemory),
            }
        };
        // Pages came free in the meantime, or the promise failed.
        for frame in added {
            self.give(frame, false);
        }
        result
    }

    /// Takes back a promise of `pages` that were not used, and the free surplus pages that backed it.
    pub(crate) fn unreserve(&self, pages: u64) {
        if pages == 0 {
            return;
        }
        let mut freed = Vec::new();
        let mut state = self.state.lock();
        state.reserved -= pages as i64;
        // 1 GiB pages, too: Linux 6.12 keeps those, so that its pool does not return to where it was; later ones do not.
        let most = pages.min(state.surplus);
        for _ in 0..most {
            if state.unreserved() <= 0 {
                break;
            }
            let Some(frame) = state.remove_free() else { break };
            state.surplus -= 1;
            freed.push(frame);
        }
        drop(state);
        for frame in freed {
            self.machine.free_huge(self.size, frame);
        }
    }

    /// A frame from the machine as a surplus page in use; `None` at the overcommit limit or when memory is short.
    pub(super) fn grow_surplus(&self) -> Option<PhysAddr> {
        {
            // Counted before it is allocated, so that two callers cannot both pass the limit.
            let mut state = self.state.lock();
            if state.surplus >= state.overcommit {
                return None;
            }
            state.surplus += 1;
            state.account_new();
        }
        let frame = self.machine.allocate_huge(self.size);
        if frame.is_none() {
            let mut state = self.state.lock();
            // A resize may have declared it persistent meanwhile.
            state.surplus = state.surplus.saturating_sub(1);
            state.total -= 1;
            state.persistent = state.total - state.surplus;
        }
        frame
    }
}
