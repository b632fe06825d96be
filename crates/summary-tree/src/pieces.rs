//! A tree that is taken to pieces.

use super::SummaryTree;
use super::entry::Link;

/// The entries of a tree in ascending order, each freed when it comes: in O(1) steps on average, and without recursion.
pub struct IntoIter<K, V, S>(Link<K, V, S>);

impl<K, V, S> IntoIterator for SummaryTree<K, V, S> {
    type Item = (K, V);
    type IntoIter = IntoIter<K, V, S>;

    fn into_iter(self) -> IntoIter<K, V, S> {
        IntoIter(self.root)
    }
}

impl<K, V, S> Iterator for IntoIter<K, V, S> {
    type Item = (K, V);

    fn next(&mut self) -> Option<(K, V)> {
        let mut node = self.0.take()?;
        // The first entry comes to the top. Each link to the left is turned once, whoever asks how often.
        while let Some(mut left) = node.left.take() {
            node.left = left.right.take();
            left.right = Some(node);
            node = left;
        }
        self.0 = node.right.take();
        let node = node.into_inner();
        Some((node.key, node.value))
    }
}

impl<K, V, S> Drop for IntoIter<K, V, S> {
    fn drop(&mut self) {
        // Turned links make a subtree as deep as it has entries: too deep to be dropped by recursion.
        self.for_each(drop);
    }
}
