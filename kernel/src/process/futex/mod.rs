//! Futexes: sleeping on a word of user memory, futex(2).
//!
//! A waiter is in the bucket of its key. It joins under the bucket's lock, after it has seen the expected value under
//! that lock; a waker changes the value first and takes the lock after that. So either the waiter sees the new value,
//! or the waker sees the waiter. The value is read without sleeping; when its page is not there, the lock is released,
//! the page brought in, and all begins again.

mod ops;
mod pi;
mod robust;

pub use ops::{WaitWord, requeue, wait, waitv, wake, wake_op};
pub use pi::{lock_pi, unlock_pi};
pub use robust::{HEAD_SIZE, exit_robust_list};

use core::cell::UnsafeCell;
use core::hash::{Hash, Hasher};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use alloc::sync::Arc;
use intrusive_collections::{LinkedList, LinkedListAtomicLink, intrusive_adapter};

use super::Thread;
use crate::errno::{Errno, Result};
use crate::mm::uaccess;
use crate::mm::{Key, futex_key};
use crate::sync::IrqLock;

/// Matches every waiter.
pub const MATCH_ANY: u32 = u32::MAX;

/// Somebody who waits for a word.
pub(super) struct Waiter {
    link: LinkedListAtomicLink,
    /// Used under the lock of the bucket in which the waiter is.
    key: UnsafeCell<Key>,
    bucket: AtomicUsize,
    /// Larger than that of each who came to the word before: a wake or a requeue that takes several holds of the lock
    /// stops at those who came after it began. Changes under the bucket's lock, when the waiter is requeued.
    ticket: AtomicU64,
    bitset: u32,
    /// It waits to own the word: FUTEX_LOCK_PI.
    pi: bool,
    woken: AtomicBool,
    thread: Arc<Thread>,
}

// SAFETY: `key` is guarded by the bucket's lock, the rest is atomic or immutable.
unsafe impl Sync for Waiter {}
// SAFETY: as above.
unsafe impl Send for Waiter {}

intrusive_adapter!(pub(super) InBucket = Arc<Waiter>: Waiter { link => LinkedListAtomicLink });

const BUCKETS: usize = 256;

type Bucket = LinkedList<InBucket>;

static TABLE: [IrqLock<Bucket>; BUCKETS] = [const { IrqLock::new(LinkedList::new(InBucket::NEW)) }; BUCKETS];

/// FNV-1a: the same number for the same key each time, which seeded hashers do not give.
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// A number above all that were given before.
fn next_ticket() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // A waker changes the word before it takes its number. So a waiter with a larger one sees the new value.
    NEXT.fetch_add(1, Ordering::SeqCst)
}

fn bucket_of(key: &Key) -> usize {
    let mut hasher = KeyHasher(0xcbf2_9ce4_8422_2325);
    key.hash(&mut hasher);
    hasher.finish() as usize % BUCKETS
}

impl Waiter {
    fn new(key: Key, bitset: u32, pi: bool) -> Arc<Self> {
        let bucket = bucket_of(&key);
        Arc::new(Self {
            link: LinkedListAtomicLink::new(),
            key: UnsafeCell::new(key),
            bucket: AtomicUsize::new(bucket),
            ticket: AtomicU64::new(next_ticket()),
            bitset,
            pi,
            woken: AtomicBool::new(false),
            thread: super::current().to_arc(),
        })
    }

    fn waits_for(&self, key: &Key) -> bool {
        // SAFETY: the caller holds the bucket's lock, as it has found the waiter there.
        unsafe { *self.key.get() == *key }
    }

    /// Whether it came to its word before a number was given. The bucket's lock is held.
    fn came_before(&self, ticket: u64) -> bool {
        // Relaxed: the lock orders it.
        self.ticket.load(Ordering::Relaxed) < ticket
    }

    fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst)
    }

    /// Leaves the queue. False if it was woken before.
    fn leave(&self) -> bool {
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
            let removed = unsafe { bucket.cursor_mut_from_ptr(self).remove() };
            drop(bucket);
            drop(removed);
            return true;
        }
    }
}

/// Runs `f` on the bucket and the word's present value, until `f` does not fail with `EFAULT`: then the page is brought
/// in (for writing if `write`), without the lock.
fn with_value<T>(
    address: usize,
    index: usize,
    write: bool,
    mut f: impl FnMut(&mut Bucket, u32) -> Result<T>,
) -> Result<T> {
    loop {
        {
            let mut bucket = TABLE[index].lock();
            let result = uaccess::load_u32_nofault(address).and_then(|value| f(&mut bucket, value));
            if !matches!(result, Err(Errno::EFAULT)) {
                return result;
            }
        }
        if write {
            // Adds nothing: the write makes the page writable, or fails for good.
            uaccess::update_u32(address, |value| value)?;
        } else {
            uaccess::load_u32(address)?;
        }
        if super::current().kill_pending() {
            return Err(Errno::EINTR);
        }
    }
}

/// Checks alignment, and names the word.
fn key_of(address: usize, shared: bool) -> Result<Key> {
    if !address.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    uaccess::check_range(address, 4)?;
    futex_key(address, shared)
}

/// A thread has ended and cleared the word at its `clear_child_tid`: whoever joins it goes on.
pub fn wake_after_exit(address: usize) {
    // Joiners use either kind, as pthread_join and the C library's own waits differ.
    let _ = wake(address, true, 1, MATCH_ANY);
    let _ = wake(address, false, 1, MATCH_ANY);
}
