//! The persistent size at run time: `vm.nr_hugepages`, with the semantics of Linux.

use alloc::vec::Vec;

use super::Pool;
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
        let mut state = self.state.lock();
        while state.surplus > 0 && count > state.total - state.surplus {
            state.surplus -= 1;
        }
        while count > state.total - state.surplus {
            drop(state);
            let frame = if interrupted() { None } else { self.machine.allocate_huge(self.size) };
            state = self.state.lock();
            let Some(frame) = frame else { break };
            state.account_new();
            state.free.push(frame);
        }

        let in_use = state.total - state.free.len() as u64;
        let minimum = count.max(in_use.saturating_add_signed(state.reserved));
        let mut freed = Vec::new();
        while state.total - state.surplus > minimum {
            let Some(frame) = state.remove_free() else { break };
            freed.push(frame);
        }
        while count < state.total - state.surplus && state.surplus < state.total {
            state.surplus += 1;
        }
        state.persistent = state.total - state.surplus;
        let persistent = state.persistent;
        drop(state);
        for frame in freed {
            self.machine.free_huge(self.size, frame);
        }
        persistent
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
