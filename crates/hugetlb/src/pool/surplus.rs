//! Reservations in the pool, and the surplus pages that back them.

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
        // Surplus pages that were added, each of them promised at once.
        let mut added = 0;
        let result = loop {
            {
                let mut state = self.state.lock();
                let missing = wanted - added;
                let needed = missing.saturating_sub(state.unreserved()).max(0) as u64;
                if needed == 0 {
                    state.reserved += missing;
                    break Ok(());
                }
                // Refuse what cannot be met before taking the machine's memory for it.
                if needed > state.overcommit.saturating_sub(state.surplus) {
                    break Err(Error::NoMemory);
                }
            }
            let Some(frame) = self.grow_surplus() else { break Err(Error::NoMemory) };
            {
                let mut state = self.state.lock();
                state.free.push(frame);
                state.reserved += 1;
            }
            added += 1;
            if self.machine.take_step().is_err() {
                break Err(Error::NoMemory);
            }
        };
        match result {
            // Pages that came free in the meantime do as well.
            Ok(()) => self.shed(added as u64),
            Err(_) => self.unreserve(added as u64),
        }
        result
    }

    /// Takes back a promise of `pages` that were not used, and the free surplus pages that backed it.
    pub(crate) fn unreserve(&self, pages: u64) {
        if pages == 0 {
            return;
        }
        let has_surplus = {
            let mut state = self.state.lock();
            state.reserved -= pages as i64;
            state.surplus > 0
        };
        // 1 GiB pages, too: Linux 6.12 keeps those, so that its pool does not return to where it was; later ones do not.
        if has_surplus {
            self.shed(pages);
        }
    }

    /// A frame from the machine as a surplus page in use; `None` at the overcommit limit or when memory is short.
    pub(super) fn grow_surplus(&self) -> Option<PhysAddr> {
        {
            // Counted before it is allocated, so that two callers cannot both pass the limit.
            let mut state = self.lock_with_room(1).ok()?;
            if state.surplus >= state.overcommit {
                return None;
            }
            state.surplus += 1;
            state.total += 1;
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
