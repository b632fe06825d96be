//! The persistent size at run time: `vm.nr_hugepages`, with the semantics of Linux.

use super::{FREED_AT_A_TIME, Pool};
use crate::addr::PageSize;
use crate::error::{Error, Result};
use crate::machine::Machine;

impl<M: Machine> Pool<M> {
    /// Sets the persistent size (`vm.nr_hugepages`), as far as memory and use permit; returns what it became.
    ///
    /// Growing first declares surplus pages persistent, then allocates. Shrinking frees free pages that are not
    /// reserved, and declares the rest surplus: those leave the pool when they are given back. `interrupted` is asked
    /// between allocations.
    pub fn set_persistent(&self, count: u64, mut interrupted: impl FnMut() -> bool) -> u64 {
        let _resize = self.resize.lock();
        {
            let mut state = self.state.lock();
            let persistent = state.total - state.surplus;
            state.surplus -= state.surplus.min(count.saturating_sub(persistent));
            state.persistent = state.total - state.surplus;
        }
        while count > self.statistics().persistent && !interrupted() {
            let Some(frame) = self.machine.allocate_huge(self.size) else { break };
            let Ok(mut state) = self.lock_with_room(1) else {
                self.machine.free_huge(self.size, frame);
                break;
            };
            state.total += 1;
            state.free.push(frame);
            state.persistent = state.total - state.surplus;
            drop(state);
            self.machine.give_way();
        }
        loop {
            let mut freed = [const { None }; FREED_AT_A_TIME];
            let (left, persistent) = {
                let mut state = self.state.lock();
                let in_use = state.total - state.free.len();
                let minimum = count.max(in_use.saturating_add_signed(state.reserved));
                for place in &mut freed {
                    if state.total - state.surplus <= minimum {
                        break;
                    }
                    *place = state.remove_free();
                }
                let left = freed.last().is_some_and(Option::is_some);
                if !left {
                    // The rest is in use or promised.
                    let persistent = state.total - state.surplus;
                    state.surplus += persistent.saturating_sub(count);
                }
                state.persistent = state.total - state.surplus;
                (left, state.persistent)
            };
            self.give_to_machine(&freed);
            if !left {
                return persistent;
            }
        }
    }

    /// Sets `nr_overcommit_hugepages`: the most surplus pages that demand may add.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for 1 GiB pages, which Linux does not overcommit either.
    pub fn set_overcommit(&self, count: u64) -> Result<()> {
        if self.size == PageSize::Size1G {
            return Err(Error::Invalid);
        }
        self.state.lock().overcommit = count;
        Ok(())
    }
}
