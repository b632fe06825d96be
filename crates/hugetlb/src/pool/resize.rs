//! The persistent size at run time: `vm.nr_hugepages`, with the semantics of Linux.

use super::{FREED_AT_A_TIME, Pool};
use crate::addr::PageSize;
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::node::NodeOrder;

impl<M: Machine> Pool<M> {
    /// Sets the persistent size (`vm.nr_hugepages`), as far as memory and use permit; returns what it became.
    ///
    /// Growing first declares surplus pages persistent, then allocates. Shrinking frees free pages that are not
    /// reserved, and declares the rest surplus: those leave the pool when they are given back. `interrupted` is asked
    /// between allocations.
    pub fn set_persistent(&self, count: u64, interrupted: impl FnMut() -> bool) -> u64 {
        let _resize = self.resize.lock();
        self.resize(&self.all_nodes(), count, interrupted)
    }

    /// As [`Pool::set_persistent`], where pages come to and leave these memory nodes only: `nr_hugepages_mempolicy`.
    pub fn set_persistent_on(&self, nodes: &NodeOrder, count: u64, interrupted: impl FnMut() -> bool) -> u64 {
        let _resize = self.resize.lock();
        self.resize(nodes, count, interrupted)
    }

    /// Sets how many persistent pages one memory node has: `nr_hugepages` of a node. Returns how many the pool has then.
    pub fn set_persistent_of(&self, node: usize, count: u64, interrupted: impl FnMut() -> bool) -> u64 {
        let _resize = self.resize.lock();
        let of_node = self.node_statistics(node);
        let others = self.statistics().persistent.saturating_sub(of_node.total - of_node.surplus);
        let mut nodes = NodeOrder::default();
        nodes.push(node);
        self.resize(&nodes, count.saturating_add(others), interrupted)
    }

    /// The lock of resizes is held.
    fn resize(&self, nodes: &NodeOrder, count: u64, mut interrupted: impl FnMut() -> bool) -> u64 {
        {
            let mut state = self.state.lock();
            let persistent = state.total - state.surplus;
            state.make_persistent(count.saturating_sub(persistent), nodes);
            state.persistent = state.total - state.surplus;
        }
        while count > self.statistics().persistent && !interrupted() {
            let Some(frame) = self.allocate_by_turns(nodes) else { break };
            let node = self.node_of(frame);
            let Ok(mut state) = self.lock_with_room(1) else {
                self.machine.free_huge(self.size, frame);
                break;
            };
            state.count_in(node, 1);
            state.free.push(node, frame);
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
                    *place = state.remove_free(nodes);
                }
                let left = freed.last().is_some_and(Option::is_some);
                if !left {
                    // The rest is in use or promised.
                    let persistent = state.total - state.surplus;
                    state.make_surplus(persistent.saturating_sub(count), nodes);
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
