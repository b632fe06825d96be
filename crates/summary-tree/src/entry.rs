//! An entry, and its memory.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::{Deref, DerefMut};

use super::Summary;

/// There was no memory for an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfMemory;

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no memory for an entry")
    }
}

impl core::error::Error for OutOfMemory {}

/// A box whose allocation can fail.
pub(super) struct Own<T>(Box<[T; 1]>);

impl<T> Own<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Box::new([value]))
    }

    fn try_new(value: T) -> Result<Self, OutOfMemory> {
        let mut memory = Vec::new();
        memory.try_reserve_exact(1).map_err(|_| OutOfMemory)?;
        memory.push(value);
        // The room was asked for exactly: nothing is allocated again.
        memory.try_into().map(Self).map_err(|_: Vec<T>| OutOfMemory)
    }

    pub(super) fn into_inner(self) -> T {
        let [value] = *self.0;
        value
    }
}

impl<T> Deref for Own<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let [value] = &*self.0;
        value
    }
}

impl<T> DerefMut for Own<T> {
    fn deref_mut(&mut self) -> &mut T {
        let [value] = &mut *self.0;
        value
    }
}

pub(super) struct Node<K, V, S> {
    pub(super) key: K,
    pub(super) value: V,
    pub(super) summary: S,
    pub(super) height: u8,
    pub(super) left: Link<K, V, S>,
    pub(super) right: Link<K, V, S>,
}

pub(super) type Link<K, V, S> = Option<Own<Node<K, V, S>>>;

impl<K, V, S: Summary<K, V>> Node<K, V, S> {
    pub(super) fn new(key: K, value: V) -> Self {
        let summary = S::of(&key, &value);
        Self { key, value, summary, height: 1, left: None, right: None }
    }
}

/// An entry outside of any tree.
pub struct Entry<K, V, S>(pub(super) Own<Node<K, V, S>>);

impl<K, V, S: Summary<K, V>> Entry<K, V, S> {
    /// An entry for a tree.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when there is no memory for it.
    pub fn try_new(key: K, value: V) -> Result<Self, OutOfMemory> {
        Own::try_new(Node::new(key, value)).map(Self)
    }
}

impl<K, V, S> Entry<K, V, S> {
    /// Changes the key and the value: for an entry that was allocated before both were known.
    pub fn change(&mut self, change: impl FnOnce(&mut K, &mut V))
    where
        S: Summary<K, V>,
    {
        let node = &mut *self.0;
        change(&mut node.key, &mut node.value);
        // Outside of a tree it has no children.
        node.summary = S::of(&node.key, &node.value);
    }

    /// The key and the value.
    #[must_use]
    pub fn into_pair(self) -> (K, V) {
        // Outside of a tree it has no children.
        let node = self.0.into_inner();
        (node.key, node.value)
    }
}
