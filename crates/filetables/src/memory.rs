//! Memory that is allocated before a lock is taken, so that nothing allocates under one and a failure is an error.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};

use crate::error::OutOfMemory;

/// An empty vector with room for `count`.
pub(crate) fn vec_with_room<T>(count: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
    Ok(memory)
}

/// A box whose allocation can fail.
pub(crate) struct Boxed<T>(Box<[T]>);

impl<T> Boxed<T> {
    pub(crate) fn new(value: T) -> Result<Boxed<T>, OutOfMemory> {
        let mut memory = vec_with_room(1)?;
        memory.push(value);
        // The room was asked for exactly: nothing is allocated again.
        Ok(Boxed(memory.into_boxed_slice()))
    }
}

impl<T> Deref for Boxed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0[0]
    }
}

impl<T> DerefMut for Boxed<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0[0]
    }
}

/// A sorted list behind a lock. Its memory grows by [`Shelf::move_to`], with memory that was allocated without the lock.
pub(crate) struct Shelf<K, V> {
    items: Vec<(K, V)>,
}

impl<K: Ord + Copy, V> Shelf<K, V> {
    pub(crate) const fn new() -> Shelf<K, V> {
        Shelf { items: Vec::new() }
    }

    fn position(&self, key: K) -> Result<usize, usize> {
        // Keys mostly come in ascending order.
        match self.items.last() {
            Some((last, _)) if *last < key => Err(self.items.len()),
            _ => self.items.binary_search_by_key(&key, |(key, _)| *key),
        }
    }

    /// Where a key is, for as long as the list is not changed.
    pub(crate) fn find(&self, key: K) -> Option<usize> {
        self.position(key).ok()
    }

    /// The value at a place that [`Shelf::find`] found.
    pub(crate) fn at(&self, place: usize) -> &V {
        &self.items[place].1
    }

    /// As [`Shelf::at`], to change the value.
    pub(crate) fn at_mut(&mut self, place: usize) -> &mut V {
        &mut self.items[place].1
    }

    pub(crate) fn get(&self, key: K) -> Option<&V> {
        self.find(key).map(|place| self.at(place))
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        self.position(key).ok().map(|at| &mut self.items[at].1)
    }

    /// The items from a key on, in order.
    pub(crate) fn from(&self, key: K) -> impl Iterator<Item = &(K, V)> {
        let at = self.items.partition_point(|(other, _)| *other < key);
        self.items[at..].iter()
    }

    /// As [`Shelf::from`], to change the values.
    pub(crate) fn each_from(&mut self, key: K) -> impl Iterator<Item = (&K, &mut V)> {
        let at = self.items.partition_point(|(other, _)| *other < key);
        self.items[at..].iter_mut().map(|(key, value)| (&*key, value))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// For how many items memory is needed before the next insertion; `None` when there is room.
    pub(crate) fn wants(&self) -> Option<usize> {
        let full = self.items.len() == self.items.capacity();
        full.then(|| (2 * self.items.len()).max(4))
    }

    /// Moves the items to larger memory; returns the old memory, to be freed without the lock. Smaller memory, which came
    /// too late, comes back as it is.
    pub(crate) fn move_to(&mut self, mut memory: Vec<(K, V)>) -> Vec<(K, V)> {
        if memory.capacity() > self.items.capacity() {
            memory.append(&mut self.items);
            core::mem::swap(&mut memory, &mut self.items);
        }
        memory
    }

    /// Adds an item that is not there; there is room.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        debug_assert!(self.wants().is_none(), "an insertion under a lock would allocate");
        match self.position(key) {
            Ok(_) => debug_assert!(false, "a key is inserted twice"),
            Err(at) => self.items.insert(at, (key, value)),
        }
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<V> {
        self.position(key).ok().map(|at| self.items.remove(at).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shelf_keeps_its_order_and_grows_by_given_memory_only() {
        let mut shelf: Shelf<u64, u64> = Shelf::new();
        for key in [5, 1, 9, 3, 7, 8, 2, 6, 4] {
            if let Some(room) = shelf.wants() {
                assert!(shelf.move_to(vec_with_room(room).unwrap()).is_empty());
            }
            shelf.insert(key, key * 10);
        }
        assert_eq!(shelf.get(7), Some(&70));
        assert_eq!(shelf.remove(7), Some(70));
        assert_eq!(shelf.get(7), None);
        let keys: Vec<u64> = shelf.from(6).map(|(key, _)| *key).collect();
        assert_eq!(keys, [6, 8, 9]);
    }

    #[test]
    fn memory_that_comes_too_late_comes_back() {
        let mut shelf: Shelf<u64, u64> = Shelf::new();
        assert!(shelf.move_to(vec_with_room(8).unwrap()).capacity() == 0);
        assert!(shelf.move_to(vec_with_room(4).unwrap()).capacity() >= 4);
    }
}
