//! The watchers of a wait queue, found by their addresses: a file may have a hundred thousand.

use alloc::boxed::Box;
use alloc::sync::Arc;

use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeLink, intrusive_adapter};

use super::Watcher;
use crate::errno::Errno;
use crate::memory::fallible;

/// How many watchers are told in one hold of the queue's lock.
const AT_A_TIME: usize = 32;

/// A watcher's place in one queue: made and freed outside of the queue's lock.
pub struct Place {
    link: RBTreeLink,
    watcher: Arc<dyn Watcher>,
}

// SAFETY: the link is used by the set that owns the box only.
unsafe impl Send for Place {}

impl Place {
    pub fn new(watcher: Arc<dyn Watcher>) -> Result<Box<Self>, Errno> {
        fallible::boxed(Self { link: RBTreeLink::new(), watcher })
    }
}

fn address(watcher: &Arc<dyn Watcher>) -> usize {
    Arc::as_ptr(watcher).addr()
}

intrusive_adapter!(ByAddress = Box<Place>: Place { link => RBTreeLink });

impl<'a> KeyAdapter<'a> for ByAddress {
    type Key = usize;

    fn get_key(&self, place: &'a Place) -> usize {
        address(&place.watcher)
    }
}

/// All watchers of a queue. One that was added twice is there twice.
pub struct Watchers(RBTree<ByAddress>);

// SAFETY: it owns its places.
unsafe impl Send for Watchers {}

impl Watchers {
    pub const fn new() -> Self {
        Self(RBTree::new(ByAddress::NEW))
    }

    pub fn add(&mut self, place: Box<Place>) {
        self.0.insert(place);
    }

    pub fn remove(&mut self, watcher: &Arc<dyn Watcher>) -> Option<Box<Place>> {
        self.0.find_mut(&address(watcher)).remove()
    }

    /// Tells some watchers, those behind the address `after`. Returns where to go on, unless all have been told.
    pub fn notify_some(&self, after: usize) -> Option<usize> {
        let mut told = 0;
        let mut cursor = self.0.lower_bound(Bound::Excluded(&after));
        while let Some(place) = cursor.get() {
            let at = address(&place.watcher);
            place.watcher.notify();
            told += 1;
            if told >= AT_A_TIME {
                return Some(at);
            }
            cursor.move_next();
        }
        None
    }
}
