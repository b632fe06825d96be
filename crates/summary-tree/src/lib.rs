//! An ordered map that can be searched for more than its keys.
//!
//! It is an AVL tree. Each node has the [`Summary`] of its subtree, such as the largest of some number. A search that gives up subtrees by their
//! summary finds the first entry with a large enough number, or all intervals that meet another, in O(log n) steps for each that it finds.
//!
//! Inserting, removing and changing an entry takes O(log n) steps. The tree is never higher than 1.44 log2(n + 2), and so deep is the recursion:
//! 29 frames for a million entries, which suits the small stacks of kernels.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::boxed::Box;
use core::cmp::Ordering;

#[cfg(test)]
mod tests;

/// What is known of all entries of a subtree together.
pub trait Summary<K, V> {
    /// Of one entry.
    fn of(key: &K, value: &V) -> Self;

    /// Takes in the summary of further entries. The order in which summaries are joined does not matter.
    fn join(&mut self, other: &Self);
}

struct Node<K, V, S> {
    key: K,
    value: V,
    summary: S,
    height: u8,
    left: Link<K, V, S>,
    right: Link<K, V, S>,
}

type Link<K, V, S> = Option<Box<Node<K, V, S>>>;

/// The map.
pub struct SummaryTree<K, V, S> {
    root: Link<K, V, S>,
    len: usize,
}

impl<K, V, S> SummaryTree<K, V, S> {
    /// An empty one.
    pub const fn new() -> Self {
        Self { root: None, len: 0 }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<K, V, S> Default for SummaryTree<K, V, S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord, V, S: Summary<K, V>> SummaryTree<K, V, S> {
    /// Adds an entry; the value that the key had is returned.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let old = insert(&mut self.root, key, value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let removed = remove(&mut self.root, key)?;
        self.len -= 1;
        Some(removed.value)
    }

    /// Changes the value of a key; false when there is none.
    pub fn update(&mut self, key: &K, change: impl FnOnce(&mut V)) -> bool {
        update(&mut self.root, key, change)
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let mut at = self.root.as_deref()?;
        loop {
            at = match key.cmp(&at.key) {
                Ordering::Equal => return Some(&at.value),
                Ordering::Less => at.left.as_deref()?,
                Ordering::Greater => at.right.as_deref()?,
            };
        }
    }

    /// The last entry whose key is not above `key`.
    pub fn floor(&self, key: &K) -> Option<(&K, &V)> {
        let mut found = None;
        let mut at = self.root.as_deref();
        while let Some(node) = at {
            at = if node.key <= *key {
                found = Some((&node.key, &node.value));
                node.right.as_deref()
            } else {
                node.left.as_deref()
            };
        }
        found
    }

    /// Shows `look` the entries below `end` in ascending order until it gives something, but for subtrees to whose summary `may` says no.
    pub fn find_first<'a, T>(
        &'a self,
        end: &K,
        may: impl Fn(&S) -> bool,
        mut look: impl FnMut(&'a K, &'a V) -> Option<T>,
    ) -> Option<T> {
        find::<_, _, _, _, false>(&self.root, Some(end), &may, &mut look)
    }

    /// As [`SummaryTree::find_first`], in descending order.
    pub fn find_last<'a, T>(
        &'a self,
        end: &K,
        may: impl Fn(&S) -> bool,
        mut look: impl FnMut(&'a K, &'a V) -> Option<T>,
    ) -> Option<T> {
        find::<_, _, _, _, true>(&self.root, Some(end), &may, &mut look)
    }

    /// The summary of all entries.
    pub fn summary(&self) -> Option<&S> {
        self.root.as_deref().map(|root| &root.summary)
    }
}

fn height<K, V, S>(link: &Link<K, V, S>) -> u8 {
    link.as_ref().map_or(0, |node| node.height)
}

impl<K, V, S: Summary<K, V>> Node<K, V, S> {
    /// Height and summary from those of the children.
    fn refresh(&mut self) {
        self.height = 1 + height(&self.left).max(height(&self.right));
        self.summary = S::of(&self.key, &self.value);
        for child in [&self.left, &self.right].into_iter().flatten() {
            self.summary.join(&child.summary);
        }
    }
}

/// Makes the left child the root.
fn rotate_right<K, V, S: Summary<K, V>>(link: &mut Link<K, V, S>) {
    let Some(mut node) = link.take() else { return };
    *link = match node.left.take() {
        Some(mut left) => {
            node.left = left.right.take();
            node.refresh();
            left.right = Some(node);
            left.refresh();
            Some(left)
        }
        None => Some(node),
    };
}

/// Makes the right child the root.
fn rotate_left<K, V, S: Summary<K, V>>(link: &mut Link<K, V, S>) {
    let Some(mut node) = link.take() else { return };
    *link = match node.right.take() {
        Some(mut right) => {
            node.right = right.left.take();
            node.refresh();
            right.left = Some(node);
            right.refresh();
            Some(right)
        }
        None => Some(node),
    };
}

/// After a change below the root of `link` that made one side higher or lower by one at most.
fn balance<K, V, S: Summary<K, V>>(link: &mut Link<K, V, S>) {
    let Some(node) = link else { return };
    let (left, right) = (height(&node.left), height(&node.right));
    if left > right + 1 {
        if node.left.as_ref().is_some_and(|left| height(&left.left) < height(&left.right)) {
            rotate_left(&mut node.left);
        }
        rotate_right(link);
    } else if right > left + 1 {
        if node.right.as_ref().is_some_and(|right| height(&right.right) < height(&right.left)) {
            rotate_right(&mut node.right);
        }
        rotate_left(link);
    } else {
        node.refresh();
    }
}

fn insert<K: Ord, V, S: Summary<K, V>>(link: &mut Link<K, V, S>, key: K, value: V) -> Option<V> {
    let Some(node) = link else {
        let summary = S::of(&key, &value);
        *link = Some(Box::new(Node { key, value, summary, height: 1, left: None, right: None }));
        return None;
    };
    let old = match key.cmp(&node.key) {
        Ordering::Less => insert(&mut node.left, key, value),
        Ordering::Greater => insert(&mut node.right, key, value),
        Ordering::Equal => Some(core::mem::replace(&mut node.value, value)),
    };
    balance(link);
    old
}

fn update<K: Ord, V, S: Summary<K, V>>(
    link: &mut Link<K, V, S>,
    key: &K,
    change: impl FnOnce(&mut V),
) -> bool {
    let Some(node) = link else { return false };
    let found = match key.cmp(&node.key) {
        Ordering::Less => update(&mut node.left, key, change),
        Ordering::Greater => update(&mut node.right, key, change),
        Ordering::Equal => {
            change(&mut node.value);
            true
        }
    };
    if found {
        node.refresh();
    }
    found
}

fn remove<K: Ord, V, S: Summary<K, V>>(link: &mut Link<K, V, S>, key: &K) -> Link<K, V, S> {
    let node = link.as_mut()?;
    let removed = match key.cmp(&node.key) {
        Ordering::Less => remove(&mut node.left, key)?,
        Ordering::Greater => remove(&mut node.right, key)?,
        Ordering::Equal => {
            let mut node = link.take()?;
            *link = match take_first(&mut node.right) {
                // The next entry comes in its place.
                Some(mut next) => {
                    (next.left, next.right) = (node.left.take(), node.right.take());
                    Some(next)
                }
                None => node.left.take(),
            };
            node
        }
    };
    balance(link);
    Some(removed)
}

fn take_first<K, V, S: Summary<K, V>>(link: &mut Link<K, V, S>) -> Link<K, V, S> {
    let node = link.as_mut()?;
    if node.left.is_some() {
        let first = take_first(&mut node.left);
        balance(link);
        return first;
    }
    let mut first = link.take()?;
    *link = first.right.take();
    Some(first)
}

/// In ascending order, or with `DOWN` in descending.
fn find<'a, K: Ord, V, S, T, const DOWN: bool>(
    link: &'a Link<K, V, S>,
    end: Option<&K>,
    may: &impl Fn(&S) -> bool,
    look: &mut impl FnMut(&'a K, &'a V) -> Option<T>,
) -> Option<T> {
    let node = link.as_deref().filter(|node| may(&node.summary))?;
    if end.is_some_and(|end| node.key >= *end) {
        return find::<_, _, _, _, DOWN>(&node.left, end, may, look);
    }
    // All that is left of it is below the end, too.
    let (first, first_end, second, second_end) =
        if DOWN { (&node.right, end, &node.left, None) } else { (&node.left, None, &node.right, end) };
    find::<_, _, _, _, DOWN>(first, first_end, may, look)
        .or_else(|| look(&node.key, &node.value))
        .or_else(|| find::<_, _, _, _, DOWN>(second, second_end, may, look))
}
