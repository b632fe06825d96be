//! Futexes: sleeping on a word of user memory, futex(2).
//!
//! A waiter is in the bucket of its key. It joins under the bucket's lock, after it has seen the expected value under
//! that lock; a waker changes the value first and takes the lock after that. So either the waiter sees the new value,
//! or the waker sees the waiter. The value is read without sleeping; when its page is not there, the lock is released,
//! the page brought in, and all begins again.

mod bucket;
mod ops;
mod owners;
mod pi;
mod requeue_pi;
mod robust;

pub use ops::{WaitWord, Word, requeue, wait, waitv, wake, wake_op};
pub use owners::leave_words;
pub use pi::{lock_pi, unlock_pi};
pub use requeue_pi::{requeue_pi, wait_requeue_pi};
pub use robust::{HEAD_SIZE, exit_robust_list};

use core::hash::{Hash, Hasher};

use bucket::Bucket;

use crate::errno::{Errno, Result};
use crate::mm::uaccess;
use crate::mm::{Key, futex_key};
use crate::sync::IrqLock;

/// Matches every waiter.
pub const MATCH_ANY: u32 = u32::MAX;

const BUCKETS: usize = 256;

static TABLE: [IrqLock<Bucket>; BUCKETS] = [const { IrqLock::new(Bucket::new()) }; BUCKETS];

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

fn bucket_of(key: &Key) -> usize {
    let mut hasher = KeyHasher(0xcbf2_9ce4_8422_2325);
    key.hash(&mut hasher);
    hasher.finish() as usize % BUCKETS
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
