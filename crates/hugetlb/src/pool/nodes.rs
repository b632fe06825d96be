//! What of a pool is on which memory node, and whose turn it is to give a page or to lose one.
//!
//! Where there is one node nothing is counted here: all that the pool counts is of that node.

use super::{Pool, State};
use crate::addr::PhysAddr;
use crate::machine::Machine;
use crate::node::{MAX_NODES, NodeOrder};

/// The counters of a pool's pages on one node, in huge pages: `/sys/devices/system/node/node*/hugepages`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeStatistics {
    /// `nr_hugepages`: pages on the node, surplus ones included.
    pub total: u64,
    /// `free_hugepages`.
    pub free: u64,
    /// `surplus_hugepages`.
    pub surplus: u64,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    total: u64,
    surplus: u64,
}

/// By node. A surplus page that is on its way from the machine is on none as yet.
pub(super) struct Nodes {
    count: usize,
    of: [Counts; MAX_NODES],
    next_to_grow: usize,
    next_to_shrink: usize,
}

impl Nodes {
    pub(super) fn new(count: usize) -> Nodes {
        Nodes {
            count: count.clamp(1, MAX_NODES),
            of: [Counts::default(); MAX_NODES],
            next_to_grow: 0,
            next_to_shrink: 0,
        }
    }

    #[inline]
    pub(super) fn is_one(&self) -> bool {
        self.count == 1
    }

    /// The first of `nodes` from `start` on, and around, that is `wanted`.
    fn turn(&self, start: usize, nodes: &NodeOrder, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        let mut by_turns = (start..self.count).chain(0..start);
        by_turns.find(|node| nodes.iter().any(|other| other == *node) && wanted(*node))
    }

    fn surplus(&self) -> u64 {
        self.of[..self.count].iter().map(|counts| counts.surplus).sum()
    }

    /// Changes a count of `nodes` by `pages` together, as evenly as there is room; returns how many it were.
    fn spread(
        &mut self,
        pages: u64,
        nodes: &NodeOrder,
        room: impl Fn(&Counts) -> u64,
        change: impl Fn(&mut Counts, u64),
    ) -> u64 {
        let mut left = pages;
        // Each round but the last uses up the room of a node.
        for _ in 0..=self.count {
            let with_room = nodes.iter().filter(|node| room(&self.of[*node]) > 0).count() as u64;
            if left == 0 || with_room == 0 {
                break;
            }
            let share = (left / with_room).max(1);
            for node in nodes.iter() {
                let some = share.min(left).min(room(&self.of[node]));
                change(&mut self.of[node], some);
                left -= some;
            }
        }
        pages - left
    }
}

impl State {
    /// Whether a page that comes back to a node is one too many.
    #[inline]
    pub(super) fn has_surplus(&self, node: usize) -> bool {
        self.surplus > 0 && (self.nodes.is_one() || self.nodes.of[node].surplus > 0)
    }

    /// Takes a frame off the free list: of the first of the nodes that has one.
    #[inline]
    pub(super) fn pop(&mut self, order: &NodeOrder) -> Option<PhysAddr> {
        if self.nodes.is_one() {
            return self.free.pop(0);
        }
        order.iter().find_map(|node| self.free.pop(node))
    }

    /// Counts pages of a node in.
    pub(super) fn count_in(&mut self, node: usize, pages: u64) {
        self.total += pages;
        if !self.nodes.is_one() {
            self.nodes.of[node].total += pages;
        }
    }

    /// Counts a page of a node out.
    pub(super) fn count_out(&mut self, node: usize) {
        self.total -= 1;
        if !self.nodes.is_one() {
            self.nodes.of[node].total -= 1;
        }
    }

    /// Counts a surplus page of a node out.
    pub(super) fn count_surplus_out(&mut self, node: usize) {
        self.surplus -= 1;
        self.count_out(node);
        if !self.nodes.is_one() {
            self.nodes.of[node].surplus -= 1;
        }
    }

    /// A surplus page that was counted has come, and is on this node. A resize may have declared it persistent meanwhile.
    pub(super) fn surplus_came(&mut self, node: usize) {
        self.nodes.of[node].total += 1;
        if self.nodes.surplus() < self.surplus {
            self.nodes.of[node].surplus += 1;
        }
    }

    /// No node has more surplus pages than all of them together.
    pub(super) fn settle_surplus(&mut self) {
        let excess = self.nodes.surplus().saturating_sub(self.surplus);
        if !self.nodes.is_one() && excess > 0 {
            let all = NodeOrder::first(self.nodes.count);
            self.nodes.spread(excess, &all, |counts| counts.surplus, |counts, some| counts.surplus -= some);
        }
    }

    /// Declares so many surplus pages of `nodes` persistent, or as many as there are.
    pub(super) fn make_persistent(&mut self, pages: u64, nodes: &NodeOrder) {
        self.surplus -= match self.nodes.is_one() {
            true => self.surplus.min(pages),
            false => {
                let room = |counts: &Counts| counts.surplus;
                self.nodes.spread(pages, nodes, room, |counts, some| counts.surplus -= some)
            }
        };
    }

    /// Declares so many persistent pages of `nodes` surplus, or as many as there are.
    pub(super) fn make_surplus(&mut self, pages: u64, nodes: &NodeOrder) {
        self.surplus += match self.nodes.is_one() {
            true => pages,
            false => {
                let room = |counts: &Counts| counts.total.saturating_sub(counts.surplus);
                self.nodes.spread(pages, nodes, room, |counts, some| counts.surplus += some)
            }
        };
    }

    /// The node whose turn it is to grow.
    pub(super) fn node_to_grow(&mut self, nodes: &NodeOrder) -> Option<usize> {
        let node = self.nodes.turn(self.nodes.next_to_grow, nodes, |_| true)?;
        self.nodes.next_to_grow = (node + 1) % self.nodes.count;
        Some(node)
    }

    /// The node whose turn it is to lose a free page, a surplus one or not.
    fn node_to_shrink(&mut self, nodes: &NodeOrder, surplus: bool) -> Option<usize> {
        if self.nodes.is_one() {
            return Some(0);
        }
        let may = |counts: &Counts| if surplus { counts.surplus > 0 } else { counts.total > counts.surplus };
        let is_wanted = |node: usize| self.free.len_of(node) > 0 && may(&self.nodes.of[node]);
        let node = self.nodes.turn(self.nodes.next_to_shrink, nodes, is_wanted)?;
        self.nodes.next_to_shrink = (node + 1) % self.nodes.count;
        Some(node)
    }

    /// Takes a free persistent page of `nodes` off the list, still counted.
    pub(super) fn pop_persistent(&mut self, nodes: &NodeOrder) -> Option<(usize, PhysAddr)> {
        let node = self.node_to_shrink(nodes, false)?;
        Some((node, self.free.pop(node)?))
    }

    /// Takes a free persistent page of `nodes` out of the pool.
    pub(super) fn remove_free(&mut self, nodes: &NodeOrder) -> Option<PhysAddr> {
        let (node, frame) = self.pop_persistent(nodes)?;
        self.count_out(node);
        Some(frame)
    }

    /// Takes a free surplus page out of the pool.
    pub(super) fn remove_surplus(&mut self) -> Option<PhysAddr> {
        let node = self.node_to_shrink(&NodeOrder::first(self.nodes.count), true)?;
        let frame = self.free.pop(node)?;
        self.count_surplus_out(node);
        Some(frame)
    }

    /// Whether what is counted by node is what is counted of all, at rest.
    pub(super) fn nodes_fit(&self) -> bool {
        let of = &self.nodes.of[..self.nodes.count];
        let sum = |count: fn(&Counts) -> u64| of.iter().map(count).sum::<u64>();
        let fits = |(node, counts): (usize, &Counts)| {
            self.free.len_of(node) <= counts.total && counts.surplus <= counts.total
        };
        self.nodes.is_one()
            || (sum(|counts| counts.total), sum(|counts| counts.surplus)) == (self.total, self.surplus)
                && of.iter().enumerate().all(fits)
    }
}

impl<M: Machine> Pool<M> {
    /// The counters of one node, all taken at one moment.
    pub fn node_statistics(&self, node: usize) -> NodeStatistics {
        let state = self.state.lock();
        if state.nodes.is_one() && node == 0 {
            return NodeStatistics { total: state.total, free: state.free.len(), surplus: state.surplus };
        }
        let Some(Counts { total, surplus }) = state.nodes.of[..state.nodes.count].get(node).copied() else {
            return NodeStatistics::default();
        };
        NodeStatistics { total, free: state.free.len_of(node), surplus }
    }

    /// All nodes.
    pub(super) fn all_nodes(&self) -> NodeOrder {
        NodeOrder::first(self.nodes)
    }

    /// Where the calling thread's page is to come from.
    #[inline]
    pub(super) fn wanted_nodes(&self) -> NodeOrder {
        if self.nodes == 1 { NodeOrder::default() } else { self.machine.wanted_nodes() }
    }

    #[inline]
    pub(super) fn node_of(&self, frame: PhysAddr) -> usize {
        if self.nodes == 1 { 0 } else { self.machine.node_of(frame) % MAX_NODES }
    }

    /// A frame from the machine: of `nodes` by turns.
    pub(super) fn allocate_by_turns(&self, nodes: &NodeOrder) -> Option<PhysAddr> {
        if self.nodes == 1 {
            return self.machine.allocate_huge(self.size);
        }
        nodes.iter().find_map(|_| {
            let node = self.state.lock().node_to_grow(nodes)?;
            self.machine.allocate_huge_on(self.size, node)
        })
    }

    /// Whether the nodes that the calling thread may use have so many free pages, as Linux asks at the time of a promise.
    pub(super) fn may_be_promised(&self, pages: u64) -> bool {
        if self.nodes == 1 {
            return true;
        }
        let mut usable = NodeOrder::default();
        (0..self.nodes).filter(|node| self.machine.may_use_node(*node)).for_each(|node| usable.push(node));
        let state = self.state.lock();
        usable.iter().map(|node| state.free.len_of(node)).sum::<u64>() >= pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PageSize;
    use crate::protocol::ProtocolKind;
    use crate::sync::{Arc, Ordering};
    use crate::testing::{TestMachine, hugetlb_of_nodes};

    fn pool(nodes: usize) -> Arc<Pool<TestMachine>> {
        hugetlb_of_nodes(nodes, ProtocolKind::FileTables).pool(PageSize::Size2M).clone()
    }

    fn counted(pool: &Pool<TestMachine>) -> [(u64, u64, u64); 2] {
        pool.check().unwrap();
        [0, 1].map(|node| {
            let NodeStatistics { total, free, surplus } = pool.node_statistics(node);
            (total, free, surplus)
        })
    }

    fn only(node: usize) -> NodeOrder {
        let mut order = NodeOrder::default();
        order.push(node);
        order
    }

    #[test]
    fn pages_come_and_go_by_turns() {
        let pool = pool(2);
        assert_eq!(pool.set_persistent(5, || false), 5);
        assert_eq!(counted(&pool), [(3, 3, 0), (2, 2, 0)]);
        assert_eq!(pool.set_persistent(2, || false), 2);
        assert_eq!(counted(&pool), [(1, 1, 0), (1, 1, 0)]);
        // Of one node, and of what a caller may use.
        assert_eq!(pool.set_persistent_of(1, 4, || false), 5);
        assert_eq!(counted(&pool), [(1, 1, 0), (4, 4, 0)]);
        assert_eq!(pool.set_persistent_of(1, 0, || false), 1);
        assert_eq!(pool.set_persistent_on(&only(1), 3, || false), 3);
        assert_eq!(counted(&pool), [(1, 1, 0), (2, 2, 0)]);
        // It has no more to give.
        assert_eq!(pool.set_persistent_on(&only(1), 0, || false), 1);
        assert_eq!(pool.set_persistent(0, || false), 0);
        assert_eq!(pool.node_statistics(7), NodeStatistics::default());
    }

    #[test]
    fn a_page_comes_from_the_nodes_that_the_thread_wants() {
        let pool = pool(2);
        pool.set_persistent(4, || false);
        pool.machine().wanted.store(0b10, Ordering::SeqCst);
        let taken = [pool.take(false).unwrap(), pool.take(false).unwrap()];
        assert_eq!(counted(&pool), [(2, 2, 0), (2, 0, 0)]);
        assert_eq!(pool.take(false), None);
        // As many as are promised are not there.
        assert!(pool.reserve(1).is_err());
        pool.machine().wanted.store(0b11, Ordering::SeqCst);
        let other = pool.take(false).unwrap();
        assert_eq!(counted(&pool), [(2, 1, 0), (2, 0, 0)]);
        taken.into_iter().chain([other]).for_each(|frame| pool.give(frame, false));
        assert_eq!(counted(&pool), [(2, 2, 0), (2, 2, 0)]);
        pool.reserve(4).unwrap();
        pool.unreserve(4);
    }

    #[test]
    fn surplus_pages_leave_the_node_that_they_came_from() {
        let pool = pool(2);
        pool.set_overcommit(3).unwrap();
        pool.machine().wanted.store(0b10, Ordering::SeqCst);
        let taken = [pool.take(false).unwrap(), pool.take(false).unwrap()];
        assert_eq!(counted(&pool), [(0, 0, 0), (2, 0, 2)]);
        // One becomes persistent; then as many come as are missing.
        assert_eq!(pool.set_persistent(1, || false), 1);
        assert_eq!(counted(&pool), [(0, 0, 0), (2, 0, 1)]);
        taken.into_iter().for_each(|frame| pool.give(frame, false));
        assert_eq!(counted(&pool), [(0, 0, 0), (1, 1, 0)]);
        // Pages in use become surplus where they are.
        pool.set_persistent(4, || false);
        pool.machine().wanted.store(0b11, Ordering::SeqCst);
        let taken: std::vec::Vec<_> = (0..4).map(|_| pool.take(false).unwrap()).collect();
        assert_eq!(pool.set_persistent(1, || false), 1);
        assert_eq!(counted(&pool).map(|counts| counts.2).iter().sum::<u64>(), 3);
        taken.into_iter().for_each(|frame| pool.give(frame, false));
        assert_eq!(counted(&pool).map(|counts| counts.0).iter().sum::<u64>(), 1);
        pool.set_persistent(0, || false);
        // Those that back a promise go with it.
        pool.reserve(3).unwrap();
        assert_eq!(counted(&pool).map(|counts| counts.2).iter().sum::<u64>(), 3);
        pool.unreserve(3);
        assert_eq!(counted(&pool), [(0, 0, 0), (0, 0, 0)]);
    }
}
