//! Which threads of a process rest, as control groups count it.

use core::sync::atomic::Ordering;

use super::tree::{Guard, Look};
use super::{Process, Thread};

impl Process {
    /// Do all threads rest?
    pub(crate) fn rests(&self, tree: &Look) -> bool {
        self.relations.get(tree).rests
    }

    /// A thread begins to rest, or goes on. True if [`Self::rests`] changes.
    pub(crate) fn set_resting(&self, tree: &mut Guard, thread: &Thread, rests: bool) -> bool {
        // Relaxed, here and below: under the tree's lock.
        if thread.resting.swap(rests, Ordering::Relaxed) == rests {
            return false;
        }
        let count = &mut self.relations.get_mut(tree).resting;
        *count = if rests { *count + 1 } else { *count - 1 };
        self.look_whether_it_rests(tree)
    }

    /// A thread is not among those that live any more. True if [`Self::rests`] changes.
    pub(crate) fn forget_resting(&self, tree: &mut Guard, thread: &Thread) -> bool {
        let rested = thread.resting.swap(false, Ordering::Relaxed);
        self.relations.get_mut(tree).resting -= usize::from(rested);
        self.look_whether_it_rests(tree)
    }

    fn look_whether_it_rests(&self, tree: &mut Guard) -> bool {
        let relations = self.relations.get_mut(tree);
        let rests = relations.live > 0 && relations.resting == relations.live;
        core::mem::replace(&mut relations.rests, rests) != rests
    }
}
