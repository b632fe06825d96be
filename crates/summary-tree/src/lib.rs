//! An ordered map that can be searched for more than its keys.
//!
//! It is an AVL tree. Each node has the [`Summary`] of its subtree, such as the largest of some number. A search that
//! gives up subtrees by their summary finds the first entry with a large enough number, or all intervals that meet
//! another, in O(log n) steps for each that it finds.
//!
//! Inserting, removing and changing an entry takes O(log n) steps. The tree is never higher than 1.44 log2(n + 2), and
//! so deep is the recursion: 29 frames for a million entries, which suits the small stacks of kernels.
//!
//! Under a lock that nobody may allocate under, an [`Entry`] is allocated before and freed after: inserting it and
//! taking it out only link it.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use core::cmp::Ordering;

pub use entry::{Entry, OutOfMemory};
use entry::{Link, Node, Own};
pub use pieces::IntoIter;

mod entry;
mod pieces;

#[cfg(test)]
mod tests;

/// What is known of all entries of a subtree together.
pub trait Summary<K, V> {
    /// Of one entry.
    fn of(key: &K, value: &V) -> Self;

    /// Takes in the summary of further entries. The order in which summaries are joined does not matter.
    fn join(&mut self, other: &Self);
}

/// The map.
pub struct SummaryTree<K, V, S> {
    root: Link<K, V, S>,
    len: usize,
}

impl<K, V, S> SummaryTree<K, V, S> {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { root: None, len: 0 }
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is there none?
    #[must_use]
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
    /// A tree of `len` entries that come in ascending order, in O(len) steps; or the first error that comes in place of
    /// one. `len` has to be right: entries beyond it are left alone, and with fewer the tree is less balanced.
    pub fn from_sorted<E>(
        len: usize,
        entries: impl IntoIterator<Item = Result<(K, V), E>>,
    ) -> Result<Self, E> {
        let (mut entries, mut made) = (entries.into_iter(), 0);
        let root = build(len, &mut entries, &mut made)?;
        Ok(Self { root, len: made })
    }

    /// Adds an entry; the value that the key had is returned.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let Err(entry) = self.insert_entry(Entry(Own::new(Node::new(key, value)))) else { return None };
        let (key, value) = entry.into_pair();
        let mut old = None;
        self.update(&key, |there| old = Some(core::mem::replace(there, value)));
        old
    }

    /// Adds an entry, without allocating. It comes back when the key is there already.
    pub fn insert_entry(&mut self, entry: Entry<K, V, S>) -> Result<(), Entry<K, V, S>> {
        insert(&mut self.root, entry.0).map_err(Entry)?;
        self.len += 1;
        Ok(())
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.remove_entry(key).map(|entry| entry.into_pair().1)
    }

    /// As [`SummaryTree::remove`], without freeing memory: the caller drops the entry.
    pub fn remove_entry(&mut self, key: &K) -> Option<Entry<K, V, S>> {
        let mut removed = remove(&mut self.root, key)?;
        // It may come back: of itself it knows only what an entry without children does.
        removed.refresh();
        self.len -= 1;
        Some(Entry(removed))
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

    /// Shows `look` the entries below `end` in ascending order until it gives something, but for subtrees to whose
    /// summary `may` says no.
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

    /// Shows `look` the entries from `start` on in ascending order until it gives something.
    pub fn find_from<'a, T>(
        &'a self,
        start: &K,
        mut look: impl FnMut(&'a K, &'a V) -> Option<T>,
    ) -> Option<T> {
        find_from(&self.root, Some(start), &mut look)
    }

    /// The summary of all entries.
    #[must_use]
    pub fn summary(&self) -> Option<&S> {
        self.root.as_deref().map(|root| &root.summary)
    }
}

/// Without summaries values may change in place.
impl<K: Ord, V> SummaryTree<K, V, ()> {
    /// The value of a key, to change it.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let mut at = self.root.as_deref_mut()?;
        loop {
            at = match key.cmp(&at.key) {
                Ordering::Equal => return Some(&mut at.value),
                Ordering::Less => at.left.as_deref_mut()?,
                Ordering::Greater => at.right.as_deref_mut()?,
            };
        }
    }

    /// As [`SummaryTree::find_from`], to change the values.
    pub fn find_from_mut<T>(
        &mut self,
        start: &K,
        mut look: impl FnMut(&K, &mut V) -> Option<T>,
    ) -> Option<T> {
        find_from_mut(&mut self.root, Some(start), &mut look)
    }
}

/// Nothing is known.
impl<K, V> Summary<K, V> for () {
    fn of(_: &K, _: &V) {}

    fn join(&mut self, (): &()) {}
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

/// A subtree of `len` entries, whose halves differ by one at the most.
fn build<K, V, S: Summary<K, V>, E>(
    len: usize,
    entries: &mut impl Iterator<Item = Result<(K, V), E>>,
    made: &mut usize,
) -> Result<Link<K, V, S>, E> {
    if len == 0 {
        return Ok(None);
    }
    let left = build(len / 2, entries, made)?;
    let Some((key, value)) = entries.next().transpose()? else { return Ok(left) };
    *made += 1;
    let right = build(len - len / 2 - 1, entries, made)?;
    let mut node = Own::new(Node::new(key, value));
    (node.left, node.right) = (left, right);
    node.refresh();
    Ok(Some(node))
}

fn insert<K: Ord, V, S: Summary<K, V>>(
    link: &mut Link<K, V, S>,
    new: Own<Node<K, V, S>>,
) -> Result<(), Own<Node<K, V, S>>> {
    let Some(node) = link else {
        *link = Some(new);
        return Ok(());
    };
    match new.key.cmp(&node.key) {
        Ordering::Less => insert(&mut node.left, new)?,
        Ordering::Greater => insert(&mut node.right, new)?,
        Ordering::Equal => return Err(new),
    }
    balance(link);
    Ok(())
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

fn find_from<'a, K: Ord, V, S, T>(
    link: &'a Link<K, V, S>,
    start: Option<&K>,
    look: &mut impl FnMut(&'a K, &'a V) -> Option<T>,
) -> Option<T> {
    let node = link.as_deref()?;
    if start.is_some_and(|start| node.key < *start) {
        return find_from(&node.right, start, look);
    }
    find_from(&node.left, start, look)
        .or_else(|| look(&node.key, &node.value))
        // All that is right of it is behind the start, too.
        .or_else(|| find_from(&node.right, None, look))
}

fn find_from_mut<K: Ord, V, S, T>(
    link: &mut Link<K, V, S>,
    start: Option<&K>,
    look: &mut impl FnMut(&K, &mut V) -> Option<T>,
) -> Option<T> {
    let node = link.as_deref_mut()?;
    if start.is_some_and(|start| node.key < *start) {
        return find_from_mut(&mut node.right, start, look);
    }
    find_from_mut(&mut node.left, start, look)
        .or_else(|| look(&node.key, &mut node.value))
        .or_else(|| find_from_mut(&mut node.right, None, look))
}
