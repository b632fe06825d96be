//! Who waits for words of one bucket, found by word.
//!
//! A program chooses how many wait for a word, and which words share a bucket. So the waiters are a tree in the order of
//! word and arrival: whoever wakes one finds it in O(log n) steps beside all others, and whoever looks at many of
//! one word does so some at a time, and goes on behind the last.

use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use alloc::sync::Arc;
use intrusive_collections::{
    Bound, KeyAdapter, LinkedList, LinkedListAtomicLink, RBTree, RBTreeAtomicLink, intrusive_adapter,
};

use super::{MATCH_ANY, TABLE, bucket_of};
use crate::mm::Key;
use crate::process::{self, Thread};
use crate::sched;

/// Waiters that are looked at in one hold of a bucket's lock, which keeps interrupts off.
pub(super) const BATCH: usize = 32;

/// A number above all that were given before.
pub(super) fn next_ticket() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // A waker changes the word before it takes its number, and a waiter takes its own before it reads the word. So a
    // waiter with a larger one sees the new value.
    NEXT.fetch_add(1, Ordering::SeqCst)
}

/// Where a waiter is among those of a bucket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    key: Key,
    /// It waits to own the word: FUTEX_LOCK_PI.
    pi: bool,
    /// Larger than that of each who came to the word before: a wake or a requeue that takes several holds of the lock
    /// stops at those who came after it began.
    ticket: u64,
}

/// Somebody who waits for a word.
pub(super) struct Waiter {
    link: RBTreeAtomicLink,
    /// On the list of those who were taken out together.
    taken: LinkedListAtomicLink,
    /// Used under the lock of the bucket in which the waiter is; changes when the waiter is requeued.
    place: UnsafeCell<Place>,
    pub(super) bucket: AtomicUsize,
    bitset: u32,
    woken: AtomicBool,
    /// The word that it wants to own, for FUTEX_WAIT_REQUEUE_PI: to that one alone it is moved.
    pub(super) to_own: Option<Key>,
    moved: AtomicBool,
    /// Among the heirs of the word's owner, for the first of those who want to own it.
    pub(super) inheritance: RBTreeAtomicLink,
    /// Whose heir it is: see [`super::owners`].
    pub(super) owner: UnsafeCell<usize>,
    /// The owner has ended, and the waiter is to take the word. It is in its bucket yet.
    pub(super) inherits: AtomicBool,
    pub(super) thread: Arc<Thread>,
}

// SAFETY: `place` and `owner` are guarded by the bucket's lock, the rest is atomic or immutable.
unsafe impl Sync for Waiter {}
// SAFETY: as above.
unsafe impl Send for Waiter {}

intrusive_adapter!(InBucket = Arc<Waiter>: Waiter { link => RBTreeAtomicLink });
intrusive_adapter!(TakenOut = Arc<Waiter>: Waiter { taken => LinkedListAtomicLink });

impl KeyAdapter<'_> for InBucket {
    type Key = Place;

    fn get_key(&self, waiter: &Waiter) -> Place {
        // SAFETY: who works on a tree has the lock of its bucket.
        unsafe { *waiter.place.get() }
    }
}

impl Waiter {
    /// What one takes of memory, with the counts of its references.
    pub(super) const BYTES: usize = size_of::<Self>() + 2 * size_of::<usize>();

    /// Of the current thread. It is given its ticket here, before the word is read.
    pub(super) fn new(key: Key, bitset: u32, pi: bool) -> Arc<Self> {
        Arc::new(Self {
            link: RBTreeAtomicLink::new(),
            taken: LinkedListAtomicLink::new(),
            place: UnsafeCell::new(Place { key, pi, ticket: next_ticket() }),
            bucket: AtomicUsize::new(bucket_of(&key)),
            bitset,
            woken: AtomicBool::new(false),
            to_own: None,
            moved: AtomicBool::new(false),
            inheritance: RBTreeAtomicLink::new(),
            owner: UnsafeCell::new(0),
            inherits: AtomicBool::new(false),
            thread: process::current().to_arc(),
        })
    }

    /// Of the current thread, which waits for a word until it is moved to another one, to own that.
    pub(super) fn to_own(key: Key, word: Key) -> Arc<Self> {
        let mut waiter = Self::new(key, MATCH_ANY, false);
        if let Some(waiter) = Arc::get_mut(&mut waiter) {
            waiter.to_own = Some(word);
        }
        waiter
    }

    /// Was it moved to another word?
    pub(super) fn is_moved(&self) -> bool {
        self.moved.load(Ordering::SeqCst)
    }

    pub(super) fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst)
    }

    /// It was taken out of its bucket for good, whose lock is held: from now on it does not look for itself there.
    pub(super) fn set_woken(&self) {
        self.woken.store(true, Ordering::SeqCst);
    }

    /// Whether the owner of its word has ended, which is to be its own.
    pub(super) fn inherits(&self) -> bool {
        self.inherits.load(Ordering::SeqCst)
    }

    /// Leaves the queue. False if it was woken before.
    pub(super) fn leave(&self) -> bool {
        loop {
            let index = self.bucket.load(Ordering::SeqCst);
            let mut bucket = TABLE[index].lock();
            // It may have been requeued while this thread waited for the lock.
            if self.bucket.load(Ordering::SeqCst) != index {
                continue;
            }
            if self.is_woken() {
                return false;
            }
            // SAFETY: it is in this bucket, whose lock is held.
            let removed = unsafe { bucket.0.cursor_mut_from_ptr(self).remove() };
            // SAFETY: the lock is held.
            let key = unsafe { (*self.place.get()).key };
            let next = bucket.heir_leaves(self, &key);
            drop(bucket);
            if let Some(next) = next {
                sched::wake(&next.thread);
            }
            drop(removed);
            return true;
        }
    }
}

/// Waiters that were taken out of a bucket, in the order in which they came. It is made of their own links: a wake
/// allocates nothing.
pub(super) struct Taken(LinkedList<TakenOut>);

impl Taken {
    /// Nobody.
    pub(super) fn new() -> Self {
        Self(LinkedList::new(TakenOut::NEW))
    }

    /// Adds one at the end.
    pub(super) fn push(&mut self, waiter: Arc<Waiter>) {
        self.0.push_back(waiter);
    }

    /// Takes the first one.
    pub(super) fn pop(&mut self) -> Option<Arc<Waiter>> {
        self.0.pop_front()
    }
}

/// What a look at some waiters of a word gave.
pub(super) struct Batch {
    /// Those who were taken out.
    pub(super) taken: Taken,
    /// How many they are.
    pub(super) number: usize,
    /// The look ended at one who waits to own a word: such ones are not woken or moved like others.
    pub(super) meets_owner_to_be: bool,
}

/// The waiters of a bucket.
pub(super) struct Bucket(RBTree<InBucket>);

impl Bucket {
    /// Nobody.
    pub(super) const fn new() -> Self {
        Self(RBTree::new(InBucket::NEW))
    }

    /// Adds a waiter. The word has the value for which it waits.
    pub(super) fn add(&mut self, waiter: Arc<Waiter>) {
        self.0.insert(waiter);
    }

    /// Takes out up to `count` waiters of a word that have a bit of `bitset` and a ticket of `tickets`, as far as a [`BATCH`] of
    /// looks goes. The tickets that were looked at leave the range.
    pub(super) fn take(&mut self, key: &Key, tickets: &mut Range<u64>, count: usize, bitset: u32) -> Batch {
        let mut batch = Batch { taken: Taken::new(), number: 0, meets_owner_to_be: false };
        if count == 0 {
            return batch;
        }
        let begin = Place { key: *key, pi: false, ticket: tickets.start };
        let mut cursor = self.0.lower_bound_mut(Bound::Included(&begin));
        for _ in 0..BATCH {
            let place = cursor.get().map(|waiter| InBucket::NEW.get_key(waiter));
            let Some(place) = place.filter(|place| place.key == *key && place.ticket < tickets.end) else {
                tickets.start = tickets.end;
                break;
            };
            if place.pi || cursor.get().is_some_and(|waiter| waiter.to_own.is_some()) {
                batch.meets_owner_to_be = true;
                tickets.start = tickets.end;
                break;
            }
            tickets.start = place.ticket + 1;
            if cursor.get().is_none_or(|waiter| waiter.bitset & bitset == 0) {
                cursor.move_next();
                continue;
            }
            if let Some(waiter) = cursor.remove() {
                batch.taken.push(waiter);
                batch.number += 1;
            }
            if batch.number == count {
                break;
            }
        }
        batch
    }

    /// As [`Bucket::take`], of waiters that are to be woken.
    pub(super) fn take_to_wake(
        &mut self,
        key: &Key,
        tickets: &mut Range<u64>,
        count: usize,
        bitset: u32,
    ) -> Batch {
        let batch = self.take(key, tickets, count, bitset);
        // Under the bucket's lock: from now on the waiters do not look for themselves in the bucket.
        batch.taken.0.iter().for_each(|waiter| waiter.woken.store(true, Ordering::SeqCst));
        batch
    }

    /// Adds one that waits to own the word, as the last.
    pub(super) fn add_owner_to_be(&mut self, waiter: &Arc<Waiter>) {
        // SAFETY: it is in no bucket, and comes to this one, whose lock is held.
        unsafe { (*waiter.place.get()).ticket = next_ticket() };
        self.add(waiter.clone());
    }

    /// Adds a waiter that was taken out of the bucket of another word, or of this one, as the last that waits for
    /// `key`: to own it if that is what it wants. The locks of both are held.
    pub(super) fn add_moved(&mut self, waiter: Arc<Waiter>, key: &Key, index: usize) {
        let pi = waiter.to_own.is_some();
        // SAFETY: it was in the first bucket and comes to this one; both locks are held.
        unsafe { *waiter.place.get() = Place { key: *key, pi, ticket: next_ticket() } };
        waiter.bucket.store(index, Ordering::SeqCst);
        waiter.moved.store(true, Ordering::SeqCst);
        self.add(waiter);
    }

    /// The first that waits for a word, not to own it yet, with a ticket below `end`.
    pub(super) fn first(&self, key: &Key, end: u64) -> Option<&Waiter> {
        let begin = Place { key: *key, pi: false, ticket: 0 };
        let first = self.0.lower_bound(Bound::Included(&begin)).get()?;
        let place = InBucket::NEW.get_key(first);
        (place.key == *key && !place.pi && place.ticket < end).then_some(first)
    }

    /// Takes out whom [`Bucket::first`] gave.
    pub(super) fn take_first(&mut self, key: &Key, end: u64) -> Option<Arc<Waiter>> {
        let first = self.first(key, end).map(core::ptr::from_ref)?;
        // SAFETY: it is in the bucket, whose lock is held.
        unsafe { self.0.cursor_mut_from_ptr(first).remove() }
    }

    /// Whether somebody waits to own the word.
    pub(super) fn has_owner_to_be(&self, key: &Key) -> bool {
        self.owners_to_be(key).0.is_some()
    }

    /// Whether the owner of the word has ended, and who is to take it has not run yet. Until then nobody else takes it, whatever it says.
    pub(super) fn is_inherited(&self, key: &Key) -> bool {
        self.owners_to_be(key).0.is_some_and(Waiter::inherits)
    }

    /// The number of the thread that owns the word next, and whether another waits behind it.
    pub(super) fn next_owner(&self, key: &Key) -> Option<(u32, bool)> {
        let (next, more) = self.owners_to_be(key);
        next.map(|next| (next.thread.number(), more))
    }

    /// Takes out who owns the word from now on: the first. The next one is its heir.
    pub(super) fn take_owner(&mut self, key: &Key) -> Option<Arc<Waiter>> {
        let next = self.owners_to_be(key).0.map(core::ptr::from_ref)?;
        // SAFETY: it is in the bucket, whose lock is held.
        let waiter = unsafe { self.0.cursor_mut_from_ptr(next).remove() }?;
        self.heir_owns(&waiter, key);
        waiter.set_woken();
        Some(waiter)
    }

    /// The first that waits to own the word.
    pub(super) fn first_owner_to_be(&self, key: &Key) -> Option<Arc<Waiter>> {
        let begin = Place { key: *key, pi: true, ticket: 0 };
        let cursor = self.0.lower_bound(Bound::Included(&begin));
        let place = InBucket::NEW.get_key(cursor.get()?);
        (place.key == *key && place.pi).then(|| cursor.clone_pointer())?
    }

    /// The first that waits to own the word, and whether there is a second.
    fn owners_to_be(&self, key: &Key) -> (Option<&Waiter>, bool) {
        let is_one = |waiter: &&Waiter| {
            let place = InBucket::NEW.get_key(waiter);
            place.key == *key && place.pi
        };
        let begin = Place { key: *key, pi: true, ticket: 0 };
        let mut cursor = self.0.lower_bound(Bound::Included(&begin));
        let first = cursor.get().filter(is_one);
        cursor.move_next();
        (first, first.is_some() && cursor.get().as_ref().is_some_and(is_one))
    }
}
