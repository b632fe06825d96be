//! Who owns words for which others wait: the end of an owner leaves them to who comes next.
//!
//! The word of an owned futex names its owner, and the kernel knows of it by its waiters alone. The first of these is the word's heir,
//! and stands in a tree under the owner. An owner that ends finds its heirs there, word by word, and tells each that it inherits. The heir
//! writes the word itself, in its own memory: the owner's may have no such page any more. It stays in its bucket until then, so that
//! whoever comes meanwhile waits behind it, whatever the word says.
//!
//! # Locks
//!
//! A tree's lock is taken inside a bucket's. [`Waiter::owner`] is changed under the lock of the waiter's bucket, and only while the waiter
//! is in no tree; whether it is in one is changed under the tree's lock. A waiter in a tree has an owner that has not ended.
//!
//! # Invariant
//!
//! Of the waiters that want to own a word the first is the heir and no other is: they come in the order of tickets that are given under
//! the bucket's lock, and whoever takes the first away makes the next one the heir.

use core::sync::atomic::Ordering;

use alloc::sync::Arc;
use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeAtomicLink, intrusive_adapter};

use super::TABLE;
use super::bucket::{Bucket, Waiter};
use crate::mm::Key;
use crate::process::Thread;
use crate::sched;
use crate::sync::IrqLock;

intrusive_adapter!(ByOwner = Arc<Waiter>: Waiter { inheritance => RBTreeAtomicLink });

impl KeyAdapter<'_> for ByOwner {
    type Key = (usize, usize);

    fn get_key(&self, waiter: &Waiter) -> (usize, usize) {
        // SAFETY: the waiter is in a tree, whose lock is held, or about to be: its owner does not change then.
        (unsafe { *waiter.owner.get() }, core::ptr::from_ref(waiter).addr())
    }
}

/// No owner: the waiter is no heir.
const NOBODY: usize = 0;
/// The heir of an owner that has ended.
const DEAD: usize = 1;

const TREES: usize = 64;

static HEIRS: [IrqLock<RBTree<ByOwner>>; TREES] = [const { IrqLock::new(RBTree::new(ByOwner::NEW)) }; TREES];

fn tree_of(owner: usize) -> &'static IrqLock<RBTree<ByOwner>> {
    // Threads lie at multiples of their size: the upper bits of a product know of all bits of the number.
    &HEIRS[owner.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (usize::BITS - TREES.ilog2())]
}

fn number_of(owner: &Thread) -> usize {
    core::ptr::from_ref(owner).addr()
}

impl Bucket {
    /// `owner` owns the word for which `heir` waits first. False if that one has ended: then nothing has changed.
    pub(super) fn set_heir(&mut self, heir: &Arc<Waiter>, owner: &Thread) -> bool {
        self.unset_heir(heir);
        let number = number_of(owner);
        let mut tree = tree_of(number).lock();
        // Relaxed: under the lock under which it is set.
        if owner.futex_ended.load(Ordering::Relaxed) {
            return false;
        }
        // SAFETY: it is in no tree, and the bucket's lock is held.
        unsafe { *heir.owner.get() = number };
        tree.insert(heir.clone());
        true
    }

    /// As [`Self::set_heir`], for whoever waits first for the word, if somebody does.
    pub(super) fn set_first_heir(&mut self, key: &Key, owner: &Thread) {
        if let Some(first) = self.first_owner_to_be(key) {
            // An owner that is made now has not ended.
            let _ = self.set_heir(&first, owner);
        }
    }

    /// The waiter is nobody's heir. Returns whose it was.
    fn unset_heir(&mut self, heir: &Waiter) -> usize {
        // SAFETY: the bucket's lock is held.
        let owner = unsafe { *heir.owner.get() };
        if owner > DEAD {
            let mut tree = tree_of(owner).lock();
            if heir.inheritance.is_linked() {
                // SAFETY: it is in this tree, whose lock is held. The bucket has a reference, too, or the caller.
                drop(unsafe { tree.cursor_mut_from_ptr(heir).remove() });
            }
        }
        // SAFETY: as above; it is in no tree now.
        unsafe { *heir.owner.get() = NOBODY };
        owner
    }

    /// The heir was taken out of the bucket: it owns the word, and the next one is its heir.
    pub(super) fn heir_owns(&mut self, heir: &Waiter, key: &Key) {
        self.unset_heir(heir);
        self.set_first_heir(key, &heir.thread);
    }

    /// A waiter has left the bucket without the word. If it was the heir the next one is, and inherits if the owner has ended: the caller
    /// wakes that one, without locks.
    pub(super) fn heir_leaves(&mut self, heir: &Waiter, key: &Key) -> Option<Arc<Waiter>> {
        // SAFETY: the bucket's lock is held.
        let owner = unsafe { *heir.owner.get() };
        if owner == NOBODY {
            return None;
        }
        let next = self.first_owner_to_be(key);
        let mut lives = false;
        if owner > DEAD {
            let mut tree = tree_of(owner).lock();
            // Else its end has taken the heir out, and is about to tell it: it tells the next one instead.
            lives = heir.inheritance.is_linked();
            if lives {
                // SAFETY: it is in this tree, whose lock is held. The caller has a reference.
                drop(unsafe { tree.cursor_mut_from_ptr(heir).remove() });
                if let Some(next) = &next {
                    // SAFETY: it is in no tree, as only the first is, and the bucket's lock is held.
                    unsafe { *next.owner.get() = owner };
                    tree.insert(next.clone());
                }
            }
        }
        // SAFETY: as above; it is in no tree now.
        unsafe { *heir.owner.get() = NOBODY };
        let next = next.filter(|_| !lives)?;
        self.inherit(&next);
        Some(next)
    }

    /// The owner has ended: the heir, which is in no tree, is to take the word.
    pub(super) fn inherit(&mut self, heir: &Waiter) {
        // SAFETY: it is in no tree, and the bucket's lock is held.
        unsafe { *heir.owner.get() = DEAD };
        heir.inherits.store(true, Ordering::SeqCst);
    }
}

/// A thread ends, or executes a program: whoever waits for a word of its that it has not let go of inherits it. `ends`: nobody waits for
/// a word of its from now on.
pub fn leave_words(thread: &Thread, ends: bool) {
    let number = number_of(thread);
    // Who is told once more to wait while this goes on would keep it from coming to an end.
    let set_ended = |ended: bool| {
        let _tree = tree_of(number).lock();
        // Relaxed: under the lock.
        thread.futex_ended.store(ended, Ordering::Relaxed);
    };
    set_ended(true);
    loop {
        let heir = {
            let mut tree = tree_of(number).lock();
            let mut cursor = tree.lower_bound_mut(Bound::Included(&(number, 0)));
            let is_own = |heir: &Waiter| ByOwner::NEW.get_key(heir).0 == number;
            if cursor.get().is_some_and(is_own) { cursor.remove() } else { None }
        };
        let Some(heir) = heir else { break };
        let told = loop {
            let index = heir.bucket.load(Ordering::SeqCst);
            let mut bucket = TABLE[index].lock();
            // It may be requeued while this thread waits for the lock.
            if heir.bucket.load(Ordering::SeqCst) != index {
                continue;
            }
            // Race: it may have left the bucket, and has told the next one; or it was given the word.
            // SAFETY: the bucket's lock is held.
            let is_heir = unsafe { *heir.owner.get() } == number;
            if is_heir {
                bucket.inherit(&heir);
            }
            break is_heir;
        };
        if told {
            sched::wake(&heir.thread);
        }
        drop(heir);
        sched::cond_resched();
    }
    if !ends {
        set_ended(false);
    }
}
