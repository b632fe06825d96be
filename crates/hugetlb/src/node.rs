//! Memory nodes: a number for each frame, and an order to ask them in.

/// Most nodes that a machine may have.
pub const MAX_NODES: usize = 16;

/// Nodes in the order in which they are asked for a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeOrder {
    nodes: [u8; MAX_NODES],
    len: u8,
}

impl NodeOrder {
    /// The first so many nodes, in ascending order.
    #[must_use]
    pub fn first(count: usize) -> NodeOrder {
        let mut order = NodeOrder::default();
        (0..count).for_each(|node| order.push(node));
        order
    }

    /// Adds a node behind the others. What is no node, or more than there can be, is left out.
    pub fn push(&mut self, node: usize) {
        if node < MAX_NODES
            && let Some(place) = self.nodes.get_mut(usize::from(self.len))
        {
            *place = node as u8;
            self.len += 1;
        }
    }

    /// The nodes, the first one first.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.nodes[..usize::from(self.len)].iter().map(|node| usize::from(*node))
    }
}
